"""InfoNCE in plain PyTorch, a chunk of rows at a time so that memory stays bounded.

Formulas and derivation: docs/math/info_nce.md. Everything is computed in float32, or in float64
for float64 inputs, whatever the inputs' dtypes. The positive is kept out of every sum:

    loss = log(1 + exp(lse_negatives - positive)),   1 - p_positive = 1 - exp(-loss)

which loses no digits where the positive has nearly all the probability.
"""

from typing import Any

import torch
from torch import Tensor

from sslops._info_nce_args import InfoNCEArgs, InfoNCESaved, result_shapes, split_backward
from sslops.reference._pairs import Pairs
from sslops.reference._rows import (
    chunks,
    effective_scale,
    followed,
    softplus,
    through_norm,
    unit_rows,
)

Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


def info_nce_fwd(*args: Any) -> tuple[Tensor, ...]:
    """Per-row loss and statistics of `sslops.info_nce`, and what its gradient needs.

    Args:
        args: those of `InfoNCEArgs`.

    Returns:
        (`InfoNCESaved`, hit [M] bool, key_hit [N] bool); what was not asked for is empty.
    """
    a = InfoNCEArgs(*args)
    p = Pairs(a)
    loss, lse, key_loss, key_lse, hit, key_hit = _statistics(a, p)
    saved = {name: loss.new_empty(0) for name in InfoNCESaved._fields[4:]}
    if a.plan == "save_logits":  # which only csrc/cpu reads
        shape = result_shapes(a)[InfoNCESaved._fields.index("similarities")]
        saved["similarities"] = loss.new_zeros(shape)
    elif a.plan == "grad_in_forward":
        w = torch.ones_like(loss) if a.row_weights is None else a.row_weights
        third = None if a.negatives is None else a.negatives.to(loss.dtype)
        wide = a._replace(
            queries=a.queries.to(loss.dtype), keys=a.keys.to(loss.dtype), negatives=third
        )
        found = InfoNCESaved(loss, lse, key_loss, key_lse, **saved)
        gradients = _gradients(w, w if a.symmetric else None, wide, found, [True] * 3)
        saved |= zip(("dqueries", "dkeys", "dnegatives", "dscale"), gradients, strict=True)
    elif a.plan == "frozen_keys":
        saved["dqueries"], saved["dscale"] = _gradients_of_queries(p, a.normalize, loss, lse)
    return *InfoNCESaved(loss, lse, key_loss, key_lse, **saved), hit, key_hit


def _statistics(a: InfoNCEArgs, p: Pairs) -> tuple[Tensor, ...]:
    """(loss [M], lse [M], key_loss [N], key_lse [N], hit [M] bool, key_hit [N] bool)."""
    negative = p.x.new_empty(p.M)
    # for the hits from the same product as the negatives, where there is one: among the equal
    # rows of a collapsed encoder rounding must not decide
    positive, best = p.positive.clone(), p.x.new_empty(p.M if a.stats else 0)
    column = p.x.new_full((p.N if a.symmetric else 0,), float("-inf"))
    column_best = column.clone() if a.stats else p.x.new_empty(0)
    for rows in chunks(p.M, p.N, p.x.device):
        logits = p.logits(rows)
        if a.stats and p.keys_are_negatives:
            positive[rows] = logits.gather(1, p.targets[rows, None]).squeeze(1)
        logits = p.negative_logits(rows, logits)
        negative[rows] = torch.logsumexp(logits, dim=1)
        if a.stats:
            best[rows] = logits.amax(dim=1) if p.N else float("-inf")
        if a.symmetric:
            column = torch.logaddexp(column, torch.logsumexp(logits, dim=0))
            if a.stats:
                column_best = torch.maximum(column_best, logits.amax(dim=0))
    loss = softplus(negative - p.positive)
    key_positive = p.positive if a.symmetric else column
    key_loss = softplus(column - key_positive)
    no_hit = torch.empty(0, dtype=torch.bool, device=p.x.device)
    return (
        loss,
        p.positive + loss,
        key_loss,
        key_positive + key_loss,
        positive > best if a.stats else no_hit,
        positive > column_best if a.stats and a.symmetric else no_hit.clone(),
    )


def _gradients_of_queries(
    p: Pairs, normalize: bool, loss: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor]:
    """Derivatives of each row's own loss by its query, [M, D], and by the scale, [M]."""
    dx = torch.empty_like(p.x)
    for rows in chunks(p.M, p.N, p.x.device):
        dx[rows] = (p.negative_logits(rows) - lse[rows, None]).exp() @ p.y
    dx += torch.expm1(-loss)[:, None] * p.k[p.targets]
    dscale = (p.x * dx).sum(dim=1)
    return through_norm(dx * p.scale, p.x, p.x_norm, normalize), dscale


def info_nce_bwd(grad_loss: Tensor, grad_key_loss: Tensor | None, *rest: Any) -> Gradients:
    """Gradient of `info_nce_fwd`'s losses.

    Args:
        grad_loss: [M], the upstream gradient of each row's loss.
        grad_key_loss: [N] of each key's loss if the forward was `symmetric`, else None.
        rest: those of `InfoNCEArgs`, of `InfoNCESaved` as the forward returned it, and which of
            dqueries (and dscale with it), dkeys, dnegatives, dscale are wanted. After
            frozen_keys neither negatives nor ids are read.

    Returns:
        (dqueries, dkeys, dnegatives in their inputs' dtypes, dscale 0-d); what is not needed is
        empty, but dscale of two passes NaN. `dscale` is the derivative with respect to
        `scale * scale_factor`.
    """
    a, saved, needs = split_backward(rest)
    if a.plan == "frozen_keys":
        return _gradients_after_frozen_keys(grad_loss, a, saved, needs)
    if a.plan == "grad_in_forward":
        found = _multiples(grad_loss, grad_key_loss, a, saved, needs)
        if found is not None:
            return found
    return _gradients(grad_loss, grad_key_loss, a, saved, needs)


def _gradients(
    grad_loss: Tensor,
    grad_key_loss: Tensor | None,
    a: InfoNCEArgs,
    saved: InfoNCESaved,
    needs: list[bool],
) -> Gradients:
    """`info_nce_bwd` from the losses alone."""
    p = Pairs(a)
    w = grad_loss.to(p.x.dtype)
    dx, dk = torch.empty_like(p.x), torch.zeros_like(p.k)
    dy = dk if p.keys_are_negatives else p.y.new_zeros(p.y.shape)
    for rows in chunks(p.M, p.N, p.x.device):
        logits = p.negative_logits(rows)
        g = w[rows, None] * (logits - saved.lse[rows, None]).exp()
        if grad_key_loss is not None:
            g += grad_key_loss.to(p.x.dtype) * (logits - saved.key_lse).exp()
        dx[rows] = g @ p.y
        dy += g.T @ p.x[rows]
    pull = w * torch.expm1(-saved.loss)  # minus (1 - p_positive)
    if grad_key_loss is not None:
        pull += grad_key_loss.to(p.x.dtype) * torch.expm1(-saved.key_loss)
    dx += pull[:, None] * p.k[p.targets]
    if p.inside is not None:
        pull = torch.where(p.inside, pull, 0.0)  # NaN of a row that draws no key
    dk.index_add_(0, p.targets, pull[:, None] * p.x)
    dscale = (p.x * dx).sum()

    def finish(d: Tensor, x: Tensor, norm: Tensor, like: Tensor) -> Tensor:
        return through_norm(d * p.scale, x, norm, a.normalize).to(like.dtype)

    third = p.x if a.negatives is None else a.negatives
    trained = needs[2] and a.negatives is not None
    return (
        finish(dx, p.x, p.x_norm, a.queries) if needs[0] else a.queries.new_empty(0),
        finish(dk, p.k, p.k_norm, a.keys) if needs[1] else a.keys.new_empty(0),
        (dy * p.scale).to(third.dtype) if trained else third.new_empty(0),
        dscale if needs[0] else torch.full_like(dscale, float("nan")),
    )


def _multiples(
    grad_loss: Tensor,
    grad_key_loss: Tensor | None,
    a: InfoNCEArgs,
    saved: InfoNCESaved,
    needs: list[bool],
) -> Gradients | None:
    """What grad_in_forward left, times the upstream gradient; None if that is no multiple."""
    grads, w = grad_loss, a.row_weights
    if grad_key_loss is not None:
        grads = torch.cat([grad_loss, grad_key_loss])
        w = None if w is None else w.repeat(2)
    c = multiple_of(grads, w)
    if c is None:
        return None

    def times(d: Tensor, like: Tensor, need: bool) -> Tensor:
        return (c * d).to(like.dtype) if need else like.new_empty(0)

    third = saved.dnegatives if a.negatives is None else a.negatives
    return (
        times(saved.dqueries, a.queries, needs[0]),
        times(saved.dkeys, a.keys, needs[1]),
        times(saved.dnegatives, third, needs[2] and a.negatives is not None),
        c * saved.dscale,
    )


def multiple_of(grad: Tensor, weights: Tensor | None) -> Tensor | None:
    """The c of grad = c * weights, 0-d, None if there is none.

    Within a few roundings of each element, which leave as little in the gradients. Read on the
    host: for the CPU.

    Args:
        grad: [M].
        weights: [M], None for 1.
    """
    w = torch.ones_like(grad) if weights is None else weights
    first = w.abs().argmax()
    c = grad[first] / w[first]
    expected = c * w
    few = 8 * torch.finfo(grad.dtype).eps
    same = ((grad - expected).abs() <= few * expected.abs()).all()  # false where anything is NaN
    return c if bool(same) else None


def _gradients_after_frozen_keys(
    grad_loss: Tensor, a: InfoNCEArgs, saved: InfoNCESaved, needs: list[bool]
) -> Gradients:
    """`info_nce_bwd` after frozen_keys: keys get a gradient as positives alone."""
    w = grad_loss.to(saved.dqueries.dtype)
    dq = (w[:, None] * saved.dqueries).to(a.queries.dtype) if needs[0] else a.queries.new_empty(0)
    dk = a.keys.new_empty(0)
    if needs[1]:
        x, _ = unit_rows(a.queries, a.normalize)
        k, norm = unit_rows(a.keys, a.normalize)
        pull = w * torch.expm1(-saved.loss) * effective_scale(x, a.scale, a.scale_factor)
        rows = pull[:, None] * x  # [M, D]
        if a.targets is None:
            d = torch.zeros_like(k)
            d[: len(rows)] = rows
        else:
            targets, inside = followed(a.targets, len(k))
            rows = torch.where(inside[:, None], rows, 0.0)  # or NaN of a row that draws no key
            d = torch.zeros_like(k).index_add_(0, targets, rows)
        dk = through_norm(d, k, norm, a.normalize).to(a.keys.dtype)
    dscale = (w * saved.dscale).sum() if needs[3] else w.new_empty(0)
    third = saved.loss if a.negatives is None else a.negatives
    return dq, dk, third.new_empty(0), dscale
