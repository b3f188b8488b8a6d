"""Videos of unequal lengths in one piece of memory, in the place images have in a split."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Clips", "Video"]


class Video(NamedTuple):
    """One video, and what is known of it.

    Attributes:
        frames: [T, C, H, W] uint8.
        masks: [T, H, W] uint8, the number of the object at each pixel; 0 where there is none.
        points: [T, K, 2] float32, (x, y) of key points in pixels from the upper left corner.
        visible: [T, K] bool.
    """

    frames: Tensor
    masks: Tensor | None = None
    points: Tensor | None = None
    visible: Tensor | None = None


@dataclass(frozen=True)
class Clips:
    """N videos; taking some of them copies no frame.

    Attributes:
        content: the frames of all videos one after another, with what is known of each.
        starts: [N] int64, first frame of each.
        lengths: [N] int64, in frames.
    """

    content: Video
    starts: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: Tensor) -> "Clips":
        """The videos at `index` [n] int64, in that order."""
        return Clips(self.content, self.starts[index], self.lengths[index])

    @classmethod
    def of(cls, videos: Sequence[Video]) -> "Clips":
        """From videos with frames of one size, all with masks (points) or none."""
        lengths = torch.tensor([len(video.frames) for video in videos], dtype=torch.int64)
        content = _each(lambda *parts: torch.cat(parts), *videos)
        return cls(content, lengths.cumsum(0) - lengths, lengths)

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return int(self.content.frames.shape[1])

    @property
    def image_size(self) -> int:
        """The shorter side in pixels."""
        return int(min(self.content.frames.shape[2:]))

    def video(self, i: int) -> Video:
        """Video number `i`."""
        inside = slice(int(self.starts[i]), int(self.starts[i] + self.lengths[i]))
        return _each(lambda part: part[inside], self.content)

    def take(self, places: Tensor) -> Tensor:
        """Frames of each video at `places` [N, n] int64: [N, n, C, H, W] uint8."""
        return self.content.frames[self.starts[:, None] + places]


def _each(call: Callable[..., Tensor], *videos: Video) -> Video:
    """`call` on each part that the videos have."""
    parts: list[Any] = [None if p[0] is None else call(*p) for p in zip(*videos, strict=True)]
    return Video(*parts)
