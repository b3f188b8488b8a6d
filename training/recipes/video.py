"""Settings of video colorization."""

from typing import Any

from sslops.training.recipes.recipe import Recipe

__all__ = ["VIDEO"]

_SHAPES: dict[str, Any] = {
    "arch": "frame-cnn",
    "width": 32,
    "references": 3,
    "spacing": 2,
    "batch": 16,
    "epochs": 24,
    "lr": 5e-3,
    "warmup_epochs": 2.0,
    "knn_every": 0,
    "checkpoint_every": 10,
}

VIDEO: dict[str, Recipe] = {
    "moving-shapes/video-colorization": Recipe(
        "chosen here: temperature, learning rate and propagation by trials of 60 or 70 steps of"
        " seed 0, scored on 40 of the training videos, never on test videos; the paper has 3"
        " references, 16 clusters, plain products at temperature 1, and 0.5 in propagation",
        _SHAPES,
    ),
    "folder/video-colorization": Recipe(
        "moving-shapes', with frames brought to 64 pixels; not tried on other data",
        {**_SHAPES, "image_size": 64, "batch": 8, "epochs": 200},
    ),
}
