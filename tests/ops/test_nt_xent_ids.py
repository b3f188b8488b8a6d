"""NT-Xent with known duplicates left out of the negatives."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sslops
from tests.conftest import running
from tests.layouts import LAYOUTS
from tests.numerics import assert_as_accurate_as, naive_nt_xent

from .test_nt_xent import DTYPES, make_input


def check(z, ids, num_views=2, temperature=0.1, normalize=True):
    """Loss, gradients of rows and temperature, and statistics against the masked plain version."""
    dtype, M = z.dtype, len(z)
    grad, found = torch.rand(M) + 0.1, {}
    for kind in (dtype, torch.float64, "ours"):
        leaf = z.to(dtype if kind == "ours" else kind).detach().requires_grad_()
        wide = torch.promote_types(dtype, torch.float32) if kind == "ours" else kind
        scale = torch.tensor(1 / temperature).to(wide).requires_grad_()
        if kind == "ours":
            loss, stats = sslops.nt_xent(
                leaf, num_views=num_views, temperature=1 / scale, ids=ids, normalize=normalize,
                reduction="none", return_stats=True,
            )  # fmt: skip
        else:
            loss = naive_nt_xent(leaf, 1 / scale, num_views, normalize, ids)
        grads = torch.autograd.grad(loss, (leaf, scale), grad.to(loss.dtype))
        found[kind] = (loss.detach(), *grads)
    norm = z.double().norm(dim=1)
    largest = 1.0 if normalize else float(norm.max()) ** 2
    logit = largest / temperature + math.log(M)
    by_norm = 1 / float(norm.min()) if normalize else float(norm.max())
    bounds = (
        logit,
        2 * logit / temperature * by_norm * float(grad.max()),
        logit * largest * float(grad.sum()),
    )
    for n, name in enumerate(("loss", "dz", "dscale")):
        assert_as_accurate_as(
            found["ours"][n], found[dtype][n], found[torch.float64][n], name=name, scale=bounds[n]
        )
    torch.testing.assert_close(stats.loss, found["ours"][0])
    return stats


@pytest.mark.every_isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kinds", [1, 4, 1000])
@pytest.mark.parametrize(
    ("B", "D", "num_views"), [(1, 2, 2), (33, 7, 2), (150, 32, 2), (70, 40, 4)]
)
def test_matches_float64(backend, B, D, num_views, kinds, dtype):
    z = make_input(B * num_views, D, num_views, dtype)
    check(z, torch.randint(-1, kinds, (B,)), num_views)


@given(
    B=st.integers(1, 20),
    D=st.integers(2, 20),
    num_views=st.integers(2, 4),
    kinds=st.integers(0, 20),
    temperature=st.floats(0.05, 2.0),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(list(LAYOUTS)),
    normalize=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_fuzz(backend_name, B, D, num_views, kinds, temperature, dtype, layout, normalize, seed):
    torch.manual_seed(seed)
    z = make_input(B * num_views, D, num_views, dtype)
    z = z if normalize else z * D**-0.5
    with running(backend_name):
        check(LAYOUTS[layout](z), torch.randint(-1, kinds, (B,)), num_views, temperature, normalize)


@pytest.mark.parametrize("num_views", [2, 3])
def test_different_ids_change_nothing(backend, num_views):
    z = make_input(20 * num_views, 8, num_views, torch.float32)
    expected, stats = sslops.nt_xent(z, num_views=num_views, return_stats=True)
    for ids in (torch.arange(20), torch.full((20,), -1), torch.arange(20) - 10):
        loss, found = sslops.nt_xent(z, num_views=num_views, ids=ids, return_stats=True)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(found.lse, stats.lse)
        assert torch.equal(found.hit, stats.hit)


@pytest.mark.parametrize("num_views", [2, 3])
def test_all_duplicates_leave_the_positives(backend, num_views):
    """No negative at all: with two views loss 0, with more the spread of the positives."""
    z = make_input(10 * num_views, 6, num_views, torch.float32).requires_grad_()
    ids = torch.zeros(10, dtype=torch.int64)
    loss, stats = sslops.nt_xent(z, num_views=num_views, ids=ids, return_stats=True)
    torch.testing.assert_close(loss, naive_nt_xent(z, 0.1, num_views, ids=ids).mean())
    assert stats.hit.all()
    loss.backward()
    if num_views == 2:
        assert loss == 0
        assert not z.grad.any()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("num_views", [2, 3])
def test_gradcheck_in_float64(num_views, normalize):
    z = torch.randn(num_views, 4, 3).double().requires_grad_()
    temperature = torch.tensor(0.4).double().requires_grad_()
    weights = torch.rand(num_views, 4).double().requires_grad_()
    ids = torch.tensor([7, 3, 7, -1])
    assert torch.autograd.gradcheck(
        lambda z, t, w: sslops.nt_xent(z, temperature=t, weights=w, ids=ids, normalize=normalize),
        (z, temperature, weights),
    )


def test_ids_of_rows_and_of_any_size():
    """[M] with agreeing views; ids are compared whole, up to the ends of int64."""
    z = torch.randn(3, 5, 4)
    ids = torch.tensor([0, 1 << 40, -(1 << 63), (1 << 63) - 1, 1 << 40])
    expected = sslops.nt_xent(z, ids=torch.tensor([0, 1, -1, 2, 1]))
    assert torch.equal(sslops.nt_xent(z, ids=ids), expected)
    assert torch.equal(sslops.nt_xent(z, ids=ids.repeat(3)), expected)
    assert not torch.equal(sslops.nt_xent(z), expected)


def test_a_duplicate_is_no_negative():
    """A batch that holds every image twice: as the loss of the batch that holds it once."""
    once = torch.randn(2, 6, 5)
    twice = once.repeat(1, 2, 1)
    loss = sslops.nt_xent(twice, ids=torch.arange(6).repeat(2), reduction="none").view(2, 12)
    negatives = (once[0, 0] / once[0, 0].norm()) @ torch.nn.functional.normalize(
        twice.flatten(0, 1), dim=1
    ).T
    keep = (torch.arange(24) % 6 != 0) | (torch.arange(24) == 12)
    logits = negatives[keep] / 0.1
    expected = logits.logsumexp(0) - negatives[12] / 0.1
    torch.testing.assert_close(loss[0, 0], expected, rtol=1e-5, atol=1e-5)
