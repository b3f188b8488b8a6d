"""Log-mel spectrograms: the plain features of sound, in the place that pixels have for images."""

import math

import torch
from torch import Tensor, nn

from sslops.training.models.audio import pool_frames

__all__ = ["LogMel"]

BANDS = 40
WINDOW = 0.025  # seconds
FLOOR = 1e-6  # of the energy of a band; a whole recording has a root mean square of 1
_TINY = 1e-8


class LogMel(nn.Module):
    """Logarithms of 40 mel bands every 10 ms, pooled as an encoder's frames are.

    Recordings are brought to a root mean square of 1, as `AudioEncoder` does: loudness alone tells
    speakers apart where each had a microphone of his own.

    Args:
        rate: samples a second.
    """

    filters: Tensor  # [BANDS, bins]
    taper: Tensor  # [window]

    def __init__(self, rate: int) -> None:
        super().__init__()
        self.hop, self.dim = round(rate / 100), 2 * BANDS
        window = round(WINDOW * rate)
        self.size = 1 << (window - 1).bit_length()
        self.register_buffer("taper", torch.hann_window(window))
        frequencies = torch.linspace(0, rate / 2, self.size // 2 + 1)
        top = 2595 * math.log10(1 + rate / 2 / 700)
        edges = 700 * (10 ** (torch.linspace(0, top, BANDS + 2) / 2595) - 1)
        low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
        rise = (frequencies - low) / (centre - low)
        fall = (high - frequencies) / (high - centre)
        self.register_buffer("filters", torch.minimum(rise, fall).clamp_min(0))

    def frames(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """[B, S] -> [B, T, 40]."""
        sound = x.shape[1] if lengths is None else lengths[:, None].to(x)
        x = x / (x.square().sum(1, keepdim=True) / sound + _TINY).sqrt()
        x = torch.nn.functional.pad(x, (0, max(0, self.size - x.shape[1])))
        spectrum = torch.stft(
            x, self.size, self.hop, len(self.taper), self.taper, pad_mode="constant",
            return_complex=True,
        )  # fmt: skip
        energy = self.filters @ spectrum.abs().square()  # [B, 40, T]
        return (energy + FLOOR).log().transpose(1, 2)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """[B, S] -> [B, 80]."""
        return pool_frames(self.frames(x, lengths), lengths, self.hop)
