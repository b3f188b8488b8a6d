"""Options of lightly, open_clip, info-nce-pytorch and solo-learn."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tests.compat._compat_options import (
    SIZES,
    B,
    D,
    K,
    Target,
    calls,
    inits,
    of_rows,
    together,
    values,
)


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


def bank():
    return {"memory_bank_size": (K, D)}


def has_bank(loss):
    return loss.memory_bank is not None and loss.memory_bank.size[0] > 0


TEMPERATURES = [
    *values("temperature", 1, 0.05, 0.5, -0.5, math.inf, -math.inf, math.nan, 1e-4, 1e7),
    *values("temperature", np.float32(0.2), np.float64(0.2), np.int64(2)),
    *values("temperature", lambda: torch.tensor(0.3), lambda: torch.tensor([0.3])),
    *values("temperature", lambda: torch.tensor(-0.3), lambda: nn.Parameter(torch.tensor(0.3))),
]
LIGHTLY = Target(
    "lightly",
    "lightly.loss",
    "NTXentLoss",
    "forward",
    lambda: {"out0": torch.randn(B, D), "out1": torch.randn(B, D)},
    [
        *TEMPERATURES,
        *values("temperature", 0.0, 1e-9, -1e-9, "0.5"),
        *inits("temperature", negative_with_bank=lambda: {**bank(), "temperature": -0.5}),
        *values("memory_bank_size", 0, (K, D), [K, D], torch.Size([K, D]), (0, D)),
        *values("memory_bank_size", (B, D), (K, D + 1), (np.int64(K), D)),
        *values("memory_bank_size", (B - 1, D), (1, D), differs="no row is lost at the end"),
        *values("memory_bank_size", -1, (4,), (-1, D), (1, 2, 3), (), "64"),
        *values("memory_bank_size", K, differs="the first batch tells the features"),
        *values("gather_distributed", True, False),
        *inits("gather_distributed", with_bank=lambda: {**bank(), "gather_distributed": True}),
        *of_rows("out0"),
        *of_rows("out1"),
        *of_rows("out1", bank),
        *together(("out0", "out1"), **SIZES, half=torch.Tensor.half, brain=torch.Tensor.bfloat16),
        *together(("out0", "out1"), complex=lambda x: x + 0j, tiny=lambda x: 1e-20 * x),
        *calls("out0", bank, without_gradient=lambda x: {"out0": x["out0"].detach()}),
    ],
    calls=2,
    state=lambda loss: [loss.memory_bank.bank] if has_bank(loss) else [],
)
SCALES = [
    *calls(
        "logit_scale",
        number=lambda _: {"logit_scale": 14.3},
        integer=lambda _: {"logit_scale": 14},
        zero=lambda _: {"logit_scale": 0.0},
        negative=lambda _: {"logit_scale": -3.0},
        infinite=lambda _: {"logit_scale": math.inf},
        nan=lambda _: {"logit_scale": math.nan},
        zero_tensor=lambda _: {"logit_scale": torch.tensor(0.0)},
        negative_tensor=lambda _: {"logit_scale": torch.tensor(-3.0)},
        vector=lambda _: {"logit_scale": torch.tensor([14.3])},
        each_feature=lambda _: {"logit_scale": torch.linspace(1, 9, D)},
        each_row=lambda _: {"logit_scale": torch.linspace(1, 9, B)[:, None]},
        integer_tensor=lambda _: {"logit_scale": torch.tensor(14)},
        double=lambda _: {"logit_scale": torch.tensor(14.3, dtype=torch.float64)},
    ),
    *calls(
        "logit_bias",
        none=lambda _: {"logit_bias": None},
        number=lambda _: {"logit_bias": -3.0},
        integer=lambda _: {"logit_bias": -3},
        vector=lambda _: {"logit_bias": torch.tensor([-3.0])},
        each_column=lambda _: {"logit_bias": torch.linspace(-4, 0, B)},
        infinite=lambda _: {"logit_bias": math.inf},
        double=lambda _: {"logit_bias": torch.tensor(-3.0, dtype=torch.float64)},
    ),
    *calls("output_dict", true=lambda _: {"output_dict": True}),
    *together(("image_features", "text_features"), **SIZES),
    *of_rows("image_features"),
    *of_rows("text_features"),
]
PROCESS = [*values("cache_labels", True), *values("rank", 0, 1), *values("world_size", 1, 2)]


def pairs():
    return {
        "image_features": unit(B, D),
        "text_features": unit(B, D),
        "logit_scale": torch.tensor(9.3),
        "logit_bias": torch.tensor(-2.0),
    }


CLIP = Target(
    "open_clip",
    "open_clip.loss",
    "ClipLoss",
    "forward",
    pairs,
    [
        *values("local_loss", True),
        *values("gather_with_grad", True),
        *values("use_horovod", True),
        *inits("use_horovod", two=lambda: {"use_horovod": True, "world_size": 2}),
        *PROCESS,
        *SCALES,
    ],
    calls=2,
)
SIGLIP = Target(
    "open_clip",
    "open_clip.loss",
    "SigLipLoss",
    "forward",
    pairs,
    [
        *values("dist_impl", None, "", "bidir", "shift", "reduce", "gather", "ring"),
        *PROCESS,
        *SCALES,
    ],
)


def queries():
    return {"query": torch.randn(B, D), "positive_key": torch.randn(B, D), "negative_keys": None}


def negatives(make, mode="unpaired"):
    return lambda _: {"negative_keys": make()}


def paired():
    return {"negative_mode": "paired"}


INFO_NCE = [
    *calls(
        "negative_keys",
        shared=lambda _: {"negative_keys": torch.randn(K, D)},
        fixed=lambda _: {"negative_keys": torch.randn(K, D).requires_grad_(False)},
        none_of_them=lambda _: {"negative_keys": torch.randn(0, D)},
        one=lambda _: {"negative_keys": torch.randn(1, D)},
        of_each=lambda _: {"negative_keys": torch.randn(B, 5, D)},
        other_features=lambda _: {"negative_keys": torch.randn(K, D + 1)},
        double=lambda _: {"negative_keys": torch.randn(K, D).double()},
    ),
    *calls(
        "negative_keys",
        paired,
        paired_of_each=lambda _: {"negative_keys": torch.randn(B, 5, D)},
        paired_none=lambda _: {"negative_keys": torch.randn(B, 0, D)},
        paired_one=lambda _: {"negative_keys": torch.randn(B, 1, D)},
        paired_of_others=lambda _: {"negative_keys": torch.randn(B - 1, 5, D)},
        paired_shared=lambda _: {"negative_keys": torch.randn(K, D)},
    ),
    *of_rows("query"),
    *of_rows("positive_key"),
    *together(("query", "positive_key"), **SIZES, half=torch.Tensor.half),
]
_MODES = [
    *TEMPERATURES,
    *values("temperature", 0.0, 1e-30),
    *values("reduction", "mean", "sum", "none", "median", None),
    *values("negative_mode", "paired", "unpaired", "both", None),
]
INFO_NCE_CLASS = Target(
    "info_nce_pytorch", "info_nce", "InfoNCE", "forward", queries, [*_MODES, *INFO_NCE]
)
INFO_NCE_FUNCTION = Target(
    "info_nce_pytorch", "info_nce", "info_nce", "", queries, [*_MODES, *INFO_NCE]
)


def views():
    return {"z1": torch.randn(B, D), "z2": torch.randn(B, D)}


def more_positives():
    mask = torch.rand(2 * B, 2 * B) > 0.8
    return (mask | mask.T).fill_diagonal_(False)


SOLO_SIMCLR = Target(
    "solo_learn",
    "solo.losses.simclr",
    "simclr_loss_func",
    "",
    views,
    [
        *[
            each._replace(differs="nothing overflows", patched_differs=True)
            if each.label == "0.0001"
            else each
            for each in TEMPERATURES
        ],
        *values("extra_pos_mask", None, more_positives, lambda: more_positives() & False),
        *of_rows("z1"),
        *of_rows("z2"),
        *together(("z1", "z2"), **SIZES, half=torch.Tensor.half),
    ],
    positional=True,
)
SOLO_MOCO = Target(
    "solo_learn",
    "solo.losses.moco",
    "moco_loss_func",
    "",
    lambda: {"query": unit(B, D), "key": unit(B, D), "queue": unit(K, D).T.detach()},
    [
        *TEMPERATURES,
        *calls(
            "queue",
            trained=lambda given: {"queue": given["queue"].clone().requires_grad_()},
            empty=lambda given: {"queue": given["queue"][:, :0]},
            one=lambda given: {"queue": given["queue"][:, :1]},
            strided=lambda given: {"queue": given["queue"].contiguous()},
            not_unit=lambda given: {"queue": 3 * given["queue"]},
            double=lambda given: {"queue": given["queue"].double()},
        ),
        *of_rows("query"),
        *of_rows("key"),
        *together(("query", "key"), **SIZES),
    ],
)


def networks():
    torch.manual_seed(5)
    return {"model": nn.Linear(D, B), "model_ema": nn.Linear(D, B), "m": 0.9}


def itself(given):
    return {"model_ema": given["model"]}


UPDATE_MOMENTUM = Target(
    "lightly",
    "lightly.models.utils",
    "update_momentum",
    "",
    networks,
    [
        *values("m", 0, 1, 0.0, 1.0, 0.99, 1.5, -0.5, math.nan, np.float64(0.9)),
        *values("m", lambda: torch.tensor(0.9)),
        *calls(
            "model",
            other_shape=lambda _: {"model": nn.Linear(D, B + 1)},
            fewer=lambda _: {"model": nn.Linear(D, B, bias=False)},
            empty=lambda _: {"model": nn.ReLU()},
            double=lambda _: {"model": nn.Linear(D, B).double()},
        ),
        *calls(
            "model_ema",
            itself=itself,
            brain=lambda given: {"model_ema": given["model_ema"].bfloat16()},
            empty=lambda _: {"model": nn.ReLU(), "model_ema": nn.ReLU()},
            frozen=lambda given: {"model_ema": given["model_ema"].requires_grad_(False)},
        ),
    ],
)

TARGETS = [
    LIGHTLY, UPDATE_MOMENTUM, CLIP, SIGLIP, INFO_NCE_CLASS, INFO_NCE_FUNCTION, SOLO_SIMCLR,
    SOLO_MOCO,
]  # fmt: skip
