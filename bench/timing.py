"""Times: jobs take turns round by round, on the host's clock or on the device's."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.cases import Case
from bench.providers import Job

MODES = ("both", "forward", "backward", "graph")
FLUSH_BYTES = 1 << 28  # more than the L2 of any GPU


@dataclass(frozen=True)
class Run:
    """What one round does: `prepare` untimed, then `timed` with its result."""

    prepare: Callable[[], Any]
    timed: Callable[[Any], object]
    context: Callable[[], AbstractContextManager[Any]]


def gradients(case: Case, loss: Tensor) -> tuple[Tensor | None, ...]:
    """By the case's leaves; None for those that an implementation does not differentiate by."""
    return torch.autograd.grad(loss, list(case.leaves.values()), allow_unused=True)


def step(case: Case, job: Job) -> object:
    """Everything: forward, backward, and what follows in a training step."""
    result = None if job.loss is None else gradients(case, job.loss())
    if job.after is not None:
        job.after()
    return result


def make_run(case: Case, job: Job, mode: str) -> Run:
    """The part of a step that `mode` names."""
    loss = job.loss
    if mode in ("forward", "backward") and loss is None:
        raise ValueError(f"bench: {case.op} has no forward and backward pass, got mode {mode}")
    if mode == "forward":
        return Run(lambda: None, lambda _: loss and loss(), job.context)
    if mode == "backward":
        return Run(lambda: loss and loss(), lambda made: gradients(case, made), job.context)
    if mode == "graph":
        if job.waits:  # a capture that breaks off leaves its stream to what comes after it
            raise ValueError("bench: a CUDA graph cannot hold a step that waits for the device")
        graph = capture(case, job)
        return Run(lambda: None, lambda _: graph.replay(), job.context)
    return Run(lambda: None, lambda _: step(case, job), job.context)


def capture(case: Case, job: Job) -> torch.cuda.CUDAGraph:
    """A step as a CUDA graph: its replay shows the kernels without the launches."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with job.context():
        with torch.cuda.stream(stream):
            for _ in range(3):
                step(case, job)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step(case, job)
    return graph


def measure(
    runs: Mapping[str, Run], *, device: torch.device, rounds: int, seconds: float, flush: bool
) -> dict[str, dict[str, float]]:
    """Times of each run in milliseconds: p20, p50, p80, min, and how many rounds there were.

    Every run is done once a round, in an order that rotates, so that a slow moment of the machine
    meets all of them. The first two rounds are not counted; the second one's duration decides how
    many rounds `seconds` allow, at least three.

    Args:
        runs: name -> what to time.
        device: of the runs; on CUDA the times are those between two events, and nothing waits
            for the device until the last round.
        rounds: at most.
        seconds: that all rounds may take together.
        flush: overwrite the L2 cache before every run (CUDA).
    """
    clock = _Events(flush) if device.type == "cuda" else _Wall()
    names = list(runs)
    for n in range(2):
        start = time.perf_counter()
        for name in names:
            clock.time(name, runs[name], keep=False)
        clock.wait()
        spent = time.perf_counter() - start
        if n == 0:
            gc.collect()
    count = max(3, min(rounds, int(seconds / max(spent, 1e-6))))
    for n in range(count):
        for k in range(len(names)):
            name = names[(n + k) % len(names)]
            clock.time(name, runs[name], keep=True)
    return {name: summary(times) for name, times in clock.results().items()}


def summary(times: list[float]) -> dict[str, float]:
    """Quantiles of times in milliseconds."""
    cuts = statistics.quantiles(times, n=10, method="inclusive")
    return {
        "p20_ms": round(cuts[1], 5),
        "p50_ms": round(statistics.median(times), 5),
        "p80_ms": round(cuts[7], 5),
        "min_ms": round(min(times), 5),
        "rounds": len(times),
    }


class _Wall:
    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}

    def time(self, name: str, run: Run, keep: bool) -> None:
        with run.context():
            made = run.prepare()
            start = time.perf_counter()
            run.timed(made)
            spent = time.perf_counter() - start
        if keep:
            self.times.setdefault(name, []).append(spent * 1e3)

    def wait(self) -> None:
        return None

    def results(self) -> dict[str, list[float]]:
        return self.times


class _Events:
    def __init__(self, flush: bool) -> None:
        self.pairs: dict[str, list[tuple[Any, Any]]] = {}
        size = FLUSH_BYTES if flush else 0
        self.cache = torch.empty(size, dtype=torch.uint8, device="cuda")

    def time(self, name: str, run: Run, keep: bool) -> None:
        start: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        with run.context():
            made = run.prepare()
            self.cache.zero_()  # also gives the host a head start over the device
            start.record()
            run.timed(made)
            end.record()
        if keep:
            self.pairs.setdefault(name, []).append((start, end))

    def wait(self) -> None:
        torch.cuda.synchronize()

    def results(self) -> dict[str, list[float]]:
        self.wait()
        return {
            name: [start.elapsed_time(end) for start, end in pairs]
            for name, pairs in self.pairs.items()
        }
