"""MoCo v3: each point of the paper that small versions miss is a line here."""

import copy
import io
import json
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel

from sslops import cosine_momentum
from sslops.training import train
from sslops.training.augment import RECIPES as VIEWS
from sslops.training.config import make_config
from sslops.training.data import load as load_data
from sslops.training.engine.optim import make_optimizer
from sslops.training.loggers.console import Console
from sslops.training.methods import Batch, DataShape
from sslops.training.methods.mocov3 import MoCoV3, MoCoV3Config
from sslops.training.models import ViT

CNN = {"arch": "cnn-tiny", "width": 8}
TINY_VIT = {"arch": "vit-tiny", "width": 12, "depth": 2, "heads": 3, "patch": 4}
HEADS = {"proj_hidden": 32, "proj_dim": 16}


def make(batch=16, channels=1, size=8, **fields):
    torch.manual_seed(0)
    config = MoCoV3Config(batch=batch, **{**CNN, **HEADS, **fields})
    return MoCoV3(config, DataShape(channels, size, 10))


def random_views(batch=16, size=8):
    return torch.rand(2, batch, 1, size, size, generator=torch.Generator().manual_seed(3))


def run(out, **fields):
    stream = io.StringIO()
    fields = {**CNN, **HEADS, "batch": 64, "knn_every": 0, "evaluate": False, **fields}
    result = train("mocov3", data="digits", out=out, console=Console(stream), **fields)
    return result, stream.getvalue()


def ctr(q, k, tau):
    """The paper's function, in float64 and with a loop."""
    q, k = F.normalize(q.double(), dim=1), F.normalize(k.double(), dim=1)
    total = 0.0
    for i, query in enumerate(q):
        logits = [float(query @ key) / tau for key in k]
        total += math.log(sum(math.exp(value) for value in logits)) - logits[i]
    return 2 * tau * total / len(q)


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda method: pickle.loads(pickle.dumps(method)), AveragedModel]
)
def test_the_keys_of_a_copy_follow_its_own_encoder(way):
    method = make()
    other = way(method)
    other = getattr(other, "module", other)
    with torch.no_grad():
        for each in other.encoder.parameters():
            each.add_(1.0)
    for each in (method, other):
        each.before_step(0, 10)
    m = method.key_momentum
    pairs = zip(method.keys.parameters(), other.keys.parameters(), strict=True)
    shifts = [float((b - a).mean()) for a, b in pairs]
    moved = len(list(other.encoder.parameters()))
    assert shifts[:moved] == pytest.approx([1 - m] * moved, rel=1e-3)
    assert shifts[moved:] == [0.0] * (len(shifts) - moved)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_the_loss_is_symmetric_and_scaled_as_the_authors_print_it(temperature):
    method = make(temperature=temperature)
    q1, q2, k1, k2 = torch.randn(4, 16, 16)
    expected = ctr(q1, k2, temperature) + ctr(q2, k1, temperature)
    assert float(method.contrast((q1, q2, k1, k2))["loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(method.contrast((q2, q1, k2, k1))["loss"]) == pytest.approx(expected, rel=1e-5)


def test_chance_is_the_loss_of_equal_similarities():
    for temperature, batch in ((0.2, 16), (1.0, 64)):
        method = make(batch, temperature=temperature)
        same = torch.ones(batch, 16)
        loss = float(method.contrast((same,) * 4)["loss"])
        assert method.chance == pytest.approx(loss, rel=1e-6)
        assert method.chance == pytest.approx(4 * temperature * math.log(batch))
    config = MoCoV3Config(batch=4096, temperature=1.0, **CNN, **HEADS)
    assert MoCoV3(config, DataShape(1, 8, 10)).chance == pytest.approx(33.27, abs=0.01)


def test_embeddings_are_those_of_the_algorithm():
    """q1, q2 with predictor; k1, k2 of the copy without it, each view with its own statistics."""
    method, views = make(), random_views()
    with torch.no_grad():
        for parameter in method.keys.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    q1, q2, k1, k2 = method.embed(views)
    encoder, projector = method.encoder, method.projector
    for q, x in ((q1, views[0]), (q2, views[1])):
        torch.testing.assert_close(q, method.predictor(projector(encoder(x))))
    for k, x in ((k1, views[0]), (k2, views[1])):
        torch.testing.assert_close(k, method.keys.encoder(x))
    other = torch.stack([views[0], 1 - views[1]])
    assert torch.equal(method.embed(other)[0], q1)


def test_no_gradient_through_the_keys():
    method = make()
    embeddings = method.embed(random_views())
    assert [each.requires_grad for each in embeddings] == [True, True, False, False]
    method.contrast(embeddings)["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in method.keys.parameters())
    trained = [method.encoder, method.projector, method.predictor]
    assert all(p.grad is not None for part in trained for p in part.parameters())
    optimizer = make_optimizer("adamw", method, lr=1, weight_decay=0.1, momentum=0)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for part in trained for p in part.parameters()}


def test_keys_start_as_the_network_and_follow_by_a_rising_momentum():
    method, steps = make(key_momentum=0.9), 10
    network = nn.Sequential(method.encoder, method.projector)
    for key, own in zip(method.keys.parameters(), network.parameters(), strict=True):
        assert torch.equal(key, own)
        assert key is not own
    for step, momentum in ((0, 0.9), (5, 0.95), (10, 1.0)):
        assert cosine_momentum(step, steps, 0.9) == pytest.approx(momentum)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        expected = [
            momentum * key + (1 - momentum) * own
            for key, own in zip(method.keys.parameters(), network.parameters(), strict=True)
        ]
        method.before_step(step, steps)
        for key, value in zip(method.keys.parameters(), expected, strict=True):
            torch.testing.assert_close(key, value)


def test_running_statistics_of_the_keys_are_their_own():
    method, views = make(), random_views()
    before = {name: buffer.clone() for name, buffer in method.keys.named_buffers()}
    method.before_step(0, 10)
    assert all(torch.equal(buffer, before[name]) for name, buffer in method.keys.named_buffers())
    method.encoder(views[0])  # the queries' statistics move, the keys' do not
    method.before_step(1, 10)
    assert all(torch.equal(buffer, before[name]) for name, buffer in method.keys.named_buffers())
    method.keys(views[1])
    moved = [
        not torch.equal(b, before[n]) for n, b in method.keys.named_buffers() if "running" in n
    ]
    assert moved
    assert all(moved)


def kinds(head):
    names = {nn.Linear: "linear", nn.ReLU: "relu"}
    return [names.get(type(m)) or ("bn" if m.affine else "bn without affine") for m in head.layers]


FIRST, LAST = ["linear", "bn", "relu"], ["linear", "bn without affine"]


@pytest.mark.parametrize(
    ("fields", "projector", "predictor"),
    [
        (CNN, FIRST + LAST, [*FIRST, "linear"]),
        (TINY_VIT, FIRST + FIRST + LAST, FIRST + LAST),
        ({**TINY_VIT, "proj_layers": 2, "pred_bn": False}, FIRST + LAST, [*FIRST, "linear"]),
        ({**CNN, "proj_layers": 3, "pred_bn": True}, FIRST + FIRST + LAST, FIRST + LAST),
    ],
)
def test_heads_follow_the_encoder_unless_told(fields, projector, predictor):
    method = make(**fields)
    assert kinds(method.projector) == projector
    assert kinds(method.predictor) == predictor
    linear = [m for part in (method.projector, method.predictor) for m in part.layers[::3]]
    assert all(layer.bias is None for layer in linear)
    assert method.projector.layers[0].in_features == method.encoder.dim
    assert method.predictor.layers[0].in_features == 16


def test_the_defaults_are_the_papers():
    config = MoCoV3Config()
    assert (config.proj_hidden, config.proj_dim, config.key_momentum) == (4096, 256, 0.99)
    assert config.freeze_patch


@pytest.mark.parametrize("freeze", [True, False])
def test_the_patch_projection_stays_random(tmp_path, freeze):
    method = make(freeze_patch=freeze, **TINY_VIT)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    optimizer = make_optimizer("adamw", method, lr=1e-2, weight_decay=0.1, momentum=0)
    for step in range(2):
        method.before_step(step, 4)
        method(random_views())["loss"].backward()
        patch = method.encoder.patch_projection
        assert (patch.weight.grad is None) == (patch.bias.grad is None) == freeze
        optimizer.step()
    after = method.state_dict()
    for name in ("weight", "bias"):
        for prefix in ("encoder.", "keys.encoder.0."):
            key = f"{prefix}patch_projection.{name}"
            assert torch.equal(after[key], before[key]) == freeze, key
    block = "encoder.blocks.0.mlp.0.weight"
    assert not torch.equal(after[block], before[block])


def test_the_two_views_differ_as_in_the_paper():
    for first, second, crop in (
        ("mocov3-1", "mocov3-2", 0.08),
        ("mocov3-resnet-1", "mocov3-resnet-2", 0.2),
    ):
        one, two = VIEWS[first], VIEWS[second]
        for view in (one, two):
            assert view.crop_scale == (crop, 1.0)
            assert (view.brightness, view.contrast, view.saturation, view.hue) == (
                0.4,
                0.4,
                0.2,
                0.1,
            )
            assert (view.jitter, view.grey, view.flip) == (0.8, 0.2, 0.5)
            assert view.blur_sigma == (0.1, 2.0)
        assert (one.blur, one.solarise) == (1.0, 0.0)
        assert (two.blur, two.solarise) == (0.1, 0.2)


def test_each_view_has_its_recipe():
    method = make(views="grey", second_views="grey-solarise")
    dark = torch.full((256, 1, 8, 8), 40, dtype=torch.uint8)  # solarising leaves what is dark
    light = 255 - dark
    generator = torch.Generator().manual_seed(0)
    assert float(method.views(Batch(dark, None), generator).max()) < 0.5
    views = method.views(Batch(light, None), generator)
    assert views.shape == (2, 256, 1, 8, 8)
    inverted = (views.mean((2, 3, 4)) < 0.5).float().mean(1)
    assert float(inverted[0]) < 0.02
    assert 0.1 < float(inverted[1]) < 0.3
    again = method.views(Batch(light, None), torch.Generator().manual_seed(5))
    assert torch.equal(again, method.views(Batch(light, None), torch.Generator().manual_seed(5)))


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (
            "imagenet",
            {"arch": "vit-small", "optimizer": "adamw", "lr": 1.5e-4, "weight_decay": 0.1,
             "warmup_epochs": 40.0, "temperature": 0.2, "epochs": 300, "batch": 4096},
        ),
        (
            "imagenet-resnet50",
            {"arch": "resnet50", "optimizer": "lars", "lr": 0.6, "weight_decay": 1e-6,
             "warmup_epochs": 10.0, "temperature": 1.0, "epochs": 100, "batch": 4096},
        ),
        (
            "cifar10-resnet18",
            {"arch": "resnet18", "optimizer": "lars", "lr": 0.3, "weight_decay": 1e-6,
             "trust": 0.02, "temperature": 0.2, "epochs": 1000, "batch": 256},
        ),
    ],
)  # fmt: skip
def test_published_recipes(recipe, expected):
    config = make_config(MoCoV3Config, "mocov3", {"recipe": recipe})
    assert {name: getattr(config, name) for name in expected} == expected
    assert (config.lr_scaling, config.key_momentum) == ("linear", 0.99)
    assert (config.proj_hidden, config.proj_dim) == (4096, 256)
    assert config.views != config.second_views


@pytest.mark.parametrize(
    ("recipe", "channels", "size"),
    [
        ("digits", 1, 8),
        ("fashion-mnist", 1, 28),
        ("fashion-mnist-vit", 1, 28),
        ("cifar10", 3, 32),
        ("folder", 3, 32),
    ],
)
def test_small_recipes_build(recipe, channels, size):
    config = make_config(MoCoV3Config, "mocov3", {"recipe": recipe})
    method = MoCoV3(config, DataShape(channels, size, 10))
    assert isinstance(method.encoder, ViT) == recipe.endswith("vit")


@pytest.mark.slow
@pytest.mark.parametrize("fields", [CNN, TINY_VIT])
@pytest.mark.parametrize("pred_bn", [True, False])
def test_trains_in_bfloat16_channels_last_and_compiled(tmp_path, fields, pred_bn, monkeypatch):
    compiled = []
    monkeypatch.setattr(
        nn.Module, "compile", lambda module: compiled.append(module) or _compile(module)
    )
    knobs = {"precision": "bf16", "channels_last": True, "compile": True, "steps": 2}
    result, _ = run(tmp_path / "a", **fields, **knobs, pred_bn=pred_bn)
    assert compiled == [result.encoder]


def _compile(module):
    module._compiled_call_impl = torch.compile(module._call_impl, backend="aot_eager")


@pytest.mark.slow
def test_learns_digits(tmp_path):
    fields = {"width": 16, "steps": 80, "batch": 128, "lr": 5e-3, "key_momentum": 0.9}
    result, text = run(tmp_path / "a", **fields, temperature=0.2, log_every=20, knn_every=100)
    assert "loss at chance" in text
    record = json.loads((result.dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["loss"] < 0.9 * record["chance"]
    assert record["knn"] > 0.85
    assert record["feature_spread"] > 0.6


@pytest.mark.slow
def test_says_when_it_learns_nothing(tmp_path):
    fields = {"temperature": 2.0, "lr": 0.0, "steps": 60, "warmup_epochs": 0.0}
    _, text = run(tmp_path / "a", **fields)
    assert "is still its chance value 33.27" in text


def test_pictures():
    images = load_data("digits").train.images[:20]
    method = make(**TINY_VIT)
    batch = Batch(images, None)
    views = method.pictures(batch, torch.Generator())["views"]
    assert views.shape == (3, 20, 1, 8, 8)
    assert torch.equal(views[0], images / 255)
    attention = method.figures(batch, torch.Generator())["attention"]
    assert attention.shape == (2, 12, 1, 8, 8)
    torch.testing.assert_close(attention[1].amax((1, 2, 3)), torch.ones(12))
    assert make().figures(batch, torch.Generator()) == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"views": "greyy"}, "no such views, got 'greyy'; did you mean 'grey"),
        ({"second_views": "mocov3-3"}, "no such views, got 'mocov3-3'; did you mean 'mocov3"),
    ],
)
def test_wrong_settings(fields, message):
    with pytest.raises(ValueError, match=message):
        make(**fields)
