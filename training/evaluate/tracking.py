"""Objects followed through videos by features, and by standing still: masks and key points.

Numbers of an arm, of videos whose first frame has objects:

    J      mean overlap of an object's mask (intersection over union)
    F      mean agreement of its boundary
    PCK    share of visible key points found within a tenth of the frame's shorter side; PCK05
           within a twentieth

over all frames but the first, then all objects, then all videos. Those of a second set of videos
have a prefix.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslops.training.data import Clips, Video
from sslops.training.evaluate.propagate import Propagation, propagate
from sslops.training.evaluate.table import align, arms
from sslops.training.evaluate.video_scores import boundary, jaccard, pck

__all__ = [
    "SCORES",
    "Tracks",
    "follow",
    "score_names",
    "score_tracks",
    "stand_still",
    "track",
    "tracking_table",
]

WITHIN = {"PCK": 0.1, "PCK05": 0.05}
SCORES = ("J", "F", *WITHIN)
CHUNK = 16  # frames encoded at a time
SPREAD = 0.5  # cells, of a key point's bump


class Tracks(NamedTuple):
    """What is said of every frame of a video.

    Attributes:
        masks: [T, H, W] uint8, numbers of objects.
        points: [T, K, 2] in pixels, or None.
    """

    masks: Tensor
    points: Tensor | None


def track(
    encoder: nn.Module | None, clips: Clips, how: Propagation, device: torch.device
) -> dict[str, float]:
    """Scores of an encoder, or of standing still (None), as means over the videos with objects."""
    found: dict[str, list[float]] = {}
    for i in range(len(clips)):
        video = clips.video(i)
        if video.masks is None or not video.masks[0].any():
            continue
        tracks = stand_still(video) if encoder is None else follow(encoder, video, how, device)
        for name, value in score_tracks(video, tracks).items():
            found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def stand_still(video: Video) -> Tracks:
    """The first frame's masks and points in every frame."""
    assert video.masks is not None
    points = None if video.points is None else video.points[:1].expand_as(video.points)
    return Tracks(video.masks[:1].expand_as(video.masks), points)


@torch.no_grad()
def follow(encoder: nn.Module, video: Video, how: Propagation, device: torch.device) -> Tracks:
    """The first frame's masks and points, taken along by features of the encoder's last stage."""
    assert video.masks is not None
    features = _features(encoder, video.frames, device)
    h, w = features.shape[2:]
    H, W = video.frames.shape[2:]
    first = video.masks[0].to(device)
    numbers = torch.cat([first.new_zeros(1), _objects(first)])
    layers = (first == numbers[:, None, None]).float()  # [1 + objects, H, W]
    cells = F.adaptive_avg_pool2d(layers, (h, w))
    bumps = cells[:0]
    scale = torch.tensor([w / W, h / H], device=device)
    if video.points is not None:
        bumps = _bumps(video.points[0].to(device) * scale, h, w)
    maps = propagate(features, torch.cat([cells, bumps]), how)
    soft, heat = maps[:, : len(cells)], maps[:, len(cells) :]
    masks = [
        numbers[F.interpolate(each[None], (H, W), mode="bilinear")[0].argmax(0)] for each in soft
    ]
    points = None if video.points is None else (_peaks(heat) / scale).cpu()
    return Tracks(torch.stack(masks).cpu(), points)


def score_tracks(video: Video, tracks: Tracks) -> dict[str, float]:
    """J, F and, where key points are known, PCK of one video."""
    assert video.masks is not None
    truth, found = video.masks[1:], tracks.masks[1:]
    pairs = [(found == number, truth == number) for number in _objects(video.masks[0])]
    scores = {
        "J": torch.stack([jaccard(*pair).mean() for pair in pairs]).mean(),
        "F": torch.stack([boundary(*pair).mean() for pair in pairs]).mean(),
    }
    if video.points is not None and video.visible is not None and tracks.points is not None:
        asked = video.visible[1:] & video.visible[:1]
        side = min(truth.shape[1:])
        for name, share in WITHIN.items():
            scores[name] = pck(tracks.points[1:], video.points[1:], asked, share * side)
    return {name: float(value) for name, value in scores.items() if value.isfinite()}


def _features(encoder: nn.Module, frames: Tensor, device: torch.device) -> Tensor:
    """[T, D, h, w]."""
    encoder.eval()
    parts = [
        encoder.feature_maps(part.to(device).float().div(255))[-1]  # type: ignore[operator]
        for part in torch.split(frames, CHUNK)
    ]
    return torch.cat(parts).float()


def _objects(mask: Tensor) -> Tensor:
    """Numbers of the objects in a mask, in order."""
    numbers: Tensor = torch.unique(mask)
    return numbers[numbers > 0]


def _bumps(points: Tensor, h: int, w: int) -> Tensor:
    """[K, 2] in cells -> a Gaussian around each, [K, h, w]."""
    rows = torch.arange(h, device=points.device) + 0.5
    columns = torch.arange(w, device=points.device) + 0.5
    x, y = points[:, 0, None, None], points[:, 1, None, None]
    return (-((columns - x) ** 2 + (rows[:, None] - y) ** 2) / (2 * SPREAD**2)).exp()


def _peaks(heat: Tensor) -> Tensor:
    """Where each map [T, K, h, w] is highest, to parts of a cell: [T, K, 2] in cells."""
    h, w = heat.shape[2:]
    best = heat.flatten(2).argmax(2)  # [T, K]
    row, column = best // w, best % w
    x = torch.arange(w, device=heat.device) + 0.5
    y = torch.arange(h, device=heat.device) + 0.5
    close = ((x.floor() - column[..., None]).abs() <= 1)[..., None, :] & (
        (y.floor() - row[..., None]).abs() <= 1
    )[..., None]
    weight = heat.clamp(min=0) * close + 1e-12 * close
    total = weight.sum((2, 3))
    centre = torch.stack([(weight * x).sum((2, 3)), (weight * y[:, None]).sum((2, 3))], -1)
    return centre / total[..., None]


def tracking_table(results: Mapping[str, Any]) -> str:
    """One row an arm; "" where nothing was followed."""
    rows = arms(results)
    names = score_names(results)
    if not names:
        return ""
    lines = [["", *names]]
    for arm, row in rows.items():
        lines.append([arm, *(f"{100 * row[name]:.1f}" if name in row else "-" for name in names)])
    return align(lines)


def score_names(results: Mapping[str, Any]) -> list[str]:
    """The scores that any arm has, in order."""
    found = dict.fromkeys(name for row in arms(results).values() for name in row)
    return [name for name in found if name.split()[-1] in SCORES]
