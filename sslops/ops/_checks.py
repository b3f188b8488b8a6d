"""Argument checks shared by the public functions: `<op>: <rule>, got <what came>`."""

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_floating(op: str, name: str, tensor: Tensor) -> None:
    """Raise TypeError unless `tensor` is a tensor of a floating dtype that the ops accept."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in FLOATING:
        raise TypeError(
            f"{op}: {name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}"
        )


def check_reduction(op: str, reduction: str) -> None:
    """Raise ValueError unless `reduction` is one that the losses know."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{op}: reduction must be none, mean or sum, got {reduction!r}")


def inverse_temperature(
    op: str, temperature: float | Tensor, z: Tensor
) -> tuple[Tensor | None, float]:
    """(scale, factor) whose product is 1 / temperature; a tensor is never read on the host."""
    if isinstance(temperature, Tensor):
        check_floating(op, "temperature", temperature)
        if temperature.numel() != 1:
            raise ValueError(
                f"{op}: temperature must have one element, got shape {tuple(temperature.shape)}"
            )
        if temperature.device != z.device:
            raise ValueError(
                f"{op}: temperature must be on the device of the embeddings, got"
                f" {temperature.device} and {z.device}"
            )
        return temperature.reshape(()).to(
            torch.promote_types(z.dtype, torch.float32)
        ).reciprocal(), 1.0
    if not temperature > 0 or temperature == float("inf"):
        raise ValueError(f"{op}: temperature must be positive and finite, got {temperature}")
    return None, 1.0 / temperature
