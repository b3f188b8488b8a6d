"""Every listed value of every argument: as a drop-in and patched, what the package computes."""

import importlib
import inspect
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sslops
from bench.providers.stand_ins import import_peer
from sslops.compat import _patch
from tests.compat._compat_options import CONTEXTS, Option, Target, targets
from tests.numerics import assert_as_accurate_as

pytestmark = pytest.mark.peer
if not any(map(find_spec, ("info_nce", "lightly", "pytorch_metric_learning"))):
    pytest.skip("the packages are not installed, see make peers", allow_module_level=True)
TARGETS = targets()
CASES = [
    pytest.param(
        target, option, id=f"{target.name}.{target.method} {n} {option.argument} {option.label}"
    )
    for target in TARGETS
    for n, option in enumerate([*CONTEXTS, *target.options])
]


def peer(target):
    solo = target.package == "solo_learn"
    try:
        return import_peer(target.module) if solo else importlib.import_module(target.module)
    except ImportError as error:
        pytest.skip(f"{target.module} cannot be imported: {error}")


def original(target):
    module = peer(target)
    assert "drop_in" not in vars(getattr(module, target.name))
    return getattr(module, target.name)


def as_dtype(given: Any, dtype: torch.dtype) -> Any:
    """The inputs with their float32 tensors in another dtype, as leaves."""
    if isinstance(given, Tensor):
        if given.dtype is not torch.float32:
            return given
        leaf = given.detach().to(dtype)
        return leaf.requires_grad_(given.requires_grad)
    if isinstance(given, dict):
        return {key: as_dtype(each, dtype) for key, each in given.items()}
    if isinstance(given, (list, tuple)):
        return type(given)(as_dtype(each, dtype) for each in given)
    if isinstance(given, Iterator):
        return (as_dtype(each, dtype) for each in given)
    return given


class Found:
    """What calls of a loss gave: values, gradients and state, or the error."""

    def __init__(self, target: Target, option: Option, make: Any, dtype: torch.dtype) -> None:
        self.error: Exception | None = None
        self.values: list[Tensor] = []
        self.grads: list[Tensor] = []
        torch.manual_seed(1)
        try:
            # what is true does not depend on autocast
            with option.context() if dtype is torch.float32 else nullcontext():
                self._run(target, option, make, dtype)
        except Exception as error:
            self.error = error

    def _run(self, target: Target, option: Option, make: Any, dtype: torch.dtype) -> None:
        given = target.inputs()
        given = {k: leaf(v) for k, v in given.items()}
        given |= {k: leaf(v) for k, v in option.call(given).items()}
        rest = option.init()
        loss = make
        if target.method:
            torch.manual_seed(2)
            loss = make(*target.first(), **rest)
            loss.to(dtype) if dtype is not torch.float32 else loss
            torch.manual_seed(4)
            rest = {}
        given = {
            k: v.to(dtype) if isinstance(v, nn.Module) else as_dtype(v, dtype)
            for k, v in given.items()
        }
        call = getattr(loss, target.method) if target.method else loss
        for _ in range(target.calls):
            value = call(*given.values(), **rest) if target.positional else call(**given, **rest)
            value = [value] if not isinstance(value, dict) else list(value.values())
            self.values += [v for v in value if isinstance(v, Tensor)]
        leaves = list(tensors_in([given, rest]))
        if isinstance(loss, nn.Module):
            leaves += list(loss.parameters())
            self.values += target.state(loss)
        models = [each for each in given.values() if isinstance(each, nn.Module)]
        self.values += [p.detach() for each in models for p in each.parameters()]
        wanted = sum(
            v.float().sum() if v.dtype is not torch.float64 else v.sum()
            for v in self.values
            if v.requires_grad
        )
        leaves = [each for each in leaves if each.requires_grad]
        if isinstance(wanted, Tensor) and leaves:
            wanted.backward()
            self.grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]


def leaf(given: Any) -> Any:
    if (
        isinstance(given, Tensor)
        and given.is_floating_point()
        and given.is_leaf
        and not given.is_sparse
    ):
        return given.clone().requires_grad_() if not given.requires_grad else given
    if isinstance(given, list):
        return [leaf(each) for each in given]
    return given


def tensors_in(given: Any) -> Any:
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, dict):
        for each in given.values():
            yield from tensors_in(each)
    elif isinstance(given, (list, tuple)):
        for each in given:
            yield from tensors_in(each)


def compare(ours: Found, naive: Found, truth: Found, autocast: bool) -> None:
    if not naive.grads:
        truth.grads = []
    floats = [t for t in truth.values if t.numel() and t.is_floating_point()]
    logit = max([20.0, *(float(t.detach().abs().max()) for t in floats)])
    for kind in ("values", "grads"):
        sets = [getattr(each, kind) for each in (ours, naive, truth)]
        assert len({len(each) for each in sets}) == 1, kind
        for n, (a, b, t) in enumerate(zip(*sets, strict=True)):
            assert a.shape == b.shape, f"{kind} {n}"
            if not b.is_floating_point() or not b.numel():
                assert torch.equal(a.to(b.dtype), b), f"{kind} {n}"
            elif not (b.isfinite().all() and t.isfinite().all()):
                same = a.double().nan_to_num(nan=7.0), b.double().nan_to_num(nan=7.0)
                torch.testing.assert_close(*same, rtol=1e-4, atol=1e-4)
            else:
                b = b.float() if b.dtype is torch.float64 else b  # others are float32 all the same
                if autocast:  # whose products alone are rounded
                    assert_as_accurate_as(a, b.bfloat16(), t.double(), name=kind, scale=1.0)
                    continue
                scale = logit if kind == "values" else logit * max(float(t.abs().max()), 1 / 8)
                assert_as_accurate_as(a, b, t.double(), name=f"{kind} {n}", scale=scale)


@pytest.mark.parametrize("patched", [False, True], ids=["drop-in", "patched"])
@pytest.mark.parametrize(("target", "option"), CASES)
def test_option(target, option, patched):
    theirs = original(target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        naive = Found(target, option, theirs, torch.float32)
        truth = naive if naive.error else Found(target, option, theirs, torch.float64)
        with sslops.patch(target.package) if patched else nullcontext():
            package = peer(target) if patched else _drop_ins(target)
            ours = Found(target, option, getattr(package, target.name), torch.float32)
    if naive.error is not None:
        if not option.differs:
            assert ours.error is not None, f"theirs raises {naive.error!r}"
        return
    if ours.error is not None:
        raise ours.error
    if not option.differs or (patched and not option.patched_differs):
        compare(ours, naive, truth, option.label == "autocast")


def _drop_ins(target: Target) -> Any:
    return importlib.import_module(f"sslops.compat.{target.package}")


@pytest.mark.parametrize("name", sorted({(t.package, t.module, t.name) for t in TARGETS}))
def test_every_argument_is_listed(name):
    own = [t for t in TARGETS if (t.package, t.module, t.name) == name]
    theirs = original(own[0])
    listed = {each.argument for t in own for each in t.options}
    signatures = (
        [theirs]
        if not own[0].method
        else [
            init
            for kind in theirs.__mro__
            if (init := vars(kind).get("__init__"))
            if kind.__module__.startswith(own[0].module.split(".")[0])
        ]
        + [getattr(theirs, t.method) for t in own]
    )
    wanted = {
        p.name
        for each in signatures
        for p in inspect.signature(each).parameters.values()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    } - {"self", "mat_based_loss", "model" if own[0].method else "self"}
    assert wanted <= listed, f"without an Option: {sorted(wanted - listed)}"


def test_every_drop_in_is_listed():
    drop_ins = {(p, n) for p, (_, names) in _patch._PACKAGES.items() for n in names}
    assert drop_ins - {("solo_learn", "mocov2plus_loss_func")} == {
        (t.package, t.name) for t in TARGETS
    }
