"""The loop: it learns, repeats, resumes exactly, stops safely and overwrites nothing."""

import importlib
import io
import json
import os
import signal

import numpy as np
import pytest
import torch

from sslops.training import load_encoder, train
from sslops.training.config import make_config
from sslops.training.data import Split
from sslops.training.data import load as load_data
from sslops.training.data.loader import Sampler
from sslops.training.distributed.process import World
from sslops.training.engine.nonfinite import NonFiniteLoss
from sslops.training.engine.signals import EvaluationFailed, Interrupted
from sslops.training.loggers.console import Console
from sslops.training.methods import find_method
from sslops.training.methods.simclr import SimCLR
from sslops.training.storage.checkpoint import load

TINY = {
    "data": "digits",
    "width": 8,
    "proj_hidden": 32,
    "proj_dim": 16,
    "batch": 64,
    "steps": 10,
    "log_every": 1,
    "knn_every": 0,
    "evaluate": False,
}


def run(out, **changes):
    return train("simclr", out=out, console=Console(io.StringIO()), **{**TINY, **changes})


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_times(folder):
    timed = {"images_per_second", "data_wait", "memory_gb"}
    return [{k: v for k, v in r.items() if k not in timed} for r in records(folder)]


def assert_same(a, b, path="state"):
    """Equal to the bit, through any nesting."""
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            if key != "seconds":
                assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}[{i}]")
    else:
        assert a == b, path


@pytest.fixture
def signal_at(monkeypatch):
    """Send this process a signal while update `step` is under way."""

    def arm(step, number):
        def after_step(self, now):
            if now == step:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(SimCLR, "after_step", after_step)

    yield arm
    monkeypatch.undo()


@pytest.mark.slow
def test_learns_digits(tmp_path):
    run(tmp_path / "a", steps=100, batch=128, width=16, log_every=20, knn_every=50)
    log = records(tmp_path / "a")
    assert log[-1]["chance"] == pytest.approx(5.541, abs=1e-3)  # log(2 * 128 - 1)
    assert log[-1]["loss"] < 0.85 * log[-1]["chance"]
    assert log[-1]["knn"] > 0.85  # ten classes: chance is 0.1
    assert log[-1]["feature_spread"] > 0.8


def test_same_seed_same_bits_other_seed_other_bits(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(tmp_path / name, steps=4, seed=seed)
    a, b, c = (load(tmp_path / name / "checkpoint" / "last.pt") for name in "abc")
    assert_same(a, b)
    key = "encoder.layers.0.0.weight"
    assert not torch.equal(a["method"][key], c["method"][key])
    assert without_times(tmp_path / "a") == without_times(tmp_path / "b")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
@pytest.mark.parametrize("log_every", [1, 4])
def test_resumes_to_the_bit(tmp_path, signal_at, optimizer, log_every, monkeypatch):
    # batch 300: steps 4, 8 end an epoch, so the interruption falls into the middle of one
    options = {"optimizer": optimizer, "log_every": log_every, "batch": 300, "validation": 0.0}
    run(tmp_path / "whole", **options)
    signal_at(4, signal.SIGTERM)
    with pytest.raises(Interrupted) as stop:
        run(tmp_path / "parts", **options)
    assert stop.value.exit_code == 143
    assert load(tmp_path / "parts" / "checkpoint" / "last.pt")["step"] == 5
    monkeypatch.undo()
    torch.rand(7)  # whatever else happened in the process
    run(tmp_path / "parts", **options, resume=True)
    whole, parts = (load(tmp_path / name / "checkpoint" / "last.pt") for name in ("whole", "parts"))
    assert whole["step"] == 10
    assert_same(whole, parts)
    assert without_times(tmp_path / "whole") == without_times(tmp_path / "parts")


def test_records_after_the_checkpoint_are_dropped(tmp_path, signal_at, monkeypatch):
    signal_at(4, signal.SIGINT)
    with pytest.raises(Interrupted):
        run(tmp_path / "a")
    monkeypatch.undo()
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 1.0}\n{"step": 7, "lo')  # killed while writing
    run(tmp_path / "a", resume=True)
    assert [record["step"] for record in records(tmp_path / "a")] == list(range(1, 11))


def test_resume_keeps_the_configuration(tmp_path):
    run(tmp_path / "a", steps=2)
    with pytest.raises(ValueError, match="keeps the run's configuration, got another steps, lr"):
        run(tmp_path / "a", steps=3, lr=1.0, resume=True)
    run(tmp_path / "a", steps=2, log_every=5, resume=True)  # changes no result


def test_nothing_is_overwritten_unasked(tmp_path):
    run(tmp_path / "a", steps=1)
    with pytest.raises(FileExistsError, match=r"--resume goes on .* --overwrite deletes it"):
        run(tmp_path / "a", steps=1)
    run(tmp_path / "a", steps=2, overwrite=True)
    assert len(records(tmp_path / "a")) == 2
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match=r"deletes only run folders"):
        run(tmp_path / "b", overwrite=True)
    with pytest.raises(FileNotFoundError, match=r"--resume needs .*last\.pt"):
        run(tmp_path / "c", resume=True)
    assert not (tmp_path / "c").exists()


def test_non_finite_loss_stops_before_the_update(tmp_path, monkeypatch):
    step = SimCLR.step
    kept = {}

    def poisoned(self, views):
        out = step(self, views)
        if len(kept) == 2:
            kept["weight"] = self.projector.layers[0].weight.detach().clone()
            out["loss"] = out["loss"] * float("nan")
        else:
            kept[len(kept)] = None
        return out

    monkeypatch.setattr(SimCLR, "step", poisoned)
    with pytest.raises(
        NonFiniteLoss, match=r"got a loss of nan .* in step 3;.*--replay .*nonfinite\.pt"
    ):
        run(tmp_path / "a")
    saved = load(tmp_path / "a" / "nonfinite.pt")
    assert saved["step"] == 2
    assert saved["images"].shape == (64, 1, 8, 8)
    assert saved["views"].shape == (2, 64, 1, 8, 8)
    assert torch.equal(saved["method"]["projector.layers.0.weight"], kept["weight"])


def test_a_failing_evaluation_keeps_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sslops.training.run.run.evaluate_run",
        lambda *_: (_ for _ in ()).throw(KeyError("boom")),
    )
    with pytest.raises(EvaluationFailed, match=r"KeyError.*encoder\.safetensors.*sslops eval"):
        run(tmp_path / "a", steps=1, evaluate=True)
    assert load_encoder(tmp_path / "a")(torch.rand(2, 1, 8, 8)).shape == (2, 32)
    assert json.loads((tmp_path / "a" / "results.json").read_text())["cost"]["steps"] == 1


def test_knn_during_training_sees_every_class(monkeypatch):
    """Archives list one class after another: the first images of them are all of one kind."""
    digits = load_data("digits").train
    order = torch.argsort(digits.labels, stable=True)
    in_order = Split(digits.images[order], digits.labels[order])
    module = importlib.import_module("sslops.training.evaluate.knn_monitor")
    monkeypatch.setattr(module, "IMAGES", 300)
    accuracy = module.make_monitor(in_order, in_order, 0, World(0, 1, torch.device("cpu")))
    assert accuracy(torch.nn.Flatten()) > 0.9


def test_exported_encoder_is_the_trained_one(tmp_path):
    result = run(tmp_path / "a", steps=3)
    images = torch.rand(5, 1, 8, 8)
    loaded = load_encoder(result.dir)
    assert_same(dict(loaded.state_dict()), dict(result.encoder.state_dict()))
    torch.testing.assert_close(loaded(images), result.encoder(images))
    with pytest.raises(FileNotFoundError, match=r"load_encoder: needs .* got no .*none"):
        load_encoder(tmp_path / "none")


@pytest.mark.slow
def test_evaluates_against_controls_and_reports(tmp_path):
    few = {"eval_train": 120, "eval_test": 60, "tsne_images": 40, "supervised_epochs": 1}
    result = run(tmp_path / "a", steps=2, evaluate=True, **few)
    arms = {"simclr", "random-init", "pixels", "supervised"}
    assert arms <= result.results.keys()
    assert all(0 <= result.results[arm]["knn"] <= 1 for arm in arms)
    assert result.results["cost"]["encoder_parameters"] > 0
    assert json.loads((tmp_path / "a" / "results.json").read_text()) == result.results
    with np.load(tmp_path / "a" / "features.npz") as features:
        shapes = {name: features[name].shape for name in ("before", "after", "labels")}
    assert shapes == {"before": (40, 2), "after": (40, 2), "labels": (40,)}
    assert (tmp_path / "a" / "pictures" / "neighbours.png").is_file()
    assert "<html" in (tmp_path / "a" / "report.html").read_text()


def test_other_knobs_run(tmp_path):
    knobs = {"precision": "bf16", "channels_last": True, "clip": 0.1, "tensorboard": True}
    run(tmp_path / "a", steps=2, num_views=3, batch=32, knn_every=1, **knobs)
    assert list((tmp_path / "a" / "tensorboard").iterdir())
    assert (tmp_path / "a" / "checkpoint" / "best.pt").is_file()
    assert (tmp_path / "a" / "pictures" / "views.png").is_file()


@pytest.mark.parametrize(
    ("method", "fields"), [("simclr", {}), ("mocov3", {}), ("cpc-audio", {"negatives": "other"})]
)
def test_a_batch_without_negatives_is_refused(tmp_path, method, fields):
    with pytest.raises(ValueError, match=f"{method}: batch must be at least 2, .* got 1"):
        train(method, batch=1, steps=1, out=tmp_path / "run", **fields)
    assert make_config(find_method(method).config, method, {"batch": 2, **fields}).batch == 2


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"temprature": 1}, TypeError, "no such option, got 'temprature'; did you mean 'temper"),
        ({"data": "digitz"}, (ValueError, FileNotFoundError), "digitz"),
        ({"recipe": "digit"}, ValueError, "recipe must be one of .*digits.*, got 'digit'"),
        ({"views": "colours"}, ValueError, "no such views, got 'colours'; did you mean 'colour'"),
        ({"batch": 0}, ValueError, "batch must be at least 1, got 0"),
        ({"batch": 5000}, ValueError, "batch must be at most the 1297 training images"),
        ({"device": "cuda:77"}, ValueError, "device must exist on this machine, got 'cuda:77'"),
        ({"seeds": 0}, ValueError, "seeds must be at least 1, got 0"),
    ],
)
def test_wrong_arguments(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        run(tmp_path / "a", **changes)
    assert not (tmp_path / "a").exists()


def test_unknown_method():
    with pytest.raises(ValueError, match="no such method, got 'simclrr'; did you mean 'simclr'"):
        train("simclrr")


def test_each_epoch_sees_each_image_once_and_processes_share_it():
    worlds = [World(rank, 2, torch.device("cpu")) for rank in range(2)]
    samplers = [Sampler(26, 8, 3, world) for world in worlds]
    one = Sampler(26, 8, 3, World(0, 1, torch.device("cpu")))
    epochs = []
    for epoch in range(2):
        steps = range(3 * epoch, 3 * epoch + 3)
        order = torch.cat([one.indices(step) for step in steps])
        assert len(order.unique()) == 24  # 26 images less the incomplete batch
        epochs.append(order)
        for step in steps:
            shares = torch.cat([sampler.indices(step) for sampler in samplers])
            assert torch.equal(shares, one.indices(step))
    assert not torch.equal(*epochs)
    assert torch.equal(one.indices(0), epochs[0][:8])  # and back again


def test_settings_that_no_step_can_be_made_with_leave_no_folder(tmp_path):
    """The error comes out of the first step, where the folder is made already."""
    fields = {"data": "photos", "image_size": 16, "batch": 8, "steps": 2, "evaluate": False}
    fields |= {"width": 4, "patch": 4, "pred_steps": 2, "negatives": 9999}
    with pytest.raises(ValueError, match=r"negatives must be in .*, got 9999"):
        train("cpc-image", out=tmp_path / "a", console=Console(io.StringIO()), **fields)
    assert not (tmp_path / "a").exists()


def test_a_later_failure_keeps_the_folder(tmp_path, monkeypatch):
    def fail(self, step):
        if step == 1:
            raise OSError("after two steps")

    monkeypatch.setattr(SimCLR, "after_step", fail)
    with pytest.raises(OSError, match="after two steps"):
        run(tmp_path / "a")
    assert (tmp_path / "a" / "config.json").is_file()
