"""Video colorization: a grey frame takes its colours from frames before it, so places are matched.

Vondrick et al. 2018, arXiv:1806.09594, sections 3.1 to 3.3:

    for a batch of B videos
        draw reference frames and a target frame                  views
        f = a feature every few pixels, of grey frames            encoder
        c = the cluster of the colour there, of 16                centres
        A_ij = softmax_j(f_i . f_j) over all reference places     copy_values
        y_i = sum_j A_ij c_j must be the target's colour c_i      -log y_i[c_i]

y is a probability already: the loss is its logarithm, and no second softmax, which would leave a
loss of 1.9 even to a perfect copy. Afterwards the same copying takes masks and key points from
frame to frame (sslops.training.evaluate.propagate).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sslops.training.augment import Draw
from sslops.training.augment.lab import lab_to_rgb, rgb_to_lab
from sslops.training.config import VideoConfig
from sslops.training.config.checks import at_least, positive
from sslops.training.data import Clips
from sslops.training.methods.base import Batch, DataShape, Method
from sslops.training.methods.colour_copy import (
    cluster_colours,
    constant_copies,
    copy_values,
    fit_colours,
    one_hot,
)
from sslops.training.methods.figures import Chart
from sslops.training.models import FrameCNN, build_encoder

__all__ = ["VideoColorization", "VideoColorizationConfig"]

LEAST = 1e-4  # probability taken for a colour that no reference has
SHOWN = 12  # videos in a picture


@dataclass(frozen=True)
class VideoColorizationConfig(VideoConfig):
    """Video colorization's own knobs; `batch` counts videos."""

    archs: ClassVar[tuple[str, ...]] = ("frame-cnn",)
    unread: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("views", "supervised_epochs", "simclr_control", "eval_train", "eval_stages",
         "tsne_images"), ""
    )  # fmt: skip

    data: str = "moving-shapes"  # a name from `sslops list`, or a folder of folders of frames
    arch: str = "frame-cnn"
    references: int = 3  # frames that colours are copied from
    spacing: int = 2  # frames from one to the next at most, drawn for each video
    clusters: int = 16  # of colours
    temperature: float = 0.05  # of the similarities in training
    radius: int | None = None  # a place is looked for so many cells around it; everywhere if unset

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "references", "spacing")
        at_least(self, 2, "clusters")
        positive(self, "temperature")


class VideoColorization(Method):
    """Encoder of grey frames, clusters of colours, and the copying between frames.

    Args:
        config: hyper-parameters.
        shape: of the data set, with the frames of its shortest video.
    """

    mean_loss = True
    hints: ClassVar[Mapping[str, str]] = {
        "chance": "the temperature (--temperature) and the learning rate (--lr)",
        "shortcut": "that things move from frame to frame: larger steps in time (--spacing)",
    }
    centres: Tensor

    def __init__(self, config: VideoColorizationConfig, shape: DataShape) -> None:
        super().__init__()
        span = config.references * config.spacing
        if span >= shape.frames:
            raise ValueError(
                f"video-colorization: references x spacing must be below the {shape.frames} frames"
                f" of the shortest video, got {config.references} x {config.spacing}"
            )
        if shape.channels != 3:
            raise ValueError("video-colorization: needs frames in colour, got grey ones")
        encoder = build_encoder(config.arch, 3, shape.image_size, **config.encoder_options())
        self.encoder: FrameCNN = cast(FrameCNN, encoder)
        self.config = config
        self.register_buffer("centres", torch.zeros(config.clusters, 2))
        self.chance = float(torch.tensor(float(config.clusters)).log())

    def fit(self, images: Clips) -> None:
        """The clusters of colours, from the training videos."""
        self.centres.copy_(fit_colours(images, self.config.clusters, self.config.seed))

    def views(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """References and target, in time or against it: [R + 1, B, C, H, W] float32 in [0, 1]."""
        clips: Clips = batch.images
        draw = Draw(len(clips), generator)
        R = self.config.references
        step = 1 + draw.integer(self.config.spacing)  # [B]
        room = clips.lengths - R * step
        first = (draw.uniform(0, 1) * room).long()
        places = first[:, None] + step[:, None] * torch.arange(R + 1)
        places = torch.where(draw.coin(0.5)[:, None], places, places.flip(1))
        frames = clips.take(places).to(self.centres.device, non_blocking=True)
        return frames.transpose(0, 1).float().div(255)

    def step(self, views: Tensor) -> dict[str, Tensor]:
        """The loss over all places of the target frames; features are watched at every place."""
        f, labels = self.features(views), self.labels(views)
        probability = self.copy(f, labels)
        chosen = probability.gather(1, labels[-1][:, None])  # [B, 1, h, w]
        return {
            "loss": -chosen.clamp(min=LEAST).log().mean(),
            "accuracy": (probability.argmax(1) == labels[-1]).float().mean(),
            "features": f[-1].detach().movedim(1, -1).flatten(0, -2),
        }

    def features(self, views: Tensor) -> Tensor:
        """[T, B, C, H, W] -> [T, B, D, h, w], each place of length 1 if they are compared so."""
        f = self.encoder.feature_maps(views.flatten(0, 1))[-1]
        f = f.reshape(*views.shape[:2], *f.shape[1:])
        return F.normalize(f.float(), dim=2) if self.config.normalize else f

    @torch.no_grad()
    def labels(self, views: Tensor) -> Tensor:
        """The cluster of the colour at each place: [T, B, C, H, W] -> [T, B, h, w] int64."""
        height, width = (-(-side // self.encoder.stride) for side in views.shape[3:])
        found = cluster_colours(views.flatten(0, 1), self.centres, height, width)
        return found.view(*views.shape[:2], height, width)

    def copy(self, f: Tensor, labels: Tensor) -> Tensor:
        """Probability of each cluster at each place of the last frame, from all others.

        Args:
            f: [R + 1, B, D, h, w].
            labels: [R + 1, B, h, w].

        Returns:
            [B, clusters, h, w].
        """
        values = one_hot(labels[:-1].transpose(0, 1).flatten(0, 1), len(self.centres))
        return copy_values(
            f[-1],
            f[:-1].transpose(0, 1),
            values.view(f.shape[1], -1, *values.shape[1:]),
            temperature=self.config.temperature,
            radius=self.config.radius,
        )

    def measure(self, batches: Iterable[Batch], generator: torch.Generator) -> dict[str, float]:
        """Cross-entropy and accuracy of the copied colours, beside copies that look at nothing.

        Returns:
            "cross_entropy", "accuracy"; and the cross-entropies "constant_colour" of the best
            colour distribution for all videos, "copy_everywhere" of copying all places alike,
            "copy_same_place" of copying the same place in the best mixture with that.
        """
        views = [self.views(batch, generator) for batch in batches]
        out = [self.step(each) for each in views]
        means = {
            "cross_entropy": torch.stack([each["loss"] for each in out]).mean(),
            "accuracy": torch.stack([each["accuracy"] for each in out]).mean(),
        }
        labels = torch.cat([self.labels(each) for each in views], 1)
        means |= constant_copies(labels, len(self.centres), LEAST)
        return {name: float(value) for name, value in means.items()}

    def pictures(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """References and target; the target in grey, and the clusters of its colours.

        A column a video: [R + 3, B, C, H, W].
        """
        views = self.views(batch, generator)
        target = views[-1]
        painted = self.paint(target, self.labels(views)[-1])
        return {"frames": torch.stack([*views, self.grey(target), painted])}

    def figures(self, batch: Batch, generator: torch.Generator) -> dict[str, Chart | Tensor]:
        """The first reference, the target in grey, in copied colours and in its own."""
        some = Batch(batch.images[torch.arange(min(SHOWN, len(batch.images)))], None)
        views = self.views(some, generator)
        target = views[-1]
        copied = self.copy(self.features(views), self.labels(views)).argmax(1)
        rows = [views[0], self.grey(target), self.paint(target, copied), target]
        return {"copied-colours": torch.stack(rows)}

    def grey(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] without its colours."""
        lab = rgb_to_lab(images)
        return lab_to_rgb(torch.cat([lab[:, :1], torch.zeros_like(lab[:, 1:])], 1)).clamp(0, 1)

    def paint(self, images: Tensor, labels: Tensor) -> Tensor:
        """The lightness of images [B, 3, H, W] in the colours of clusters [B, h, w]."""
        ab = self.centres[labels].movedim(-1, 1)
        lab = torch.cat([rgb_to_lab(images)[:, :1], F.interpolate(ab, images.shape[2:])], 1)
        return lab_to_rgb(lab).clamp(0, 1)
