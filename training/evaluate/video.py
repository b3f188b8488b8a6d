"""The evaluation of a run on videos: objects followed by its encoder and by its controls."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslops.training.config import VideoConfig
from sslops.training.data import Clips, Dataset, Video
from sslops.training.data.video_folder import read_videos
from sslops.training.evaluate.propagate import Propagation
from sslops.training.evaluate.tracking import follow, stand_still, track
from sslops.training.loggers.console import Console

__all__ = ["evaluate_tracking", "read_set", "video_sets"]

SHOWN = 8  # frames of a video in a picture, evenly spread
VIDEOS = 2  # test videos that are shown
COLOURS = ((0.9, 0.2, 0.2), (0.2, 0.8, 0.3), (0.25, 0.45, 1.0), (0.95, 0.8, 0.2), (0.8, 0.3, 0.9))


def evaluate_tracking(
    encoders: dict[str, nn.Module | None],
    sets: dict[str, Clips],
    config: VideoConfig,
    folder: Path,
    device: torch.device,
    console: Console,
) -> dict[str, Any]:
    """J, F and PCK of every arm on sets of videos; pictures of the first ones.

    Args:
        encoders: arm -> encoder; None stands for the first mask, copied.
        sets: name -> videos; scores of the set "" have plain names, those of others "NAME J", ...
        config: how labels are taken along.
        folder: of the run, for pictures.
        device: where encoders run.
        console: where to report.

    Returns:
        arm -> {"dim", "J", "F", "PCK", ...}; and "protocol" with every setting.

    Raises:
        ValueError: a set without masks.
    """
    how = propagation(config)
    for name, clips in sets.items():
        if not _have_objects(clips):
            raise ValueError(
                f"eval: needs a video whose first frame has a mask, got none in {name}"
            )
    if not sets:
        console.print("no test video has masks, so nothing is followed; give --eval-video")
    results: dict[str, Any] = {}
    for arm, encoder in encoders.items():
        console.print(f"following objects by {arm} ...")
        scores: dict[str, Any] = {"dim": 0 if encoder is None else encoder.dim}
        for name, clips in sets.items():
            found = track(encoder, clips, how, device)
            scores |= {f"{name} {key}".strip(): value for key, value in found.items()}
        results[arm] = scores
    results["protocol"] = {
        "propagation": how._asdict(),
        "scores": "J, F: mean over all frames but the first, then objects, then videos; PCK within"
        " 10 % of the frame's shorter side, PCK05 within 5 %, of points visible in the first frame",
        "features": "encoder's last stage in evaluation mode; masks are averaged to its cells and"
        " brought back to pixels bilinearly, the largest wins",
        "frame_size": {
            name or "test videos": "x".join(str(n) for n in clips.content.frames.shape[2:])
            for name, clips in sets.items()
        },
    }
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    for name, clips in sets.items():
        for i in range(min(VIDEOS, len(clips))):
            if _has_objects(clips.video(i)):
                png = _picture(clips.video(i), encoders, how, device)
                (pictures / f"followed-{name or 'test'}-{i + 1}.png").write_bytes(png)
    return results


def video_sets(data: Dataset, config: VideoConfig) -> dict[str, Clips]:
    """The test videos, if they have masks, and those of `config.eval_video`."""
    sets = {"": data.test.images} if _have_objects(data.test.images) else {}
    return sets if config.eval_video is None else sets | read_set(config.eval_video, config)


def read_set(path: str, config: VideoConfig) -> dict[str, Clips]:
    """Name -> videos of a folder, at the size that `config` says."""
    where = Path(path).expanduser()
    return {where.name: read_videos(where, size=config.eval_size)}


def _have_objects(clips: Clips) -> bool:
    return any(_has_objects(clips.video(i)) for i in range(len(clips)))


def _has_objects(video: Video) -> bool:
    return video.masks is not None and bool(video.masks[0].any())


def propagation(config: VideoConfig) -> Propagation:
    """How a configuration says that labels are taken along."""
    return Propagation(
        top_k=config.top_k,
        radius=config.eval_radius,
        context=config.context,
        temperature=config.eval_temperature,
        normalize=config.normalize,
    )


def _picture(
    video: Video, encoders: dict[str, nn.Module | None], how: Propagation, device: torch.device
) -> bytes:
    """True masks above those of every arm, over the frames."""
    from sslops.training.evaluate.pictures import pairs_png

    assert video.masks is not None
    shown = torch.linspace(0, len(video.frames) - 1, SHOWN).round().long()
    found = [
        stand_still(video) if encoder is None else follow(encoder, video, how, device)
        for encoder in encoders.values()
    ]
    masks = torch.stack([video.masks[shown], *(tracks.masks[shown] for tracks in found)])
    rows = [_overlay(video.frames[shown], each) for each in masks]
    return pairs_png(torch.stack(rows), largest=96)


def _overlay(frames: Tensor, masks: Tensor) -> Tensor:
    """Frames in grey [T, 3, H, W] with objects [T, H, W] in colour."""
    grey = frames.float().div(255).mean(1, keepdim=True).expand(-1, 3, -1, -1)
    palette = torch.tensor([(0.0, 0.0, 0.0), *COLOURS])
    number = torch.where(masks > 0, (masks.long() - 1) % len(COLOURS) + 1, 0)
    colour = palette[number].movedim(-1, 1)
    return torch.where(masks[:, None] > 0, 0.4 * grey + 0.6 * colour, grey)
