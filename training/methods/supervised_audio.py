"""The supervised control of sound: CPC's encoder and windows, but with labels."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslops.training.methods.base import Batch, DataShape, Method
from sslops.training.methods.cpc_audio import CPCAudioConfig
from sslops.training.models import AudioEncoder

__all__ = ["SupervisedAudio"]


class SupervisedAudio(Method):
    """Encoder and one linear layer on its pooled features.

    Args:
        config: hyper-parameters.
        shape: of the data set.
    """

    def __init__(self, config: CPCAudioConfig, shape: DataShape) -> None:
        super().__init__()
        if shape.classes < 2:
            raise ValueError(
                f"supervised: needs labels of 2 classes, got {shape.classes or 'none'}"
            )
        self.encoder: AudioEncoder = AudioEncoder(shape.rate, **config.encoder_options())
        self.samples = round(config.window * shape.rate)
        self.classifier = nn.Linear(self.encoder.dim, shape.classes)
        self.chance = math.log(shape.classes)

    def views(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """A window of each recording, [B, samples], and the labels."""
        windows = batch.images.windows(self.samples, generator)
        return windows.to(self.classifier.weight.device, non_blocking=True), batch.labels

    def step(self, views: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy."""
        windows, labels = views
        logits = self.classifier(self.encoder(windows)).float()  # [B, classes]
        accuracy = (logits.argmax(1) == labels).float().mean()
        return {"loss": F.cross_entropy(logits, labels), "accuracy": accuracy}
