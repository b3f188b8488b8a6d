"""A folder whose images all lie in one sub-folder has no labels, from training to comparison."""

import json

import pytest
import torch
from PIL import Image

from sslops.training import load_encoder
from sslops.training.cli import main

pytestmark = pytest.mark.slow

SHORT = "--steps 2 --batch 16 --width 8 --threads 1 --tsne-images 10 --image-size 8".split()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SSLOPS_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def pictures(root, *parts, n=24):
    for part in parts:
        (root / part).mkdir(parents=True)
        for k in range(n):
            Image.new("RGB", (8, 8), (9 * k, 200 - k, 5)).save(root / part / f"{k}.png")
    return str(root)


@pytest.mark.parametrize("parts", [["all"], ["train/all", "val/all"]])
def test_every_command_takes_one_class(tmp_path, capsys, parts):
    images, run = pictures(tmp_path / "images", *parts), str(tmp_path / "run")
    train = ["train", "simclr", "--data", images, "--out", run, *SHORT]
    for argv in (train, ["eval", run], [*train, "--resume"], ["export", run]):
        assert main(argv) == 0, capsys.readouterr()
    assert main(["compare", run, "--out", str(tmp_path / "c.html")]) == 0
    said = capsys.readouterr()
    assert said.err.count("are of one class, all, which is read as no labels") == 1
    assert (tmp_path / "run" / "report.html").is_file()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {"simclr", "random-init", "pixels", "protocol"} <= set(results)
    assert "supervised" not in results
    assert "knn" not in results["simclr"]
    assert results["protocol"]["classes"] == 0
    load_encoder(run)
    assert main(["eval", run, "--eval-data", images]) == 2
    assert "--eval-data needs labels, got none in images" in capsys.readouterr().err
    assert not (tmp_path / "run" / "transfer").exists()


def test_a_supervised_run_is_refused_before_it_has_a_folder(tmp_path, capsys):
    images = pictures(tmp_path / "images", "all")
    argv = ["train", "supervised", "--data", images, "--out", str(tmp_path / "run"), *SHORT]
    assert main(argv) == 2
    assert "supervised: needs labels of 2 classes, got none" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_class_with_one_image_is_evaluated_and_reported(tmp_path, capsys):
    """No label of it can be left out for cross-validation: C is fixed, and that is said."""
    images = pictures(tmp_path / "images", "train/cat", "val/cat", "val/dog", n=18)
    pictures(tmp_path / "images", "train/dog", n=1)
    run = str(tmp_path / "run")
    assert main(["train", "simclr", "--data", images, "--out", run, *SHORT]) == 0
    said = capsys.readouterr()
    note = "a class has 1 label, which cross-validation cannot leave out"
    assert said.err.count(f"{note}: linear probes have C = 10") == 1
    assert said.err.count(f"{note}: stages are not probed") == 1
    assert (tmp_path / "run" / "report.html").is_file()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    for arm in ("simclr", "random-init", "pixels", "supervised"):
        assert results[arm]["linear_C"] == 10
        assert "stages" not in results[arm]
        assert {"knn", "few", "nmi"} <= set(results[arm])
    assert note in results["protocol"]["linear"]["chosen_by"]
    assert "stages" not in results["protocol"]
    assert main(["eval", run]) == 0


@pytest.mark.parametrize("options", [["--eval-train", "3"], ["--eval-train", "1"]])
def test_few_images_of_the_probes(tmp_path, capsys, options):
    images = pictures(tmp_path / "images", "cat", "dog", n=18)
    run = tmp_path / "run"
    argv = ["train", "simclr", "--data", images, "--out", str(run), *SHORT, *options]
    assert main(argv) == 0, capsys.readouterr()
    assert (run / "report.html").is_file()


def test_eighteen_of_one_class_and_one_of_another(tmp_path, capsys):
    """The tenth set apart is of one class, and so are three images drawn for the probes."""
    images = pictures(tmp_path / "images", "cat", n=18)
    pictures(tmp_path / "images", "dog", n=1)
    for options in ([], ["--eval-train", "3"]):
        run = tmp_path / f"run{len(options)}"
        argv = ["train", "simclr", "--data", images, "--out", str(run), *SHORT, "--batch", "8"]
        argv += options
        assert main(argv) == 0, capsys.readouterr()
        assert (run / "report.html").is_file()
        results = json.loads((run / "results.json").read_text())
        assert not {"linear", "knn", "few", "nmi"} & set(results["simclr"])


def test_one_class_to_test_on_is_not_scored(tmp_path, capsys):
    """Accuracies over one class are right of whatever names it."""
    images = pictures(tmp_path / "images", "train/cat", "train/dog", "val/cat")
    both = pictures(tmp_path / "both", "train/cat", "train/dog", "val/cat", "val/dog", n=12)
    run, other = str(tmp_path / "run"), str(tmp_path / "other")
    assert main(["train", "simclr", "--data", images, "--out", run, *SHORT]) == 0
    note = "all 24 to test on are of one class, cat, over which scores tell nothing"
    assert capsys.readouterr().err.count(note) == 1
    assert (tmp_path / "run" / "report.html").is_file()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    for arm in ("simclr", "random-init", "pixels", "supervised"):
        assert not {"linear", "knn", "few", "nmi", "stages"} & set(results[arm])
    assert note in results["protocol"]["not_scored"]
    assert main(["eval", run]) == 0
    assert main(["train", "simclr", "--data", both, "--out", other, *SHORT]) == 0
    capsys.readouterr()
    assert main(["eval", other, "--eval-data", images]) == 2
    message = "--eval-data needs labels of 2 classes to test on, got one, cat, in images"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "other" / "transfer").exists()


@pytest.mark.parametrize(
    ("n", "options", "advice"),
    [
        (12, ["--train-images", "2"], "--validation 0 or more --train-images"),
        (2, [], "--validation 0"),
        (12, ["--validation", "0.99"], "another --validation"),
    ],
)
def test_too_few_images_for_a_validation_part(tmp_path, capsys, n, options, advice):
    """The message names options, not a function of ours."""
    images = pictures(tmp_path / "images", "train/cat", "train/dog", "val/cat", "val/dog", n=n // 2)
    argv = ["train", "simclr", "--data", images, "--out", str(tmp_path / "run"), *SHORT, *options]
    assert main([*argv, "--batch", "2"]) == 2
    said = capsys.readouterr().err
    assert "train: --validation must leave some to train on and some to measure on, got" in said
    assert said.rstrip().endswith(f"; use {advice}")
    assert not (tmp_path / "run").exists()
