"""CPC's loss: every step's predictions against the targets of all positions, in one call."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sslops._info_nce_args import InfoNCEArgs
from sslops.ops._checks import (
    as_rows,
    check_device,
    check_floating,
    common_dtype,
    inverse_temperature,
)
from sslops.ops._group import of_no_rows, shared_mean, total_of
from sslops.ops._group_cpc import (
    against_other_sequences,
    agree_on_cpc,
    drawn_by_first,
    rows_at,
)
from sslops.ops._info_nce_op import InfoNCEStats, info_nce_rows
from sslops.parallel import Group, checked_by_all, team_of

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
    group: Group = None,
) -> Tensor | tuple[Tensor, CPCStats]:
    r"""CPC's loss over all K steps in one call, without ever storing the similarities.

    $$ L = \frac{1}{K} \sum_{k=1}^{K} \frac{1}{B (T-k)} \sum_{b,\, t < T-k}
       -\log \frac{f_k(c_{bt}, z_{b,t+k})}{f_k(c_{bt}, z_{b,t+k}) + \sum_{n \in A} f_k(c_{bt}, z_n)}
       \quad f_k(c_{bt}, z) = e^{\langle c^k_{bt}, z\rangle/\tau} $$

    Args:
        predictions: [K, B, T, D] float16, bfloat16, float32 or float64: c^k at time t predicts
            the target at t + k, k = 1 .. K. Positions whose target lies past T are not used.
        targets: [B, T, D], same dtype; gradients flow into them unless they are detached. Under
            autocast the two may differ and are cast together, as by `info_nce`.
        negatives: A, never the positive: "all", every other position of every sequence;
            "sequence", the other positions of the same sequence; "other", all positions of the
            other sequences; or n, that many positions drawn once per call without repetition from
            all B T, shared by all rows and steps.
        temperature: tau > 0, a number or a tensor of one element, which then gets a gradient.
        normalize: compare by cosine. The paper's bilinear score is `normalize=False,
            temperature=1`.
        generator: for the draw of n positions; a CPU generator. Default: torch's own.
        return_stats: also return `CPCStats`.
        group: whose sequences count as well, each rank giving its own: `sslops.Gather()`,
            `sslops.Ring()` or a process group. n positions are drawn from those of all ranks, by
            the first. Ranks may have different numbers of sequences, none too; docs/scale.md says
            what is returned and what it costs. Default: this process alone.

    Returns:
        float32 scalar (float64 for float64 inputs), in nats; with `return_stats` the pair
        (loss, CPCStats). Its chance value is the logarithm of the number of candidates: B T,
        T, (B - 1) T + 1, or about n + 1.

    Raises:
        TypeError: a tensor is not of a dtype listed above; the two differ in dtype outside
            autocast.
        ValueError: shapes that do not fit, K not in [1, T), tensors on different devices,
            negatives unknown or n outside [1, B T], temperature not positive and finite, ranks of
            `group` that differ in more than their sequences.
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
    team = team_of(name, group)

    def checked() -> tuple[torch.dtype, Tensor | None, float]:
        B, T = _check_shapes(name, predictions, targets, 1 if team is None else 0)
        check_negatives(name, negatives, B * T if team is None else None)
        dtype = common_dtype(name, predictions=predictions, targets=targets)
        return dtype, *inverse_temperature(name, temperature, predictions, dtype)

    dtype, scale, factor = checked_by_all(team, name, predictions, checked)
    K, B, T, D = predictions.shape
    predictions = as_rows(predictions, dtype, normalize)
    wide = torch.promote_types(dtype, torch.float32)
    index, positive, step = _positions(K, B, T, predictions.device)
    rows = predictions.reshape(-1, D).index_select(0, index)  # [M, D]
    keys = as_rows(targets, dtype, normalize).reshape(-1, D)  # [B T, D]
    sequences = [B]
    if team is not None:
        sequences = agree_on_cpc(
            team, predictions, keys, scale, factor, negatives, normalize, return_stats
        )
    sampled = query_ids = key_ids = None
    if isinstance(negatives, int):
        drawn = torch.randperm(sum(sequences) * T, generator=generator)[:negatives]
        key_ids, before = drawn.to(keys.device), 0
        if team is None:
            sampled = keys.index_select(0, key_ids)
        else:
            before = sum(sequences[: team.rank]) * T
            key_ids = drawn_by_first(team, key_ids)
            sampled = rows_at(team, key_ids, before, keys)
        query_ids = positive + before  # a draw that hits the positive is left out
        if normalize:
            sampled = F.normalize(sampled.to(wide), dim=1)
    elif negatives != "all":
        key_ids = torch.arange(B, device=keys.device).repeat_interleave(T)
        query_ids = positive // T
    count = T - torch.arange(1, K + 1, device=keys.device)  # [K], rows of a sequence
    a = InfoNCEArgs(
        rows, keys, sampled, positive, query_ids, key_ids,
        row_weights=count.to(wide).reciprocal()[step], scale=scale, scale_factor=factor,
        same_id_only=negatives == "sequence", normalize=normalize, stats=return_stats,
    )  # fmt: skip
    if len(rows):
        found = info_nce_rows(a, reduced=team is None)
    else:
        found = _nothing(scale, rows, keys, *(() if sampled is None else (sampled,)))
    if team is not None and negatives in ("all", "other"):
        places = [each * T for each in sequences]
        found = against_other_sequences(found, team, places, a)
    loss, stats = found

    by_step = loss.new_zeros(K).index_add(0, step, loss) / count
    mean = shared_mean(team, by_step.mean(), by_step.new_full((), B))
    if not return_stats:
        return mean
    hits = loss.new_zeros(K).index_add(0, step, stats.hit.to(loss.dtype)) / count
    both = torch.stack([by_step.detach(), hits])
    return mean, CPCStats(*((both if team is None else total_of(team, both)) / sum(sequences)))


def _nothing(scale: Tensor | None, *sides: Tensor) -> tuple[Tensor, InfoNCEStats]:
    """Of a rank without sequences."""
    none = of_no_rows(scale, *sides)
    return none, InfoNCEStats(*(part.detach() for part in (none, none, none > 0, *[none] * 3)))


def check_negatives(name: str, negatives: str | int, most: int | None = None) -> None:
    """Refuse what is not a choice; with a group, `most` is known when the ranks have met."""
    if not isinstance(negatives, int) and negatives not in ("all", "sequence", "other"):
        raise ValueError(f"{name}: negatives must be all, sequence, other or n, got {negatives!r}")
    if isinstance(negatives, int) and (negatives < 1 or (most is not None and negatives > most)):
        limit = "B T" if most is None else f"B T = {most}"
        raise ValueError(f"{name}: negatives must be in [1, {limit}], got {negatives}")


def _check_shapes(name: str, predictions: Tensor, targets: Tensor, least: int) -> tuple[int, int]:
    """B and T of arguments that fit, with at least as many sequences as `least`."""
    check_floating(name, "predictions", predictions)
    check_floating(name, "targets", targets)
    shape, wanted = tuple(predictions.shape), tuple(targets.shape)
    fits = len(shape) == 4 and shape[1:] == wanted
    if not fits or shape[1] < least or 0 in (shape[0], *shape[2:]):
        raise ValueError(
            f"{name}: predictions must be [K, B, T, D] and targets [B, T, D], none of them empty,"
            f" got shapes {shape} and {wanted}"
        )
    K, B, T, _ = shape
    if K >= T:
        raise ValueError(
            f"{name}: the last of K steps must have a target, K < T, got K = {K}, T = {T}"
        )
    check_device(name, "targets", targets, predictions)
    return B, T


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
