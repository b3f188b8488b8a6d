"""Optional packages: each command asks for those that it uses, at once, and for no other."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sslops import doctor
from sslops.training import train
from sslops.training.cli import command_line as cli
from sslops.training.run import packages
from sslops.training.run.packages import NEEDS, PIP

ROOT = Path(__file__).parents[2]
TINY = "--steps 1 --batch 16 --width 4 --train-images 64 --threads 1 --no-evaluate"
# A way to type each command of the table.
TYPED = {
    "train": f"train simclr {TINY} --out new",
    "train --replay": "train --replay no.pt",
    "plan": "plan simclr --image-size 8 --width 4 --batch 8 --no-probe",
    "plan of a data set": "plan simclr --no-probe",
    "ablate": f"ablate simclr --field lr --values 1 {TINY} --out new",
    "audit": f"audit rotation {TINY} --out new",
    "eval": "eval run",
    "compare": "compare run",
    "list": "list",
    "export": "export run",
    "doctor": "doctor",
    "bench": "bench --help",
}


def hide(monkeypatch, *names):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        packages.importlib.util, "find_spec", lambda name: None if name in names else found(name)
    )


def test_the_table_has_every_command():
    assert {command.split()[0] for command in NEEDS} - {"train()"} == set(cli.COMMANDS)
    assert set(TYPED) == set(NEEDS) - {"train()"}
    assert set(NEEDS["train"]) - set(NEEDS["train()"]) == {"tyro"}  # a function has no flags


@pytest.mark.parametrize(
    ("command", "package"),
    [(command, name) for command in TYPED for name in NEEDS[command]],
)
def test_what_is_missing_is_named_before_anything_is_done(
    command, package, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    hide(monkeypatch, package)
    assert cli.main(TYPED[command].split()) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{command}: needs packages that are not installed, got no ")
    assert f"got no {PIP[package]}; install them with: pip install {PIP[package]}, or" in said
    assert "pip install '.[train]' in a clone of the repository" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", [*NEEDS["train()"], "tensorboard"])
def test_the_function_asks_like_the_command(package, monkeypatch, tmp_path):
    hide(monkeypatch, package)
    needing = {"tensorboard": package == "tensorboard", "steps": 1, "evaluate": False}
    with pytest.raises(FileNotFoundError, match=f"^train: .* got no {PIP[package]}; install"):
        train("simclr", out=tmp_path / "run", **needing)
    assert not list(tmp_path.iterdir())


def test_several_are_named_together(monkeypatch, capsys):
    hide(monkeypatch, *NEEDS["train"])
    assert cli.main(["train", "simclr"]) == 2
    assert "pip install tyro scikit-learn safetensors pillow, or" in capsys.readouterr().err


@pytest.mark.slow
def test_no_command_asks_for_a_package_that_it_does_not_use(tmp_path):
    """Each in a child process in which only those of the table can be imported."""
    lines = ["import json, os, sys", "from sslops.training.cli import main", "import sslops, torch"]
    lines += ["import sslops.training.run.run", f"assert not {set(PIP)} & set(sys.modules)"]
    (tmp_path / "run").mkdir()
    lines += [
        "from sslops.training import train",
        "short = dict(steps=1, batch=16, width=4, train_images=64, threads=1, evaluate=False)",
        "child = lambda: not os.fork()",
        "if child():",
        "    sys.modules['tyro'] = sys.modules['tensorboard'] = sys.modules['matplotlib'] = None",
        "    train('simclr', out='run', **short)",
        f"    assert {set(NEEDS['train()'])} <= set(sys.modules), 'train()'",
        "    os._exit(0)",
        "assert os.wait()[1] == 0, 'train()'",
    ]
    for command in ("plan", "plan of a data set", "compare", "list", "export", "doctor"):
        hidden = {*PIP, "rich", "matplotlib"} - {*NEEDS[command]}
        if command == "plan of a data set":
            hidden -= {"tyro"}
        lines += ["if child():", f"    sys.modules.update(dict.fromkeys({hidden}))"]
        lines += [f"    code = main({TYPED[command].split()})", "    sys.stdout.flush()"]
        if command != "plan of a data set":  # needs what its data do, and digits no pictures
            lines += [f"    assert {set(NEEDS[command])} <= set(sys.modules), {command!r}"]
        lines += ["    os._exit(code)", f"assert os.wait()[1] == 0, {command!r}"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def third_party(folder):
    """Packages that the files of a folder import, less the standard library and our own."""
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                top = name.partition(".")[0]
                if top not in {*sys.stdlib_module_names, "sslops"}:
                    yield "tensorboard" if name == "torch.utils.tensorboard" else top


def test_the_extra_is_what_is_imported_and_asked_for():
    asked = {name for names in NEEDS.values() for name in names}
    with_sklearn = {"scipy"}  # which it depends on
    from_elsewhere = {"torch", "numpy", "soundfile"}  # required, or looked for where it is used
    used = set(third_party("training")) - from_elsewhere - with_sklearn
    assert used == set(PIP) == asked | {"tensorboard"}
    project = (ROOT / "pyproject.toml").read_text()
    extra = re.search(r"^train = \[(.*?)\]", project, re.M | re.S).group(1)
    assert set(re.findall(r'"(.+?)"', extra)) == {PIP[name] for name in asked}
    assert set(doctor.EXTRAS["train"]) == asked
