"""Settings of MoCo v3."""

from sslops.training.recipes.recipe import Recipe

__all__ = ["MOCOV3"]

MOCOV3: dict[str, Recipe] = {
    "digits/mocov3": Recipe(
        "SimCLR's there, not tuned for MoCo v3; a minute on one CPU core",
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
    "fashion-mnist/mocov3": Recipe(
        "to be chosen",
        {
            "arch": "cnn4",
            "width": 32,
            "pool": 2,
            "views": "grey",
            "second_views": "grey-solarise",
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
}
