"""Compiles every configuration of the Triton kernels for one target and prints what came out.

python -m tests.kernels._compile_kernels cuda:90     # or hip:gfx942; no device is needed
python -m tests.kernels._compile_kernels cuda:120 hip:gfx950  # several: NT-Xent alone, one size

The launchers themselves run, on tensors without memory: what compiles here is, to the bit, what a
user's call would compile. TRITON_INTERPRET must not be set.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from sslops._info_nce_args import InfoNCEArgs, InfoNCESaved
from sslops.kernels import ema, info_nce, nt_xent, sigmoid_loss, sup_con
from sslops.kernels import queue as queue_kernels
from sslops.kernels._architectures import AMD, NVIDIA

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
WIDTHS = (64, 128, 256)  # one a row of the table


class Target:
    """What JITFunction.run asks a driver for, without a device."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return hash(self.target)  # what was compiled for one target is not another's

    def get_current_stream(self, device: int) -> int:
        return 0


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def call_nt_xent(width: int, dtype: torch.dtype) -> None:
    """Both passes; a tensor scale launches the fixed and the ONLINE case."""
    z, row, scale = empty(256, width, dtype=dtype), empty(256), empty()
    if dtype is torch.float16:  # bfloat16's code, but for what the backward pass lifts
        nt_xent.nt_xent_fwd(z, None, 1.0, 2, True, False)
    else:
        nt_xent.nt_xent_fwd(z, scale, 1.0, 2, True, False)
        nt_xent.nt_xent_fwd(z, scale, 1.0, 2, True, True)
    nt_xent.nt_xent_bwd(row, z, row, scale, 1.0, 2, True)


def call_queue(stored: torch.dtype, dtype: torch.dtype, D: int) -> None:
    """enqueue_ with and without ids and normalisation."""
    queue = torch.empty(64, D, dtype=stored, device="meta")
    keys = torch.empty(32, D, dtype=dtype, device="meta")
    pointer, queue_ids, ids = (
        torch.empty(size, dtype=torch.int64, device="meta") for size in ((), 64, 32)
    )
    queue_kernels.enqueue_(queue, pointer, keys, queue_ids, ids, True)
    queue_kernels.enqueue_(queue, pointer, keys, None, None, False)


def call_ema() -> None:
    """Averages of every rounding, copies of every size, addresses aligned or not."""
    scalar = torch.empty((), device="meta")
    halves = (torch.float16, torch.bfloat16)
    for target, source in itertools.product((torch.float32, *halves), repeat=2):
        t, s = (torch.empty(5000, dtype=each, device="meta") for each in (target, source))
        ema.ema_update_([t], [s], None, 0.5, -1)
        ema.ema_update_([t], [s], scalar, 0.0, 1 << 40 if target in halves else -1)
    for dtype in (torch.bool, torch.int16, torch.int32, torch.int64):
        t = torch.empty(5000, dtype=dtype, device="meta")
        ema.ema_update_([t], [t], None, 0.5, -1)
    t = torch.empty(5000, device="meta")
    with mock.patch.object(torch.Tensor, "data_ptr", return_value=4):
        ema.ema_update_([t], [t], None, 0.5, -1)


def call_info_nce(width: int, dtype: torch.dtype) -> None:
    """The least and the most that a tile may hold, and negatives in half precision."""
    x, row, scale = empty(256, width, dtype=dtype), empty(256), empty()
    ids = empty(256, dtype=torch.int64)
    plain = InfoNCEArgs(x, x, scale=scale, symmetric=True)
    full = InfoNCEArgs(x, x, None, ids, ids, ids, scale=scale, stats=True)
    masked = full._replace(same_id_only=True)
    single = plain._replace(symmetric=False, plan="frozen_keys")
    saved, needs = InfoNCESaved(*[row] * 9), [True] * 4
    queue = empty(4096, width, dtype=torch.bfloat16 if dtype is torch.float32 else dtype)
    if dtype is torch.float16:
        info_nce.info_nce_bwd(row, row, *plain._replace(scale=None), *saved, needs)
    else:
        info_nce.info_nce_fwd(*plain)
        info_nce.info_nce_fwd(*full)
        info_nce.info_nce_bwd(row, row, *plain, *saved, needs)
        info_nce.info_nce_bwd(row, None, *masked, *saved, needs)
        info_nce.info_nce_fwd(*full._replace(plan="frozen_keys"))
        if width == max(WIDTHS):  # the most shared memory; rows that no vector load fits
            info_nce.info_nce_fwd(*single._replace(negatives=queue.float()))
            ragged = empty(256, width - 1, dtype=dtype)
            info_nce.info_nce_fwd(*single._replace(queries=ragged, keys=ragged, negatives=ragged))
        info_nce.info_nce_fwd(*single._replace(negatives=queue))


def call_sup_con(width: int, dtype: torch.dtype) -> None:
    """Both passes; the mean inside the logarithm holds more."""
    z, row, scale = empty(256, width, dtype=dtype), empty(256), empty()
    labels = empty(256, dtype=torch.int64)
    for inside in (False, True) if width == WIDTHS[1] and dtype is torch.bfloat16 else (True,):
        args = (None if dtype is torch.float16 else scale, 1.0, inside, True)
        if dtype is not torch.float16:
            sup_con.sup_con_fwd(z, labels, *args)
        sup_con.sup_con_bwd(row, z, labels, row, row, *args)


def call_sigmoid_loss(width: int, dtype: torch.dtype) -> None:
    """With all that it can hold, and with the least."""
    if dtype is torch.float16:
        return
    x, scale = empty(256, width, dtype=dtype), empty()
    ids = empty(256, dtype=torch.int64)
    sigmoid_loss.sigmoid_loss_fwd(x, x, ids, ids, scale, 1.0, scale, 0.0, True, True)
    if width == WIDTHS[1] and dtype is torch.bfloat16:
        sigmoid_loss.sigmoid_loss_fwd(x, x, None, None, scale, 1.0, scale, 0.0, True, False)


# module of launchers -> what calls them for rows of a width and dtype
CALLS: dict[Any, Callable[[int, torch.dtype], None]] = {
    nt_xent: call_nt_xent,
    info_nce: call_info_nce,
    sup_con: call_sup_con,
    sigmoid_loss: call_sigmoid_loss,
}


def call_launchers(width: int, dtype: torch.dtype) -> None:
    for call in CALLS.values():
        call(width, dtype)


def compile_all(target: GPUTarget, brief: bool = False) -> list[dict[str, Any]]:
    """Facts of every kernel that the launchers ask for."""
    arch = AMD[target.arch] if target.backend == "hip" else NVIDIA[target.arch // 10]
    seen: dict[int, dict[str, Any]] = {}
    multiply = "ieee"
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        start = time.perf_counter()
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        if id(kernel) not in seen:
            dtype = next(each.dtype for each in args if isinstance(each, Tensor))
            flags = {k: v for k, v in kwargs.items() if k.isupper() or k.startswith("num_")}
            seen[id(kernel)] = {
                "kernel": self.__name__,
                "name": f"{self.__name__} {dtype} {flags}",
                "exact_float32": dtype is torch.float32 and multiply == "ieee",
                "seconds": time.perf_counter() - start,
                **facts(kernel, target),
            }

    def precision(dtype: torch.dtype, device: torch.device) -> str:
        return multiply if dtype is torch.float32 else "ieee"

    replaced = {"family": lambda device: arch, "matmul_precision": precision}
    driver.set_active(Target(target))
    with ExitStack() as patched:
        patched.enter_context(mock.patch.object(JITFunction, "run", compile_only))
        for module in CALLS:
            for name, value in replaced.items():
                if hasattr(module, name):
                    patched.enter_context(mock.patch.object(module, name, value))
        if brief:
            call_nt_xent(128, torch.bfloat16)
            return list(seen.values())
        for width in WIDTHS:
            call_launchers(width, torch.bfloat16)
        call_launchers(128, torch.float16)
        call_launchers(128, torch.float32)  # any width is the same code
        if target.backend == "cuda":
            multiply = "tf32"
            call_launchers(128, torch.float32)
        for stored in (torch.float32, torch.bfloat16, torch.float16):
            call_queue(stored, torch.float32, 128)
        call_queue(torch.bfloat16, torch.bfloat16, 100)
        call_queue(torch.float32, torch.float16, 2048)
        call_ema()
    return list(seen.values())


def facts(kernel: Any, target: GPUTarget) -> dict[str, Any]:
    """Shared memory in bytes, spilled bytes or registers, matrix instructions in the code."""
    out: dict[str, Any] = {"shared": kernel.metadata.shared}
    if target.backend == "hip":
        code = kernel.asm["amdgcn"]
        spills = re.findall(r"\.vgpr_spill_count:\s*(\d+)", code)
        out["registers"] = int(re.search(r"\.vgpr_count:\s*(\d+)", code)[1])
        out["matrix"] = sorted(set(re.findall(r"v_mfma_\w+", code)))
        return out | {"spills": sum(map(int, spills))}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", file.name],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    # what a thread cannot hold in registers lies in its stack frame, and in local memory
    out["spills"] = sum(map(int, re.findall(r"(?:STACK|LOCAL):(\d+)", usage)))
    out["registers"] = int(re.search(r"REG:(\d+)", usage)[1])
    out["wide"] = bool(re.search(r"ld\.global\S*\.v[248]", kernel.asm["ptx"]))
    found = re.findall(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b", kernel.asm["ptx"])
    return out | {"matrix": sorted(set(found))}


def target_of(name: str) -> GPUTarget:
    """Of "cuda:90" or "hip:gfx942"."""
    backend, arch = name.split(":")
    return GPUTarget("hip", arch, 64) if backend == "hip" else GPUTarget("cuda", int(arch), 32)


if __name__ == "__main__":
    several = len(sys.argv) > 2
    found = {name: compile_all(target_of(name), several) for name in sys.argv[1:]}
    print(json.dumps(found))
