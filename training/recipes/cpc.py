"""Settings of CPC, on sound and on images."""

from typing import Any

from sslops.training.recipes.recipe import Recipe

__all__ = ["CPC"]

_FSDD: dict[str, Any] = {
    "width": 64,
    "context": 64,
    "window": 0.4,
    "pred_steps": 12,
    "negatives": "all",
    "batch": 16,
    "epochs": 4,
    "lr": 3e-3,
    "warmup_epochs": 0.4,
    "clip": 5.0,
    "precision": "fp32",
    "knn_every": 4,
    "checkpoint_every": 2,
    "held_out": "speaker=theo",
}

_LIBRISPEECH: dict[str, Any] = {
    "width": 512,
    "context": 256,
    "window": 1.28,
    "pred_steps": 12,
    "negatives": 128,
    "batch": 64,
    "epochs": 200,
    "lr": 2e-4,
    "warmup_epochs": 5.0,
    "weight_decay": 0.0,
    "knn_every": 0,
}

_CIFAR10: dict[str, Any] = {
    "arch": "cpc-patches",
    "width": 32,
    "patch": 8,
    "views": "patches",
    "context": "conv",
    "pred_steps": 3,
    "skip": 1,
    "negatives": 255,
    "train_images": 20_000,
    "batch": 16,
    "epochs": 2,
    "lr": 2e-3,
    "warmup_epochs": 0.2,
    "clip": 5.0,
    "knn_every": 2,
    "checkpoint_every": 1,
}

CPC: dict[str, Recipe] = {
    "tones/cpc-audio": Recipe(
        "chosen here: fsdd's, with half the width; half a minute on one CPU core",
        {
            **_FSDD,
            "width": 32,
            "context": 32,
            "negatives": "sequence",
            "epochs": 12,
            "knn_every": 6,
            "checkpoint_every": 6,
            "held_out": None,
        },
    ),
    "fsdd/cpc-audio": Recipe(
        "chosen here: learning rate, window, padding and score by trials of 200 or 300 steps,"
        " scored on 270 of the training takes (seed 0), never on test takes; four minutes on a"
        " shared CPU core",
        _FSDD,
    ),
    "librispeech/cpc-audio": Recipe(
        "van den Oord et al. 2018, arXiv:1807.03748, section 3.1: windows of 20,480 samples at 16"
        " kHz, 512 channels, GRU of 256, 12 steps, Adam 2e-4, 8 GPUs with 8 windows each; 128"
        " negatives and 200 epochs from facebookresearch/CPC_audio, where the paper gives none",
        _LIBRISPEECH,
    ),
    "folder/cpc-audio": Recipe(
        "librispeech's, narrower and shorter; not tried on other data",
        {**_LIBRISPEECH, "width": 256, "batch": 32, "epochs": 50, "lr": 1e-3},
    ),
    "digits/cpc-image": Recipe(
        "cifar10's with patches of 2 pixels; not tuned",
        {**_CIFAR10, "width": 16, "patch": 2, "train_images": None, "epochs": 30},
    ),
    "cifar10/cpc-image": Recipe(
        "chosen here: batch and colour drop by trials of an epoch of 10,000 images on the"
        " validation part (seed 0), the rest not tuned; four minutes on one CPU core",
        _CIFAR10,
    ),
    "fashion-mnist/cpc-image": Recipe("cifar10's; not tuned", _CIFAR10),
    "folder/cpc-image": Recipe(
        "cifar10's, with the images brought to 32 x 32 pixels", {**_CIFAR10, "image_size": 32}
    ),
}
