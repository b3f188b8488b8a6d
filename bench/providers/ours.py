"""This package, once for each back end that can be chosen."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import sslops
from bench.cases import MOCO_TEMPERATURE, MOMENTUM, TEMPERATURE, Case
from bench.providers.base import Job, Provider, Skip
from bench.providers.eager import averages, numbered


def _tensor(result: object) -> Tensor:
    """The loss alone: no statistics were asked for."""
    assert isinstance(result, Tensor)
    return result


def _op(name: str) -> Any:
    if not hasattr(sslops, name):
        raise Skip(f"sslops {sslops.__version__} has no {name}")
    return getattr(sslops, name)


def _cpc(case: Case) -> Job:
    x = case.inputs

    def loss() -> Tensor:
        return _tensor(sslops.cpc_loss(x["predictions"], x["targets"], temperature=TEMPERATURE))

    return Job(loss)


def _nt_xent(case: Case) -> Job:
    return Job(lambda: _tensor(sslops.nt_xent(case.inputs["z"], temperature=TEMPERATURE)))


def _info_nce(case: Case) -> Job:
    x = case.inputs
    return Job(lambda: _tensor(sslops.info_nce(x["queries"], x["keys"], temperature=TEMPERATURE)))


def _clip(case: Case) -> Job:
    x = case.inputs
    return Job(lambda: _tensor(sslops.clip_loss(x["image"], x["text"], x["scale"])))


def _sup_con(case: Case) -> Job:
    x = case.inputs
    return Job(lambda: _tensor(sslops.sup_con(x["z"], x["labels"], temperature=TEMPERATURE)))


def _sigmoid(case: Case) -> Job:
    x = case.inputs
    return Job(lambda: _tensor(sslops.sigmoid_loss(x["image"], x["text"], x["scale"], x["bias"])))


def _enqueue(case: Case) -> Job:
    enqueue = _op("enqueue_")
    keys, queue = case.inputs["keys"], case.inputs["queue"].clone()
    pointer = torch.zeros((), dtype=torch.int64, device=case.device)
    return Job(
        after=lambda: enqueue(queue, pointer, keys, normalize=True), state=lambda: {"queue": queue}
    )


def _moco(case: Case) -> Job:
    enqueue = _enqueue(case)
    x, queue = case.inputs, enqueue.state()["queue"]

    def loss() -> Tensor:
        return _tensor(
            sslops.info_nce(x["queries"], x["keys"], queue=queue, temperature=MOCO_TEMPERATURE)
        )

    return replace(enqueue, loss=loss)


def _ema(case: Case) -> Job:
    update = _op("ema_update_")
    targets, sources = averages(case)
    return Job(after=lambda: update(targets, sources, MOMENTUM), state=lambda: numbered(targets))


OPS: dict[str, Callable[[Case], Job]] = {
    "nt_xent": _nt_xent,
    "info_nce": _info_nce,
    "moco": _moco,
    "clip_loss": _clip,
    "sup_con": _sup_con,
    "sigmoid_loss": _sigmoid,
    "cpc_loss": _cpc,
    "ema_update_": _ema,
    "enqueue_": _enqueue,
}


NO_CUDA = ("sup_con", "sigmoid_loss")  # csrc/cuda has no kernels of them


def ours(backend: str) -> Provider:
    """The provider that runs everything on one back end."""

    def adapter(build: Callable[[Case], Job]) -> Callable[[Case], Job]:
        return lambda case: replace(build(case), context=lambda: sslops.use_backend(backend))

    return Provider(
        {op: adapter(OPS[op]) for op in OPS if backend != "cuda" or op not in NO_CUDA},
        package="sslops",
        needs=("triton",) if backend == "triton" else (),
        cuda=backend in ("triton", "cuda"),
    )
