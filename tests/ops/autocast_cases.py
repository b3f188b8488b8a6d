"""Every loss, module and drop-in as a function of tensors, for test_autocast*.py."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sslops
from sslops.compat import (
    info_nce_pytorch,
    lightly,
    open_clip,
    pytorch_metric_learning,
    sentence_transformers,
    solo_learn,
)

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
LOW = (torch.bfloat16, torch.float16)
B, D = 8, 16
IDS = torch.arange(B) % 6
ROWS = ((B, D), (B, D))


@dataclass
class Entry:
    """A loss of tensors of these shapes; `own`, of this package and no drop-in: it refuses more."""

    call: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...] = ROWS
    own: bool = True
    scale: float = 10.0  # of the similarities


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(3)), dim=-1)


def beside(queries: Tensor, rows: int) -> Tensor:
    """Stored negatives, in float32 under autocast; without it drop-ins want one dtype."""
    return unit(rows, D).to(torch.float64 if queries.dtype is torch.float64 else torch.float32)


def queue(dtype: torch.dtype) -> sslops.KeyQueue:
    keys = sslops.KeyQueue(24, D, dtype=dtype)
    keys.keys.copy_(unit(24, D))
    return keys


def bank(dtype: torch.dtype) -> nn.Module:
    loss = lightly.NTXentLoss(0.1, (24, D))
    loss.memory_bank.bank = unit(24, D).to(dtype)
    return loss


def memory(loss: nn.Module) -> nn.Module:
    filled = pytorch_metric_learning.CrossBatchMemory(loss, D, 32)
    with torch.autocast("cpu", enabled=False):
        filled(unit(24, D), torch.arange(24) % 6)
    return filled


def texts(kind: type[nn.Module]) -> Callable[..., Tensor]:
    def call(*sides: Tensor) -> Tensor:
        loss = kind(lambda x: {"sentence_embedding": x["values"] * 1}, 10.0)
        return loss([{"values": each} for each in sides], None)

    return call


Z, CPC, THREE = ((2, B, D),), ((2, 3, 6, D), (3, 6, D)), (*ROWS, (B, D))
TAU = torch.tensor(0.1)
PML, TEXT, INFO = pytorch_metric_learning, sentence_transformers, info_nce_pytorch
ENTRIES = {
    "nt_xent": Entry(lambda z: sslops.nt_xent(z), Z),
    "nt_xent ids": Entry(lambda z: sslops.nt_xent(z, ids=IDS, temperature=TAU), Z),
    "nt_xent weights": Entry(lambda z: sslops.nt_xent(z, weights=IDS.repeat(2).bfloat16() + 1), Z),
    "info_nce": Entry(lambda q, k: sslops.info_nce(q, k, temperature=TAU)),
    "info_nce dot products": Entry(
        lambda q, k: sslops.info_nce(q, k, normalize=False, temperature=1.0)
    ),
    "info_nce frozen": Entry(lambda q, k: sslops.info_nce(q, k.detach(), temperature=TAU)),
    "info_nce symmetric": Entry(lambda q, k: sslops.info_nce(q, k, symmetric=True)),
    "info_nce none": Entry(lambda q, k: sslops.info_nce(q, k, reduction="none").mean()),
    "clip_loss": Entry(lambda q, k: sslops.clip_loss(q, k, TAU.reciprocal())),
    "clip_loss smoothing": Entry(lambda q, k: sslops.clip_loss(q, k, 10.0, label_smoothing=0.1)),
    "sigmoid_loss": Entry(lambda q, k: sslops.sigmoid_loss(q, k, TAU.reciprocal(), -TAU)),
    "sup_con": Entry(lambda z: sslops.sup_con(z, IDS), Z),
    "cpc_loss": Entry(lambda q, k: sslops.cpc_loss(q, k), CPC),
    "cpc_loss sampled": Entry(
        lambda q, k: sslops.cpc_loss(q, k, negatives=9, generator=torch.Generator()), CPC
    ),
    "NTXentLoss": Entry(lambda a, b: sslops.NTXentLoss(0.1)(a, b)),
    "InfoNCELoss": Entry(lambda q, k: sslops.InfoNCELoss(0.1, learn_temperature=True)(q, k)),
    "SupConLoss": Entry(lambda z: sslops.SupConLoss(0.1)(z, IDS), Z),
    "CPCLoss": Entry(lambda q, k: sslops.CPCLoss(0.1)(q, k), CPC),
    "ClipLoss": Entry(lambda q, k: sslops.ClipLoss(10.0)(q, k)),
    "SigmoidLoss": Entry(lambda q, k: sslops.SigmoidLoss()(q, k)),
    "info_nce_pytorch.info_nce": Entry(INFO.info_nce, own=False),
    "info_nce_pytorch.info_nce paired": Entry(
        lambda q, k, n: INFO.info_nce(q, k, n, negative_mode="paired"), (*ROWS, (B, 5, D)), False
    ),
    "info_nce_pytorch.InfoNCE": Entry(INFO.InfoNCE(0.1), THREE, False),
    "info_nce_pytorch.InfoNCE frozen": Entry(
        lambda q, k: INFO.InfoNCE(0.1)(q, k, beside(q, 5)), own=False
    ),
    "lightly.NTXentLoss": Entry(lightly.NTXentLoss(0.1), own=False),
    "open_clip.ClipLoss": Entry(
        lambda q, k: open_clip.ClipLoss()(F.normalize(q, dim=1), F.normalize(k, dim=1), 10.0),
        own=False,
    ),
    "open_clip.SigLipLoss": Entry(
        lambda q, k: open_clip.SigLipLoss()(
            F.normalize(q, dim=1), F.normalize(k, dim=1), 10.0, torch.tensor(-1.0)
        ),
        own=False,
    ),
    "pytorch_metric_learning.NTXentLoss": Entry(
        lambda q, k: PML.NTXentLoss(0.1)(q, IDS, ref_emb=k, ref_labels=IDS), own=False
    ),
    "pytorch_metric_learning.NTXentLoss many": Entry(
        lambda q, k: PML.NTXentLoss(0.1)(q, 0 * IDS, ref_emb=k, ref_labels=IDS // 5), own=False
    ),
    "pytorch_metric_learning.SupConLoss": Entry(
        lambda q, k: PML.SupConLoss(0.1)(q, IDS, ref_emb=k, ref_labels=IDS), own=False
    ),
    "pytorch_metric_learning.SupConLoss mined": Entry(
        lambda q, k: PML.SupConLoss(0.1)(q, None, (IDS, IDS, IDS, (IDS + 1) % 6), k), own=False
    ),
    "pytorch_metric_learning.SelfSupervisedLoss": Entry(
        PML.SelfSupervisedLoss(PML.NTXentLoss(0.1)), own=False
    ),
    "pytorch_metric_learning.CrossBatchMemory": Entry(
        lambda z: memory(PML.NTXentLoss(0.1))(z, IDS), ((B, D),), False
    ),
    "sentence_transformers.multiple_negatives_ranking_loss": Entry(
        lambda *sides: TEXT.multiple_negatives_ranking_loss(sides, 10.0), THREE, False
    ),
    "sentence_transformers.MultipleNegativesRankingLoss": Entry(
        texts(TEXT.MultipleNegativesRankingLoss), THREE, False
    ),
    "sentence_transformers.CachedMultipleNegativesRankingLoss": Entry(
        texts(TEXT.CachedMultipleNegativesRankingLoss), THREE, False
    ),
    "solo_learn.simclr_loss_func": Entry(
        lambda z: solo_learn.simclr_loss_func(z, IDS), ((B, D),), False
    ),
    "solo_learn.mocov2plus_loss_func": Entry(
        lambda q, k: solo_learn.mocov2plus_loss_func(
            F.normalize(q, dim=1), F.normalize(k, dim=1), beside(q, 24).T
        ),
        own=False,
    ),
    "solo_learn.moco_loss_func": Entry(
        lambda q, k: solo_learn.moco_loss_func(
            F.normalize(q, dim=1), F.normalize(k, dim=1), beside(q, 24).T
        ),
        own=False,
    ),
    "solo_learn.simclr_loss_func views": Entry(solo_learn.simclr_loss_func, own=False),
}  # fmt: skip
for dtype in DTYPES:
    name = str(dtype).removeprefix("torch.")
    ENTRIES[f"info_nce queue {name}"] = Entry(
        lambda q, k, dtype=dtype: sslops.info_nce(q, k, queue=queue(dtype).keys, temperature=TAU)
    )
    ENTRIES[f"lightly.NTXentLoss bank {name}"] = Entry(
        lambda q, k, dtype=dtype: bank(dtype)(q, k), own=False
    )
for kind, group in (("Gather", sslops.Gather()), ("Ring", sslops.Ring())):
    ENTRIES |= {
        f"info_nce {kind}": Entry(lambda q, k, group=group: sslops.info_nce(q, k, group=group)),
        f"clip_loss {kind}": Entry(lambda q, k, g=group: sslops.clip_loss(q, k, 10.0, group=g)),
        f"sigmoid_loss {kind}": Entry(
            lambda q, k, g=group: sslops.sigmoid_loss(q, k, 10.0, group=g)
        ),
        f"cpc_loss {kind}": Entry(lambda q, k, g=group: sslops.cpc_loss(q, k, group=g), CPC),
    }


def cached(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 1

    return lambda *sides: sslops.GradCache([Same() for _ in sides], call, 3)(*sides)


for name in ("info_nce", "clip_loss", "sigmoid_loss", "NTXentLoss", "open_clip.ClipLoss"):
    ENTRIES[f"{name} GradCache"] = Entry(cached(ENTRIES[name].call), own=ENTRIES[name].own)


def sides_of(entry: Entry, dtypes: tuple[torch.dtype, ...]) -> list[Tensor]:
    """Rows that resemble each other, each in its dtype; a third one has that of the second."""
    torch.manual_seed(1)
    common = torch.randn(B, D)
    sides = []
    for n, shape in enumerate(entry.shapes):
        like = common if shape[-2:] == (B, D) else 0.0
        side = (like + 0.7 * torch.randn(shape)).to(dtypes[min(n, 1)])
        sides.append(side.requires_grad_())
    return sides


def combinations(entry: Entry, low: torch.dtype) -> list[tuple[torch.dtype, ...]]:
    """For drop-ins no float64, of which plain PyTorch makes float64 only in part."""
    kinds = DTYPES if entry.own else (*LOW, torch.float32)
    return list(product(kinds, repeat=min(2, len(entry.shapes))))


def cast_of(low: torch.dtype, dtypes: tuple[torch.dtype, ...]) -> torch.dtype:
    return torch.float64 if torch.float64 in dtypes else low
