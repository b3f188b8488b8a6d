"""Colorization: lightness in, colours out, rare ones weighed in the gradient alone."""

import math

import pytest
import torch
import torch.nn.functional as F

from sslops.training.augment.colour_bins import ab_bins, lightness_bins, rebalancing, soft_encode
from sslops.training.augment.lab import lab_to_rgb, rgb_to_lab
from sslops.training.methods.base import Batch, DataShape
from sslops.training.methods.colorization import Colorization, ColorizationConfig
from sslops.training.methods.pixel_target import PixelTarget
from sslops.training.models import build_encoder

TINY = {"arch": "cnn4", "width": 8, "batch": 6, "decoder_width": 16}


def method(size=16, channels=3, **changes):
    torch.manual_seed(0)
    config = ColorizationConfig(**{**TINY, **changes})
    return Colorization(config, DataShape(channels, size, 2))


def images(n=6, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8)


def target(**changes):
    options = {"kind": "classes", "hints": 10, "neighbours": 5, **changes}
    return PixelTarget(ab_bins(), **options)


def pixels(n=4, side=3, seed=0):
    """ab, a hint and a prediction for each pixel."""
    generator = torch.Generator().manual_seed(seed)
    ab = torch.randn(n, 2, side, side, generator=generator) * 25
    hint = torch.randint(10, (n, side, side), generator=generator)
    return torch.randn(n, 313, side, side, generator=generator), ab, hint


def test_the_encoder_sees_lightness_alone():
    encoder = build_encoder("cnn4", 3, 16, seed=0, inputs="lightness", width=8).double().eval()
    lab = torch.rand(2, 3, 16, 16, dtype=torch.float64) * 20 - 10
    lab[:, 0] += 60
    other = lab.clone()
    other[:, 1:] *= -1
    same = [encoder(lab_to_rgb(each)) for each in (lab, other)]
    torch.testing.assert_close(same[0], same[1], rtol=0, atol=1e-9)
    other[:, 0] += 1
    assert (encoder(lab_to_rgb(other)) - same[0]).abs().max() > 1e-4


@pytest.mark.parametrize("inputs", ["rgb", "lightness", "ab", "split"])
@pytest.mark.parametrize("arch", ["cnn4", "resnet18", "vit-tiny"])
def test_encoders_of_channels_have_maps_and_stages(arch, inputs):
    width = {"width": 24, "depth": 2, "heads": 3} if arch == "vit-tiny" else {"width": 8}
    plain = build_encoder(arch, 3, 16, **width)
    encoder = build_encoder(arch, 3, 16, inputs=inputs, **width)
    x = torch.rand(2, 3, 16, 16)
    assert encoder.dim == plain.dim
    assert encoder(x).shape == (2, encoder.dim)
    maps, expected = encoder.feature_maps(x), plain.feature_maps(x)
    assert [each.shape for each in maps] == [each.shape for each in expected]
    frozen = encoder.stage_modules()[0]
    frozen.requires_grad_(False)
    assert any(not p.requires_grad for p in encoder.parameters())
    assert len(encoder.stage_modules()) == len(maps)


@pytest.mark.parametrize(
    ("channels", "options", "message"),
    [
        (1, {"inputs": "lightness"}, "inputs='lightness' needs images of 3 channels, got 1"),
        (3, {"inputs": "luma"}, "inputs must be one of rgb, lightness, ab, split, got 'luma'"),
        (3, {"inputs": "split", "width": 5}, "inputs='split' needs an even width, got 5"),
        (2, {}, "channels must be 1 or 3, got 2"),
    ],
)
def test_inputs_refused(channels, options, message):
    with pytest.raises(ValueError, match=message):
        build_encoder("cnn4", channels, 16, **options)


@pytest.mark.parametrize("rebalance", [False, True])
def test_knowing_nothing_costs_the_logarithm_of_the_bins(rebalance):
    found = target(rebalance=rebalance)
    _, ab, hint = pixels()
    loss = found(torch.zeros(4, 313, 3, 3), ab, hint)["loss"]
    assert loss.item() == pytest.approx(found.chance) == pytest.approx(math.log(313))


def test_perfect_predictions_cost_nothing_but_the_softness():
    _, ab, hint = pixels()
    index, weight = soft_encode(ab, ab_bins())
    dense = torch.zeros(4, 3, 3, 313).scatter_(3, index, weight).movedim(3, 1)
    perfect = target()(dense.log().clamp(min=-100), ab, hint)
    entropy = -(weight * weight.log()).sum(3).mean()
    assert perfect["loss"].item() == pytest.approx(entropy.item(), abs=1e-5)
    assert perfect["accuracy"] == 1
    hard = target(neighbours=1)
    sure = 1e4 * (dense == dense.amax(1, keepdim=True))
    assert hard(sure, ab, hint)["loss"].item() == pytest.approx(0, abs=1e-6)
    values = target(kind="regression")
    assert values(ab, ab, hint)["loss"].item() == 0


def test_the_loss_is_unweighted_and_its_gradient_weighted():
    prediction, ab, hint = pixels()
    prediction.requires_grad_()
    found = target(rebalance=True)
    loss = found(prediction, ab, hint)["loss"]
    (grad,) = torch.autograd.grad(loss, prediction)

    index, weight = soft_encode(ab, ab_bins())
    dense = torch.zeros(4, 3, 3, 313).scatter_(3, index, weight).movedim(3, 1)
    errors = F.cross_entropy(prediction, dense, reduction="none")  # [B, h, w]
    assert loss.item() == pytest.approx(errors.mean().item(), rel=1e-6)
    weights = rebalancing(dense.mean((0, 2, 3)))[dense.argmax(1)]
    (expected,) = torch.autograd.grad((weights * errors).mean(), prediction, retain_graph=True)
    torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-7)
    (plain,) = torch.autograd.grad(errors.mean(), prediction)
    assert (grad - plain).abs().max() > 0.1 * plain.abs().max()
    assert weights.max() > 1.05 * weights.min()


def test_without_weights_the_gradient_is_that_of_the_loss():
    prediction, ab, hint = pixels()
    prediction.requires_grad_()
    (grad,) = torch.autograd.grad(target()(prediction, ab, hint)["loss"], prediction)
    index, weight = soft_encode(ab, ab_bins())
    dense = torch.zeros(4, 3, 3, 313).scatter_(3, index, weight).movedim(3, 1)
    (plain,) = torch.autograd.grad(F.cross_entropy(prediction, dense), prediction)
    torch.testing.assert_close(grad, plain)


def test_rare_colours_weigh_more():
    ab = torch.zeros(4, 2, 3, 3)
    ab[0, 0, 0, 0] = 60.0  # one red pixel among grey ones
    prediction = torch.zeros(4, 313, 3, 3, requires_grad=True)
    loss = target(rebalance=True)(prediction, ab, torch.zeros(4, 3, 3).long())["loss"]
    (grad,) = torch.autograd.grad(loss, prediction)
    pull = grad.norm(dim=1)
    assert pull[0, 0, 0] > 20 * pull[0, 0, 1]


def test_images_without_colour_are_left_out():
    model = method(rebalance=False)
    x = images().float().div(255)
    x[2] = x[2].mean(0)  # grey
    assert model.asked(x)[2].tolist() == [True, True, False, True, True, True]
    assert method(mask_grey=False).asked(x)[2] is None
    kept = torch.tensor([True, True, False, True])
    prediction, ab, hint = pixels()
    prediction.requires_grad_()
    found = target()
    loss = found(prediction, ab, hint, kept)["loss"]
    rest = target()(prediction[kept], ab[kept], hint[kept])["loss"]
    assert loss.item() == pytest.approx(rest.item(), rel=1e-6)
    (grad,) = torch.autograd.grad(loss, prediction)
    assert not grad[2].any()
    assert found.counts.sum() == 3 * 9
    nothing = target()(prediction, ab, hint, kept & False)["loss"]
    assert nothing.item() == 0


def test_gradients_of_micro_batches_add_up():
    """The mean over all images, whichever of them are left out."""
    prediction, ab, hint = pixels()
    prediction.requires_grad_()
    kept = torch.tensor([True, False, True, True])
    (whole,) = torch.autograd.grad(target()(prediction, ab, hint, kept)["loss"], prediction)
    parts = torch.zeros_like(whole)
    for rows in (slice(0, 2), slice(2, 4)):
        loss = target()(prediction[rows], ab[rows], hint[rows], kept[rows])["loss"] / 2
        parts += torch.autograd.grad(loss, prediction)[0]
    torch.testing.assert_close(parts, whole)


def test_the_prior_is_counted_in_training_only_and_in_any_order():
    prediction, ab, hint = pixels()
    found, other = target(), target()
    found(prediction, ab, hint)
    for i in (2, 0, 3, 1):
        other(prediction[i : i + 1], ab[i : i + 1], hint[i : i + 1])
    assert torch.equal(found.totals, other.totals)
    assert torch.equal(found.counts, hint.flatten().bincount(minlength=10))
    index, weight = soft_encode(ab, ab_bins())
    dense = torch.zeros(4, 3, 3, 313).scatter_(3, index, weight)
    torch.testing.assert_close(found._prior(), dense.mean((0, 1, 2)), rtol=1e-3, atol=1e-5)
    before = found.totals.clone()
    found.eval()(prediction, ab, hint)
    assert torch.equal(found.totals, before)


def test_the_best_prediction_from_a_hint():
    """Colours that the hint tells leave the softness; colours it does not, the marginal."""
    colours = torch.tensor([[40.0, 30.0], [-40.0, 30.0], [0.0, -50.0]])
    hint = torch.randint(3, (200, 4, 4), generator=torch.Generator().manual_seed(0))
    ab = colours[hint].movedim(3, 1)
    told, blind = target(hints=3), target(hints=3)
    uniform = torch.zeros(200, 313, 4, 4)
    told(uniform, ab, hint)
    mixed = torch.randint(3, hint.shape, generator=torch.Generator().manual_seed(1))
    blind(uniform, ab, mixed)
    told.eval(), blind.eval()
    scores = told.scores([(uniform, ab, hint, None)], "hint")
    assert scores["cross_entropy"] == pytest.approx(math.log(313), rel=1e-5)
    assert scores["best_from_hint"] == pytest.approx(scores["entropy"], abs=0.05)
    assert scores["marginal"] == pytest.approx(math.log(3) + scores["entropy"], abs=0.05)
    scores = blind.scores([(uniform, ab, mixed, None)], "hint")
    assert scores["best_from_hint"] == pytest.approx(scores["marginal"], abs=0.05)


def test_weights_are_taken_out_of_a_score():
    """A network that has learnt the weighted task answers p w; without w its score is p's."""
    prediction, ab, hint = pixels()
    found = target(rebalance=True)
    found(prediction, ab, hint)
    tilted = prediction + rebalancing(found._prior()).log()[:, None, None]
    scores = found.scores([(tilted, ab, hint, None)], "hint")
    plain = found.scores([(prediction, ab, hint, None)], "hint")
    assert scores["cross_entropy_without_weights"] == pytest.approx(
        plain["cross_entropy"], rel=1e-5
    )
    assert "cross_entropy_without_weights" not in target().scores(
        [(prediction, ab, hint, None)], "hint"
    )


def test_regression_is_a_share_of_the_variance():
    _, ab, hint = pixels()
    values = target(kind="regression")
    assert values.outputs == 2
    mean = ab.mean((0, 2, 3), keepdim=True)
    assert values(mean.expand_as(ab), ab, hint)["loss"].item() == pytest.approx(values.chance)
    scores = values.scores([(mean.expand_as(ab), ab, hint, None)], "hint")
    spread = (ab - mean).square().sum(1).mean().item()
    assert scores["squared_error"] == pytest.approx(spread, rel=1e-5)
    assert scores["marginal"] == pytest.approx(spread, rel=0.02)
    assert scores["best_from_hint"] < scores["marginal"]
    constant = torch.ones(2, 2, 3, 3)
    assert values(0 * constant, constant, hint[:2])["loss"].isfinite()


def test_lightness_as_classes():
    L = torch.tensor([[1.0, 99.0]])[:, None, None]  # [1, 1, 1, 2]
    classes = PixelTarget(lightness_bins(50), kind="classes", hints=1)
    index = classes._encode(L)[0]
    assert index.flatten().tolist() == [0, 49]
    assert classes.decode(torch.zeros(1, 50, 1, 2)).flatten().tolist() == pytest.approx([50, 50])


def test_what_is_asked():
    """Mean colours of cells of 4 pixels, and L in whole steps."""
    model = method()
    x = images().float().div(255)
    ab, row, _ = model.asked(x)
    small = rgb_to_lab(x.unflatten(2, (4, 4)).unflatten(4, (4, 4)).mean((3, 5)))
    torch.testing.assert_close(ab, small[:, 1:], rtol=1e-4, atol=1e-4)
    assert (row - small[:, 0]).abs().max() <= 1.001
    assert model.predict(x).shape == (6, 313, 4, 4)
    assert method(stride=2).predict(x).shape == (6, 313, 8, 8)


def test_a_painted_picture_keeps_its_lightness():
    model = method()
    x = F.interpolate(torch.rand(2, 3, 4, 4), (16, 16))
    grey = model.paint(x, torch.zeros(2, 2, 4, 4))
    assert (grey - grey.mean(1, keepdim=True)).abs().max() < 1e-4
    torch.testing.assert_close(rgb_to_lab(grey)[:, 0], rgb_to_lab(x)[:, 0], rtol=1e-3, atol=1e-2)
    constant = x.mean((2, 3), keepdim=True).expand_as(x)
    ab = rgb_to_lab(constant)[:, 1:, ::4, ::4]
    torch.testing.assert_close(model.paint(constant, ab), constant, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["classes", "regression"])
def test_pictures(kind):
    model = method(target=kind).eval()
    batch = Batch(images(20), None)
    (grid,) = model.pictures(batch, torch.Generator()).values()
    assert grid.shape == (3, 20, 3, 16, 16)
    with torch.no_grad():
        figures = model.figures(batch, torch.Generator())
    names = {"classes": "grey-T=1-T=0.6-T=0.38-T=0.1-true", "regression": "grey-predicted-true"}
    grid = figures[names[kind]]
    assert grid.shape == ({"classes": 6, "regression": 3}[kind], 12, 3, 16, 16)
    torch.testing.assert_close(grid[-1], batch.images[:12] / 255)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 1}, "colorization: needs colour images of 3 channels, got 1"),
        ({"views": "flips"}, "colorization: no such views, got 'flips'; did you mean 'flip'"),
        ({"stride": 3}, "stride must be one of 8, 4, 2, 1 for images of 16 pixels .* 2 x 2, got 3"),
        ({"stride": 16}, "stride must be one of 8, 4, 2, 1 for images of 16 pixels .*, got 16"),
        ({"stride": 0}, "stride must be one of 8, 4, 2, 1 for images of 16 pixels .*, got 0"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        method(**changes)


def shapes(n, seed):
    """Discs are red and rings green, equally light: a pixel by itself tells nothing.

    How light differs from picture to picture, or the rounding to bytes would give colours away.
    """
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(2, (n,), generator=generator)
    centre = 7.5 + 3 * (torch.rand(n, 2, 1, 1, generator=generator) - 0.5)
    y, x = torch.arange(16.0)[:, None], torch.arange(16.0)
    radius = ((y - centre[:, 0]).square() + (x - centre[:, 1]).square()).sqrt()  # [n, 16, 16]
    inside = torch.where(label[:, None, None] == 0, radius < 4.5, (radius > 3) & (radius < 6))
    lab = torch.zeros(n, 3, 16, 16)
    light = 58 + 12 * torch.rand(n, 1, 1, generator=generator)
    lab[:, 0] = torch.where(inside, light, 40.0)
    colour = torch.tensor([[45.0, 25.0], [-45.0, 40.0]])[label][:, :, None, None]
    lab[:, 1:] = torch.where(inside[:, None], colour, 0.0)
    return Batch(lab_to_rgb(lab).clamp(0, 1).mul(255).round().to(torch.uint8), label)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classes", "regression"])
def test_learns_the_colours_of_shapes(kind):
    model = method(stride=2, target=kind, rebalance=False)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)
    train, test = shapes(512, 0), shapes(256, 1)
    for step in range(120):
        rows = slice(64 * (step % 8), 64 * (step % 8) + 64)
        views = model.views(Batch(train.images[rows], None), generator)
        optimizer.zero_grad()
        model.step(views)["loss"].backward()
        optimizer.step()
    scores = model.eval().measure([test], generator)
    if kind == "classes":
        known = scores["best_from_lightness"] - scores["entropy"]
        assert scores["cross_entropy"] - scores["entropy"] < 0.6 * known
    else:
        assert scores["squared_error"] < 0.5 * scores["best_from_lightness"]
    assert scores["best_from_lightness"] < scores["marginal"]
