"""Inpainting: holes, fills, two networks whose gradients never meet, and what is learned."""

import io
import math

import pytest
import torch
from torch import nn

from sslops.training.augment import Draw
from sslops.training.augment.masks import centre_hole, nearest_fill, random_regions, rim
from sslops.training.engine.optim import make_optimizer
from sslops.training.loggers.console import Console
from sslops.training.methods.base import Batch, DataShape
from sslops.training.methods.inpainting import FillScores, Inpainting, InpaintingConfig
from sslops.training.models.discriminator import Discriminator, adversarial_losses
from sslops.training.run.run import train

TINY = {"arch": "cnn-tiny", "width": 8, "views": "crop-flip"}


def method(channels=3, size=16, **changes):
    torch.manual_seed(0)
    return Inpainting(InpaintingConfig(**{**TINY, **changes}), DataShape(channels, size, 0))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def photos(n=6, channels=3, size=16, seed=0):
    images = torch.randint(0, 256, (n, channels, size, size), generator=generator(seed))
    return Batch(images.to(torch.uint8), None)


def holes(n, size, seed=0, area=0.25, cells=4):
    return random_regions(Draw(n, generator(seed)), size, size, area=area, cells=cells)


@pytest.mark.parametrize(("H", "W"), [(16, 16), (32, 20), (9, 31)])
@pytest.mark.parametrize("area", [0.1, 0.25, 0.6])
def test_random_regions_take_their_share_of_every_image(H, W, area):
    hole = random_regions(Draw(20, generator()), H, W, area=area, cells=5)
    assert hole.shape == (20, 1, H, W)
    assert (hole.sum((1, 2, 3)) == round(area * H * W)).all()


def test_random_regions_are_drawn_for_each_image_and_lie_anywhere():
    hole = holes(200, 16)
    assert len({tuple(each.flatten().tolist()) for each in hole}) == 200
    share = hole.float().mean(0)
    assert share.min() > 0.05  # no place is never, none always in it
    assert share.max() < 0.6


def test_random_regions_are_regions():
    """Far fewer edges than as many pixels drawn one by one."""
    hole = holes(50, 32).float()
    edges = (hole.diff(dim=2).abs().sum() + hole.diff(dim=3).abs().sum()) / 50
    single = (torch.rand(50, 1, 32, 32) < 0.25).float()
    noise = (single.diff(dim=2).abs().sum() + single.diff(dim=3).abs().sum()) / 50
    assert edges < 0.4 * noise


def test_random_regions_are_of_the_generator_alone():
    before = torch.get_rng_state()
    assert torch.equal(holes(4, 16, seed=1), holes(4, 16, seed=1))
    assert not torch.equal(holes(4, 16, seed=1), holes(4, 16, seed=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_centre_hole_is_the_middle_quarter():
    hole = centre_hole(2, 8, 12)
    assert hole.sum((1, 2, 3)).tolist() == [24, 24]
    assert hole[0, 0, 2:6, 3:9].all()


def test_rim_is_around_the_hole():
    hole = centre_hole(1, 8, 8)
    around = rim(hole, 1)
    assert not (around & hole).any()
    assert around.sum() == 6 * 6 - 4 * 4
    assert rim(hole, 2).sum() == 64 - 16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: centre_hole(1, 3, 8), "sides must be at least 4 pixels, got 3 x 8"),
        (lambda: holes(1, 4, area=0.01), "got 0 of the 4 x 4 pixels inside"),
        (lambda: holes(1, 4, area=0.99), "got 16 of the 4 x 4 pixels inside"),
        (lambda: holes(1, 8, cells=1), "cells must be at least 2, got 1"),
        (lambda: Discriminator(3, 3), "side must be at least 4 pixels, got 3"),
    ],
)
def test_parts_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_nearest_fill_against_a_double_loop():
    x, hole = torch.rand(3, 2, 9, 7), random_regions(Draw(3, generator()), 9, 7, area=0.4, cells=4)
    filled = nearest_fill(x.masked_fill(hole, float("nan")), hole)
    for image, inside, result in zip(x, hole[:, 0], filled, strict=True):
        outside = [(i, j) for i in range(9) for j in range(7) if not inside[i, j]]
        for i in range(9):
            for j in range(7):
                least = min((i - a) ** 2 + (j - b) ** 2 for a, b in outside)
                near = [image[:, a, b] for a, b in outside if (i - a) ** 2 + (j - b) ** 2 == least]
                assert any(torch.equal(result[:, i, j], each) for each in near)


def test_scores_are_l1_and_psnr_inside_the_hole():
    truth, hole = torch.zeros(2, 1, 8, 8), centre_hole(2, 8, 8)
    scores = FillScores()
    for filled in (truth + 0.1, truth - 0.3):
        scores.add("", filled, truth, hole)
        scores.add("_outside", torch.where(hole, truth, filled), truth, hole)
    result = scores.result()
    assert result["l1"] == pytest.approx(0.2)
    assert result["psnr"] == pytest.approx(-10 * math.log10((0.01 + 0.09) / 2))
    assert result["l1_outside"] == 0


class Known(nn.Module):
    """Predicts what it is told, whatever it sees."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer


@pytest.mark.parametrize("mask", ["random", "centre"])
def test_a_perfect_prediction_has_no_loss(mask):
    inpainting = method(mask=mask, adversarial=0.0)
    x, hole = inpainting.views(photos(), generator())
    inpainting.decoder = Known(2 * x - 1)
    assert inpainting.step((x, hole))["loss"].item() == 0


def test_reconstruction_weighs_hole_and_rim():
    """Wrong by d in the hole, by e on the rim, by anything elsewhere."""
    inpainting = method(mask="centre", adversarial=0.0, overlap=2)
    x, hole = inpainting.views(photos(), generator())
    around = rim(hole, 2)
    wrong = 2 * x - 1 + 0.5 * hole + 0.25 * around + 9.0 * ~(hole | around)
    inpainting.decoder = Known(wrong)
    inside, beside = 8 * 8, 12 * 12 - 8 * 8
    expected = (inside * 0.25 + 10 * beside * 0.0625) / (inside + 10 * beside)
    assert inpainting.step((x, hole))["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_weights_are_those_of_the_paper():
    config = InpaintingConfig()
    assert (config.adversarial, config.overlap_weight, config.lr_ratio) == (0.001, 10.0, 10.0)
    assert (method().overlap, method(mask="centre").overlap) == (0, 1)
    inpainting = method()
    out = inpainting.step(inpainting.views(photos(), generator()))
    expected = 0.999 * out["reconstruction"] + 0.001 * out["adversarial"]
    torch.testing.assert_close(out["loss"].detach(), expected)


def test_generator_learns_ten_times_as_fast_as_discriminator():
    inpainting = method()
    optimizer = make_optimizer(
        "adamw", inpainting.optimizer_groups(), lr=1.0, weight_decay=0.1, momentum=0.9
    )
    scales = {}
    for group in optimizer.param_groups:
        assert group["betas"] == (0.5, 0.999)
        scales |= {id(p): group.get("lr_scale", 1.0) for p in group["params"]}
    for name, p in inpainting.named_parameters():
        scale = 0.1 if name.startswith("discriminator") else 1.0
        assert scales.pop(id(p)) == pytest.approx(scale), name
    assert not scales


@pytest.mark.parametrize("mask", ["random", "centre"])
def test_gradients_of_the_two_networks_never_meet(mask):
    inpainting = method(mask=mask)
    views = inpainting.views(photos(), generator())
    x, hole = views
    names = dict(inpainting.named_parameters())
    theirs = {n: p for n, p in names.items() if n.startswith("discriminator")}
    ours = {n: p for n, p in names.items() if n not in theirs}
    assert theirs
    truth, z = 2 * x - 1, inpainting._predict(x, hole)
    made, real = (inpainting._shown(each, truth, hole) for each in (z, truth))
    adversarial, own = adversarial_losses(inpainting.discriminator, made, real)
    for loss, mine, others in ((adversarial, ours, theirs), (own, theirs, ours)):
        found = torch.autograd.grad(loss, [*others.values()], retain_graph=True, allow_unused=True)
        assert all(each is None for each in found)  # no path at all: exactly zero
        found = torch.autograd.grad(loss, [*mine.values()], retain_graph=True, allow_unused=True)
        assert any(each is not None and each.abs().sum() > 0 for each in found)


def test_one_backward_pass_gives_each_network_its_own_gradient():
    """To the bit: the discriminator's does not depend on the generator's weights of losses."""
    grads = {}
    for weight in (0.001, 0.5, 1.0):
        inpainting = method(adversarial=weight)
        inpainting.step(inpainting.views(photos(), generator()))["loss"].backward()
        discriminator = inpainting.discriminator
        grads[weight] = [p.grad for p in discriminator.parameters()]
        views = inpainting.views(photos(), generator())
        x, hole = views
        inpainting = method(adversarial=weight)
        truth = 2 * x - 1
        made = torch.where(hole, inpainting._predict(x, hole), truth).detach()
        own = nn.functional.softplus(-inpainting.discriminator(truth)).mean()
        own = own + nn.functional.softplus(inpainting.discriminator(made)).mean()
        alone = torch.autograd.grad(own, [*inpainting.discriminator.parameters()])
        for got, expected in zip(grads[weight], alone, strict=True):
            torch.testing.assert_close(got, expected)
    for got, expected in zip(grads[0.001], grads[1.0], strict=True):
        assert torch.equal(got, expected)


def test_generator_wants_to_be_taken_for_real():
    """A step down the adversarial gradient raises the logit, however sure it is."""
    inpainting = method(adversarial=1.0)
    made = torch.zeros(2, 3, 16, 16, requires_grad=True)
    with torch.no_grad():
        inpainting.discriminator.layers[-1].bias.fill_(-30.0)  # sure that it is made
    adversarial, _ = adversarial_losses(inpainting.discriminator, made, torch.zeros_like(made))
    assert adversarial.item() == pytest.approx(30, abs=1)
    (grad,) = torch.autograd.grad(adversarial, made)
    assert grad.abs().sum() > 0  # log(1 - D) would be flat here
    better = inpainting.discriminator(made - 0.1 * grad / grad.norm())
    assert (better > inpainting.discriminator(made)).all()


def test_discriminator_sees_the_patch_or_the_composed_picture():
    x, picture = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    patch = method(mask="centre", overlap=2)
    hole = centre_hole(2, 16, 16)
    assert torch.equal(patch._shown(picture, x, hole), picture[:, :, 2:14, 2:14])
    whole = method()
    shown = whole._shown(picture, x, hole)
    assert torch.equal(shown[hole.expand_as(x)], picture[hole.expand_as(x)])
    assert torch.equal(shown[~hole.expand_as(x)], x[~hole.expand_as(x)])


def test_prediction_does_not_see_the_hole():
    inpainting = method().eval()
    x, hole = inpainting.views(photos(), generator())
    other = torch.where(hole, 1 - x, x)
    assert torch.equal(inpainting._predict(x, hole), inpainting._predict(other, hole))
    filled = torch.where(hole, inpainting.fill, x)
    assert inpainting.encoder.standardise(filled)[hole.expand_as(x)].abs().max() < 1e-6


def test_without_the_adversarial_part_there_is_no_discriminator():
    inpainting = method(adversarial=0.0)
    assert inpainting.discriminator is None
    assert set(inpainting.step(inpainting.views(photos(), generator()))) == {
        "loss", "reconstruction",
    }  # fmt: skip
    assert len(inpainting.optimizer_groups()) == 2


@pytest.mark.parametrize("size", [28, 30])
def test_sizes_that_are_no_power_of_two(size):
    inpainting = method(size=size, arch="cnn4", width=4)
    views = inpainting.views(photos(size=size), generator())
    assert inpainting._predict(*views).shape == views[0].shape
    inpainting.step(views)["loss"].backward()


def test_building_counts_nothing_in_batch_norm():
    encoder = method().encoder
    assert encoder.training
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(m.num_batches_tracked == 0 for m in norms)


def test_chance_is_that_of_the_mean_fill():
    """Images whose pixels vary as the encoders' constants say."""
    inpainting = method(adversarial=0.0)
    std, mean = inpainting.encoder.standardise.std, inpainting.fill
    x = mean + std * torch.randn(64, 3, 16, 16)
    inpainting.decoder = Known((2 * mean - 1).expand_as(x))
    loss = inpainting.step((x, holes(64, 16)))["loss"].item()
    assert loss == pytest.approx(inpainting.chance, rel=0.05)


def test_measure_beside_plain_fills():
    inpainting = method().eval()
    batch = photos(20)
    scores = inpainting.measure([batch, batch], generator())
    names = {"", "_mean_fill", "_own_mean_fill", "_nearest_fill"}
    assert set(scores) == {f"{kind}{name}" for kind in ("l1", "psnr") for name in names}
    x = batch.images.float().div(255)
    hole = holes(20, 16)
    expected = (inpainting.fill - x).abs()[hole.expand_as(x)].mean().item()
    first = inpainting.measure([batch], generator())
    assert first["l1_mean_fill"] == pytest.approx(expected, rel=1e-5)


def test_the_loss_begins_near_chance():
    inpainting = method(arch="cnn4")
    x = inpainting.fill + inpainting.encoder.standardise.std * torch.randn(32, 3, 16, 16)
    out = inpainting.step((x, holes(32, 16)))
    assert inpainting.chance < out["loss"].item() < 1.5 * inpainting.chance


def test_parts_keep_holes_with_their_images():
    inpainting = method()
    x, hole = inpainting.views(photos(5), generator())
    parts = inpainting.parts((x, hole), 2)
    assert [len(part[0]) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part[1] for part in parts]), hole)


def test_pictures_and_figures():
    inpainting = method().eval()
    assert inpainting.pictures(photos(3), generator())["holes"].shape == (2, 3, 3, 16, 16)
    (grid,) = inpainting.figures(photos(20), generator()).values()
    assert grid.shape == (4, 12, 3, 16, 16)
    hole = (grid[0] != grid[3]).any(1, keepdim=True)
    assert torch.equal(torch.where(hole, grid[3], grid[2]), grid[3])  # only holes are painted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"area": 1.0}, r"area must be in \(0, 1\), got 1.0"),
        ({"adversarial": 1.5}, r"adversarial must be in \[0, 1\], got 1.5"),
        ({"lr_ratio": 0.0}, "lr_ratio must be positive, got 0.0"),
        ({"overlap": -1}, "overlap must be at least 0, got -1"),
        ({"cells": 1}, "cells must be at least 2, got 1"),
        ({"views": "crop"}, "inpainting: no such views, got 'crop'"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        method(**changes)


def stripes(n, seed, size=16):
    """Vertical or horizontal stripes, 3 pixels wide, at any place: a hole is known from afar."""
    draw = torch.rand(n, 4, generator=generator(seed))
    phase = (draw[:, 0, None] * 6).floor()
    wave = ((torch.arange(size) + phase) % 6 < 3).float()[:, None, None, :]  # [n, 1, 1, size]
    dark, light = 0.3 * draw[:, 1], 0.7 + 0.3 * draw[:, 2]
    images = dark[:, None, None, None] + (light - dark)[:, None, None, None] * wave
    images = images.expand(n, 1, size, size)
    turned = (draw[:, 3] < 0.5)[:, None, None, None]
    images = torch.where(turned, images.transpose(2, 3), images)
    return Batch((images * 255).round().to(torch.uint8), None)


@pytest.mark.slow
def test_learns_to_continue_what_is_around_the_hole():
    """Below every fill that looks at the mean or at the nearest pixel only."""
    inpainting = method(channels=1, arch="cnn4", width=16, cells=4)
    optimizer = make_optimizer(
        "adamw", inpainting.optimizer_groups(), lr=5e-3, weight_decay=0.0, momentum=0.9
    )
    for group in optimizer.param_groups:
        group["lr"] *= group.get("lr_scale", 1.0)
    inpainting.train()
    for step in range(150):
        x = stripes(32, step).images.float().div(255)
        loss = inpainting.step((x, inpainting._holes(x, generator(step))))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scores = inpainting.eval().measure([stripes(128, 1000)], generator(5))
    for name in ("_mean_fill", "_own_mean_fill", "_nearest_fill"):
        assert scores["l1"] < 0.7 * scores[f"l1{name}"]
        assert scores["psnr"] > scores[f"psnr{name}"] + 2


@pytest.mark.slow
def test_trains_on_digits(tmp_path):
    scores = train(
        "inpainting", data="digits", out=tmp_path / "a", console=Console(io.StringIO()), steps=80,
        batch=64, width=16, knn_every=0, evaluate=False, threads=1,
    ).results["pretext"]  # fmt: skip
    assert scores["l1"] < min(scores["l1_own_mean_fill"], scores["l1_mean_fill"])
