"""config.json of runs that earlier versions wrote is read as it was meant; fields have groups."""

import json
from dataclasses import asdict, fields, replace
from io import StringIO
from pathlib import Path

import pytest

from sslops.training import train
from sslops.training.config import (
    DataConfig,
    EncoderConfig,
    EvaluationConfig,
    OptimisationConfig,
    SystemConfig,
    TrainConfig,
    changed_fields,
    departures,
    make_config,
    unread_fields,
)
from sslops.training.loggers.console import Console
from sslops.training.methods import METHODS
from sslops.training.storage.folder import read_config

# As the version before the groups wrote them: of CIFAR-10, spoken digits or moving shapes.
OLDER = json.loads((Path(__file__).parent / "older_configs.json").read_text())
GROUPS = (DataConfig, EncoderConfig, OptimisationConfig, SystemConfig, EvaluationConfig)


@pytest.mark.parametrize("name", OLDER)
def test_a_config_of_an_earlier_version(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(OLDER[name]))
    method, config = read_config(tmp_path)
    assert method == name
    assert type(config) is METHODS[name].config
    assert {"method": name, **asdict(config)} == OLDER[name]
    now = make_config(METHODS[name].config, name, {"data": config.data})
    assert changed_fields(config, now) == []  # --resume takes it


def test_every_method_is_among_them():
    assert set(OLDER) <= set(METHODS)
    assert len(OLDER) >= 13


def test_values_that_no_recipe_gives(tmp_path):
    changed = {**OLDER["moco"], "lr": 0.125, "arch": "vit-tiny", "width": 24, "heads": 3,
               "depth": 2, "pool": None, "patch": 8, "parallel": "fsdp", "views": "grey",
               "eval_data": "photos", "validation": 0.25, "queue": 512}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(changed))
    assert asdict(read_config(tmp_path)[1]) == {
        key: value for key, value in changed.items() if key != "method"
    }


def test_each_field_has_one_group():
    names = [field.name for group in GROUPS for field in fields(group)]
    assert len(names) == len(set(names))
    assert {field.name for field in fields(TrainConfig)} == set(names)
    methods_own = {field.name for field in fields(METHODS["simclr"].config)} - set(names)
    assert methods_own == {"temperature", "num_views", "proj_hidden", "proj_dim", "proj_layers"}


@pytest.mark.parametrize(
    ("group", "values", "message"),
    [
        (DataConfig, {"validation": 1.0}, r"validation must be in \[0, 1\), got 1.0"),
        (DataConfig, {"train_images": 0}, "train_images must be at least 1, got 0"),
        (OptimisationConfig, {"batch": 0}, "batch must be at least 1, got 0"),
        (OptimisationConfig, {"lr": -1.0}, "lr must not be negative, got -1.0"),
        (SystemConfig, {"threads": 0}, "threads must be at least 1, got 0"),
        (EvaluationConfig, {"knn_every": -1}, "knn_every must not be negative, got -1"),
    ],
)
def test_a_group_checks_its_fields(group, values, message):
    for cls in (group, TrainConfig, METHODS["mocov3"].config):
        with pytest.raises(ValueError, match=f"config: {message}"):
            cls(**values)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("simclr", {"num_views": 1}, "num_views must be at least 2, got 1"),
        ("simclr", {"proj_dim": 0}, "proj_dim must be at least 1, got 0"),
        ("moco", {"queue": 0}, "queue must be at least 1, got 0"),
        ("moco", {"key_momentum": 1.5}, r"key_momentum must be in \[0, 1\], got 1.5"),
        ("mocov3", {"key_momentum": -0.1}, r"key_momentum must be in \[0, 1\], got -0.1"),
        ("mocov3", {"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ("cpc-image", {"drop": 2.0}, r"drop must be in \[0, 1\], got 2.0"),
        ("cpc-image", {"temperature": -1.0}, "temperature must be positive, got -1.0"),
        ("cpc-audio", {"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ("inpainting", {"overlap": -1}, "overlap must be at least 0, got -1"),
        ("split-brain", {"lightness_bins": 1}, "lightness_bins must be at least 2, got 1"),
        ("video-colorization", {"top_k": 0}, "top_k must be at least 1, got 0"),
        ("video-colorization", {"temperature": 0.0}, "temperature must be positive, got 0.0"),
    ],
)
def test_a_method_checks_its_own_fields(name, values, message):
    with pytest.raises(ValueError, match=f"config: {message}"):
        METHODS[name].config(**values)


def test_what_departs_from_the_recipe():
    config = make_config(METHODS["jigsaw"].config, "jigsaw", {"data": "digits"})
    assert departures("jigsaw", config) == {}
    assert departures("jigsaw", replace(config, lr=0.5, views="grey")) == {
        "views": "grey",
        "lr": 0.5,
    }


def test_unread_fields_are_fields():
    for name, entry in METHODS.items():
        names = {field.name for field in fields(entry.config)}
        assert unread_fields(entry.config()).keys() <= names, name
    assert "momentum" not in unread_fields(TrainConfig(optimizer="sgd"))
    assert "trust" not in unread_fields(TrainConfig(optimizer="lars"))


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("jigsaw", {"views": "grey"}, "note: --views is read by the control with labels alone"),
        ("simclr", {"momentum": 0.5}, "note: --momentum is read by nothing in this run"),
        ("simclr", {"views": "grey"}, ""),
        ("simclr", {"momentum": 0.5, "optimizer": "sgd"}, ""),
    ],
)
def test_settings_that_are_not_read_are_said(tmp_path, name, values, said):
    stream = StringIO()
    train(
        name, data="digits", out=tmp_path / "a", console=Console(stream), steps=1, batch=16,
        width=4, knn_every=0, threads=1, evaluate=False, **values,
    )  # fmt: skip
    notes = [line for line in stream.getvalue().splitlines() if " is read by " in line]
    assert notes == ([said] if said else [])
