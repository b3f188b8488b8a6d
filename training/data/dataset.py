"""What a data set is: two splits of uint8 images, class names, licence and source."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Dataset", "Split"]


@dataclass(frozen=True)
class Split:
    """Images of one split, decoded and resident in memory.

    Attributes:
        images: [N, C, H, W] uint8 on the CPU, contiguous; C is 1 or 3.
        labels: [N] int64, or None for an unlabelled folder.
    """

    images: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return self.images.shape[0]


@dataclass(frozen=True)
class Dataset:
    """A named data set; `classes[label]` names a label, and is empty without labels."""

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    licence: str
    source: str

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return self.train.images.shape[1]

    @property
    def image_size(self) -> int:
        """The shorter side in pixels."""
        return min(self.train.images.shape[2:])
