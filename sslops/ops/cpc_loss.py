"""CPC's loss: every step's predictions against the targets of all positions, in one call."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sslops.ops._checks import (
    autocast_dtype,
    check_device,
    check_floating,
    check_same_dtype,
    inverse_temperature,
)
from sslops.ops.info_nce import rows_of_info_nce

__all__ = ["CPCStats", "cpc_loss"]


class CPCStats(NamedTuple):
    """Per-step statistics that `cpc_loss(..., return_stats=True)` returns, detached.

    Attributes:
        loss: [K] float32 (float64 for float64 inputs), mean over the rows of each step.
        accuracy: [K], share of a step's rows whose positive is above every negative.
    """

    loss: Tensor
    accuracy: Tensor


def cpc_loss(
    predictions: Tensor,
    targets: Tensor,
    *,
    negatives: Literal["all", "sequence", "other"] | int = "all",
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    generator: torch.Generator | None = None,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, CPCStats]:
    r"""CPC's loss over all K steps in one call, without ever storing the similarities.

    $$ L = \frac{1}{K} \sum_{k=1}^{K} \frac{1}{B (T-k)} \sum_{b,\, t < T-k}
       -\log \frac{f_k(c_{bt}, z_{b,t+k})}{f_k(c_{bt}, z_{b,t+k}) + \sum_{n \in A} f_k(c_{bt}, z_n)}
       \quad f_k(c_{bt}, z) = e^{\langle c^k_{bt}, z\rangle/\tau} $$

    Args:
        predictions: [K, B, T, D] float16, bfloat16, float32 or float64: c^k at time t predicts
            the target at t + k, k = 1 .. K. Positions whose target lies past T are not used.
        targets: [B, T, D], same dtype; gradients flow into them unless they are detached.
        negatives: A, never the positive: "all", every other position of every sequence;
            "sequence", the other positions of the same sequence; "other", all positions of the
            other sequences; or n, that many positions drawn once per call without repetition from
            all B T, shared by all rows and steps.
        temperature: tau > 0, a number or a tensor of one element, which then gets a gradient.
        normalize: compare by cosine. The paper's bilinear score is `normalize=False,
            temperature=1`.
        generator: for the draw of n positions; a CPU generator. Default: torch's own.
        return_stats: also return `CPCStats`.

    Returns:
        float32 scalar (float64 for float64 inputs), in nats; with `return_stats` the pair
        (loss, CPCStats). Its chance value is the logarithm of the number of candidates: B T,
        T, (B - 1) T + 1, or about n + 1.

    Raises:
        TypeError: a tensor is not of a dtype listed above; the two differ in dtype.
        ValueError: shapes that do not fit, K not in [1, T), tensors on different devices,
            negatives unknown or n outside [1, B T], temperature not positive and finite.
        RuntimeError: when the gradient is itself differentiated.

    Source:
        van den Oord et al. 2018, arXiv:1807.03748, eq. 4; choices of negatives section 3.1.

    Example:
        >>> predictions, targets = torch.randn(3, 4, 10, 8), torch.randn(4, 10, 8)
        >>> loss, stats = cpc_loss(predictions, targets, negatives="sequence", return_stats=True)
        >>> loss.shape, stats.accuracy.shape
        (torch.Size([]), torch.Size([3]))
    """
    name = "cpc_loss"
    K, B, T, D = _check_shapes(name, predictions, targets)
    if not isinstance(negatives, int) and negatives not in ("all", "sequence", "other"):
        raise ValueError(f"{name}: negatives must be all, sequence, other or n, got {negatives!r}")
    if isinstance(negatives, int) and not 1 <= negatives <= B * T:
        raise ValueError(f"{name}: negatives must be in [1, B T = {B * T}], got {negatives}")
    scale, factor = inverse_temperature(name, temperature, predictions)

    dtype = autocast_dtype(predictions)
    index, positive, step = _positions(K, B, T, predictions.device)
    rows = predictions.to(dtype).reshape(-1, D).index_select(0, index)  # [M, D]
    keys = targets.to(dtype).reshape(-1, D)  # [B T, D]
    sampled = query_ids = key_ids = None
    if isinstance(negatives, int):
        key_ids = torch.randperm(B * T, generator=generator)[:negatives].to(keys.device)
        query_ids = positive  # a draw that hits the positive is left out
        sampled = keys.index_select(0, key_ids)
        if normalize:
            wide = torch.promote_types(dtype, torch.float32)
            sampled = F.normalize(sampled.to(wide), dim=1)
    elif negatives != "all":
        key_ids = torch.arange(B, device=keys.device).repeat_interleave(T)
        query_ids = positive // T
    loss, stats = rows_of_info_nce(
        rows, keys, sampled, positive, query_ids, key_ids, scale, factor,
        within=negatives == "sequence", normalize=normalize, stats=return_stats,
    )  # fmt: skip

    count = B * (T - torch.arange(1, K + 1, device=loss.device))  # [K]
    by_step = loss.new_zeros(K).index_add(0, step, loss) / count
    if not return_stats:
        return by_step.mean()
    hits = loss.new_zeros(K).index_add(0, step, stats.hit.to(loss.dtype)) / count
    return by_step.mean(), CPCStats(by_step.detach(), hits)


def _check_shapes(name: str, predictions: Tensor, targets: Tensor) -> tuple[int, int, int, int]:
    check_floating(name, "predictions", predictions)
    check_floating(name, "targets", targets)
    check_same_dtype(name, predictions=predictions, targets=targets)
    shape, wanted = tuple(predictions.shape), tuple(targets.shape)
    if len(shape) != 4 or len(wanted) != 3 or shape[1:] != wanted or 0 in shape:
        raise ValueError(
            f"{name}: predictions must be [K, B, T, D] and targets [B, T, D], none of them empty,"
            f" got shapes {shape} and {wanted}"
        )
    K, B, T, D = shape
    if K >= T:
        raise ValueError(
            f"{name}: the last of K steps must have a target, K < T, got K = {K}, T = {T}"
        )
    check_device(name, "targets", targets, predictions)
    return K, B, T, D


def _positions(K: int, B: int, T: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Places of the rows that have a target, [M] each, in predictions [K B T], in targets [B T].

    The third result is their step, from 0. The rows of a sequence lie together.
    """
    lengths = [T - k - 1 for k in range(K)]
    time = torch.cat([torch.arange(n, device=device) for n in lengths])
    step = torch.cat([torch.full((n,), k, device=device) for k, n in enumerate(lengths)])
    b = torch.arange(B, device=device)[:, None]
    index = (step * B + b) * T + time
    positive = b * T + time + step + 1
    return index.flatten(), positive.flatten(), step.repeat(B)
