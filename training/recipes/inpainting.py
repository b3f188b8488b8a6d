"""Settings of inpainting."""

from typing import Any

from sslops.training.recipes.recipe import Recipe

__all__ = ["INPAINTING"]

_CIFAR10: dict[str, Any] = {
    "arch": "cnn4",
    "width": 32,
    "pool": 1,
    "views": "crop-flip",
    "train_images": 20_000,
    "batch": 16,
    "epochs": 4,
    "lr": 2e-3,
    "warmup_epochs": 0.5,
    "knn_every": 4,
    "checkpoint_every": 4,
}

INPAINTING: dict[str, Recipe] = {
    "cifar10/inpainting": Recipe(
        "Pathak et al. 2016, arXiv:1604.07379, section 3 (weights, learning rates ten to one),"
        " overlap and batch by trials of 60 and 300 steps on the validation part (seed 0), learning"
        " rate and epochs not tuned; five minutes on one CPU core",
        _CIFAR10,
    ),
    "fashion-mnist/inpainting": Recipe("cifar10's; not tuned", _CIFAR10),
    "digits/inpainting": Recipe(
        "cifar10's on the views of digits, which are not mirrored; not tuned",
        {
            **_CIFAR10,
            "arch": "cnn-tiny",
            "views": "digits",
            "train_images": None,
            "batch": 64,
            "epochs": 40,
            "warmup_epochs": 2.0,
            "precision": "fp32",
            "knn_every": 10,
            "checkpoint_every": 10,
        },
    ),
    "folder/inpainting": Recipe(
        "cifar10's, with the images brought to 32 x 32 pixels",
        {**_CIFAR10, "image_size": 32, "train_images": None, "epochs": 20},
    ),
}
