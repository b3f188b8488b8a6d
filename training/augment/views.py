"""Views of a batch: parameters are drawn per image on the host, pixels stay on their device."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import permutations

import torch
from torch import Tensor

from sslops.training.augment.colour import COLOUR_OPS, solarise, to_grey
from sslops.training.augment.draw import Draw
from sslops.training.augment.filters import add_noise, gaussian_blur
from sslops.training.augment.geometry import draw_displacement, draw_theta, warp
from sslops.training.augment.recipe import ViewRecipe

__all__ = ["ViewDraws", "apply_views", "draw_views", "make_views"]

# Images of a group that are worked on at once, on a CPU: their float32 pixels stay in the L2
# cache. docs/tuning.md
CHUNK_BYTES = 1 << 20
UNCHANGED = -1
BLUR_REACH = 3.0  # taps on each side, in the recipe's largest sigma


@dataclass(frozen=True)
class ViewDraws:
    """All parameters of N views, on the host; None for a change the recipe leaves out.

    Attributes:
        theta: [N, 2, 3] maps of coordinates, see `draw_theta`.
        displacement: [N, 2, g, g].
        orders: the orders of colour changes that may occur.
        order: [N] index into `orders`, or -1 for an image whose colours stay.
        factors: [N] for each colour change.
        grey: [N] bool.
        sigma: [N] of the blur in pixels, 0 for none.
        solarise: [N] bool.
        noise: [N, C, H, W].
    """

    theta: Tensor | None
    displacement: Tensor | None
    orders: tuple[tuple[str, ...], ...]
    order: Tensor
    factors: dict[str, Tensor]
    grey: Tensor | None
    sigma: Tensor | None
    solarise: Tensor | None
    noise: Tensor | None

    def take(self, rows: Tensor) -> "ViewDraws":
        """The parameters of the views at `rows` [n]."""

        def pick(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[rows]

        return replace(
            self,
            theta=pick(self.theta),
            displacement=pick(self.displacement),
            order=self.order[rows],
            factors={name: factor[rows] for name, factor in self.factors.items()},
            grey=pick(self.grey),
            sigma=pick(self.sigma),
            solarise=pick(self.solarise),
            noise=pick(self.noise),
        )


def draw_views(
    N: int,
    recipe: ViewRecipe,
    shape: tuple[int, int, int],
    generator: torch.Generator,
    num_views: int = 1,
) -> ViewDraws:
    """Draw the parameters of `N` rows, `num_views` views each, of images of `shape` (C, H, W)."""
    C, H, W = shape
    draw = Draw(N, generator, num_views)
    theta = draw_theta(draw, recipe, H, W)
    displacement = draw_displacement(draw, recipe) if recipe.elastic else None

    names = COLOUR_OPS if C == 3 else ("brightness", "contrast")
    factors = {}
    for name in names:
        strength = getattr(recipe, name)
        if strength and recipe.jitter:
            low = -strength if name == "hue" else max(0.0, 1 - strength)
            factors[name] = draw.uniform(low, strength if name == "hue" else 1 + strength)
    orders = tuple(permutations(factors))
    order = draw.integer(len(orders))
    order[~draw.coin(recipe.jitter)] = UNCHANGED

    sigma = noise = None
    grey = draw.coin(recipe.grey) if recipe.grey and C == 3 else None
    if recipe.blur:
        sigma = draw.uniform(*recipe.blur_sigma) * draw.coin(recipe.blur)
    inverted = draw.coin(recipe.solarise) if recipe.solarise else None
    if recipe.noise:
        level = draw.uniform(0, recipe.noise, 1, 1, 1)
        noise = level * draw.normal(C, recipe.size or H, recipe.size or W)
    return ViewDraws(theta, displacement, orders, order, factors, grey, sigma, inverted, noise)


def apply_views(images: Tensor, draws: ViewDraws, recipe: ViewRecipe) -> Tensor:
    """Apply drawn parameters; view n is made from image n modulo B.

    Args:
        images: [B, C, H, W] uint8, or float in [0, 1].
        draws: of N = V * B views.
        recipe: gives what is not drawn.

    Returns:
        [N, C, H, W] float32 in [0, 1].
    """
    B, C, H, W = images.shape
    height, width = recipe.size or H, recipe.size or W
    N = chunk = len(draws.order)
    out = torch.empty(N, C, height, width, device=images.device)
    if images.device.type == "cpu":
        chunk = max(1, CHUNK_BYTES // (4 * C * max(H * W, height * width)))
    # Images that share their order of colour changes are worked on together.
    for order in range(UNCHANGED, len(draws.orders)):
        group = torch.nonzero(draws.order == order).flatten()
        for start in range(0, len(group), chunk):
            rows = group[start : start + chunk]
            names = draws.orders[order] if order != UNCHANGED else ()
            x = images[(rows % B).to(images.device)]
            x = x.float().div_(255) if x.dtype is torch.uint8 else x.float()
            x = _change(x, draws.take(rows), names, recipe)
            out.index_copy_(0, rows.to(images.device), x)
    return out


def _change(x: Tensor, draws: ViewDraws, names: tuple[str, ...], recipe: ViewRecipe) -> Tensor:
    """Change all of `x` [n, C, H, W], which is overwritten; `names` are the colour changes."""
    H, W = recipe.size or x.shape[2], recipe.size or x.shape[3]

    def here(parameter: Tensor) -> Tensor:
        return parameter.to(x.device, non_blocking=True)

    theta, displacement = draws.theta, draws.displacement
    if theta is not None or displacement is not None or (H, W) != x.shape[2:]:
        theta = theta if theta is None else here(theta)
        displacement = displacement if displacement is None else here(displacement)
        x = warp(x, theta, displacement, H, W, recipe.padding)
    for name in names:
        x = COLOUR_OPS[name](x, here(draws.factors[name]))
    if draws.grey is not None:
        x = _change_some(x, draws.grey, to_grey)
    if draws.sigma is not None:
        blurred = draws.sigma > 0
        sigma = here(draws.sigma[blurred])
        radius = math.ceil(BLUR_REACH * recipe.blur_sigma[1])
        x = _change_some(x, blurred, lambda some: gaussian_blur(some, sigma, radius))
    if draws.solarise is not None:
        x = _change_some(x, draws.solarise, solarise)
    return x if draws.noise is None else add_noise(x, here(draws.noise))


def _change_some(x: Tensor, chosen: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Change the images of `x` that are `chosen` [n] bool, in place."""
    index = torch.nonzero(chosen).flatten().to(x.device, non_blocking=True)
    return x.index_copy_(0, index, change(x[index])) if len(index) else x


def make_views(
    images: Tensor, recipe: ViewRecipe, num_views: int, generator: torch.Generator
) -> Tensor:
    """Draw `num_views` views of each image; equal generator states give equal bits.

    Args:
        images: [B, C, H, W] uint8, or float in [0, 1]; C is 1 or 3, on any device.
        recipe: what may happen to a view.
        num_views: V, at least 1.
        generator: best on the CPU, whatever the device of the images: the parameters are needed
            on the host.

    Returns:
        [V, B, C, H, W] float32 in [0, 1], on the images' device.

    Raises:
        TypeError: `images` is neither uint8 nor floating.
        ValueError: wrong shape, or `num_views` below 1.
    """
    if images.dtype is not torch.uint8 and not images.is_floating_point():
        raise TypeError(f"make_views: images must be uint8 or floating, got {images.dtype}")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise ValueError(
            "make_views: images must be [B, C, H, W] with C = 1 or 3, got shape"
            f" {tuple(images.shape)}"
        )
    if num_views < 1:
        raise ValueError(f"make_views: num_views must be at least 1, got {num_views}")
    B, C, H, W = images.shape
    with torch.no_grad():
        draws = draw_views(num_views * B, recipe, (C, H, W), generator, num_views)
        views = apply_views(images, draws, recipe)
    return views.view(num_views, B, *views.shape[1:])
