"""Run Triton in its interpreter without a GPU, and fill every torch.empty with NaN."""

import os
from collections.abc import Iterator

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matmul on CUDA
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # must precede the first import of triton

import sslops

if sslops.HAS_EXTENSION:
    from sslops import _C

LEVELS = _C.levels() if sslops.HAS_EXTENSION else []


@pytest.fixture(scope="session")
def device() -> str:
    """Where the ops run in this test session."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _seeded_and_poisoned() -> Iterator[None]:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # also fills uninitialised memory with NaN
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["reference", *LEVELS])
def backend(request):
    """Each implementation that this machine can run behind an op on the CPU."""
    if request.param == "reference":
        with sslops.use_backend("reference"):
            yield request.param
        return
    _C.set_level(request.param)
    yield request.param
    _C.set_level("auto")
