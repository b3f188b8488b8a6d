"""Packages in plain PyTorch that people train with. None is a dependency."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases import MOCO_TEMPERATURE, MOMENTUM, TEMPERATURE, Case
from bench.providers.base import Job, Provider, Skip
from bench.providers.eager import averages, numbered
from bench.providers.stand_ins import import_peer


def _lightly_nt_xent(case: Case) -> Job:
    loss = import_peer("lightly.loss").NTXentLoss(temperature=TEMPERATURE)
    return Job(lambda: loss(*case.inputs["z"].chunk(2)))


def _lightly_moco(case: Case) -> Job:
    """The queue is read and written inside of the loss."""
    x = case.inputs
    K, D = x["queue"].shape
    if 2 * len(x["keys"]) > K or K % len(x["keys"]):
        raise Skip("the memory bank drops keys where it wraps around")
    if x["queue"].dtype is not x["queries"].dtype:
        raise Skip("the memory bank must have the dtype of the queries")
    loss: Any = import_peer("lightly.loss").NTXentLoss(MOCO_TEMPERATURE, memory_bank_size=(K, D))
    bank = loss.memory_bank.to(case.device)
    bank.bank = x["queue"].clone()
    return Job(lambda: loss(x["queries"], x["keys"]), state=lambda: {"queue": bank.bank})


def _lightly_ema(case: Case) -> Job:
    """The two lines of lightly's update_momentum, on tensors instead of modules."""
    targets, sources = averages(case)

    def update() -> None:
        torch._foreach_mul_(targets, MOMENTUM)
        torch._foreach_add_(targets, sources, alpha=1 - MOMENTUM)

    return Job(after=update, state=lambda: numbered(targets))


def _metric_nt_xent(case: Case) -> Job:
    z = case.inputs["z"]
    if len(z) > 512:
        raise Skip("stores M^3 floats; not run above M = 512")
    loss = import_peer("pytorch_metric_learning.losses").NTXentLoss(temperature=TEMPERATURE)
    labels = torch.arange(len(z) // 2, device=z.device).repeat(2)
    return Job(lambda: loss(z, labels))


def _metric_sup_con(case: Case) -> Job:
    loss = import_peer("pytorch_metric_learning.losses").SupConLoss(temperature=TEMPERATURE)
    return Job(lambda: loss(case.inputs["z"], case.inputs["labels"]))


def _info_nce(case: Case) -> Job:
    loss = import_peer("info_nce").info_nce
    x = case.inputs
    return Job(lambda: loss(x["queries"], x["keys"], temperature=TEMPERATURE))


def _unit(case: Case) -> tuple[Tensor, Tensor]:
    """What open_clip's models return."""
    return F.normalize(case.inputs["image"], dim=1), F.normalize(case.inputs["text"], dim=1)


def _open_clip_loss(case: Case) -> Job:
    loss = import_peer("open_clip.loss").ClipLoss()
    return Job(lambda: loss(*_unit(case), case.inputs["scale"]))


def _open_clip_sigmoid(case: Case) -> Job:
    loss = import_peer("open_clip.loss").SigLipLoss()
    return Job(lambda: loss(*_unit(case), case.inputs["scale"], case.inputs["bias"]))


LIGHTLY = Provider(
    {"nt_xent": _lightly_nt_xent, "moco": _lightly_moco, "ema_update_": _lightly_ema},
    "lightly",
    ("lightly.loss",),
)
METRIC = Provider(
    {"nt_xent": _metric_nt_xent, "sup_con": _metric_sup_con},
    "pytorch-metric-learning",
    ("pytorch_metric_learning.losses",),
)
INFO_NCE = Provider({"info_nce": _info_nce}, "info-nce-pytorch", ("info_nce",))
OPEN_CLIP = Provider(
    {"clip_loss": _open_clip_loss, "sigmoid_loss": _open_clip_sigmoid},
    "open_clip_torch",
    ("open_clip.loss",),
)
