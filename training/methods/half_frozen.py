"""Learning from labels on frozen first blocks, an arm of the evaluation that RotNet introduced.

Gidaris et al. 2018, arXiv:1803.07728, section 4.1.3.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from sslops.training.config import TrainConfig
from sslops.training.data import DataShape
from sslops.training.methods.supervised import Supervised

__all__ = ["HalfFrozen", "freeze_first"]


class HalfFrozen(Supervised):
    """An encoder whose first blocks stay as they are, to the bit, and a linear layer.

    Args:
        config: hyper-parameters.
        shape: of the data set.
        encoder: to train.
        frozen: its modules that stay in evaluation mode; see `freeze_first`.
    """

    def __init__(
        self, config: TrainConfig, shape: DataShape, encoder: nn.Module, frozen: Sequence[nn.Module]
    ) -> None:
        super().__init__(config, shape, encoder)
        self._frozen = tuple(frozen)
        self.train()

    def train(self, mode: bool = True) -> "HalfFrozen":
        """As of any module, but the batch norm of frozen blocks never counts."""
        super().train(mode)
        for module in self._frozen:
            module.training = False
        return self


def freeze_first(encoder: nn.Module, blocks: int, image: Tensor) -> list[nn.Module]:
    """Freeze all that the output of block number `blocks` is computed from (a stem, too).

    Args:
        encoder: with `stage_modules` and `feature_maps`.
        blocks: 1 to all.
        image: [1, C, H, W] that it can encode.

    Returns:
        The frozen modules, to be held in evaluation mode.

    Raises:
        ValueError: the encoder has no such block.
    """
    known = cast(Any, encoder).stage_modules()
    if not 1 <= blocks <= len(known):
        raise ValueError(f"rotnet: freeze must be in 1..{len(known)} blocks, got {blocks}")
    training = {module: module.training for module in encoder.modules()}
    encoder.eval()
    params = [each for each in encoder.parameters() if each.requires_grad]
    output = cast(Any, encoder).feature_maps(image)[blocks - 1]
    grads = torch.autograd.grad(output.sum(), params, allow_unused=True)
    for param, grad in zip(params, grads, strict=True):
        param.requires_grad_(grad is None)
    frozen = {module: None for block in known[:blocks] for module in block.modules()}
    for module, was in training.items():
        module.training = was
        own = list(module.parameters(recurse=False))
        if own and not any(param.requires_grad for param in own):
            frozen[module] = None
    return list(frozen)
