"""Relative patch location: pairs, chance, and the shortcuts that each guard closes."""

import io
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from sslops.training.data import Split
from sslops.training.distributed.process import World
from sslops.training.engine.loop import Loop
from sslops.training.loggers.console import Console
from sslops.training.methods.base import Batch, DataShape
from sslops.training.methods.relative_patch import NEIGHBOURS, RelativePatch, RelativePatchConfig

TINY = {"arch": "cnn-tiny", "width": 8, "hidden": 32, "batch": 6}
SHAPE = DataShape(3, 32, 10)
OFF = {k: v for off in RelativePatchConfig.guards.values() for k, v in off.items()}


def method(shape=SHAPE, **changes):
    torch.manual_seed(0)
    return RelativePatch(RelativePatchConfig(**{**TINY, **changes}), shape)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(N=6, C=3, size=32):
    images = torch.randint(0, 256, (N, C, size, size), dtype=torch.uint8, generator=generator(7))
    return Batch(images, None)


def test_all_eight_pairs_of_an_image_in_one_pass():
    relative = method().double().eval()
    tiles = relative.views(batch(), generator()).double()
    assert tiles.shape == (6, 9, 3, 8, 8)
    rows = []
    relative.encoder.register_forward_hook(lambda _, inputs, output: rows.append(len(inputs[0])))
    logits = relative.locate(tiles)
    assert rows == [54]  # each patch once
    assert logits.shape == (6, 8, 8)
    for image in (0, 5):
        centre = relative.encoder(tiles[image, 4][None])
        for label, place in enumerate((0, 1, 2, 3, 5, 6, 7, 8)):
            pair = torch.cat([centre, relative.encoder(tiles[image, place][None])], 1)
            torch.testing.assert_close(relative.head(pair)[0], logits[image, label])


def test_labels_are_the_eight_places():
    relative = method()
    views = relative.views(batch(), generator())
    relative.locate = lambda tiles: 100 * torch.eye(8).expand(6, 8, 8)
    out = relative.step(views)
    assert out["loss"].item() == 0
    assert out["accuracy"] == 1
    relative.locate = lambda tiles: 100 * torch.eye(8).roll(1, 0).expand(6, 8, 8)
    assert relative.step(views)["accuracy"] == 0


def test_chance():
    relative = method()
    assert relative.chance == pytest.approx(math.log(8))
    nn.init.zeros_(relative.head.layers[-1].weight)
    loss = relative.step(relative.views(batch(), generator()))["loss"]
    assert loss.item() == pytest.approx(math.log(8), rel=1e-5)


def test_gradients_reach_everything():
    relative = method()
    relative.step(relative.views(batch(), generator()))["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in relative.parameters())


def test_parts_hold_whole_images():
    relative = method()
    views = relative.views(batch(), generator())
    parts = relative.parts(views, 4)
    assert [len(part) for part in parts] == [4, 2]
    assert torch.equal(torch.cat(parts), views)


def test_views_and_steps_leave_the_global_generator_alone():
    relative = method()
    state = torch.get_rng_state()
    relative.step(relative.views(batch(), generator()))
    assert torch.equal(state, torch.get_rng_state())


def test_every_guard_reaches_the_tiles():
    relative = method(**OFF, fill="copy", coarse=0.3)
    recipe = relative.recipe
    assert (recipe.gap, recipe.jitter, recipe.drop, recipe.normalise) == (0.0, 0.0, 0.0, False)
    assert (recipe.fill, recipe.coarse) == ("copy", 0.3)
    on = method().recipe
    assert min(on.gap, on.jitter) > 0
    assert on.drop == 1
    assert on.normalise
    config = RelativePatchConfig()
    for off in RelativePatchConfig.guards.values():
        assert replace(config, **off) != config


def test_pictures_and_figures():
    relative = method().eval()
    assert relative.pictures(batch(), generator())["patches"].shape == (2, 6, 3, 26, 26)
    figures = relative.figures(batch(), generator())
    assert figures["patches-put-in-place"].shape == (2, 8, 3, 26, 26)
    assert figures["places-taken-for"].shape == (1, 8, 1, 3, 3)
    assert not figures["places-taken-for"][0, :, 0, 1, 1].any()
    relative.locate = lambda tiles: 9 * torch.eye(8).expand(len(tiles), 8, 8)
    figures = relative.figures(batch(), generator())
    above, below = figures["patches-put-in-place"]
    assert torch.equal(above, below)  # all where they belong
    right = [share for _, share in figures["right-by-place"].series["right"]]
    assert right == [1.0] * 8
    heat = figures["places-taken-for"][0, :, 0].flatten(1)[:, list(NEIGHBOURS)]
    assert torch.equal(heat, torch.eye(8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tile": 0.95}, "must fit into 3 cells"),
        ({"fill": "grey"}, "fill must be one of noise, copy, got 'grey'"),
        ({"shape": DataShape(1, 8, 10)}, r"jitter must have a pixel, got 0.1 of a cell of 2.7"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        method(**changes)


# Learning, on images that hold one clue and nothing else.


def accuracy(images, unseen, **changes):
    config = RelativePatchConfig(
        **{
            **TINY, "batch": 64, "steps": 80, "lr": 5e-3, "knn_every": 0, "pool": 2,
            "width": 16, **changes,
        }
    )  # fmt: skip
    torch.manual_seed(0)
    relative = RelativePatch(config, DataShape(images.shape[1], images.shape[2], 2))
    world, console = World(0, 1, torch.device("cpu")), Console(io.StringIO(), quiet=True)
    Loop(relative, Split(images, None), config, world, console=console).run()
    batches = [Batch(part, None) for part in torch.split(unseen, 64)]
    with torch.no_grad():
        return relative.eval().measure(batches, generator(5))["accuracy"]


def noise(N, C, size, seed):
    return torch.randn(N, C, size, size, generator=generator(seed))


def as_bytes(x):
    return x.mul(40).add(128).clamp(0, 255).byte()


def ramps(N, seed, size=24):
    """Noise on a fixed slope: only a patch's mean tells where it lies."""
    slope = torch.arange(size).float() / size
    return as_bytes(noise(N, 1, size, seed) / 4 + 2 * slope[:, None] + slope - 1.5)


@pytest.mark.slow
def test_light_is_a_shortcut_that_normalisation_closes():
    images, unseen = ramps(512, 0), ramps(128, 1)
    assert accuracy(images, unseen, normalise=False) > 0.6
    assert accuracy(images, unseen) < 0.2


def blobs(N, seed, size=36):
    """Blots of three colours at random places, some 4 pixels wide: only what is cut tells."""
    spots = torch.rand(N, 1, size, size, generator=generator(seed)) < 0.02
    hue = torch.randint(3, (N, 1, size, size), generator=generator(seed + 1))
    x = torch.cat([(spots & (hue == c)).float() for c in range(3)], 1)
    return (255 * nn.functional.max_pool2d(x, 5, 1, 2)).byte()


@pytest.mark.slow
def test_edges_that_go_on_are_a_shortcut_that_gaps_close():
    """The gap of 6 pixels is wider than a blot."""
    fields = {"tile": 0.4, "jitter": 0.0, "normalise": False, "drop": 0.0, "steps": 120,
              "lr": 1e-2}  # fmt: skip
    images, unseen = blobs(1024, 0), blobs(256, 10)
    touching = accuracy(images, unseen, **fields, gap=0.0)
    apart = accuracy(images, unseen, **fields, gap=0.5)
    assert touching > 0.2
    assert apart < 0.15
