"""The report: one safe file, whatever a run folder holds or lacks."""

import base64
import io
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sslops.training.cli import main
from sslops.training.data import Dataset, Split
from sslops.training.evaluate.pictures import (
    OTHER,
    SAME,
    neighbours_png,
    pairs_png,
    pick_queries,
    write_pictures,
)
from sslops.training.report.compare import compare, write_comparison
from sslops.training.report.page import picture, titled
from sslops.training.report.report import write_report
from sslops.training.report.svg import Line, line_chart, nice_ticks, scatter

EVIL = "<img src=x onerror=alert(1)>&\"'"


def arm(base: float) -> dict[str, Any]:
    few = {str(n): {"mean": base + 0.01 * n, "sd": 0.02} for n in (1, 2, 5, 10)}
    return {
        "dim": 64, "feature_spread": 0.9, "rank": 20.0, "knn": base + 0.1, "knn_k": 5,
        "linear": base + 0.2, "linear_C": 10.0, "few": few,
        "nmi": base - 0.1, "ari": base - 0.2, "cluster_accuracy": base,
    }  # fmt: skip


def make_run(folder: Path, *, method: str = "simclr", class_name: str = "zero") -> Path:
    (folder / "pictures").mkdir(parents=True)
    rng = np.random.default_rng(0)
    write = {
        "config.json": {"method": method, "data": "digits", "arch": "cnn-tiny", "batch": 256,
                        "epochs": 4, "seed": 0, "lr": 1e-3},
        "env.json": {"sslops": "0.1.0", "device_name": "a CPU", "device": "cpu",
                     "command": ["sslops", "train"]},
        "encoder.json": {"dim": 64},
        "results.json": {
            method: arm(0.7), "random-init": arm(0.4), "pixels": arm(0.6), "supervised": arm(0.75),
            "protocol": {"data": "digits", "probe_images": 100, "test_images": 50, "seed": 0,
                         "class_names": [class_name, "one"], "knn": {"temperature": 0.07},
                         "few": {"draws": 5}},
            "cost": {"training_seconds": 61.0, "images_per_second": 2000.0, "peak_memory_gb": 0.5,
                     "encoder_parameters": 1234, "steps": 40},
        },
    }  # fmt: skip
    for name, content in write.items():
        (folder / name).write_text(json.dumps(content))
    lines = [
        {"step": s, "epoch": s / 10, "loss": 6.2 * math.exp(-s / 30), "chance": 6.236, "lr": 1e-3,
         "accuracy": s / 50, "feature_spread": 0.8,
         "images_per_second": 2000.0, "data_wait": 0.01, "memory_gb": 0.5}
        for s in range(0, 41, 10)
    ]  # fmt: skip
    lines[-1]["knn"] = 0.9
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    np.savez(
        folder / "features.npz",
        before=rng.normal(size=(30, 2)).astype(np.float32),
        after=rng.normal(size=(30, 2)).astype(np.float32),
        labels=np.arange(30) % 2,
        classes=np.array([class_name, "one"]),
    )
    png = pairs_png(torch.rand(3, 4, 1, 8, 8))
    for name in ("views", "neighbours", "neighbours-before"):
        (folder / "pictures" / f"{name}.png").write_bytes(png)
    return folder


def html_of(folder: Path) -> str:
    path = write_report(folder)
    assert path == folder / "report.html"
    text = path.read_text(encoding="utf-8")
    assert text.rstrip().endswith("</html>")
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text.lower())
    return text


def test_report_is_one_file_that_loads_nothing(tmp_path):
    html = html_of(make_run(tmp_path / "run"))
    assert not list((tmp_path / "run").glob("*.partial"))
    loads = re.findall(r"(?:src|href|srcset|data|action)=\"([^\"]*)\"|url\(([^)]*)\)", html)
    assert loads
    assert all((a or b).startswith("data:") for a, b in loads)
    assert "<script" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html


def test_report_shows_every_part(tmp_path):
    html = html_of(make_run(tmp_path / "run"))
    for text in (
        "chance 6.24", "collapse below 0.3", "With 1 label a class", "71.0 % of the test images",
        "10.0 points above raw pixels", "30.0 points above the same network untrained",
        "All numbers", "Untrained encoder", "After simclr", "Nearest neighbours",
        "Augmented views", "1 min 01 s", "2,000", "0.50 GB", "not comparable with published",
        "temperature: 0.07", "load_encoder", "sslops 0.1.0", "prefers-color-scheme:dark",
    ):  # fmt: skip
        assert text in html, text
    assert html.count("data:image/png;base64") == 3
    assert 'class="missing' not in html


def test_a_worse_method_is_called_worse(tmp_path):
    run = make_run(tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    results["simclr"] = arm(0.5)
    (run / "results.json").write_text(json.dumps(results))
    assert "10.0 points below raw pixels" in html_of(run)


def test_names_are_escaped(tmp_path):
    html = html_of(make_run(tmp_path / "run", method=EVIL, class_name=EVIL))
    assert "<img src=x" not in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in html


@pytest.mark.parametrize(
    "gone",
    ["env.json", "encoder.json", "results.json", "metrics.jsonl", "features.npz", "pictures"],
)
def test_a_missing_part_leaves_a_sentence(tmp_path, gone):
    run = make_run(tmp_path / "run")
    path = run / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    html = html_of(run)
    if gone not in ("env.json", "encoder.json"):
        assert 'class="missing' in html


def test_only_a_config_is_enough(tmp_path):
    (tmp_path / "config.json").write_text('{"method": "simclr", "data": "digits"}')
    assert "has not logged a step yet" in html_of(tmp_path)


def test_an_interrupted_run_says_how_to_go_on(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "results.json").unlink()
    (run / "checkpoint" / "last").mkdir(parents=True)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "lo')  # cut off
    html = html_of(run)
    assert "the last record is of step 40" in html
    assert "--resume" in html


def test_numbers_that_are_not_finite_are_left_out(tmp_path):
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "loss": NaN, "chance": 6.2, "feature_spread": Infinity}\n')
    assert "Last value 1.634" in html_of(run)


def test_results_without_labels(tmp_path):
    run = make_run(tmp_path / "run")
    bare = {"dim": 64, "feature_spread": 0.9, "rank": 20.0}
    failed = {"dim": 64, "failed": "features are not finite"}
    results = {"simclr": bare, "pixels": bare, "random-init": failed}
    (run / "results.json").write_text(json.dumps(results))
    html = html_of(run)
    assert "Accuracy against number of labels" not in html
    assert "Without labels of the images nothing says how good the features are." in html
    assert "random-init: features are not finite." in html


def test_not_a_run_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must be a run folder with a config\.json"):
        write_report(tmp_path)
    with pytest.raises(FileNotFoundError, match="must be a run folder"):
        compare([tmp_path])
    with pytest.raises(ValueError, match="at least one run folder, got none"):
        compare([])


def test_compare_of_all_that_lies_in_a_folder(tmp_path, capsys):
    """As the closing lines of a run propose it: sslops compare runs/*."""
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b", method="moco")
    (tmp_path / "notes.txt").write_text("to do")
    (tmp_path / "seeds" / "seed0").mkdir(parents=True)
    page = tmp_path / "all.html"
    assert main(["compare", *map(str, sorted(tmp_path.iterdir())), "--out", str(page)]) == 0
    said = capsys.readouterr()
    assert str(first) in said.out
    assert str(second) in said.out
    assert page.is_file()
    left_out = f"{tmp_path / 'notes.txt'}, {tmp_path / 'seeds'}"
    assert said.err == f"sslops compare: left out, as they are no run folders: {left_out}\n"
    assert main(["compare", str(first), str(tmp_path / "absent")]) == 2
    assert main(["compare", str(tmp_path / "seeds")]) == 2
    assert "seeds must be a run folder with a config.json" in capsys.readouterr().err


def test_compare_marks_runs_on_other_data(tmp_path):
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b", method="moco")
    assert "*" not in compare([first, second])
    results = json.loads((second / "results.json").read_text())
    results["protocol"]["probe_images"] = 7
    (second / "results.json").write_text(json.dumps(results))
    text = compare([first, second])
    head, _, *rows = text.splitlines()
    assert head.split()[:3] == ["run", "method", "data"]
    assert "71.0 ± 2.0" in rows[0]
    assert f"{second} *" in rows[1]
    assert "not comparable" in rows[2]
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.json").write_text('{"method": "moco", "data": "digits"}')
    assert "*" not in compare([tmp_path / "c", first])  # what is not evaluated sets no measure


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("images", [150, 7])
def test_compare_marks_runs_without_labels_by_their_neighbours(tmp_path, older, images):
    """Their number of images has another name, and in older files that of the probes."""
    arms = {"simclr": {"dim": 8, "feature_spread": 0.9, "rank": 4.0}}
    for name, n in (("a", 150), ("b", images)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"method": "simclr", "data": "photos"}')
        key = "train_images" if older and name == "b" else "neighbour_images"
        protocol = {"data": "photos", key: n, "test_images": 50, "classes": 0}
        (tmp_path / name / "results.json").write_text(json.dumps({**arms, "protocol": protocol}))
    text = compare([tmp_path / "a", tmp_path / "b"])
    assert (f"{tmp_path / 'b'} *" in text) == ("not comparable" in text) == (images != 150)


def test_the_page_of_a_comparison_shows_pictures_that_differ(tmp_path):
    runs = [make_run(tmp_path / name) for name in "abc"]
    for i, run in enumerate(runs):
        config = json.loads((run / "config.json").read_text()) | {"adversarial": i / 2}
        (run / "config.json").write_text(json.dumps(config))
        for name in ("views", "neighbours-before", "filled"):
            bright = torch.full((3, 4, 1, 8, 8), 0.0 if name == "views" else i / 2)
            (run / "pictures" / f"{name}.png").write_bytes(pairs_png(bright))
    (runs[2] / "pictures" / "filled.png").unlink()  # a run may lack what others have
    text = write_comparison([*runs, runs[0]], tmp_path / "page.html").read_text()
    assert text.count("<img") == 2 + 3  # of each run once: filled; neighbours are random pictures
    assert all(f"<h2>{name}</h2>" in text for name in ("Filled", "Neighbours"))
    for i, run in enumerate(runs):
        assert text.count(f"<h3>{run}</h3>") == (2 if i < 2 else 1)
        assert f"<figcaption>adversarial {i / 2}</figcaption>" in text


def stripes(n: int) -> Split:
    """Images whose class is the row that is lit."""
    labels = torch.arange(n) % 4
    images = torch.zeros(n, 1, 4, 4, dtype=torch.uint8)
    images[torch.arange(n), 0, labels] = 200
    return Split(images, labels)


def pixel_of(png: bytes, x: int, y: int) -> tuple[int, ...]:
    return Image.open(io.BytesIO(png)).getpixel((x, y))


def test_neighbours_are_framed_by_class():
    test, gallery = stripes(8), stripes(12)
    queries = torch.tensor([0, 1])
    side = 32 + 2 * 2 + 2  # images of 4 pixels enlarged eight times, frames and gaps of two
    x = side + 2 + 1  # the frame of the first neighbour
    right = neighbours_png(nn.Flatten(), test, queries, gallery, k=3)
    assert Image.open(io.BytesIO(right)).size == (side + 2 + 3 * side - 2, 2 * side - 2)
    assert pixel_of(right, x, 1) == SAME
    assert gallery.labels is not None
    moved = Split(gallery.images, (gallery.labels + 1) % 4)
    wrong = neighbours_png(nn.Flatten(), test, queries, moved, k=3)
    assert pixel_of(wrong, x, side + 1) == OTHER
    corner = (side + 2 + 36 - 4, 4)  # inside the frame at its upper right
    assert pixel_of(wrong, *corner) == OTHER != pixel_of(right, *corner)
    assert pixel_of(wrong, 1, 1)[3] == 0  # outside frames it is transparent


@pytest.mark.parametrize(
    ("height", "width", "cell"),
    [(8, 8, (32, 32)), (28, 28, (28, 28)), (32, 32, (32, 32)), (64, 96, (96, 64)),
     (65, 65, (64, 64)), (128, 32, (16, 64))],
)  # fmt: skip
def test_pictures_are_enlarged_by_whole_factors(height, width, cell):
    views = torch.rand(2, 20, 3, height, width)
    sheet = Image.open(io.BytesIO(pairs_png(views, columns=5)))
    gap = 4 if cell[1] == 64 else 2
    assert sheet.size == (5 * (cell[0] + gap) - gap, 2 * (cell[1] + gap) - gap)
    if height <= 64:
        zoom = cell[1] // height
        last = sheet.crop((sheet.width - cell[0], sheet.height - cell[1], *sheet.size))
        pixels = torch.from_numpy(np.array(last.convert("RGB"))).permute(2, 0, 1)
        want = views[1, 4].mul(255).round().to(torch.uint8)
        assert torch.equal(pixels, want.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2))


def test_pairs_picture_wants_a_grid():
    with pytest.raises(ValueError, match=r"\[rows, B, C, H, W\], got \(2, 3\)"):
        pairs_png(torch.rand(2, 3))


def test_the_page_holds_pictures_small_and_crisp():
    photo = torch.nn.functional.interpolate(torch.rand(2, 12, 3, 8, 8)[0], 32, mode="bicubic")
    photo = (photo + 0.05 * torch.randn_like(photo))[None]
    drawing = (torch.rand(1, 1, 3, 4, 4) > 0.5).float()
    for grid, wide, kind, zoom in (
        (photo, True, "webp", 2),  # 406 pixels wide
        (photo, False, "webp", 1),
        (drawing, False, "png", 4),  # to the bit
    ):
        png = pairs_png(grid)
        width, height = Image.open(io.BytesIO(png)).size
        html = picture(png, "a > b", wide=wide)
        match = re.fullmatch(r'<img src="data:image/(\w+);base64,([^"]+)" (.*)>', html)
        assert match is not None
        assert match[1] == kind
        assert match[3] == f'width="{zoom * width}" height="{zoom * height}" alt="a &gt; b"'
        assert Image.open(io.BytesIO(base64.b64decode(match[2]))).size == (width, height)
        assert len(match[2]) <= 4 / 3 * len(png) + 4
    assert len(picture(pairs_png(photo), "")) < len(pairs_png(photo)) / 2
    assert "cut off" in picture(pairs_png(photo)[:200], "")
    wide = pairs_png(torch.rand(1, 12, 3, 32, 1400))  # WebP ends at 16,383 pixels
    assert "image/png" in picture(wide, "")


def test_queries_are_of_different_classes():
    split = stripes(40)
    assert split.labels is not None
    chosen = pick_queries(split, 4, seed=0)
    assert split.labels[chosen].tolist() == [0, 1, 2, 3]
    assert split.labels[pick_queries(split, 8, seed=0)].bincount().tolist() == [2, 2, 2, 2]
    assert len(pick_queries(Split(split.images, None), 8, seed=0).unique()) == 8


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [True, False])
def test_write_pictures(tmp_path, labelled):
    part = stripes(24) if labelled else Split(stripes(24).images, None)
    data = Dataset("stripes", part, part, tuple("abcd") if labelled else (), "none", "here")
    arms = {"simclr": nn.Flatten(), "random-init": nn.Flatten(), "pixels": None}
    write_pictures(tmp_path, data, arms, torch.rand(2, 6, 1, 4, 4), 0)
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {"views.png", "neighbours.png", "neighbours-before.png"}
    with np.load(tmp_path / "features.npz") as arrays:
        assert arrays["before"].shape == arrays["after"].shape == (24, 2)
        assert ("labels" in arrays.files) == labelled
    (tmp_path / "config.json").write_text('{"method": "simclr", "data": "stripes"}')
    assert "After simclr" in html_of(tmp_path)


def test_ticks_are_round_and_within():
    assert nice_ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert nice_ticks(-27, 31) == [-20, 0, 20]
    assert nice_ticks(2, 2) == [2]


def test_charts_of_one_point_and_equal_values():
    one = line_chart([Line([(5, 1.0)], "method", label="x")], title="t", x_label="s", log_x=True)
    flat = line_chart([Line([(0, 2.0), (9, 2.0)], "method")], title="t", x_label="s")
    still = scatter(np.zeros((5, 2)), None, (), title="t")
    for svg in (one, flat, still):
        assert svg.startswith("<svg")
        assert "nan" not in svg
        assert "inf" not in svg


def test_labels_at_the_end_of_curves_have_room():
    for label in ("x", "video-colorization"):
        svg = line_chart([Line([(0, 1.0), (9, 2.0)], "method", label)], title="t", x_label="s")
        start = float(re.search(rf'x="([\d.]+)"[^>]*>{label}<', svg)[1])  # type: ignore[index]
        assert start + 7.4 * len(label) <= 460  # a bold letter at 13.5 px


def test_titles_keep_the_capitals_of_names():
    assert titled("grey-T=1-true") == "Grey T=1 true"
