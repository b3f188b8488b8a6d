"""enqueue_: one program normalises, casts and writes ROWS keys into their slots of the ring.

Every program reads the pointer and none writes it: it is advanced after the kernel, in stream
order, by an addition on the device. Arithmetic of the slots: docs/math/queue.md.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sslops.kernels._tile import EPS, load_rows

MAX_COLS = 1024  # of a sweep; a wider row is swept twice from L1
NUMBERS = 1024  # of a program, at most: small, as a batch of 256 keys has to fill the GPU


@triton.jit(do_not_specialize=["B", "first", "K"])
def enqueue_kernel(
    queue_ptr,  # [K, D] contiguous, written
    pointer_ptr,  # int64, one element
    keys_ptr,  # [B, D], any strides
    queue_ids_ptr,  # [K] int64, written; or None
    ids_ptr,  # [B] int64 or None
    B,
    first,  # keys before this one are dropped: the newest K win
    K,
    D,
    stride_kb,
    stride_kd,
    stride_id,
    NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """One program writes ROWS keys."""
    rows = first + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < B
    # int64, as slot * D passes 2**31; + K, or a pointer below zero would lead out of the queue
    slots = (tl.load(pointer_ptr) % K + K + rows) % K
    if queue_ids_ptr is not None:
        ids = tl.load(ids_ptr + rows.to(tl.int64) * stride_id, mask=inside, other=-1)
        tl.store(queue_ids_ptr + slots, ids, mask=inside)

    length = tl.full([ROWS], 1.0, tl.float32)
    if NORMALIZE:
        squares = tl.zeros([ROWS], tl.float32)
        for start in range(0, D, COLS):
            cols = start + tl.arange(0, COLS)
            key = load_rows(keys_ptr, rows, cols, B, D, stride_kb, stride_kd)
            squares += tl.sum(key * key, axis=1)
        norm = tl.sqrt_rn(squares)
        length = tl.where(norm < EPS, EPS, norm)  # NaN passes through
    for start in range(0, D, COLS):
        cols = start + tl.arange(0, COLS)
        key = load_rows(keys_ptr, rows, cols, B, D, stride_kb, stride_kd)
        if NORMALIZE:
            key = tl.div_rn(key, length[:, None])
        ptrs = queue_ptr + slots[:, None] * D + cols[None, :]
        mask = inside[:, None] & (cols < D)[None, :]
        tl.store(ptrs, key.to(queue_ptr.dtype.element_ty), mask=mask)


def options(D: int) -> dict[str, Any]:
    """Constexprs and launch options for keys of D features."""
    cols = min(MAX_COLS, int(triton.next_power_of_2(D)))
    return {"ROWS": max(1, min(16, NUMBERS // cols)), "COLS": cols, "num_warps": 4}


def enqueue_(
    queue: Tensor,
    pointer: Tensor,
    keys: Tensor,
    queue_ids: Tensor | None,
    ids: Tensor | None,
    normalize: bool,
) -> None:
    """Launch the kernel, then advance the pointer; arguments as of `sslops.reference.queue`."""
    K, D = queue.shape
    B = keys.shape[0]
    first = max(0, B - K)
    chosen = options(D)
    programs = triton.cdiv(B - first, chosen["ROWS"])
    with torch.cuda.device_of(queue):
        if programs > 0:
            enqueue_kernel[(programs,)](
                queue, pointer, keys, queue_ids, ids,
                B, first, K, D, *keys.stride(), 1 if ids is None else ids.stride(0),
                normalize, **chosen,
            )  # fmt: skip
        pointer.add_(B)
