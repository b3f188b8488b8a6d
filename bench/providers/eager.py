"""What users write today, in plain PyTorch, and the same through torch.compile."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases import MOCO_TEMPERATURE, MOMENTUM, TEMPERATURE, Case
from bench.providers.base import Job, Provider, Skip
from sslops._compile_cache import separate_by_processor


def nt_xent(z: Tensor) -> Tensor:
    x = F.normalize(z, dim=1)
    logits = x @ x.T / TEMPERATURE
    logits.fill_diagonal_(float("-inf"))
    index = torch.arange(len(z), device=z.device)
    return F.cross_entropy(logits, (index + len(z) // 2) % len(z))


def info_nce(queries: Tensor, keys: Tensor) -> Tensor:
    logits = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T / TEMPERATURE
    return F.cross_entropy(logits, torch.arange(len(queries), device=queries.device))


def moco(queries: Tensor, keys: Tensor, queue: Tensor) -> Tensor:
    """As in MoCo's repository: the queue is [D, K], and copied because it will be overwritten."""
    q, k = F.normalize(queries, dim=1), F.normalize(keys, dim=1)
    positive = torch.einsum("nd,nd->n", q, k).unsqueeze(1)
    negative = torch.einsum("nd,dk->nk", q, queue.clone().to(q.dtype))
    logits = torch.cat([positive, negative], dim=1) / MOCO_TEMPERATURE
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))


def clip_loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    logits = scale * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    labels = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def sup_con(z: Tensor, labels: Tensor) -> Tensor:
    x = F.normalize(z, dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = (labels[:, None] == labels) & ~itself
    log_p = (x @ x.T / TEMPERATURE).masked_fill(itself, float("-inf")).log_softmax(dim=1)
    return -(torch.where(positive, log_p, 0).sum(dim=1) / positive.sum(dim=1)).mean()


def sigmoid_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    logits = scale * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T + bias
    sign = 2 * torch.eye(len(image), device=image.device, dtype=logits.dtype) - 1
    return -F.logsigmoid(sign * logits).sum() / len(image)


def cpc_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    B, T, _ = targets.shape
    every = F.normalize(targets, dim=2).flatten(0, 1)
    index = torch.arange(B * T, device=targets.device).view(B, T)
    losses = []
    for k, step in enumerate(F.normalize(predictions, dim=3), start=1):
        logits = step[:, : T - k].flatten(0, 1) @ every.T / TEMPERATURE
        losses.append(F.cross_entropy(logits, index[:, k:].flatten()))
    return torch.stack(losses).mean()


LOSSES: dict[str, Callable[..., Tensor]] = {
    "nt_xent": nt_xent,
    "info_nce": info_nce,
    "clip_loss": clip_loss,
    "sup_con": sup_con,
    "sigmoid_loss": sigmoid_loss,
    "cpc_loss": cpc_loss,
}


class ColumnQueue:
    """MoCo's queue: [D, K], the pointer read on the host, keys written as columns."""

    def __init__(self, queue: Tensor, batch: int) -> None:
        if len(queue) % batch:
            raise Skip("the queue must be a multiple of the batch")
        self.queue = queue.detach().T.contiguous()
        self.pointer = torch.zeros(1, dtype=torch.long, device=queue.device)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Write the normalised keys where the oldest are."""
        keys = F.normalize(keys, dim=1)
        start, K = int(self.pointer), self.queue.shape[1]
        self.queue[:, start : start + len(keys)] = keys.T
        self.pointer[0] = (start + len(keys)) % K

    def state(self) -> dict[str, Tensor]:
        """The queue as [K, D]."""
        return {"queue": self.queue.T}


def moco_job(case: Case, loss: Callable[..., Any] = moco) -> Job:
    x = case.inputs
    queue = ColumnQueue(x["queue"], len(x["keys"]))
    return Job(
        lambda: loss(x["queries"], x["keys"], queue.queue),
        lambda: queue.enqueue(x["keys"]),
        queue.state,
        waits=True,
    )


def enqueue_job(case: Case) -> Job:
    queue = ColumnQueue(case.inputs["queue"], len(case.inputs["keys"]))
    return Job(after=lambda: queue.enqueue(case.inputs["keys"]), state=queue.state, waits=True)


def averages(case: Case) -> tuple[list[Tensor], list[Tensor]]:
    """Copies of the averages, and the weights."""
    x = case.inputs
    return (
        [x[name].clone() for name in x if name.startswith("target")],
        [x[name] for name in x if name.startswith("source")],
    )


def numbered(tensors: list[Tensor]) -> dict[str, Tensor]:
    return {f"target{n}": tensor for n, tensor in enumerate(tensors)}


def ema_job(case: Case) -> Job:
    """As in MoCo's repository, parameter by parameter."""
    targets, sources = averages(case)

    def update() -> None:
        for n, (target, source) in enumerate(zip(targets, sources, strict=True)):
            targets[n] = target * MOMENTUM + source * (1 - MOMENTUM)

    return Job(after=update, state=lambda: numbered(targets))


def foreach_job(case: Case) -> Job:
    targets, sources = averages(case)
    weight = 1 - MOMENTUM

    def update() -> None:
        cast = [s.to(t.dtype) for s, t in zip(sources, targets, strict=True)]
        torch._foreach_lerp_(targets, cast, weight)

    return Job(after=update, state=lambda: numbered(targets))


def _plain(loss: Callable[..., Tensor]) -> Callable[[Case], Job]:
    return lambda case: Job(lambda: loss(**case.inputs))


def _compiled(loss: Callable[..., Tensor]) -> Callable[[Case], Job]:
    def build(case: Case) -> Job:
        torch._dynamo.reset()
        separate_by_processor()
        fast = torch.compile(loss, dynamic=False)
        return moco_job(case, fast) if loss is moco else Job(lambda: fast(**case.inputs))

    return build


EAGER = Provider(
    {op: _plain(loss) for op, loss in LOSSES.items()}
    | {"moco": moco_job, "enqueue_": enqueue_job, "ema_update_": ema_job}
)
COMPILE = Provider({op: _compiled(loss) for op, loss in (LOSSES | {"moco": moco}).items()})
FOREACH = Provider({"ema_update_": foreach_job})
