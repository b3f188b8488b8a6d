"""What a data set is: two splits of images, recordings or videos, class names, licence, source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor

from sslops.training.data.clips import Clips
from sslops.training.data.notes import say
from sslops.training.data.waves import Waves

__all__ = ["Batch", "DataShape", "Dataset", "Split", "one_class"]


@dataclass(frozen=True)
class Split:
    """Images of one split, or what stands in their place, decoded and resident in memory.

    Attributes:
        images: [N, C, H, W] uint8 on the CPU, contiguous; C is 1 or 3. Of sound N recordings, of
            video N clips.
        labels: [N] int64, or None for an unlabelled folder.
        factors: [N] int64 each, further labels by name (speaker).
    """

    images: Any  # Tensor, Waves or Clips
    labels: Tensor | None
    factors: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)


class Batch(NamedTuple):
    """Images [B, C, H, W] uint8 and labels [B] int64 (None if there are none), on the device.

    Recordings and videos, in the place of images, stay on the host: only parts of them are wanted.
    """

    images: Any  # Tensor, Waves or Clips
    labels: Tensor | None


class DataShape(NamedTuple):
    """What a network has to know about a data set."""

    channels: int
    image_size: int
    classes: int
    rate: int = 0  # of sound, whose channels and image_size say nothing
    frames: int = 0  # of the shortest video, 0 for what is no video


def one_class(split: Split, classes: Sequence[str]) -> str | None:
    """Name of the class that all of the images have; None if there are several, or no labels."""
    labels = split.labels
    if labels is None or not len(labels) or bool((labels != labels[0]).any()):
        return None
    n = int(labels[0])
    return classes[n] if n < len(classes) else f"label {n}"


@dataclass(frozen=True)
class Dataset:
    """A named data set.

    `classes[label]` names a label, and is empty without labels; `factors` names those of a split's
    factors. Labels of one class say nothing, and every classifier is right about them: where all
    of `train` has one, there are no labels in either split, wherever the data come from, and a line
    says so. Nor is a factor of one value kept.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    licence: str
    source: str
    factors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        drop = object.__setattr__  # the one change of a frozen instance, before anyone has it
        where = self.source or self.name
        name = one_class(self.train, self.classes)
        if name is not None:
            say(
                f"{where}: all {len(self.train):,} to train on are of one class, {name}, which is"
                " read as no labels"
            )
            drop(self, "classes", ())
            for part in ("train", "test"):
                drop(self, part, replace(getattr(self, part), labels=None))
        single = [name for name, values in self.factors.items() if len(values) < 2]
        if single:
            say(f"{where} has one value of {', '.join(single)} alone, which is no factor")
            drop(self, "factors", {k: v for k, v in self.factors.items() if k not in single})
            for part in ("train", "test"):
                split: Split = getattr(self, part)
                kept = {k: v for k, v in split.factors.items() if k not in single}
                drop(self, part, replace(split, factors=kept))

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour; 1 for sound."""
        images = self.train.images
        if isinstance(images, Clips):
            return images.channels
        return 1 if isinstance(images, Waves) else int(images.shape[1])

    @property
    def image_size(self) -> int:
        """The shorter side in pixels; 0 for sound."""
        images = self.train.images
        if isinstance(images, Clips):
            return images.image_size
        return 0 if isinstance(images, Waves) else int(min(images.shape[2:]))

    @property
    def rate(self) -> int:
        """Samples a second of sound; 0 for images."""
        images = self.train.images
        return images.rate if isinstance(images, Waves) else 0

    @property
    def frames(self) -> int:
        """Frames of the shortest video to train on; 0 for what is no video."""
        images = self.train.images
        return int(images.lengths.min()) if isinstance(images, Clips) else 0
