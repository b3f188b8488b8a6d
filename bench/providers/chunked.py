"""Plain PyTorch that bounds its memory: some rows at a time, recomputed in the backward pass.

In float64 this is also what every implementation is checked against.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bench.cases import MOCO_TEMPERATURE, MOMENTUM, TEMPERATURE, Case
from bench.providers.base import Job, Provider
from bench.providers.eager import moco_job, numbered

CHUNK = {"cpu": 1 << 21, "cuda": 1 << 28}  # logits held at a time


def _sum(block: Callable[..., Tensor], rows: int, columns: int, *shared: Any) -> Tensor:
    """Sum of `block(index of rows, *shared)` over all rows, each block under a checkpoint."""
    device = shared[0].device
    size = max(1, CHUNK.get(device.type, 1 << 21) // columns)
    parts: Iterator[Tensor] = (
        checkpoint(
            block,
            torch.arange(start, min(rows, start + size), device=device),
            *shared,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for start in range(0, rows, size)
    )
    return torch.stack(list(parts)).sum()


def _cross_entropy(rows: Tensor, x: Tensor, y: Tensor, targets: Tensor, scale: Any) -> Tensor:
    logits = (x[rows] @ y.T) * scale
    return F.cross_entropy(logits, targets[rows], reduction="sum")


def _nt_xent(rows: Tensor, x: Tensor) -> Tensor:
    logits = x[rows] @ x.T / TEMPERATURE
    logits = logits.scatter(1, rows[:, None], float("-inf"))
    return F.cross_entropy(logits, (rows + len(x) // 2) % len(x), reduction="sum")


def _moco(rows: Tensor, q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
    positive = (q[rows] * k[rows]).sum(dim=1, keepdim=True)
    logits = torch.cat([positive, q[rows] @ queue.T], dim=1) / MOCO_TEMPERATURE
    return F.cross_entropy(logits, torch.zeros_like(rows), reduction="sum")


def _sup_con(rows: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    logits = (x[rows] @ x.T / TEMPERATURE).scatter(1, rows[:, None], float("-inf"))
    positive = (labels[rows, None] == labels).scatter(1, rows[:, None], False)
    log_p = logits.log_softmax(dim=1)
    return -(torch.where(positive, log_p, 0).sum(dim=1) / positive.sum(dim=1)).sum()


def _sigmoid(rows: Tensor, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    logits = x[rows] @ y.T * scale + bias
    sign = -torch.ones_like(logits).scatter(1, rows[:, None], -1.0)
    return -F.logsigmoid(sign * logits).sum()


def nt_xent(z: Tensor) -> Tensor:
    return _sum(_nt_xent, len(z), len(z), F.normalize(z, dim=1)) / len(z)


def info_nce(queries: Tensor, keys: Tensor) -> Tensor:
    x, y = F.normalize(queries, dim=1), F.normalize(keys, dim=1)
    index = torch.arange(len(x), device=x.device)
    return _sum(_cross_entropy, len(x), len(y), x, y, index, 1 / TEMPERATURE) / len(x)


def moco(queries: Tensor, keys: Tensor, queue: Tensor) -> Tensor:
    q, k = F.normalize(queries, dim=1), F.normalize(keys, dim=1)
    return _sum(_moco, len(q), len(queue), q, k, queue.to(q.dtype)) / len(q)


def clip_loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    x, y = F.normalize(image, dim=1), F.normalize(text, dim=1)
    N, index = len(x), torch.arange(len(x), device=x.device)
    both = _sum(_cross_entropy, N, N, x, y, index, scale) + _sum(
        _cross_entropy, N, N, y, x, index, scale
    )
    return both / (2 * N)


def sup_con(z: Tensor, labels: Tensor) -> Tensor:
    return _sum(_sup_con, len(z), len(z), F.normalize(z, dim=1), labels) / len(z)


def sigmoid_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    x, y = F.normalize(image, dim=1), F.normalize(text, dim=1)
    return _sum(_sigmoid, len(x), len(y), x, y, scale, bias) / len(x)


def cpc_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    B, T, _ = targets.shape
    every = F.normalize(targets, dim=2).flatten(0, 1)
    index = torch.arange(B * T, device=targets.device).view(B, T)
    total = []
    for k, step in enumerate(F.normalize(predictions, dim=3), start=1):
        x = step[:, : T - k].flatten(0, 1)
        shared = (x, every, index[:, k:].flatten(), 1 / TEMPERATURE)
        total.append(_sum(_cross_entropy, len(x), B * T, *shared) / len(x))
    return torch.stack(total).mean()


LOSSES: dict[str, Callable[..., Tensor]] = {
    "nt_xent": nt_xent,
    "info_nce": info_nce,
    "moco": moco,
    "clip_loss": clip_loss,
    "sup_con": sup_con,
    "sigmoid_loss": sigmoid_loss,
    "cpc_loss": cpc_loss,
}


def expected_state(case: Case) -> dict[str, Tensor]:
    """What one step leaves in a queue or in the averages, in the dtype of the case's inputs."""
    x = case.inputs
    if case.op == "ema_update_":
        names = [name.removeprefix("target") for name in x if name.startswith("target")]
        return numbered(
            [MOMENTUM * x[f"target{n}"] + (1 - MOMENTUM) * x[f"source{n}"] for n in names]
        )
    if case.op in ("moco", "enqueue_"):
        keys = F.normalize(x["keys"], dim=1)
        return {"queue": torch.cat([keys, x["queue"][len(keys) :].to(keys.dtype)])}
    return {}


def _chunked(loss: Callable[..., Tensor]) -> Callable[[Case], Job]:
    def build(case: Case) -> Job:
        if loss is moco:
            return moco_job(case, lambda q, k, queue: moco(q, k, queue.T))
        return Job(lambda: loss(**case.inputs))

    return build


CHUNKED = Provider({op: _chunked(loss) for op, loss in LOSSES.items()})
