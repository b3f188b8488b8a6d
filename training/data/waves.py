"""Recordings of unequal lengths in one piece of memory, in the place images have in a split."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sslops.training.augment.draw import Draw

__all__ = ["Waves"]

SCALE = 1 / 32768  # of 16-bit samples, to [-1, 1)


@dataclass(frozen=True)
class Waves:
    """N recordings; taking some of them copies no sample.

    Attributes:
        samples: [S] int16 on the CPU, the recordings one after another.
        starts: [N] int64, first sample of each.
        lengths: [N] int64, in samples.
        rate: samples a second.
    """

    samples: Tensor
    starts: Tensor
    lengths: Tensor
    rate: int

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: Tensor) -> "Waves":
        """The recordings at `index` [n] int64, in that order."""
        return Waves(self.samples, self.starts[index], self.lengths[index], self.rate)

    @classmethod
    def of(cls, recordings: list[Tensor], rate: int) -> "Waves":
        """From [length] int16 each."""
        lengths = torch.tensor([len(each) for each in recordings], dtype=torch.int64)
        return cls(torch.cat(recordings), lengths.cumsum(0) - lengths, lengths, rate)

    def whole(self) -> Tensor:
        """All recordings from their start, zeros behind: [N, longest] float32."""
        time = torch.arange(int(self.lengths.max()))
        inside = time < self.lengths[:, None]
        index = (self.starts[:, None] + time).where(inside, self.starts[:, None])
        return self.samples[index].mul(SCALE).mul_(inside)

    def windows(self, length: int, generator: torch.Generator) -> Tensor:
        """A random window of each recording, [N, length] float32 in [-1, 1).

        A recording shorter than the window is played over and over, from a random sample on:
        silence around it would be told from sound at once, and say where it ends.

        Args:
            length: samples of a window.
            generator: of the places; on the CPU. See `Draw` for several processes.
        """
        share = Draw(len(self), generator).uniform(0, 1, dtype=torch.float64)
        room = torch.where(self.lengths < length, self.lengths - 1, self.lengths - length)
        first = (share * (room + 1)).long()  # [N]
        place = (first[:, None] + torch.arange(length)) % self.lengths[:, None]  # [N, length]
        return self.samples[self.starts[:, None] + place].mul(SCALE)
