"""What runs on which GPU, on GPUs that are not here: torch is asked for nothing but their names."""

import warnings
from types import SimpleNamespace

import pytest
import torch

import sslops
from sslops import _library, doctor
from sslops.kernels import _architectures

# architecture -> column of the Triton kernels' table, and what runs: by itself, and if the kernels
# are asked for by name
GPUS = {
    (6, 1): ("sm_80", "reference", "refused"),
    (7, 0): ("sm_80", "reference", "refused"),
    (7, 5): ("sm_80", "reference", "refused"),
    (8, 0): ("sm_80", "kernels", "kernels"),
    (8, 6): ("sm_80", "kernels", "kernels"),
    (8, 9): ("sm_80", "kernels", "kernels"),
    (9, 0): ("sm_90", "kernels", "kernels"),
    (10, 0): ("sm_100", "kernels", "kernels"),
    (10, 3): ("sm_100", "kernels", "kernels"),
    (11, 0): ("sm_80", "reference", "kernels"),
    (12, 0): ("sm_80", "kernels", "kernels"),
    (12, 1): ("sm_80", "kernels", "kernels"),
    (13, 0): ("sm_80", "reference", "kernels"),
    "gfx90a:sramecc+:xnack-": ("hip", "kernels", "kernels"),
    "gfx942:sramecc+:xnack-": ("hip", "kernels", "kernels"),
    "gfx950": ("hip", "kernels", "kernels"),
    "gfx906": ("hip", "reference", "kernels"),
    "gfx1100": ("hip", "reference", "kernels"),
    "gfx9999": ("hip", "reference", "kernels"),
}
DEVICE = torch.device("cuda", 0)


class Elsewhere(torch.Tensor):
    """A tensor that says it is on the GPU."""

    device = DEVICE


@pytest.fixture(params=GPUS, ids=str)
def gpu(request, monkeypatch):
    """The row of a machine with one such GPU."""
    arch = request.param
    amd = isinstance(arch, str)
    monkeypatch.setattr(torch.version, "hip", "6.4" if amd else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a GPU")
    # what torch says of AMD's is no capability of NVIDIA's
    capability = (9, 4) if amd else arch
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    properties = SimpleNamespace(gcnArchName=arch)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: properties)
    for each in (_architectures.refusal, _architectures.note):
        each.cache_clear()
    yield GPUS[arch]
    for each in (_architectures.refusal, _architectures.note):
        each.cache_clear()


def kernel(triton="info_nce.info_nce_fwd", cuda=True):
    arguments = (torch.ones(1).as_subclass(Elsewhere),)
    return _library.gpu_kernel("info_nce_fwd", triton, cuda, arguments)


def test_what_runs(gpu, recwarn):
    pytest.importorskip("triton")
    column, alone, _ = gpu
    assert _architectures.family(DEVICE) == column
    found = [kernel(), kernel()]
    if alone == "kernels":
        assert [each.__name__ for each in found] == ["info_nce_fwd"] * 2
        assert not recwarn.list
    else:
        assert found == [None, None]
        (note,) = recwarn.list  # one, however many calls and ops
        assert "sslops: plain PyTorch runs on a GPU" in str(note.message)
        assert "got" in str(note.message)


@pytest.mark.parametrize("asked", ["triton", "cuda"])
def test_what_runs_if_it_is_asked_for_by_name(gpu, asked, monkeypatch, recwarn):
    pytest.importorskip("triton")
    monkeypatch.setattr(_library, "load_cuda_extension", lambda: True)
    *_, chosen = gpu
    if chosen == "refused":
        with sslops.use_backend(asked), pytest.raises(RuntimeError, match=r"8\.0 or newer, got"):
            kernel()
        return
    with sslops.use_backend(asked):
        assert kernel() is not None
    assert not recwarn.list


def test_compiled_cuda_kernels_follow_the_same_rule(gpu, monkeypatch):
    """They stand in where triton is not installed."""
    monkeypatch.setattr(_library, "load_cuda_extension", lambda: True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = kernel(triton=None)
    expected = torch.ops.sslops.info_nce_fwd_cuda if gpu[1] == "kernels" else None
    assert found is expected


def test_doctor_says_so(gpu, monkeypatch):
    monkeypatch.setattr(_library, "HAS_TRITON", True)
    rows = [row for row in sslops.backends() if row.device == "cuda"]
    text = doctor.report()
    assert {row.op for row in rows} == set(doctor.OPS)
    for row in rows:
        plain = gpu[1] != "kernels"
        assert row.runs.split(",")[0] == ("reference" if plain else "triton")
        assert bool(row.why) == plain
        assert f"{row.op} on cuda: {row.runs}" in text
    line = next(line for line in text.splitlines() if line.startswith("gpu 0"))
    assert line.endswith("plain PyTorch runs on it") == (gpu[1] != "kernels")


def test_doctor_without_triton(monkeypatch):
    monkeypatch.setattr(_library, "HAS_TRITON", False)
    monkeypatch.setattr(doctor, "refusal", lambda device: "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for there, runs in ((True, "cuda"), (False, "reference")):
        monkeypatch.setattr(_library, "load_cuda_extension", lambda there=there: there)
        row = next(r for r in sslops.backends() if (r.op, r.device) == ("info_nce", "cuda"))
        assert (row.runs, row.why) == (runs, "triton is not installed")
