"""Autocast: inputs of several dtypes are cast together by every loss, module and drop-in."""

import inspect
from contextlib import nullcontext
from itertools import product

import pytest
import torch

import sslops
from sslops.compat import (
    lightly,
    open_clip,
    solo_learn,
)
from sslops.compat._masks import logits_of
from sslops.nn import __all__ as MODULES

from .autocast_cases import (
    DTYPES,
    ENTRIES,
    INFO,
    LOW,
    PML,
    ROWS,
    TEXT,
    Entry,
    cast_of,
    combinations,
    sides_of,
)


def test_every_loss_has_an_entry():
    """A new one is missing here until it is registered in autocast_cases."""
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


@pytest.mark.slow
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


@pytest.mark.slow
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


# bar what reads labels, stored rows or the state of a device
ON_META = (
    "info_nce_pytorch.info_nce", "info_nce_pytorch.InfoNCE", "lightly.NTXentLoss",
    "open_clip.ClipLoss", "open_clip.SigLipLoss", "pytorch_metric_learning.SelfSupervisedLoss",
    "sentence_transformers.MultipleNegativesRankingLoss", "solo_learn.mocov2plus_loss_func",
    "solo_learn.simclr_loss_func views",
)  # fmt: skip


@pytest.mark.parametrize("name", ON_META)
def test_drop_ins_take_meta_tensors(name):
    """There is no autocast for them, on or off."""
    sides = sides_of(ENTRIES[name], (torch.float32, torch.float32))
    assert ENTRIES[name].call(*(each.to("meta") for each in sides)).is_meta
    assert logits_of(*(each.to("meta") for each in sides[:2]), 0.1).is_meta


class elsewhere:
    """Autocast of a kind of device that the tensors are not on, and that may not be there."""

    def __enter__(self) -> None:
        torch.set_autocast_enabled("cuda", True)

    def __exit__(self, *_: object) -> None:
        torch.set_autocast_enabled("cuda", False)


@pytest.mark.parametrize(
    "name", [name for name, entry in ENTRIES.items() if entry.own and len(entry.shapes) > 1]
)
def test_without_autocast_two_dtypes_are_refused(name):
    """Also where it is on for another kind of device, or off inside."""
    entry = ENTRIES[name]
    for a, b in product(DTYPES, repeat=2):
        if a is b:
            continue
        for where in (nullcontext(), elsewhere(), torch.autocast("cpu", enabled=False)):
            with (
                torch.autocast("cpu", enabled=not isinstance(where, nullcontext | elsewhere)),
                where,
                pytest.raises((TypeError, ValueError), match=r"must share (their )?dtype.*, got"),
            ):
                entry.call(*sides_of(entry, (a, b)))


@pytest.mark.slow
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
