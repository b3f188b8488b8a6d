"""Settings of rotation."""

from typing import Any

from sslops.training.recipes.recipe import Recipe

__all__ = ["ROTATION"]

_CIFAR10: dict[str, Any] = {
    "arch": "cnn4",
    "width": 32,
    "pool": 1,
    "views": "crop-flip",
    "train_images": 20_000,
    "batch": 64,
    "epochs": 3,
    "lr": 3e-3,
    "warmup_epochs": 0.5,
    "knn_every": 3,
    "checkpoint_every": 3,
}

ROTATION: dict[str, Recipe] = {
    "cifar10/rotation": Recipe(
        "first values tried here, simclr's with four turns of 64 images a step; not tuned; four"
        " minutes on one CPU core",
        _CIFAR10,
    ),
    "fashion-mnist/rotation": Recipe("cifar10's; not tuned", _CIFAR10),
    "digits/rotation": Recipe(
        "cifar10's on the views of digits, which are not mirrored; not tuned",
        {
            **_CIFAR10,
            "arch": "cnn-tiny",
            "views": "digits",
            "train_images": None,
            "epochs": 40,
            "warmup_epochs": 2.0,
            "precision": "fp32",
            "knn_every": 10,
            "checkpoint_every": 10,
        },
    ),
    "folder/rotation": Recipe(
        "cifar10's, with the images brought to 32 x 32 pixels",
        {**_CIFAR10, "image_size": 32, "train_images": None, "epochs": 20},
    ),
}
