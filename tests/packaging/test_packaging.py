"""The layout rules, kept by tests rather than by memory."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# folder -> what of this project it may import
MAY_IMPORT = {
    "kernels": {"sslops.kernels", "sslops._info_nce_args"},
    "sslops/reference": {"sslops.reference", "sslops._info_nce_args"},
    "sslops/parallel": {"sslops.parallel", "sslops._names"},
    "sslops/ops": {
        "sslops._info_nce_args", "sslops._library", "sslops._names", "sslops.kernels",
        "sslops.reference", "sslops.parallel", "sslops.ops",
    },
    "sslops/compat": {
        "sslops", "sslops._join", "sslops._names", "sslops.compat", "sslops.distributed",
        "sslops.ops._checks",
    },
    "training": {
        "sslops",
        "sslops._compile_cache",
        "sslops._names",
        "sslops.distributed",
        "sslops.doctor",
        "sslops.grad_cache",
        "sslops.training",
    },
    "bench": {"sslops", "sslops._compile_cache", "sslops.parallel", "sslops.training", "bench"},
}  # fmt: skip


def project_imports(file: Path):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_dependencies_point_one_way(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for file in files:
        for module in project_imports(file):
            if module.split(".")[0] not in {"sslops", "kernels", "training", "bench", "tests"}:
                continue
            allowed = MAY_IMPORT[folder]
            inside = any(module.startswith(f"{each}.") for each in allowed - {"sslops"})
            assert module in allowed or inside, f"{file.relative_to(ROOT)} imports {module}"


def test_import_leaves_no_top_level_kernels_or_training(tmp_path):
    code = "import sslops, sys; print(sorted({'kernels', 'training'} & set(sys.modules)))"
    run = [sys.executable, "-c", code]
    out = subprocess.run(run, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert out.stdout.strip() == "[]"
    code = "import importlib.util as u; print(u.find_spec('kernels'), u.find_spec('training'))"
    run = [sys.executable, "-c", code]
    out = subprocess.run(run, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert out.stdout.strip() == "None None"


def test_import_does_not_need_triton_or_the_training_extra(tmp_path):
    blocked = ["triton", "PIL", "tyro", "sklearn", "matplotlib", "safetensors", "rich"]
    code = f"import sys\nfor m in {blocked}: sys.modules[m] = None\nimport sslops, torch\n"
    code += "print(sslops.nt_xent(torch.ones(4, 2)).item())"
    env = {**os.environ, "TRITON_INTERPRET": "0"}
    run = [sys.executable, "-c", code]
    out = subprocess.run(run, capture_output=True, text=True, check=True, cwd=tmp_path, env=env)
    assert float(out.stdout) == pytest.approx(1.0986123, abs=1e-6)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what git tracks, or of the files beside this one where there is no git."""
    target = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    for name in listed.stdout.split("\n") if listed.returncode == 0 else []:
        source, copy = ROOT / name, target / name
        if not name or not os.path.lexists(source):
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            copy.symlink_to(os.readlink(source))
        else:
            copy.write_bytes(source.read_bytes())
    if not (target / "setup.py").exists():
        pytest.skip("not a git checkout")
    return target


def build(checkout: Path, out: Path, *what: str) -> Path:
    env = {**os.environ, "SSLOPS_BUILD": "none"}
    run = [sys.executable, "-m", "build", "--no-isolation", *what, "--outdir", str(out)]
    subprocess.run(run, cwd=checkout, env=env, check=True, capture_output=True)
    (made,) = out.iterdir()
    return made


def modules_in(wheel: Path) -> set[str]:
    names = zipfile.ZipFile(wheel).namelist()
    return {name for name in names if ".dist-info/" not in name}


def test_wheel_holds_every_module_and_nothing_else(checkout, tmp_path):
    expected = {"sslops/py.typed", "sslops/_C.pyi"}
    for folder in ("sslops", "kernels", "training"):
        prefix = folder if folder == "sslops" else f"sslops/{folder}"
        for file in (checkout / folder).rglob("*.py"):
            relative = file.relative_to(checkout / folder)
            if folder == "sslops" and relative.parts[0] in ("kernels", "training"):
                continue  # the links
            expected.add(f"{prefix}/{relative.as_posix()}")
    assert modules_in(build(checkout, tmp_path / "direct", "--wheel")) == expected

    sdist = build(checkout, tmp_path / "sdist", "--sdist")
    unpacked = tmp_path / "unpacked"
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    (source,) = unpacked.iterdir()
    tiles = source / "csrc" / "cpu" / "tiles"
    assert (tiles / "tiles_f32.h").exists()  # or it could not be compiled
    assert modules_in(build(source, tmp_path / "again", "--wheel")) == expected


def test_a_folder_of_its_name_does_not_hide_the_package(tmp_path):
    """Where a clone named sslops lies, Python sees a folder without __init__.py first."""
    (tmp_path / "sslops").mkdir()
    code = "import sslops; print(sslops.__file__); sslops.nt_xent"
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).resolve() == ROOT / "sslops" / "__init__.py"


def test_editable_install_is_found_from_the_parent_of_the_clone(checkout, tmp_path):
    """The import hook of setuptools would come after Python's own, which takes the clone."""
    code = f"from setuptools.build_meta import build_editable as b; b({str(tmp_path)!r})"
    env = {**os.environ, "SSLOPS_BUILD": "none"}
    run = [sys.executable, "-c", code]
    subprocess.run(run, cwd=checkout, env=env, check=True, capture_output=True)
    subprocess.run(["make", "clean"], cwd=checkout, check=True, capture_output=True)
    shutil.rmtree(checkout / "build", ignore_errors=True)  # nothing of it is needed any more
    (wheel,) = tmp_path.glob("*.whl")
    (tmp_path / "sslops").symlink_to(checkout)
    use = (
        f"import site, sys, zipfile; zipfile.ZipFile({str(wheel)!r}).extractall('site')\n"
        "site.addsitedir('site')\n"
        f"sys.argv = [{str(Path(sys.executable).with_name('sslops'))!r}]  # without torch\n"
        "import sslops.training.recipes, sslops.training.cli\n"
        "from importlib.util import find_spec\n"
        "print(sslops.__file__, find_spec('kernels'), find_spec('training'))"
    )
    run = [sys.executable, "-S", "-c", use]  # without what else is installed
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, *others = done.stdout.split()
    assert Path(found).resolve() == (checkout / "sslops" / "__init__.py").resolve()
    assert others == ["None", "None"]


def test_what_takes_minutes_is_announced():
    """By make, as pip hides what setup.py says; and pip is not quiet while the compiler runs."""
    run = ["make", "--dry-run", "--always-make", "setup"]
    env = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    done = subprocess.run(run, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if "echo" in line or "pip install" in line]
    said, packages, compiling, build = lines
    assert "installing the pinned packages" in said
    assert "-r requirements.txt" in packages
    duration = re.search(r'^DURATION = "(.*)"', (ROOT / "setup.py").read_text(), re.M).group(1)
    assert f"compiling the C++ kernels: {duration}" in compiling
    assert build.endswith("-e .")
    assert "--quiet" not in build


def test_links_are_committed():
    for name in ("kernels", "training"):
        link = ROOT / "sslops" / name
        assert link.is_symlink()
        assert os.readlink(link) == f"../{name}"
