"""Builds csrc/cuda for the tests: with nvcc, and as cuda_emulation.h with the host's g++."""

import fcntl
import hashlib
import importlib.util
import shutil
import subprocess
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch

import sslops
from sslops import _library
from sslops.ops._info_nce_op import backward_on_gpu, forward_on_gpu

from ._guarded import guarded_memory

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"))
HEADER = Path(__file__).with_name("cuda_emulation.h")
TORCH = Path(torch.__file__).parent
OPS = ("info_nce_fwd", "info_nce_bwd", "ema_update_", "enqueue_")


@cache
def setup() -> ModuleType:
    """setup.py as a module: what it tells nvcc is what the tests tell it."""
    spec = importlib.util.spec_from_file_location("sslops_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tool(name: str) -> str | None:
    """Path of a tool that comes with CUDA or with Triton's wheel."""
    found = shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")
    if found is None and (triton := importlib.util.find_spec("triton")) and triton.origin:
        found = shutil.which(name, path=str(Path(triton.origin).parent / "backends/nvidia/bin"))
    return found


@contextmanager
def built_once(name: str, *parts: str):
    """A folder below build/ for these sources, torch and `parts`; other processes wait."""
    digest = hashlib.sha256("\n".join([torch.__version__, *parts]).encode())
    for file in sorted((ROOT / "csrc/cuda").iterdir()):
        digest.update(file.read_bytes())
    folder = ROOT / "build" / name / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def run_all(commands: list[list[str]]) -> None:
    """Run commands two at a time; raises with what a failed one printed."""

    def run(command: list[str]) -> None:
        out = subprocess.run(command, capture_output=True, text=True)
        assert out.returncode == 0, f"{' '.join(command)}\n{out.stdout}{out.stderr}"[-4000:]

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, commands))


def build_emulation() -> Path:
    """A library that registers the kernels of csrc/cuda for CPU tensors."""
    flags = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-U_FORTIFY_SOURCE"]
    flags += ["-Wall", "-Werror", "-Wno-unknown-pragmas", "-DSSLOPS_EMULATE_CUDA"]
    flags += ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
    flags += [f"-I{HEADER.parent}", "-isystem", str(TORCH / "include")]
    with built_once("cuda_emulation", *flags, HEADER.read_text()) as folder:
        library = folder / "emulation.so"
        if not library.exists():
            objects = [str(folder / f"{source.stem}.o") for source in SOURCES]
            run_all(
                [
                    ["g++", *flags, "-x", "c++", "-c", str(source), "-o", out]
                    for source, out in zip(SOURCES, objects, strict=True)
                ]
            )
            link = ["g++", "-shared", *objects, f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10"]
            run_all([[*link, "-o", str(folder / "linked.so")]])
            (folder / "linked.so").rename(library)
        return library


@contextmanager
def running_cuda(where: str):
    """Tensors are made for, and ops run, the kernels of csrc/cuda: "emulated" or on a "gpu"."""
    if where == "gpu":
        if not torch.cuda.is_available() or not _library.load_cuda_extension():
            pytest.skip("there is no GPU, or sslops._C_cuda was not compiled")
        with torch.device("cuda"), sslops.use_backend("cuda"):
            yield
        return
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    torch.ops.load_library(str(build_emulation()))
    library = torch.library.Library("sslops", "IMPL")
    for name in OPS:
        if not hasattr(torch.ops.sslops, f"{name}_cuda"):
            continue
        kernel = getattr(torch.ops.sslops, f"{name}_cuda")
        reference = getattr(torch.ops.sslops, f"{name}_reference")
        on_gpu = {"info_nce_fwd": forward_on_gpu, "info_nce_bwd": backward_on_gpu}.get(name)

        def run(*args, kernel=kernel, reference=reference, on_gpu=on_gpu):
            wide = any(getattr(each, "dtype", None) is torch.float64 for each in args)
            wide = wide or not (on_gpu is None or on_gpu(*args))
            return (reference if wide else kernel)(*args)

        with warnings.catch_warnings():  # that this takes the place of the C++ kernel
            warnings.simplefilter("ignore")
            library.impl(name, _library._without_autocast(run), "CPU", allow_override=True)
    with guarded_memory():
        yield
    library._destroy()


PLACES = ["emulated", pytest.param("gpu", marks=pytest.mark.gpu)]
