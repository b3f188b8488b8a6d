"""Settings of MoCo: v2 under DATA/moco, v1 under DATA/moco-v1."""

from collections.abc import Mapping
from typing import Any

from sslops.training.recipes.images import IMAGES
from sslops.training.recipes.recipe import Recipe

__all__ = ["MOCO"]

# What v2 changed, beside the MLP head and the views.
_V1: Mapping[str, Any] = {"version": "v1", "temperature": 0.07, "schedule": "step"}
_V2: Mapping[str, Any] = {"version": "v2", "temperature": 0.2, "schedule": "cosine"}

_IMAGENET: Mapping[str, Any] = {
    "arch": "resnet50",
    "views": "moco-v2",
    "image_size": 224,
    "batch": 256,
    "epochs": 200,
    "optimizer": "sgd",
    "momentum": 0.9,
    "lr": 0.03,
    "lr_scaling": "linear",
    "warmup_epochs": 0.0,
    "weight_decay": 1e-4,
    "queue": 65_536,
    "key_momentum": 0.999,
    "bn_splits": 8,  # the paper's eight GPUs
    "proj_hidden": 2048,
    "proj_dim": 128,
    "knn_every": 5,
    "checkpoint_every": 1,
    "validation": 0.01,
}

_CIFAR_RESNET: Mapping[str, Any] = {
    **_V2,
    "version": "v1",  # a linear head
    "arch": "resnet18",
    "views": "colour",
    "batch": 512,
    "epochs": 200,
    "optimizer": "sgd",
    "momentum": 0.9,
    "lr": 0.06,
    "warmup_epochs": 0.0,
    "weight_decay": 5e-4,
    "temperature": 0.1,
    "queue": 4096,
    "key_momentum": 0.99,
    "bn_splits": 8,
    "proj_dim": 128,
    "knn_every": 20,
    "checkpoint_every": 20,
    "eval_train": None,
    "eval_test": None,
}

_DIGITS: Mapping[str, Any] = {
    **IMAGES["digits"].fields,
    **_V2,
    "temperature": 0.1,
    "queue": 1024,
    "key_momentum": 0.99,
}

_SMALL: Mapping[str, Any] = {
    **_V2,
    "temperature": 0.1,
    "queue": 4096,
    "key_momentum": 0.99,
    "bn_splits": 8,
    "proj_hidden": 512,
    "proj_dim": 128,
}
_FASHION: Mapping[str, Any] = {**IMAGES["fashion-mnist"].fields, **_SMALL, "pool": 1}
_CIFAR: Mapping[str, Any] = {**IMAGES["cifar10"].fields, **_SMALL, "epochs": 15}
_FOLDER: Mapping[str, Any] = {**IMAGES["folder"].fields, **_SMALL}

MOCO: dict[str, Recipe] = {
    "imagenet/moco": Recipe(
        "Chen et al. 2020, arXiv:2003.04297; facebookresearch/moco, README: ResNet-50, 200 epochs."
        " Here batch norm and biases have no weight decay",
        {**_IMAGENET, **_V2},
    ),
    "imagenet/moco-v1": Recipe(
        "He et al. 2020, arXiv:1911.05722, section 3.3; facebookresearch/moco, README: ResNet-50,"
        " 200 epochs. Here batch norm and biases have no weight decay",
        {**_IMAGENET, **_V1, "views": "moco-v1"},
    ),
    "cifar10-resnet18/moco": Recipe(
        "facebookresearch/moco, colab-notebook (CIFAR-10, ResNet-18, SplitBN 8); a linear head,"
        " --symmetric for its symmetric loss; 82.6 % kNN after 200 epochs there, on test images",
        _CIFAR_RESNET,
    ),
    "digits/moco": Recipe(
        "digits' own; temperature of 0.1, 0.2, 0.5 by kNN and top-1 on a 30 % validation part;"
        " half a minute on one CPU core",
        _DIGITS,
    ),
    "digits/moco-v1": Recipe(
        "digits/moco with v1's head, temperature, schedule", {**_DIGITS, **_V1}
    ),
    "fashion-mnist/moco": Recipe(
        "fashion-mnist's encoder and views, global pooling; optimiser, lr and temperature by kNN"
        " and top-1 on a validation part (bench/results/training/README.md); five minutes on one"
        " CPU core",
        _FASHION,
    ),
    "fashion-mnist/moco-v1": Recipe(
        "fashion-mnist/moco with v1's head, temperature, schedule", {**_FASHION, **_V1}
    ),
    "cifar10/moco": Recipe(
        "fashion-mnist/moco's settings with cifar10's encoder and views, none tried on CIFAR-10",
        _CIFAR,
    ),
    "cifar10/moco-v1": Recipe(
        "cifar10/moco with v1's head, temperature, schedule and colours",
        {**_CIFAR, **_V1, "views": "moco-v1"},
    ),
    "folder/moco": Recipe("cifar10/moco, with the images brought to 32 x 32 pixels", _FOLDER),
    "folder/moco-v1": Recipe(
        "folder/moco with v1's head, temperature, schedule and colours",
        {**_FOLDER, **_V1, "views": "moco-v1"},
    ),
}
