"""Picture files that are odd, damaged or of other modes: read, remarked or named, never destroyed.

A damage is registered in DAMAGES, a mode in MODES, a kind of mask in MASKS; each place that opens
pictures in PLACES.
"""

import gzip
import io
import re
import tarfile
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from sslops.training import data
from sslops.training.data import cifar10, notes
from sslops.training.data.video_folder import read_videos

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SSLOPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SSLOPS_DATA", raising=False)


def encoded(image, kind="png", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


GOOD = encoded(Image.fromarray(RAMP))


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


# Where pictures are opened: one of them is odd, and read as a load of everything.


def in_folder(root, content):
    for k in range(3):
        write(root / "set" / f"{k}.png", GOOD)
    write(root / "set" / "odd.png", content)
    return lambda: data.load(str(root / "set"))


def in_tar(root, content):
    in_folder(root, content)
    with tarfile.open(root / "set.tar", "w") as archive:
        archive.add(root / "set", "set")
    return lambda: data.load(str(root / "set.tar"))


def in_frames(root, content):
    write(root / "set" / "v" / "0.png", GOOD)
    write(root / "set" / "w" / "odd.png", content)
    return lambda: data.load(str(root / "set"), kind="video")


def in_masks(root, content):
    for name in ("v", "w"):
        write(root / "set" / name / "odd.png", GOOD)
    write(root / "set" / "v_mask" / "odd.png", content)
    return lambda: data.load(str(root / "set"), kind="video")


PLACES = {"folder": in_folder, "tar": in_tar, "frames": in_frames, "masks": in_masks}
DAMAGES = {
    "empty": b"",
    "text": b"<html>404</html>",
    "cut": encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)))[
        :2000
    ],
    "cut jpeg": encoded(Image.fromarray(RAMP).resize((99, 99)), "jpeg")[:-200],
    "header alone": GOOD[:20],
    "noise": GOOD[:16] + bytes(range(200)),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_read_is_named(tmp_path, place, damage):
    with pytest.raises(ValueError, match=r"every \w+ must be readable, got .*odd\.png: \S"):
        PLACES[place](tmp_path, DAMAGES[damage])()


@pytest.mark.parametrize("place", PLACES)
def test_a_picture_too_large_is_named(tmp_path, monkeypatch, place):
    """Above twice Pillow's limit it refuses, above it it warns; both are made smaller here."""
    load = PLACES[place](tmp_path, GOOD)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"must be readable, got .*png: Image size \(256 pixels\)"):
        load()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load()


@pytest.mark.parametrize("place", ["folder", "frames", "masks"])
def test_a_folder_named_as_a_picture_is_a_folder(tmp_path, place):
    load = PLACES[place](tmp_path, GOOD)
    (tmp_path / "set" / "empty.png").mkdir()
    (tmp_path / "set" / "v").mkdir(exist_ok=True)
    (tmp_path / "set" / "v" / "empty.png").mkdir()
    load()


# Archives.


@pytest.mark.parametrize("packing", ["w", "w:gz", "w:bz2", "w:xz"])
def test_any_cut_of_an_archive_is_named(tmp_path, capsys, packing):
    in_folder(tmp_path, GOOD)
    path = tmp_path / "set.tar"
    with tarfile.open(path, packing) as archive:
        archive.add(tmp_path / "set", "set")
    whole = path.read_bytes()
    for end in range(0, len(whole), 1 + len(whole) // 20):
        path.write_bytes(whole[:end])
        try:
            found = data.load(str(path))
        except ValueError as error:
            if not re.search("folder: must |must be readable|needs two", str(error)):
                raise
        else:
            count = len(found.train) + len(found.test)
            said = f"{path} has no mark of its end: it may be cut off" in capsys.readouterr().err
            assert said or count == 4
        notes._said.clear()


@pytest.mark.parametrize("packing", ["w", "w:gz"])
@pytest.mark.parametrize("damage", ["header", "end"])
def test_an_archive_without_a_mark_of_its_end_is_named(tmp_path, capsys, packing, damage):
    """tarfile takes a damaged header for the end, and leaves out what follows."""
    in_folder(tmp_path, GOOD)
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        archive.add(tmp_path / "set", "set")
    with tarfile.open(path) as archive:
        third = archive.getmembers()[3].offset  # of the folder's header, then the pictures'
    content = bytearray(path.read_bytes())
    if damage == "header":
        content[third + 150] ^= 1  # of the checksum
    else:
        del content[len(content.rstrip(b"\0")) // 512 * 512 + 512 :]
    path.write_bytes(bytes(content) if packing == "w" else gzip.compress(content))
    found = data.load(str(path))
    assert len(found.train) + len(found.test) == (2 if damage == "header" else 4)
    assert f"{path} has no mark of its end: it may be cut off" in capsys.readouterr().err


def test_a_link_to_nothing_in_an_archive_is_named(tmp_path):
    in_folder(tmp_path, GOOD)
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(tmp_path / "set", "set")
        link = tarfile.TarInfo("set/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "nowhere.png"
        archive.addfile(link)
    with pytest.raises(ValueError, match=r"must be a folder or a tar, got .*set\.tar: .*nowhere"):
        data.load(str(tmp_path / "set.tar"))


@pytest.mark.parametrize("what", ["archive", "batch", "labels"])
def test_a_damaged_cifar10_is_named(tmp_path, what):
    from .test_data import write_batches

    folder = write_batches(tmp_path)
    place = folder
    if what == "batch":
        batch = folder / "data_batch_2"
        batch.write_bytes(batch.read_bytes()[:-500])
    elif what == "labels":
        import pickle

        odd = {"data": np.zeros((3, 3072), np.uint8), "labels": [1, 2]}
        (folder / "data_batch_2").write_bytes(pickle.dumps(odd, protocol=2))
    else:
        place = tmp_path / cifar10.ARCHIVE
        with tarfile.open(place, "w:gz") as archive:
            archive.add(folder, folder.name)
        content = place.read_bytes()
        place.write_bytes(gzip.compress(gzip.decompress(content))[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cifar10: .*got"):
        data.load("cifar10", root=place)


# Modes: what a picture with a ramp from 0 to 255 becomes.


def ramp16(scale):
    return Image.fromarray(RAMP.astype(np.uint16) * scale)


def seen_through(mode, colour):
    """A ramp of opacity over one colour."""
    image = Image.new("RGBA", (16, 16), colour)
    image.putalpha(Image.fromarray(RAMP))
    return image.convert(mode)


PALETTED = Image.fromarray(RAMP).convert("P")
PALETTED.putpalette([each for k in range(256) for each in (k, k, k)])
RAMPS = {
    "1": (Image.fromarray(RAMP > 127), (RAMP > 127) * 255),
    "L": (Image.fromarray(RAMP), RAMP),
    "P": (PALETTED, RAMP),
    "RGB": (Image.fromarray(RAMP).convert("RGB"), RAMP),
    "LA": (Image.fromarray(RAMP).convert("LA"), RAMP),
    "RGBA": (Image.fromarray(RAMP).convert("RGBA"), RAMP),
    "CMYK": (Image.fromarray(RAMP).convert("RGB").convert("CMYK"), RAMP),
    "I;16, 8 bits used": (ramp16(1), RAMP),
    "I": (Image.fromarray(RAMP.astype(np.int32)), RAMP),
    "F": (Image.fromarray(RAMP.astype(np.float32)), RAMP),
}


@pytest.mark.parametrize("mode", RAMPS)
def test_a_ramp_stays_a_ramp(tmp_path, capsys, mode):
    image, expected = RAMPS[mode]
    load = in_folder(tmp_path, encoded(image, "tiff"))
    found = load()
    every = torch.cat([found.train.images, found.test.images])
    assert any(np.array_equal(each[0].numpy(), expected) for each in every)
    assert capsys.readouterr().err == ""


SAID = {
    "black, seen through": (seen_through("RGBA", "black"), "transparent parts, which are white"),
    "white, seen through": (seen_through("RGBA", "white"), "transparent parts, which are black"),
    "grey, seen through": (seen_through("LA", "black"), "transparent parts, which are white"),
    "fractions": (Image.fromarray(RAMP / np.float32(2)), "fractions, which are rounded"),
}


@pytest.mark.parametrize("case", SAID)
def test_what_is_not_kept_is_said(tmp_path, capsys, case):
    image, message = SAID[case]
    load = in_folder(tmp_path, encoded(image, "tiff"))
    for _ in range(2):  # decoded, then from the cache
        found = load()
    every = torch.cat([found.train.images, found.test.images])
    assert min(len(each.unique()) for each in every) > 100, "still to be seen"
    assert capsys.readouterr().err.count(f"1 images with {message}") == 1


def test_more_frames_and_more_bits_are_said(tmp_path, capsys):
    frames = [Image.new("L", (16, 16), value) for value in (9, 99)]
    in_folder(tmp_path, encoded(frames[0], "gif", save_all=True, append_images=frames[1:]))()
    assert (
        "several frames, of which the first is read (the first: odd.png)" in capsys.readouterr().err
    )
    # Pillow reads RGB of 16 bits, and does not write it.
    import struct
    import zlib

    def part(name, content):
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b"".join(b"\0" + bytes(range(6)) * 16 for _ in range(16))
    png = b"\x89PNG\r\n\x1a\n" + part(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0))
    png += part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")
    in_folder(tmp_path / "b", png)()
    assert "16 bits a channel, of which 8 are read (the first: odd.png)" in capsys.readouterr().err


@pytest.mark.parametrize("image", [ramp16(257), ramp16(16), Image.fromarray(RAMP / np.float32(255)),
                                   Image.fromarray(RAMP.astype(np.int32) - 9)])  # fmt: skip
@pytest.mark.parametrize("place", ["folder", "frames"])
def test_values_that_do_not_fit_are_refused(tmp_path, place, image):
    with pytest.raises(ValueError, match=r"must have values of 8 bits, got .* in .*odd\.png"):
        PLACES[place](tmp_path, encoded(image, "tiff"))()


# Masks: two objects, or one, as people save them.

NUMBERS = np.zeros((16, 16), np.uint8)
NUMBERS[2:7, 2:7], NUMBERS[9:14, 4:12] = 1, 2
ONE = (NUMBERS > 0).astype(np.uint8)


def paletted(numbers, colours=((0, 0, 0), (128, 0, 0), (0, 128, 0))):
    image = Image.fromarray(numbers).convert("P")
    image.putpalette([each for colour in colours for each in colour])
    image.putdata(numbers.flatten().tolist())
    return image


def smooth():
    """Edges between 0 and 255, as of a mask that was made smaller."""
    return Image.fromarray(ONE * 255).resize((64, 64)).resize((16, 16), Image.Resampling.LANCZOS)


SMOOTH = smooth()
MASKS = {
    "palette": (paletted(NUMBERS), NUMBERS),
    "numbers in L": (Image.fromarray(NUMBERS), NUMBERS),
    "one number in L": (Image.fromarray(ONE), ONE),
    "numbers in RGB": (Image.fromarray(NUMBERS).convert("RGB"), NUMBERS),
    "numbers in I;16": (Image.fromarray(NUMBERS.astype(np.uint16)), NUMBERS),
    "one bit": (Image.fromarray(ONE > 0), ONE),
    "bright": (Image.fromarray(ONE * 255), ONE),
    "bright, not white": (Image.fromarray(ONE * 200), ONE),
    "bright in RGB": (Image.fromarray(ONE * 255).convert("RGB"), ONE),
    "bright in RGBA": (Image.fromarray(ONE * 255).convert("RGBA"), ONE),
    "bright in 16 bits": (Image.fromarray(ONE.astype(np.uint16) * 65535), ONE),
    "smooth": (SMOOTH, np.asarray(SMOOTH) > 127),
}
REFUSED = {
    "levels": (Image.fromarray(NUMBERS * 85), "got areas of 85, 170"),
    "bright levels": (Image.fromarray(NUMBERS * 100 + 50 * ONE), "got areas of 150, 255"),
    "a void of 255": (Image.fromarray(np.where(NUMBERS == 2, 255, NUMBERS)), "areas of 1, 255"),
    "colours": (paletted(NUMBERS).convert("RGB"), "got colours"),
    "instances": (Image.fromarray(NUMBERS.astype(np.uint16) * 1000), "got values from 0 to 2000"),
    "fractions": (Image.fromarray(NUMBERS / np.float32(2)), "got mode F"),
    "transparent": (seen_through("RGBA", "white"), "got transparency"),
    "inks": (Image.fromarray(ONE * 255).convert("CMYK"), "got mode CMYK"),
}


def with_mask(root, image):
    kind = "tiff" if image.mode in ("F", "CMYK") else "png"
    return in_masks(root, encoded(image, kind))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("size", [None, 8])
def test_masks_tell_which_object_is_where(tmp_path, mask, size):
    image, expected = MASKS[mask]
    with_mask(tmp_path, image)
    found = read_videos(tmp_path / "set", size=size).video(0).masks[0].numpy()
    if size is None:
        assert np.array_equal(found, expected)
    else:
        assert np.array_equal(np.unique(found), np.unique(expected))


@pytest.mark.parametrize("mask", REFUSED)
def test_masks_that_do_not_tell_are_refused(tmp_path, mask):
    image, message = REFUSED[mask]
    with pytest.raises(ValueError, match=rf"mask must .*{message}.*odd\.png"):
        with_mask(tmp_path, image)()


def test_a_frame_that_shows_a_rim_alone_is_read_as_its_video(tmp_path):
    """50 at the edge of a bright object is no object number 50."""
    rim = np.zeros((16, 16), np.uint8)
    rim[0, 3:6] = 50
    for name, mask in (("0", ONE * 255), ("1", rim)):
        write(tmp_path / "v" / f"{name}.png", GOOD)
        write(tmp_path / "v_mask" / f"{name}.png", encoded(Image.fromarray(mask)))
    masks = read_videos(tmp_path).video(0).masks
    assert masks[0].any()
    assert not masks[1].any()


def test_masks_of_jpeg_may_be_noisy(tmp_path):
    write(tmp_path / "v" / "0.png", encoded(Image.fromarray(RAMP).resize((64, 64))))
    large = np.asarray(Image.fromarray(ONE * 255).resize((64, 64), Image.Resampling.NEAREST))
    write(tmp_path / "v_mask" / "0.jpg", encoded(Image.fromarray(large), "jpeg", quality=60))
    assert ((read_videos(tmp_path).video(0).masks[0] > 0).numpy() == (large > 0)).mean() > 0.98
