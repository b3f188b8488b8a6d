"""Every loss, the queue and the averages, against what a user writes: `make bench`.

The headlines are training steps as they are common; the sweep shows that no size is slower.
nt_xent has bench/bench_nt_xent.py to itself.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from bench import memory
from bench.cases import OPS, Case, make_case
from bench.check import Truth, judge, truth
from bench.harness import interleave, record
from bench.providers import PROVIDERS, Skip
from bench.timing import step

COMMAND = "make bench"
# op, size, dtype, rounds, providers besides this package and eager
HEADLINES = [
    ("moco", "256x65536x128", "float32", 15, ("compile", "lightly")),
    ("moco", "256x65536x128", "float32/bfloat16", 15, ()),
    ("moco", "256x65536x128", "bfloat16", 15, ()),
    ("clip_loss", "8192x512", "float32", 5, ("chunked", "open_clip", "linear_cross_entropy")),
    ("sup_con", "4096x128", "float32", 9, ("compile", "pytorch-metric-learning")),
    ("info_nce", "8192x128", "float32", 7, ("chunked", "info-nce-pytorch", "linear_cross_entropy")),
    ("sigmoid_loss", "8192x512", "float32", 5, ("chunked", "open_clip")),
    ("cpc_loss", "12x8x128x256", "float32", 9, ("compile",)),
    ("ema_update_", "64", "float32", 25, ("foreach_lerp", "lightly")),
    ("ema_update_", "64", "float32/bfloat16", 25, ("foreach_lerp", "lightly")),
    ("enqueue_", "256x65536x128", "float32", 101, ()),
]
# small to large; the whole sweep stays under five minutes on two cores
SIZES = {
    "moco": ("32x256x32", "64x4096x128", "256x16384x128"),
    "clip_loss": ("32x64", "256x512", "1024x512", "2048x768"),
    "sup_con": ("32x32", "256x128", "1024x128", "2048x256"),
    "info_nce": ("32x32", "256x128", "1024x128", "2048x512"),
    "sigmoid_loss": ("32x64", "256x512", "1024x512", "2048x768"),
    "cpc_loss": ("2x4x16x32", "4x8x32x64", "8x8x64x256"),
    "ema_update_": ("4", "16", "64"),
    "enqueue_": ("32x256x32", "256x4096x128", "1024x65536x256"),
}
SWEEP = [
    (op, size, dtype)
    for op, sizes in SIZES.items()
    for size in sizes
    for dtype in ("float32", "bfloat16")
]
MEMORY = [("clip_loss", "8192x512", provider) for provider in ("sslops", "eager", "chunked")] + [
    (op, size, provider)
    for op, size in (("moco", "256x65536x128"), ("info_nce", "8192x128"))
    for provider in ("sslops", "eager")
]


def rounds_for(case: Case) -> int:
    """Many where a step is short."""
    op = case.op
    work = OPS[op].flop(case.size) or 10 * OPS[op].bytes(case)
    return 101 if work < 1 << 26 else 25 if work < 1 << 31 else 5


def admit(case: Case, name: str, expected: Truth) -> tuple[Callable[[], object] | None, float, str]:
    """(a step of this provider, the error of its gradient, why it is left out)."""
    provider = PROVIDERS[name]
    why = provider.available(case.device)
    if why:
        return None, 0.0, why
    try:
        job = provider.ops[case.op](case)
    except Skip as reason:
        return None, 0.0, str(reason)
    verdict = judge(case, job, expected)
    if verdict.wrong:
        return None, verdict.grad_error, f"wrong: {verdict.wrong}"
    return partial(step, case, job), verdict.grad_error, ""


def report(
    benchmark: Any,
    kind: str,
    op: str,
    size: str,
    dtype: str,
    others: tuple[str, ...],
    rounds: int | None = None,
) -> None:
    """Time this package beside `others`, those that are here and right, and record the row."""
    case = make_case(op, size, dtype, "cpu")
    cases = {name: case for name in ("sslops", *others)}
    if kind == "headline" and dtype != "float32":
        cases["eager float32"] = make_case(op, size, "float32", "cpu")  # what most people run
    expected, jobs, errors, left_out = truth(case), {}, {}, {}
    for label, its in cases.items():
        answer = expected if its is case else truth(its)
        job, errors[label], why = admit(its, label.split()[0], answer)
        if job is None:
            left_out[label] = why
        else:
            jobs[label] = job
    ours = left_out.get("sslops", "")
    assert not ours.startswith("wrong"), ours
    if ours:
        pytest.skip(ours)
    rounds = rounds or rounds_for(case)
    stats = interleave(jobs, rounds=rounds, first=benchmark.pedantic)
    base = stats["sslops"]["median_ms"]
    ratios = {
        f"{name} / sslops": round(times["median_ms"] / base, 2)
        for name, times in stats.items()
        if name != "sslops"
    }
    benchmark.extra_info.update(ratios)
    print(f"\n{kind} {op} {size} {dtype}: {base:.4g} ms, {ratios}")
    record(
        "losses", COMMAND, op=op, case=kind, size=size, dtype=dtype, pass_="step", rounds=rounds,
        times=stats, ratios=ratios, grad_errors=errors, left_out=left_out,
    )  # fmt: skip


@pytest.mark.parametrize(("op", "size", "dtype", "rounds", "others"), HEADLINES)
def test_headline(
    benchmark: Any, op: str, size: str, dtype: str, rounds: int, others: tuple[str, ...]
) -> None:
    report(benchmark, "headline", op, size, dtype, ("eager", *others), rounds)


@pytest.mark.parametrize(("op", "size", "dtype"), SWEEP)
def test_never_slower(benchmark: Any, op: str, size: str, dtype: str) -> None:
    """Against eager PyTorch in the same dtype."""
    report(benchmark, "sweep", op, size, dtype, ("eager",))


@pytest.mark.parametrize(("op", "size", "provider"), MEMORY)
def test_memory(benchmark: Any, op: str, size: str, provider: str) -> None:
    """Each in a fresh process."""
    try:
        case = make_case(op, size, "float32", torch.device("cpu"))
        PROVIDERS[provider].ops[op](case)
    except Skip as reason:
        pytest.skip(str(reason))
    extra = benchmark.pedantic(lambda: memory.on_cpu(case, provider), rounds=1)
    assert extra is not None
    row = {"size": size, "dtype": "float32", "implementation": provider}
    row["extra_mib"] = round(extra / (1 << 20), 1)
    print(f"\n{op} {row}")
    record("memory", COMMAND, op=op, case="memory", **row)
