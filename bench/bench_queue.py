"""enqueue_ alone, against the enqueue of MoCo's code and of lightly's memory bank: `make bench`.

Beside what bench_losses.py measures: many batches in one timing, mixed dtypes, batches up to the
whole queue, and the bank, written here after lightly 1.6, memory_bank.py: position read on the
host, then slices. Users of both peers normalise the keys, so that is part of their time.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bench.cases import Case, make_case
from bench.check import judge, truth
from bench.harness import interleave, record
from bench.providers import PROVIDERS, Job

COMMAND = "make bench"
K = 65536
# B, D: a small batch; MoCo's; a batch of eight processes; MoCo v3's width; the whole queue
SHAPES = [(32, 128), (256, 128), (2048, 128), (4096, 256), (65536, 128)]
REPEATS = 20  # of a batch in one timing, as one takes microseconds


def lightly(case: Case) -> Job:
    """Rows of [K, D]; what does not fit before the end is dropped."""
    keys, bank = case.inputs["keys"], case.inputs["queue"].clone()
    position = torch.zeros(1, dtype=torch.int64)

    def enqueue() -> None:
        rows = F.normalize(keys, dim=1)
        start, B = int(position), len(rows)
        if start + B >= K:
            bank[start:] = rows[: K - start].detach()
            position[0] = 0
        else:
            bank[start : start + B] = rows.detach()
            position[0] = start + B

    return Job(after=enqueue, state=lambda: {"queue": bank})


FORMS: dict[str, Callable[[Case], Job]] = {
    "sslops": PROVIDERS["sslops"].ops["enqueue_"],
    "moco": PROVIDERS["eager"].ops["enqueue_"],
    "lightly": lightly,
}


def admit(case: Case) -> dict[str, Callable[[], object]]:
    """One batch of each form, all of which are right."""
    # beside stored keys a few new ones would be within the tolerance
    case = replace(case, inputs={**case.inputs, "queue": torch.zeros_like(case.inputs["queue"])})
    expected, jobs = truth(case), {}
    for name, form in FORMS.items():
        job = form(case)
        verdict = judge(case, job, expected)
        assert job.after is not None
        assert not verdict.wrong, f"{name}: {verdict.wrong}"
        jobs[name] = job.after
    return jobs


def repeated(enqueue: Callable[[], object], times: int) -> Callable[[], None]:
    """Many batches, so that the clock's own time does not count."""

    def run() -> None:
        for _ in range(times):
            enqueue()

    return run


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("B", "D"), SHAPES)
def test_enqueue(benchmark: Any, B: int, D: int, dtype: str, stored: str) -> None:
    times = max(1, REPEATS * 256 // B)
    jobs = admit(make_case("enqueue_", f"{B}x{K}x{D}", f"{dtype}/{stored}", "cpu"))
    stats = interleave(
        {name: repeated(job, times) for name, job in jobs.items()},
        rounds=31,
        first=benchmark.pedantic,
    )
    micros = {name: round(s["min_ms"] * 1e3 / times, 2) for name, s in stats.items()}
    ratios = {f"{name} / sslops": round(us / micros["sslops"], 2) for name, us in micros.items()}
    del ratios["sslops / sslops"]
    names = {"keys": dtype, "queue": stored}
    benchmark.extra_info.update(ratios)
    print(f"\nenqueue B {B}, D {D}, {names}: {micros} us, {ratios}")
    record(
        "queue", COMMAND, op="enqueue_", case="enqueue", B=B, D=D, K=K, **names,
        min_us=micros, ratios=ratios,
    )  # fmt: skip
    assert ratios["moco / sslops"] >= 0.9
    assert ratios["lightly / sslops"] >= 0.9
