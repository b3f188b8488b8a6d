"""MoCo v3: a network predicts, from one view, what its slow copy makes of the other.

Chen et al. 2021, arXiv:2104.02057, algorithm 1:

    for a batch of B images
        x1, x2 = two augmentations, drawn from two recipes            views
        q1, q2 = predictor(projector(encoder(x)))                     encoder, projector, predictor
        k1, k2 = the same without predictor, no gradient              keys, a momentum copy
        loss = ctr(q1, k2) + ctr(q2, k1)                              contrast
        copy <- m copy + (1 - m) network, m from 0.99 to 1            before_step

    ctr(q, k) = 2 tau InfoNCE: every query picks its key among those of all B images. No queue.
"""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslops import MomentumEncoder, chance, cosine_momentum, info_nce
from sslops.distributed import all_gather, rank, world_size
from sslops.training.augment import make_views
from sslops.training.config import TrainConfig
from sslops.training.config.checks import at_least, positive, within
from sslops.training.methods.base import Batch, ContrastiveMethod, DataShape, find_views
from sslops.training.methods.figures import Chart
from sslops.training.models import Projector, ViT, build_encoder

__all__ = ["MoCoV3", "MoCoV3Config"]

ATTENDED = 12  # images whose attention is drawn


@dataclass(frozen=True)
class MoCoV3Config(TrainConfig):
    """MoCo v3's own knobs."""

    contrasts: ClassVar[str] = "mocov3"

    second_views: str | None = None  # augmentation of the second view; that of the first if unset
    temperature: float = 0.2
    key_momentum: float = 0.99  # of the key encoder at the start; it ends at 1
    proj_hidden: int = 4096  # width of projector and predictor
    proj_dim: int = 256  # of queries and keys
    proj_layers: int | None = None  # of the projector: 3 for a vit, else 2, if unset
    pred_bn: bool | None = None  # BN behind the predictor: for a vit only, if unset
    freeze_patch: bool = True  # a vit's patch projection stays random, which keeps it stable

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "proj_hidden", "proj_dim", "proj_layers")
        positive(self, "temperature")
        within(self, 0, 1, "key_momentum")


class MoCoV3(ContrastiveMethod):
    """Encoder, projector and predictor, and the slow copy of the first two that gives the keys.

    Args:
        config: hyper-parameters.
        shape: of the data set.
    """

    def __init__(self, config: MoCoV3Config, shape: DataShape) -> None:
        super().__init__()
        names = (config.views, config.second_views or config.views)
        self.recipes = [find_views("mocov3", name) for name in names]
        if self.recipes[0].size != self.recipes[1].size:
            raise ValueError(f"mocov3: both views must be of one size, got {' and '.join(names)}")
        self.encoder = build_encoder(
            config.arch, shape.channels, shape.image_size, **config.encoder_options()
        )
        vit = isinstance(self.encoder, ViT)
        if isinstance(self.encoder, ViT) and config.freeze_patch:
            self.encoder.patch_projection.requires_grad_(False)
        layers = config.proj_layers or (3 if vit else 2)
        pred_bn = vit if config.pred_bn is None else config.pred_bn
        dim, hidden, D = cast(int, self.encoder.dim), config.proj_hidden, config.proj_dim
        self.projector = Projector(dim, hidden, D, layers, last_bn="plain")
        self.predictor = Projector(D, hidden, D, 2, last_bn="plain" if pred_bn else "none")
        self.keys = MomentumEncoder(nn.Sequential(self.encoder, self.projector), buffers="keep")
        self.key_momentum, self.temperature = config.key_momentum, config.temperature
        self.chance = 4 * config.temperature * chance("info_nce", batch=config.batch)

    def views(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """[2, B, C, H, W] float32 in [0, 1], a recipe each."""
        both = [make_views(batch.images, recipe, 1, generator) for recipe in self.recipes]
        return torch.cat(both)

    def before_step(self, step: int, steps: int) -> None:
        """The copy follows, ever more slowly."""
        self.keys.update(momentum=cosine_momentum(step, steps, self.key_momentum))

    def embed(self, views: Tensor) -> tuple[Tensor, ...]:
        """q1, q2, k1, k2, each [B, D]; every view has its own batch statistics."""
        queries = [self.predictor(self.projector(self.encoder(x))) for x in views]
        return (*queries, *(self.keys(x) for x in views))

    def contrast(self, embeddings: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Each view's queries against the other view's keys of all processes."""
        q1, q2, k1, k2 = embeddings
        (loss12, hit12), (loss21, hit21) = self._ctr(q1, k2), self._ctr(q2, k1)
        return {
            "loss": loss12 + loss21,
            "accuracy": torch.cat([hit12, hit21]).float().mean(),
            "features": torch.cat([q1, q2]).detach(),
        }

    def _ctr(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        targets = None  # key i is query i's
        if world_size() > 1:
            targets = len(q) * rank() + torch.arange(len(q), device=q.device)
        loss, stats = info_nce(
            q,
            all_gather(k),
            targets=targets,
            temperature=self.temperature,
            return_stats=True,
        )
        return 2 * self.temperature * loss, stats.hit

    def pictures(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Images above their views: [3, B, C, H, W]."""
        original = batch.images.float().div(255)[None]
        return {"views": torch.cat([original, self.views(batch, generator)])}

    def figures(self, batch: Batch, generator: torch.Generator) -> dict[str, Chart | Tensor]:
        """Of a vit: images above where their class tokens look, [2, B, C, H, W]."""
        if not isinstance(self.encoder, ViT):
            return {}
        images = batch.images[:ATTENDED].float().div(255)
        maps = self.encoder.attention(images).mean(1, keepdim=True)  # [B, 1, rows, columns]
        maps = F.interpolate(maps / maps.amax((2, 3), keepdim=True), images.shape[2:])
        return {"attention": torch.stack([images, maps.expand_as(images)])}
