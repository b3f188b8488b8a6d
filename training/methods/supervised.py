"""The supervised control: the same encoder, views and loop, but with labels."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslops.training.augment import make_views
from sslops.training.config import TrainConfig
from sslops.training.methods.base import Batch, DataShape, Method, find_views
from sslops.training.models import build_encoder

__all__ = ["Supervised", "SupervisedConfig", "supervised_config"]


@dataclass(frozen=True)
class SupervisedConfig(TrainConfig):
    """No knobs of its own."""

    uses_labels: ClassVar[bool] = True


class Supervised(Method):
    """Encoder and one linear layer.

    Args:
        config: hyper-parameters.
        shape: of the data set.
        encoder: instead of a fresh one of `config.arch`.
    """

    mean_loss: ClassVar[bool] = True

    def __init__(
        self, config: TrainConfig, shape: DataShape, encoder: nn.Module | None = None
    ) -> None:
        super().__init__()
        if shape.classes < 2:
            raise ValueError(
                f"supervised: needs labels of 2 classes, got {shape.classes or 'none'}"
            )
        self.recipe = find_views("supervised", config.views)
        if encoder is None:
            options = config.encoder_options()
            encoder = build_encoder(config.arch, shape.channels, shape.image_size, **options)
        self.encoder = encoder
        self.classifier = nn.Linear(cast(int, self.encoder.dim), shape.classes)
        self.chance = math.log(shape.classes)

    def views(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """One view of each image, [B, C, H, W], and the labels."""
        return make_views(batch.images, self.recipe, 1, generator)[0], batch.labels

    def parts(
        self, views: tuple[Tensor, Tensor | None], size: int
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Images [B, C, H, W] and labels [B], `size` at a time."""
        images, labels = views
        assert labels is not None
        return list(zip(torch.split(images, size), torch.split(labels, size), strict=True))

    def step(self, views: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy."""
        images, labels = views
        logits = self.classifier(self.encoder(images)).float()  # [B, classes]
        accuracy = (logits.argmax(1) == labels).float().mean()
        return {"loss": F.cross_entropy(logits, labels), "accuracy": accuracy}


def supervised_config(config: TrainConfig) -> TrainConfig:
    """The control's settings: those of the run, for `supervised_epochs`, and no kNN."""
    epochs = config.supervised_epochs or max(1, config.epochs // 4)
    steps = None if config.steps is None else max(1, config.steps // 4)
    if config.supervised_epochs is not None:
        steps = None
    warmup = min(config.warmup_epochs, epochs / 5)
    return replace(config, epochs=epochs, steps=steps, warmup_epochs=warmup, knn_every=0)
