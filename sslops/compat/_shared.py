"""What several of the packages need: above all, which inputs the kernels take.

A drop-in has a `fused(self, ...)` that returns NotImplemented where the kernels do not cover its
inputs or settings, before anything was changed. Then plain PyTorch runs with the package's
formula; in a class that `sslops.patch` made, the package's own code. `fused` reads of `self` only
what both classes have.
"""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from sslops.ops._checks import FLOATING, autocasts

# beyond these logits are infinite or all the same, where the kernels and eager PyTorch may part
_FACTORS = (1e-6, 1e6)


def rows_fit(*tensors: Any) -> bool:
    """Whether the kernels take these together: [rows, D] of one D, device and floating dtype."""
    first = tensors[0]
    if not all(isinstance(each, Tensor) and each.layout is torch.strided for each in tensors):
        return False
    if not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    ):
        return False  # the kernels have one derivative, and that backwards
    autocast = autocasts(first)
    return all(
        each.ndim == 2 and 0 not in each.shape and each.shape[1] == first.shape[1]
        and each.device == first.device and each.dtype in FLOATING
        and (each.dtype is first.dtype or autocast)
        for each in tensors
    )  # fmt: skip


def factor_fits(value: Any, rows: Tensor) -> bool:
    """Whether the kernels take a temperature or scale: one positive, ordinary number.

    The value of a tensor on a GPU is not read: there, one that is not positive gives NaN.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.dtype not in FLOATING or value.device != rows.device:
            return False
        if value.device.type != "cpu" or torch.compiler.is_compiling():
            return True
        value = value.item()
    return is_number(value) and _FACTORS[0] <= float(value) <= _FACTORS[1]


def bias_fits(value: Any, rows: Tensor) -> bool:
    """Whether the kernels take a bias of the logits: one number."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and value.dtype in FLOATING and value.device == rows.device
    return is_number(value) and math.isfinite(value)


def is_number(value: Any) -> bool:
    """Whether the ops take it for a number, of Python or numpy."""
    return isinstance(value, (int, float)) or isinstance(value, Real)


def check_alike(name: str, **rows: Tensor) -> None:
    """Refuse tensors that are not all [B, D], B > 0, of one floating dtype but under autocast."""
    first = next(iter(rows.values()))
    shapes = {key: tuple(each.shape) for key, each in rows.items()}
    if first.ndim != 2 or not len(first) or len(set(shapes.values())) > 1:
        raise ValueError(f"{name}: {' and '.join(rows)} must be [B, D], got shapes {shapes}")
    check_dtypes(name, **rows)


def check_dtypes(name: str, **rows: Tensor) -> None:
    """Refuse tensors that are not of one floating dtype, which autocast alone may cast."""
    dtypes = {key: each.dtype for key, each in rows.items()}
    first = next(iter(rows.values()))
    mixed = len(set(dtypes.values())) > 1 and not autocasts(first)
    if mixed or not all(each.is_floating_point() for each in rows.values()):
        raise TypeError(f"{name}: {' and '.join(rows)} must share a floating dtype, got {dtypes}")


def drop_in_of(loss: Any) -> str | None:
    """Name of the drop-in that the object is, or that `sslops.patch` put under its class.

    A subclass may compute something else, and is none; nor is what has been changed.
    """
    kind = type(loss)
    name = vars(kind).get("drop_in")
    if not isinstance(name, str):
        return None
    return None if has_own_steps(loss, kind.drop_in_steps) else name


def steps_of(kind: type) -> dict[str, Any]:
    """The methods and properties of a class and of its bases below nn.Module."""
    return {
        key: _step(kind, key)
        for each in kind.__mro__
        if each not in nn.Module.__mro__
        for key, value in vars(each).items()
        if key != "extra_repr" and not key.startswith("__")
        if callable(value) or isinstance(value, (staticmethod, classmethod, property))
    }


def has_own_steps(loss: nn.Module, steps: Mapping[str, Any]) -> bool:
    """Whether the object or its class, by whatever way, has others than `steps`."""
    kind, own = type(loss), loss.__dict__
    return any(key in own or _step(kind, key) is not step for key, step in steps.items())


def _step(kind: type, key: str) -> Any:
    found = getattr(kind, key, None)
    return getattr(found, "__func__", found)  # of a class method: each class binds it anew


def inverse(scale: float | Tensor) -> float | Tensor:
    """The temperature of a multiplier of similarities; a tensor keeps its gradient."""
    if isinstance(scale, Tensor):
        # in half precision a reciprocal of a reciprocal would lose digits
        return scale.to(torch.promote_types(scale.dtype, torch.float32)).reciprocal()
    return 1.0 / scale


def as_ids(*labels: Tensor) -> list[Tensor]:
    """The labels as int64 from 0 on, the same for the same: the ops let negative ids match nothing.

    Of any real dtype and range, hashes too; NaN is the same as nothing, each has an id of its own.
    Nothing is read on the host.
    """
    dtype = torch.int64
    for each in labels:
        dtype = torch.promote_types(dtype, each.dtype) if each.is_floating_point() else dtype
    together = torch.cat([each.to(dtype) for each in labels])
    ordered, places = together.sort()
    ranks = (ordered[1:] != ordered[:-1]).cumsum(0)
    ranks = torch.cat([ranks.new_zeros(min(len(ordered), 1)), ranks])
    ids = torch.empty_like(ranks).scatter_(0, places, ranks)
    return list(torch.split(ids, [len(each) for each in labels]))


def enqueue(rows: Tensor, memory: Tensor, start: int | Tensor) -> Tensor:
    """Write `rows` into the ring `memory` from `start` on and return the slots: [M].

    Of more rows than slots the newest stay. Nothing is read on the host.
    """
    size, count = len(memory), len(rows)
    slots = (start + torch.arange(count, device=memory.device)) % size
    memory[slots[-size:]] = rows[-size:].detach().to(memory.dtype)
    return slots


def settings_of(module: nn.Module, shown: str = "", **defaults: Any) -> str:
    """The attribute `shown`, and those that are not at their defaults, for `extra_repr`."""
    values = {name: getattr(module, name) for name in (shown, *defaults) if name}
    texts = {key: getattr(value, "__name__", value) for key, value in values.items()}
    return ", ".join(
        f"{key}={value if callable(values[key]) else repr(value)}"
        for key, value in texts.items()
        if key == shown or value != defaults[key]
    )


class LenientState(nn.Module):
    """Module whose state may be missing from a checkpoint: the peers do not save theirs."""

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        own = self.state_dict(prefix=prefix)
        full = {**own, **state_dict}
        super()._load_from_state_dict(full, prefix, *args, **kwargs)
