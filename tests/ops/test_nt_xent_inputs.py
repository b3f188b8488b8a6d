"""NT-Xent: what it accepts, what it refuses, and what it does with inputs that are not clean."""

import math

import pytest
import torch
import torch.nn.functional as F

import sslops
from tests.numerics import naive_nt_xent


def test_layouts_agree():
    """[V, B, D], [M, D] and any strides are the same problem."""
    views = torch.randn(3, 10, 6)
    expected = sslops.nt_xent(views)
    assert torch.equal(sslops.nt_xent(views.reshape(30, 6), num_views=3), expected)
    strided = torch.randn(30, 12)[:, ::2].copy_(views.reshape(30, 6))
    assert torch.equal(sslops.nt_xent(strided, num_views=3), expected)
    transposed = views.reshape(30, 6).t().contiguous().t()
    assert torch.equal(sslops.nt_xent(transposed, num_views=3), expected)
    expanded = torch.randn(1, 6).expand(8, 6)
    torch.testing.assert_close(sslops.nt_xent(expanded), torch.tensor(7.0).log())


def test_weights_and_reductions():
    z, weights = torch.randn(2, 8, 5), torch.rand(2, 8)
    rows = sslops.nt_xent(z, reduction="none")
    flat = weights.flatten()
    torch.testing.assert_close(sslops.nt_xent(z, reduction="sum"), rows.sum())
    torch.testing.assert_close(sslops.nt_xent(z), rows.mean())
    torch.testing.assert_close(sslops.nt_xent(z, weights=weights, reduction="none"), rows * flat)
    torch.testing.assert_close(sslops.nt_xent(z, weights=flat), (rows * flat).sum() / flat.sum())


def test_zero_weights_silence_rows():
    """A row of weight zero asks for nothing, but others still see it as a negative."""
    z = torch.randn(12, 4, requires_grad=True)
    weights = torch.zeros(12)
    weights[3] = 1.0
    sslops.nt_xent(z, weights=weights, reduction="sum").backward()
    expected = z.detach().clone().requires_grad_()
    naive_nt_xent(expected, 0.1)[3].backward()
    torch.testing.assert_close(z.grad, expected.grad, rtol=1e-5, atol=1e-5)


def test_learnt_temperature():
    z = torch.randn(20, 6)
    log_scale = torch.tensor(2.0, requires_grad=True)
    sslops.nt_xent(z, temperature=(-log_scale).exp()).backward()
    expected = torch.tensor(2.0, requires_grad=True)
    naive_nt_xent(z, (-expected).exp()).mean().backward()
    torch.testing.assert_close(log_scale.grad, expected.grad, rtol=1e-5, atol=1e-6)
    half = torch.tensor([0.5], dtype=torch.bfloat16, requires_grad=True)
    sslops.nt_xent(z, temperature=half).backward()
    assert half.grad.dtype is torch.bfloat16
    assert half.grad.shape == (1,)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("M", [8, 700])
def test_not_finite_inputs_propagate(bad, dtype, M):
    """One bad element makes every row's loss NaN, as in plain PyTorch: nothing is hidden."""
    z = torch.randn(M, 6, dtype=dtype)
    z[M // 2, 1] = bad
    assert naive_nt_xent(z, 0.1).isnan().all()
    z.requires_grad_()
    loss = sslops.nt_xent(z, reduction="none")
    assert loss.isnan().all()
    loss.sum().backward()
    assert z.grad.isnan().all()


def test_nan_with_a_payload_is_still_nan():
    z = torch.randn(300, 6)
    z[5, 2] = torch.tensor(0x7FC00001, dtype=torch.int32).view(torch.float32)
    assert sslops.nt_xent(z, reduction="none").isnan().all()


def test_zero_rows_are_as_in_normalize():
    z = torch.randn(10, 4)
    z[3] = 0.0
    z.requires_grad_()
    expected = z.detach().clone().requires_grad_()
    loss, naive = sslops.nt_xent(z, reduction="none"), naive_nt_xent(expected, 0.1)
    torch.testing.assert_close(loss, naive)
    loss.sum().backward()
    naive.sum().backward()
    torch.testing.assert_close(z.grad, expected.grad, rtol=1e-4, atol=1e-4)


def test_huge_and_tiny_rows():
    """Norms whose squares leave float32: the direction still counts."""
    x = F.normalize(torch.randn(12, 5), dim=1)
    sizes = torch.tensor([1e-10, 1.0, 1e25]).repeat(4)[:, None]
    torch.testing.assert_close(sslops.nt_xent(x * sizes), sslops.nt_xent(x), rtol=1e-5, atol=1e-5)


def test_statistics_are_detached():
    z = torch.randn(8, 3, requires_grad=True)
    loss, stats = sslops.nt_xent(z, return_stats=True)
    torch.testing.assert_close(stats.loss.mean(), loss.detach())
    assert not any(each.requires_grad for each in stats)
    assert stats.hit.dtype is torch.bool


Z = torch.zeros(4, 8)


def test_module():
    z1, z2 = torch.randn(2, 8, 4)
    assert torch.equal(
        sslops.NTXentLoss(0.5)(z1, z2), sslops.nt_xent(torch.stack([z1, z2]), temperature=0.5)
    )
    learnt = sslops.NTXentLoss(0.5, learn_temperature=True)
    assert [name for name, _ in learnt.named_parameters()] == ["log_temperature"]
    learnt(z1, z2).backward()
    assert learnt.log_temperature.grad.isfinite()
    assert learnt.temperature.item() == pytest.approx(0.5)
    assert "temperature=0.5, learnt" in repr(learnt)
    assert list(sslops.NTXentLoss().parameters()) == []
    with pytest.raises(ValueError, match="temperature must be positive and finite, got 0"):
        sslops.NTXentLoss(0.0)
    with pytest.raises(ValueError, match=r"views must share their shape, got \(8, 4\), \(7, 4\)"):
        sslops.NTXentLoss()(z1, z2[:7])
    with pytest.raises(
        ValueError, match=r"share dtype and device, got torch.float32 on cpu, torch.b"
    ):
        sslops.NTXentLoss()(z1, z2.bfloat16())
    with pytest.raises(ValueError, match=r"share dtype and device, got .* on cpu, .* on meta"):
        sslops.NTXentLoss()(z1, z2.to("meta"))
    with pytest.raises(ValueError, match="needs at least one tensor"):
        sslops.NTXentLoss()()
