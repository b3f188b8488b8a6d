"""SimCLR: two views of an image should be nearer to each other than to all other images.

Chen et al. 2020, arXiv:2002.05709, algorithm 1:

    for a batch of B images
        draw two augmentations t, t' of each                      views
        h = f(t(x)): the representation that is kept              encoder
        z = g(h): where the loss is taken, thrown away later      projector
        each view must pick its partner among 2B - 1 others       NT-Xent
"""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from sslops import Gather, NTXentLoss, chance
from sslops.training.augment import make_views
from sslops.training.config import TrainConfig, make_config
from sslops.training.config.checks import at_least, positive
from sslops.training.methods.base import Batch, ContrastiveMethod, DataShape, find_views
from sslops.training.models import Projector, build_encoder

__all__ = ["SimCLR", "SimCLRConfig", "simclr_config"]


@dataclass(frozen=True)
class SimCLRConfig(TrainConfig):
    """SimCLR's own knobs."""

    contrasts: ClassVar[str] = "simclr"

    temperature: float = 0.2
    num_views: int = 2
    proj_hidden: int = 256  # width of the projector
    proj_dim: int = 128  # of z
    proj_layers: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 2, "num_views")
        at_least(self, 1, "proj_hidden", "proj_dim", "proj_layers")
        positive(self, "temperature")


# What SimCLR's recipe decides in the control; the rest is the run's.
_OWN = (
    "views optimizer lr lr_scaling warmup_epochs schedule weight_decay momentum trust clip"
    " temperature num_views proj_hidden proj_dim proj_layers"
).split()


def simclr_config(config: TrainConfig) -> SimCLRConfig:
    """The settings of SimCLR as a control of a run on images: its recipe, the run's budget."""
    own = make_config(SimCLRConfig, "simclr", {"data": config.data, "recipe": config.recipe})
    changed = {name: getattr(own, name) for name in _OWN}
    # Of both classes, so that the encoder's options are those that the method gives it.
    both: Any = dataclass(frozen=True)(type("Control", (SimCLRConfig, type(config)), {}))
    control: SimCLRConfig = both(**{**asdict(own), **asdict(config), **changed, "knn_every": 0})
    return control


class SimCLR(ContrastiveMethod):
    """Encoder f, projector g and the loss between views.

    Args:
        config: hyper-parameters.
        shape: of the data set.
    """

    def __init__(self, config: SimCLRConfig, shape: DataShape) -> None:
        super().__init__()
        self.recipe = find_views("simclr", config.views)
        self.num_views = config.num_views
        self.encoder = build_encoder(
            config.arch, shape.channels, shape.image_size, **config.encoder_options()
        )
        # BN in every layer, the last included: without it small batches learn less.
        self.projector = Projector(
            cast(int, self.encoder.dim), config.proj_hidden, config.proj_dim, config.proj_layers
        )
        self.loss = NTXentLoss(config.temperature, return_stats=True, group=Gather())
        self.chance = chance("nt_xent", batch=config.batch, num_views=config.num_views)

    def views(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """[V, B, C, H, W] float32 in [0, 1]."""
        return make_views(batch.images, self.recipe, self.num_views, generator)

    def embed(self, views: Tensor) -> tuple[Tensor]:
        """z, [B, V, D]."""
        h = self.encoder(views.flatten(0, 1))  # [V B, dim]
        return (self.projector(h).unflatten(0, views.shape[:2]).transpose(0, 1),)

    def contrast(self, embeddings: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """One loss over all views of all processes, each giving its own rows."""
        z = embeddings[0].transpose(0, 1)  # [V, B, D]
        loss, stats = self.loss(z)
        return {
            "loss": loss,
            "accuracy": stats.hit.float().mean(),
            "features": z.detach().flatten(0, 1),
        }

    def pictures(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Images above their views: [1 + V, B, C, H, W]."""
        original = batch.images.float().div(255)[None]
        return {"views": torch.cat([original, self.views(batch, generator)])}
