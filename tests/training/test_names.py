"""A name in the files of a run has one meaning, and files of older versions are read by it."""

import io
import json
import shutil
from dataclasses import asdict, replace

import pytest
import torch

from sslops.training import load_encoder, train
from sslops.training.cli import main
from sslops.training.config import make_config
from sslops.training.engine.collapse import feature_spread
from sslops.training.evaluate.features import spread
from sslops.training.loggers.console import Console
from sslops.training.methods import METHODS
from sslops.training.report.compare import compare
from sslops.training.report.report import write_report
from sslops.training.report.run_folder import read_run
from sslops.training.storage.folder import read_config
from sslops.training.storage.older import today_record, today_results

from .test_report import make_run
from .test_training import TINY

pytestmark = pytest.mark.slow

OLD = {
    "simclr": {"dim": 64, "feature_std": 0.9, "rank": 20.0, "linear": 0.9, "seconds": 1.0},
    "pixels": {"dim": 3, "feature_std": 0.5, "rank": 2.0, "linear": 0.8, "seconds": 1.0},
    "protocol": {"data": "digits", "train_images": 100, "test_images": 50},
    "cost": {"seconds": 61.0, "evaluation_seconds": 9.0, "images_per_second": 10.0},
    "pretext": {"loss": 3.0},
}


def test_spread_is_one_number_in_training_and_evaluation():
    even = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0))
    for features in (even, even + 3, torch.ones(10, 4)):
        unit = torch.nn.functional.normalize(features, dim=1)
        slow = float(unit.std(0, unbiased=False).mean()) / 16**-0.5 if len(unit) > 10 else 0.0
        assert feature_spread(features) == pytest.approx(slow, abs=1e-6)
        assert spread(features)["feature_spread"] == feature_spread(features)
    assert feature_spread(even) == pytest.approx(1, abs=0.05)


def test_older_files_are_read_by_the_names_of_today():
    record = {"step": 10, "loss": 3.0, "feature_std": 0.1, "feature_std_even": 0.125}
    new = {"step": 10, "loss": 3.0, "feature_spread": 0.8}
    assert today_record(record) == pytest.approx(new)
    assert today_record(new) == new
    found = today_results(OLD)
    assert found["simclr"]["feature_spread"] == 0.9
    assert found["simclr"]["evaluation_seconds"] == 1.0
    assert found["protocol"] == {"data": "digits", "probe_images": 100, "test_images": 50}
    assert found["cost"]["training_seconds"] == 61.0
    assert found["cost"]["evaluation_seconds"] == 9.0
    assert today_results(found) == found
    videos = {"protocol": {"propagation": {}, "train_images": 3, "test_images": 2}}
    assert today_results(videos)["protocol"] == {
        "propagation": {}, "train_videos": 3, "test_videos": 2
    }  # fmt: skip


def test_an_older_run_is_reported_and_compared_like_one_of_today(tmp_path):
    new, old = make_run(tmp_path / "a"), tmp_path / "b"
    shutil.copytree(new, old)
    lines = []
    for line in (new / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        std = record.pop("feature_spread") / 8
        lines.append(json.dumps({**record, "feature_std": std, "feature_std_even": 1 / 8}))
    (old / "metrics.jsonl").write_text("\n".join(lines))
    results = json.loads((new / "results.json").read_text())
    back = {"feature_spread": "feature_std", "training_seconds": "seconds",
            "probe_images": "train_images"}  # fmt: skip
    renamed = {
        arm: {back.get(name, name): value for name, value in part.items()}
        for arm, part in results.items()
    }
    (old / "results.json").write_text(json.dumps(renamed))
    a, b = read_run(new), read_run(old)
    assert a.results == b.results
    assert a.records == b.records
    pages = [write_report(folder).read_text().replace(str(folder), "") for folder in (new, old)]
    assert pages[0].split("<section>")[1:] == pages[1].split("<section>")[1:]
    rows = compare([new, old]).splitlines()[2:]
    assert rows[0].split()[1:] == rows[1].split()[1:]


@pytest.mark.parametrize("method", [name for name, e in METHODS.items() if e.config.archs])
def test_an_older_run_with_an_encoder_that_was_never_built_is_read(method, tmp_path):
    """`--arch` was ignored by methods that have their own, and written down."""
    cls = METHODS[method].config
    first = make_config(cls, method, {})
    saved = {"method": method, **asdict(first), "arch": "resnet18"}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert read_config(tmp_path) == (method, replace(first, arch=cls.archs[0]))


def test_an_older_run_of_sound_is_exported(tmp_path):
    run = {"steps": 1, "batch": 4, "width": 8, "context": 8, "knn_every": 0, "threads": 1}
    done = train("cpc-audio", **run, evaluate=False, out=tmp_path / "run",
                 console=Console(io.StringIO()))  # fmt: skip
    path = done.dir / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "arch": "resnet18"}))
    assert main(["export", str(done.dir), "--out", str(tmp_path / "a.safetensors")]) == 0
    taken = load_encoder(tmp_path / "a.safetensors").state_dict()
    for name, value in done.encoder.state_dict().items():
        assert torch.equal(taken[name], value)


def test_an_older_run_is_resumed(tmp_path):
    run = {**TINY, "out": tmp_path, "console": Console(io.StringIO())}
    train("simclr", **{**run, "steps": 2})
    path = tmp_path / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line |= {"feature_std": line.pop("feature_spread") / 4, "feature_std_even": 1 / 4}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    train("simclr", **{**run, "steps": 2, "log_every": 2}, resume=True)
    assert len(read_run(tmp_path).series("feature_spread")) == 2


def test_no_file_of_a_run_has_two_meanings_for_a_name(tmp_path):
    """Numbers of the same name in metrics, results and configuration measure the same thing."""
    few = {"tsne_images": 9, "eval_train": 200, "eval_test": 50, "supervised_epochs": 1}
    fields = {**TINY, **few, "steps": 1, "evaluate": True, "out": tmp_path / "a"}
    out = train("simclr", console=Console(io.StringIO()), **fields).dir
    record = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    results = json.loads((out / "results.json").read_text())
    config = json.loads((out / "config.json").read_text())
    parts = {
        "metrics": set(record),
        "arm": set(results["simclr"]),
        "cost": set(results["cost"]),
        "protocol": set(results["protocol"]),
        "config": set(config),
    }
    same = {  # meant alike wherever they stand
        "feature_spread",  # of what the loss sees, of the encoder
        "knn",  # accuracy of nearest neighbours: of validation images, of test images
        "images_per_second",  # between two records, over the run
        "evaluation_seconds",  # of an arm, of all
        "train_images",  # trained on, at most and in fact
        "steps", "epochs",  # asked for, made
        "lr",  # asked for, and of a step
        "seed", "data", "linear", "few", "stages",  # numbers, and how they were measured
    }  # fmt: skip
    names = list(parts)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            shared = parts[one] & parts[other]
            assert shared <= same, (one, other, shared - same)
