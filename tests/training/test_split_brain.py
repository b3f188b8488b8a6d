"""Split-brain: two halves that know nothing of each other, by construction and to the last bit."""

import math

import pytest
import torch

from sslops.training.augment.colour_bins import ab_bins
from sslops.training.augment.lab import lab_to_rgb, rgb_to_lab
from sslops.training.engine.step import prepare_encoder
from sslops.training.methods.base import Batch, DataShape
from sslops.training.methods.split_brain import SplitBrain, SplitBrainConfig
from sslops.training.models import build_encoder
from sslops.training.models.declared import checkpoint_blocks

TINY = {"arch": "cnn4", "width": 16, "batch": 6, "decoder_width": 16}


def method(size=16, channels=3, **changes):
    torch.manual_seed(0)
    return SplitBrain(SplitBrainConfig(**{**TINY, **changes}), DataShape(channels, size, 2))


def images(n=6, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8)


@pytest.fixture
def lab_images(monkeypatch):
    """Encoders that take Lab: the conversion itself gives gradients of rounding only."""
    inputs = "sslops.training.models.colour_inputs"
    monkeypatch.setattr(f"{inputs}.rgb_to_lab", lambda x: x)
    monkeypatch.setattr(f"{inputs}.lightness", lambda x: x[:, :1])
    lab = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 20
    lab[:, 0] += 50
    return lab.requires_grad_()


@pytest.mark.parametrize("half", [0, 1])
def test_no_gradient_crosses_to_the_other_channels(lab_images, half):
    """In training mode, where batch norm could tell one image about others."""
    model = method().train()
    own, other = (slice(0, 1), slice(1, 3)) if half == 0 else (slice(1, 3), slice(0, 1))
    prediction = model.predict(lab_images)[half]
    features = model.encoder.halves[half](lab_images)
    for out in (prediction, features):
        (grad,) = torch.autograd.grad(out.square().sum(), lab_images, retain_graph=True)
        assert grad[:, own].abs().max() > 0
        assert torch.equal(grad[:, other], torch.zeros_like(grad[:, other]))


@pytest.mark.parametrize("half", [0, 1])
def test_no_gradient_crosses_to_the_other_network(half):
    model = method().train()
    out = model.step(images()[None].float() / 255)
    loss = out[("loss_ab", "loss_lightness")[half]]
    networks = [
        [*model.encoder.halves[i].parameters(), *model.decoders[i].parameters()] for i in (0, 1)
    ]
    own = torch.autograd.grad(loss, networks[half], retain_graph=True)
    assert all(grad.abs().sum() > 0 for grad in own)
    other = torch.autograd.grad(loss, networks[1 - half], allow_unused=True)
    assert all(grad is None for grad in other)


def test_the_other_channels_change_nothing():
    encoder = build_encoder("cnn4", 3, 16, seed=0, inputs="split", width=16).double().eval()
    lab = torch.rand(2, 3, 16, 16, dtype=torch.float64) * 20 - 10
    lab[:, 0] += 60
    colours, lights = lab.clone(), lab.clone()
    colours[:, 1:] *= -1
    lights[:, 0] += 5
    a, b, c = (encoder(lab_to_rgb(each)).chunk(2, 1) for each in (lab, colours, lights))
    torch.testing.assert_close(a[0], b[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(a[1], c[1], rtol=0, atol=1e-9)
    assert (a[1] - b[1]).abs().max() > 1e-3
    assert (a[0] - c[0]).abs().max() > 1e-3


def test_features_and_maps_stand_side_by_side():
    encoder = build_encoder("cnn4", 3, 16, seed=0, inputs="split", width=16).eval()
    x = torch.rand(2, 3, 16, 16)
    halves = list(encoder.halves)
    assert torch.equal(encoder(x), torch.cat([half(x) for half in halves], 1))
    for whole, *pair in zip(encoder.feature_maps(x), *(h.feature_maps(x) for h in halves),
                            strict=True):  # fmt: skip
        assert torch.equal(whole, torch.cat(pair, 1))
    half = build_encoder("cnn4", 1, 16, width=8)
    assert encoder.dim == 2 * half.dim


def test_checkpointed_halves_give_the_same_gradients():
    x = images()[None].float() / 255
    grads, statistics = [], []
    for checkpointing in (False, True):
        model = method()
        prepare_encoder(model.encoder, SplitBrainConfig(checkpointing=checkpointing))
        model.step(x)["loss"].backward()
        grads.append([p.grad for p in model.encoder.parameters()])
        statistics.append(list(model.encoder.buffers()))
    assert len(checkpoint_blocks(model.encoder)) == 8
    for pair in zip(*grads, strict=True):
        torch.testing.assert_close(*pair)
    for pair in zip(*statistics, strict=True):
        assert torch.equal(*pair)


def test_chance_is_both_halves():
    model = method()
    assert model.chance == pytest.approx(math.log(313) + math.log(50))
    assert method(target="regression").chance == 2
    for decoder in model.decoders:
        for parameter in decoder.layers[-1].parameters():
            torch.nn.init.zeros_(parameter)
    out = model.step(images()[None].float() / 255)
    assert out["loss"].item() == pytest.approx(model.chance, rel=1e-5)
    assert out["loss"] == out["loss_ab"] + out["loss_lightness"]


def test_each_half_is_asked_what_the_other_sees():
    model = method()
    x = images().float() / 255
    (ab, row), (L, colour) = model.asked(x)
    lab = rgb_to_lab(torch.nn.functional.avg_pool2d(x, 4))
    assert torch.equal(torch.cat([L, ab], 1), lab)
    assert (row - lab[:, 0]).abs().max() <= 1.001
    assert (ab_bins()[colour].movedim(3, 1) - ab).norm(dim=1).max() < 15
    assert [each.shape for each in model.predict(x)] == [(6, 313, 4, 4), (6, 50, 4, 4)]


@pytest.mark.parametrize("kind", ["classes", "regression"])
def test_scores_and_pictures(kind):
    model = method(target=kind)
    batch = Batch(images(), None)
    model.step(model.views(batch, torch.Generator()))
    scores = model.eval().measure([batch], torch.Generator())
    error = {"classes": "cross_entropy", "regression": "squared_error"}[kind]
    for name, other in (("ab", "lightness"), ("lightness", "ab")):
        assert {f"{name}_{error}", f"{name}_marginal", f"{name}_best_from_{other}"} <= set(scores)
    with torch.no_grad():
        (grid,) = model.figures(batch, torch.Generator()).values()
    assert grid.shape == (5, 6, 3, 16, 16)
    torch.testing.assert_close(grid[-1], batch.images / 255, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 1}, "split-brain: needs colour images of 3 channels, got 1"),
        ({"lightness_bins": 1}, "lightness_bins must be at least 2, got 1"),
        ({"stride": 3}, "split-brain: stride must be one of 8, 4, 2, 1 .*, got 3"),
        ({"width": 7}, "inputs='split' needs an even width, got 7"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        method(**changes)


def stripes(n, seed):
    """Upright stripes are orange, level ones blue; the colour repeats where the light does not.

    Lightness has stripes of two values that both colours share, colours have a disc whose side
    says how light the picture is: neither is told by a pixel.
    """
    generator = torch.Generator().manual_seed(seed)
    upright, dark = torch.randint(2, (2, n), generator=generator)
    wave = (torch.arange(16) // 2 % 2).float()
    pattern = torch.where(upright[:, None, None] == 1, wave, wave[:, None])  # [n, 16, 16]
    side = torch.where(dark[:, None, None] == 1, torch.arange(16) < 6, torch.arange(16) > 9)
    lab = torch.zeros(n, 3, 16, 16)
    lab[:, 0] = 50 + 8 * (pattern - 0.5) - 10 * (2 * dark - 1)[:, None, None]
    colour = torch.tensor([[-5.0, -30.0], [30.0, 35.0]])[upright][:, :, None, None]
    lab[:, 1:] = torch.where(side[:, None], 0.3 * colour, colour)
    return Batch(lab_to_rgb(lab).clamp(0, 1).mul(255).round().to(torch.uint8), upright)


@pytest.mark.slow
def test_learns_both_ways():
    model = method(stride=4, lightness_bins=20)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    model.recipe = type(model.recipe)()  # mirrored pictures would say the opposite
    generator = torch.Generator().manual_seed(0)
    train, test = stripes(512, 0), stripes(256, 1)
    for step in range(120):
        rows = slice(64 * (step % 8), 64 * (step % 8) + 64)
        optimizer.zero_grad()
        model.step(model.views(Batch(train.images[rows], None), generator))["loss"].backward()
        optimizer.step()
    scores = model.eval().measure([test], generator)
    for name, other in (("ab", "lightness"), ("lightness", "ab")):
        error, best = scores[f"{name}_cross_entropy"], scores[f"{name}_best_from_{other}"]
        assert error < 0.6 * best
        assert best <= scores[f"{name}_marginal"] + 0.01
