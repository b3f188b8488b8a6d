"""What an encoder may declare beside `dim`, for those who train it without knowing its class.

All of it is optional:

- `feature_maps(x)`, `stage_modules()`: the maps of its stages, and the modules that end them.
- `set_grad_checkpointing(enable)`: it checkpoints its activations by itself.
- `checkpoint_blocks()`: modules whose activations may be computed again, one by one.
- `called_parts()`: networks in it that methods call beside the encoder.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["called_parts", "checkpoint_blocks", "set_checkpointing"]


def set_checkpointing(encoder: nn.Module) -> Callable[[bool], Any] | None:
    """The encoder's own switch of gradient checkpointing, None where it has none."""
    own = getattr(encoder, "set_grad_checkpointing", None)
    return own if callable(own) else None


def checkpoint_blocks(encoder: nn.Module) -> list[nn.Module]:
    """What is checkpointed, one by one: what the encoder declares.

    Of one that declares nothing the members of its containers, or a container of single layers.
    """
    declared: Any = getattr(encoder, "checkpoint_blocks", None)
    if callable(declared):
        return list(declared())
    blocks: list[nn.Module] = []
    for child in encoder.children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            made_of_layers = [each for each in child if any(True for _ in each.children())]
            if made_of_layers:
                blocks += made_of_layers
            elif isinstance(child, nn.Sequential) and len(child):
                blocks.append(child)
    return blocks


def called_parts(encoder: nn.Module) -> list[nn.Module]:
    """Networks in the encoder that methods call by themselves; none if it declares none."""
    declared: Any = getattr(encoder, "called_parts", None)
    return list(declared()) if callable(declared) else []
