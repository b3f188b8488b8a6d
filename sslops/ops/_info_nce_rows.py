"""Each row's InfoNCE loss from checked arguments, and its statistics."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sslops._library import op, runs_compiled
from sslops.ops import _info_nce_joint, _info_nce_kept  # noqa: F401  register the ops

# Similarities may be kept where they are no more numbers than these times those of both sides.
ROOM = 2


class InfoNCEStats(NamedTuple):
    """Statistics that `info_nce(..., return_stats=True)` returns beside the loss, all detached.

    Attributes:
        loss: [M] float32 (float64 for float64 inputs), each query's loss before weights.
        lse: [M], log-sum-exp of each query's logits, its positive's among them.
        hit: [M] bool, whether the positive is above every negative.
        key_loss: [N], each key's loss if `symmetric`, else empty.
        key_lse: [N] or empty.
        key_hit: [N] bool or empty.
    """

    loss: Tensor
    lse: Tensor
    hit: Tensor
    key_loss: Tensor
    key_lse: Tensor
    key_hit: Tensor


def _cheapest(
    queries: Tensor,
    keys: Tensor,
    trained: Tensor,
    scale: Tensor | None,
    *,
    within: bool,
    both: bool,
    reduced: bool,
) -> str:
    """The op to run, `trained` being the negatives and `both` both directions.

    What is kept for the gradient, similarities or the gradient itself, saves time on the compiled
    CPU kernels alone. `info_nce_single` is no such choice: a queue may change before `backward`.
    """
    leaves = (queries, keys, trained, scale)
    if not torch.is_grad_enabled() or not any(x is not None and x.requires_grad for x in leaves):
        return "info_nce_fwd"
    if queries.requires_grad and not trained.requires_grad and not both:
        return "info_nce_single"
    if not runs_compiled(queries):
        return "info_nce_fwd"
    M, D, N = *queries.shape, trained.shape[0]
    fits = M * N <= ROOM * (M + N) * D
    if trained.requires_grad and reduced and (fits or not both):
        return "info_nce_joint"
    return "info_nce_kept" if fits and not within else "info_nce_fwd"


def rows_of_info_nce(
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor | None,
    targets: Tensor | None,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    scale: Tensor | None,
    factor: float,
    *,
    within: bool = False,
    symmetric: bool = False,
    normalize: bool,
    stats: bool,
    reduced: bool = False,
    shares: Tensor | None = None,
) -> tuple[Tensor, InfoNCEStats]:
    """The loss of each row from checked arguments, by the cheapest op that can give it.

    `reduced`: the rows will most likely be summed in proportion to `shares` [M], None for equal
    ones. It decides what the gradient costs on the CPU, never what it is.
    """
    args: tuple[Any, ...] = (
        queries, keys, negatives, targets, query_ids, key_ids, scale, factor, within,
    )  # fmt: skip
    trained = keys if negatives is None else negatives
    name = _cheapest(queries, keys, trained, scale, within=within, both=symmetric, reduced=reduced)
    if name == "info_nce_single":
        loss, lse, hit, *_ = op(name, queries)(*args, normalize, stats)
        none, no_hit = loss.new_empty(0), hit.new_empty(0)
        return loss, InfoNCEStats(loss.detach(), lse, hit, none, none, no_hit)
    if name == "info_nce_joint":
        args = (*args[:6], None if shares is None else shares.detach(), *args[6:])
    loss, lse, key_loss, key_lse, hit, key_hit, *_ = op(name, queries)(
        *args, symmetric, normalize, stats
    )
    found = InfoNCEStats(loss.detach(), lse, hit, key_loss.detach(), key_lse, key_hit)
    return (0.5 * (loss + key_loss) if symmetric else loss), found
