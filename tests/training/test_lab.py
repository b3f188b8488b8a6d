"""sRGB and Lab: published values, the way back, and the bins of colours that sRGB has."""

import math

import pytest
import torch

from sslops.training.augment.colour_bins import (
    ab_bins,
    annealed_mean,
    lightness_bins,
    rebalancing,
    soft_encode,
)
from sslops.training.augment.lab import in_gamut, lab_to_rgb, lightness, rgb_to_lab

# Primaries, secondaries and a grey: B. Lindbloom's CIE color calculator (sRGB, D65), rounded as the
# tests of GNU Octave's image package for xyz2lab have them.
PUBLISHED = [
    ((255, 0, 0), (53.24, 80.09, 67.20)),
    ((0, 255, 0), (87.73, -86.18, 83.18)),
    ((0, 0, 255), (32.30, 79.19, -107.86)),
    ((255, 255, 0), (97.14, -21.55, 94.48)),
    ((0, 255, 255), (91.11, -48.09, -14.13)),
    ((255, 0, 255), (60.32, 98.23, -60.82)),
    ((255, 255, 255), (100.0, 0.0, 0.0)),
    ((128, 128, 128), (53.59, 0.0, 0.0)),
    ((0, 0, 0), (0.0, 0.0, 0.0)),
]


def image(*colours, dtype=torch.float64):
    """Colours as pixels in a row, [1, 3, 1, n]."""
    return torch.tensor(colours, dtype=dtype).T[None, :, None]


@pytest.mark.parametrize("rgb,lab", PUBLISHED)
def test_published_values(rgb, lab):
    got = rgb_to_lab(image(rgb) / 255)[0, :, 0, 0]
    torch.testing.assert_close(got, torch.tensor(lab, dtype=torch.float64), rtol=0, atol=0.011)


def test_published_way_back():
    """MathWorks' documentation of lab2rgb: lab2rgb([70 5 10])."""
    got = lab_to_rgb(image((70, 5, 10)))[0, :, 0, 0]
    published = torch.tensor((0.7359, 0.6566, 0.6010), dtype=torch.float64)
    torch.testing.assert_close(got, published, rtol=0, atol=2e-4)


def test_lightness_is_the_cube_root_of_luminance():
    grey = 0.18  # linear
    encoded = 1.055 * grey ** (1 / 2.4) - 0.055
    L = rgb_to_lab(image((encoded,) * 3))[0, 0].item()
    assert L == pytest.approx(116 * grey ** (1 / 3) - 16, abs=1e-9)
    x = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    assert torch.equal(lightness(x), rgb_to_lab(x)[:, :1])


def test_greys_have_no_colour():
    grey = torch.arange(256, dtype=torch.float64).div(255).expand(3, 1, 256)
    assert rgb_to_lab(grey)[1:].abs().max() < 1e-12


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-6), (torch.float32, 2e-5)])
def test_there_and_back(dtype, bound):
    steps = torch.linspace(0, 1, 18, dtype=torch.float64)
    cube = torch.cartesian_prod(steps, steps, steps).T.reshape(3, 18, -1).to(dtype)
    lab = rgb_to_lab(cube)
    assert lab.dtype is dtype
    assert (lab_to_rgb(lab).double() - cube.double()).abs().max() < bound
    dark = torch.linspace(0, 0.05, 999, dtype=torch.float64).expand(3, 1, 999)  # both curves' knees
    assert (lab_to_rgb(rgb_to_lab(dark)) - dark).abs().max() < 1e-9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    x = torch.rand(3, 9, 9).to(dtype)
    for convert in (rgb_to_lab, lightness, lab_to_rgb):
        assert torch.equal(convert(x), convert(x.float()).to(dtype))


def test_gradients_are_finite_and_right():
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3).T
    x = corners[None, :, None].clone().requires_grad_()
    for convert in (rgb_to_lab, lambda rgb: lab_to_rgb(rgb_to_lab(rgb))):
        (grad,) = torch.autograd.grad(convert(x).sum(), x)
        assert grad.isfinite().all()
    inside = torch.rand(1, 3, 2, 2, dtype=torch.float64).mul(0.9).add(0.06).requires_grad_()
    assert torch.autograd.gradcheck(rgb_to_lab, inside)
    assert torch.autograd.gradcheck(lab_to_rgb, rgb_to_lab(inside).detach().requires_grad_())


def test_autocast_rounds_nothing():
    x = torch.rand(1, 3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rgb_to_lab(x), rgb_to_lab(x.clone()))
        assert rgb_to_lab(x).dtype is torch.float32
        inside = rgb_to_lab(x)
    assert torch.equal(inside, rgb_to_lab(x))


def test_gamut():
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    assert in_gamut(rgb_to_lab(x)).all()
    # Beyond white, beyond black, and a green that no screen has.
    assert not in_gamut(image((101, 0, 0), (-1, 0, 0), (50, -100, 60))).any()


def test_refused():
    with pytest.raises(TypeError, match=r"rgb_to_lab: colours must be floating, got torch.uint8"):
        rgb_to_lab(torch.zeros(3, 2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"lab_to_rgb: colours must be \[..., 3, H, W\], got "):
        lab_to_rgb(torch.zeros(4, 1, 2))
    with pytest.raises(ValueError, match="annealed_mean: temperature must be positive, got 0"):
        annealed_mean(torch.zeros(1, 2, 1, 1), torch.zeros(2, 2), 0)


# a -> the lowest and the highest b of the 313 points of resources/pts_in_hull.npy, published with
# Zhang et al. 2016, as OpenCV's samples/dnn/colorization.cpp prints them.
PUBLISHED_BINS = {
    -90: (50, 90), -80: (20, 90), -70: (0, 90), -60: (-20, 90), -50: (-30, 100),
    -40: (-40, 100), -30: (-50, 100), -20: (-50, 100), -10: (-60, 100), 0: (-70, 100),
    10: (-80, 90), 20: (-80, 90), 30: (-90, 90), 40: (-100, 90), 50: (-100, 80),
    60: (-110, 80), 70: (-110, 80), 80: (-110, 70), 90: (-110, 70), 100: (-90, 0),
}  # fmt: skip


def test_the_bins_are_the_published_ones():
    bins = ab_bins()
    assert bins.shape == (313, 2)
    assert bins.dtype is torch.float32
    expected = [
        [a, b] for a, (low, high) in PUBLISHED_BINS.items() for b in range(low, high + 1, 10)
    ]
    assert bins.tolist() == expected
    bins += 1
    assert torch.equal(ab_bins() + 1, bins)  # no one else's were changed


def test_every_colour_is_in_the_cell_of_a_bin():
    x = torch.rand(1, 3, 100, 100, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    ab = rgb_to_lab(x)[:, 1:]
    index, _ = soft_encode(ab, ab_bins(), 1)
    distance = (ab_bins()[index[..., 0]].movedim(3, 1) - ab).abs().amax(1)
    assert distance.max() <= 5.001


def test_soft_encoding_is_a_gaussian_of_the_five_nearest():
    bins = ab_bins()
    ab = torch.tensor([12.0, -7.0]).view(1, 2, 1, 1)
    index, weight = soft_encode(ab, bins)
    distance = (bins - torch.tensor([12.0, -7.0])).norm(dim=1)
    nearest = distance.argsort()[:5]
    assert torch.equal(index.flatten(), nearest)
    expected = torch.exp(-distance[nearest].square() / 50)
    torch.testing.assert_close(weight.flatten(), expected / expected.sum())
    assert bins[index[0, 0, 0, 0]].tolist() == [10, -10]


def test_a_centre_is_mostly_its_own():
    """Its four neighbours are 10 away: exp(-2) each."""
    weight = soft_encode(torch.zeros(1, 2, 1, 1), ab_bins())[1].flatten()
    own = 1 / (1 + 4 * math.exp(-2))
    torch.testing.assert_close(weight, torch.tensor([own, *[own * math.exp(-2)] * 4]))


def test_encoding_does_not_depend_on_the_pieces(monkeypatch):
    ab = torch.randn(3, 2, 5, 4) * 20
    whole = soft_encode(ab, ab_bins())
    monkeypatch.setattr("sslops.training.augment.colour_bins.PIXELS", 7)
    for a, b in zip(whole, soft_encode(ab, ab_bins()), strict=True):
        assert torch.equal(a, b)


def test_one_neighbour_is_one_hot():
    index, weight = soft_encode(
        torch.tensor([3.9, 4.1, 100.0]).view(1, 1, 1, 3), lightness_bins(25), 1
    )
    assert index.flatten().tolist() == [0, 1, 24]
    assert torch.equal(weight, torch.ones(1, 1, 3, 1))


def test_weights_of_rare_colours():
    prior = torch.tensor([0.7, 0.2, 0.1, 0.0])
    weights = rebalancing(prior)
    assert (prior * weights).sum().item() == pytest.approx(1)
    mixed = 0.5 * prior + 0.5 / 4
    torch.testing.assert_close(weights * mixed, (weights * mixed)[:1].expand(4))
    torch.testing.assert_close(rebalancing(prior, 1.0), torch.ones(4))


def test_temperature_goes_from_mean_to_mode():
    bins = ab_bins()
    logits = torch.randn(2, 313, 3, 3)
    mean = (logits.softmax(1)[:, :, None] * bins[:, :, None, None]).sum(1)
    torch.testing.assert_close(annealed_mean(logits, bins, 1.0), mean)
    mode = bins[logits.argmax(1)].movedim(3, 1)
    torch.testing.assert_close(annealed_mean(logits, bins, 1e-3), mode)
    sharp = (logits / 0.38).softmax(1)
    torch.testing.assert_close(
        annealed_mean(logits, bins), torch.einsum("bqhw,qd->bdhw", sharp, bins)
    )
