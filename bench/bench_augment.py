"""SimCLR's views, a batch at once, against one image after another on one core: `make bench`.

The loop draws and applies the same changes with one set of torch calls an image and nothing
else around them, so it is faster than transforms in a data loader. The mark is therefore ten times
the 1,700 images/s that torchvision v2's transforms reached on one core of the machine this was
developed on (torchvision does not import beside torch's CPU build, so it cannot be run here).
"""

import math
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness import interleave, record
from sslops.training.augment import RECIPES, ViewRecipe, make_views

COMMAND = "make bench"
TORCHVISION_RATE = 1_700  # images/s, colour views of 32 px, one core
LUMA = torch.tensor([0.2989, 0.587, 0.114])[:, None, None]
# recipe, channels, side, batch
CASES = [("colour", 3, 32, 512), ("grey", 1, 28, 512), ("digits", 1, 8, 256)]
LOOP_IMAGES = 64  # enough to time a loop over images


def crop(image: Tensor, recipe: ViewRecipe) -> Tensor:
    _, H, W = image.shape
    for _ in range(10):
        area = H * W * random.uniform(*recipe.crop_scale)
        ratio = math.exp(random.uniform(*map(math.log, recipe.crop_ratio)))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= W and 0 < h <= H:
            top, left = random.randint(0, H - h), random.randint(0, W - w)
            break
    else:
        top, left, h, w = 0, 0, H, W
    box = image[None, :, top : top + h, left : left + w]
    return F.interpolate(box, (H, W), mode="bilinear", antialias=True)[0]


def blend(image: Tensor, other: Tensor, factor: float) -> Tensor:
    return (factor * image + (1 - factor) * other).clamp(0, 1)


def turn_hue(image: Tensor, shift: float) -> Tensor:
    red, green, blue = image
    top, low = image.max(0).values, image.min(0).values
    span = top - low
    grey = top == low
    safe = torch.where(grey, 1, span)
    r, g, b = (top - red) / safe, (top - green) / safe, (top - blue) / safe
    hue = torch.where(top == red, b - g, torch.where(top == green, 2 + r - b, 4 + g - r))
    hue = (torch.where(grey, 0, hue) / 6 + shift) % 1
    sixth = torch.floor(hue * 6)
    part = hue * 6 - sixth
    s = span / torch.where(top == 0, 1, top)
    p, q, t = top * (1 - s), top * (1 - s * part), top * (1 - s * (1 - part))
    tables = ((top, q, p, p, t, top), (t, top, top, q, p, p), (p, p, t, top, top, q))
    index = (sixth.long() % 6)[None]
    return torch.stack([torch.stack(table).gather(0, index)[0] for table in tables])


def jitter(image: Tensor, recipe: ViewRecipe) -> Tensor:
    for name in random.sample(("brightness", "contrast", "saturation", "hue"), 4):
        strength = getattr(recipe, name)
        if not strength or (len(image) == 1 and name in ("saturation", "hue")):
            continue
        factor = random.uniform(1 - strength, 1 + strength)
        if name == "hue":
            image = turn_hue(image, random.uniform(-strength, strength))
        elif name == "brightness":
            image = blend(image, torch.zeros(()), factor)
        else:
            grey = (LUMA * image).sum(0, keepdim=True) if len(image) == 3 else image
            image = blend(image, grey.mean() if name == "contrast" else grey, factor)
    return image


def turn(image: Tensor, recipe: ViewRecipe) -> Tensor:
    """Affine and elastic maps of the digits."""
    angle = math.radians(random.uniform(-recipe.rotate, recipe.rotate))
    tan = math.tan(math.radians(random.uniform(-recipe.shear, recipe.shear)))
    zoom, shift = 1 / random.uniform(*recipe.zoom), 2 * recipe.translate
    cos, sin = math.cos(angle) * zoom, math.sin(angle) * zoom
    x, y = random.uniform(-shift, shift), random.uniform(-shift, shift)
    theta = torch.tensor([[[cos, cos * tan - sin, x], [sin, sin * tan + cos, y]]])
    grid = F.affine_grid(theta, [1, *image.shape], align_corners=False)
    if recipe.elastic:
        smooth = torch.randn(1, 2, recipe.elastic_grid, recipe.elastic_grid) * 2 * recipe.elastic
        smooth = F.interpolate(smooth, image.shape[1:], mode="bicubic", align_corners=True)
        grid = grid + smooth.permute(0, 2, 3, 1)
    return F.grid_sample(image[None], grid, padding_mode=recipe.padding, align_corners=False)[0]


def loop(images: Tensor, recipe: ViewRecipe) -> Tensor:
    """One view of each image, one image after another."""
    views = []
    for image in images.float() / 255:
        if recipe.crop_scale != (1.0, 1.0):
            image = crop(image, recipe)
        if recipe.rotate:
            image = turn(image, recipe)
        if random.random() < recipe.flip:
            image = image.flip(2)
        if random.random() < recipe.jitter:
            image = jitter(image, recipe)
        if len(image) == 3 and random.random() < recipe.grey:
            image = (LUMA * image).sum(0, keepdim=True).expand(3, -1, -1)
        if recipe.noise:
            level = random.uniform(0, recipe.noise)
            image = (image + level * torch.randn(image.shape)).clamp(0, 1)
        views.append(image)
    return torch.stack(views)


@pytest.mark.parametrize("name,channels,side,batch", CASES)
def test_views(benchmark: Any, name: str, channels: int, side: int, batch: int) -> None:
    recipe = RECIPES[name]
    images = torch.randint(0, 256, (batch, channels, side, side), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        stats = interleave(
            {
                "sslops": lambda: make_views(images, recipe, 2, generator),
                "one after another": lambda: loop(images[:LOOP_IMAGES], recipe),
            },
            rounds=15,
            first=benchmark.pedantic,
        )
        count = {"sslops": 2 * batch, "one after another": LOOP_IMAGES}
        rate = {job: round(count[job] / s["median_ms"] * 1e3) for job, s in stats.items()}
        row = {"case": f"views, {name}, {side} px, batch {batch}", "images_per_second": rate}
        record("augment", COMMAND, **row)
    finally:
        torch.set_num_threads(threads)
    benchmark.extra_info.update(row)
    print(f"\n{row['case']}: {rate} images/s on one core")
    assert rate["sslops"] >= 4 * rate["one after another"]
    if name == "colour":
        assert rate["sslops"] >= 10 * TORCHVISION_RATE
