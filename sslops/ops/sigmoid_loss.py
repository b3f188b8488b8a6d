"""Pairwise sigmoid loss: schemas, fake kernels, autograd, public function."""

from typing import Any, Literal

import torch
from torch import Tensor

from sslops._library import define, op, register_autograd
from sslops.ops._checks import (
    OR_TENSOR,
    as_rows,
    check_number,
    check_rows,
    common_dtype,
    integer_vector,
    plain_scale,
    scalar_tensor,
)
from sslops.ops._group import of_no_rows, shared_mean, shared_sum
from sslops.ops._group_sigmoid import others_texts
from sslops.parallel import Group, checked_by_all, team_of
from sslops.reference import sigmoid_loss as _reference

__all__ = ["sigmoid_loss"]


def _fake_fwd(queries: Tensor, keys: Tensor, *args: Any) -> Any:
    grads = args[-1]
    dtype = torch.promote_types(queries.dtype, torch.float32)
    shapes = ((), queries.shape, keys.shape, (), ())
    return tuple(
        queries.new_empty(shape if grads or n == 0 else (0,), dtype=dtype)
        for n, shape in enumerate(shapes)
    )


def _fake_bwd(grad_loss: Tensor, queries: Tensor, keys: Tensor, *found: Tensor) -> Any:
    scalars = found[2].new_empty(()), found[3].new_empty(())
    return queries.new_empty(queries.shape), keys.new_empty(keys.shape), *scalars


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    queries, keys, _, _, scale, ctx.scale_factor, bias, *_rest, ctx.grads = inputs
    _, *grads = output
    ctx.mark_non_differentiable(*grads)
    ctx.save_for_backward(queries, keys, *grads)
    ctx.scale_dtype = None if scale is None else scale.dtype
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(bwd: Any, ctx: Any, grad: Tensor, *_: Tensor) -> Any:
    dq, dk, dfactor, dbias = bwd(grad, *ctx.saved_tensors)
    dscale = None
    if ctx.scale_dtype is not None:
        dscale = (dfactor * ctx.scale_factor).to(ctx.scale_dtype)
    dbias = None if ctx.bias_dtype is None else dbias.to(ctx.bias_dtype)
    return dq, dk, None, None, dscale, None, dbias, None, None, None


define(
    "sigmoid_loss_fwd",
    "(Tensor queries, Tensor keys, Tensor? query_ids, Tensor? key_ids, Tensor? scale,"
    " float scale_factor, Tensor? bias, float bias_value, bool normalize, bool grads) ->"
    " (Tensor loss, Tensor dqueries, Tensor dkeys, Tensor dscale, Tensor dbias)",
    _reference.sigmoid_loss_fwd,
    fake=_fake_fwd,
    triton="sigmoid_loss.sigmoid_loss_fwd",
)
define(
    "sigmoid_loss_bwd",
    "(Tensor grad_loss, Tensor queries, Tensor keys, Tensor dqueries, Tensor dkeys, Tensor dscale,"
    " Tensor dbias) -> (Tensor dqueries, Tensor dkeys, Tensor dscale, Tensor dbias)",
    _reference.sigmoid_loss_bwd,
    fake=_fake_bwd,
)
register_autograd("sigmoid_loss_fwd", "sigmoid_loss_bwd", _backward, _setup)


def sigmoid_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor = 0.0,
    *,
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    normalize: bool = True,
    group: Group = None,
) -> Tensor:
    r"""Pairwise sigmoid loss of SigLIP, without ever storing the M x N logits.

    $$ L = \frac{1}{M} \sum_{ij} \log(1 + e^{-y_{ij} (\kappa \langle x_i, t_j\rangle + b)}),
       \qquad y_{ij} = 1 \text{ if } i = j \text{ else } -1 $$

    No normaliser joins the pairs, so loss and gradients come from a single pass over them.

    Args:
        image: [M, D] float16, bfloat16, float32 or float64, any strides. Under autocast they are
            cast as for a matrix product; all sums stay in float32.
        text: [N, D], same dtype, which under autocast may differ, as for `info_nce`; N >= M, row i
            belongs to image i, rows past M are negatives.
        logit_scale: kappa > 0, a number or a tensor of one element, which then gets a gradient.
            SigLIP learns its logarithm: pass `log_scale.exp()`.
        logit_bias: b, a number or a tensor of one element, which then gets a gradient.
        image_ids: [M] integers; together with `text_ids`. A negative pair of equal ids is left
            out (known duplicates). -1 never matches.
        text_ids: [N] integers.
        reduction: "mean", the sum over all pairs divided by M as in the paper, or "sum".
        normalize: False takes the rows as they are.
        group: whose texts are negatives as well, each rank giving its own rows:
            `sslops.Gather()`, `sslops.Ring()` or a process group. Ranks may have different numbers
            of rows, none too; docs/scale.md says what is returned and what it costs. Default: this
            process alone.

    Returns:
        float32 scalar (float64 for float64 inputs).

    Raises:
        TypeError: a tensor is not of a dtype listed above; image and text differ in dtype
            outside autocast.
        ValueError: wrong shape, more images than texts, tensors on different devices, one of the
            two ids without the other, scale not positive and finite, unknown reduction, ranks of
            `group` that differ in more than their rows.
        RuntimeError: when the gradient is itself differentiated.

    Source:
        Zhai et al. 2023, arXiv:2303.15343, algorithm 1.

    Example:
        >>> image, text = torch.randn(8, 16, requires_grad=True), torch.randn(8, 16)
        >>> log_scale, bias = torch.tensor(2.3).requires_grad_(), torch.tensor(-10.0)
        >>> sigmoid_loss(image, text, log_scale.exp(), bias).backward()
        >>> image.grad.shape, log_scale.grad.shape
        (torch.Size([8, 16]), torch.Size([]))
    """
    name = "sigmoid_loss"
    team = team_of(name, group)
    options = (logit_scale, logit_bias, image_ids, text_ids, reduction)

    def checked() -> _Checked:
        return _check(image, text, *options, 1 if team is None else 0)

    dtype, row_ids, column_ids, scale, factor, bias, value = checked_by_all(
        team, name, image, checked
    )
    image, text = (as_rows(each, dtype, normalize) for each in (image, text))
    args = (image, text, row_ids, column_ids, scale, factor, bias, value, normalize)
    M = len(image)
    if M:
        leaves = [each for each in (image, text, scale, bias) if each is not None]
        grads = torch.is_grad_enabled() and any(each.requires_grad for each in leaves)
        total: Tensor = op("sigmoid_loss_fwd", image)(*args, grads)[0]
    else:  # a rank of no images, whose texts others see
        total = of_no_rows(scale, image, text).sum()
    if team is None:
        return total / M if reduction == "mean" else total
    given = {"reduction": reduction, "use of ids": row_ids is not None}
    total = total + others_texts(team, *args, given)
    if reduction == "sum":
        return shared_sum(team, total)
    return shared_mean(team, total, total.new_full((), M))


_Checked = tuple[
    torch.dtype, Tensor | None, Tensor | None, Tensor | None, float, Tensor | None, float
]


def _check(
    image: Tensor,
    text: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    reduction: str,
    least: int,
) -> _Checked:
    """(dtype, image_ids, text_ids, scale, factor, bias, value of the bias)."""
    name = "sigmoid_loss"
    if reduction not in ("mean", "sum"):
        raise ValueError(f"{name}: reduction must be mean or sum, got {reduction!r}")
    check_rows(name, least, image=image, text=text)
    dtype = common_dtype(name, image=image, text=text)
    M, N = image.shape[0], text.shape[0]
    if M > N:
        raise ValueError(f"{name}: every image needs its text, got {M} images and {N} texts")
    scale, factor = plain_scale(name, "logit_scale", logit_scale, image, dtype)
    bias, value = None, 0.0
    if isinstance(logit_bias, Tensor):
        bias = scalar_tensor(name, "logit_bias", logit_bias, image, dtype)
    else:
        check_number(name, "logit_bias", logit_bias, OR_TENSOR)
        value = float(logit_bias)
    if (image_ids is None) != (text_ids is None):
        raise ValueError(f"{name}: image_ids and text_ids go together, got one without the other")
    if image_ids is not None:
        image_ids = integer_vector(name, "image_ids", image_ids, M, image)
        text_ids = integer_vector(name, "text_ids", text_ids, N, image)
    return dtype, image_ids, text_ids, scale, factor, bias, value
