"""Augmentation, batched on the device the images are on."""

from sslops.training.augment.draw import Draw, SharedGenerator
from sslops.training.augment.recipe import RECIPES, ViewRecipe
from sslops.training.augment.views import make_views

__all__ = ["RECIPES", "Draw", "SharedGenerator", "ViewRecipe", "make_views"]
