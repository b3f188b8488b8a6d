"""What the loop, the evaluation and the report know about a method: this and nothing else."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Batch", "ContrastiveMethod", "DataShape", "Method"]


class Batch(NamedTuple):
    """Images [B, C, H, W] uint8 and labels [B] int64 (None if there are none), on the device."""

    images: Tensor
    labels: Tensor | None


class DataShape(NamedTuple):
    """What a network has to know about a data set."""

    channels: int
    image_size: int
    classes: int


class Method(nn.Module, ABC):
    """A training objective with its networks.

    Attributes:
        encoder: what is evaluated and exported.
        chance: the loss of a model that knows nothing.
        name: in the registry.
        shape: of the data it was built for.
        local_statistics: keep batch norm to each process's rows.
    """

    encoder: nn.Module
    chance: float
    name: str = ""
    shape: DataShape | None = None
    local_statistics: bool = False

    @abstractmethod
    def views(self, batch: Batch, generator: torch.Generator) -> Any:
        """What `step` needs, drawn from the batch with `generator` alone."""

    @abstractmethod
    def step(self, views: Any) -> dict[str, Tensor]:
        """The loss and what to log, as scalars.

        Returns:
            "loss" with gradient; optionally "accuracy" of the pretext task; "features" [M, D],
            detached, whose spread the loop watches for collapse; any other 0-d tensor is logged
            under its name.
        """

    def forward(self, views: Any) -> dict[str, Tensor]:
        """`step`, under the name that DistributedDataParallel calls."""
        return self.step(views)

    def before_step(self, step: int, steps: int) -> None:
        """What precedes the forward pass of update `step` of `steps` (target networks)."""

    def after_step(self, step: int) -> None:
        """What follows the optimiser's update number `step` (queues)."""

    def pictures(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Grids of images [rows, columns, C, H, W] in [0, 1] for the report, by name."""
        return {}


class ContrastiveMethod(Method):
    """A method whose loss compares embeddings: what can be encoded in parts and compared at once.

    `step` is `contrast(embed(views))`; gradient caching calls the two by themselves.
    """

    @abstractmethod
    def embed(self, views: Any) -> tuple[Tensor, ...]:
        """Embeddings of the views, each [B, ...]; those without gradient are detached."""

    @abstractmethod
    def contrast(self, embeddings: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """What `step` returns, from the embeddings of the process's whole batch."""

    def parts(self, views: Any, size: int) -> list[Any]:
        """`views` cut into parts of `size` images: by default tensors [V, B, ...], or a tuple."""
        if isinstance(views, Tensor):
            return list(torch.split(views, size, 1))
        return list(zip(*(self.parts(view, size) for view in views), strict=True))

    def step(self, views: Any) -> dict[str, Tensor]:
        """The loss of the whole batch."""
        return self.contrast(self.embed(views))
