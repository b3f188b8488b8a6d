"""NT-Xent, forward and backward, against what a user writes: `make bench`.

The limit is two M x M x D matrix products in float32 (z zT and S z, 4 M^2 D operations, what the
symmetric algorithm needs), without a single exponential.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sslops
from bench.cases import TEMPERATURE
from bench.harness import interleave, record
from bench.providers.chunked import LOSSES
from sslops._compile_cache import separate_by_processor

COMMAND = "make bench"
# M, D, rounds: the batch sizes 16 to 8192 of two views, the widths of published projectors
SWEEP = [
    (M, D, 3 if M == 16384 else 7 if M >= 4096 else 25 if M > 256 else 101)
    for M in (32, 128, 512, 2048, 8192, 16384)
    for D in (32, 128, 512, 1024)
]


def eager(z: Tensor) -> Tensor:
    """The loss as it stands in most training scripts."""
    x = F.normalize(z, dim=1)
    logits = x @ x.T / TEMPERATURE
    logits.fill_diagonal_(float("-inf"))
    targets = (torch.arange(len(z)) + len(z) // 2) % len(z)
    return F.cross_entropy(logits, targets)


def fused(z: Tensor) -> Tensor:
    """The package's op."""
    return sslops.nt_xent(z, temperature=TEMPERATURE)


def step(loss: Callable[[Tensor], Tensor], z: Tensor) -> Callable[[], Tensor]:
    """A forward and a backward pass."""

    def run() -> Tensor:
        leaf = z.detach().requires_grad_()
        (grad,) = torch.autograd.grad(loss(leaf), leaf)
        return grad

    return run


def products(z: Tensor) -> Callable[[], None]:
    """The limit of the symmetric algorithm in float32."""
    x = F.normalize(z, dim=1)
    s, dz = torch.empty(len(z), len(z)), torch.empty_like(z)

    def run() -> None:
        torch.mm(x, x.T, out=s)
        torch.mm(s, x, out=dz)

    return run


def check(z: Tensor, *losses: Callable[[Tensor], Tensor]) -> None:
    """A fast wrong answer is not a result: against chunked code, which shares nothing with them."""
    rtol = 1e-3 if z.dtype is torch.float32 else 3e-2
    expected = step(LOSSES["nt_xent"], z.float())()
    for loss in losses:
        actual = step(loss, z)().float()
        assert (actual - expected).norm() <= rtol * expected.norm(), loss


def report(
    benchmark: Any, case: str, jobs: Mapping[str, Callable[[], object]], rounds: int, **row: Any
) -> None:
    stats = interleave(jobs, rounds=rounds, first=benchmark.pedantic)
    ours = stats["sslops"]["median_ms"]
    ratios = {f"{name} / sslops": round(s["median_ms"] / ours, 2) for name, s in stats.items()}
    del ratios["sslops / sslops"]
    benchmark.extra_info.update(row | ratios)
    print(f"\n{case} {row}: {ours:.2f} ms, {ratios}")
    record(
        "nt_xent", COMMAND, op="nt_xent", case=case, pass_="forward+backward",
        temperature=TEMPERATURE, rounds=rounds, **row, times=stats, ratios=ratios,
    )  # fmt: skip


@pytest.mark.parametrize("M", [2048, 8192])
def test_headline(benchmark: Any, M: int) -> None:
    """float32 and bfloat16 against eager and compiled PyTorch and against the matrix products."""
    z = torch.randn(M, 128)
    separate_by_processor()
    compiled = torch.compile(eager, dynamic=False)
    check(z, fused, eager, compiled)
    check(z.bfloat16(), fused)
    jobs = {
        "sslops": step(fused, z),
        "eager": step(eager, z),
        "compile": step(compiled, z),
        "products": products(z),
        "sslops bf16": step(fused, z.bfloat16()),
    }
    report(benchmark, "headline", jobs, 15 if M == 8192 else 41, M=M, D=128, dtype="float32")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("M", "D", "rounds"), SWEEP)
def test_never_slower(benchmark: Any, M: int, D: int, rounds: int, dtype: torch.dtype) -> None:
    """Every size against eager PyTorch in the same dtype."""
    z = torch.randn(M, D).to(dtype)
    check(z, fused, eager)
    jobs = {"sslops": step(fused, z), "eager": step(eager, z)}
    report(benchmark, "sweep", jobs, rounds, M=M, D=D, dtype=str(dtype).removeprefix("torch."))
