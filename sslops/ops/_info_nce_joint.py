"""InfoNCE whose gradient is computed with the loss: schema, fake kernels, autograd.

Gradients of two trained sides need every similarity twice, once for the sums and once for the
weights, unless the multiple of each row's loss that will be differentiated is known before: then
exponentials are kept until their sums are known, and one pass gives both. For a mean or a weighted
mean it is; should it turn out to be another, the gradient is computed anew.
"""

from typing import Any

import torch
from torch import Tensor

from sslops._library import define, op, register_autograd
from sslops.ops._info_nce import _IDS, _ROWS, _SCALE, _fake_fwd
from sslops.reference.info_nce_joint import info_nce_joint

_FOUND = "Tensor dqueries, Tensor dkeys, Tensor dnegatives, Tensor dscale"


def info_nce_joint_bwd(
    grad_loss: Tensor,
    grad_key_loss: Tensor | None,
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor | None,
    targets: Tensor | None,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    weights: Tensor | None,
    loss: Tensor,
    lse: Tensor,
    key_loss: Tensor,
    key_lse: Tensor,
    dqueries: Tensor,
    dkeys: Tensor,
    dnegatives: Tensor,
    dscale: Tensor,
    scale: Tensor | None,
    scale_factor: float,
    within: bool,
    normalize: bool,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradient of `info_nce_joint`'s losses from what it returned, or anew.

    Args:
        grad_loss: [M], the upstream gradient of each row's loss.
        grad_key_loss: [N], of each key's, None without columns.
        queries: [M, D], as in `info_nce_joint`, like all arguments not listed here.
        keys: [N, D].
        negatives: [K, D] or None.
        targets: [M] or None.
        query_ids: [M] or None.
        key_ids: or None.
        weights: [M] or None.
        loss: [M], as `info_nce_joint` returned it, like the seven below.
        lse: [M].
        key_loss: [N], empty without columns.
        key_lse: [N] or empty.
        dqueries: [M, D].
        dkeys: [N, D].
        dnegatives: [K, D] or empty.
        dscale: 0-d.
        scale: 0-d or None.
        scale_factor: see `scale`.
        within: see `info_nce_fwd`.
        normalize: see `info_nce_fwd`.
        needs: which of dqueries (and with it dscale), dkeys, dnegatives are wanted.

    Returns:
        (dqueries, dkeys, dnegatives in their inputs' dtypes, dscale 0-d); what is not needed is
        empty.
    """
    grads, w = grad_loss, weights
    if grad_key_loss is not None:
        grads = torch.cat([grad_loss, grad_key_loss])
        w = None if weights is None else weights.repeat(2)
    c = multiple_of(grads, w)
    if c is None:
        found: tuple[Tensor, Tensor, Tensor, Tensor] = op("info_nce_bwd", queries)(
            grad_loss, grad_key_loss, queries, keys, negatives, targets, query_ids, key_ids, loss,
            lse, key_loss, key_lse, scale, scale_factor, within, normalize, needs,
        )  # fmt: skip
        return found

    def times(d: Tensor, like: Tensor, need: bool) -> Tensor:
        return (c * d).to(like.dtype) if need else like.new_empty(0)

    third = dnegatives if negatives is None else negatives
    return (
        times(dqueries, queries, needs[0]),
        times(dkeys, keys, needs[1]),
        times(dnegatives, third, needs[2] and negatives is not None),
        c * dscale,
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


def _fake(queries: Tensor, keys: Tensor, negatives: Tensor | None, *args: Any) -> Any:
    dtype = torch.promote_types(queries.dtype, torch.float32)

    def like(tensor: Tensor) -> Tensor:
        return tensor.new_empty(tensor.shape, dtype=dtype)

    statistics = _fake_fwd(queries, keys, *args)
    none = queries.new_empty(0, dtype=dtype)
    third = none if negatives is None else like(negatives)
    return *statistics, like(queries), like(keys), third, none.new_empty(())


def _fake_bwd(grad_loss: Tensor, *args: Any) -> Any:
    queries, keys, negatives, needs = *args[1:4], args[-1]

    def like(tensor: Tensor, need: bool) -> Tensor:
        return tensor.new_empty(tensor.shape if need else (0,))

    third = grad_loss if negatives is None else negatives  # whose dtype an empty result has
    return (
        like(queries, needs[0]),
        like(keys, needs[1]),
        like(third, needs[2] and negatives is not None),
        grad_loss.new_empty(()),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *rows_and_ids, scale, ctx.scale_factor, ctx.within, ctx.columns, ctx.normalize, _ = inputs
    loss, lse, key_loss, key_lse, hit, key_hit, *gradients = output
    ctx.mark_non_differentiable(lse, key_lse, hit, key_hit, *gradients)
    ctx.save_for_backward(*rows_and_ids, loss, lse, key_loss, key_lse, *gradients, scale)


def _backward(bwd: Any, ctx: Any, grad: Tensor, _: Tensor, grad_key: Tensor, *__: Tensor) -> Any:
    queries, keys, negatives, *_rest = ctx.needs_input_grad
    want_scale = ctx.needs_input_grad[7]
    *_saved, scale = ctx.saved_tensors
    needs = [queries or want_scale, keys, negatives]
    dq, dk, dn, dfactor = bwd(
        grad, grad_key if ctx.columns else None, *ctx.saved_tensors, ctx.scale_factor, ctx.within,
        ctx.normalize, needs,
    )  # fmt: skip
    dscale = (dfactor * ctx.scale_factor).to(scale.dtype) if want_scale else None
    grads = (dq if queries else None, dk if keys else None, dn if negatives else None)
    return *grads, None, None, None, None, dscale, *[None] * 5


define(
    "info_nce_joint",
    f"({_ROWS}, {_IDS}, Tensor? weights, {_SCALE}, bool within, bool columns, bool normalize,"
    f" bool stats) -> (Tensor loss, Tensor lse, Tensor key_loss, Tensor key_lse, Tensor hit,"
    f" Tensor key_hit, {_FOUND})",
    info_nce_joint,
    fake=_fake,
)
define(
    "info_nce_joint_bwd",
    f"(Tensor grad_loss, Tensor? grad_key_loss, {_ROWS}, {_IDS}, Tensor? weights, Tensor loss,"
    f" Tensor lse, Tensor key_loss, Tensor key_lse, {_FOUND}, {_SCALE}, bool within,"
    " bool normalize, bool[3] needs) ->"
    " (Tensor dq, Tensor dk, Tensor dn, Tensor dfactor)",
    info_nce_joint_bwd,
    fake=_fake_bwd,
)
register_autograd("info_nce_joint", "info_nce_joint_bwd", _backward, _setup)
