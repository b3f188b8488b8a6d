"""InfoNCE's op: schema, fake kernels, autograd, and the choice of its plan."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sslops._info_nce_args import (
    InfoNCEArgs,
    InfoNCESaved,
    Plan,
    result_shapes,
    split_backward,
)
from sslops._library import define, op, register_autograd, runs_compiled
from sslops.reference import info_nce as _reference

# Similarities may be kept where they are no more numbers than these times those of both sides.
ROOM = 2

_TYPES = {
    Tensor: "Tensor", Tensor | None: "Tensor?", float: "float", bool: "bool", Plan: "str"
}  # fmt: skip


def _schema(fields: Any) -> str:
    return ", ".join(f"{_TYPES[kind]} {name}" for name, kind in fields.__annotations__.items())


def _fake_fwd(*args: Any) -> Any:
    a = InfoNCEArgs(*args)
    wide = torch.promote_types(a.queries.dtype, torch.float32)
    *saved, hit, key_hit = result_shapes(a)
    return (
        *(a.queries.new_empty(shape, dtype=wide) for shape in saved),
        a.queries.new_empty(hit, dtype=torch.bool),
        a.queries.new_empty(key_hit, dtype=torch.bool),
    )


def _fake_bwd(grad_loss: Tensor, grad_key_loss: Tensor | None, *rest: Any) -> Any:
    a, saved, needs = split_backward(rest)

    def like(tensor: Tensor, need: bool) -> Tensor:
        return tensor.new_empty(tensor.shape if need else (0,))

    frozen = a.plan == "frozen_keys"
    third = saved.lse if a.negatives is None else a.negatives  # whose dtype an empty result has
    return (
        like(a.queries, needs[0]),
        like(a.keys, needs[1]),
        like(third, needs[2] and a.negatives is not None and not frozen),
        saved.lse.new_empty((0,) if frozen and not needs[3] else ()),
    )


def forward_on_gpu(*args: Any) -> bool:
    """Whether the GPU kernels have a forward pass of this plan."""
    return InfoNCEArgs(*args).plan in ("recompute", "frozen_keys")


def backward_on_gpu(*args: Any) -> bool:
    """Whether the GPU kernels have a backward pass of this plan."""
    a, *_ = split_backward(args[2:])
    return a.plan == "recompute"


_ARGS, _SAVED = len(InfoNCEArgs._fields), len(InfoNCESaved._fields)
_TENSORS = InfoNCEArgs._fields.index("scale_factor")  # the arguments before it
_SCALE = InfoNCEArgs._fields.index("scale")


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    a = InfoNCEArgs(*inputs)
    _, lse, key_loss, *others = output
    ctx.mark_non_differentiable(lse, *others, *(() if a.symmetric else (key_loss,)))
    ctx.set_materialize_grads(False)  # zeros for each of them
    if a.plan == "frozen_keys":  # a queue may change before the backward pass, which needs none
        a = a._replace(negatives=None, query_ids=None, key_ids=None)
    ctx.save_for_backward(*a[:_TENSORS], *output[:_SAVED])
    ctx.options = inputs[_TENSORS:]


def _backward(bwd: Any, ctx: Any, *grads: Tensor | None) -> Any:
    tensors = ctx.saved_tensors
    a, saved = InfoNCEArgs(*tensors[:_TENSORS], *ctx.options), tensors[_TENSORS:]
    loss, _, key_loss, *_ = saved
    queries, keys, negatives, *_ = ctx.needs_input_grad
    want_scale = ctx.needs_input_grad[_SCALE]
    grad, _, grad_key, *_ = grads
    if grad is None:
        grad = torch.zeros_like(loss)
    if grad_key is None and a.symmetric:
        grad_key = torch.zeros_like(key_loss)
    needs = [queries or want_scale, keys, negatives, want_scale]
    dq, dk, dn, dscale = bwd(grad, grad_key, *a, *saved, needs)
    of_scale = None
    if want_scale and a.scale is not None:
        of_scale = (dscale * a.scale_factor).to(a.scale.dtype)
    found = (dq if queries else None, dk if keys else None, dn if negatives else None)
    return *found, *[None] * (_SCALE - 3), of_scale, *[None] * (_ARGS - _SCALE - 1)


define(
    "info_nce_fwd",
    f"({_schema(InfoNCEArgs)}) -> ({_schema(InfoNCESaved)}, Tensor hit, Tensor key_hit)",
    _reference.info_nce_fwd,
    fake=_fake_fwd,
    triton="info_nce.info_nce_fwd",
    cuda=True,
    on_gpu=forward_on_gpu,
)
define(
    "info_nce_bwd",
    f"(Tensor grad_loss, Tensor? grad_key_loss, {_schema(InfoNCEArgs)}, {_schema(InfoNCESaved)},"
    " bool[4] needs) -> (Tensor grad_queries, Tensor grad_keys, Tensor grad_negatives,"
    " Tensor grad_scale)",
    _reference.info_nce_bwd,
    fake=_fake_bwd,
    triton="info_nce.info_nce_bwd",
    cuda=True,
    on_gpu=backward_on_gpu,
)
register_autograd("info_nce_fwd", "info_nce_bwd", _backward, _setup)


def choose_plan(a: InfoNCEArgs, *, reduced: bool) -> Plan:
    """How the gradient of the losses of `a` is had; the one place that decides.

    What is saved for the gradient, similarities or the gradient itself, saves time on the compiled
    CPU kernels alone. `frozen_keys` is no such choice: a queue may change before `backward`.
    """
    leaves = (a.queries, a.keys, a.candidates, a.scale)
    if not torch.is_grad_enabled() or not any(x is not None and x.requires_grad for x in leaves):
        return "recompute"
    trained = a.candidates.requires_grad
    if a.queries.requires_grad and not trained and not a.symmetric:
        return "frozen_keys"
    if not runs_compiled(a.queries):
        return "recompute"
    (M, D), N = a.queries.shape, a.candidates.shape[0]
    fits = M * N <= ROOM * (M + N) * D
    if trained and reduced and (fits or not a.symmetric):
        return "grad_in_forward"
    return "save_logits" if fits and not a.same_id_only else "recompute"


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


def info_nce_rows(a: InfoNCEArgs, *, reduced: bool = False) -> tuple[Tensor, InfoNCEStats]:
    """The loss of each row from checked arguments, by the cheapest plan that can give it.

    `reduced`: the rows will most likely be summed in proportion to `a.row_weights`. It decides
    what the gradient costs on the CPU, never what it is.
    """
    plan, w = choose_plan(a, reduced=reduced), a.row_weights
    w = None if w is None or plan != "grad_in_forward" else w.detach()
    if plan != a.plan or w is not a.row_weights:
        a = a._replace(plan=plan, row_weights=w)
    loss, lse, key_loss, key_lse, *_, hit, key_hit = op("info_nce_fwd", a.queries)(*a)
    if not a.symmetric:
        return loss, InfoNCEStats(loss.detach(), lse, hit, key_loss, key_lse, key_hit)
    stats = InfoNCEStats(loss.detach(), lse, hit, key_loss.detach(), key_lse, key_hit)
    return 0.5 * (loss + key_loss), stats
