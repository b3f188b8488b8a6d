"""Moving average of ResNet-50 against what training scripts do: `make bench`.

The limit is a copy of the parameters: 8 bytes an element where the average moves 12.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import sslops
from bench.harness import interleave, record

MOMENTUM = 0.999
COMMAND = "make bench"


def resnet50_shapes() -> list[tuple[int, ...]]:
    """The 161 parameters of He et al. 2015, table 1 with bottlenecks: 25.6 million elements."""

    def convolution(features: int, outputs: int, size: int) -> list[tuple[int, ...]]:
        return [(outputs, features, size, size), (outputs,), (outputs,)]  # with its batch norm

    shapes, features = convolution(3, 64, 7), 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += convolution(features, width, 1) + convolution(width, width, 3)
            shapes += convolution(width, 4 * width, 1)
            if block == 0:
                shapes += convolution(features, 4 * width, 1)
            features = 4 * width
    return [*shapes, (1000, features), (1000,)]


def make(dtype: torch.dtype, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    return [torch.randn(shape).to(dtype) for shape in shapes]


def moco(targets: list[Tensor], sources: list[Tensor]) -> None:
    """The loop of moco's builder, and of most scripts since."""
    for t, s in zip(targets, sources, strict=True):
        t.data = t.data * MOMENTUM + s.data * (1.0 - MOMENTUM)


def lightly(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Two passes over lists, also of mixed dtypes."""
    torch._foreach_mul_(targets, MOMENTUM)
    torch._foreach_add_(targets, sources, alpha=1.0 - MOMENTUM)


def in_place(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Two passes a tensor, the second while the tensor may still be in the cache."""
    for t, s in zip(targets, sources, strict=True):
        t.mul_(MOMENTUM).add_(s, alpha=1.0 - MOMENTUM)


def lerp(targets: list[Tensor], sources: list[Tensor]) -> None:
    """The least that eager PyTorch can do where dtypes agree."""
    torch._foreach_lerp_(targets, sources, 1.0 - MOMENTUM)


def stochastic(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Stochastic rounding of bfloat16 in eager passes: float32, noise in the low bits, cut."""
    for t, s in zip(targets, sources, strict=True):
        mean = t.float().lerp_(s.float(), 1.0 - MOMENTUM).view(torch.int32)
        noise = torch.randint(1 << 16, mean.shape, dtype=torch.int32)
        t.copy_(mean.add_(noise).bitwise_and_(-(1 << 16)).view(torch.float32))


def ours(targets: list[Tensor], sources: list[Tensor]) -> None:
    """The package's op."""
    sslops.ema_update_(targets, sources, MOMENTUM)


def at_random(targets: list[Tensor], sources: list[Tensor]) -> None:
    """The package's op, rounding at random."""
    sslops.ema_update_(targets, sources, MOMENTUM, stochastic_rounding=True)


def check(form: Callable[..., None], target: torch.dtype, source: torch.dtype) -> None:
    """A fast wrong answer is not a result. Sources are large, or bfloat16 would hide the step."""
    t, s = make(target, [(300, 7), (5,)]), [100 * each for each in make(source, [(300, 7), (5,)])]
    step = [(1.0 - MOMENTUM) * each.double() for each in s]  # moco's rounds it in their dtype
    expected = [MOMENTUM * each.double() + move for each, move in zip(t, step, strict=True)]
    form(t, s)
    for mean, exact, move in zip(t, expected, step, strict=True):
        allowed = 4 * torch.finfo(target).eps + torch.finfo(source).eps * move.abs()
        assert ((mean.double() - exact).abs() <= allowed).all(), form.__name__


def report(
    benchmark: Any, case: str, jobs: Mapping[str, Callable[[], object]], rounds: int, **row: Any
) -> None:
    stats = interleave(jobs, rounds=rounds, first=benchmark.pedantic)
    median = stats["sslops"]["median_ms"]
    ratios = {f"{name} / sslops": round(s["median_ms"] / median, 2) for name, s in stats.items()}
    del ratios["sslops / sslops"]
    benchmark.extra_info.update(row | ratios)
    print(f"\n{case} {row}: {median:.3f} ms, {ratios}")
    record("ema", COMMAND, op="ema_update_", case=case, rounds=rounds, **row, times=stats,
           ratios=ratios)  # fmt: skip


def times(repeat: int, form: Callable[..., None], t: list[Tensor], s: list[Tensor]) -> None:
    for _ in range(repeat):
        form(t, s)


def against(
    forms: list[Callable[..., None]], t: list[Tensor], s: list[Tensor], repeat: int = 1
) -> dict[str, Callable[[], object]]:
    """Each way on its own targets, as moco's replaces them, and only if it is right."""
    for form in (ours, *forms):
        check(form, t[0].dtype, s[0].dtype)
    jobs: dict[str, Callable[[], object]] = {"sslops": partial(times, repeat, ours, t, s)}
    for form in forms:
        jobs[form.__name__] = partial(times, repeat, form, [each.clone() for each in t], s)
    return jobs


def test_resnet50(benchmark: Any) -> None:
    """float32, against every usual form and a plain copy."""
    shapes = resnet50_shapes()
    t, s = (make(torch.float32, shapes) for _ in range(2))
    jobs = against([moco, lightly, in_place, lerp], t, s)
    into = [torch.empty_like(each) for each in t]
    jobs["copy"] = partial(torch._foreach_copy_, into, s)
    report(benchmark, "resnet50", jobs, 41, target="float32", source="float32")


def test_mixed(benchmark: Any) -> None:
    """A float32 average of a bfloat16 network."""
    shapes = resnet50_shapes()
    t, s = make(torch.float32, shapes), make(torch.bfloat16, shapes)
    jobs = against([moco, lightly, in_place], t, s)
    report(benchmark, "resnet50", jobs, 21, target="float32", source="bfloat16")


def test_bfloat16(benchmark: Any) -> None:
    """A bfloat16 average, rounded at random; eager PyTorch also without that, as a limit."""
    shapes = resnet50_shapes()
    t, s = (make(torch.bfloat16, shapes) for _ in range(2))
    forms: dict[str, Callable[..., None]] = {
        "sslops": at_random,
        "sslops, to nearest": ours,
        "stochastic": stochastic,
        "lerp, to nearest": lerp,
    }
    for form in forms.values():
        check(form, torch.bfloat16, torch.bfloat16)
    jobs = {name: partial(form, t, s) for name, form in forms.items()}
    report(benchmark, "resnet50 stochastic", jobs, 11, target="bfloat16", source="bfloat16")


@pytest.mark.parametrize("number", [1, 4, 32])
def test_small(benchmark: Any, number: int) -> None:
    """A few tiny tensors, a hundred calls: what a call costs before it does anything."""
    t, s = (make(torch.float32, [(16,)] * number) for _ in range(2))
    jobs = against([moco, lightly, lerp], t, s, repeat=100)
    report(benchmark, "small, 100 calls", jobs, 41, tensors=number)
