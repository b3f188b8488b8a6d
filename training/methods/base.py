"""What the loop, the evaluation and the report know about a method: this and nothing else."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sslops.training.augment import RECIPES, ViewRecipe
from sslops.training.config import closest
from sslops.training.data.dataset import Batch, DataShape
from sslops.training.methods.figures import Chart

__all__ = ["Batch", "ContrastiveMethod", "DataShape", "Method", "find_views"]


class Method(nn.Module, ABC):
    """A training objective with its networks.

    Attributes:
        encoder: what is evaluated and exported.
        chance: the loss of a model that knows nothing.
        name: in the registry.
        shape: of the data it was built for.
        hints: what to check when the diagnosis finds "chance", "collapse" or "shortcut", where the
            method knows better than the diagnosis itself.
        cautions: what is wrong with the settings, said before training.
        local_bn: batch norm must see the images of its own process alone (MoCo).
        mean_loss: the loss is a mean over images, so that gradients of micro-batches add up.
    """

    encoder: nn.Module
    chance: float
    name: str = ""
    shape: DataShape | None = None
    hints: ClassVar[Mapping[str, str]] = {}
    cautions: tuple[str, ...] = ()
    local_bn: ClassVar[bool] = False
    mean_loss: ClassVar[bool] = False

    def fit(self, images: Any) -> None:
        """What is taken from all training images before the first step (clusters of colours).

        Called in every process alike. What it finds belongs into buffers, which checkpoints hold.
        """

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

    def parts(self, views: Any, size: int) -> list[Any]:
        """`views` cut into parts of `size` images: by default tensors [V, B, ...], or a tuple."""
        if isinstance(views, Tensor):
            return list(torch.split(views, size, 1))
        return list(zip(*(self.parts(view, size) for view in views), strict=True))

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """Parts of the method that are optimised with other settings than the rest.

        Each is {"module": nn.Module, "lr_scale": 1.0, ...} with settings of the optimiser, such as
        "betas"; `lr_scale` multiplies the learning rate of the schedule. A parameter belongs to the
        first that holds it.
        """
        return [{"module": self}]

    def before_step(self, step: int, steps: int) -> None:
        """What precedes the forward pass of update `step` of `steps` (target networks)."""

    def after_step(self, step: int) -> None:
        """What follows the optimiser's update number `step` (queues)."""

    def pictures(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Grids of images [rows, columns, C, H, W] in [0, 1] for the report, by name.

        Drawn before training, from a dozen training images: what `step` will see.
        """
        return {}

    def figures(self, batch: Batch, generator: torch.Generator) -> dict[str, Chart | Tensor]:
        """Charts, and grids as of `pictures`, of the trained state for the report, by name.

        Called once when training is over, in eval mode, without gradient, by the main process
        alone: no collective calls. `batch` has some hundred training images.
        """
        return {}

    def measure(self, batches: Iterable[Batch], generator: torch.Generator) -> dict[str, float]:
        """Scores of the pretext task on test images, by name, for results.json.

        Called once when training is over, in eval mode, without gradient, by the main process
        alone. By default the means of what `step` returns.
        """
        totals: dict[str, list[float]] = defaultdict(list)
        for batch in batches:
            for name, value in self.step(self.views(batch, generator)).items():
                if value.ndim == 0:
                    totals[name].append(float(value))
        return {name: sum(values) / len(values) for name, values in totals.items()}

    def notes(self, record: Mapping[str, Any]) -> dict[str, str]:
        """What looks odd in a record of metrics.jsonl but is as it should be, by name.

        The loop says each name once in a run.
        """
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

    def forward(self, views: Any, *, whole: bool = True) -> Any:
        """`step`, or `embed` alone for a part of the batch."""
        return self.step(views) if whole else self.embed(views)

    def step(self, views: Any) -> dict[str, Tensor]:
        """The loss of the whole batch."""
        return self.contrast(self.embed(views))


def find_views(method: str, name: str) -> ViewRecipe:
    """The augmentation of that name.

    Args:
        method: whose name the error has.
        name: see `sslops list`.

    Raises:
        ValueError: there is none.
    """
    if name not in RECIPES:
        raise ValueError(f"{method}: no such views, got {name!r}{closest(name, RECIPES)}")
    return RECIPES[name]
