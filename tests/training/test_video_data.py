"""Videos: clips in memory, moving shapes with exact answers, folders of frames."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sslops.training.augment.lab import rgb_to_lab
from sslops.training.config import TrainConfig
from sslops.training.data import Clips, Split, Video, load, split_validation, subset
from sslops.training.data.loader import Feed
from sslops.training.data.moving_shapes import OBJECTS, POINTS, make_clip
from sslops.training.data.video_folder import load_video_folder, read_videos
from sslops.training.distributed.process import World
from sslops.training.engine.setup import build_method, shape_of
from sslops.training.methods import METHODS


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SSLOPS_CACHE", str(tmp_path / "cache"))


def counted(*lengths):
    """Videos whose every pixel is ten times the video's number plus the frame's."""
    videos = []
    for number, length in enumerate(lengths):
        value = torch.arange(length, dtype=torch.uint8) + 10 * number
        videos.append(Video(value.view(-1, 1, 1, 1).expand(-1, 3, 4, 6).contiguous(),
                            value.view(-1, 1, 1).expand(-1, 4, 6).contiguous()))  # fmt: skip
    return Clips.of(videos)


# clips


def test_frames_are_those_of_the_video():
    clips = counted(3, 5, 2)
    assert (len(clips), clips.channels, clips.image_size) == (3, 3, 4)
    assert clips.video(1).frames[:, 0, 0, 0].tolist() == [10, 11, 12, 13, 14]
    assert clips.video(1).masks[:, 0, 0].tolist() == [10, 11, 12, 13, 14]
    assert clips.video(1).points is None
    taken = clips.take(torch.tensor([[0, 2], [4, 1], [1, 0]]))
    assert taken.shape == (3, 2, 3, 4, 6)
    assert taken[:, :, 0, 0, 0].tolist() == [[0, 2], [14, 11], [21, 20]]


def test_some_videos_copy_nothing():
    clips = counted(3, 5, 2)
    some = clips[torch.tensor([2, 0])]
    assert some.content.frames.data_ptr() == clips.content.frames.data_ptr()
    assert [int(some.video(i).frames[0, 0, 0, 0]) for i in range(2)] == [20, 0]
    batch = Feed(Split(clips, None), torch.device("cpu"))(torch.tensor([1, 2]))
    assert batch.images.lengths.tolist() == [5, 2]
    assert batch.labels is None


def test_videos_are_split_and_drawn_like_images():
    split = Split(counted(*[2] * 10), None)
    first = [int(subset(split, 4, 0).images.video(i).frames[0, 0, 0, 0]) for i in range(4)]
    assert first == sorted(first)
    assert len(set(first)) == 4
    train, validation = split_validation(split, 0.3, 0)
    assert (len(train), len(validation)) == (7, 3)


# moving shapes


@pytest.fixture(scope="module")
def clips():
    generator = torch.Generator().manual_seed(3)
    return [make_clip(generator, 48, 12) for _ in range(12)]


def test_shapes_are_the_same_for_every_user():
    """Part of every published number: it must never change."""
    clip = make_clip(torch.Generator().manual_seed(0), 32, 4)
    again = make_clip(torch.Generator().manual_seed(0), 32, 4)
    assert all(torch.equal(a, b) for a, b in zip(clip, again, strict=True))
    assert clip.frames.shape == (4, 3, 32, 32)
    assert clip.masks.shape == (4, 32, 32)
    assert clip.points.shape == (4, OBJECTS * POINTS, 2)
    assert clip.visible.shape == (4, OBJECTS * POINTS)


def test_grey_says_nothing_of_colours(clips):
    """One chroma for all, and hues that do not follow the lightness."""
    lab = torch.stack([rgb_to_lab(clip.frames[0].float() / 255) for clip in clips])  # [N, 3, H, W]
    L, ab = lab[:, 0], lab[:, 1:]
    chroma = ab.square().sum(1).sqrt()
    assert (chroma - 26).abs().max() < 2.5  # 8 bits a channel
    assert 30 < L.min()
    assert L.max() < 82
    for video in range(len(clips)):
        for channel in range(2):
            pair = torch.stack([L[video].flatten(), ab[video, channel].flatten()])
            assert pair.corrcoef()[0, 1].abs() < 0.55  # few colours a video: chance is wide
    centred = [x - x.mean((-2, -1), keepdim=True) for x in (L[:, None], ab)]
    shared = (centred[0] * centred[1]).mean((0, 2, 3)) / (L.std() * ab.std())
    assert shared.abs().max() < 0.15


def test_colours_end_where_grey_does_not(clips):
    """Within an object, the change of lightness is no larger where its colour changes."""
    ends, elsewhere = [], []
    for clip in clips:
        lab, mask = rgb_to_lab(clip.frames[0].float() / 255), clip.masks[0]
        same = mask[:, 1:] == mask[:, :-1]
        other = (lab[1:, :, 1:] - lab[1:, :, :-1]).abs().sum(0) > 12
        jump = (lab[0, :, 1:] - lab[0, :, :-1]).abs()
        ends.append(jump[same & other])
        elsewhere.append(jump[same & ~other])
    ends, elsewhere = torch.cat(ends), torch.cat(elsewhere)
    assert len(ends) > 200
    assert ends.mean() == pytest.approx(float(elsewhere.mean()), rel=0.15)


def test_masks_and_points_follow_the_objects(clips):
    """A key point lies on its object wherever it is called visible, with the same colour around."""
    owner = torch.arange(OBJECTS).repeat_interleave(POINTS) + 1
    kept, moved = [], []
    for clip in clips:
        frame, point = clip.visible.nonzero(as_tuple=True)
        column, row = clip.points[frame, point].floor().long().unbind(1)
        assert torch.equal(clip.masks[frame, row, column].long(), owner[point])
        ab = rgb_to_lab(clip.frames.float() / 255)[:, 1:]
        at = ab[frame, :, row, column]
        for k in range(OBJECTS * POINTS):
            kept.append((at[point == k] - at[point == k][:1]).norm(dim=1) < 6)
        moved.append((clip.points[-1] - clip.points[0]).norm(dim=1))
    assert torch.cat(kept).float().mean() > 0.9  # near a line between colours rounding decides
    assert torch.cat(moved).mean() > 8
    assert {int(n) for clip in clips for n in clip.masks.unique()} == {0, 1, 2, 3}


@pytest.mark.slow
def test_the_set_has_two_parts():
    data = load("moving-shapes", size=16)
    assert (len(data.train), len(data.test), data.frames) == (384, 32, 16)
    assert (data.channels, data.image_size, data.rate) == (3, 16, 0)
    assert shape_of(data).frames == 16
    again = load("moving-shapes", size=16)  # from the cache
    assert torch.equal(again.test.images.video(3).points, data.test.images.video(3).points)
    first, last = data.train.images.video(0), data.test.images.video(0)
    assert not torch.equal(first.frames, last.frames)


# folders


def write_video(folder: Path, frames: int, size=(24, 16), seed=0, mask=None, palette=False):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for t in range(frames):
        pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{t:05}.png")
        if mask is not None:
            mask.mkdir(parents=True, exist_ok=True)
            values = np.zeros((size[1], size[0]), np.uint8)
            values[2:6, t : t + 8] = 2 if palette else 255
            image = Image.fromarray(values)
            if palette:
                image = image.convert("P")
                image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
                image.putdata(values.flatten().tolist())
            image.save(mask / f"{t:05}.png")


def test_a_folder_of_folders(tmp_path):
    """Beside their frames some have masks; others have none."""
    write_video(tmp_path / "v" / "b", 3, seed=1)
    write_video(tmp_path / "v" / "a", 2, seed=2, mask=tmp_path / "v" / "a_mask")
    clips = read_videos(tmp_path / "v")
    assert clips.lengths.tolist() == [2, 3]
    first = np.asarray(Image.open(tmp_path / "v" / "a" / "00001.png")).transpose(2, 0, 1)
    assert np.array_equal(clips.video(0).frames[1].numpy(), first)
    masks = clips.video(0).masks
    assert masks.unique().tolist() == [0, 1]
    assert masks[1].nonzero()[0].tolist() == [2, 1]
    assert not clips.video(1).masks.any()


@pytest.mark.parametrize("resolution", ["480p", ""])
def test_the_layout_of_davis(tmp_path, resolution):
    """With a palette the values are the numbers of objects."""
    root = tmp_path / "DAVIS"
    for name in ("bear", "camel"):
        masks = root / "Annotations" / resolution / name
        write_video(root / "JPEGImages" / resolution / name, 2, mask=masks, palette=True)
    clips = read_videos(root)
    assert clips.lengths.tolist() == [2, 2]
    assert clips.video(1).masks.unique().tolist() == [0, 2]


def test_frames_alone_are_one_video(tmp_path):
    write_video(tmp_path / "bmx", 4, mask=tmp_path / "bmx_mask")
    for path in (tmp_path / "bmx", tmp_path):
        clips = read_videos(path)
        assert clips.lengths.tolist() == [4]
        assert clips.video(0).masks.any()


def test_sizes_become_one(tmp_path):
    """The shorter side as asked, the shape that of the first, all in multiples of 8."""
    write_video(tmp_path / "a", 2, (54, 30), mask=tmp_path / "a_mask")
    write_video(tmp_path / "b", 2, (40, 40))
    with pytest.raises(
        ValueError, match=r"equal in size unless `size` is given, got .* \(30, 54\)"
    ):
        read_videos(tmp_path)
    clips = read_videos(tmp_path, size=18)
    assert clips.content.frames.shape == (4, 3, 16, 32)
    assert clips.content.masks.shape == (4, 16, 32)
    assert clips.video(0).masks.unique().tolist() == [0, 1]


@pytest.mark.parametrize("palette", [True, False])
@pytest.mark.parametrize(("side", "size"), [(48, 32), (16, 32)])
def test_masks_are_resized_to_their_nearest_pixel(tmp_path, palette, side, size):
    """Anything smoother makes numbers between two objects, or moves their edges."""
    write_video(tmp_path / "a", 1, (side, side))
    (tmp_path / "a_mask").mkdir()
    numbers = np.random.default_rng(0).choice([0, 1, 4], (side, side)).astype(np.uint8)
    image = Image.fromarray(numbers if palette else (numbers > 0).astype(np.uint8) * 255)
    if palette:
        image.putpalette(list(range(15)))
    image.save(tmp_path / "a_mask" / "00000.png")
    nearest = (np.arange(size) + 0.5) * side // size
    expected = numbers[np.ix_(nearest.astype(int), nearest.astype(int))]
    found = read_videos(tmp_path, size=size).content.masks[0].numpy()
    assert np.array_equal(found, expected if palette else expected > 0)


def test_masks_are_cut_as_their_frames(tmp_path):
    write_video(tmp_path / "a", 1, (90, 34), mask=tmp_path / "a_mask")
    bright = np.zeros((34, 90, 3), np.uint8)
    bright[7:20, 31:80] = 255
    Image.fromarray(bright).save(tmp_path / "a" / "00000.png")
    Image.fromarray(bright[:, :, 0]).save(tmp_path / "a_mask" / "00000.png")
    video = read_videos(tmp_path, size=16).video(0)
    assert video.frames.shape[2:] == (16, 40)
    other = (video.frames[:, 0] > 127) != video.masks.bool()
    assert other.float().mean() < 0.02


def test_a_folder_is_divided_by_video(tmp_path):
    for number in range(12):
        write_video(tmp_path / f"{number:02}", 2, seed=number)
    data = load(str(tmp_path), kind="video")
    assert (len(data.train), len(data.test), data.frames) == (11, 1, 2)
    assert load(str(tmp_path)).train.images.ndim == 4  # without a word, folders are classes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.mkdir(), "must hold folders of frames"),
        (lambda p: write_video(p / "a", 2), "needs two videos, .*, got 1"),
        (lambda p: (write_video(p / "a", 2, mask=p / "a_mask"), (p / "a_mask/00001.png").unlink()),
         "every frame needs a mask in .*, got none for .*00001"),
        (lambda p: (write_video(p / "a", 2), (p / "a/00001.png").write_bytes(b"no")),
         "every frame must be readable"),
        (lambda p: (write_video(p / "a", 1), write_video(p / "b", 1, (8, 8), mask=p / "a_mask")),
         "equal in size|as large as its frame"),
    ],
)  # fmt: skip
def test_folders_are_refused(tmp_path, make, message):
    make(tmp_path / "v")
    with pytest.raises(ValueError, match=message):
        load_video_folder(tmp_path / "v")
    with pytest.raises(FileNotFoundError, match="path must exist"):
        read_videos(tmp_path / "nothing")


# kinds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("simclr", "moving-shapes", "simclr: needs images, got videos: moving-shapes"),
        ("video-colorization", "digits", "video-colorization: needs videos, got images: digits"),
        ("video-colorization", "tones", "video-colorization: needs videos, got sound at 4,000 Hz"),
    ],
)
def test_methods_say_what_they_learn_from(name, data, message):
    shape = shape_of(load(data, size=8))
    config = METHODS[name].config(data=data)
    with pytest.raises(ValueError, match=message):
        build_method(name, config, shape, World(0, 1, torch.device("cpu")))


def test_every_method_has_a_kind():
    kinds = {name: entry.kind for name, entry in METHODS.items()}
    assert kinds["cpc-audio"] == "sound"
    assert kinds["video-colorization"] == "video"
    assert kinds["simclr"] == TrainConfig.kind == "image"
    assert "kind" not in asdict(TrainConfig())  # no flag
