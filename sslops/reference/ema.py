"""Moving average of tensors in plain PyTorch; formulas: docs/math/ema.md."""

from collections.abc import Sequence

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
GOLDEN = 0x9E3779B9
SMALLEST_HALF = 2.0**-14  # normal


def ema_update_(
    targets: Sequence[Tensor],
    sources: Sequence[Tensor],
    momentum: Tensor | None,
    momentum_value: float,
    seed: int,
) -> None:
    """Average every source into its target.

    Args:
        targets: written. A pair of one shape; either both of float16, bfloat16, float32, float64,
            which is averaged, or both of one other dtype, which is copied.
        sources: as many; no memory shared with `targets`.
        momentum: 0-d float32, or float64 where a pair has float64; None for `momentum_value`.
        momentum_value: ignored if `momentum` is given.
        seed: in [0, 2**63) for stochastic rounding of float16 and bfloat16 targets; -1 for rounding
            to nearest.
    """
    if momentum is None and momentum_value == 1.0:
        return
    with torch.no_grad():
        for index, (target, source) in enumerate(zip(targets, sources, strict=True)):
            if not target.is_floating_point():
                target.copy_(source)
                continue
            mean = _average(target, source, momentum, momentum_value)
            if seed >= 0 and target.dtype in (torch.float16, torch.bfloat16):
                mean = round_stochastically(mean.float(), target.dtype, seed, index)
            if momentum is not None:  # the bits of a NaN stay too
                mean = torch.where(momentum == 1, target, mean.to(target.dtype))
            target.copy_(mean)


def _average(
    target: Tensor, source: Tensor, momentum: Tensor | None, momentum_value: float
) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(target.dtype, source.dtype), torch.float32)
    t, s = target.to(dtype), source.to(dtype)
    if momentum is None:
        return s if momentum_value == 0.0 else torch.lerp(t, s, 1.0 - momentum_value)
    # exact whatever the target holds: lerp has 0 * inf there
    mean = torch.lerp(t, s, (1.0 - momentum).to(dtype))
    return torch.where(momentum == 0, s, mean)


def round_stochastically(x: Tensor, dtype: torch.dtype, seed: int, index: int) -> Tensor:
    """`x` float32 in `dtype`: up or down, each with the probability of its nearness.

    Args:
        x: any shape.
        dtype: float16 or bfloat16.
        seed: of the call.
        index: of the tensor within it.
    """
    spare = 16 if dtype is torch.bfloat16 else 13  # bits of float32's mantissa that dtype lacks
    noise = (random_words(x.numel(), seed, index, x.device) >> (32 - spare)).to(torch.int32)
    noise = noise.view(x.shape)

    def cut(value: Tensor) -> Tensor:
        return ((value.contiguous().view(torch.int32) + noise) & -(1 << spare)).view(torch.float32)

    rounded = cut(x)
    if dtype is torch.float16:
        # beside 2**-14, float32's spare bits are the ones below the steps of a subnormal float16
        small = torch.copysign(cut(x.abs() + SMALLEST_HALF) - SMALLEST_HALF, x)
        rounded = torch.where(x.abs() < SMALLEST_HALF, small, rounded)
    return torch.where(x.isfinite(), rounded, x).to(dtype)


def random_words(numel: int, seed: int, index: int, device: torch.device) -> Tensor:
    """[numel] int64, 32 random bits each: a hash of (seed, index, number of the element)."""
    first = _mix((seed & WORD) + index * GOLDEN & WORD)
    k0, k1 = _mix(first ^ seed >> 32), _mix(_mix(seed >> 32) + first & WORD)
    n = torch.arange(numel, device=device)
    return _mix_tensor((_mix_tensor(n & WORD ^ k0) + k1 + (n >> 32)) & WORD)


def _mix(x: int) -> int:
    x = (x ^ x >> 16) * 0x7FEB352D & WORD
    x = (x ^ x >> 15) * 0x846CA68B & WORD
    return x ^ x >> 16


def _mix_tensor(x: Tensor) -> Tensor:
    # a product of two words wraps in int64, which leaves its low word right
    x = (x ^ x >> 16) * 0x7FEB352D & WORD
    x = (x ^ x >> 15) * 0x846CA68B & WORD
    return x ^ x >> 16
