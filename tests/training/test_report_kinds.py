"""What a page says fits what it shows: every kind of data, with labels and without."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sslops.training.data import Dataset, Split
from sslops.training.evaluate import evaluate, table
from sslops.training.evaluate.pictures import pairs_png
from sslops.training.evaluate.verdict import over_seeds, verdict
from sslops.training.report.compare import compare, write_comparison
from sslops.training.report.report import write_report
from sslops.training.report.results import arm_style
from sslops.training.report.run_folder import CONTROLS, Run
from sslops.training.report.style import STYLE
from sslops.training.report.summary import summarise, summary_table

from .test_evaluate import tiny_data
from .test_report import arm, make_run

BARE = {"dim": 64, "feature_spread": 0.9, "rank": 20.0}
FOLLOWED = {"dim": 64, "J": 0.4, "F": 0.3, "PCK": 0.2}
CASES = {
    "images": (
        "simclr", "digits", {"simclr": arm(0.7), "random-init": arm(0.4), "pixels": arm(0.6)},
        {"probe_images": 100, "test_images": 50}, {},
    ),
    "images without labels": (
        "simclr", "photos",
        {"simclr": {**BARE, "neighbours_kept": 0.25}, "random-init": BARE, "pixels": BARE},
        {"neighbour_images": 100, "test_images": 50}, {},
    ),
    "sound": (
        "cpc-audio", "tones",
        {"cpc-audio": arm(0.7), "random-init": arm(0.4), "log-mel": arm(0.6)},
        {"probe_images": 100, "test_images": 50, "knn": {"chosen_by": "on 9 training images"}},
        {"rate": 4000},
    ),
    "sound without labels": (
        "cpc-audio", "tones", {"cpc-audio": BARE, "random-init": BARE, "log-mel": BARE},
        {"neighbour_images": 100, "test_images": 50}, {"rate": 4000},
    ),
    "videos": (
        "video-colorization", "moving-shapes",
        {"video-colorization": FOLLOWED, "random-init": {**FOLLOWED, "J": 0.3},
         "identity": {**FOLLOWED, "dim": 0, "J": 0.5}},
        {"train_videos": 100, "test_videos": 50, "propagation": {}}, {"frames": "each"},
    ),
    "videos without masks": (
        "video-colorization", "moving-shapes",
        {"video-colorization": {"dim": 64}, "random-init": {"dim": 64}, "identity": {"dim": 0}},
        {"train_videos": 100, "test_videos": 50, "propagation": {}}, {"frames": "each"},
    ),
}  # fmt: skip

OTHERS = {"images": ("recordings", "videos"), "sound": ("images", "videos"),
          "videos": ("images", "recordings")}  # fmt: skip


def make(folder, case):
    method, data, arms, protocol, encoder = CASES[case]
    run = make_run(folder, method=method)
    config = json.loads((run / "config.json").read_text())
    cost = {"training_seconds": 2.0, "images_per_second": 1.0, "steps": 1, "epochs": 1.0,
            "train_images": 1}  # fmt: skip
    results = {**arms, "protocol": {"data": data, **protocol}, "cost": cost,
               "pretext": {"accuracy": 0.123}}  # fmt: skip
    for name, content in {
        "config.json": {**config, "data": data, "epochs": 50},
        "results.json": results,
        "encoder.json": {"dim": 64, **encoder},
    }.items():
        (run / name).write_text(json.dumps(content))
    if "without" in case:
        points = np.random.default_rng(0).normal(size=(2, 9, 2))
        np.savez(run / "features.npz", before=points[0], after=points[1])
    for path in (run / "pictures").iterdir():
        path.unlink()
    names = {"images": ("views", "neighbours", "neighbours-before"), "videos": ("frames",)}
    for name in names.get(case.split()[0], ()):
        (run / "pictures" / f"{name}.png").write_bytes(pairs_png(torch.rand(2, 3, 1, 8, 8)))
    return run


def text_of(page):
    page = re.sub(r"<style>.*?</style>|base64,[^\"]*", "", page, flags=re.S)
    return html.unescape(re.sub(r"<[^>]+>", " ", page))


@pytest.mark.parametrize("case", CASES)
def test_the_page_fits_the_run(tmp_path, case):
    text = text_of(write_report(make(tmp_path / "run", case)).read_text())
    said = text.split("Configuration")[0]
    kind = case.split()[0]
    for word in OTHERS[kind]:
        assert not re.search(rf"\b{word}\b", said), word
    one = {"images": "image", "sound": "recording", "videos": "video"}[kind]
    assert f"trained on 1 {one} ·" in said
    assert "1 step in 1 epoch ·" in said
    assert "50 epochs" not in said
    assert not re.search(r"\b1 (images|recordings|videos|steps|epochs|labels|features)\b", said)
    assert "(s)" not in said
    assert re.search(r"accuracy\s+12\.3 %", said)
    scored = "Accuracies in percent" in said
    assert scored == (case in ("images", "sound"))
    assert ("Accuracy against number of labels" in said) == scored
    for words in ("same class", "coloured by class", "k and C were chosen"):
        assert scored or words not in said
    controls = {
        "pixels": "raw pixels",
        "log-mel": "log-mel spectra",
        "supervised": "trained with labels",
        "identity": "first frame's masks, copied",
    }
    protocol = said[said.index("Protocol") :]
    for name, words in controls.items():
        assert (words in protocol) == (name in CASES[case][2]), name
    first = said[said.index("UTC") :][:400]
    opening = {
        "images": "With 1 label a class, features of simclr name 71.0 % of the test images right",
        "sound": "10.0 points above log-mel",
        "videos": "Objects are followed with an overlap J of 40.0 %: 10.0 points above the same"
        " network untrained and 10.0 points below copying the first frame's masks.",
    }
    assert opening.get(case, "The loss ended at 1.63, below the 6.24 of a model that") in first


def test_every_arm_has_a_colour():
    """An arm without one has bars and lines that nobody sees."""
    run = Run(Path("."), {"method": "jigsaw"}, {}, {}, [], {}, {}, {}, {})
    for name in ("jigsaw", *CONTROLS, "identity", "supervised-speaker"):
        assert f".{arm_style(run, name)}{{" in STYLE, name


def test_a_page_without_labels_opens_with_what_can_be_said():
    results = {"simclr": {**BARE, "neighbours_kept": 0.25}, "random-init": BARE}
    said = verdict(results, "simclr", "images", loss=3.0, chance=6.0, outputs=0.9)
    assert said == (
        "The loss ended at 3.00, below the 6.00 of a model that knows nothing. The outputs of"
        " the head, or of an encoder without one, are spread 90 % as evenly as can be: no"
        " collapse. Of the nearest training images"
        " of a test image, 75 % are others than before training. Without labels of the images"
        " nothing says how good the features are."
    )
    said = verdict(results, "simclr", "images", loss=5.95, chance=6.0, outputs=0.1)
    assert "where a model that knows nothing is (6.00): nothing was learnt." in said
    assert "they have collapsed" in said
    assert verdict({}, "simclr", "images") == ""


@pytest.mark.parametrize("outputs", [0.98, None, 0.1])
@pytest.mark.parametrize("rank", [1.0, 1.9, 2.1, 20.0, None])
def test_a_page_without_labels_says_when_features_fill_few_directions(outputs, rank):
    """Outputs of the head may be even where the encoder's features are all on one line."""
    own = {name: value for name, value in BARE.items() if name != "rank"}
    results = {"simclr": own if rank is None else {**own, "rank": rank}}
    said = verdict(results, "simclr", "images", outputs=outputs)
    low = rank is not None and rank < 2
    assert ("no collapse" in said) == (outputs == 0.98 and not low)
    assert (f"effective rank of {rank} of 64" in said) == low


def few(*accuracies):
    values = torch.tensor(accuracies, dtype=torch.float64)
    sd = float(values.std()) if len(values) > 1 else 0.0
    cell = {"mean": float(values.mean()), "sd": sd, "accuracies": list(accuracies)}
    return {"dim": 4, "few": {"1": cell}}


@pytest.mark.parametrize(
    ("pixels", "untrained", "words"),
    [
        # the same draws: they differ by much, but always by the same
        ((0.3, 0.5, 0.4), (0.2, 0.4, 0.3), "Each difference is more than its spread over 3 draws"),
        ((0.6, 0.4, 0.45), (0.2, 0.4, 0.3), "The difference from raw pixels is within its spread"),
        ((0.6, 0.4, 0.4), (0.7, 0.3, 0.4), "from raw pixels and the same network untrained are"),
    ],
)
def test_a_gain_is_held_against_the_spread_of_the_draws(pixels, untrained, words):
    results = {"simclr": few(0.4, 0.6, 0.5), "pixels": few(*pixels),
               "random-init": few(*untrained), "protocol": {}}  # fmt: skip
    said = verdict(results, "simclr", "images")
    assert words in said
    assert ("luck" in said) == (words[:4] != "Each")
    gap = torch.tensor([0.4, 0.6, 0.5]) - torch.tensor(pixels)
    where = "above" if gap.mean() >= 0 else "below"
    number = f"{100 * gap.mean().abs():.1f} points {where} raw pixels (± {100 * gap.std():.1f})"
    assert number in said


def test_a_gain_is_held_against_the_spread_of_the_seeds():
    runs = [{"simclr": few(0.5 + x), "random-init": few(0.4), "cost": {}} for x in (-0.01, 0.01)]
    said = over_seeds(summarise(runs), "simclr")
    assert said == (
        "Over 2 seeds simclr reaches 50.0 % (1 label a class): 10.0 points above the same network"
        " untrained (± 1.4). The difference is more than its spread over 2 seeds."
    )
    wide = [{"simclr": few(0.5 + x), "random-init": few(0.4), "cost": {}} for x in (-0.2, 0.2)]
    assert "within its spread over 2 seeds: it may be luck" in over_seeds(summarise(wide), "simclr")
    assert over_seeds(summarise(runs[:1]), "simclr") == ""


def test_an_evaluation_without_labels_says_what_it_measured():
    data = tiny_data(labelled=False)
    encoders = {"simclr": nn.Flatten(), "random-init": nn.Flatten(), "pixels": None}
    found = evaluate(encoders, data, seed=0)
    assert found["simclr"]["neighbours_kept"] == 1.0
    assert "neighbours_kept" not in found["random-init"]
    assert not {"knn", "linear", "few", "cluster", "stages", "probe_images", "test_labels"} & set(
        found["protocol"]
    )
    assert found["protocol"]["neighbour_images"] == len(data.train)
    assert table(found).splitlines()[0].split() == ["spread", "eff.", "rank"]
    turned = Dataset("x", Split(data.train.images.flip(0), None), data.test, (), "", "")
    assert evaluate(encoders, turned, seed=0)["simclr"]["neighbours_kept"] == 1.0
    labelled = evaluate({"pixels": None}, tiny_data(), seed=0, draws=2)
    assert {"knn", "linear", "few", "cluster", "pixels"} <= set(labelled["protocol"])
    assert "neighbours_kept" not in labelled["protocol"]


@pytest.mark.parametrize("case", CASES)
def test_a_comparison_has_no_empty_column_and_no_colour_without_a_line(tmp_path, case):
    runs = [make(tmp_path / name, case) for name in "ab"]
    head, _, *rows = compare(runs).splitlines()
    assert len(rows) == 2
    cells = list(zip(*(re.split(r"\s{2,}", row.strip()) for row in rows), strict=True))
    assert not any(set(column) == {"-"} for column in cells)
    unit = {"images": "images/s", "sound": "windows/s", "videos": "clips/s"}[case.split()[0]]
    assert head.split()[-1] == unit
    if case == "videos":
        assert ["J", "F", "PCK"] == head.split()[4:7]
    page = write_comparison([*runs, make(tmp_path / "c", "images without labels")],
                            tmp_path / "page.html").read_text()  # fmt: skip
    assert ("<h2>Figure</h2>" in page) == (case in ("images", "sound"))
    legend = re.findall(r'<div class="legend">.*?</div>', page)
    assert len(legend) == (case in ("images", "sound"))
    assert not any(str(tmp_path / "c") in each for each in legend)


@pytest.mark.parametrize("case", CASES)
def test_the_table_of_several_seeds_has_no_empty_column(case):
    arms = CASES[case][2]
    text = summary_table(summarise([{**arms, "cost": {}, "pretext": {"accuracy": 0.5}}] * 2))
    for block in text.split("\n\n"):
        head, _, *rows = block.splitlines()
        for column in zip(*(re.split(r"\s{2,}", row.strip()) for row in rows), strict=True):
            assert set(column) != {"-"}, head
    assert "accuracy, percent" in text
