"""Settings of relative patch location and jigsaw puzzles."""

from typing import Any

from sslops.training.recipes.recipe import Recipe

__all__ = ["PATCHES"]

_CIFAR10: dict[str, Any] = {
    "arch": "cnn4",
    "width": 32,
    "pool": 1,
    "views": "colour-mild",
    "train_images": 20_000,
    "batch": 128,
    "epochs": 8,
    "lr": 3e-3,
    "warmup_epochs": 0.5,
    "knn_every": 8,
    "checkpoint_every": 4,
    "supervised_epochs": 2,
    "eval_train": 5000,
}

_DIGITS: dict[str, Any] = {
    "arch": "cnn-tiny",
    "views": "digits",
    "image_size": 16,
    "batch": 128,
    "epochs": 60,
    "lr": 3e-3,
    "precision": "fp32",
    "knn_every": 20,
    "checkpoint_every": 20,
    "supervised_epochs": 40,
}

PATCHES: dict[str, Recipe] = {
    "cifar10/jigsaw": Recipe(
        "chosen here: first values tried, 400 steps of them scored on the validation part; two"
        " and a half minutes on one CPU core",
        _CIFAR10,
    ),
    "cifar10/relative-patch": Recipe(
        "chosen here: first values tried, 400 steps of them scored on the validation part; a"
        " minute and a half on one CPU core",
        {**_CIFAR10, "epochs": 5, "knn_every": 5},
    ),
    "fashion-mnist/jigsaw": Recipe("cifar10's; not tuned", _CIFAR10),
    "fashion-mnist/relative-patch": Recipe("cifar10's; not tuned", _CIFAR10),
    "digits/jigsaw": Recipe("at 16 pixels; not tuned", _DIGITS),
    "digits/relative-patch": Recipe("at 16 pixels; not tuned", _DIGITS),
    "folder/jigsaw": Recipe(
        "cifar10's, with the images brought to 64 x 64 pixels", {**_CIFAR10, "image_size": 64}
    ),
    "folder/relative-patch": Recipe(
        "cifar10's, with the images brought to 64 x 64 pixels", {**_CIFAR10, "image_size": 64}
    ),
}
