"""NT-Xent: weights of every kind and size, and the corners of the temperature."""

import math

import pytest
import torch

import sslops
from tests.numerics import naive_nt_xent

EPS = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def gradients(z, weights, temperature):
    """dz of the weighted sum: ours, plain PyTorch in z's dtype, float64."""
    found = []
    for leaf, loss in (
        (z.clone(), lambda z: sslops.nt_xent(z, temperature=temperature, reduction="none")),
        (z.clone(), lambda z: naive_nt_xent(z, temperature)),
        (z.double(), lambda z: naive_nt_xent(z, temperature)),
    ):
        leaf.requires_grad_()
        rows = loss(leaf)
        (rows * weights.to(rows.dtype)).sum().backward()
        found.append(leaf.grad.double())
    return found


@pytest.mark.parametrize("dtype", list(EPS), ids=str)
@pytest.mark.parametrize(
    ("M", "D", "temperature"), [(512, 128, 0.05), (202, 24, 0.02), (4, 64, 0.1)]
)
def test_solved_pairs_with_uneven_weights(backend, dtype, M, D, temperature):
    """Softmax and positive cancel: what is left must not be the rounding of either."""
    z = torch.randn(M // 2, D).repeat(2, 1) + 0.3 * torch.randn(M, D)
    weights = torch.rand(M) + 0.1
    ours, naive, truth = gradients(z.to(dtype), weights, temperature)
    # whatever the dtype of the rows, logits and their sums are rounded to float32
    logit = 1 / temperature + math.log(M)
    floor = 4 * EPS[torch.float32] * logit / temperature * (weights / z.norm(dim=1)).norm()
    allowed = 2 * (naive - truth).norm() + 4 * EPS[dtype] * truth.norm() + floor
    assert (ours - truth).norm() <= allowed


@pytest.mark.parametrize("light", [1e-7, 1e-12, 1e-20])
@pytest.mark.parametrize("temperature", [1 / 40, 1 / 70])
def test_light_rows_keep_their_direction(backend, light, temperature):
    """Rows of nearly no weight beside heavy ones, at logits where exp(-lse) is tiny."""
    axes = torch.eye(16)
    z = torch.stack([axes[0] if b < 4 else axes[1] for b in range(8)]).repeat(2, 1)
    z = z + 0.03 * torch.randn(16, 16)
    is_light = (torch.arange(16) % 8) >= 4
    ours, naive, truth = gradients(z, torch.where(is_light, light, 1.0), temperature)
    # the light rows alone, in their own size
    error, plain = (ours - truth)[is_light].norm(), (naive - truth)[is_light].norm()
    assert error <= 2 * plain + 1e-4 * truth[is_light].norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_of_another_dtype(dtype):
    """Their sum is taken in float32: in float16 this one would be infinite."""
    z = torch.randn(1000, 16, requires_grad=True)
    loss = sslops.nt_xent(z, weights=torch.full((1000,), 100.0, dtype=dtype))
    assert loss.dtype is torch.float32
    torch.testing.assert_close(loss, sslops.nt_xent(z))
    loss.backward()
    assert z.grad.abs().max() > 0


@pytest.mark.parametrize("temperature", [1e-10, 3e-9, 1e10, 1e30])
@pytest.mark.parametrize("M", [8, 65])
def test_extreme_temperatures(backend, temperature, M):
    z = torch.randn(M, 8)
    num_views = 5 if M == 65 else 2
    loss = sslops.nt_xent(z, num_views=num_views, temperature=temperature, reduction="none")
    expected = naive_nt_xent(z.double(), temperature, num_views)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=2e-5)


def test_no_hit_without_a_number(backend):
    """A row whose loss is NaN has found nothing."""
    z = torch.eye(8)
    z[4:] = z[:4]
    z[5] = math.nan
    loss, stats = sslops.nt_xent(z, return_stats=True)
    assert loss.isnan()
    assert not stats.hit.any()
