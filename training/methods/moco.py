"""MoCo: an image should match its other view's key, not the keys of thousands of earlier images.

He et al. 2020, arXiv:1911.05722, algorithm 1; v2 Chen et al. 2020, arXiv:2003.04297:

    f_k = m f_k + (1 - m) f_q: parameters only                    before_step
    for a batch of B images
        q = f_q(t(x)), k = f_k(t'(x)) without gradient            embed
        q must pick its k among the K keys of the queue           contrast
        the optimiser's update of f_q
    the B keys replace the oldest of the queue                    after_step

Batch norm would give the task away: q and k of a batch are normalised by the same images. So it
sees a part of the batch at a time, and the keys' parts are dealt anew (shuffle-BN).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslops import KeyQueue, MomentumEncoder, chance, info_nce
from sslops.distributed import all_gather, world_size
from sslops.training.augment import make_views
from sslops.training.config import TrainConfig
from sslops.training.config.checks import at_least, positive, within
from sslops.training.methods.base import Batch, ContrastiveMethod, DataShape, find_views
from sslops.training.methods.figures import Chart, histogram
from sslops.training.models import build_encoder, plain_head
from sslops.training.models.shuffle_bn import encode_shuffled
from sslops.training.models.split_bn import groups_here, split_batch_norm

__all__ = ["MoCo", "MoCoConfig"]


HINTS = {
    "chance": "that positive_similarity rises above negative_similarity, that the keys change"
    " (queue_fill at 1, --key-momentum below 1), that the queue is no larger than an epoch of"
    " images (--queue) and the learning rate (--lr)",
    "shortcut": "batch norm, which tells the keys of a batch from the queue's if it sees q and k of"
    " the same images together (--bn-splits), and that the views differ enough (--views)",
}
RISE = (
    "the loss rises while the queue fills: it began with {:,} random directions, which are easy to"
    " tell from a key, and real keys replace them. It falls again when they have"
)
WHOLE_BATCH = (
    "batch norm sees the whole batch at once (--bn-splits 1) on one device: it tells the keys of a"
    " batch from those of the queue, a shortcut. --bn-splits 8 closes it"
)


@dataclass(frozen=True)
class MoCoConfig(TrainConfig):
    """MoCo's own knobs; `version` also chooses the recipe."""

    version: Literal["v1", "v2"] = "v2"  # head, views, temperature, schedule
    temperature: float = 0.2
    queue: int = 4096  # K, keys; 65,536 for ImageNet
    key_momentum: float = 0.99  # m of the key encoder; 0.999 for ImageNet
    symmetric: bool = False  # each view once as query and once as key; twice the cost
    bn_splits: int = 8  # parts of a batch, over all processes, that batch norm sees at a time
    proj_hidden: int = 2048  # width of v2's head; v1's is linear
    proj_dim: int = 128  # of q and k

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "queue", "proj_hidden", "proj_dim")
        positive(self, "temperature")
        within(self, 0, 1, "key_momentum")


class MoCo(ContrastiveMethod):
    """Query encoder with head, their moving average for the keys, and the queue.

    Args:
        config: hyper-parameters.
        shape: of the data set.
    """

    hints: ClassVar[Mapping[str, str]] = HINTS
    local_bn: ClassVar[bool] = True

    def __init__(self, config: MoCoConfig, shape: DataShape) -> None:
        super().__init__()
        splits = groups_here(config.bn_splits, config.batch, world_size())
        if splits == world_size() == 1:
            self.cautions = (WHOLE_BATCH,)
        self.config, self.recipe = config, find_views("moco", config.views)
        encoder = build_encoder(
            config.arch, shape.channels, shape.image_size, **config.encoder_options()
        )
        self.encoder = split_batch_norm(encoder, splits)
        hidden = None if config.version == "v1" else config.proj_hidden
        self.head = plain_head(cast(int, encoder.dim), hidden, config.proj_dim)
        self.key_encoder = MomentumEncoder(
            nn.Sequential(self.encoder, self.head), config.key_momentum, buffers="keep"
        )
        self.queue = KeyQueue(config.queue, config.proj_dim)
        self.losses = 2 if config.symmetric else 1
        self.chance = self.losses * chance("info_nce", batch=config.batch, queue=config.queue)
        self._keys: Tensor | None = None  # of the step under way
        self.shuffle_seed = 0
        self._lowest = math.inf  # loss in the records so far

    def views(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """[2, B, C, H, W] float32 in [0, 1]; and the order of the keys in shuffle-BN."""
        self.shuffle_seed = int(torch.randint(1 << 31, (), generator=generator))
        return make_views(batch.images, self.recipe, 2, generator)

    def before_step(self, step: int, steps: int) -> None:
        """Move the key encoder, before it gives this step's keys."""
        self.key_encoder.update()

    def embed(self, views: Tensor) -> tuple[Tensor, ...]:
        """(q, k), each [B, D]; `symmetric` has the same of the exchanged views after them."""
        pairs = [(views[0], views[1]), (views[1], views[0])][: self.losses]
        return tuple(z for x_q, x_k in pairs for z in (self._query(x_q), self._key(x_k)))

    def contrast(self, embeddings: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """The loss against the queue as it was before this step's keys."""
        q, k = torch.cat(embeddings[::2]), torch.cat(embeddings[1::2])
        loss, stats = info_nce(
            q, k, queue=self.queue.keys, temperature=self.config.temperature, return_stats=True
        )
        self._keys, q = k, q.detach()
        age = self.queue.ages().clamp(min=0) / (self.config.batch * self.losses)
        return {
            "loss": self.losses * loss,  # their sum
            "accuracy": stats.hit.float().mean(),  # top-1 of K + 1 candidates
            "features": q,
            "positive_similarity": (q * k).sum(1).mean(),
            "negative_similarity": q.mean(0) @ self.queue.keys.mean(0),  # mean over all pairs
            "queue_fill": self.queue.valid().float().mean(),
            "queue_age": age.mean(),  # in steps
        }

    def after_step(self, step: int) -> None:
        """Enqueue the keys of all processes, in the same order on each."""
        assert self._keys is not None
        self.queue.enqueue(all_gather(self._keys))
        self._keys = None

    def pictures(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Images above their views: [3, B, C, H, W]."""
        original = batch.images.float().div(255)[None]
        return {"views": torch.cat([original, self.views(batch, generator)])}

    def figures(self, batch: Batch, generator: torch.Generator) -> dict[str, Chart | Tensor]:
        """Similarities to the positive and to the queue, and the queue's ages."""
        x_q, x_k = self.views(batch, generator)
        q = F.normalize(self.head(self.encoder(x_q)), dim=1)
        k = F.normalize(self.key_encoder(x_k), dim=1)
        return queue_charts(q, k, self.queue, self.config.batch * self.losses)

    def notes(self, record: Mapping[str, Any]) -> dict[str, str]:
        """The loss rises at first, while real keys replace the random ones it started with."""
        filling = record["step"] * self.config.batch * self.losses <= 3 * len(self.queue)
        rises, self._lowest = record["loss"] > self._lowest, min(self._lowest, record["loss"])
        return {"rise": RISE.format(len(self.queue))} if filling and rises else {}

    def _query(self, images: Tensor) -> Tensor:
        return F.normalize(self.head(self.encoder(images)).float(), dim=1)

    def _key(self, images: Tensor) -> Tensor:
        keys = encode_shuffled(self.key_encoder, images, self.shuffle_seed)
        return F.normalize(keys.float(), dim=1)


def queue_charts(q: Tensor, k: Tensor, queue: KeyQueue, enqueued: int) -> dict[str, Chart | Tensor]:
    """Similarities of queries to their keys and to the queue's, and the ages of the queue's keys.

    Args:
        q: [B, D] unit rows.
        k: [B, D] unit rows, the positive of each.
        queue: the negatives.
        enqueued: keys a step.
    """
    keys = queue.keys.to(q.dtype)
    positive, negative = (q * k).sum(1), q @ keys.T
    beaten = (positive[:, None] > negative).all(1).float().mean()
    ages = queue.ages()
    ages = ages[ages >= 0] / enqueued
    steps = max(1.0, float(ages.max()) if len(ages) else 1.0)
    return {
        "similarity-to-the-queries": Chart(
            "bars",
            {
                "positive: the other view": histogram(positive, -1.0, 1.0),
                "negatives: the queue": histogram(negative, -1.0, 1.0),
            },
            x_label="cosine",
            y_label="share",
            caption=f"Means {float(positive.mean()):.2f} and {float(negative.mean()):.2f}. The"
            f" positive is above all {len(queue):,} keys of the queue for"
            f" {100 * float(beaten):.0f} % of {len(q):,} images (batch norm with its running"
            " statistics).",
        ),
        "age-of-the-queue": Chart(
            "bars",
            {"keys": histogram(ages, 0.0, steps, bins=20) if len(ages) else [(0.0, 0.0)]},
            x_label="steps since the key was made",
            y_label="share",
            caption=f"The key encoder has moved on since: the oldest of {len(ages):,} keys is"
            f" {steps:,.0f} steps old.",
        ),
    }
