"""Memory of CPU tensors that shows who reads or writes where nothing may: guarded_memory.cpp.

The GPU kernels run on CPU tensors in Triton's interpreter and in cuda_emulation.h, so this
is where a read after free or out of bounds shows that a GPU would answer with whatever lay there.
"""

import ctypes
import fcntl
import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch

SOURCE = Path(__file__).with_name("guarded_memory.cpp")
TORCH = Path(torch.__file__).parent


@cache
def _library() -> ctypes.CDLL:
    command = ["g++", "-std=c++20", "-O2", "-fPIC", "-shared", "-Wall", "-Werror"]
    command += ["-isystem", str(TORCH / "include"), str(SOURCE), f"-L{TORCH / 'lib'}", "-lc10"]
    digest = hashlib.sha256("\n".join([torch.__version__, *command]).encode())
    digest.update(SOURCE.read_bytes())
    folder = SOURCE.parents[2] / "build/guarded_memory" / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "guarded.so"
    with (folder / "lock").open("w") as lock:  # other processes wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            out = subprocess.run(
                [*command, "-o", folder / "draft.so"], capture_output=True, text=True
            )
            assert out.returncode == 0, out.stderr
            (folder / "draft.so").rename(library)
    return ctypes.CDLL(str(library))


@contextmanager
def guarded_memory() -> Iterator[None]:
    """CPU tensors made here are NaN before they are written and when freed, and lie between guards.

    To read or write a page beside them, or to write into what is freed, ends the process.
    """
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    _library().sslops_guard(1)
    try:
        yield
    finally:
        _library().sslops_guard(0)
