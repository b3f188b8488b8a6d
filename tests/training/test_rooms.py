"""The rooms of training/: imports run down the house, and a method is known by what it declares.

The rule for imports: a room imports rooms below it and itself, wherever the import stands: at the
top of a module, in a function or for type checking alone. Imports in functions are for what is slow
or may be missing, not a way up. Modules import one another in no circle; of imports in functions
this is not asked, except that evaluation never imports the training loop but there.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "sslops.training"
# From the ground up. Modules of training/ itself stand on the roof.
ROOMS = (
    "recipes", "config", "distributed", "loggers", "augment", "models", "data", "methods",
    "storage", "engine", "evaluate", "report", "run", "experiments", "cli",
)  # fmt: skip
ROOF = {"__init__", "__main__"}
# What methods/ and models/ keep to themselves; others ask what a method or an encoder declares.
ABSTRACT = {"Method", "ContrastiveMethod"}


def modules(folder):
    """Name below the package -> file; a package has the name of its folder."""
    found = {}
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(folder).with_suffix("").parts
        found[".".join(parts[:-1] if parts[1:] and parts[-1] == "__init__" else parts)] = file
    return found


def imports(file, known):
    """(module below the package, whether it stands in a function) of every import of a file."""
    found = []

    def visit(node, inside):
        for child in ast.iter_child_nodes(node):
            within = inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            if isinstance(child, ast.ImportFrom) and child.level:
                raise AssertionError(f"{file}: relative imports are not read by this test")
            if isinstance(child, ast.ImportFrom) and child.module:
                names = [f"{child.module}.{each.name}" for each in child.names]
            elif isinstance(child, ast.Import):
                names = [each.name for each in child.names]
            else:
                names = []
            for name in names:
                if name == PACKAGE or name.startswith(f"{PACKAGE}."):
                    name = name.removeprefix(PACKAGE).removeprefix(".")
                    while name and name not in known:
                        name = name.rpartition(".")[0]
                    found.append((name or "__init__", within))
            visit(child, within)

    visit(ast.parse(file.read_text()), False)
    return found


def upward(folder):
    """Imports that run up, as text."""
    known = modules(folder)
    wrong = []
    for name, file in known.items():
        if name in ROOF:
            continue
        room = name.split(".")[0]
        assert room in ROOMS, f"{name} lies in no room that this test knows"
        for other, _ in imports(file, known):
            above = other in ROOF or ROOMS.index(other.split(".")[0]) > ROOMS.index(room)
            if above:
                wrong.append(f"{name} imports {other}")
    return wrong


def circle(folder):
    """Modules that import one another when they are loaded, None if there are none."""
    known = modules(folder)
    graph = {
        name: {other for other, inside in imports(file, known) if not inside and other != name}
        for name, file in known.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def test_every_folder_is_a_room():
    folders = {path.name for path in (ROOT / "training").iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} == set(ROOMS)
    assert {path.stem for path in (ROOT / "training").glob("*.py")} == ROOF


def test_no_import_runs_up():
    assert upward(ROOT / "training") == []


def test_no_modules_import_one_another():
    assert circle(ROOT / "training") is None


def test_evaluation_needs_no_loop():
    known = modules(ROOT / "training")
    for name, file in known.items():
        if name.split(".")[0] == "evaluate":
            assert ("engine.loop", False) not in imports(file, known), name


@pytest.fixture
def house(tmp_path):
    """A copy that can be broken."""
    for name in ROOMS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "data" / "a.py").write_text("import torch\n")
    (tmp_path / "data" / "b.py").write_text("from sslops.training.data.a import x\n")
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "from sslops.training.methods import Method\n",
        "from sslops.training import run\n",
        "import sslops.training.cli\n",
        "from sslops.training import train\n",
        "def f():\n    from sslops.training.engine.loop import Loop\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
        "    from sslops.training.engine.loop import Loop\n",
        "try:\n    import sslops.training.evaluate as e\nfinally:\n    pass\n",
    ],
)
def test_an_arrow_that_runs_up_is_seen(house, text):
    assert upward(house) == []
    (house / "data" / "a.py").write_text(text)
    assert len(upward(house)) == 1


def test_a_circle_is_seen(house):
    assert circle(house) is None
    (house / "data" / "a.py").write_text("def f():\n    from sslops.training.data.b import x\n")
    assert circle(house) is None  # only when it is called
    (house / "data" / "a.py").write_text("from sslops.training.data import b\n")
    assert {"data.a", "data.b"} <= set(circle(house))


def concrete():
    """Classes of methods, their configurations, and encoders, which others must not test for."""
    return {
        node.name
        for room in ("methods", "models")
        for file in (ROOT / "training" / room).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef) and node.bases
    } - ABSTRACT - {"Entry", "Trained"}  # fmt: skip


def questions(tree, names):
    """Texts that ask whether something is of one of the classes."""
    for node in ast.walk(tree):
        asked = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("isinstance", "issubclass"):
                asked = node.args[1:]
        elif isinstance(node, ast.Compare):
            asked = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchClass):
            asked = [node.cls]
        for part in asked:
            for each in ast.walk(part):
                if getattr(each, "id", getattr(each, "attr", None)) in names:
                    yield ast.unparse(node)


def test_nobody_else_asks_for_a_concrete_class():
    names = concrete()
    assert {"SimCLRConfig", "SplitEncoder", "Supervised", "AudioEncoder"} <= names
    files = [*(ROOT / "training").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]
    for file in files:
        if file.relative_to(ROOT).parts[1] not in ("methods", "models"):
            found = list(questions(ast.parse(file.read_text()), names))
            assert not found, f"{file.relative_to(ROOT)}: {found}"


@pytest.mark.parametrize(
    "text",
    [
        "isinstance(x, SimCLR)",
        "issubclass(x, (int, simclr.SimCLR))",
        "type(x) is SimCLR",
        "x.config == SimCLR",
        "isinstance(x, int | SimCLR)",
    ],
)
def test_such_a_question_is_seen(text):
    assert list(questions(ast.parse(text), {"SimCLR"}))
    assert not list(questions(ast.parse("isinstance(x, int); SimCLR(y); type(x)"), {"SimCLR"}))
