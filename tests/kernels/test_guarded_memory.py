"""The memory in which the emulated GPU kernels run tells of every access that it should tell of."""

import ctypes
import subprocess
import sys

import pytest
import torch

from ._guarded import SOURCE, guarded_memory

pytestmark = pytest.mark.slow

WRITES = """
import ctypes, os, signal, torch
from tests.kernels._guarded import guarded_memory
torch.set_num_threads(1)
signals = dict.fromkeys((-1, 5, 0), signal.SIGABRT) | dict.fromkeys((-4096, 16), signal.SIGSEGV)
for where in signals:  # floats from the beginning of a tensor of five
    child = os.fork()
    if child == 0:
        with guarded_memory():
            x = torch.zeros(5)
            float_at = ctypes.c_float.from_address(x.data_ptr() + 4 * where)
            if where == 0:
                del x  # a tensor that is freed
            float_at.value = 1.0
            x = None
            for _ in range(600):
                torch.zeros(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signals[where], where
"""


@pytest.fixture(autouse=True)
def _guarded():
    with guarded_memory():
        yield


def around(x, first, count):
    return list((ctypes.c_float * count).from_address(x.data_ptr() + 4 * first))


def test_what_is_not_the_tensor_is_nan():
    x = torch.zeros(5)
    assert str(around(x, -2, 9)) == "[nan, nan, 0.0, 0.0, 0.0, 0.0, 0.0, nan, nan]"
    y = torch.zeros(2048)  # two pages
    assert around(y, 0, 2048) == [0.0] * 2048


def test_memory_is_nan_before_it_is_written_and_after_it_is_freed():
    torch.use_deterministic_algorithms(False)  # which fills by itself
    x = torch.empty(5)
    assert x.isnan().all()
    view = (ctypes.c_float * 5).from_address(x.zero_().data_ptr())
    del x
    torch.zeros(5)
    assert str(list(view)) == str([float("nan")] * 5)


def test_writing_where_no_tensor_is_ends_the_process():
    run = [sys.executable, "-c", WRITES]
    out = subprocess.run(run, capture_output=True, text=True, cwd=SOURCE.parents[2])
    assert out.returncode == 0, out.stderr
    for what in ("before the beginning of", "behind the end of", "into the freed memory of"):
        assert what in out.stderr
