"""What is imported when: help comes without torch, and the package is whole wherever it is used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sslops
from sslops.training.cli import COMMANDS
from sslops.training.cli.catalogue import SUMMARIES
from sslops.training.methods import METHODS

pytestmark = pytest.mark.slow

HEAVY = {"torch", "numpy", "sklearn", "scipy", "PIL", "tyro", "safetensors", "sslops._api"}
SCRIPT = "import sys\nfrom sslops.training.cli import main\nsys.exit(main())\n"


def python(*arguments, code=0):
    run = [sys.executable, *map(str, arguments)]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Where the installed command may lie: `pip install --user` puts it there."""
    monkeypatch.setenv("PYTHONUSERBASE", str(tmp_path / "user"))
    script = tmp_path / "user" / "bin" / "sslops"
    script.parent.mkdir(parents=True)
    return script


def imported(*arguments, code=0):
    """The modules that a Python process imports."""
    done = python("-X", "importtime", *arguments, code=code)
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}, done.stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("-m sslops", 0),
        ("-m sslops --help", 0),
        ("-m sslops --version", 0),
        ("-m sslops trian", 2),
        ("-m sslops train", 2),
        ("-m sslops train simclrr", 2),
        ("-m sslops plan", 2),
        ("-m sslops.training --help", 0),
        ("-m sslops.training", 2),
        ("-m bench --help", 0),
        *((f"-m sslops {command} --help", 0) for command in COMMANDS),
    ],
)
def test_text_does_not_wait_for_torch(arguments, code):
    modules, _ = imported(*arguments.split(), code=code)
    assert "sslops._version" in modules or "bench" in modules  # they are listed
    assert not HEAVY & modules


def test_the_installed_script_does_not_wait_for_torch(command, tmp_path):
    command.write_text(SCRIPT)
    (tmp_path / "sslops").symlink_to(command)  # as pipx does
    for script, *arguments in ([command, "--help"], [tmp_path / "sslops", "export", "--help"]):
        modules, said = imported(script, *arguments)
        assert not HEAVY & modules
        assert "sslops" in said


@pytest.mark.parametrize("name", ["sslops", "sslops.py"])
def test_a_program_of_that_name_gets_the_ops(name, tmp_path):
    """Only the installed command may do without them."""
    program = tmp_path / "bin" / name
    program.parent.mkdir()
    path = str(Path(sslops.__file__).parents[1])  # before the program's own folder
    program.write_text(
        f"import sys; sys.path.insert(0, {path!r}); import sslops, torch\n"
        "print(torch.ops.sslops.nt_xent_fwd.default)"
    )
    assert "nt_xent_fwd" in python(program).stdout


@pytest.mark.parametrize("arguments", ["", "--version", "export --help", "plan", "train"])
def test_a_reader_that_has_enough_is_no_error(arguments, command):
    closed = "import os, sys\nread, write = os.pipe()\nos.close(read)\nos.dup2(write, 1)\n"
    run = f"{closed}from sslops.training.cli import main\nsys.exit(main({arguments.split()}))"
    command.write_text(run)  # which does not wait for torch
    said = python(command, code=141).stderr
    assert said == (
        "sslops: stopped, as nothing reads the output\n" if arguments == "train" else ""
    )


@pytest.mark.parametrize("arguments", ["", "--help", "--version", "export --help", "train"])
def test_a_full_disk_is_said_in_a_line(arguments):
    """Nothing of it is left for the end of Python, which would say it again."""
    code = "import sys\nfrom sslops.training.cli import main\nsys.exit(main(sys.argv[1:]))"
    run = [sys.executable, "-c", code, *arguments.split()]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            run, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, env=env
        )
    assert done.returncode == 3
    assert done.stderr.startswith("sslops: could not read or write a file: [Errno 28] ")
    assert done.stderr.count("\n") == 1


def test_errors_that_nobody_reads_end_quietly():
    """`2>&1 | head`: there is nowhere left to say it; the code does."""
    for arguments, ended in (("train", 141), ("trian", 2)):
        code = (
            "import os, sys\nread, write = os.pipe()\nos.close(read)\nos.dup2(write, 1)\n"
            "os.dup2(write, 2)\nfrom sslops.training.cli import main\n"
            f"sys.exit(main([{arguments!r}]))"
        )
        python("-c", code, code=ended)


def test_import_registers_the_ops_everywhere_else(tmp_path):
    """An exported graph finds them, whatever is imported first and used next."""
    package = tmp_path / "sslops_user"
    package.mkdir()
    use = "import sslops\nimport torch\ntorch.ops.sslops.nt_xent_fwd.default\nprint('found')"
    (package / "__init__.py").write_text(use)
    (package / "__main__.py").touch()
    path = os.pathsep.join([str(tmp_path), str(Path(sslops.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-m", "sslops_user"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert "found" in done.stdout, done.stderr


def test_inside_of_the_command_the_package_is_whole(command):
    """What a command runs may use the package in any way, although torch is not there at first."""
    uses = {
        "attribute": "sslops.nt_xent",
        "function like its module": "from sslops import chance; chance('nt_xent', batch=4)",
        "after its module": "import sslops.chance; sslops.nt_xent; sslops.chance.__code__",
        "star": "from sslops import *; nt_xent, KeyQueue",
        "folder": "sslops.nn.NTXentLoss, sslops.parallel.Ring",
        "private": "from sslops import _library; _library.op",
        "pickle": "import pickle; pickle.loads(b'csslops.nn.nt_xent\\nNTXentLoss\\n.')()",
        "ops": "sslops.HAS_EXTENSION; torch.ops.sslops.nt_xent_fwd.default",
        "missing": "assert not hasattr(sslops, 'no'), sslops.no",
        "all": f"assert set({sslops.__all__}) == set(sslops.__all__) <= set(dir(sslops))",
    }
    # torch is imported once, sslops from the start in each child
    lines = ["import os, sys, sslops", "assert 'torch' not in sys.modules", "import torch"]
    for name, use in uses.items():
        lines += [
            "if not os.fork():",
            f"    {use}",
            f"    print({name!r})",
            "    sys.stdout.flush()",
        ]
        lines += ["    os._exit(0)", "os.wait()"]
    command.write_text("\n".join(lines))
    said = python(command).stdout.splitlines()
    assert said == list(uses)


def test_the_catalogue_is_that_of_the_methods():
    assert list(SUMMARIES) == list(METHODS)
