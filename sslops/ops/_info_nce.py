"""InfoNCE's ops: schemas, fake kernels, autograd. sslops.ops.info_nce has the function."""

from typing import Any

import torch
from torch import Tensor

from sslops._library import define, register_autograd
from sslops.reference import info_nce as _reference

_ROWS = "Tensor queries, Tensor keys, Tensor? negatives, Tensor? targets"
_IDS = "Tensor? query_ids, Tensor? key_ids"
_SCALE = "Tensor? scale, float scale_factor"


def _fake_fwd(queries: Tensor, keys: Tensor, *args: Any) -> Any:
    columns, _, stats = args[-3:]
    M, N = queries.shape[0], keys.shape[0] if columns else 0
    dtype = torch.promote_types(queries.dtype, torch.float32)

    def empty(n: Any, kind: torch.dtype = dtype) -> Tensor:
        return queries.new_empty(n, dtype=kind)

    hits = (empty(M if stats else 0, torch.bool), empty(N if stats else 0, torch.bool))
    return empty(M), empty(M), empty(N), empty(N), *hits


def _fake_bwd(*args: Any) -> Any:
    queries, keys, negatives, lse, needs = *args[2:5], args[9], args[-1]

    def like(tensor: Tensor, need: bool) -> Tensor:
        return tensor.new_empty(tensor.shape if need else (0,))

    third = lse if negatives is None else negatives  # whose dtype an empty result has
    return (
        like(queries, needs[0]),
        like(keys, needs[1]),
        like(third, needs[2] and negatives is not None),
        lse.new_empty(()),
    )


def _fake_single(queries: Tensor, *args: Any) -> Any:
    M, dtype = queries.shape[0], torch.promote_types(queries.dtype, torch.float32)
    row = queries.new_empty(M, dtype=dtype)
    hit = queries.new_empty(M if args[-1] else 0, dtype=torch.bool)
    dqueries = queries.new_empty(queries.shape, dtype=dtype)
    return row, torch.empty_like(row), hit, dqueries, torch.empty_like(row)


def _fake_single_bwd(grad_loss: Tensor, queries: Tensor, keys: Tensor, *args: Any) -> Any:
    dqueries, needs = args[2], args[-1]
    return (
        queries.new_empty(queries.shape if needs[0] else (0,)),
        keys.new_empty(keys.shape if needs[1] else (0,)),
        dqueries.new_empty(() if needs[2] else (0,)),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.scale_factor, ctx.within, ctx.columns, ctx.normalize, _ = inputs
    loss, lse, key_loss, key_lse, hit, key_hit, *kept = output
    ctx.mark_non_differentiable(lse, key_lse, hit, key_hit, *kept)
    ctx.save_for_backward(*tensors, loss, lse, key_loss, key_lse, *kept)


def _backward(bwd: Any, ctx: Any, grad: Tensor, _: Tensor, grad_key: Tensor, *__: Tensor) -> Any:
    *rows_and_ids, scale = ctx.saved_tensors[:7]
    found = ctx.saved_tensors[7:]
    queries, keys, negatives, *_rest = ctx.needs_input_grad
    want_scale = ctx.needs_input_grad[6]
    needs = [queries or want_scale, keys, negatives]
    dq, dk, dn, dfactor = bwd(
        grad, grad_key if ctx.columns else None, *rows_and_ids, *found, scale, ctx.scale_factor,
        ctx.within, ctx.normalize, needs,
    )  # fmt: skip
    dscale = (dfactor * ctx.scale_factor).to(scale.dtype) if want_scale else None
    grads = (dq if queries else None, dk if keys else None, dn if negatives else None)
    return *grads, None, None, None, dscale, *[None] * 5


def _setup_single(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    queries, keys, _, targets, _, _, scale, ctx.scale_factor, _, ctx.normalize, _ = inputs
    loss, lse, hit, dqueries, slope = output
    ctx.mark_non_differentiable(lse, hit, dqueries, slope)
    ctx.save_for_backward(queries, keys, targets, loss, dqueries, slope, scale)


def _backward_single(bwd: Any, ctx: Any, grad: Tensor, *_: Tensor) -> Any:
    *saved, scale = ctx.saved_tensors
    needs = [ctx.needs_input_grad[n] for n in (0, 1, 6)]
    dq, dk, dfactor = bwd(grad, *saved, scale, ctx.scale_factor, ctx.normalize, needs)
    dscale = (dfactor * ctx.scale_factor).to(scale.dtype) if needs[2] else None
    grads = (dq if needs[0] else None, dk if needs[1] else None)
    return *grads, None, None, None, None, dscale, *[None] * 4


_FORWARD = (
    f"({_ROWS}, {_IDS}, {_SCALE}, bool within, bool columns, bool normalize, bool stats) ->"
    " (Tensor loss, Tensor lse, Tensor key_loss, Tensor key_lse, Tensor hit, Tensor key_hit%s)"
)
_BACKWARD = (
    f"(Tensor grad_loss, Tensor? grad_key_loss, {_ROWS}, {_IDS}, Tensor loss, Tensor lse,"
    f" Tensor key_loss, Tensor key_lse, %s{_SCALE}, bool within, bool normalize, bool[3] needs) ->"
    " (Tensor dqueries, Tensor dkeys, Tensor dnegatives, Tensor dscale)"
)

define(
    "info_nce_fwd",
    _FORWARD % "",
    _reference.info_nce_fwd,
    fake=_fake_fwd,
    triton="info_nce.info_nce_fwd",
    cuda=True,
)
define(
    "info_nce_bwd",
    _BACKWARD % "",
    _reference.info_nce_bwd,
    fake=_fake_bwd,
    triton="info_nce.info_nce_bwd",
    cuda=True,
)
define(
    "info_nce_single",
    f"({_ROWS}, {_IDS}, {_SCALE}, bool within, bool normalize, bool stats) ->"
    " (Tensor loss, Tensor lse, Tensor hit, Tensor dqueries, Tensor slope)",
    _reference.info_nce_single,
    fake=_fake_single,
    triton="info_nce.info_nce_single",
    cuda=True,
)
define(
    "info_nce_single_bwd",
    "(Tensor grad_loss, Tensor queries, Tensor keys, Tensor? targets, Tensor loss, Tensor dqueries,"
    f" Tensor slope, {_SCALE}, bool normalize, bool[3] needs) ->"
    " (Tensor dqueries, Tensor dkeys, Tensor dscale)",
    _reference.info_nce_single_bwd,
    fake=_fake_single_bwd,
)
register_autograd("info_nce_fwd", "info_nce_bwd", _backward, _setup)
register_autograd("info_nce_single", "info_nce_single_bwd", _backward_single, _setup_single)
