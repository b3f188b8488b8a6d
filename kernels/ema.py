"""Moving average of a list of tensors on Triton: a launch for each pair of dtypes.

    t <- t + (1 - m) (s - t)      or, where 1 - m > 1/2,      t <- s + m (t - s)

Derivation and random numbers: docs/math/ema.md. Stochastic rounding adds a hash of (seed, tensor,
element) below the last bit of the target's dtype.

A kernel finds its tensors in a table of addresses on the device: a launch for each of ResNet-50's
161 tensors would take twenty times as long as moving their bytes. The table depends on addresses
and sizes alone; it is uploaded when those change, from pinned memory and asynchronously, and
cached. A CUDA graph holds the tables that it was captured with; run one step before the capture,
so that they exist. Pairs that are not dense with the same strides go through a copy.

Reading order: rounding, kernel, table, launcher.
"""

from collections import OrderedDict
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

OPTIONS = {"BLOCK": 2048, "num_warps": 8}
MAX_TABLES = 32  # a network has one for each pair of dtypes
LANGUAGE = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
COPIED = {1: tl.uint8, 2: tl.int16, 4: tl.int32, 8: tl.int64}  # by size: bits are bits


@triton.jit
def _mix(x):
    """A bijection of uint32 in which every bit of the result depends on every bit of x."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _random(seed, index, element):
    """32 random bits for each element [BLOCK] int64 of tensor `index`; both scalars are int64."""
    seed = tl.cast(seed, tl.int64)  # a small one arrives as int32
    low, high = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    first = _mix(low + index.to(tl.uint32) * 0x9E3779B9)
    k0, k1 = _mix(first ^ high), _mix(_mix(high) + first)
    return _mix(_mix(element.to(tl.uint32) ^ k0) + k1 + (element >> 32).to(tl.uint32))


@triton.jit
def _cut(x, noise, SPARE: tl.constexpr):
    """`x` float32 with its last SPARE bits cleared, after noise is added to them."""
    bits = x.to(tl.uint32, bitcast=True) + (noise >> (32 - SPARE))
    return ((bits >> SPARE) << SPARE).to(tl.float32, bitcast=True)


@triton.jit
def _round_stochastically(x, noise, DTYPE: tl.constexpr):
    """`x` float32 in DTYPE: up or down, each with the probability of its nearness."""
    if DTYPE == tl.bfloat16:
        out = _cut(x, noise, 16)
    else:
        SMALLEST: tl.constexpr = 2.0**-14  # normal; beside it the spare bits are a subnormal's
        small = _cut(tl.abs(x) + SMALLEST, noise, 13) - SMALLEST
        small = tl.where(x < 0, -small, small)
        out = tl.where(tl.abs(x) < SMALLEST, small, _cut(x, noise, 13))
    return tl.where(tl.abs(x) < float("inf"), out, x).to(DTYPE)


@triton.jit
def _update(target, source, mask, momentum, weight, noise, TARGET: tl.constexpr):
    """One block of one pair of arrays; `noise` is None for rounding to nearest."""
    before = tl.load(target, mask=mask)
    s = tl.load(source, mask=mask).to(tl.float32)
    t = before.to(tl.float32)
    mean = tl.where(weight <= 0.5, t + weight * (s - t), s + momentum * (t - s))
    mean = tl.where(momentum == 0.0, s, mean)
    if noise is None:
        out = mean.to(TARGET)
    else:
        out = _round_stochastically(mean, noise, TARGET)
    tl.store(target, tl.where(weight == 0.0, before, out), mask=mask)


@triton.jit(do_not_specialize=["pairs", "momentum", "weight", "seed"])
def ema_kernel(
    table_ptr,  # [5, pairs] int64: target, source, elements, first block, index in the call
    block_pair_ptr,  # [blocks] int32: which pair
    momentum_ptr,  # 0-d float32, or None for the two numbers below
    pairs,
    momentum,
    weight,  # 1 - momentum, rounded once
    seed,
    TARGET: tl.constexpr,
    SOURCE: tl.constexpr,
    COPY: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    ALIGNED: tl.constexpr,  # every address of the group is a multiple of 16
    BLOCK: tl.constexpr,
):
    """One program averages BLOCK elements of one pair."""
    block = tl.program_id(0)
    row = table_ptr + tl.load(block_pair_ptr + block)
    target = tl.load(row).to(tl.pointer_type(TARGET))
    source = tl.load(row + pairs).to(tl.pointer_type(SOURCE))
    if ALIGNED:  # or a thread would load its elements one at a time
        target, source = tl.multiple_of(target, 16), tl.multiple_of(source, 16)
    numel = tl.load(row + 2 * pairs)
    start = (block - tl.load(row + 3 * pairs)) * BLOCK  # int64, as the table is
    element = start + tl.arange(0, BLOCK)
    target += element
    source += element
    # a mask that may end anywhere keeps loads from being wide, so whole blocks go without
    if COPY:
        if start + BLOCK <= numel:
            tl.store(target, tl.load(source))
        else:
            tl.store(target, tl.load(source, mask=element < numel), mask=element < numel)
        return
    if momentum_ptr is not None:
        momentum = tl.load(momentum_ptr)
        weight = 1.0 - momentum
    noise = None
    if STOCHASTIC:
        noise = _random(seed, tl.load(row + 4 * pairs), element)
    if start + BLOCK <= numel:
        _update(target, source, None, momentum, weight, noise, TARGET)
    else:
        _update(target, source, element < numel, momentum, weight, noise, TARGET)


_tables: OrderedDict[Any, tuple[Tensor, Tensor]] = OrderedDict()
_captured: list[tuple[Tensor, Tensor]] = []  # a CUDA graph reads them as long as it lives


def _table(device: torch.device, pairs: tuple[tuple[int, int, int, int], ...]) -> Any:
    """The kernel's first two arguments, for pairs of (target, source, elements, index)."""
    key = device, pairs
    tables = _tables.get(key)
    if tables is None:
        blocks = [triton.cdiv(pair[2], OPTIONS["BLOCK"]) for pair in pairs]
        count = torch.tensor(blocks)
        target, source, numel, index = torch.tensor(pairs).T
        table = torch.stack([target, source, numel, count.cumsum(0) - count, index])
        which = torch.arange(len(pairs), dtype=torch.int32).repeat_interleave(count)
        tables = _upload(table, device), _upload(which, device)
        _tables[key] = tables
        if len(_tables) > MAX_TABLES:
            _tables.popitem(last=False)
    _tables.move_to_end(key)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _captured.append(tables)
    return tables


def _upload(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def ema_update_(
    targets: list[Tensor],
    sources: list[Tensor],
    momentum: Tensor | None,
    momentum_value: float,
    seed: int,
) -> None:
    """Launch the update; arguments as of `sslops.reference.ema`, without float64."""
    if momentum is None and momentum_value == 1.0:
        return
    groups: dict[Any, list[tuple[int, int, int, int]]] = {}
    buffers, write_back = [], []
    for n, (target, source) in enumerate(zip(targets, sources, strict=True)):
        if not target.numel():
            continue
        t, s = _dense(target, source, seed >= 0)
        buffers.append((t, s))  # copies must live until the kernels are queued
        if t is not target:
            write_back.append((target, t))
        addresses = t.data_ptr(), s.data_ptr()
        kind = t.dtype, s.dtype, all(each % 16 == 0 for each in addresses)
        groups.setdefault(kind, []).append((*addresses, t.numel(), n))
    device = targets[0].device
    with torch.cuda.device_of(targets[0]):
        for (target_dtype, source_dtype, aligned), pairs in groups.items():
            table, which = _table(device, tuple(pairs))
            copy = target_dtype not in LANGUAGE
            size = COPIED[target_dtype.itemsize]
            ema_kernel[(len(which),)](
                table, which, momentum, len(pairs), momentum_value, 1.0 - momentum_value, seed,
                TARGET=size if copy else LANGUAGE[target_dtype],
                SOURCE=size if copy else LANGUAGE[source_dtype],
                COPY=copy,
                STOCHASTIC=seed >= 0 and target_dtype in (torch.float16, torch.bfloat16),
                ALIGNED=aligned,
                **OPTIONS,
            )  # fmt: skip
        for target, t in write_back:
            target.copy_(t)


def _dense(target: Tensor, source: Tensor, in_order: bool) -> tuple[Tensor, Tensor]:
    """The pair, or copies of it, as two arrays with one order of elements."""
    if target.is_contiguous() and source.is_contiguous():
        return target, source
    if in_order or not _has_no_gaps(target):  # random bits belong to a place
        target = target.contiguous()
    if source.stride() != target.stride():
        source = torch.empty_like(target, dtype=source.dtype).copy_(source)
    return target, source


def _has_no_gaps(tensor: Tensor) -> bool:
    step = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride != step:
            return False
        step *= size
    return True
