"""Run Triton in its interpreter without a GPU, and fill every torch.empty with NaN."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import settings

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matmul on CUDA
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # must precede the first import of triton

import sslops
from sslops._compile_cache import separate_by_processor

separate_by_processor()  # a suite at another ATEN_CPU_CAPABILITY leaves no code that this one runs

if sslops.HAS_EXTENSION:
    from sslops import _C

# What can run behind an op on the CPU; the instruction sets from the least to the best.
ISAS = _C.levels() if sslops.HAS_EXTENSION else []
BACKENDS = ["reference", *ISAS]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--isa",
        choices=("best", "some", "all"),
        default="some",
        help="instruction sets of the CPU kernels: the best one of this machine; the others too in"
        " tests marked every_isa (default); or all in every test",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test once for each backend that it should see.

    `backend` is set up around the test; `backend_name` is for a test that sets it up itself, as
    hypothesis has to for every example.
    """
    which = metafunc.config.getoption("isa")
    marked = metafunc.definition.get_closest_marker("every_isa") is not None
    every = which == "all" or (which == "some" and marked)
    backends = BACKENDS if every else ["reference", *ISAS[-1:]]
    for name in ("backend", "backend_name"):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, backends, indirect=name == "backend")


# the same examples on every run of the suite, the first of them for `make quick`; `make fuzz` looks
# for new ones
settings.register_profile("suite", max_examples=100, deadline=None, derandomize=True)
settings.register_profile("quick", max_examples=10, deadline=None, derandomize=True)
settings.register_profile("fuzz", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


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


@contextmanager
def running(name: str) -> Iterator[str]:
    """Run the reference, or a level of the compiled kernels, behind every op on the CPU."""
    if name == "reference":
        with sslops.use_backend("reference"):
            yield name
        return
    _C.set_level(name)
    try:
        yield name
    finally:
        _C.set_level("auto")


@pytest.fixture
def backend(request):
    """Each implementation of BACKENDS behind every op on the CPU; see pytest_generate_tests."""
    with running(request.param) as name:
        yield name
