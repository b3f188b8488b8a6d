"""What runs here: versions, back ends, and why not a faster one."""

import platform
import shutil
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from typing import NamedTuple

import torch

from sslops import _library
from sslops._version import __version__
from sslops.kernels._architectures import described, refusal

__all__ = ["Backend", "backends", "report"]

# public function -> the registered op that does its work
OPS = {
    "nt_xent": "nt_xent_fwd",
    "info_nce": "info_nce_fwd",
    "clip_loss": "info_nce_fwd",
    "cpc_loss": "info_nce_fwd",
    "sup_con": "sup_con_fwd",
    "sigmoid_loss": "sigmoid_loss_fwd",
    "enqueue_": "enqueue_",
    "ema_update_": "ema_update_",
}
EXTRAS = {"train": ("PIL", "safetensors", "tyro", "sklearn")}
BUILD_HINT = "pip install --no-build-isolation . (a C++20 compiler, ninja and pybind11)"


class Backend(NamedTuple):
    """What one op runs on one kind of device.

    Attributes:
        op: name of the op.
        device: "cpu", "cuda" or "other".
        runs: "cpp (<level>)", "triton", "cuda" or "reference"; then ", as <op>" if the kernels are
            those of another op.
        why: why not a faster one; empty if there is none.
    """

    op: str
    device: str
    runs: str
    why: str


def backends() -> list[Backend]:
    """What each op runs on each kind of device of this machine, and why not a faster one."""
    return [_with_owner(row) for op in OPS for row in _of(op)]


def _of(op: str) -> Iterator[Backend]:
    yield _cpu(op)
    if torch.cuda.is_available():
        yield _cuda(op)
    if torch.backends.mps.is_available():
        yield Backend(op, "other", "reference", "there is no kernel for Metal")


def _with_owner(row: Backend) -> Backend:
    owner = OPS[row.op].removesuffix("_fwd")
    return row if owner == row.op else row._replace(runs=f"{row.runs}, as {owner}")


def _cpu(op: str) -> Backend:
    if not _library.load_extension():
        why = f"sslops._C was not compiled; {BUILD_HINT}"
        return Backend(op, "cpu", "reference", why)
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"sslops::{OPS[op]}", "CPU"):
        return Backend(op, "cpu", "reference", "sslops._C was compiled without it; build it again")
    from sslops import _C

    level = _C.level()
    best = _C.levels()[-1]
    if level != best:
        return Backend(op, "cpu", f"cpp ({level})", f"forced; this machine can run {best}")
    missing = {
        "portable": "AVX2 with FMA",
        "avx2": "AVX-512",
        "avx512": "bfloat16 products",
        "avx512_bf16": "AMX (bfloat16 only)",
    }
    why = f"this processor has no {missing[level]}" if level in missing else ""
    runs = f"{level} for bfloat16, avx512 otherwise" if level in ("avx512_bf16", "amx") else level
    return Backend(op, "cpu", f"cpp ({runs})", why)


def _cuda(op: str) -> Backend:
    if why := refusal(torch.device("cuda", torch.cuda.current_device())):
        return Backend(op, "cuda", "reference", f"every kernel {why}")
    if _library.HAS_TRITON:
        return Backend(op, "cuda", "triton", "")
    if hasattr(torch.ops.sslops, f"{OPS[op]}_cuda") and _cuda_module().startswith(_LOADED):
        return Backend(op, "cuda", "cuda", "triton is not installed")
    return Backend(op, "cuda", "reference", "triton is not installed")


_LOADED = "sslops._C_cuda is loaded"


def _cuda_module() -> str:
    """Whether sslops._C_cuda is there, and why not."""
    try:
        if _library.load_cuda_extension():
            return f"{_LOADED}; sslops.use_backend('cuda') runs its kernels"
    except OSError as error:
        return f"sslops._C_cuda does not load: {error}"
    nvcc = "" if shutil.which("nvcc") else "; nvcc is not on the path"
    return f"sslops._C_cuda was not compiled; SSLOPS_BUILD=cuda {BUILD_HINT}{nvcc}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def report() -> str:
    """The text of `sslops doctor`: versions, hardware, back ends, optional packages."""
    lines = [
        f"sslops   {__version__}",
        f"python   {platform.python_version()} on {platform.platform()}",
        f"torch    {torch.__version__} (CUDA {torch.version.cuda or 'not built in'})",
        f"triton   {_version('triton')}",
        f"threads  {torch.get_num_threads()}",
    ]
    if _library.load_extension():
        from sslops import _C

        info = _C.build_info()
        lines.append(f"kernels  compiled with {info['compiler']}, OpenMP {info['openmp'] or 'off'}")
        lines.append(f"levels   {', '.join(_C.levels())}; in use: {_C.level()}")
    else:
        lines.append(f"kernels  not compiled; {BUILD_HINT}")
    lines.append(f"cuda     {_cuda_module()}")
    for n in range(torch.cuda.device_count()):
        gpu = torch.device("cuda", n)
        plain = "; plain PyTorch runs on it" if refusal(gpu) else ""
        lines.append(f"gpu {n}    {torch.cuda.get_device_name(n)}, {described(gpu)}{plain}")
    if not torch.cuda.is_available():
        lines.append("gpu      none found")
    lines.append("")
    for row in backends():
        why = f"  ({row.why})" if row.why else ""
        lines.append(f"{row.op} on {row.device}: {row.runs}{why}")
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if find_spec(module) is None]
        state = (
            f"missing {', '.join(missing)}; pip install '.[{extra}]' in a clone of the repository"
            if missing
            else "ready"
        )
        lines.append(f"extra [{extra}]: {state}")
    return "\n".join(lines)
