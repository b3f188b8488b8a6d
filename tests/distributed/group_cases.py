"""Losses among processes and in one, from the same tensors, for test_group_*.py."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import accumulate
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

import sslops
from tests.processes import spawn

D = 5
Inputs = dict[str, Tensor]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def labels(B: int) -> Tensor:
    """Classes with members on several ranks, a lonely one, and rows without one."""
    some = torch.arange(B) % 3
    some[-1], some[B // 2] = 7, -1
    return some


@dataclass
class Case:
    """A loss of tensors that are cut into the ranks' parts along `axis`.

    Attributes:
        make: tensors of B samples.
        call: the loss of a process, from its tensors, a scale, a bias and group=.
        axis: along which each tensor is cut; default 0. None: it is whole on each rank.
        places: tensors of indices into the process's own rows.
        trained: names of the tensors that get a gradient.
        rows: whether what is returned has a row for each sample of the process: reduction="none".
    """

    make: Callable[[int], Inputs]
    call: Callable[..., Tensor]
    axis: dict[str, int | None] = field(default_factory=dict)
    places: tuple[str, ...] = ()
    trained: tuple[str, ...] = ("x", "y")
    rows: int | None = None


def part(case: Case, inputs: Inputs, sizes: list[int], rank: int) -> Inputs:
    """The tensors of one rank."""
    ends = list(accumulate(sizes))
    first, last = ends[rank] - sizes[rank], ends[rank]
    own = {}
    for name, each in inputs.items():
        axis = case.axis.get(name, 0)
        own[name] = each if axis is None else each.narrow(axis, first, last - first).clone()
        if name in case.places:
            own[name] = own[name] - first
    return own


def targets(sizes: list[int]) -> Tensor:
    """Another key of the same rank for each row."""
    ends = list(accumulate(sizes))
    cut = [(torch.arange(n) + 1) % n + end - n for n, end in zip(sizes, ends, strict=True) if n]
    return torch.cat(cut)


def views(B: int, V: int = 2, **more: Tensor) -> Inputs:
    return {"x": normal(V, B, D)} | more


def pairs(B: int, **more: Tensor) -> Inputs:
    return {"x": normal(B, D), "y": normal(B, D)} | more


def duplicates(B: int) -> Tensor:
    ids = torch.arange(B) % max(2, B - 2)
    ids[0] = -1
    return ids


def nt_xent(group, scale, bias, x, **kwargs):
    return sslops.nt_xent(x, temperature=1 / scale, group=group, **kwargs)


def info_nce(group, scale, bias, x, y, **kwargs):
    return sslops.info_nce(x, y, temperature=1 / scale, group=group, **kwargs)


def clip(group, scale, bias, x, y, **kwargs):
    return sslops.clip_loss(x, y, scale, group=group, **kwargs)


def sup_con(group, scale, bias, x, **kwargs):
    return sslops.sup_con(x, temperature=1 / scale, group=group, **kwargs)


def sigmoid(group, scale, bias, x, y, **kwargs):
    return sslops.sigmoid_loss(x, y, scale, bias, group=group, **kwargs)


def cpc(negatives):
    def call(group, scale, bias, x, y):
        own = torch.Generator().manual_seed(1)
        return sslops.cpc_loss(
            x, y, temperature=1 / scale, negatives=negatives, generator=own, group=group
        )

    return call


def sequences(B: int) -> Inputs:
    return {"x": normal(2, B, 4, D), "y": normal(B, 4, D)}


def using(call, **fixed):
    return lambda *args, **kwargs: call(*args, **kwargs, **fixed)


V1 = {"x": 1, "weights": 1}
CPC = {"axis": {"x": 1}}
CASES = {
    "nt_xent": Case(views, nt_xent, V1, trained=("x",)),
    "nt_xent three views": Case(lambda B: views(B, 3), nt_xent, V1, trained=("x",)),
    "nt_xent ids": Case(
        lambda B: views(B, ids=duplicates(B)), nt_xent, V1, trained=("x",)
    ),
    "nt_xent three views ids": Case(
        lambda B: views(B, 3, ids=duplicates(B)), nt_xent, V1, trained=("x",)
    ),
    "nt_xent weights": Case(
        lambda B: views(B, weights=normal(2, B).square()), nt_xent, V1, trained=("x", "weights")
    ),
    "nt_xent sum": Case(views, using(nt_xent, reduction="sum"), V1, trained=("x",)),
    "nt_xent none": Case(
        views, using(nt_xent, reduction="none"), V1, trained=("x",), rows=2
    ),
    "nt_xent dot products": Case(views, using(nt_xent, normalize=False), V1, trained=("x",)),
    "info_nce": Case(pairs, info_nce),
    "info_nce frozen keys": Case(pairs, info_nce, trained=("x",)),
    "info_nce frozen queries": Case(pairs, info_nce, trained=("y",)),
    "info_nce targets": Case(pairs, info_nce, places=("targets",)),
    "info_nce ids": Case(
        lambda B: pairs(B, query_ids=duplicates(B), key_ids=duplicates(B).flip(0)), info_nce
    ),
    "info_nce queue": Case(
        lambda B: pairs(B, queue=normal(9, D)), info_nce, {"queue": None}
    ),
    "info_nce weights": Case(
        lambda B: pairs(B, weights=normal(B).square()), info_nce, trained=("x", "y", "weights")
    ),
    "info_nce symmetric": Case(pairs, using(info_nce, symmetric=True)),
    "info_nce symmetric ids": Case(
        lambda B: pairs(B, query_ids=duplicates(B), key_ids=duplicates(B).flip(0)),
        using(info_nce, symmetric=True),
    ),
    "info_nce none": Case(pairs, using(info_nce, reduction="none"), rows=1),
    "clip": Case(pairs, clip),
    "clip frozen texts": Case(pairs, clip, trained=("x",)),
    "clip smoothing": Case(pairs, using(clip, label_smoothing=0.2)),
    "clip weights sum": Case(
        lambda B: pairs(B, weights=normal(B).square()), using(clip, reduction="sum")
    ),
    "clip ids": Case(
        lambda B: pairs(B, image_ids=duplicates(B), text_ids=duplicates(B).flip(0)), clip
    ),
    "sup_con": Case(
        lambda B: {"x": normal(B, D), "labels": labels(B)}, sup_con, trained=("x",)
    ),
    "sup_con inside": Case(
        lambda B: {"x": normal(B, D), "labels": labels(B)},
        using(sup_con, mean="inside"), trained=("x",),
    ),
    "sup_con views": Case(
        lambda B: {"x": normal(2, B, D), "labels": labels(B), "weights": normal(2, B).square()},
        sup_con, V1, trained=("x", "weights"),
    ),
    "sup_con views inside": Case(
        lambda B: views(B, labels=labels(B)), using(sup_con, mean="inside"), V1, trained=("x",)
    ),
    "sup_con nothing alike": Case(
        lambda B: {"x": normal(B, D), "labels": torch.arange(B)}, sup_con, trained=("x",)
    ),
    "sigmoid": Case(pairs, sigmoid),
    "sigmoid sum": Case(pairs, using(sigmoid, reduction="sum")),
    "sigmoid ids": Case(
        lambda B: pairs(B, image_ids=duplicates(B), text_ids=duplicates(B).flip(0)), sigmoid
    ),
    "cpc all": Case(sequences, cpc("all"), **CPC),
    "cpc sequence": Case(sequences, cpc("sequence"), **CPC),
    "cpc other": Case(sequences, cpc("other"), **CPC),
    "cpc drawn": Case(sequences, cpc(7), **CPC),
}  # fmt: skip


def inputs_of(case: Case, sizes: list[int], dtype: torch.dtype) -> tuple[Inputs, Tensor, Tensor]:
    """Tensors of all ranks, scale and bias, the same in every process."""
    torch.manual_seed(len(sizes))
    inputs = case.make(sum(sizes))
    if "targets" in case.places:
        inputs["targets"] = targets(sizes)
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    scale, bias = torch.tensor(4.0, dtype=dtype), torch.tensor(-1.0, dtype=dtype)
    return inputs, scale, bias


def run(case: Case, inputs: Inputs, scale: Tensor, bias: Tensor, group, share: Tensor) -> Inputs:
    """Loss and gradients of one process; `share` weighs the rows of reduction="none"."""
    inputs = dict(inputs)
    for name in case.trained:
        inputs[name] = inputs[name].clone().requires_grad_()
    log_scale = scale.log().requires_grad_()
    bias = bias.clone().requires_grad_()
    loss = case.call(group, log_scale.exp(), bias, **inputs)
    value = (loss * share).sum() if case.rows else loss
    value.backward()
    found = {"loss": loss.detach(), "scale": log_scale.grad}
    if bias.grad is not None:
        found["bias"] = bias.grad
    return found | {name: inputs[name].grad for name in case.trained}


def spawned(work: Callable, folder: Path) -> list:
    """What `work(rank, groups)` returns in each of four processes; groups by their size."""
    spawn(_worker, work, str(folder), count=4)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(4)]


def _worker(rank: int, work: Callable, folder: str) -> None:
    dist.init_process_group("gloo", rank=rank, world_size=4, timeout=timedelta(seconds=60))
    groups = {1: dist.new_group([0]), 2: dist.new_group([0, 1]), 4: dist.group.WORLD}
    torch.save(work(rank, groups), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
