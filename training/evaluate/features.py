"""Features of a frozen encoder, computed once, with proof that it stayed frozen."""

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslops._names import shown
from sslops.training.data import Waves
from sslops.training.engine.collapse import feature_spread
from sslops.training.loggers.progress import track

__all__ = ["extract", "extract_frames", "extract_stages", "fittable", "pixels", "spread"]

FRAMES = 8  # of each recording that probes of single frames see, evenly spread

STAGE_FEATURES = 1024  # of each stage at most, so that none wins by its size

MAX_PIXEL_SIDE = 32  # raw pixels of larger images are averaged to this side first


@torch.no_grad()
def extract(
    encoder: nn.Module,
    images: Tensor | Waves,
    *,
    batch: int | None = None,
    device: str | torch.device | None = None,
) -> Tensor:
    """Encode all images in evaluation mode, without gradient.

    Args:
        encoder: [B, C, H, W] float32 in [0, 1] -> [B, dim]; left in the mode it came in. Of sound
            ([B, samples], lengths [B]) -> [B, dim].
        images: [N, C, H, W] uint8, or recordings.
        batch: images at a time, 512 if None or 64 on a CPU, whose caches hold no more (1.4 times as
            fast); recordings 64. Changes time and memory only.
        device: where to run; default where the encoder's weights are.

    Returns:
        [N, dim] float32 on the CPU.

    Raises:
        TypeError: images are not uint8.
        ValueError: no images, or the output is not [B, dim].
        RuntimeError: a weight or buffer changed on the way (a batch norm that kept counting,
            say), so the features belong to no single encoder.
    """
    if isinstance(images, Waves):
        return _run_waves(encoder, encoder, images, batch or 64, device)
    if images.dtype != torch.uint8:
        raise TypeError(f"extract: images must be uint8, got {images.dtype}")
    if images.ndim != 4 or not len(images):
        raise ValueError(f"extract: needs images [N, C, H, W], got {tuple(images.shape)}")
    device = _device_of(encoder) if device is None else device
    chunks = ((chunk,) for chunk in torch.split(images, batch or _at_once(device)))
    return _run(encoder, lambda x: encoder(x.float().div_(255)), chunks, len(images), device)


@torch.no_grad()
def extract_stages(
    encoder: nn.Module,
    images: Tensor,
    *,
    most: int = STAGE_FEATURES,
    batch: int | None = None,
    device: str | torch.device | None = None,
) -> list[Tensor]:
    """Features of every stage of an encoder, pooled to a comparable number.

    Maps [B, c, h, w] are averaged to the largest s x s with c s^2 <= `most`, and to 1 x 1 where
    even c is more.

    Args:
        encoder: with a method `feature_maps`.
        images: [N, C, H, W] uint8.
        most: features of a stage.
        batch: images at a time, as of `extract`.
        device: where to run; default where the encoder's weights are.

    Returns:
        [N, c s^2] float32 on the CPU for each stage.

    Raises:
        RuntimeError: a weight or buffer changed on the way.
    """
    sizes: list[int] = []

    def pooled(x: Tensor) -> Tensor:
        maps: list[Tensor] = encoder.feature_maps(x.float().div_(255))  # type: ignore[operator]
        rows = [F.adaptive_avg_pool2d(each, _side(each, most)).flatten(1) for each in maps]
        sizes[:] = [row.shape[1] for row in rows]
        return torch.cat(rows, 1)

    device = _device_of(encoder) if device is None else device
    chunks = ((chunk,) for chunk in torch.split(images, batch or _at_once(device)))
    return list(torch.split(_run(encoder, pooled, chunks, len(images), device), sizes, 1))


def _side(features: Tensor, most: int) -> tuple[int, int]:
    channels, height, width = features.shape[1:]
    side = max(1, math.isqrt(most // channels))
    return min(side, height), min(side, width)


@torch.no_grad()
def extract_frames(
    encoder: nn.Module, waves: Waves, *, device: str | torch.device | None = None
) -> Tensor:
    """Frames of all recordings, by `encoder.frames`: [N, 8, D] float32 on the CPU.

    Of each recording 8 frames, evenly spread over it; a very short one gives some twice.
    """

    def some(x: Tensor, lengths: Tensor) -> Tensor:
        frames: Tensor = encoder.frames(x, lengths)  # type: ignore[operator]
        counts = (lengths // encoder.hop).clamp(1, frames.shape[1])  # type: ignore[operator]
        place = (torch.arange(FRAMES, device=x.device) + 0.5) / FRAMES * counts[:, None]
        index = place.long()[..., None].expand(-1, -1, frames.shape[2])
        return frames.gather(1, index).flatten(1)

    rows = _run_waves(encoder, some, waves, 64, device)
    return rows.view(len(rows), FRAMES, -1)


def _run_waves(
    encoder: nn.Module,
    call: Callable[..., Tensor],
    waves: Waves,
    batch: int,
    device: str | torch.device | None,
) -> Tensor:
    """Recordings of like length together, so that few zeros are encoded; rows in their order."""
    order = waves.lengths.argsort(stable=True)
    parts = (waves[index] for index in torch.split(order, batch))
    chunks = ((part.whole(), part.lengths) for part in parts)
    rows = _run(encoder, call, chunks, len(order), device)
    return torch.empty_like(rows).index_copy_(0, order, rows)


def _run(
    encoder: nn.Module,
    call: Callable[..., Tensor],
    chunks: Iterable[tuple[Tensor, ...]],
    count: int,
    device: str | torch.device | None,
) -> Tensor:
    """Rows that `call` makes of the chunks, while the weights and buffers stay as they are."""
    device = _device_of(encoder) if device is None else device
    encoder.to(device)
    modes = {module: module.training for module in encoder.modules()}
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.eval()
    try:
        rows = []
        for chunk in track(chunks, "encoding", count, lambda chunk: len(chunk[0])):
            out = call(*(part.to(device) for part in chunk))
            if out.ndim != 2:
                raise ValueError(f"extract: encoder must return [B, dim], got {tuple(out.shape)}")
            rows.append(out.float().cpu())
    finally:
        for module, training in modes.items():
            module.training = training
    after = encoder.state_dict()
    changed = [name for name in before if not _same_bits(before[name], after[name])]
    if changed:
        raise RuntimeError(
            f"extract: the encoder must stay as it is in evaluation mode, got new values of "
            f"{shown(changed, ', ')}; look for layers that update themselves in forward"
        )
    return torch.cat(rows)


def _device_of(encoder: nn.Module) -> torch.device:
    return next((each.device for each in encoder.state_dict().values()), torch.device("cpu"))


def _at_once(device: str | torch.device) -> int:
    return 64 if torch.device(device).type == "cpu" else 512


def pixels(images: Tensor) -> Tensor:
    """The images as features, [N, C, H, W] uint8 -> [N, C * H * W] float32 in [0, 1].

    Sides above 32 are averaged down: more pixels are a slower baseline, not a better one.
    """
    height, width = images.shape[2:]
    rows = []
    for chunk in torch.split(images, 4096):
        x = chunk.float().div_(255)
        if max(height, width) > MAX_PIXEL_SIDE:
            x = F.adaptive_avg_pool2d(x, (min(height, MAX_PIXEL_SIDE), min(width, MAX_PIXEL_SIDE)))
        rows.append(x.flatten(1))
    return torch.cat(rows)


def fittable(features: Tensor) -> bool:
    """Whether they and their variances are finite, so that a classifier can be fitted."""
    return bool(features.square().sum().isfinite())


def spread(features: Tensor) -> dict[str, float]:
    """How much of the space features fill; a collapsed encoder has both near their least.

    Returns:
        "feature_spread": see `sslops.training.engine.collapse.feature_spread`, as during training.
        "rank": exp of the entropy of the covariance's eigenvalues, between 1 and dim.
    """
    unit = F.normalize(features, dim=1)
    some = (unit - unit.mean(0))[:2000].double()
    gram = some.T @ some if some.shape[1] <= len(some) else some @ some.T  # same eigenvalues
    values = torch.linalg.eigvalsh(gram).clamp_min(0)
    total, rank = values.sum(), 1.0
    if total > 0:
        share = values / total
        rank = float((-torch.special.xlogy(share, share).sum()).exp())
    return {"feature_spread": feature_spread(features), "rank": rank}


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if hasattr(a, "to_local") and hasattr(b, "to_local"):  # DTensors: this process's part
        a, b = a.to_local(), b.to_local()
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    # As bytes, so that a NaN equals itself.
    return torch.equal(
        a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8)
    )
