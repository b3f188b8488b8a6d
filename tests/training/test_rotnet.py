"""The semi-supervised protocol of RotNet: what is frozen stays, the rest is alike in both arms."""

import io
import json

import pytest
import torch
from torch import nn

from sslops.training import load_encoder, train
from sslops.training.cli import command_line as cli
from sslops.training.distributed.process import World
from sslops.training.engine.setup import build_method, load_data, shape_of
from sslops.training.evaluate import rotnet as protocol
from sslops.training.evaluate.rotnet import RotNetOptions, rotnet, rotnet_table
from sslops.training.loggers.console import Console
from sslops.training.methods.base import DataShape
from sslops.training.methods.half_frozen import HalfFrozen, freeze_first
from sslops.training.methods.simclr import SimCLRConfig
from sslops.training.models import build_encoder
from sslops.training.storage.encoder import read_trained
from sslops.training.storage.folder import read_config

WORLD = World(0, 1, torch.device("cpu"))
QUICK = RotNetOptions(freeze=1, labels=(5, 20, 5000), steps=6, batch=32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rotnet") / "run"
    return train(
        "rotation", data="digits", out=folder, console=Console(io.StringIO()), steps=20, width=8,
        knn_every=0, evaluate=False, threads=1,
    ).dir  # fmt: skip


def rotnet_of(folder, options):
    trained = read_trained(folder, WORLD.device)
    return rotnet(trained, load_data(trained.config)[0], options, WORLD, Console(io.StringIO()))


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def half_frozen(arch, blocks, **options):
    torch.manual_seed(0)
    encoder = build_encoder(arch, 1, 16, **options)
    frozen = freeze_first(encoder, blocks, torch.zeros(1, 1, 16, 16))
    config = SimCLRConfig(views="grey", arch=arch)
    return HalfFrozen(config, DataShape(1, 16, 3), encoder, frozen)


ENCODERS = [("cnn4", {"width": 4}), ("resnet18", {"width": 8}),
            ("vit-tiny", {"width": 12, "depth": 3, "patch": 4})]  # fmt: skip


@pytest.mark.parametrize(("arch", "options"), ENCODERS)
def test_frozen_blocks_stay_to_the_bit(arch, options):
    """Weights and the statistics of batch norm, in training mode, with weight decay."""
    method = half_frozen(arch, 2, **options)
    image = torch.rand(4, 1, 16, 16)
    before = state(method)
    frozen_map = method.encoder.feature_maps(image)[1].detach()
    optimizer = torch.optim.AdamW(
        [p for p in method.parameters() if p.requires_grad], 0.1, weight_decay=0.5
    )
    for _ in range(3):
        method.train()
        loss = method.step((torch.rand(8, 1, 16, 16), torch.arange(8) % 3))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(method.encoder.feature_maps(image)[1], frozen_map)
    after = state(method)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    trained = {name for name, p in method.named_parameters() if p.requires_grad}
    assert changed >= trained
    of_blocks = {id(each) for block in method.encoder.stage_modules()[2:] for each in [
        *block.parameters(), *block.buffers()]}  # fmt: skip
    last = {"encoder.norm.weight", "encoder.norm.bias"}  # of a vit
    for name, value in method.state_dict(keep_vars=True).items():
        late = id(value) in of_blocks or name in last or name.startswith("classifier")
        assert (name in changed) == late, name


@pytest.mark.parametrize(("arch", "options"), ENCODERS)
def test_no_gradient_reaches_frozen_blocks(arch, options):
    method = half_frozen(arch, 2, **options)
    image = torch.rand(4, 1, 16, 16)
    method.train()
    maps = method.encoder.feature_maps(image)
    assert not maps[1].requires_grad
    assert maps[2].requires_grad
    method.step((image, torch.arange(4) % 3))["loss"].backward()
    for p in method.parameters():
        assert (p.grad is not None) == p.requires_grad


def test_eval_mode_is_kept_after_train():
    method = half_frozen("cnn4", 2, width=4)
    method.train()
    norms = [m for m in method.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m.training for m in norms] == [False, False, True, True]
    method.eval()
    assert not any(m.training for m in norms)


@pytest.mark.parametrize("blocks", [0, 5])
def test_refuses_blocks_that_are_not_there(blocks):
    with pytest.raises(ValueError, match=rf"rotnet: freeze must be in 1..4 blocks, got {blocks}"):
        half_frozen("cnn4", blocks, width=4)


def test_arms_differ_in_the_frozen_blocks_alone(run, monkeypatch):
    built = []
    original = protocol._build
    monkeypatch.setattr(
        protocol, "_build", lambda *args: built.append(original(*args)) or built[-1]
    )
    begun, seen = [], []
    monkeypatch.setattr(
        protocol,
        "_train",
        lambda method, few, *rest: (begun.append(state(method)), seen.append(few)),
    )
    rotnet_of(run, RotNetOptions(freeze=1, labels=(5,), steps=1))
    pretrained, scratch = begun
    differ = {name for name in scratch if not torch.equal(pretrained[name], scratch[name])}
    assert differ
    assert all(name.startswith("encoder.layers.0.") for name in differ)
    trained = load_encoder(run).state_dict()
    for name, value in pretrained.items():
        if name.startswith("encoder.layers.0."):
            assert torch.equal(value, trained[name.removeprefix("encoder.")])
    assert torch.equal(seen[0].images, seen[1].images)
    assert seen[0].labels.bincount().tolist() == [5] * 10


def test_results_table_and_report(run):
    exit_code = cli.main(
        ["eval", str(run), "--protocol", "rotnet", "--freeze", "1", "--labels", "5", "20", "5000",
         "--steps", "6"]
    )  # fmt: skip
    assert exit_code == 0
    results = json.loads((run / "rotnet.json").read_text())
    assert set(results["accuracy"]) == {"5", "20"}  # no class has 5,000
    assert results["protocol"]["labels"] == [5, 20]
    for arms in results["accuracy"].values():
        assert set(arms) == {"rotation", "from scratch"}
        assert all(0 <= value <= 1 for value in arms.values())
    lines = rotnet_table(results).splitlines()
    assert lines[0].split()[-2:] == ["5", "20"]
    assert lines[2].startswith("rotation, first 1 blocks frozen")
    assert "Frozen first blocks and few labels" in (run / "report.html").read_text()


def test_same_bits_twice(run):
    first, second = (rotnet_of(run, QUICK) for _ in range(2))
    assert first == second


def test_labels_of_smaller_numbers_are_among_those_of_larger(run):
    _, config = read_config(run)
    data, _, _ = load_data(config)
    few, more = (
        set(protocol.draw_labels(data.train.labels, n, 10, config.seed).tolist()) for n in (5, 20)
    )
    assert few < more


def test_works_for_other_methods(tmp_path):
    folder = train(
        "simclr", data="digits", out=tmp_path / "a", console=Console(io.StringIO()), steps=2,
        batch=64, width=8, proj_hidden=16, proj_dim=8, knn_every=0, evaluate=False, threads=1,
    ).dir  # fmt: skip
    results = rotnet_of(folder, QUICK)
    assert set(results["accuracy"]["5"]) == {"simclr", "from scratch"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "rotnet: steps must be at least 1, got 0"),
        ({"labels": ()}, r"rotnet: labels must be numbers from 1 on, got \(\)"),
        ({"labels": (0,)}, "labels must be numbers from 1 on"),
    ],
)
def test_refuses_options(changes, message):
    with pytest.raises(ValueError, match=message):
        RotNetOptions(**changes)


def test_refuses_more_labels_than_there_are(run):
    options = RotNetOptions(freeze=1, labels=(5000,))
    with pytest.raises(ValueError, match="every class must have 5000 labels, got fewer: digits"):
        rotnet_of(run, options)


def test_frozen_blocks_see_as_the_run_does(run):
    """Also in training mode, with the run's statistics of batch norm."""
    _, config = read_config(run)
    data, _, _ = load_data(config)
    trained = load_encoder(run)
    method = protocol._build("rotation", config, shape_of(data), trained, 1, WORLD).train()
    image = torch.rand(2, 1, 8, 8)
    expected = trained.feature_maps(image)[0]
    torch.testing.assert_close(method.encoder.feature_maps(image)[0], expected)
    fresh = build_method("rotation", config, shape_of(data), WORLD).encoder.train()
    assert not torch.allclose(fresh.feature_maps(image)[0], expected, atol=1e-2)
