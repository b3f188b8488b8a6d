"""`sslops bench`: what it says, and its exit code, where not all of the grid can run."""

import pytest

from bench.__main__ import main, parser
from bench.cases import OPS
from bench.grid import Options
from bench.timing import MODES

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("device", ["gpu", "cuda:77"])
@pytest.mark.parametrize("flags", ["--list", "--op enqueue_ --quick"])
def test_a_device_that_is_not_there_is_refused(tmp_path, capsys, device, flags):
    assert main([*flags.split(), "--device", device, "--out", str(tmp_path / "b")]) == 2
    said = capsys.readouterr().err
    assert said == f"bench: device must exist on this machine, got {device!r}\n"
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--op clip_loss --providers memeff", "needs a CUDA device"),
        ("--op clip_loss --providers foreach_lerp", "no provider has these ops in these modes"),
    ],
)
def test_nothing_measured_is_no_success(tmp_path, capsys, flags, reason):
    more = ["--quick", "--no-memory", "--device", "cpu", "--out", str(tmp_path)]
    assert main([*flags.split(), *more]) == 1
    assert capsys.readouterr().err == f"bench: nothing was measured: {reason}\n"


def test_ops_that_a_size_does_not_fit_are_named(tmp_path, capsys):
    flags = "--op enqueue_,nt_xent,cpc_loss --size 32x16 --dtype float32 --providers eager"
    more = "--modes both --rounds 3 --seconds 0.1 --no-memory --device cpu --out".split()
    main([*flags.split(), *more, str(tmp_path)])
    said = [line for line in capsys.readouterr().out.splitlines() if "its sizes are" in line]
    unfit = [op for op in ("enqueue_", "nt_xent", "cpc_loss") if len(OPS[op].dims) != 2]
    assert unfit
    assert said == [f"without {op}: its sizes are {'x'.join(OPS[op].dims)}" for op in unfit]


def test_the_help_names_what_there_is():
    """It is written without importing torch, so a second time."""
    (modes,) = (action for action in parser()._actions if action.dest == "modes")
    assert modes.help.replace(" and", ",").split(" (")[0] == f"of {', '.join(MODES)}"
    assert modes.default == Options().modes
