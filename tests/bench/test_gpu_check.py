"""The check for a GPU, without one: its order, its limits, and what it does when a step fails."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import gpu_check
from bench.__main__ import parser
from bench.cases import OPS
from bench.gpu_check import GRID, SHARES, STEPS, TOTAL, WITHOUT_GPU, Check, NotHere, counts, files
from bench.grid import Options, plan
from bench.grid import run as measure

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# what is worth most comes first
ORDER = [
    ["environment"],
    ["triton"],  # one kernel
    ["nt_xent", "moco", "ema"],  # the three targets
    ["kernels"],  # their tests
    ["build"],  # in the background of what follows
    ["memcheck", "racecheck"],
    ["grid"],
    [
        "graphs",
        "large",
        "passes",
        "built",
        "cuda",
        "cuda-grid",
        "cuda-memcheck",
        "tests",
        "cache",  # before what may be late
        "slow",
    ],
]
MEBIBYTES = 64 << 20  # what may travel


def main(monkeypatch, *arguments):
    monkeypatch.setattr(gpu_check, "GRACE", 0.5)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *map(str, arguments)])
    return gpu_check.main()


def steps_of(folder):
    return {step["step"]: step for step in json.loads((folder / "check.json").read_text())["steps"]}


def test_what_is_worth_most_comes_first():
    assert list(STEPS) == list(SHARES) == [name for part in ORDER for name in part]


def test_nine_minutes_are_enough_also_if_the_last_step_hangs():
    check = Check(Path(), dry=True)
    assert TOTAL <= 540
    assert check.limit(check.steps[-1]) + gpu_check.GRACE < 540
    # what the sum promises is there: nobody's share is more than the limit it gets
    assert sum(SHARES.values()) == pytest.approx(TOTAL - gpu_check.RESERVE)


def test_it_goes_through_the_motions(tmp_path):
    run = [sys.executable, str(ROOT / "bench" / "gpu_check.py"), "--out", str(tmp_path)]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    out = subprocess.run([*run, "--dry-run"], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert out.returncode == 0, out.stdout + out.stderr
    result = json.loads((tmp_path / "check.json").read_text())
    steps = steps_of(tmp_path)
    assert list(steps) == list(STEPS)
    assert result["failed"] == []
    assert result["versions"]["torch"] == torch.__version__
    assert steps["kernels"]["counts"]["PASSED"] > 3
    assert steps["environment"]["missing"] == [
        name for name in ("pytest", "hypothesis", "xdist") if not gpu_check.find_spec(name)
    ]
    assert {row["dtype"] for row in steps["ema"]["rates"]} >= {"float32", "bfloat16"}
    assert all(row["of_copy"]["average"] > 0 for row in steps["ema"]["rates"])
    skipped = {name: step["reason"] for name, step in steps.items() if step["status"] == "skipped"}
    assert result["left_out"] == skipped
    assert all(f"left out: {name}, {why}" in out.stdout for name, why in skipped.items())
    rows = [json.loads(line) for line in (tmp_path / "grid.jsonl").read_text().splitlines()]
    assert {row["provider"] for row in rows} >= {"sslops", "eager", "memeff"}
    assert "$ " in (tmp_path / "log.txt").read_text()
    files_there = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files_there) <= 8  # of a machine that gives back no more


def test_a_step_that_hangs_or_fails_does_not_stop_the_next_one(tmp_path, monkeypatch, capsys):
    faults = ["--fault", "triton=hang", "--fault", "moco=fail"]
    only = "triton,moco,build,built,cache"
    code = main(
        monkeypatch, "--dry-run", "--out", tmp_path, "--only", only, "--seconds", 25, *faults
    )
    steps = steps_of(tmp_path)
    assert code == 1
    assert {name: step["status"] for name, step in steps.items()} == {
        "triton": "failed", "moco": "failed", "build": "passed", "built": "passed",
        "cache": "skipped",
    }  # fmt: skip
    assert steps["triton"]["reason"].startswith("ran longer than")
    assert steps["triton"]["seconds"] < 12  # of 25, and it ignores interrupts
    assert steps["moco"]["reason"] == "exit code 1"
    assert steps["moco"]["output"] == ["made to fail"]
    result = json.loads((tmp_path / "check.json").read_text())
    assert result["failed"] == ["triton", "moco"]
    assert set(result["left_out"]) == {"triton", "cache"}
    assert "left out: triton, ran longer than" in capsys.readouterr().out


def test_what_there_is_no_time_for_is_left_out_and_said(tmp_path, monkeypatch, capsys):
    assert main(monkeypatch, "--dry-run", "--out", tmp_path, "--seconds", 16) == 0
    left_out = json.loads((tmp_path / "check.json").read_text())["left_out"]
    late = "the time was used up by the steps before"
    assert left_out == dict.fromkeys(STEPS, late)
    assert capsys.readouterr().out.count(f"{late}\n") == 2 * len(STEPS)


def test_a_check_that_is_killed_has_written_down_what_it_had(tmp_path):
    check = Check(tmp_path, dry=True)
    check.do("environment", lambda check, limit: {"gpu": "one"})
    result = json.loads((tmp_path / "check.json").read_text())
    assert result["steps"][0]["gpu"] == "one"
    assert result["left_out"]["triton"] == "the check ended before it"


def test_a_fault_is_for_dry_runs(tmp_path, monkeypatch, capsys):
    for arguments in (["--fault", "grid=hang"], ["--dry-run", "--fault", "grid=burn"]):
        with pytest.raises(SystemExit):
            main(monkeypatch, "--out", tmp_path, *arguments)
        assert "a fault is hang or fail, in a dry run" in capsys.readouterr().err


def test_an_interrupt_lets_a_step_say_what_it_has(tmp_path):
    def breaks(check, limit):
        raise OSError("broken")

    def slow(check, limit):
        code = "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        code += (
            "try: print('so far'); time.sleep(60)\nexcept KeyboardInterrupt: print('that is all')"
        )
        return check.python("-c", code, limit=1.5)

    check = Check(tmp_path, dry=True)
    check.do("build", breaks)
    check.do("tests", slow)
    check.do("grid", lambda check, limit: check.python("-c", "print(7 * 6)", limit=limit))
    broken, stopped, fine = check.results
    assert (broken["status"], broken["reason"]) == ("failed", "OSError: broken")
    assert (stopped["status"], stopped["code"]) == ("failed", None)
    assert stopped["output"] == "so far\nthat is all\n"
    assert stopped["seconds"] < 10
    assert (fine["status"], fine["output"]) == ("passed", "42\n")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A check that is no dry run, in a clone that is not this one."""
    (tmp_path / "sslops").mkdir()
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_check, "LOADS", "raise SystemExit(1)")
    monkeypatch.setattr(gpu_check, "nvcc", lambda: "nvcc")
    return Check(tmp_path / "out", dry=False)


SLOW_BUILD = "import time; time.sleep({}); import sys; open(sys.argv[1] + '/{}', 'w').close()"


def test_the_build_runs_beside_the_next_steps(elsewhere, monkeypatch, tmp_path):
    code = SLOW_BUILD.format(0.5, gpu_check.MODULE)
    monkeypatch.setattr(gpu_check, "BUILD", code)
    elsewhere.do("build", gpu_check.build)
    assert elsewhere.background.poll() is None
    elsewhere.do("built", gpu_check.built)
    assert [step["status"] for step in elsewhere.results] == ["passed", "passed"]
    for folder in ("sslops", "out"):  # to be used, and to be brought along the next time
        assert (tmp_path / folder / gpu_check.MODULE).exists()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import time; time.sleep(600)", "ran longer than 1 s"),
        ("raise SystemExit(3)", "exit code 3"),
    ],
)
def test_a_build_that_does_not_end_or_fails(elsewhere, monkeypatch, tmp_path, code, reason):
    monkeypatch.setattr(gpu_check, "BUILD", code)
    gpu_check.build(elsewhere, 10.0)
    process = elsewhere.background
    row = gpu_check.built(elsewhere, 1.0)
    assert (row["status"], row["reason"]) == ("failed", reason)
    assert process.poll() is not None
    assert not list((tmp_path / "sslops").iterdir())


def test_a_module_that_was_brought_along_is_not_built(elsewhere, monkeypatch):
    monkeypatch.setattr(gpu_check, "LOADS", "raise SystemExit(0)")
    with pytest.raises(NotHere, match="brought along and loads"):
        gpu_check.build(elsewhere, 10.0)
    with pytest.raises(NotHere, match="nothing was being built"):
        gpu_check.built(elsewhere, 10.0)


@pytest.mark.parametrize("step", ["cuda", "cuda-grid", "cuda-memcheck"])
def test_what_needs_the_module_is_left_out_without_it(elsewhere, monkeypatch, step):
    monkeypatch.setattr(gpu_check, "SANITIZER", sys.executable)  # some program
    with pytest.raises(NotHere, match=r"there is no sslops\._C_cuda"):
        STEPS[step](elsewhere, 10.0)


def test_without_a_compiler_nothing_is_built(elsewhere, monkeypatch):
    monkeypatch.setattr(gpu_check, "nvcc", lambda: None)
    with pytest.raises(NotHere, match="there is no nvcc"):
        gpu_check.build(elsewhere, 10.0)


@pytest.mark.parametrize(("kind", "provider"), [("kernels", "triton"), ("cuda", "cuda")])
def test_kernels_are_compared_also_without_pytest(elsewhere, monkeypatch, kind, provider):
    commands = []
    elsewhere.module = True

    def python(*arguments, limit, **env):
        commands.append(arguments)
        return {"status": "passed", "code": 0, "output": "", "command": ""}

    monkeypatch.setattr(elsewhere, "python", python)
    monkeypatch.setattr(gpu_check, "missing", lambda check, *names: ["hypothesis"])
    row = gpu_check.tests(kind)(elsewhere, 60.0)
    assert row["reason"].startswith("hypothesis cannot be imported; small sizes instead")
    given = parser().parse_args(commands[-1][2:])
    assert (given.quick, given.providers, given.dtype) == (True, (f"sslops-{provider}",), ())
    with pytest.raises(NotHere, match="hypothesis cannot be imported"):
        gpu_check.tests("tests")(elsewhere, 60.0)


def test_wheels_that_were_brought_along_are_installed(elsewhere, monkeypatch, tmp_path):
    (tmp_path / ".whl").mkdir()
    info = "brought-1.dist-info"
    with zipfile.ZipFile(tmp_path / ".whl" / "brought-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("brought.py", "")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: brought\nVersion: 1\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    assert gpu_check.missing(elsewhere, "brought") == ["brought"]
    monkeypatch.setattr(gpu_check, "VERSIONS", "print('{{}}')")
    row = gpu_check.environment(elsewhere, 60.0)
    assert row["wheels"] == ["brought-1-py3-none-any.whl"]
    assert gpu_check.missing(elsewhere, "brought") == []
    assert elsewhere.python("-c", "import brought", limit=10.0)["code"] == 0


@pytest.mark.parametrize("hangs", ["everything", *SHARES])
def test_nothing_that_hangs_takes_more_than_nine_minutes(elsewhere, monkeypatch, hangs):
    """The others use up their time; the driver's program is here, and hangs with its step."""
    now = [0.0]
    check = Check(elsewhere.out, dry=False, begin=0.0, module=True)
    name = ""

    def run(command, limit, **env):
        now[0] += limit + (gpu_check.GRACE if hangs in ("everything", name) else 0.0)
        return {"status": "failed", "code": None, "output": "", "command": "", "reason": "late"}

    monkeypatch.setattr(gpu_check, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(gpu_check.shutil, "which", lambda program, **_: program)
    monkeypatch.setattr(check, "run", run)
    for name in check.steps:
        start, limit = now[0], check.limit(name)
        check.do(name, STEPS[name])
        if name in GRID and limit > 2:
            assert now[0] - start <= limit + gpu_check.GRACE + 1e-6
    assert now[0] < 540
    assert len(check.results) == len(SHARES)


def test_what_is_measured_beside_the_build_says_so(elsewhere, monkeypatch):
    commands = []

    def python(*arguments, limit, **env):
        commands.append(arguments)
        return {"status": "passed", "code": 0, "output": "", "command": ""}

    monkeypatch.setattr(elsewhere, "python", python)
    monkeypatch.setattr(gpu_check.shutil, "which", lambda program, **_: None)
    building = SimpleNamespace(poll=lambda: None)
    for process, beside in ((None, ""), (building, "build"), (SimpleNamespace(poll=lambda: 0), "")):
        elsewhere.background = process
        elsewhere.results.clear()
        elsewhere.do("grid", STEPS["grid"])
        assert elsewhere.results[-1].get("beside", "") == beside
        given = parser().parse_args(commands[-1][2:])
        assert given.beside == beside
    options = Options(("ema_update_",), modes=("both",), quick=True, beside="build")
    rows = measure(options, elsewhere.out, say=lambda _: None)
    assert {row["beside"] for row in rows} == {"build"}


def test_the_build_leaves_two_cores(elsewhere, monkeypatch):
    monkeypatch.setattr(gpu_check, "BUILD", "import os; print(os.environ['MAX_JOBS'])")
    for cores, jobs in ((16, "14"), (2, "1"), (None, "1")):
        monkeypatch.setattr(gpu_check.os, "cpu_count", lambda cores=cores: cores)
        gpu_check.build(elsewhere, 10.0)
        assert gpu_check.built(elsewhere, 10.0)["output"] == [jobs]


def test_compiled_kernels_that_take_too_long_to_pack_are_counted(elsewhere, monkeypatch, tmp_path):
    for name in ("ABC", "DEF", "GHI"):
        (tmp_path / ".triton" / name).mkdir(parents=True)
        (tmp_path / ".triton" / name / "kernel.cubin").write_bytes(b"code")
    ticks = iter(range(100))
    monkeypatch.setattr(gpu_check, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    row = gpu_check.cache(elsewhere, 2.5)
    assert row["reason"] == "1 of 3 folders are left out: packing took longer than 2 s"
    with tarfile.open(tmp_path / "out" / "triton-cache.tar.gz") as tar:
        names = {name.removeprefix("./") for name in tar.getnames()}
    assert {"ABC/kernel.cubin", "DEF/kernel.cubin"} <= names
    assert not any("GHI" in name for name in names)


def test_compiled_kernels_come_back_if_they_are_small_enough(elsewhere, monkeypatch, tmp_path):
    with pytest.raises(NotHere, match="no cache"):
        gpu_check.cache(elsewhere, 10.0)
    (tmp_path / ".triton" / "ABC").mkdir(parents=True)
    (tmp_path / ".triton" / "ABC" / "kernel.cubin").write_bytes(os.urandom(5000))
    gpu_check.cache(elsewhere, 10.0)
    packed = tmp_path / "out" / "triton-cache.tar.gz"
    with tarfile.open(packed) as tar:
        assert "./ABC/kernel.cubin" in tar.getnames()
    monkeypatch.setattr(gpu_check, "MOST_BACK", 4000)
    with pytest.raises(NotHere, match="more than 4000"):
        gpu_check.cache(elsewhere, 10.0)
    assert not packed.exists()


@pytest.mark.parametrize("step", GRID)
def test_what_a_step_measures_exists(step):
    for flags in GRID[step]:
        given = parser().parse_args(flags.split())
        ops = given.op or tuple(OPS)
        options = Options(ops, given.size, given.dtype, given.providers, given.modes, "cuda")
        assert {op for op, _, _ in plan(options)} == set(ops)


def test_counts_of_a_run_that_was_stopped():
    text = "tests/a.py::b PASSED [ 1%]\n[gw0] [ 2%] FAILED tests/a.py::c \ntests/a.py::d "
    found = counts(text)
    assert found["counts"] == {"FAILED": 1, "PASSED": 1}
    assert found["failures"] == ["[gw0] [ 2%] FAILED tests/a.py::c "]


def test_every_test_file_that_says_something_there_is_run_once():
    kernels, cuda, others = (files(kind) for kind in ("kernels", "cuda", "tests"))
    chosen = [*kernels, *cuda, *others]
    assert len(set(chosen)) == len(chosen)
    left_out = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    left_out -= {Path(name).name for name in chosen}
    assert left_out == set(WITHOUT_GPU)
    marked = "marks=pytest.mark.gpu", "@pytest.mark.gpu", "pytest.mark.skipif(not torch.cuda"
    for name in others:
        text = (ROOT / name).read_text()
        assert not any(mark in text for mark in marked), f"{name} launches kernels"


def test_a_clone_may_travel():
    """With room for wheels, cache and module."""
    run = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    out = subprocess.run(run, capture_output=True, text=True, cwd=ROOT)
    if out.returncode != 0:
        pytest.skip("this is no clone")
    paths = [ROOT / name for name in out.stdout.split("\0") if name]
    assert sum(path.lstat().st_size for path in paths if path.exists()) < MEBIBYTES // 2
