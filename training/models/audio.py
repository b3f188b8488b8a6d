"""CPC's encoder of sound: strided convolutions over the raw waveform, then a GRU."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["AudioEncoder", "ChannelNorm", "pool_frames", "strides_for"]

PAPER_STRIDES = (5, 4, 2, 2, 2)  # 10 ms at 16 kHz
REACH = 4  # frames; no convolution's frame begins or ends farther away
_TINY = 1e-8


def strides_for(rate: int) -> tuple[int, ...]:
    """Strides whose frames come every 10 ms, as near as can be; at 16 kHz the paper's.

    The last three stay 2 and the first two take up the rate, with those of the paper where they
    fit: 5, 2, 2, 2, 2 at 8 kHz.

    Raises:
        ValueError: a rate outside 1 to 96 kHz.
    """
    if not 1000 <= rate <= 96_000:
        raise ValueError(f"AudioEncoder: rate must be in [1000, 96000] Hz, got {rate}")
    hop = rate / 100
    pairs = [(a, b) for a in range(1, 13) for b in range(1, 11)]

    def misfit(pair: tuple[int, int]) -> tuple[float, int]:
        a, b = pair
        return abs(a * b * 8 - hop), abs(a - PAPER_STRIDES[0]) + abs(b - PAPER_STRIDES[1])

    return (*min(pairs, key=misfit), 2, 2, 2)


class ChannelNorm(nn.Module):
    """Normalises every frame over its channels, so that no frame learns of another.

    Batch norm would tell each frame about all others and instance norm about the rest of its
    window: the prediction could read the future from them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> same shape."""
        return cast(Tensor, self.norm(x.transpose(1, 2))).transpose(1, 2)


class AudioEncoder(nn.Module):
    """g_enc and g_ar: latents z of 10 ms frames, and contexts c of all frames up to each.

    Kernels are twice the strides, which at 16 kHz is the paper's 10, 8, 4, 4, 4. A recording is
    brought to a root mean square of 1 first: its level tells about the microphone.

    Args:
        rate: samples a second.
        width: channels of every convolution, the size of z.
        context: size of c.

    Attributes:
        dim: size of `forward`'s result.
        hop: samples from a frame to the next.

    Source:
        van den Oord et al. 2018, arXiv:1807.03748, section 3.1. Channel norm and the start of the
        weights: without them some seeds never leave the loss of chance.
    """

    def __init__(self, rate: int, *, width: int = 512, context: int = 256) -> None:
        super().__init__()
        self.options: dict[str, Any] = {"width": width, "context": context}
        self.width, self.context, self.dim = width, context, 2 * (width + context)
        self.hop = 1
        self.layers = nn.Sequential()
        channels = 1
        for stride in strides_for(rate):
            kernel = 2 * stride
            # Padded so that T samples give T / hop frames.
            conv = nn.Conv1d(channels, width, kernel, stride, (kernel - stride + 1) // 2)
            # He's start: under torch's own the signal shrinks from layer to layer until the norm
            # divides by its epsilon, and the loss may stay at chance.
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(cast(Tensor, conv.bias))
            self.layers.extend([conv, ChannelNorm(width), nn.ReLU(inplace=True)])
            self.hop *= stride
            channels = width
        self.recurrent = nn.GRU(width, context, batch_first=True)

    def latents(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latents and contexts of all frames.

        Args:
            x: [B, S] float, raw samples.
            lengths: [B] samples of each that are sound, the others being zeros; all if None.

        Returns:
            z [B, T, width], c [B, T, context], T = about S / hop, with `lengths` 4 frames more of
            silence; `lengths // hop` of them count.
        """
        if lengths is not None:
            # Else the last frames would depend on whether longer recordings lie beside.
            x = F.pad(x, (0, REACH * self.hop))
        sound = x.shape[1] if lengths is None else lengths[:, None].to(x)
        level = (x.square().sum(1, keepdim=True) / sound + _TINY).sqrt()
        z = self.layers((x / level)[:, None]).transpose(1, 2)  # [B, T, width]
        return z, self.recurrent(z)[0]

    def frames(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The context of each frame, [B, T, context]: what probes of single frames read."""
        return self.latents(x, lengths)[1]

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """[B, S] -> [B, dim], mean and deviation of latents and contexts over the recording."""
        return pool_frames(torch.cat(self.latents(x, lengths), 2), lengths, self.hop)


def pool_frames(frames: Tensor, lengths: Tensor | None, hop: int) -> Tensor:
    """Mean and standard deviation over the frames that lie in sound, [B, T, D] -> [B, 2 D]."""
    B, T, _ = frames.shape
    counts = torch.full((B,), T) if lengths is None else (lengths // hop).clamp(1, T)
    counts = counts.to(frames.device)[:, None, None]
    inside = torch.arange(T, device=frames.device)[:, None] < counts  # [B, T, 1]
    mean = (frames * inside).sum(1, keepdim=True) / counts
    variance = ((frames - mean).square() * inside).sum(1) / counts[:, 0]
    # The square root has no gradient at zero.
    return torch.cat([mean[:, 0], (variance + _TINY).sqrt()], 1)
