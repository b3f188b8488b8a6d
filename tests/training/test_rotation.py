"""Rotation: exact turns, the shortcut that inexact ones leave, and what is learned without it."""

import io
import math

import pytest
import torch
from torch import nn

from sslops.training.augment.turn import interpolated_turns, quarter_turns
from sslops.training.loggers.console import Console
from sslops.training.methods.attention import attention_map, attention_pictures, heat
from sslops.training.methods.base import Batch, DataShape
from sslops.training.methods.rotation import Rotation, RotationConfig
from sslops.training.models import build_encoder
from sslops.training.run.run import train

TINY = {"arch": "cnn-tiny", "width": 8, "views": "crop-flip"}


def method(size=16, **changes):
    torch.manual_seed(0)
    return Rotation(RotationConfig(**{**TINY, **changes}), DataShape(1, size, 0))


def batch(images):
    return Batch((images * 255).round().to(torch.uint8), None)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


LETTER = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]]).float()


def letters(n, seed, shape=LETTER, size=16):
    """An F anywhere on black: borders and corners, and where it may lie, are alike in all turns."""
    images = torch.zeros(n, 1, size, size)
    places = torch.randint(1, size - 4, (n, 2), generator=generator(seed))
    for image, (row, column) in zip(images, places.tolist(), strict=True):
        image[0, row : row + 4, column : column + 4] = shape
    return images


def fit(rotation, images, steps, lr=3e-3):
    optimizer = torch.optim.AdamW(rotation.parameters(), lr)
    rotation.train()
    for step in range(steps):
        views = rotation.views(batch(images(step)), generator(step))
        loss = rotation.step(views)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return rotation.eval()


def test_turns_are_those_of_the_array():
    x = torch.arange(2 * 3 * 5 * 5).view(2, 3, 5, 5)
    for k, turned in enumerate(quarter_turns(x).unbind(1)):
        assert torch.equal(turned, torch.rot90(x, k, (2, 3)))


def test_four_quarter_turns_are_none():
    x = torch.rand(2, 1, 6, 6)
    y = x
    for _ in range(4):
        y = quarter_turns(y)[:, 1]
    assert torch.equal(x, y)


def test_no_pixel_is_computed():
    """Every turn has the same values as the image, to the bit; interpolated ones have others."""
    x = torch.rand(3, 1, 8, 8)
    values = x.flatten(1).sort(1).values[:, None]
    assert torch.equal(quarter_turns(x).flatten(2).sort(2).values, values.expand(-1, 4, -1))
    by_look_up = interpolated_turns(x, 1.0).flatten(2).sort(2).values
    assert torch.equal(by_look_up[:, 0], values[:, 0])
    assert not torch.isclose(by_look_up[:, 1:], values, atol=1e-3).all(2).any()


def test_interpolated_turns_without_an_error_are_the_exact_ones():
    x = torch.rand(2, 3, 9, 9)
    torch.testing.assert_close(interpolated_turns(x, 0.0), quarter_turns(x), rtol=0, atol=1e-5)


def test_interpolation_darkens_corners_the_more_the_further():
    corners = interpolated_turns(torch.ones(1, 1, 16, 16), 1.0)[0, :, 0, 0, 0]
    assert corners[0] == 1
    assert (corners.diff() < 0).all()


def test_labels_are_the_turns():
    """A head that reads the turn off a marked corner has no loss."""
    rotation = method()

    class Corners(nn.Module):
        def forward(self, x):  # turned by k, the upper left corner goes to ...
            return torch.stack([x[:, 0, 0, 0], x[:, 0, -1, 0], x[:, 0, -1, -1], x[:, 0, 0, -1]], 1)

    rotation.encoder = Corners()
    rotation.head = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        rotation.head.weight.copy_(100 * torch.eye(4))
    images = torch.zeros(5, 1, 16, 16)
    images[:, :, 0, 0] = 1
    out = rotation.step(quarter_turns(images))
    assert out["loss"].item() == 0
    assert out["accuracy"].item() == 1


def test_chance_is_log_4():
    rotation = method()
    assert rotation.chance == math.log(4)
    nn.init.zeros_(rotation.head.weight)
    nn.init.zeros_(rotation.head.bias)
    out = rotation.step(rotation.views(batch(torch.rand(6, 1, 16, 16)), generator()))
    assert out["loss"].item() == pytest.approx(math.log(4))


def test_all_turns_of_an_image_are_in_one_batch():
    rotation = method()
    views = rotation.views(batch(torch.rand(6, 1, 16, 16)), generator())
    assert views.shape == (6, 4, 1, 16, 16)
    for k in range(4):  # of the same crop
        assert torch.equal(views[:, k], torch.rot90(views[:, 0], k, (2, 3)))
    assert [part.shape[0] for part in rotation.parts(views, 4)] == [4, 2]


def test_views_are_of_the_generator_alone():
    rotation, images = method(), batch(torch.rand(4, 1, 16, 16))
    before = torch.get_rng_state()
    views = rotation.views(images, generator(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(views, rotation.views(images, generator(3)))
    assert not torch.equal(views, rotation.views(images, generator(4)))


def test_refuses_what_is_not_square():
    images = Batch(torch.zeros(2, 1, 16, 20, dtype=torch.uint8), None)
    with pytest.raises(ValueError, match="rotation: images must be square, got 16 x 20"):
        method().views(images, generator())
    with pytest.raises(ValueError, match="got 'crop-flop'; did you mean 'crop-flip'"):
        method(views="crop-flop")


@pytest.mark.slow
def test_learns_what_is_upright():
    """Held-out places of a letter; the control's square looks the same in every position."""
    accuracy = {}
    for name, shape in (("letter", LETTER), ("square", torch.ones(4, 4))):
        rotation = fit(method(pool=2), lambda step, s=shape: letters(32, step, s), steps=150)
        accuracy[name] = rotation.measure([batch(letters(128, 1000, shape))], generator())
    assert min(accuracy["letter"][f"accuracy_{d}"] for d in (0, 90, 180, 270)) > 0.9
    assert accuracy["square"]["accuracy"] < 0.35


@pytest.mark.slow
def test_interpolation_is_a_shortcut():
    """Plain bright images have no upright position: only traces of turning can tell."""

    def plain(step):
        return 0.5 + 0.5 * torch.rand(32, 1, 1, 1, generator=generator(step)).expand(-1, 1, 16, 16)

    test = [batch(plain(1000))]
    exact = fit(method(views="crop-flip"), plain, steps=30).measure(test, generator())
    assert exact["accuracy"] == pytest.approx(0.25)
    assert "accuracy_exact" not in exact
    traces = fit(method(interpolate=True, pool=4), plain, steps=150).measure(test, generator())
    assert traces["accuracy"] > 0.9
    assert traces["accuracy_exact"] == pytest.approx(0.25)
    assert method(interpolate=True).cautions
    assert not method().cautions


def test_guards_name_fields():
    for fields in RotationConfig.guards.values():
        RotationConfig(**fields)


def test_attention_is_the_power_of_activations():
    activations = torch.tensor([[[[1.0, -2.0]], [[0.0, 1.0]]]])  # [1, 2, 1, 2]
    assert torch.equal(attention_map(activations, 1), torch.tensor([[[1 / 3, 1.0]]]))
    assert torch.equal(attention_map(activations, 2), torch.tensor([[[1 / 5, 1.0]]]))
    assert torch.equal(attention_map(torch.zeros(1, 2, 3, 3), 4), torch.zeros(1, 3, 3))
    ends = heat(torch.tensor([0.0, 1.0]))
    assert torch.equal(ends, torch.tensor([[0.0] * 3, [1.0] * 3]))


def test_attention_lies_where_the_object_is():
    images = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
    images[:, :, 2:6, 9:13] = 255
    encoder = build_encoder("cnn-tiny", 1, 16, width=4, seed=0).eval()
    pictures = attention_pictures(encoder, images)
    assert pictures.shape == (4, 2, 3, 64, 64)
    assert pictures.min() >= 0
    assert pictures.max() <= 1


def test_figures_show_attention_and_answers():
    rotation = method().eval()
    drawn = rotation.figures(batch(torch.rand(20, 1, 16, 16)), generator())
    assert drawn["attention-by-stage"].shape[1] == 12
    answers = drawn["answers-by-rotation"].series
    for k in range(4):  # shares of each turn
        assert sum(points[k][1] for points in answers.values()) == pytest.approx(1)
    pictures = rotation.pictures(batch(torch.rand(3, 1, 16, 16)), generator())
    assert pictures["rotations"].shape == (5, 3, 1, 16, 16)


@pytest.mark.slow
def test_trains_on_digits_above_chance(tmp_path):
    result = train(
        "rotation", data="digits", out=tmp_path / "a", console=Console(io.StringIO()), steps=60,
        width=8, knn_every=0, evaluate=False, threads=1,
    )  # fmt: skip
    assert result.results["pretext"]["accuracy"] > 0.5
