"""Packages with fused kernels for CUDA. None is a dependency.

Most compute one direction, and take a number as the temperature: a tensor's gradient is then
missing, which their rows say.
"""

from collections.abc import Callable
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases import TEMPERATURE, Case
from bench.providers.base import Job, Provider, Skip
from bench.providers.stand_ins import import_peer

Direction = Callable[[Tensor, Tensor, float | Tensor], Tensor]  # unit rows, scale -> mean loss


def _memeff_clip(case: Case) -> Job:
    x = case.inputs
    temperature = 1 / float(x["scale"].detach())
    # stable=True, the default, is another gradient: it depends on the batch
    loss = import_peer("memeff").MemoryEfficientCLIPLoss(temperature, stable=False)
    return Job(lambda: loss(x["image"], x["text"]))


def _memeff_info_nce(case: Case) -> Job:
    x = case.inputs
    loss = import_peer("memeff").MemoryEfficientQwen3Loss(TEMPERATURE, margin=4.0, stable=False)
    return Job(lambda: loss(x["queries"], x["keys"]))


def _memeff_nt_xent(case: Case) -> Job:
    """Each view against the other, with the rows of its own side as further negatives."""
    kind = import_peer("memeff").MemoryEfficientQwen3Loss
    loss = kind(TEMPERATURE, margin=4.0, use_qq_negatives=True, stable=False)

    def both() -> Tensor:
        one, two = case.inputs["z"].chunk(2)
        result: Tensor = (loss(one, two) + loss(two, one)) / 2
        return result

    return Job(both)


def _inf_cl(x: Tensor, y: Tensor, scale: float | Tensor) -> Tensor:
    D = x.shape[1]
    head_dim = gcd(D, 256)
    if head_dim < 16:
        raise Skip(f"needs a D that 16 divides, got {D}")
    loss: Tensor = import_peer("inf_cl").cal_flash_loss(x, y, scale=scale, head_dim=head_dim)
    return loss.mean()


def _targets(x: Tensor) -> Tensor:
    return torch.arange(len(x), device=x.device)


def _cce(x: Tensor, y: Tensor, scale: float | Tensor) -> Tensor:
    """Without the filter that drops small gradients, which are most of a contrastive loss."""
    loss = import_peer("cut_cross_entropy").linear_cross_entropy
    result: Tensor = loss(scale * x, y, _targets(x), impl="cce", filter_eps=None)
    return result


def _liger(x: Tensor, y: Tensor, scale: float | Tensor) -> Tensor:
    loss = import_peer("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss()
    result: Tensor = loss(y, scale * x, _targets(x))
    return result


def _liger_scaled(x: Tensor, y: Tensor, scale: float | Tensor) -> Tensor:
    """The CuTe kernel for Hopper; it takes the temperature as a number."""
    loss = import_peer("liger_kernel.ops").LigerFusedLinearScaledCrossEntropyFunction
    rows: Tensor = loss.apply(x, y, _targets(x), 1 / float(scale))
    return rows.mean()


def _ops(direction: Direction, number: bool = False) -> dict[str, Callable[[Case], Job]]:
    """InfoNCE, and CLIP's loss as two calls, from a loss in one direction.

    Args:
        direction: the loss.
        number: read CLIP's scale on the host, once and for all.
    """

    def info_nce(case: Case) -> Job:
        def loss() -> Tensor:
            x, y = (F.normalize(case.inputs[name], dim=1) for name in ("queries", "keys"))
            return direction(x, y, 1 / TEMPERATURE)

        return Job(loss)

    def clip_loss(case: Case) -> Job:
        scale_input = case.inputs["scale"]
        scale = float(scale_input.detach()) if number else scale_input

        def loss() -> Tensor:
            x, y = (F.normalize(case.inputs[name], dim=1) for name in ("image", "text"))
            return (direction(x, y, scale) + direction(y, x, scale)) / 2

        return Job(loss)

    return {"info_nce": info_nce, "clip_loss": clip_loss}


def _siglip(case: Case) -> Job:
    x = case.inputs
    loss = import_peer("siglip_kernel").fused_siglip_loss

    def run() -> Tensor:
        image, text = F.normalize(x["image"], dim=1), F.normalize(x["text"], dim=1)
        result: Tensor = loss(image, text, x["scale"].log(), x["bias"])
        return result

    return Job(run)


MEMEFF = Provider(
    {"clip_loss": _memeff_clip, "info_nce": _memeff_info_nce, "nt_xent": _memeff_nt_xent},
    "memeff",
    ("memeff",),
    cuda=True,
)
INF_CL = Provider(_ops(_inf_cl), "inf-cl", ("inf_cl",), cuda=True)
CCE = Provider(_ops(_cce), "cut-cross-entropy", ("cut_cross_entropy",), cuda=True)
LIGER = Provider(_ops(_liger), "liger-kernel", ("liger_kernel.transformers",), cuda=True)
LIGER_SCALED = Provider(
    _ops(_liger_scaled, number=True), "liger-kernel", ("liger_kernel.ops",), cuda=True
)
SIGLIP = Provider({"sigmoid_loss": _siglip}, "siglip-kernel", ("siglip_kernel",), cuda=True)
