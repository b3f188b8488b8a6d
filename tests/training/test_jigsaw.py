"""Jigsaw puzzles: what a permutation means, tiles encoded once, chance, a puzzle that is learnt."""

import io
import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from sslops.training import train
from sslops.training.data import Split
from sslops.training.distributed.process import World
from sslops.training.engine.loop import Loop
from sslops.training.loggers.console import Console
from sslops.training.methods.base import Batch, DataShape
from sslops.training.methods.jigsaw import Jigsaw, JigsawConfig
from sslops.training.methods.permutations import permutation_set

TINY = {"arch": "cnn-tiny", "width": 8, "embed": 8, "hidden": 16, "batch": 6}
SHAPE = DataShape(3, 32, 10)


def method(shape=SHAPE, **changes):
    torch.manual_seed(0)
    return Jigsaw(JigsawConfig(**{**TINY, **changes}), shape)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(N=6, C=3, size=32):
    images = torch.randint(0, 256, (N, C, size, size), dtype=torch.uint8, generator=generator(7))
    return Batch(images, None)


def test_views_are_tiles_and_different_permutations():
    tiles, which = method(puzzles=5).views(batch(), generator())
    assert tiles.shape == (6, 4, 3, 12, 12)
    assert which.shape == (6, 5)
    assert all(len(set(row)) == 5 for row in which.tolist())
    assert len({tuple(row) for row in which.tolist()}) > 1  # each image's own
    tiles, which = method(grid=3, permutations=64).views(batch(), generator())
    assert tiles.shape == (6, 9, 3, 8, 8)
    assert which.max() > 24


def test_all_permutations_come_up():
    drawn = torch.cat([method().views(batch(), generator(seed))[1] for seed in range(50)])
    counts = drawn.flatten().bincount(minlength=24)
    assert counts.min() > 60  # 100 each on average


def test_place_p_shows_tile_p_of_the_permutation():
    """The head gets the embeddings in the order of the puzzle: against a loop."""
    jigsaw = method(grid=3, permutations=64, puzzles=3).double().eval()
    tiles, which = jigsaw.views(batch(), generator())
    tiles = tiles.double()
    logits = jigsaw.solve(tiles, which)
    assert logits.shape == (6, 3, 64)
    orders = permutation_set(3, 64)
    for image in range(6):
        for m in range(3):
            order = orders[which[image, m]]
            z = [jigsaw.embed(jigsaw.encoder(tiles[image, int(k)][None])) for k in order]
            torch.testing.assert_close(jigsaw.head(torch.cat(z, 1))[0], logits[image, m])


def test_tiles_are_encoded_once():
    jigsaw = method(puzzles=8)
    rows = []
    jigsaw.encoder.register_forward_hook(lambda _, inputs, output: rows.append(len(inputs[0])))
    jigsaw.step(jigsaw.views(batch(), generator()))
    assert rows == [6 * 4]


def test_a_tile_does_not_know_its_place():
    """The same network for all tiles: shuffled tiles give shuffled embeddings."""
    jigsaw = method().eval()
    tiles, _ = jigsaw.views(batch(), generator())
    z = jigsaw.encoder(tiles.flatten(0, 1)).unflatten(0, (6, 4))
    order = torch.tensor([2, 0, 3, 1])
    again = jigsaw.encoder(tiles[:, order].flatten(0, 1)).unflatten(0, (6, 4))
    torch.testing.assert_close(again, z[:, order])


@pytest.mark.parametrize(("grid", "P"), [(2, 24), (3, 64), (3, 100)])
def test_chance(grid, P):
    jigsaw = method(grid=grid, permutations=P)
    assert jigsaw.chance == pytest.approx(math.log(P))
    nn.init.zeros_(jigsaw.head.layers[-1].weight)
    out = jigsaw.step(jigsaw.views(batch(), generator()))
    assert out["loss"].item() == pytest.approx(math.log(P), rel=1e-5)


def test_a_head_that_knows_has_no_loss():
    jigsaw = method()
    views = jigsaw.views(batch(), generator())
    truth = nn.functional.one_hot(views[1], 24).float()
    jigsaw.solve = lambda tiles, which: 100 * truth
    out = jigsaw.step(views)
    assert out["loss"].item() == 0
    assert out["accuracy"] == out["tiles_in_place"] == 1
    jigsaw.solve = lambda tiles, which: 100 * truth.roll(1, 2)
    out = jigsaw.step(views)
    assert out["accuracy"] == 0
    named = jigsaw.permutations[(views[1] + 1) % 24]
    right = (named == jigsaw.permutations[views[1]]).float().mean()
    assert out["tiles_in_place"] == pytest.approx(right.item())


def test_gradients_reach_everything():
    jigsaw = method()
    jigsaw.step(jigsaw.views(batch(), generator()))["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in jigsaw.parameters())


def test_parts_hold_whole_images():
    jigsaw = method()
    tiles, which = jigsaw.views(batch(), generator())
    parts = jigsaw.parts((tiles, which), 4)
    assert [len(part[0]) for part in parts] == [4, 2]
    assert torch.equal(torch.cat([part[0] for part in parts]), tiles)
    assert torch.equal(torch.cat([part[1] for part in parts]), which)


def test_views_and_steps_leave_the_global_generator_alone():
    jigsaw = method()
    state = torch.get_rng_state()
    jigsaw.step(jigsaw.views(batch(), generator()))
    assert torch.equal(state, torch.get_rng_state())


def test_switches_reach_the_tiles():
    recipe = method(gap=0.0, jitter=0.0, grey=0.0, normalise=False).recipe
    assert (recipe.gap, recipe.jitter, recipe.grey, recipe.normalise) == (0.0, 0.0, 0.0, False)
    fields = set(vars(JigsawConfig()))
    for name, off in JigsawConfig.guards.items():
        assert set(off) <= fields, name
        config = JigsawConfig()
        assert replace(config, **off) != config
    raw, _ = method(normalise=False).views(batch(), generator())
    assert raw.min() >= 0
    assert raw.max() <= 1


def test_pictures_and_figures():
    jigsaw = method().eval()
    pictures = jigsaw.pictures(batch(), generator())
    assert pictures["puzzles"].shape == (3, 6, 3, 25, 25)
    figures = jigsaw.figures(batch(), generator())
    shown = figures["puzzles-put-back-solutions"]
    assert shown.shape == (3, 8, 3, 25, 25)
    assert 0 <= shown.min() <= shown.max() <= 1
    bars = figures["tiles-in-their-place"].series["share of puzzles"]
    assert sum(share for _, share in bars) == pytest.approx(1)


def test_the_right_permutation_puts_the_puzzle_back():
    jigsaw = method(grid=3, permutations=64).eval()
    which = jigsaw.views(batch(), generator())[1]
    truth = nn.functional.one_hot(which, 64).float()
    jigsaw.solve = lambda tiles, drawn: truth
    puzzle, back, solution = jigsaw.figures(batch(), generator())["puzzles-put-back-solutions"]
    assert torch.equal(back, solution)
    assert not torch.equal(puzzle, solution)
    jigsaw.solve = lambda tiles, drawn: truth.roll(1, 2)
    _, back, _ = jigsaw.figures(batch(), generator())["puzzles-put-back-solutions"]
    assert not torch.equal(back, solution)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": 4}, "grid must be 2 or 3, got 4"),
        ({"permutations": 25}, r"size must be in 2..24 for 2 x 2 tiles, got 25"),
        ({"puzzles": 25}, r"puzzles must be in 1..permutations = 24, got 25"),
        ({"tile": 0.95}, "must fit into 2 cells"),
        ({"shape": DataShape(1, 8, 10)}, r"jitter must have a pixel, got 0.1 of a cell of 4.0"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        method(**changes)


def quarters(N, seed):
    """Diagonal stripes, mirrored on the right and wider below: no line goes on across an edge.

    A tile tells by itself where it belongs, in a mirror image too, so neither borders nor light
    are needed.
    """
    stripes = torch.randn(N, 4, 24, generator=generator(seed)).mul(50).add(128).clamp(0, 255).byte()
    y, x = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    upper, lower = stripes[:, :, x + y], stripes[:, :, (x + y) // 2]  # [N, 4, 12, 12]
    rows = [
        torch.cat([part[:, left], part[:, left + 1].flip(2)], 2)
        for part, left in ((upper, 0), (lower, 2))
    ]
    return Split(torch.cat(rows, 1)[:, None], torch.zeros(N, dtype=torch.int64))


def learn(data, **changes):
    """Accuracy on unseen images, and of an untrained network."""
    config = JigsawConfig(
        **{**TINY, "batch": 64, "steps": 150, "lr": 1e-2, "knn_every": 0, "grey": 0.0, **changes}
    )
    torch.manual_seed(0)
    jigsaw = Jigsaw(config, DataShape(1, 24, 2))
    unseen = [Batch(quarters(64, 1).images, None)]
    scores = []
    for trained in (False, True):
        if trained:
            world = World(0, 1, torch.device("cpu"))
            Loop(jigsaw, data, config, world, console=Console(io.StringIO(), quiet=True)).run()
        with torch.no_grad():
            scores.append(jigsaw.eval().measure(unseen, generator(5)))
        jigsaw.train()
    return scores


@pytest.mark.slow
def test_learns_what_tiles_tell_of_their_place():
    data = quarters(512, 0)
    untrained, trained = learn(data)
    assert untrained["accuracy"] < 0.15
    assert trained["accuracy"] > 0.9
    assert trained["guessing"] == pytest.approx(1 / 24)


@pytest.mark.slow
def test_nothing_is_learnt_of_noise():
    """No place looks different and no edge goes on: the shortcuts are closed by construction."""
    images = torch.randint(0, 256, (512, 1, 24, 24), dtype=torch.uint8, generator=generator(3))
    config = {"gap": 0.2, "jitter": 0.1}
    jigsaw_scores = learn(Split(images, None), **config)[1]
    assert jigsaw_scores["accuracy"] < 0.12


def test_scores_are_of_test_images(tmp_path):
    result = train(
        "jigsaw", data="digits", out=tmp_path / "a", console=Console(io.StringIO()),
        evaluate=False, steps=5, batch=64, width=4, embed=8, hidden=16, knn_every=0, threads=1,
    )  # fmt: skip
    scores = json.loads((result.dir / "results.json").read_text())["pretext"]
    assert set(scores) == {"loss", "accuracy", "tiles_in_place", "guessing"}
