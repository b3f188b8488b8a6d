"""What several of the packages need."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def inverse(scale: float | Tensor) -> float | Tensor:
    """The temperature of a multiplier of similarities; a tensor keeps its gradient."""
    if isinstance(scale, Tensor):
        # in half precision a reciprocal of a reciprocal would lose digits
        return scale.to(torch.promote_types(scale.dtype, torch.float32)).reciprocal()
    return 1.0 / scale


def as_ids(*labels: Tensor) -> list[Tensor]:
    """The labels as int64 from 0 on: the ops let negative ids match nothing."""
    low = torch.stack([each.min() for each in labels]).min()
    return [each.to(torch.int64) - low.to(torch.int64) for each in labels]


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
