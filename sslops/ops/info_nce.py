"""InfoNCE loss: the public function, and the choice of the op that gives it."""

from typing import Any, Literal

import torch
from torch import Tensor

from sslops._info_nce_args import InfoNCEArgs
from sslops.ops._checks import (
    as_rows,
    check_reduction,
    check_rows,
    common_dtype,
    integer_vector,
    inverse_temperature,
    row_weights,
)
from sslops.ops._group import reduce_over
from sslops.ops._group_info_nce import rows_of_team
from sslops.ops._info_nce_op import InfoNCEStats, info_nce_rows
from sslops.parallel import Group, checked_by_all, team_of

__all__ = ["InfoNCEStats", "info_nce"]


def info_nce(
    queries: Tensor,
    keys: Tensor,
    *_more: Any,
    queue: Tensor | None = None,
    targets: Tensor | None = None,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    temperature: float | Tensor = 0.07,
    symmetric: bool = False,
    weights: Tensor | None = None,
    reduction: Literal["none", "mean", "sum"] = "mean",
    normalize: bool = True,
    return_stats: bool = False,
    group: Group = None,
) -> Tensor | tuple[Tensor, InfoNCEStats]:
    r"""InfoNCE, the loss of CPC, MoCo and CLIP, without storing the M x N similarities.

    $$ \ell_i = \log \Big( e^{s_i} + \sum_{j \in A_i} e^{\langle x_i, y_j\rangle/\tau} \Big) - s_i,
       \quad s_i = \langle x_i, k_{t(i)}\rangle/\tau $$

    where x, k are the rows over their norms, as of torch.nn.functional.normalize.

    The negatives y are the other keys, or, with `queue`, the queue's rows alone (MoCo). A_i are
    those of them that are not the positive and do not carry row i's id. Memory is O((M + N) D).
    Where the negatives are not trained (a queue, or keys without gradient) loss and gradient come
    from a single pass over them; by the compiled CPU kernels those of a mean or sum over trained
    keys do, too.

    Args:
        queries: [M, D] float16, bfloat16, float32 or float64, any strides. Under autocast
            they are cast as for a matrix product; all sums stay in float32.
        keys: [N, D], same dtype; gradients flow into them unless they are detached. Under autocast
            the two may differ: they are cast together, to autocast's dtype, or, since it leaves
            float64 alone, to float64 if one of them has it. Each gets its gradient in its own.
        queue: [K, D] negatives of any floating dtype, read as they lie: they are not normalised
            and never get a gradient, and autocast does not cast them, which would write K D numbers
            at every step. `sslops.KeyQueue` holds unit rows. Against a bfloat16 queue products are
            those of bfloat16 whatever the queries have, sums those of float32.
        targets: [M] integers, row i's positive is key targets[i]; default: key i, M <= N. Values
            outside [0, N) are an error on the CPU. On a GPU, which nothing waits for, such a row's
            loss is NaN, and so are the gradients of the row and of what it is compared with; other
            rows keep theirs.
        query_ids: [M] integers; together with `key_ids`. A negative with the same id as the query
            is left out (known duplicates, the same image or sequence). -1 never matches.
        key_ids: [N] integers, ids of the keys; with `queue` [K], ids of its rows.
        temperature: tau > 0, a number or a tensor of one element, which then gets a gradient and
            is never read on the host (a non-positive tensor gives NaN, not an error).
        symmetric: mean of this loss and of the keys' loss, each key asking for its query among
            the queries; one pass for both. Needs M = N, no targets and no queue.
        weights: [M], multiplies each row's loss (both directions of it); gradients flow into it.
            "mean" then divides by the sum of the weights.
        reduction: "mean" or "sum" over the rows, or "none".
        normalize: False takes queries and keys as they are (dot products instead of cosines).
        return_stats: also return `InfoNCEStats`.
        group: whose keys are negatives as well, each rank giving its own: `sslops.Gather()`,
            `sslops.Ring()` or a process group. Positives are this rank's keys. With a queue, which
            is every rank's own, only the mean is over all ranks. Ranks may have different numbers
            of rows, none too; docs/scale.md says what is returned and what it costs. Default: this
            process alone.

    Returns:
        float32 scalar, or [M] for "none" (float64 for float64 inputs); with `return_stats` the
        pair (loss, InfoNCEStats). A row without any negative has loss 0.

    Raises:
        TypeError: a tensor is not of a dtype listed above; queries and keys differ in dtype
            outside autocast.
        ValueError: wrong shape, nothing to compare, tensors on different devices, one of the two
            ids without the other, targets out of range (CPU), `symmetric` with targets, a queue
            or M != N, temperature not positive and finite, unknown reduction, ranks of `group`
            that differ in more than their rows.
        RuntimeError: when the gradient is itself differentiated.

    Source:
        van den Oord et al. 2018, arXiv:1807.03748, eq. 4; with a queue He et al. 2020,
        arXiv:1911.05722, eq. 1; symmetric Radford et al. 2021, arXiv:2103.00020, figure 3.

    Example:
        >>> queries, keys = torch.randn(8, 16, requires_grad=True), torch.randn(8, 16)
        >>> queue = torch.nn.functional.normalize(torch.randn(64, 16), dim=1)
        >>> loss, stats = info_nce(queries, keys, queue=queue, temperature=0.2, return_stats=True)
        >>> loss.backward()
        >>> queries.grad.shape, stats.hit.shape
        (torch.Size([8, 16]), torch.Size([8]))
    """
    name = "info_nce"
    team = team_of(name, group)

    def checked() -> InfoNCEArgs:
        if _more:
            raise TypeError(
                f"{name}: only queries and keys come without a name, got {2 + len(_more)}"
                f" arguments; write {name}(queries, keys, queue=negatives, temperature=0.07)"
            )
        a = InfoNCEArgs(
            queries, keys, queue, targets, query_ids, key_ids, weights, symmetric=symmetric,
            normalize=normalize, stats=return_stats,
        )  # fmt: skip
        return _checked(a, temperature, reduction, 1 if team is None else 0)

    a = checked_by_all(team, name, queries, checked)
    if team is None:
        loss, stats = info_nce_rows(a, reduced=reduction != "none")
    else:
        loss, stats = rows_of_team(team, name, a, given={"reduction": reduction})
    loss = reduce_over(team, loss, a.row_weights, reduction)
    return (loss, stats) if return_stats else loss


def _checked(
    a: InfoNCEArgs, temperature: float | Tensor, reduction: str, least: int
) -> InfoNCEArgs:
    """`a` of a caller as the op takes it, with at least as many rows as `least`."""
    name, queries = "info_nce", a.queries
    check_reduction(name, reduction)
    also = {} if a.negatives is None else {"queue": a.negatives}
    check_rows(name, least, queries=queries, keys=a.keys, **also)
    if a.negatives is not None:
        check_rows(name, queue=a.negatives)  # which is never empty
    dtype = common_dtype(name, queries=queries, keys=a.keys)
    scale, factor = inverse_temperature(name, temperature, queries, dtype)
    M, N = queries.shape[0], a.keys.shape[0]
    targets, query_ids, key_ids, weights = a.targets, a.query_ids, a.key_ids, a.row_weights
    if a.symmetric and (targets is not None or a.negatives is not None or M != N):
        raise ValueError(
            f"{name}: symmetric needs as many queries as keys, no targets and no queue, got"
            f" {M} and {N}, targets {targets is not None}, queue {a.negatives is not None}"
        )
    if targets is None and M > N:
        raise ValueError(f"{name}: without targets every query needs its key, got {M} and {N}")
    if targets is not None:
        targets = integer_vector(name, "targets", targets, M, queries)
        _check_range(name, targets, N)
    if (query_ids is None) != (key_ids is None):
        raise ValueError(f"{name}: query_ids and key_ids go together, got one without the other")
    if query_ids is not None:
        query_ids = integer_vector(name, "query_ids", query_ids, M, queries)
        key_ids = integer_vector(name, "key_ids", key_ids, a.candidates.shape[0], queries)
    if weights is not None:
        weights = row_weights(name, weights, M, queries, dtype)
    return a._replace(
        queries=as_rows(queries, dtype, a.normalize),
        keys=as_rows(a.keys, dtype, a.normalize),
        negatives=None if a.negatives is None else a.negatives.detach(),
        targets=targets,
        query_ids=query_ids,
        key_ids=key_ids,
        row_weights=weights,
        scale=scale,
        scale_factor=factor,
    )


def _check_range(name: str, targets: Tensor, N: int) -> None:
    """Refuse targets that no key has, where looking at them costs no synchronisation."""
    if targets.device.type != "cpu" or torch.compiler.is_compiling() or not len(targets):
        return
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= N:
        raise ValueError(f"{name}: targets must be in [0, {N}), got {low} to {high}")
