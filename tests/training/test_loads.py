"""A run reads its data once, and what needs none reads none: every method, every command."""

import io
import json

import pytest
import torch

from sslops.training import train
from sslops.training.cli import main
from sslops.training.cli.afterwards import evaluate_again, evaluate_elsewhere, export_checkpoint
from sslops.training.data import registry
from sslops.training.engine.loop import Loop
from sslops.training.engine.setup import DataSource
from sslops.training.evaluate import run as evaluation
from sslops.training.evaluate import transfer
from sslops.training.loggers.console import Console
from sslops.training.methods import METHODS

from .method_cases import METHOD_CASES
from .test_methods import SHORT

pytestmark = pytest.mark.slow

CASES = {name: fields for name, fields in reversed(METHOD_CASES)}  # the first of each
QUIET = Console(io.StringIO())
LOADED = {}


@pytest.fixture(autouse=True)
def _keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


class Counts(dict[str, int]):
    def spent(self, call, *args, **options):
        """(data sets loaded, loops built) by a call."""
        before = dict(self)
        call(*args, **options)
        return tuple(self[name] - before[name] for name in self)


@pytest.fixture
def counts(monkeypatch):
    """Data sets that any source loads, and loops that are built."""
    found = Counts(data=0, loops=0)

    def counted(name, call):
        def counting(*args, **options):
            found[name] += 1
            return call(*args, **options)

        return counting

    def once(name):
        load = getattr(registry, name)

        def loading(*args, **options):  # the counts are what matters: the reading takes its time
            key = name, args, tuple(options.items())
            if key not in LOADED:
                LOADED[key] = load(*args, **options)
            return LOADED[key]

        return loading

    sources = [name for name in vars(registry) if name.startswith("load_")]
    assert len(sources) >= len(registry.names())
    for name in sources:
        monkeypatch.setattr(registry, name, counted("data", once(name)))
    monkeypatch.setattr(Loop, "__init__", counted("loops", Loop.__init__))
    return found


@pytest.fixture
def no_numbers(monkeypatch):
    """Evaluation without its probes: what is asked here is where its data come from."""

    def nothing(encoders, *_):
        return {**{name: {} for name in encoders}, "protocol": {}}

    for module in (evaluation, transfer):
        monkeypatch.setattr(module, "evaluate_arms", nothing)
        monkeypatch.setattr(module, "evaluate_tracking", nothing)
    monkeypatch.setattr(evaluation, "supervised_arms", lambda *_: {})
    monkeypatch.setattr("sslops.training.evaluate.pictures.write_pictures", lambda *_, **__: None)


@pytest.mark.parametrize("name", METHODS)
def test_every_method(tmp_path, counts, no_numbers, monkeypatch, name):
    fields = {**SHORT, **CASES[name], "steps": 2, "eval_test": 64}
    out = tmp_path / "a"
    whole = {**fields, "out": out, "console": QUIET, "evaluate": True}
    assert counts.spent(train, name, **whole) == (1, 1)
    assert counts.spent(train, name, **whole, resume=True) == (1, 1)
    assert counts.spent(evaluate_again, out, "cpu", QUIET) == (1, 0)
    copy = tmp_path / "copy.safetensors"
    assert counts.spent(export_checkpoint, out, "last", copy) == (0, 0)
    for ending in (".safetensors", ".json"):
        assert copy.with_suffix(ending).read_bytes() == (out / f"encoder{ending}").read_bytes()
    if METHODS[name].kind == "image":
        monkeypatch.setattr(transfer, "match_channels", lambda data, _: data)
        assert counts.spent(evaluate_elsewhere, out, "digits", None, "cpu", QUIET) == (1, 0)


def test_all_that_follows_training_at_once(tmp_path, counts, no_numbers):
    fields = {**SHORT, **CASES["simclr"], "steps": 1, "console": QUIET}
    elsewhere = {"evaluate": True, "eval_data": "photos"}
    with pytest.raises(ValueError, match="needs labels, got none in photos"):
        train("simclr", out=tmp_path / "a", **{**fields, **elsewhere})
    assert counts == {"data": 2, "loops": 1}


def test_several_seeds_and_values_read_the_same_data_once(tmp_path, counts, no_numbers):
    fields = {**SHORT, **CASES["simclr"], "steps": 1, "train_images": 128}
    spent = counts.spent(train, "simclr", out=tmp_path / "a", seeds=2, console=QUIET, **fields)
    assert spent == (1, 2)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in fields.items()
             if name != "evaluate"]  # fmt: skip
    ablation = ["ablate", "simclr", "--field", "temperature", "--values", "0.1", "0.2", *flags]
    given = [*ablation, "--supervised-epochs=1", "--out", str(tmp_path / "b")]
    assert counts.spent(main, given) == (1, 3)


def test_other_data_are_not_mistaken_for_those_at_hand():
    source = DataSource()
    digits = source("digits")
    assert source("digits") is digits
    assert source("digits", size=16).image_size == 16
    assert source("tones").name == "tones"
    assert source("digits") is digits  # the next seed trains on them again


def forget(folder, *, encoder, shape):
    """A run folder as versions before wrote it: no shape; perhaps no encoder yet."""
    path = folder / "checkpoint" / "last.pt"
    state = torch.load(path)
    if shape:
        del state["shape"]
    torch.save(state, path)
    about = json.loads((folder / "encoder.json").read_text())
    about.pop("data_shape")
    (folder / "encoder.json").write_text(json.dumps(about))
    if encoder:
        (folder / "encoder.json").unlink()
        (folder / "encoder.safetensors").unlink()


@pytest.mark.parametrize(
    ("encoder", "shape", "loads"), [(False, True, 1), (True, True, 1), (True, False, 0)]
)
def test_older_runs_can_still_be_exported(tmp_path, counts, encoder, shape, loads):
    fields = {**SHORT, **CASES["rotation"], "steps": 1, "console": QUIET}
    out = train("rotation", out=tmp_path / "a", **fields).dir
    kept = (out / "encoder.safetensors").read_bytes()
    forget(out, encoder=encoder, shape=shape)
    path = out / "encoder.safetensors"
    assert counts.spent(export_checkpoint, out, "last", path) == (loads, 0)
    assert path.read_bytes() == kept


def test_a_divided_checkpoint_is_exported_alike(tmp_path, counts):
    fields = {**SHORT, **CASES["simclr"], "steps": 1, "console": QUIET, "parallel": "fsdp"}
    out = train("simclr", out=tmp_path / "a", **fields).dir
    assert (out / "checkpoint" / "last").is_dir()
    copy = tmp_path / "copy.safetensors"
    assert counts.spent(export_checkpoint, out, "last", copy) == (0, 0)
    assert copy.read_bytes() == (out / "encoder.safetensors").read_bytes()
    with pytest.raises(FileNotFoundError, match="best"):
        export_checkpoint(out, "best", copy)
