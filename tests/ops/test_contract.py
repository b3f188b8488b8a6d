"""What every loss of losses.py must satisfy, whatever it computes."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import sslops
from tests.layouts import LAYOUTS

from .losses import LOSSES, REFUSALS

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
each_loss = pytest.mark.parametrize("name", LOSSES)


def run(name: str, rows: list[Tensor], rate: Any, **kwargs: Any) -> list[Tensor]:
    """(loss, statistics, gradients of what is trained and of the rate) of a loss, as one list."""
    loss = LOSSES[name]
    value, *stats = loss(*rows, rate, return_stats=True, **kwargs) if loss.stats else (
        loss(*rows, rate, **kwargs),
    )  # fmt: skip
    learnt = isinstance(rate, Tensor) and rate.requires_grad
    leaves = loss.leaves(rows) + ([rate] if learnt else [])
    stats = list(stats[0]) if stats else []
    return [value.detach(), *stats, *torch.autograd.grad(value, leaves)]


def takes(name: str) -> set[str]:
    found = getattr(sslops, name)
    return set(inspect.signature(found).parameters) if inspect.isfunction(found) else set()


def test_every_loss_is_registered():
    functions = {name for name in sslops.__all__ if takes(name) & {"temperature", "logit_scale"}}
    assert functions == {name.split()[0] for name in LOSSES} == set(REFUSALS)


@each_loss
def test_autocast_casts_as_a_matrix_product(backend, name):
    loss = LOSSES[name]
    rows = loss.rows(20, 8)
    half = [x if n == loss.stored else x.bfloat16() for n, x in enumerate(rows)]
    with torch.autocast("cpu", torch.bfloat16):
        cast = loss(*rows, loss.rate)
        with torch.autocast("cpu", enabled=False):
            exact = loss(*rows, loss.rate)
        wide = loss(*(x.double() for x in rows), loss.rate)
    assert (cast.dtype, wide.dtype) == (torch.float32, torch.float64)
    assert torch.equal(cast, loss(*half, loss.rate))
    assert torch.equal(exact, loss(*rows, loss.rate))
    leaves = loss.leaves(rows)
    assert all(each.dtype is torch.float32 for each in torch.autograd.grad(cast, leaves))


@each_loss
def test_backward_twice_and_double_backward(backend, name):
    loss = LOSSES[name]
    rows = loss.rows(20, 8)
    leaves = loss.leaves(rows)
    value = loss(*rows, loss.rate)
    first = torch.autograd.grad(value, leaves, retain_graph=True)
    second = torch.autograd.grad(value, leaves, retain_graph=True)
    assert all(map(torch.equal, first, second))
    for grad in torch.autograd.grad(value, leaves, create_graph=True):
        with pytest.raises(RuntimeError, match=r"^\w+: double backward is not implemented"):
            grad.sum().backward(retain_graph=True)


@each_loss
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_upstream_gradient_of_any_size(backend, name, dtype):
    loss = LOSSES[name]
    rows = loss.rows(40, 8, dtype)
    leaves = loss.leaves(rows)
    value = loss(*rows, 0.5 if loss.rate < 1 else 3.0) / 16
    once = torch.autograd.grad(value, leaves, retain_graph=True)
    for grad in (0.0, 2.0**-80, 65536.0, -2.0):
        scaled = torch.autograd.grad(value * grad, leaves, retain_graph=True)
        # float16 holds small ones in steps of 6e-8
        atol = max(abs(grad), 1.0) * 1e-7 if dtype is torch.float16 else 0.0
        for actual, expected in zip(scaled, once, strict=True):
            torch.testing.assert_close(
                actual.double(),
                expected.double() * grad,
                rtol=2 * torch.finfo(dtype).eps,
                atol=atol,
            )


@each_loss
def test_any_strides(backend, name):
    """The same numbers wherever rows lie; gradients are contiguous all the same."""
    loss = LOSSES[name]
    rows = loss.rows(20, 6)
    expected = run(name, rows, loss.rate)
    for layout in LAYOUTS.values():
        moved = [layout(x.detach()).requires_grad_(x.requires_grad) for x in rows]
        found = run(name, moved, loss.rate)
        assert all(grad.is_contiguous() for grad in found[-len(loss.trained) :])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@each_loss
def test_same_bits_on_every_run(backend, name):
    loss = LOSSES[name]
    for dtype in (torch.float32, torch.bfloat16):
        rows, rate = loss.rows(300, 33, dtype), torch.tensor(loss.rate, requires_grad=True)
        first = run(name, rows, rate)
        for _ in range(3):
            assert all(map(torch.equal, run(name, rows, rate), first))


@pytest.mark.slow
@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_number_of_threads(backend, name, dtype):
    """Up to more threads than cores, and than rows have blocks: none hangs, none loses a pair."""
    loss = LOSSES[name]
    rows, rate = loss.rows(500, 20, dtype), torch.tensor(loss.rate, requires_grad=True)
    before, rtol = torch.get_num_threads(), 1e-5 if dtype is torch.float32 else 2e-2
    try:
        torch.set_num_threads(1)
        single = run(name, rows, rate)
        for threads in (2, 3, 7):
            torch.set_num_threads(threads)
            for actual, expected in zip(run(name, rows, rate), single, strict=True):
                size = max(1.0, float(expected.double().abs().amax())) if expected.numel() else 1.0
                torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol * size)
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@each_loss
def test_fullgraph_compile_with_dynamic_shapes(backend, name):
    loss = LOSSES[name]
    torch._dynamo.reset()

    def step(*args):
        return loss.call(*args, return_stats=True) if loss.stats else loss.call(*args)

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for M in (9, 15):
        rows, rate = loss.rows(M, 8), torch.tensor(loss.rate, requires_grad=True)
        found = []
        for each in (compiled, step):
            torch.manual_seed(5)
            value, *stats = each(*rows, rate) if loss.stats else (each(*rows, rate),)
            grads = torch.autograd.grad(value, [*loss.leaves(rows), rate])
            found.append((value.detach(), *map(tuple, stats), grads))
        torch.testing.assert_close(*found)


class Recorded(TorchDispatchMode):
    """The calls of this package's ops, with copies of what they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "sslops":
            self.calls.append((func, tree_map_only(Tensor, copied, args)))
        return func(*args, **(kwargs or {}))


def copied(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_(x.requires_grad)


@pytest.mark.slow
@each_loss
@pytest.mark.parametrize(
    ("dtype", "layout", "learnt"),
    [(torch.float32, "contiguous", True), (torch.bfloat16, "transposed", False)],
    ids=str,
)
def test_opcheck(name, dtype, layout, learnt):
    """Every op that the loss calls: schema, fake kernel, autograd, what compilers make of it."""
    loss = LOSSES[name]
    rows = [LAYOUTS[layout](x.detach()) for x in loss.rows(6, 4, dtype)]
    rows = [x.requires_grad_(n in loss.trained) for n, x in enumerate(rows)]
    rate = torch.tensor(loss.rate, requires_grad=True) if learnt else loss.rate
    kwargs = {"return_stats": True} if loss.stats and learnt else {}
    with Recorded() as forward:
        value = loss(*rows, rate, **kwargs)
    value = value[0] if kwargs else value
    with Recorded() as plain, torch.no_grad():
        loss(*rows, rate)
    with plain:
        torch.autograd.grad(value, loss.leaves(rows) + ([rate] if learnt else []))
    assert forward.calls
    assert len(plain.calls) > 1
    for op, args in forward.calls:
        torch.library.opcheck(op, args)
    for op, args in plain.calls:
        detached = tree_map_only(Tensor, Tensor.detach, args)
        torch.library.opcheck(op, detached)
        for n, arg in enumerate(detached):
            if isinstance(arg, list):  # bools: which gradients are asked for
                for only in range(len(arg)):
                    asked = [k == only for k in range(len(arg))]
                    # what is not asked for may be NaN, which the other checks take for a difference
                    changed = (*detached[:n], asked, *detached[n + 1 :])
                    torch.library.opcheck(
                        op, changed, test_utils=("test_schema", "test_faketensor")
                    )


@each_loss
def test_meta_tensors_have_a_shape(name):
    loss = LOSSES[name]
    rows = [x.detach().to("meta").requires_grad_(x.requires_grad) for x in loss.rows(6, 4)]
    value = loss(*rows, loss.rate)
    assert value.shape == ()
    for leaf, grad in zip(
        loss.leaves(rows), torch.autograd.grad(value, loss.leaves(rows)), strict=True
    ):
        assert grad.shape == leaf.shape


@each_loss
@pytest.mark.parametrize("value", [0.0, -0.1, float("nan")])
def test_a_rate_on_the_device_that_is_not_positive_gives_nan(backend, name, value):
    """The host does not read it, so it cannot be refused."""
    loss = LOSSES[name]
    for dtype in (torch.float32, torch.float64):
        rows = loss.rows(20, 8, dtype)
        out, *stats, dx = run(name, rows, torch.tensor(value))[: -len(loss.trained) + 1 or None]
        assert out.isnan()
        assert dx.isnan().any()
        assert dx[dx != 0].isnan().all()  # 0 where cpc_loss has no target
        if name.startswith(("nt_xent", "info_nce", "clip_loss")):
            assert not any(each.any() for each in stats if each.dtype is torch.bool)  # hits


@each_loss
def test_a_learnt_rate_gets_a_gradient_like_itself(backend, name):
    loss = LOSSES[name]
    rows = loss.rows(12, 8)
    rate = torch.tensor([loss.rate], dtype=torch.bfloat16, requires_grad=True)
    loss(*rows, rate).backward()
    assert (rate.grad.dtype, rate.grad.shape) == (torch.bfloat16, (1,))
    assert rate.grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "case"), [(name, n) for name, cases in REFUSALS.items() for n in range(len(cases))]
)
def test_refuses(name, case):
    args, kwargs, error, message = REFUSALS[name][case]
    with pytest.raises(error, match=message) as caught:
        getattr(sslops, name)(*args, **kwargs)
    assert str(caught.value).startswith(f"{name}: ")
