"""Options of the losses that run on other paths than the defaults: `make bench`.

Plain code is what a user would write for each, and shares nothing with this package.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sslops
from bench.cases import TEMPERATURE
from bench.harness import interleave, record

Loss = Callable[..., Tensor]
COMMAND = "make bench"


def same_sequence(predictions: Tensor, targets: Tensor) -> Tensor:
    """CPC whose negatives are the other positions of the sequence: a batched product a step."""
    T, losses = targets.shape[1], []
    keys = F.normalize(targets, dim=2).transpose(1, 2)  # [B, D, T]
    for k, rows in enumerate(F.normalize(predictions, dim=3), start=1):
        logits = torch.bmm(rows[:, : T - k], keys) / TEMPERATURE
        index = torch.arange(k, T).expand(len(logits), -1)
        losses.append(F.cross_entropy(logits.flatten(0, 1), index.flatten()))
    return torch.stack(losses).mean()


def known_duplicates(z: Tensor, ids: Tensor) -> Tensor:
    """NT-Xent of two views without the negatives of equal ids."""
    x, M = F.normalize(z, dim=1), len(z)
    partner = torch.arange(M).roll(M // 2)
    out = torch.eq(ids.repeat(2)[:, None], ids.repeat(2))
    out[torch.arange(M), partner] = False
    logits = (x @ x.T / TEMPERATURE).masked_fill(out, float("-inf"))
    return F.cross_entropy(logits, partner)


def weighted_rows(queries: Tensor, keys: Tensor) -> Tensor:
    """Rows that the caller weighs, in a way that the op cannot know before."""
    logits = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T / TEMPERATURE
    rows = F.cross_entropy(logits, torch.arange(len(queries)), reduction="none")
    return (rows * torch.linspace(0, 1, len(rows))).sum()


def our_weighted_rows(queries: Tensor, keys: Tensor) -> Tensor:
    """The same with the op."""
    rows: Any = sslops.info_nce(queries, keys, temperature=TEMPERATURE, reduction="none")
    weighted: Tensor = (rows * torch.linspace(0, 1, len(rows))).sum()
    return weighted


def unit_rows(image: Tensor, text: Tensor) -> Tensor:
    """CLIP's loss of features that are unit vectors already, as open_clip's models return them."""
    logits = image @ text.T / TEMPERATURE
    index = torch.arange(len(image))
    return 0.5 * (F.cross_entropy(logits, index) + F.cross_entropy(logits.T, index))


def our_unit_rows(image: Tensor, text: Tensor) -> Any:
    """The same with the op."""
    return sslops.clip_loss(image, text, 1 / TEMPERATURE, normalize=False)


def inputs(option: str, size: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Of an option; what is floating is trained."""
    torch.manual_seed(0)
    made = torch.randn(size, dtype=dtype)
    if option == "cpc_loss sequence":
        return [made, torch.randn(size[1:], dtype=dtype)]
    if option == "nt_xent ids":
        return [made, torch.randint(size[0] // 4, (size[0] // 2,))]
    pair = [made, torch.randn(size, dtype=dtype)]
    return [F.normalize(each, dim=1) for each in pair] if "unit" in option else pair


OURS: dict[str, Callable[..., Any]] = {
    "cpc_loss sequence": partial(sslops.cpc_loss, negatives="sequence", temperature=TEMPERATURE),
    "nt_xent ids": lambda z, ids: sslops.nt_xent(z, ids=ids, temperature=TEMPERATURE),
    "info_nce none": our_weighted_rows,
    "clip_loss unit": our_unit_rows,
}
PLAIN: dict[str, Loss] = {
    "cpc_loss sequence": same_sequence,
    "nt_xent ids": known_duplicates,
    "info_nce none": weighted_rows,
    "clip_loss unit": unit_rows,
}
SIZES = {
    "cpc_loss sequence": ("2x4x32x32", "12x8x128x256", "4x64x128x128", "12x16x100x128"),
    "nt_xent ids": ("64x32", "512x128", "2048x128", "2048x512"),
    "info_nce none": ("32x32", "256x128", "2048x128", "2048x768"),
    "clip_loss unit": ("32x512", "128x512", "512x512", "2048x512"),
}


def step(loss: Loss, tensors: list[Tensor]) -> list[Tensor]:
    """The loss and the gradients of what is trained."""
    rows = [each.detach().requires_grad_(each.is_floating_point()) for each in tensors]
    value = loss(*rows)
    return [value, *torch.autograd.grad(value, [each for each in rows if each.requires_grad])]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("option", "size"), [(option, size) for option, sizes in SIZES.items() for size in sizes]
)
def test_option(benchmark: Any, option: str, size: str, dtype: str) -> None:
    shape = tuple(int(n) for n in size.split("x"))
    tensors = inputs(option, shape, getattr(torch, dtype))
    wide = [each.double() if each.is_floating_point() else each for each in tensors]
    truth = step(PLAIN[option], wide)
    losses = {"sslops": OURS[option], "eager": PLAIN[option]}
    for name, loss in losses.items():
        for grad, exact in zip(step(loss, tensors), truth, strict=True):
            error = (grad.double() - exact).norm() / exact.norm()
            assert error < (5e-3 if dtype == "float32" else 1e-1), f"{name} is off by {error:.2g}"
    small = tensors[0].numel() * shape[0] < 1 << 22
    stats = interleave(
        {name: partial(step, loss, tensors) for name, loss in losses.items()},
        rounds=101 if small else 15,
        first=benchmark.pedantic,
    )
    ratio = round(stats["eager"]["median_ms"] / stats["sslops"]["median_ms"], 2)
    print(f"\n{option} {size} {dtype}: {stats['sslops']['median_ms']} ms, {ratio}")
    op, _, what = option.partition(" ")
    record(
        "options", COMMAND, op=op, option=what, size=size, dtype=dtype, pass_="step",
        rounds=101 if small else 15, times=stats, ratios={"eager / sslops": ratio},
    )  # fmt: skip
