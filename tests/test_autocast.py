"""Autocast: inputs of several dtypes are cast together by every loss, module and drop-in."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sslops
from sslops.compat import (
    info_nce_pytorch,
    lightly,
    open_clip,
    pytorch_metric_learning,
    sentence_transformers,
    solo_learn,
)
from sslops.nn import __all__ as MODULES

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
LOW = (torch.bfloat16, torch.float16)
B, D = 8, 16
IDS = torch.arange(B) % 6
ROWS = ((B, D), (B, D))


@dataclass
class Entry:
    """A loss of tensors of these shapes; `own`, of this package and no drop-in: it refuses more."""

    call: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...] = ROWS
    own: bool = True
    scale: float = 10.0  # of the similarities


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(3)), dim=-1)


def queue(dtype: torch.dtype) -> sslops.KeyQueue:
    keys = sslops.KeyQueue(24, D, dtype=dtype)
    keys.keys.copy_(unit(24, D))
    return keys


def bank(dtype: torch.dtype) -> nn.Module:
    loss = lightly.NTXentLoss(0.1, (24, D))
    loss.memory_bank.bank = unit(24, D).to(dtype)
    return loss


def memory(loss: nn.Module) -> nn.Module:
    filled = pytorch_metric_learning.CrossBatchMemory(loss, D, 32)
    with torch.autocast("cpu", enabled=False):
        filled(unit(24, D), torch.arange(24) % 6)
    return filled


def texts(kind: type[nn.Module]) -> Callable[..., Tensor]:
    def call(*sides: Tensor) -> Tensor:
        loss = kind(lambda x: {"sentence_embedding": x["values"] * 1}, 10.0)
        return loss([{"values": each} for each in sides], None)

    return call


Z, CPC, THREE = ((2, B, D),), ((2, 3, 6, D), (3, 6, D)), (*ROWS, (B, D))
TAU = torch.tensor(0.1)
PML, TEXT, INFO = pytorch_metric_learning, sentence_transformers, info_nce_pytorch
ENTRIES = {
    "nt_xent": Entry(lambda z: sslops.nt_xent(z), Z),
    "nt_xent ids": Entry(lambda z: sslops.nt_xent(z, ids=IDS, temperature=TAU), Z),
    "nt_xent weights": Entry(lambda z: sslops.nt_xent(z, weights=IDS.repeat(2).bfloat16() + 1), Z),
    "info_nce": Entry(lambda q, k: sslops.info_nce(q, k, temperature=TAU)),
    "info_nce dot products": Entry(
        lambda q, k: sslops.info_nce(q, k, normalize=False, temperature=1.0)
    ),
    "info_nce frozen": Entry(lambda q, k: sslops.info_nce(q, k.detach(), temperature=TAU)),
    "info_nce symmetric": Entry(lambda q, k: sslops.info_nce(q, k, symmetric=True)),
    "info_nce none": Entry(lambda q, k: sslops.info_nce(q, k, reduction="none").mean()),
    "clip_loss": Entry(lambda q, k: sslops.clip_loss(q, k, TAU.reciprocal())),
    "clip_loss smoothing": Entry(lambda q, k: sslops.clip_loss(q, k, 10.0, label_smoothing=0.1)),
    "sigmoid_loss": Entry(lambda q, k: sslops.sigmoid_loss(q, k, TAU.reciprocal(), -TAU)),
    "sup_con": Entry(lambda z: sslops.sup_con(z, IDS), Z),
    "cpc_loss": Entry(lambda q, k: sslops.cpc_loss(q, k), CPC),
    "cpc_loss sampled": Entry(
        lambda q, k: sslops.cpc_loss(q, k, negatives=9, generator=torch.Generator()), CPC
    ),
    "NTXentLoss": Entry(lambda a, b: sslops.NTXentLoss(0.1)(a, b)),
    "InfoNCELoss": Entry(lambda q, k: sslops.InfoNCELoss(0.1, learn_temperature=True)(q, k)),
    "SupConLoss": Entry(lambda z: sslops.SupConLoss(0.1)(z, IDS), Z),
    "CPCLoss": Entry(lambda q, k: sslops.CPCLoss(0.1)(q, k), CPC),
    "ClipLoss": Entry(lambda q, k: sslops.ClipLoss(10.0)(q, k)),
    "SigmoidLoss": Entry(lambda q, k: sslops.SigmoidLoss()(q, k)),
    "info_nce_pytorch.info_nce": Entry(INFO.info_nce, own=False),
    "info_nce_pytorch.info_nce paired": Entry(
        lambda q, k, n: INFO.info_nce(q, k, n, negative_mode="paired"), (*ROWS, (B, 5, D)), False
    ),
    "info_nce_pytorch.InfoNCE": Entry(INFO.InfoNCE(0.1), THREE, False),
    "info_nce_pytorch.InfoNCE frozen": Entry(
        lambda q, k: INFO.InfoNCE(0.1)(q, k, unit(5, D)), own=False
    ),
    "lightly.NTXentLoss": Entry(lightly.NTXentLoss(0.1), own=False),
    "open_clip.ClipLoss": Entry(
        lambda q, k: open_clip.ClipLoss()(F.normalize(q, dim=1), F.normalize(k, dim=1), 10.0),
        own=False,
    ),
    "open_clip.SigLipLoss": Entry(
        lambda q, k: open_clip.SigLipLoss()(
            F.normalize(q, dim=1), F.normalize(k, dim=1), 10.0, torch.tensor(-1.0)
        ),
        own=False,
    ),
    "pytorch_metric_learning.NTXentLoss": Entry(
        lambda q, k: PML.NTXentLoss(0.1)(q, IDS, ref_emb=k, ref_labels=IDS), own=False
    ),
    "pytorch_metric_learning.NTXentLoss many": Entry(
        lambda q, k: PML.NTXentLoss(0.1)(q, 0 * IDS, ref_emb=k, ref_labels=IDS // 5), own=False
    ),
    "pytorch_metric_learning.SupConLoss": Entry(
        lambda q, k: PML.SupConLoss(0.1)(q, IDS, ref_emb=k, ref_labels=IDS), own=False
    ),
    "pytorch_metric_learning.SupConLoss mined": Entry(
        lambda q, k: PML.SupConLoss(0.1)(q, None, (IDS, IDS, IDS, (IDS + 1) % 6), k), own=False
    ),
    "pytorch_metric_learning.SelfSupervisedLoss": Entry(
        PML.SelfSupervisedLoss(PML.NTXentLoss(0.1)), own=False
    ),
    "pytorch_metric_learning.CrossBatchMemory": Entry(
        lambda z: memory(PML.NTXentLoss(0.1))(z, IDS), ((B, D),), False
    ),
    "sentence_transformers.multiple_negatives_ranking_loss": Entry(
        lambda *sides: TEXT.multiple_negatives_ranking_loss(sides, 10.0), THREE, False
    ),
    "sentence_transformers.MultipleNegativesRankingLoss": Entry(
        texts(TEXT.MultipleNegativesRankingLoss), THREE, False
    ),
    "sentence_transformers.CachedMultipleNegativesRankingLoss": Entry(
        texts(TEXT.CachedMultipleNegativesRankingLoss), THREE, False
    ),
    "solo_learn.simclr_loss_func": Entry(
        lambda z: solo_learn.simclr_loss_func(z, IDS), ((B, D),), False
    ),
    "solo_learn.mocov2plus_loss_func": Entry(
        lambda q, k: solo_learn.mocov2plus_loss_func(
            F.normalize(q, dim=1), F.normalize(k, dim=1), unit(24, D).T
        ),
        own=False,
    ),
}  # fmt: skip
for dtype in DTYPES:
    name = str(dtype).removeprefix("torch.")
    ENTRIES[f"info_nce queue {name}"] = Entry(
        lambda q, k, dtype=dtype: sslops.info_nce(q, k, queue=queue(dtype).keys, temperature=TAU)
    )
    ENTRIES[f"lightly.NTXentLoss bank {name}"] = Entry(
        lambda q, k, dtype=dtype: bank(dtype)(q, k), own=False
    )
for kind, group in (("Gather", sslops.Gather()), ("Ring", sslops.Ring())):
    ENTRIES |= {
        f"info_nce {kind}": Entry(lambda q, k, group=group: sslops.info_nce(q, k, group=group)),
        f"clip_loss {kind}": Entry(lambda q, k, g=group: sslops.clip_loss(q, k, 10.0, group=g)),
        f"sigmoid_loss {kind}": Entry(
            lambda q, k, g=group: sslops.sigmoid_loss(q, k, 10.0, group=g)
        ),
        f"cpc_loss {kind}": Entry(lambda q, k, g=group: sslops.cpc_loss(q, k, group=g), CPC),
    }


def cached(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 1

    return lambda *sides: sslops.GradCache([Same() for _ in sides], call, 3)(*sides)


for name in ("info_nce", "clip_loss", "sigmoid_loss", "NTXentLoss", "open_clip.ClipLoss"):
    ENTRIES[f"{name} GradCache"] = Entry(cached(ENTRIES[name].call), own=ENTRIES[name].own)


def sides_of(entry: Entry, dtypes: tuple[torch.dtype, ...]) -> list[Tensor]:
    """Rows that resemble each other, each in its dtype; a third one has that of the second."""
    torch.manual_seed(1)
    common = torch.randn(B, D)
    sides = []
    for n, shape in enumerate(entry.shapes):
        like = common if shape[-2:] == (B, D) else 0.0
        side = (like + 0.7 * torch.randn(shape)).to(dtypes[min(n, 1)])
        sides.append(side.requires_grad_())
    return sides


def combinations(entry: Entry, low: torch.dtype) -> list[tuple[torch.dtype, ...]]:
    """For drop-ins what plain PyTorch joins: torch.cat under autocast on a CPU takes no more."""
    kinds = DTYPES if entry.own else (low, torch.float32)
    return list(product(kinds, repeat=min(2, len(entry.shapes))))


def cast_of(low: torch.dtype, dtypes: tuple[torch.dtype, ...]) -> torch.dtype:
    return torch.float64 if torch.float64 in dtypes else low


def test_every_loss_has_an_entry():
    """A new one is missing here until it is registered above."""
    functions = {
        name for name in sslops.__all__
        if {"temperature", "logit_scale"} & set(
            inspect.signature(getattr(sslops, name)).parameters
            if inspect.isfunction(getattr(sslops, name)) else ()
        )
    }  # fmt: skip
    packages = (INFO, lightly, open_clip, PML, TEXT, solo_learn)
    drop_ins = {
        f"{package.__name__.split('.')[-1]}.{name}" for package in packages
        for name in package.__all__ if name not in ("update_momentum", "cos_sim", "dot_score")
    }  # fmt: skip
    assert len(functions) == 6
    assert functions | set(MODULES) | drop_ins == {name.split()[0] for name in ENTRIES}


@pytest.mark.parametrize("low", LOW, ids=str)
@pytest.mark.parametrize("name", ENTRIES)
def test_all_inputs_are_cast_together(name, low):
    entry = ENTRIES[name]
    for dtypes in combinations(entry, low):
        sides, cast = sides_of(entry, dtypes), cast_of(low, dtypes)
        with torch.autocast("cpu", low):
            loss = entry.call(*sides)
        wide = torch.float64 if cast is torch.float64 else torch.float32
        assert loss.dtype is wide, dtypes
        loss.backward()
        exact = [each.detach().to(cast).double().requires_grad_() for each in sides]
        truth = entry.call(*exact)
        truth.backward()
        # a product of unit rows is off by one rounding of each, a gradient by one of its own too
        bound = 4 * torch.finfo(cast).eps * entry.scale
        assert abs(loss.double() - truth) <= bound, (dtypes, loss, truth)
        for side, other in zip(sides, exact, strict=True):
            if other.grad is None:
                assert side.grad is None
                continue
            assert side.grad.dtype is side.dtype, dtypes
            eps = max(torch.finfo(each).eps for each in (cast, side.dtype))
            allowed = 8 * eps * entry.scale * (other.grad.abs().max() + 1e-4)
            assert (side.grad.double() - other.grad).abs().max() <= allowed, dtypes


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.own])
def test_it_is_the_cast_of_the_inputs_to_the_bit(name):
    entry = ENTRIES[name]
    for low in LOW:
        for dtypes in combinations(entry, low):
            sides = sides_of(entry, dtypes)
            with torch.autocast("cpu", low):
                loss = entry.call(*sides)
                with torch.autocast("cpu", enabled=False):
                    same = entry.call(*(each.to(cast_of(low, dtypes)) for each in sides))
            assert torch.equal(loss, same), (low, dtypes)


@pytest.mark.parametrize(
    "name", [name for name, entry in ENTRIES.items() if entry.own and len(entry.shapes) > 1]
)
def test_without_autocast_two_dtypes_are_refused(name):
    """Also where it is on for another kind of device, or off inside."""
    entry = ENTRIES[name]
    for a, b in product(DTYPES, repeat=2):
        if a is b:
            continue
        for on, within in (("cuda", "cuda"), ("cpu", "cpu")):
            with (
                patch.object(torch.amp.autocast_mode.warnings, "warn"),  # there is no GPU
                torch.autocast(on),
                torch.autocast(within, enabled=on == "cuda"),
                pytest.raises((TypeError, ValueError), match=r"must share (their )?dtype.*, got"),
            ):
                entry.call(*sides_of(entry, (a, b)))


@pytest.mark.parametrize("name", ["info_nce", "clip_loss", "NTXentLoss", "cpc_loss"])
@pytest.mark.parametrize("low", LOW, ids=str)
def test_fullgraph(name, low):
    entry = ENTRIES[name]

    def step(*sides):
        with torch.autocast("cpu", low):
            return entry.call(*sides)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for dtypes in ((torch.bfloat16, torch.float32), (torch.float32, torch.float16)):
        sides = sides_of(entry, dtypes)
        loss = compiled(*sides)
        assert torch.equal(loss, step(*sides))
        loss.backward()
        assert [each.grad.dtype for each in sides] == list(dtypes)
    torch._dynamo.reset()


PARAMETERS = {
    "InfoNCELoss": (lambda q, k: sslops.InfoNCELoss(learn_temperature=True), ROWS),
    "NTXentLoss": (lambda q, k: sslops.NTXentLoss(learn_temperature=True), ROWS),
    "ClipLoss": (lambda q, k: sslops.ClipLoss(), ROWS),
    "SigmoidLoss": (lambda q, k: sslops.SigmoidLoss(), ROWS),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_a_loss_stay_float32(name):
    make, shapes = PARAMETERS[name]
    sides = sides_of(Entry(make, shapes), (torch.bfloat16, torch.float32))
    module = make(*sides)
    with torch.autocast("cpu", torch.bfloat16):
        module(*sides).backward()
    exact = make(*sides).double()
    exact(*(each.detach().bfloat16().double() for each in sides)).backward()
    for got, true in zip(module.parameters(), exact.parameters(), strict=True):
        assert got.dtype is got.grad.dtype is torch.float32
        torch.testing.assert_close(got.grad.double(), true.grad, rtol=0.02, atol=0.02)


FAR = {name: ENTRIES[name] for name in ("nt_xent", "info_nce", "clip_loss", "sup_con", "cpc_loss")}


@pytest.mark.parametrize("factor", [1e6, 1e-6, 1e30, 1e-10])
@pytest.mark.parametrize("name", FAR)
def test_float16_does_not_overflow_where_lengths_do_not_count(name, factor):
    """As in plain PyTorch, whose float32 norms come before the cast."""
    entry = FAR[name]
    near = sides_of(entry, (torch.float32,) * 2)
    far = [(each.detach() * factor).requires_grad_() for each in near]
    with torch.autocast("cpu", torch.float16):
        entry.call(*near).backward()
        loss = entry.call(*far)
    loss.backward()
    exact = [each.detach().double().requires_grad_() for each in far]
    truth = entry.call(*exact)
    truth.backward()
    assert abs(loss - truth) <= 4 * torch.finfo(torch.float16).eps * entry.scale
    for side, other in zip(far, exact, strict=True):
        most = float(other.grad.abs().max())
        torch.testing.assert_close(side.grad.double(), other.grad, rtol=0, atol=0.02 * most)


def test_a_row_that_is_not_finite_is_nan():
    q = torch.randn(4, D)
    for bad in (float("inf"), float("nan")):
        q[1, 2] = bad
        with torch.autocast("cpu", torch.float16):
            assert sslops.nt_xent(q).isnan()
            assert sslops.info_nce(q, torch.randn(4, D)).isnan()
    q[1] = 0.0
    with torch.autocast("cpu", torch.float16):
        assert sslops.nt_xent(q).isfinite()


def test_a_queue_is_neither_cast_nor_copied():
    """autocast changes what is stored in no way, and a step copies no negatives."""
    q, k = sides_of(ENTRIES["info_nce"], (torch.bfloat16, torch.float32))
    keys = queue(torch.float32)
    saved = []
    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        sslops.info_nce(q, k.detach(), queue=keys.keys).backward()
        keys.enqueue(k)
    assert all(len(each) < 24 for each in saved if each.ndim)
    plain = queue(torch.float32)
    plain.enqueue(k)
    assert torch.equal(keys.keys, plain.keys)
    assert keys.keys.dtype is torch.float32


def test_an_average_is_not_cast():
    target, source = torch.zeros(5), torch.rand(5)
    with torch.autocast("cpu", torch.bfloat16):
        sslops.ema_update_([target], [source], 0.75)
    torch.testing.assert_close(target, 0.25 * source, rtol=1e-6, atol=0)
