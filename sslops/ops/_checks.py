"""Argument checks shared by the public functions: `<op>: <rule>, got <what came>`."""

from numbers import Integral, Real

import torch
from torch import Tensor, nn

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
OR_TENSOR = " or a tensor of one element"


def check_floating(op: str, name: str, tensor: Tensor) -> None:
    """Raise TypeError unless `tensor` is a tensor of a floating dtype that the ops accept."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {kind_of(name, tensor)}")
    if tensor.dtype not in FLOATING:
        raise TypeError(
            f"{op}: {name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}"
        )


def kind_of(name: str, value: object) -> str:
    """The type of what is no tensor, and what to write in its place where that is known."""
    kind = type(value).__name__
    if type(value).__module__ == "numpy":
        return f"numpy's {kind}; write torch.as_tensor({name})"
    if isinstance(value, nn.Module):
        keys = isinstance(getattr(value, "keys", None), Tensor)  # a KeyQueue
        return f"{kind}; write {f'{name}.keys' if keys else 'what it returns'}"
    if isinstance(value, (list, tuple)):
        tensors = len(value) > 0 and all(isinstance(each, Tensor) for each in value)
        return f"{kind}; write torch.{'stack' if tensors else 'tensor'}({name})"
    return kind


def check_number(op: str, name: str, value: object, also: str = "") -> None:
    """Raise TypeError unless `value` is a number of Python or numpy; `also` says what else goes."""
    if not isinstance(value, (int, float)) and not isinstance(value, Real):
        raise TypeError(f"{op}: {name} must be a number{also}, got {_shown(value)}")


def check_whole(op: str, name: str, value: object) -> None:
    """Raise TypeError unless `value` is a whole number of Python or numpy."""
    if not isinstance(value, int) and not isinstance(value, Integral):
        raise TypeError(f"{op}: {name} must be a whole number, got {_shown(value)}")


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, (str, float, type(None))) else type(value).__name__


def check_reduction(op: str, reduction: str) -> None:
    """Raise ValueError unless `reduction` is one that the losses know."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{op}: reduction must be none, mean or sum, got {reduction!r}")


def check_rows(op: str, least: int = 1, **tensors: Tensor) -> None:
    """Raise unless all are [rows, D], rows >= least, D >= 1, floating, one D, on one device."""
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        check_floating(op, name, tensor)
        if tensor.ndim != 2 or len(tensor) < least or tensor.shape[1] == 0:
            raise ValueError(
                f"{op}: {name} must be [rows, features] with at least one of each, got shape"
                f" {tuple(tensor.shape)}"
            )
        if tensor.shape[1] != first.shape[1]:
            raise ValueError(
                f"{op}: {name} must have the {first.shape[1]} features of {first_name}, got shape"
                f" {tuple(tensor.shape)}"
            )
        check_device(op, name, tensor, first)


def check_device(op: str, name: str, tensor: Tensor, like: Tensor) -> None:
    """Raise ValueError unless the two tensors are on one device."""
    if tensor.device != like.device:
        raise ValueError(
            f"{op}: {name} must be on the device of the embeddings, got {tensor.device} and"
            f" {like.device}"
        )


def autocasts(tensor: Tensor) -> bool:
    """Whether autocast is on for the device of `tensor`."""
    kind = tensor.device.type
    return kind != "meta" and torch.is_autocast_enabled(kind)


def common_dtype(op: str, **tensors: Tensor) -> torch.dtype:
    """The one dtype in which floating tensors on one device are compared.

    Under autocast that of a matrix product: autocast's, or float64 where one of them has it, which
    autocast never narrows. Else their own.

    Raises:
        TypeError: they differ, without autocast.
    """
    kinds = {tensor.dtype for tensor in tensors.values()}
    first = next(iter(tensors.values()))
    if torch.float64 not in kinds and autocasts(first):
        return torch.get_autocast_dtype(first.device.type)
    if len(kinds) > 1 and not autocasts(first):
        each = ", ".join(f"{name} {tensor.dtype}" for name, tensor in tensors.items())
        raise TypeError(f"{op}: {' and '.join(tensors)} must share their dtype, got {each}")
    return torch.float64 if torch.float64 in kinds else first.dtype


def as_rows(tensor: Tensor, dtype: torch.dtype, normalize: bool) -> Tensor:
    """`tensor` [..., D] in the dtype of `common_dtype`.

    float16 has no number above 65504 and few below 6e-5, so rows whose length does not count get
    a largest element in [1, 2) first, by a power of two: no digit changes, and gradients, which are
    float16 too, are no larger than those of unit rows.
    """
    if dtype is torch.float16 and tensor.dtype is not dtype and normalize:
        wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        largest = wide.detach().abs().amax(dim=-1, keepdim=True)
        # a row below the least norm of the ops stays one; 2**127 has no normal reciprocal
        exponent = torch.where(largest < 1e-12, 1.0, largest).frexp().exponent.clamp_max(126)
        tensor = wide * torch.ldexp(torch.ones_like(largest), 1 - exponent)
    return tensor.to(dtype)


def integer_vector(op: str, name: str, tensor: Tensor | None, length: int, like: Tensor) -> Tensor:
    """`tensor` [length] of an integer dtype, on the device of `like`, as int64."""
    if not isinstance(tensor, Tensor) or tensor.dtype not in INTEGER:
        kind = tensor.dtype if isinstance(tensor, Tensor) else kind_of(name, tensor)
        raise TypeError(f"{op}: {name} must be an integer tensor, got {kind}")
    if tuple(tensor.shape) != (length,):
        raise ValueError(f"{op}: {name} must be [{length}], got shape {tuple(tensor.shape)}")
    check_device(op, name, tensor, like)
    return tensor.to(torch.int64)


def row_weights(op: str, weights: Tensor, M: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """`weights` [M] in float32 or float64: sums of half-precision weights would be rounded.

    `like` has the device, `dtype` is that of the rows; so for the three below.
    """
    check_floating(op, "weights", weights)
    if tuple(weights.shape) != (M,):
        raise ValueError(f"{op}: weights must be [{M}], got shape {tuple(weights.shape)}")
    check_device(op, "weights", weights, like)
    return weights.to(torch.promote_types(dtype, torch.float32))


def reduce_rows(rows: Tensor, weights: Tensor | None, reduction: str) -> Tensor:
    """Mean (over the sum of the weights, if given), sum, or the rows themselves."""
    loss = rows if weights is None else rows * weights
    if reduction == "mean":
        return loss.mean() if weights is None else loss.sum() / weights.sum()
    return loss.sum() if reduction == "sum" else loss


def scalar_tensor(op: str, name: str, value: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """`value` of one element on the device of `like`, 0-d in the dtype that losses have."""
    check_floating(op, name, value)
    if value.numel() != 1:
        raise ValueError(f"{op}: {name} must have one element, got shape {tuple(value.shape)}")
    check_device(op, name, value, like)
    return value.reshape(()).to(torch.promote_types(dtype, torch.float32))


def inverse_temperature(
    op: str, temperature: float | Tensor, z: Tensor, dtype: torch.dtype
) -> tuple[Tensor | None, float]:
    """(scale, factor) whose product is 1 / temperature; a tensor is never read on the host."""
    if isinstance(temperature, Tensor):
        return scalar_tensor(op, "temperature", temperature, z, dtype).reciprocal(), 1.0
    check_number(op, "temperature", temperature, OR_TENSOR)
    if not temperature > 0 or temperature == float("inf"):
        raise ValueError(f"{op}: temperature must be positive and finite, got {temperature}")
    return None, 1.0 / temperature


def plain_scale(
    op: str, name: str, value: float | Tensor, z: Tensor, dtype: torch.dtype
) -> tuple[Tensor | None, float]:
    """(scale, factor) whose product is `value`, a multiplier of similarities."""
    if isinstance(value, Tensor):
        return scalar_tensor(op, name, value, z, dtype), 1.0
    check_number(op, name, value, OR_TENSOR)
    if not value > 0 or value == float("inf"):
        raise ValueError(f"{op}: {name} must be positive and finite, got {value}")
    return None, float(value)
