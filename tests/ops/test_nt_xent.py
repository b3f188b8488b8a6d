"""NT-Xent on the CPU and in plain PyTorch: numbers, gradients, registration, closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sslops
from sslops._library import op
from sslops.reference import _rows
from sslops.reference import nt_xent as reference
from tests.conftest import running
from tests.layouts import LAYOUTS
from tests.numerics import assert_as_accurate_as, loop_nt_xent, naive_nt_xent

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# M, D, views: smallest; odd everything; one tile; tiles of every kind, ragged; many views
SHAPES = [(2, 1, 2), (66, 3, 3), (64, 32, 2), (342, 130, 2), (1100, 17, 2), (300, 40, 5)]


def make_input(M: int, D: int, num_views: int, dtype: torch.dtype) -> Tensor:
    """Views that resemble each other, or the softmax would be flat: [M, D]."""
    sample = torch.randn(M // num_views, D).repeat(num_views, 1)
    return (sample + 0.5 * torch.randn(M, D)).to(dtype)


def results(z: Tensor, temperature: float, num_views: int, normalize: bool, grad: Tensor):
    """(loss, lse, hit, dz, dscale) of the registered ops; statistics take another path."""
    args = (None, 1 / temperature, num_views, normalize)
    forward = op("nt_xent_fwd", z)
    loss, lse, none = forward(z, *args, False)
    stats_loss, stats_lse, hit = forward(z, *args, True)
    assert none.numel() == 0
    torch.testing.assert_close(stats_loss, loss, rtol=1e-5, atol=1e-5 / temperature)
    torch.testing.assert_close(stats_lse, lse, rtol=1e-5, atol=1e-5 / temperature)
    return loss, lse, hit, *op("nt_xent_bwd", z)(grad, z, lse, *args)


def check_accuracy(z, temperature, num_views, normalize, grad):
    """Every result against float64, allowed twice the error of plain PyTorch in z's dtype."""
    leaf = z.double().requires_grad_()
    scale = torch.tensor(1 / temperature, dtype=torch.float64, requires_grad=True)
    truth = naive_nt_xent(leaf, 1 / scale, num_views, normalize)
    truth_dz, truth_dscale = torch.autograd.grad(truth, (leaf, scale), grad.double())
    user = z.clone().requires_grad_()
    user_scale = scale.detach().to(z.dtype).requires_grad_()
    naive = naive_nt_xent(user, 1 / user_scale, num_views, normalize)
    naive_dz, naive_dscale = torch.autograd.grad(naive, (user, user_scale), grad.to(z.dtype))

    loss, lse, hit, dz, dscale = results(z, temperature, num_views, normalize, grad)
    norm = z.double().norm(dim=1)
    largest = 1.0 if normalize else float(norm.max()) ** 2
    logit = largest / temperature + math.log(len(z))
    assert_as_accurate_as(loss, naive, truth, name="loss", scale=logit)
    # an error of eps * logit in a probability, times a row, over its norm
    by_norm = 1 / float(norm.min()) if normalize else float(norm.max())
    bound = logit / temperature * by_norm * float(grad.abs().max())
    assert_as_accurate_as(dz, naive_dz, truth_dz, name="dz", scale=bound)
    bound = logit * largest * float(grad.abs().sum())
    assert_as_accurate_as(dscale, naive_dscale, truth_dscale, name="dscale", scale=bound)
    exact = reference.nt_xent_fwd(z.double(), None, 1 / temperature, num_views, normalize, True)
    if z.dtype is torch.float32:
        torch.testing.assert_close(lse.double(), exact[1], rtol=1e-5, atol=1e-5)
    check_hits(z, num_views, normalize, hit, largest)


def check_hits(z, num_views, normalize, hit, largest):
    """As in float64 wherever best positive and best negative differ by more than rounding."""
    x = F.normalize(z.double(), dim=1) if normalize else z.double()
    similarity, itself = x @ x.T, torch.eye(len(z), dtype=torch.bool)
    sample = torch.arange(len(z)) % (len(z) // num_views)
    same = sample[:, None] == sample
    positive = similarity.masked_fill(~same | itself, -math.inf).amax(dim=1)
    margin = positive - similarity.masked_fill(same, -math.inf).amax(dim=1)
    clear = margin.abs() > 8 * torch.finfo(z.dtype).eps * largest
    assert torch.equal(hit[clear], margin[clear] > 0)


@pytest.mark.every_isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("M", "D", "num_views"), SHAPES)
@pytest.mark.parametrize("temperature", [0.5, 0.1])
def test_matches_float64(backend, M, D, num_views, dtype, temperature):
    z = make_input(M, D, num_views, dtype)
    check_accuracy(z, temperature, num_views, True, torch.rand(M) + 0.1)


@pytest.mark.every_isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [0.02, 0.005])
def test_small_temperature_keeps_a_maximum(backend, dtype, temperature):
    z = make_input(202, 24, 2, dtype)
    check_accuracy(z, temperature, 2, True, torch.rand(202) + 0.1)


@pytest.mark.parametrize("size", [0.2, 4.0])
def test_dot_products_of_any_size(backend, size):
    z = make_input(130, 20, 2, torch.float32) * size
    check_accuracy(z, 0.3, 2, False, torch.rand(130) + 0.1)


@given(
    samples=st.integers(1, 60),
    num_views=st.integers(2, 4),
    D=st.integers(1, 70),
    temperature=st.floats(0.05, 2.0),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(list(LAYOUTS)),
    normalize=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_fuzz(backend_name, samples, num_views, D, temperature, dtype, layout, normalize, seed):
    torch.manual_seed(seed)
    M = samples * num_views
    # one feature: similarities are +-1 and the gradient of the normalisation is rounding alone
    z = make_input(M, D, num_views, dtype) + (2.0 if D == 1 else 0.0)
    z = z if normalize else z * D**-0.5
    grad = torch.rand(M) + 0.1
    with running(backend_name):
        check_accuracy(LAYOUTS[layout](z), temperature, num_views, normalize and D > 1, grad)


@pytest.mark.parametrize("num_views", [2, 3])
@pytest.mark.parametrize("normalize", [True, False])
def test_reference_matches_a_double_loop(num_views, normalize):
    z = make_input(12, 5, num_views, torch.float64)
    loss = sslops.nt_xent(
        z, num_views=num_views, temperature=0.3, normalize=normalize, reduction="none"
    )
    torch.testing.assert_close(loss, loop_nt_xent(z, 0.3, num_views, normalize))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck_in_float64(reduction, normalize):
    z = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda z, t, w: sslops.nt_xent(
            z, temperature=t, weights=w, normalize=normalize, reduction=reduction
        ),
        (z, temperature, weights),
    )


def test_reference_in_chunks(monkeypatch):
    z, grad = make_input(50, 6, 2, torch.float64), torch.rand(50, dtype=torch.float64)
    args = (None, 5.0, 2, True)
    whole = reference.nt_xent_fwd(z, *args, True)
    dz = reference.nt_xent_bwd(grad, z, whole[1], *args)[0]
    monkeypatch.setattr(_rows, "CHUNK", 50 * 7)
    for part, all_ in zip(reference.nt_xent_fwd(z, *args, True), whole, strict=True):
        torch.testing.assert_close(part, all_)
    torch.testing.assert_close(reference.nt_xent_bwd(grad, z, whole[1], *args)[0], dz)


@pytest.mark.parametrize(("M", "D"), [(2, 3), (90, 20), (600, 40)])
def test_equal_rows_are_at_chance(backend, M, D):
    """Every other row is as likely as the positive: log(M - 1), the gradient is zero, no hit."""
    z = torch.ones(M, D, requires_grad=True)
    loss, stats = sslops.nt_xent(z, temperature=0.2, return_stats=True)
    assert loss.item() == pytest.approx(sslops.chance("nt_xent", batch=M // 2), abs=2e-6)
    loss.backward()
    assert z.grad.abs().max() < 1e-6
    # with two rows there is no negative to lose against
    assert bool(stats.hit.any()) is (M == 2)


def test_perfect_pairs_have_no_loss(backend):
    z = torch.cat([torch.eye(16), torch.eye(16)]).requires_grad_()
    loss, stats = sslops.nt_xent(z, temperature=0.02, return_stats=True)
    assert 0 <= loss.item() < 1e-6
    assert stats.hit.all()
    loss.backward()
    assert z.grad.isfinite().all()


def test_opposite_rows_do_not_underflow(backend):
    """All similarities at -1 or +1 and a tiny temperature: no 0 / 0, no log 0."""
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    loss = sslops.nt_xent(z, temperature=0.004, reduction="none")
    torch.testing.assert_close(loss.detach(), torch.full((4,), 2 / 0.004))
    loss.sum().backward()
    assert z.grad.isfinite().all()


def test_row_order_and_scale_do_not_matter(backend):
    z = make_input(40, 8, 2, torch.float32).view(2, 20, 8)
    loss = sslops.nt_xent(z, reduction="none").view(2, 20)
    order = torch.randperm(20)
    shuffled = sslops.nt_xent(z.flip(0)[:, order] * 3.0, reduction="none").view(2, 20)
    torch.testing.assert_close(shuffled, loss.flip(0)[:, order], rtol=1e-5, atol=1e-5)
