"""Recipes: the settings of a data set, as data, each with where its values come from.

A name is that of a data set, DATA/METHOD for a method with settings of its own there, or
DATA/METHOD-VERSION for a version of it that is not its default.
"""

from pathlib import Path

from sslops.training.recipes.colour import COLOUR
from sslops.training.recipes.cpc import CPC
from sslops.training.recipes.images import IMAGES
from sslops.training.recipes.inpainting import INPAINTING
from sslops.training.recipes.moco import MOCO
from sslops.training.recipes.mocov3 import MOCOV3
from sslops.training.recipes.patches import PATCHES
from sslops.training.recipes.recipe import Recipe
from sslops.training.recipes.rotation import ROTATION
from sslops.training.recipes.video import VIDEO

__all__ = ["RECIPES", "Recipe", "pick_recipe"]

# One line a file of recipes.
RECIPES: dict[str, Recipe] = {
    **IMAGES,
    **MOCO,
    **MOCOV3,
    **CPC,
    **ROTATION,
    **INPAINTING,
    **PATCHES,
    **COLOUR,
    **VIDEO,
}


def pick_recipe(
    method: str, data: str, name: str | None = None, variant: str | None = None
) -> Recipe:
    """The named recipe; without a name the data set's own, or that of any folder of images.

    That of the variant (METHOD-VERSION) goes before the method's own (DATA/METHOD), and this one
    before the one that methods share (DATA).

    Raises:
        ValueError: unknown name.
    """
    if name is None:
        known = data in RECIPES or f"{data}/{method}" in RECIPES
        name = data if known else "folder"
        if not known and data != "photos" and not Path(data).is_dir():
            return Recipe("the defaults", {})  # an unknown data set: loading it says so
    keys = (f"{name}/{variant}", f"{name}/{method}", name)
    recipe = next((RECIPES[key] for key in keys if key in RECIPES), None)
    if recipe is None:
        known_names = ", ".join(sorted(RECIPES))
        raise ValueError(f"{method}: recipe must be one of {known_names}, got {name!r}")
    return recipe
