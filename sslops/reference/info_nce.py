"""InfoNCE in plain PyTorch, a chunk of rows at a time so that memory stays bounded.

Formulas and derivation: docs/math/info_nce.md. Everything is computed in float32, or in float64
for float64 inputs, whatever the inputs' dtypes. The positive is kept out of every sum:

    loss = log(1 + exp(lse_negatives - positive)),   1 - p_positive = 1 - exp(-loss)

which loses no digits where the positive has nearly all the probability.
"""

import torch
from torch import Tensor

from sslops.reference._pairs import Pairs
from sslops.reference._rows import (
    chunks,
    effective_scale,
    followed,
    softplus,
    through_norm,
    unit_rows,
)


def info_nce_fwd(
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor | None,
    targets: Tensor | None,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    scale: Tensor | None,
    scale_factor: float,
    within: bool,
    columns: bool,
    normalize: bool,
    stats: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Per-row loss and statistics of `sslops.info_nce`.

    Args:
        queries: [M, D] floating.
        keys: [N, D], same dtype.
        negatives: [K, D] floating of any dtype, taken as they lie; None: the negatives of a row
            are the keys of the others.
        targets: [M] int64, each row's positive in `keys`; None: row i's is key i. Of one outside
            [0, N) the row's loss is NaN, and so are the gradients of the row and of what it is
            compared with; nothing is read there.
        query_ids: [M] int64 or None.
        key_ids: [K] of the negatives if given, else [N]; or None.
        scale: 0-d floating, or None for 1. The logits are multiplied by `scale * scale_factor`,
            the inverse temperature; where that is not positive every result is NaN.
        scale_factor: see `scale`.
        within: a row sees only negatives with its id, instead of all but those.
        columns: also the losses of the keys, each asking for its query. Needs targets = None,
            no negatives and M = N.
        normalize: divide queries and keys by max(their L2 norm, 1e-12) first.
        stats: whether the hits are wanted.

    Returns:
        (loss [M], lse [M], key_loss [N], key_lse [N], hit [M] bool, key_hit [N] bool); what was
        not asked for is empty.
    """
    p = Pairs(
        queries,
        keys,
        negatives,
        targets,
        query_ids,
        key_ids,
        scale,
        scale_factor,
        within,
        normalize,
    )
    negative = p.x.new_empty(p.M)
    # for the hits from the same product as the negatives, where there is one: among the equal
    # rows of a collapsed encoder rounding must not decide
    positive, best = p.positive.clone(), p.x.new_empty(p.M if stats else 0)
    column = p.x.new_full((p.N if columns else 0,), float("-inf"))
    column_best = column.clone() if stats else p.x.new_empty(0)
    for rows in chunks(p.M, p.N, p.x.device):
        logits = p.logits(rows)
        if stats and p.own:
            positive[rows] = logits.gather(1, p.targets[rows, None]).squeeze(1)
        logits = p.negative_logits(rows, logits)
        negative[rows] = torch.logsumexp(logits, dim=1)
        if stats:
            best[rows] = logits.amax(dim=1) if p.N else float("-inf")
        if columns:
            column = torch.logaddexp(column, torch.logsumexp(logits, dim=0))
            if stats:
                column_best = torch.maximum(column_best, logits.amax(dim=0))
    loss = softplus(negative - p.positive)
    key_positive = p.positive if columns else column
    key_loss = softplus(column - key_positive)
    return (
        loss,
        p.positive + loss,
        key_loss,
        key_positive + key_loss,
        positive > best if stats else torch.empty(0, dtype=torch.bool, device=p.x.device),
        (
            positive > column_best
            if stats and columns
            else torch.empty(0, dtype=torch.bool, device=p.x.device)
        ),
    )


def info_nce_bwd(
    grad_loss: Tensor,
    grad_key_loss: Tensor | None,
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor | None,
    targets: Tensor | None,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    loss: Tensor,
    lse: Tensor,
    key_loss: Tensor,
    key_lse: Tensor,
    scale: Tensor | None,
    scale_factor: float,
    within: bool,
    normalize: bool,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradient of `info_nce_fwd`'s losses.

    Args:
        grad_loss: [M], the upstream gradient of each row's loss.
        grad_key_loss: [N] of each key's loss if the forward had `columns`, else None.
        queries: [M, D], as in `info_nce_fwd`, like all arguments not listed here.
        keys: [N, D].
        negatives: [K, D] or None.
        targets: [M] or None.
        query_ids: [M] or None.
        key_ids: or None.
        loss: [M], as `info_nce_fwd` returned it, like the three below.
        lse: [M].
        key_loss: [N] or empty.
        key_lse: [N] or empty.
        scale: 0-d or None; `dscale` is the derivative with respect to `scale * scale_factor`.
        scale_factor: see `scale`.
        within: see `info_nce_fwd`.
        normalize: see `info_nce_fwd`.
        needs: which of dqueries (and with it dscale), dkeys, dnegatives are wanted.

    Returns:
        (dqueries, dkeys, dnegatives in their inputs' dtypes, dscale 0-d); what is not needed is
        empty, dscale NaN.
    """
    p = Pairs(
        queries,
        keys,
        negatives,
        targets,
        query_ids,
        key_ids,
        scale,
        scale_factor,
        within,
        normalize,
    )
    w = grad_loss.to(p.x.dtype)
    dx, dk = torch.empty_like(p.x), torch.zeros_like(p.k)
    dy = dk if p.own else p.y.new_zeros(p.y.shape)
    for rows in chunks(p.M, p.N, p.x.device):
        logits = p.negative_logits(rows)
        g = w[rows, None] * (logits - lse[rows, None]).exp()
        if grad_key_loss is not None:
            g += grad_key_loss.to(p.x.dtype) * (logits - key_lse).exp()
        dx[rows] = g @ p.y
        dy += g.T @ p.x[rows]
    pull = w * torch.expm1(-loss)  # minus (1 - p_positive)
    if grad_key_loss is not None:
        pull += grad_key_loss.to(p.x.dtype) * torch.expm1(-key_loss)
    dx += pull[:, None] * p.k[p.targets]
    if p.inside is not None:
        pull = torch.where(p.inside, pull, 0.0)  # NaN of a row that draws no key
    dk.index_add_(0, p.targets, pull[:, None] * p.x)
    dscale = (p.x * dx).sum()

    def finish(d: Tensor, x: Tensor, norm: Tensor, like: Tensor) -> Tensor:
        return through_norm(d * p.scale, x, norm, normalize).to(like.dtype)

    third = p.x if negatives is None else negatives
    trained = needs[2] and negatives is not None
    return (
        finish(dx, p.x, p.x_norm, queries) if needs[0] else queries.new_empty(0),
        finish(dk, p.k, p.k_norm, keys) if needs[1] else keys.new_empty(0),
        (dy * p.scale).to(third.dtype) if trained else third.new_empty(0),
        dscale if needs[0] else torch.full_like(dscale, float("nan")),
    )


def info_nce_single(
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor | None,
    targets: Tensor | None,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    scale: Tensor | None,
    scale_factor: float,
    within: bool,
    normalize: bool,
    stats: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss and its gradient in one pass, for negatives that are not trained.

    Args are those of `info_nce_fwd`.

    Returns:
        (loss [M], lse [M], hit [M] bool or empty, dqueries [M, D] and slope [M] in the dtype of
        the loss): the derivatives of each row's own loss by its query and by
        `scale * scale_factor`.
    """
    args = (query_ids, key_ids, scale, scale_factor, within)
    loss, lse, _, _, hit, _ = info_nce_fwd(
        queries, keys, negatives, targets, *args, False, normalize, stats
    )
    p = Pairs(queries, keys, negatives, targets, *args, normalize)
    dx = torch.empty_like(p.x)
    for rows in chunks(p.M, p.N, p.x.device):
        dx[rows] = (p.negative_logits(rows) - lse[rows, None]).exp() @ p.y
    dx += torch.expm1(-loss)[:, None] * p.k[p.targets]
    slope = (p.x * dx).sum(dim=1)
    return loss, lse, hit, through_norm(dx * p.scale, p.x, p.x_norm, normalize), slope


def info_nce_single_bwd(
    grad_loss: Tensor,
    queries: Tensor,
    keys: Tensor,
    targets: Tensor | None,
    loss: Tensor,
    dqueries: Tensor,
    slope: Tensor,
    scale: Tensor | None,
    scale_factor: float,
    normalize: bool,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of `info_nce_single`'s losses from what it returned.

    Args:
        grad_loss: [M], the upstream gradient of each row's loss.
        queries: [M, D], as in `info_nce_fwd`, like `keys`, `targets`, `scale` and the rest.
        keys: [N, D]; only as positives: as negatives they are not trained here.
        targets: [M] or None.
        loss: [M], as `info_nce_single` returned it, like the two below.
        dqueries: [M, D].
        slope: [M].
        scale: 0-d or None.
        scale_factor: see `scale`.
        normalize: see `info_nce_fwd`.
        needs: which of dqueries, dkeys, dscale are wanted.

    Returns:
        (dqueries, dkeys in their inputs' dtypes, dscale 0-d); what is not needed is empty.
    """
    w = grad_loss.to(dqueries.dtype)
    dq = (w[:, None] * dqueries).to(queries.dtype) if needs[0] else queries.new_empty(0)
    dk = keys.new_empty(0)
    if needs[1]:
        x, _ = unit_rows(queries, normalize)
        k, norm = unit_rows(keys, normalize)
        pull = w * torch.expm1(-loss) * effective_scale(x, scale, scale_factor)
        rows = pull[:, None] * x  # [M, D]
        if targets is None:
            d = torch.zeros_like(k)
            d[: len(rows)] = rows
        else:
            targets, inside = followed(targets, len(k))
            rows = torch.where(inside[:, None], rows, 0.0)  # or NaN of a row that draws no key
            d = torch.zeros_like(k).index_add_(0, targets, rows)
        dk = through_norm(d, k, norm, normalize).to(keys.dtype)
    return dq, dk, (w * slope).sum() if needs[2] else w.new_empty(0)
