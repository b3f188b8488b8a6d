"""PyTorch's own chunked linear cross-entropy, which is InfoNCE in one direction."""

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases import TEMPERATURE, Case
from bench.providers.base import Job, Provider


def _extra() -> str | None:
    if hasattr(F, "linear_cross_entropy") and hasattr(torch.nn, "LinearCrossEntropyOptions"):
        return None
    return f"torch {torch.__version__} has no chunked linear_cross_entropy"


def _cross_entropy(x: Tensor, y: Tensor) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    targets = torch.arange(len(x), device=x.device)
    return F.linear_cross_entropy(x, y, targets, options=options)


def _info_nce(case: Case) -> Job:
    def loss() -> Tensor:
        x, y = (F.normalize(case.inputs[name], dim=1) for name in ("queries", "keys"))
        return _cross_entropy(x / TEMPERATURE, y)

    return Job(loss)


def _clip(case: Case) -> Job:
    def loss() -> Tensor:
        x, y = (F.normalize(case.inputs[name], dim=1) for name in ("image", "text"))
        scale = case.inputs["scale"]
        return (_cross_entropy(scale * x, y) + _cross_entropy(scale * y, x)) / 2

    return Job(loss)


LINEAR = Provider({"info_nce": _info_nce, "clip_loss": _clip}, extra=_extra)
