"""Packages in plain PyTorch that people train with. None is a dependency."""

import importlib.util
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases import MOCO_TEMPERATURE, MOMENTUM, TEMPERATURE, Case
from bench.providers.base import Job, Provider, Skip, module
from bench.providers.eager import averages, numbered


def _lightly_nt_xent(case: Case) -> Job:
    loss = module("lightly.loss").NTXentLoss(temperature=TEMPERATURE)
    return Job(lambda: loss(*case.inputs["z"].chunk(2)))


def _lightly_moco(case: Case) -> Job:
    """The queue is read and written inside of the loss."""
    x = case.inputs
    K, D = x["queue"].shape
    if 2 * len(x["keys"]) > K or K % len(x["keys"]):
        raise Skip("the memory bank drops keys where it wraps around")
    if x["queue"].dtype is not x["queries"].dtype:
        raise Skip("the memory bank must have the dtype of the queries")
    loss: Any = module("lightly.loss").NTXentLoss(MOCO_TEMPERATURE, memory_bank_size=(K, D))
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
    loss = module("pytorch_metric_learning.losses").NTXentLoss(temperature=TEMPERATURE)
    labels = torch.arange(len(z) // 2, device=z.device).repeat(2)
    return Job(lambda: loss(z, labels))


def _metric_sup_con(case: Case) -> Job:
    loss = module("pytorch_metric_learning.losses").SupConLoss(temperature=TEMPERATURE)
    return Job(lambda: loss(case.inputs["z"], case.inputs["labels"]))


def _info_nce(case: Case) -> Job:
    loss = module("info_nce").info_nce
    x = case.inputs
    return Job(lambda: loss(x["queries"], x["keys"], temperature=TEMPERATURE))


def _open_clip() -> Any:
    """Its file of losses, without the models and the image libraries that its package imports."""
    found = importlib.util.find_spec("open_clip")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("No module named 'open_clip'")
    spec = importlib.util.spec_from_file_location(
        "open_clip_loss", Path(found.origin).with_name("loss.py")
    )
    assert spec is not None
    assert spec.loader is not None
    losses = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(losses)
    return losses


def _has_open_clip() -> str | None:
    return None if importlib.util.find_spec("open_clip") else "No module named 'open_clip'"


def _unit(case: Case) -> tuple[Tensor, Tensor]:
    """What open_clip's models return."""
    return F.normalize(case.inputs["image"], dim=1), F.normalize(case.inputs["text"], dim=1)


def _open_clip_loss(case: Case) -> Job:
    loss = _open_clip().ClipLoss()
    return Job(lambda: loss(*_unit(case), case.inputs["scale"]))


def _open_clip_sigmoid(case: Case) -> Job:
    loss = _open_clip().SigLipLoss()
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
    extra=_has_open_clip,
)
