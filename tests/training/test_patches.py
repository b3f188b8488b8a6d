"""Tiles and permutations: where tiles lie, what is left of colour and light, distances."""

from dataclasses import replace

import pytest
import torch

from sslops.training.augment.draw import SharedGenerator
from sslops.training.augment.patches import Layout, TileRecipe, make_tiles, mosaic, plain_tiles
from sslops.training.methods.permutations import distances, permutation_set
from sslops.training.models.layers import MEAN, STD, Standardise

BARE = TileRecipe(tile=1.0, gap=0.0, jitter=0.0, flip=0.0, normalise=False)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def photos(N, C, H, W=None, seed=7):
    shape = (N, C, H, W or H)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(seed))


def coordinates(N, size):
    """Images whose first channel is the row and whose second is the column, in [0, 1)."""
    rows = torch.arange(size).float()[:, None].expand(size, size) / size
    return torch.stack([rows, rows.T, torch.zeros_like(rows)]).expand(N, -1, -1, -1)


def places(tiles, size):
    """First row and column of each tile, [N, n^2, 2], from coordinates."""
    return (tiles[:, :, :2, 0, 0] * size).round().long()


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("size", [28, 32, 64, 96, 224])
def test_defaults_work_at_all_sizes(n, size):
    layout = TileRecipe(grid=n).layout(size)
    assert min(layout[1:]) >= 1
    assert 0.85 * size < layout.side <= size
    tiles = make_tiles(photos(2, 3, size), TileRecipe(grid=n, drop=0.5, coarse=0.5), generator())
    assert tiles.shape == (2, n * n, 3, layout.tile, layout.tile)
    assert tiles.dtype == torch.float32
    assert tiles.isfinite().all()


def test_cifar_layouts():
    assert TileRecipe(grid=2).layout(32) == Layout(2, 12, 3, 2)
    assert TileRecipe(grid=3).layout(32) == Layout(3, 8, 2, 1)


def test_rounding_takes_from_the_tile():
    layout = TileRecipe().layout(24)  # 6, 1.6 and 0.8 pixels would need 25
    assert layout == Layout(3, 5, 2, 1)


@pytest.mark.parametrize(
    ("fields", "size", "message"),
    [
        ({"gap": 0.1}, 12, r"gap must have a pixel, got 0.1 of a cell of 4.0 pixels \(12 pixels"),
        ({"jitter": 0.1}, 12, r"jitter must have a pixel, got 0.1 of a cell of 4.0"),
        (
            {"tile": 0.1, "gap": 0.0, "jitter": 0.0},
            12,
            "tile must have a pixel, got 0.1 of a cell of 4.0",
        ),
        ({"gap": 0.5, "jitter": 0.5, "tile": 0.1}, 3, r"tile must have a pixel, got 0.1 of a cell"),
    ],
)
def test_refuses_sizes_that_leave_something_empty(fields, size, message):
    with pytest.raises(ValueError, match=message):
        make_tiles(photos(2, 3, size), TileRecipe(**fields), generator())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grid": 1}, "grid must be at least 2, got 1"),
        ({"fill": "black"}, "fill must be noise or copy, got 'black'"),
        ({"gap": -0.1}, r"gap must be in \[0, 1\], got -0.1"),
        ({"tile": 0.9}, r"3 tiles of 0.9 with jitter 0.1 and gaps of 0.2 .* 3 cells, got 3.4"),
    ],
)
def test_refuses_recipes(fields, message):
    with pytest.raises(ValueError, match=message):
        TileRecipe(**fields)


def test_refuses_what_is_no_batch_of_images():
    with pytest.raises(TypeError, match=r"must be uint8 or floating, got torch\.int64"):
        make_tiles(photos(2, 3, 32).long(), TileRecipe(), generator())
    with pytest.raises(ValueError, match=r"got shape \(2, 2, 32, 32\)"):
        make_tiles(photos(2, 2, 32), TileRecipe(), generator())


def test_without_anything_tiles_are_the_image():
    images = photos(3, 3, 24)
    tiles = make_tiles(images, BARE, generator())
    assert torch.equal(mosaic(tiles, line=0), images.float() / 255)
    assert torch.equal(tiles[1, 5] * 255, images[1, :, 8:16, 16:24].float())


@pytest.mark.parametrize("n", [2, 3])
def test_tiles_keep_their_distance_and_reach_every_offset(n):
    recipe = replace(BARE, grid=n, tile=0.6, gap=0.2, jitter=0.2)
    size, N = 30 * n, 400
    layout = recipe.layout(size)
    assert layout == Layout(n, 18, 6, 6)
    found = places(make_tiles(coordinates(N, size), recipe, generator()), size).view(N, n, n, 2)
    assert found.min() >= 0
    assert found.max() <= size - layout.tile
    down = found[:, 1:, :, 0] - found[:, :-1, :, 0] - layout.tile
    right = found[:, :, 1:, 1] - found[:, :, :-1, 1] - layout.tile
    for between in (down, right):
        assert between.min() == layout.gap
        assert between.max() == layout.gap + 2 * layout.jitter
    corner = torch.arange(n) * layout.pitch
    start = found - torch.stack(torch.meshgrid(corner, corner, indexing="ij"), 2)
    assert start.min() == 0
    # every tile by itself, both ways by themselves
    deviation = start.flatten(1).float()
    assert (torch.corrcoef(deviation.T) - torch.eye(2 * n * n)).abs().max() > 0.3  # common start
    own = start - start[:, :1, :1]
    assert own.float().std(0)[-1, -1].min() > 1


def test_the_grid_lies_anywhere():
    recipe = replace(BARE, tile=0.5)
    found = places(make_tiles(coordinates(300, 24), recipe, generator()), 24)
    assert torch.equal(found[:, 0].unique(), torch.arange(13))
    assert (found - found[:, :1]).unique().tolist() == [0, 4, 8]  # as one


def test_other_shapes_use_the_longer_side():
    recipe = replace(BARE, tile=0.5)
    wide = make_tiles(photos(2, 1, 24, 60), recipe, generator())
    assert wide.shape == (2, 9, 1, 4, 4)


def test_mirrors():
    images = photos(200, 3, 24)
    tiles = mosaic(make_tiles(images, replace(BARE, flip=0.5), generator()), line=0)
    plain = images.float() / 255
    mirrored = (tiles == plain.flip(3)).flatten(1).all(1)
    assert torch.equal(tiles[~mirrored], plain[~mirrored])
    assert 70 < mirrored.sum() < 130


@pytest.mark.parametrize("C", [1, 3])
def test_every_channel_of_every_tile_is_normalised(C):
    """To what `Standardise` turns into mean 0 and deviation 1."""
    images = photos(4, C, 32) // 8 + torch.arange(0, 200, 50).byte()[:, None, None, None]
    tiles = make_tiles(images, TileRecipe(), generator())
    x = Standardise(C)(tiles.flatten(0, 1))
    torch.testing.assert_close(x.mean((2, 3)), torch.zeros(36, C), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((2, 3), correction=0), torch.ones(36, C), atol=1e-4, rtol=0)


def test_flat_tiles_stay_flat():
    images = torch.full((2, 3, 32, 32), 200, dtype=torch.uint8)
    images[1] += torch.randint(0, 2, (3, 32, 32), dtype=torch.uint8)
    x = Standardise(3)(make_tiles(images, TileRecipe(), generator()).flatten(0, 1))
    assert x[:9].abs().max() < 1e-5
    assert x[9:].std() < 0.15  # a deviation of half a level is not made one of 50


@pytest.mark.parametrize("fill", ["noise", "copy"])
@pytest.mark.parametrize("normalise", [False, True])
def test_dropped_colours_leave_one_channel(fill, normalise):
    """What the other channels held is nowhere; the kept one is untouched."""
    images = photos(50, 3, 32)
    recipe = TileRecipe(drop=1.0, fill=fill, normalise=normalise)
    tiles = make_tiles(images, recipe, generator())
    plain = make_tiles(images, replace(recipe, drop=0.0), generator())
    same = (tiles == plain).flatten(3).all(3)  # [50, 9, 3]
    assert (same.sum(2) == 1).all()
    counts = same.sum((0, 1))
    assert counts.min() > 100  # of 450, a third each
    assert (same.float().std(1) > 0).any()  # each tile's own
    for channel in range(3):  # changing what is not kept changes nothing
        other = images.clone()
        other[:, channel] = 255 - other[:, channel]
        again = make_tiles(other, recipe, generator())
        unchanged = (again == tiles).flatten(2).all(2)
        assert torch.equal(unchanged, ~same[:, :, channel])


def test_noise_stands_in_for_channels():
    tiles = make_tiles(photos(50, 3, 32), TileRecipe(drop=1.0), generator())
    deviation = tiles.std((3, 4), correction=0) / torch.tensor(STD[3])
    quiet = deviation.sort(2).values[:, :, :2]
    assert 0.05 < quiet.min()
    assert quiet.max() < 0.2
    mean = tiles.mean((0, 1, 3, 4))
    torch.testing.assert_close(mean, torch.tensor(MEAN[3]), atol=0.01, rtol=0)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_shares(share):
    """Of grey images, of tiles with one channel, of coarse tiles."""
    images = photos(200, 3, 32)
    plain = make_tiles(images, replace(BARE, tile=0.75), generator())
    grey = make_tiles(images, replace(BARE, tile=0.75, grey=share), generator())
    is_grey = (grey == grey[:, :, :1]).flatten(1).all(1)
    assert is_grey.float().mean() == pytest.approx(share, abs=0.1)
    assert torch.equal(grey[~is_grey], plain[~is_grey])
    for fields in ({"drop": share}, {"coarse": share}):
        changed = make_tiles(images, replace(BARE, tile=0.75, **fields), generator()) != plain
        changed = changed.flatten(2).any(2).float()
        assert changed.mean() == pytest.approx(share, abs=0.1)
        assert (changed.std(1) > 0).any() == (share == 0.5)  # tiles by themselves


def test_coarse_tiles_have_no_fine_detail():
    checkers = (torch.arange(24)[:, None] + torch.arange(24)) % 2 * 255
    images = checkers.byte().expand(1, 3, 24, 24)
    tiles = make_tiles(images, replace(BARE, coarse=1.0), generator())
    torch.testing.assert_close(tiles, torch.full_like(tiles, 0.5))


def test_grey_images_pass_through_every_change_of_colour():
    images = photos(3, 1, 32)
    colourful = TileRecipe(grey=1.0, drop=1.0)
    assert torch.equal(
        make_tiles(images, colourful, generator()), make_tiles(images, TileRecipe(), generator())
    )


def test_equal_generators_give_equal_bits_and_touch_no_other():
    images = photos(4, 3, 32)
    recipe = TileRecipe(grey=0.3, drop=0.5, coarse=0.3)
    state = torch.get_rng_state()
    a, b = (make_tiles(images, recipe, generator(3)) for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, make_tiles(images, recipe, generator(4)))
    assert torch.equal(state, torch.get_rng_state())


def test_processes_draw_as_one_does():
    images = photos(8, 3, 32)
    recipe = TileRecipe(grey=0.3, drop=0.5, coarse=0.3)
    whole = make_tiles(images, recipe, generator(3))
    parts = []
    for rank in range(2):
        shared = SharedGenerator()
        shared.manual_seed(3)
        shared.rank, shared.size = rank, 2
        parts.append(make_tiles(images[4 * rank : 4 * rank + 4], recipe, shared))
    assert torch.equal(whole, torch.cat(parts))


def test_plain_tiles_are_the_same_cuts():
    images = coordinates(20, 32)
    plain = plain_tiles(images, TileRecipe(drop=1.0, coarse=0.5), generator())
    bare = TileRecipe(normalise=False)
    assert torch.equal(plain, make_tiles(images, bare, generator()))


# Permutations


def test_all_24_of_2_by_2():
    found = permutation_set(2, 24)
    assert found.shape == (24, 4)
    assert len(found.unique(dim=0)) == 24
    assert torch.equal(found.sort(1).values, torch.arange(4).expand(24, 4))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSLOPS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield permutation_set(3, 2000)


def nearest(found):
    """The smallest distance of two of them."""
    return int((distances(found) + 99 * torch.eye(len(found), dtype=torch.int64)).min())


@pytest.mark.slow
@pytest.mark.parametrize(("size", "least"), [(9, 9), (24, 7), (64, 7), (100, 6), (1000, 5)])
def test_distances_beat_those_of_random_sets(large, size, least):
    found = large[:size]
    assert nearest(found) >= least
    best_random = 0
    for seed in range(20):
        random = torch.rand(size, 9, generator=generator(seed)).argsort(1)
        best_random = max(best_random, nearest(random))
    assert best_random < least
    mean = distances(found).float().sum() / (size * (size - 1))
    assert mean > 7.9  # of random permutations 8


@pytest.mark.slow
def test_large_set_is_one_of_different_permutations(large):
    assert large.shape == (2000, 9)
    assert large.dtype == torch.int64
    assert len(large.unique(dim=0)) == 2000
    assert torch.equal(large.sort(1).values, torch.arange(9).expand(2000, 9))


def test_greedy_takes_the_farthest_from_its_nearest():
    """Against all permutations, one after another."""
    from itertools import permutations

    every = torch.tensor(list(permutations(range(4))))
    found = permutation_set(2, 12)
    for k in range(1, 12):
        reach = (every[:, None] != found[:k]).sum(2).amin(1)
        assert (found[k] != found[:k]).sum(1).min() == reach.max()


def test_sets_are_kept_and_the_same_for_a_seed(large, tmp_path, monkeypatch):
    monkeypatch.setenv("SSLOPS_CACHE", str(tmp_path))
    first = permutation_set(3, 30)
    assert torch.equal(first, large[:30])
    assert [f.name for f in (tmp_path / "decoded").iterdir()] == ["permutations-1-3-30-0"]
    from sslops.training.methods import permutations

    monkeypatch.setattr(permutations, "_greedy", None)
    assert torch.equal(permutation_set(3, 30), first)
    monkeypatch.undo()
    monkeypatch.setenv("SSLOPS_CACHE", str(tmp_path))
    assert not torch.equal(permutation_set(3, 30, seed=1), first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 24), "grid must be 2 or 3, got 4"),
        ((2, 25), r"size must be in 2..24 for 2 x 2 tiles, got 25"),
        ((3, 1), r"size must be in 2..2000 for 3 x 3 tiles, got 1"),
    ],
)
def test_refuses_permutations(arguments, message):
    with pytest.raises(ValueError, match=message):
        permutation_set(*arguments)


def test_distances_count_places():
    found = torch.tensor([[0, 1, 2], [0, 2, 1], [1, 2, 0]])
    assert distances(found).tolist() == [[0, 2, 3], [2, 0, 2], [3, 2, 0]]
