import colorsys
import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from sslops.training.augment import RECIPES, ViewRecipe, colour, make_views, views
from sslops.training.augment.draw import Draw
from sslops.training.augment.filters import gaussian_blur
from sslops.training.augment.geometry import compose_theta, draw_crop, draw_theta, warp

EVERYTHING = ViewRecipe(
    crop_scale=(0.2, 0.9),
    flip=0.5,
    rotate=20,
    shear=10,
    translate=0.1,
    zoom=(0.8, 1.2),
    elastic=0.05,
    jitter=0.8,
    brightness=0.6,
    contrast=0.6,
    saturation=0.6,
    hue=0.3,
    grey=0.3,
    blur=0.5,
    blur_sigma=(0.3, 1.0),
    solarise=0.3,
    noise=0.1,
)
ORDERS = list(permutations(["brightness", "contrast", "saturation", "hue"]))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photo(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(7))


def as_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.mul(255).round().byte().permute(1, 2, 0).numpy())


def from_pil(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


# Plain versions: one image, one pixel after another, Python numbers.


def slow_warp(image: Tensor, theta: Tensor, H: int, W: int, padding: str, shift=None) -> Tensor:
    C, h, w = image.shape
    out = torch.zeros(C, H, W, dtype=torch.float64)

    def pixel(c: int, y: int, x: int) -> float:
        if padding == "border":
            y, x = min(max(y, 0), h - 1), min(max(x, 0), w - 1)
        return image[c, y, x].item() if 0 <= y < h and 0 <= x < w else 0.0

    t = theta.double().tolist()
    for i in range(H):
        for j in range(W):
            u, v = (2 * j + 1) / W - 1, (2 * i + 1) / H - 1
            gx = t[0][0] * u + t[0][1] * v + t[0][2]
            gy = t[1][0] * u + t[1][1] * v + t[1][2]
            if shift is not None:
                gx, gy = gx + shift[0, i, j].item(), gy + shift[1, i, j].item()
            x, y = ((gx + 1) * w - 1) / 2, ((gy + 1) * h - 1) / 2
            if padding == "border":
                x, y = min(max(x, 0), w - 1), min(max(y, 0), h - 1)
            x0, y0 = math.floor(x), math.floor(y)
            for c in range(C):
                for dy in (0, 1):
                    for dx in (0, 1):
                        weight = (1 - abs(x - x0 - dx)) * (1 - abs(y - y0 - dy))
                        out[c, i, j] += weight * pixel(c, y0 + dy, x0 + dx)
    return out.float()


def slow_luma(image: Tensor) -> Tensor:
    if image.shape[0] == 1:
        return image
    return 0.2989 * image[0:1] + 0.587 * image[1:2] + 0.114 * image[2:3]


def slow_colour(name: str, image: Tensor, amount: float) -> Tensor:
    if name == "hue":
        out = torch.empty_like(image)
        for i in range(image.shape[1]):
            for j in range(image.shape[2]):
                h, s, v = colorsys.rgb_to_hsv(*image[:, i, j].tolist())
                out[:, i, j] = torch.tensor(colorsys.hsv_to_rgb((h + amount) % 1, s, v))
        return out
    other = {
        "brightness": torch.zeros_like(image),
        "contrast": slow_luma(image).mean().expand_as(image),
        "saturation": slow_luma(image).expand_as(image),
    }[name]
    return (amount * image + (1 - amount) * other).clamp(0, 1)


def slow_blur(image: Tensor, sigma: float, radius: int) -> Tensor:
    C, H, W = image.shape
    taps = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-radius, radius + 1)]
    total = sum(taps)

    def mirrored(index: int, n: int) -> int:
        index = abs(index)
        return index if index < n else 2 * (n - 1) - index

    out = torch.zeros_like(image)
    for c in range(C):
        for i in range(H):
            for j in range(W):
                for a, wa in enumerate(taps):
                    for b, wb in enumerate(taps):
                        y, x = mirrored(i + a - radius, H), mirrored(j + b - radius, W)
                        out[c, i, j] += wa * wb / total**2 * image[c, y, x]
    return out


def slow_view(image: Tensor, draws: views.ViewDraws, n: int, recipe: ViewRecipe) -> Tensor:
    """View `n`, with every step written out."""
    _, H, W = image.shape
    smooth = torch.nn.functional.interpolate(
        draws.displacement[n : n + 1], (H, W), mode="bicubic", align_corners=True
    )[0]
    x = slow_warp(image, draws.theta[n], H, W, recipe.padding, smooth)
    if draws.order[n] >= 0:
        for name in draws.orders[draws.order[n]]:
            x = slow_colour(name, x, draws.factors[name][n].item())
    if draws.grey is not None and draws.grey[n]:
        x = slow_luma(x).expand_as(x)
    if draws.sigma[n] > 0:
        x = slow_blur(x, draws.sigma[n].item(), math.ceil(3 * recipe.blur_sigma[1]))
    if draws.solarise[n]:
        x = torch.where(x >= 0.5, 1 - x, x)
    return (x + draws.noise[n]).clamp(0, 1)


# Each change against its plain version.


@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("size", [(5, 7), (9, 4)])
def test_warp_is_bilinear_at_the_mapped_pixel_middles(padding: str, size: tuple[int, int]) -> None:
    images = torch.rand(6, 3, 5, 7)
    recipe = ViewRecipe(crop_scale=(0.1, 0.9), flip=0.5, rotate=40, translate=0.3)
    theta = draw_theta(Draw(6, generator()), recipe, 5, 7)
    assert theta is not None
    out = warp(images, theta, None, *size, padding)
    for n in range(6):
        expected = slow_warp(images[n], theta[n], *size, padding)
        torch.testing.assert_close(out[n], expected, atol=2e-5, rtol=0)


def test_theta_is_the_product_of_its_parts() -> None:
    H, W, N = 20, 30, 16
    draw = Draw(N, generator())
    box = draw_crop(draw, ViewRecipe(crop_scale=(0.1, 1.0)), H, W)
    flip, angle, shear = draw.coin(0.5), draw.uniform(-1, 1), draw.uniform(-0.4, 0.4)
    shift, zoom = draw.uniform(-0.3, 0.3, 2), draw.uniform(0.5, 2)
    theta = compose_theta(
        box, flip=flip, angle=angle, shear=shear, shift=shift, zoom=zoom, size=(H, W)
    )
    for n in range(N):
        left, top, w, h = box[n].tolist()
        a, b, z = angle[n].item(), shear[n].item(), zoom[n].item()
        mirror = np.diag([-1.0 if flip[n] else 1.0, 1.0])
        rotation = np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
        linear = rotation @ np.array([[1, math.tan(b)], [0, 1]]) @ np.diag([w / 2, h / 2]) @ mirror
        middle = np.array([left + w / 2, top + h / 2]) + shift[n].numpy() * [W, H]
        to_unit = np.diag([2 / W, 2 / H])
        np.testing.assert_allclose(theta[n, :, :2], to_unit @ linear / z, atol=1e-5)
        np.testing.assert_allclose(theta[n, :, 2], to_unit @ middle - 1, atol=1e-5)


@pytest.mark.parametrize("H,W", [(32, 32), (20, 60), (60, 20)])
def test_crops_lie_inside_with_the_wanted_area_and_ratio(H: int, W: int) -> None:
    recipe = ViewRecipe(crop_scale=(0.08, 0.5), crop_ratio=(0.75, 1.5))
    left, top, w, h = draw_crop(Draw(4000, generator()), recipe, H, W).unbind(1)
    eps = 1e-3
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + w <= W + eps).all()
    assert (top + h <= H + eps).all()
    area, ratio = w * h / (H * W), w / h
    assert area.min() >= 0.08 - eps
    assert area.max() <= 0.5 + eps
    assert ratio.min() >= 0.75 - eps
    assert ratio.max() <= 1.5 + eps
    if H == W:  # elsewhere some draws do not fit
        assert abs(area.mean() - 0.29) < 0.01
        assert abs(ratio.log().mean() - math.log(0.75 * 1.5) / 2) < 0.02
        assert abs((left / (W - w)).mean() - 0.5) < 0.02


@pytest.mark.parametrize(
    "H,W,box", [(20, 60, (22.5, 0.0, 15.0, 20.0)), (60, 20, (0.0, 15.0, 20.0, 30.0))]
)
def test_crop_that_never_fits_falls_back_to_the_middle(
    H: int, W: int, box: tuple[float, ...]
) -> None:
    recipe = ViewRecipe(crop_scale=(1.0, 1.0), crop_ratio=(2 / 3, 0.75))
    boxes = draw_crop(Draw(3, generator()), recipe, H, W)
    torch.testing.assert_close(boxes, torch.tensor([box] * 3))


def test_flip_mirrors() -> None:
    images = photo(4, 3, 8, 8)
    mirrored = make_views(images, ViewRecipe(flip=1.0), 1, generator())[0]
    torch.testing.assert_close(mirrored, images.flip(3) / 255, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "name,channels",
    [*((name, 3) for name in colour.COLOUR_OPS), ("brightness", 1), ("contrast", 1)],
)
def test_colour_change_against_loops(name: str, channels: int) -> None:
    images = torch.rand(5, channels, 6, 7)
    images[0] = images[0, :1]  # grey
    images[1, :, 0] = 0.0
    images[1, :, 1] = 1.0
    images[2] = images[2].round()  # ties between channels
    amount = torch.tensor([0.3, 1.7, 0.0, 1.0, 0.6]) - (0.5 if name == "hue" else 0)
    out = colour.COLOUR_OPS[name](images.clone(), amount)
    for n in range(5):
        expected = slow_colour(name, images[n], amount[n].item())
        torch.testing.assert_close(out[n], expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "name,pillow",
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
    ],
)
def test_colour_change_against_pillow(name: str, pillow: type) -> None:
    images = photo(3, 3, 9, 9) / 255
    factor = torch.tensor([0.4, 1.0, 1.6])
    out = colour.COLOUR_OPS[name](images.clone(), factor)
    for n in range(3):
        expected = from_pil(pillow(as_pil(images[n])).enhance(factor[n].item()))
        torch.testing.assert_close(out[n], expected, atol=2.5 / 255, rtol=0)  # it rounds twice


def test_grey_and_solarise_against_pillow() -> None:
    images = photo(2, 3, 9, 9) / 255
    for image, grey, solar in zip(
        images, colour.to_grey(images), colour.solarise(images), strict=True
    ):
        expected = from_pil(as_pil(image).convert("L").convert("RGB"))
        torch.testing.assert_close(grey, expected, atol=1 / 255, rtol=0)
        torch.testing.assert_close(solar, from_pil(ImageOps.solarize(as_pil(image), 128)))


def test_blur_against_loops() -> None:
    images, sigma = torch.rand(3, 2, 7, 6), torch.tensor([0.2, 0.8, 2.0])
    out = gaussian_blur(images, sigma, 3)
    for n in range(3):
        expected = slow_blur(images[n], sigma[n].item(), 3)
        torch.testing.assert_close(out[n], expected, atol=1e-5, rtol=0)


def test_views_against_one_image_after_another() -> None:
    images = photo(6, 3, 9, 9)
    draws = views.draw_views(12, EVERYTHING, (3, 9, 9), generator(3))
    out = views.apply_views(images, draws, EVERYTHING)
    assert draws.sigma is not None
    assert 0 < (draws.sigma > 0).sum() < 12
    for n in range(12):
        expected = slow_view(images[n % 6] / 255, draws, n, EVERYTHING)
        torch.testing.assert_close(out[n], expected, atol=1e-4, rtol=0)


# Draws: per image, seeded, with the probabilities that were asked for.


def test_every_image_has_its_own_draws() -> None:
    draws = views.draw_views(256, EVERYTHING, (3, 8, 8), generator())
    for parameter in (draws.theta, draws.displacement, draws.noise, *draws.factors.values()):
        assert parameter is not None
        assert len(parameter.flatten(1).unique(dim=0) if parameter.ndim > 1 else parameter) == 256
        assert len(parameter.unique(dim=0)) == 256
    same = photo(1, 3, 8, 8).expand(64, -1, -1, -1)
    out = make_views(same, EVERYTHING, 2, generator()).flatten(0, 1)
    assert len(out.unique(dim=0)) == 128


def test_every_order_of_colour_changes_occurs_equally_often() -> None:
    draws = views.draw_views(24_000, RECIPES["colour"], (3, 8, 8), generator())
    assert sorted(draws.orders) == sorted(ORDERS)
    counts = torch.bincount(draws.order + 1, minlength=25)
    assert abs(counts[0] - 4800) < 250  # p = 0.8: a fifth keeps its colours
    assert (counts[1:] - 800).abs().max() < 130


@pytest.mark.parametrize("name", RECIPES)
def test_a_generator_state_repeats_the_bits(name: str) -> None:
    images = photo(5, 1 if name in ("digits", "grey") else 3, 12, 12)
    first = make_views(images, RECIPES[name], 2, generator(1))
    assert torch.equal(first, make_views(images, RECIPES[name], 2, generator(1)))
    assert not torch.equal(first, make_views(images, RECIPES[name], 2, generator(2)))
    assert first.dtype is torch.float32
    assert first.shape == (2, *images.shape)
    assert first.isfinite().all()
    assert first.min() >= 0
    assert first.max() <= 1


def test_views_do_not_depend_on_the_work_size(monkeypatch: pytest.MonkeyPatch) -> None:
    images = photo(40, 3, 10, 10)
    whole = make_views(images, EVERYTHING, 2, generator())
    monkeypatch.setattr(views, "CHUNK_BYTES", 4 * 3 * 10 * 10 * 3)  # three images
    assert torch.equal(whole, make_views(images, EVERYTHING, 2, generator()))


def test_a_recipe_that_changes_nothing_keeps_the_bits() -> None:
    images = photo(3, 3, 5, 6)
    assert torch.equal(make_views(images, ViewRecipe(), 2, generator())[1], images / 255)
    never = replace(
        EVERYTHING, crop_scale=(1, 1), flip=0.0, rotate=0, shear=0, translate=0, zoom=(1, 1),
        elastic=0, jitter=0.0, grey=0.0, blur=0.0, solarise=0.0, noise=0,
    )  # fmt: skip
    assert torch.equal(make_views(images, never, 1, generator())[0], images / 255)


@pytest.mark.parametrize("field", ["grey", "solarise", "blur", "jitter", "flip"])
def test_probability_one_changes_every_image_and_zero_none(field: str) -> None:
    images = photo(50, 3, 6, 6)
    strong = ViewRecipe(brightness=0.5, hue=0.3, blur_sigma=(1.0, 2.0))
    plain = images / 255
    for p, expected in ((1.0, True), (0.0, False)):
        out = make_views(images, replace(strong, **{field: p}), 1, generator())[0]
        changed = (out != plain).flatten(1).any(1)
        assert (changed == expected).all()


def test_float_images_and_a_size_of_the_views_own() -> None:
    images = photo(3, 3, 8, 10)
    out = make_views(images, ViewRecipe(size=6), 1, generator())
    assert out.shape == (1, 3, 3, 6, 6)
    torch.testing.assert_close(out, make_views(images / 255, ViewRecipe(size=6), 1, generator()))


def test_images_are_left_as_they_are() -> None:
    images = torch.rand(4, 3, 8, 8)
    before = images.clone()
    make_views(images, EVERYTHING, 2, generator())
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    "images,num_views,error,message",
    [
        (torch.zeros(2, 3, 4, 4, dtype=torch.int64), 2, TypeError, "uint8 or floating"),
        (torch.zeros(2, 4, 4), 2, ValueError, r"\[B, C, H, W\]"),
        (torch.zeros(2, 2, 4, 4), 2, ValueError, "C = 1 or 3"),
        (torch.zeros(0, 3, 4, 4), 2, ValueError, r"got shape \(0, 3, 4, 4\)"),
        (torch.zeros(2, 3, 4, 4), 0, ValueError, "num_views must be at least 1, got 0"),
    ],
)
def test_bad_input(images: Tensor, num_views: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"make_views: .*{message}"):
        make_views(images, ViewRecipe(), num_views, generator())


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"flip": 1.5}, "flip is a probability"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale must be 0 < low <= high"),
        ({"crop_scale": (0.5, 1.5)}, "crop_scale ends at 1"),
        ({"zoom": (2.0, 1.0)}, "zoom must be 0 < low <= high"),
        ({"brightness": -0.1}, "brightness must not be negative"),
        ({"hue": 0.6}, "hue goes half round the circle"),
        ({"size": 0}, "size must be at least 1"),
        ({"elastic_grid": 1}, "elastic_grid must be at least 2"),
    ],
)
def test_bad_recipe(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"ViewRecipe: {message}"):
        ViewRecipe(**fields)
