"""What the package says of itself: back ends, levels, missing parts."""

import pytest
import torch

import sslops
from sslops import _library, doctor

needs_extension = pytest.mark.skipif(not sslops.HAS_EXTENSION, reason="sslops._C is not compiled")


def test_report_names_versions_and_every_backend():
    text = doctor.report()
    for word in ("sslops", "python", "torch", "triton", "nt_xent on cpu", "extra [train]"):
        assert word in text
    assert {row.op for row in sslops.backends()} == set(doctor.OPS)
    for op in ("info_nce", "clip_loss", "cpc_loss", "sup_con", "sigmoid_loss"):
        assert f"{op} on cpu" in text


def test_ops_that_share_kernels_say_so():
    runs = {row.op: row.runs for row in sslops.backends() if row.device == "cpu"}
    assert runs["clip_loss"] == runs["cpc_loss"] == runs["info_nce"] + ", as info_nce"
    assert ", as" not in runs["nt_xent"]


@needs_extension
def test_an_op_that_was_not_compiled_is_reported(monkeypatch):
    monkeypatch.setattr(doctor, "OPS", {"nt_xent": "nt_xent_fwd_reference"})
    (row,) = [row for row in sslops.backends() if row.device == "cpu"]
    assert row.runs.startswith("reference")
    assert "compiled without it" in row.why


def test_report_without_a_compiled_module(monkeypatch):
    monkeypatch.setattr(_library, "load_extension", lambda: False)
    for cpu in (row for row in sslops.backends() if row.device == "cpu"):
        assert cpu.runs.startswith("reference")
        assert "--no-build-isolation" in cpu.why
    assert "kernels  not compiled" in doctor.report()


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (lambda: True, "sslops._C_cuda is loaded"),
        (lambda: False, "sslops._C_cuda was not compiled; SSLOPS_BUILD=cuda pip install"),
        (lambda: torch.ops.load_library("/nowhere.so"), "sslops._C_cuda does not load: "),
    ],
)
def test_report_says_whether_the_cuda_module_is_there(monkeypatch, found, line):
    monkeypatch.setattr(_library, "load_cuda_extension", found)
    assert f"cuda     {line}" in doctor.report()


def test_report_names_missing_extras(monkeypatch):
    monkeypatch.setattr(doctor, "EXTRAS", {"train": ("torch", "no_such_module")})
    assert "missing no_such_module; pip install '.[train]'" in doctor.report()


@needs_extension
def test_levels_can_be_forced_and_are_reported():
    from sslops import _C

    levels = _C.levels()
    assert levels[0] == "portable"
    try:
        for level in levels:
            _C.set_level(level)
            assert _C.level() == level
            for cpu in (row for row in sslops.backends() if row.device == "cpu"):
                assert level in cpu.runs
                assert bool(cpu.why) == (level != "amx")
    finally:
        _C.set_level("auto")
    assert _C.level() == levels[-1]


@needs_extension
def test_unknown_level_is_refused():
    from sslops import _C

    with pytest.raises(ValueError, match=r"level must be one of auto, portable.*got sse9"):
        _C.set_level("sse9")
    assert _C.level() == _C.levels()[-1]


@needs_extension
def test_compiled_ops_check_what_would_read_out_of_bounds():
    with pytest.raises(ValueError, match=r"z must be \[M, D\]"):
        torch.ops.sslops.nt_xent_fwd(torch.zeros(3), None, 1.0, 2, True, False)
    with pytest.raises(ValueError, match="num_views must be at least 2 and divide M, got 2"):
        torch.ops.sslops.nt_xent_fwd(torch.zeros(3, 2), None, 1.0, 2, True, False)
    z = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="grad_loss and lse must be"):
        torch.ops.sslops.nt_xent_bwd(torch.ones(3), z, torch.ones(4), None, 1.0, 2, True)
