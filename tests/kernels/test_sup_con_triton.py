"""The supervised contrastive loss's Triton kernels, on a GPU or in the interpreter."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslops import _library
from tests.numerics import assert_as_accurate_as, assert_same_in_another_order

pytest.importorskip("triton")
from sslops.kernels import _config, _tile
from sslops.kernels import sup_con as kernels
from sslops.reference import sup_con as reference

# The interpreter works on padding and on rows of nothing; numpy would warn of each.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")]

# M, D, classes, temperature, normalize: smallest; every size odd; a last block of one row; wider
# than rows that stay whole; rows of norm 5, whose logits reach 1250; cosines that need a maximum
CASES = [
    (2, 1, 1, 1.0, True),
    (65, 3, 7, 0.1, True),
    (129, 130, 40, 0.1, True),
    (66, 300, 3, 0.05, True),
    (7, 17, 2, 0.02, False),
    (134, 64, 30, 0.005, True),
]


def make_input(M, D, classes, normalize, dtype, device):
    """(rows that resemble those of their class, labels with some that match nothing)."""
    labels = torch.randint(classes, (M,))
    z = torch.randn(classes, D)[labels] + 0.5 * torch.randn(M, D)
    if not normalize:
        z = 5 * F.normalize(z, dim=1)
    if M > 10:
        labels[torch.randperm(M)[: M // 8]] = -1
    return z.to(device, dtype), labels.to(device) * 2**40


def naive(z: Tensor, labels: Tensor, scale: Tensor, inside: bool, normalize: bool) -> Tensor:
    """Per-row loss as a user writes it, [M]: the similarities are stored and masked."""
    x = F.normalize(z, dim=1) if normalize else z
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = (labels[:, None] == labels) & (labels >= 0) & ~itself
    count = positive.sum(dim=1)
    log_p = (x @ x.T * scale).masked_fill(itself, float("-inf")).log_softmax(dim=1)
    if inside:
        # a row of -inf alone has no gradient that is a number
        some = torch.where((count == 0)[:, None], 0.0, log_p.masked_fill(~positive, float("-inf")))
        loss = count.clamp_min(1).to(z.dtype).log() - some.logsumexp(dim=1)
    else:
        loss = -torch.where(positive, log_p, 0.0).sum(dim=1) / count.clamp_min(1)
    return torch.where(count > 0, loss, 0.0)


def run(z, labels, grad, inside, normalize, factor=1.0, scale=None):
    """(loss, lse, positive_lse, dz, dscale) of the launchers."""
    args = (scale, factor, inside, normalize)
    out = kernels.sup_con_fwd(z, labels, *args)
    return *out, *kernels.sup_con_bwd(grad, z, labels, *out[1:], *args)


def check(found, z, labels, grad, inside, normalize, temperature):
    """Every result against float64, allowed twice the error of plain PyTorch in z's dtype."""
    args = (None, 1 / temperature, inside, normalize)
    truth = reference.sup_con_fwd(z.double(), labels, *args)
    true_dz, true_dscale = reference.sup_con_bwd(
        grad.double(), z.double(), labels, *truth[1:], *args
    )
    user = z.detach().requires_grad_()
    scale = torch.tensor(1 / temperature, device=z.device, dtype=z.dtype, requires_grad=True)
    theirs = naive(user, labels, scale, inside, normalize)
    naive_dz, naive_dscale = torch.autograd.grad(theirs, (user, scale), grad.to(z.dtype))

    loss, lse, positive_lse, dz, dscale = found
    norm = z.double().norm(dim=1)
    largest = 1.0 if normalize else float(norm.max()) ** 2
    logit = largest / temperature + math.log(len(z))
    assert_as_accurate_as(loss, theirs, truth[0], name="loss", scale=logit)
    assert_as_accurate_as(lse, truth[1].to(z.dtype), truth[1], name="lse", scale=logit)
    if inside:
        some = truth[2].isfinite()
        assert torch.equal(positive_lse.isfinite(), some)
        exact = truth[2][some]
        assert_as_accurate_as(
            positive_lse[some], exact.to(z.dtype), exact, name="positive_lse", scale=logit
        )
    by_norm = 1 / float(norm.min()) if normalize else float(norm.max())
    bound = logit / temperature * by_norm * float(grad.abs().max())
    assert_as_accurate_as(dz, naive_dz, true_dz, name="dz", scale=bound)
    bound = logit * largest * float(grad.abs().sum())
    assert_as_accurate_as(dscale, naive_dscale, true_dscale, name="dscale", scale=bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("M, D, classes, temperature, normalize", CASES)
def test_matches_float64(M, D, classes, temperature, normalize, inside, dtype, device):
    if device == "cpu" and dtype is torch.bfloat16:
        pytest.skip("Triton's interpreter computes bfloat16 as if it were uint16")
    z, labels = make_input(M, D, classes, normalize, dtype, device)
    grad = torch.rand(M, device=device) / M
    found = run(z, labels, grad, inside, normalize, 1 / temperature)
    check(found, z, labels, grad, inside, normalize, temperature)
    assert found[3].dtype is dtype
    assert found[0].dtype is found[4].dtype is torch.float32


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.0165])
def test_fixed_offset_is_exact_in_float32(temperature, inside, monkeypatch, device):
    """The case that float32 never takes by itself, to float32's tolerance."""
    monkeypatch.setattr(_config, "FIXED_DTYPES", (torch.float32,))
    z, labels = make_input(130, 20, 20, True, torch.float32, device)
    grad = torch.rand(130, device=device)
    found = run(z, labels, grad, inside, True, 1 / temperature)
    check(found, z, labels, grad, inside, True, temperature)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("online", [False, True])
def test_strips_of_many_blocks(online, inside, monkeypatch, device):
    monkeypatch.setattr(_tile, "MAX_STRIPS", 2)
    monkeypatch.setattr(_config, "FIXED_DTYPES", () if online else (torch.float32,))
    z, labels = make_input(390, 8, 30, True, torch.float32, device)
    args = (None, 10.0, inside, True)
    found = kernels.sup_con_fwd(z, labels, *args)
    truth = reference.sup_con_fwd(z.double(), labels, *args)
    for each, exact in zip(found, truth, strict=True):
        torch.testing.assert_close(each.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("temperature", [0.1, 0.005])
def test_the_device_chooses_the_case(temperature, inside, device):
    """A tensor scale launches both kernels of each pass, and one of them does the work."""
    z, labels = make_input(70, 40, 9, True, torch.float16, device)
    grad = torch.rand(70, device=device)
    by_number = run(z, labels, grad, inside, True, 1 / temperature)
    scale = torch.tensor(1 / temperature, device=device)
    for number, tensor in zip(
        by_number, run(z, labels, grad, inside, True, scale=scale), strict=True
    ):
        assert torch.equal(number, tensor)


@pytest.mark.parametrize("inside", [False, True])
def test_no_positive_at_all(inside, device):
    z, _ = make_input(6, 5, 2, True, torch.float32, device)
    for labels in (torch.arange(6, device=device), torch.full((6,), -1, device=device)):
        loss, lse, _, dz, dscale = run(z, labels, torch.ones(6, device=device), inside, True, 5.0)
        assert not any(t.any() for t in (loss, dz, dscale))
        assert lse.isfinite().all()


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("scale", [0.0, -3.0, float("nan")])
def test_no_positive_scale_gives_nan(scale, inside, device):
    z, _ = make_input(6, 4, 2, True, torch.float16, device)
    labels, grad = torch.tensor([0, 0, 1, 1, 1, 2], device=device), torch.ones(6, device=device)
    for args in ((scale, None), (1.0, torch.tensor(scale, device=device))):
        loss, lse, _, dz, dscale = run(z, labels, grad, inside, True, *args)
        assert all(t.isnan().all() for t in (loss, lse, dz, dscale))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("inside", [False, True])
def test_one_bad_row_reaches_every_row(inside, dtype, device):
    z, labels = make_input(134, 5, 2, True, dtype, device)
    z[130, 2] = float("nan")
    loss, lse, _, dz, dscale = run(z, labels, torch.ones(134, device=device), inside, True, 5.0)
    assert all(t.isnan().all() for t in (loss[labels >= 0], lse, dz, dscale))


@pytest.mark.parametrize("inside", [False, True])
def test_upstream_gradient_of_any_size_in_float16(inside, device):
    """A loss scaler's factor must not overflow, nor 1 / M vanish, in half-precision products."""
    z, labels = make_input(130, 32, 9, True, torch.float16, device)
    z, args = z * 100, (None, 10.0, inside, True)
    ones = torch.ones(130, device=device)
    found = kernels.sup_con_fwd(z, labels, *args)
    exact = reference.sup_con_fwd(z.double(), labels, *args)
    truth, _ = reference.sup_con_bwd(ones.double(), z.double(), labels, *exact[1:], *args)
    for size in (2.0**16, 1.0):
        dz, _ = kernels.sup_con_bwd(size * ones, z, labels, *found[1:], *args)
        error = (dz.double() / size - truth).abs().max() / truth.abs().max()
        assert error < 2e-3, f"dz is off by {error:.2g} of its maximum at {size}"


def test_any_strides_and_the_same_bits_twice(device):
    z, labels = make_input(66, 40, 5, True, torch.float32, device)
    wide = torch.full((66, 120), float("nan"), device=device)
    wide[:, 1::3] = z
    expected = run(z, labels, torch.full((66,), 0.25, device=device), True, True, 5.0)
    grad = torch.full((), 0.25, device=device).expand(66)
    for found, exact in zip(run(z, labels, grad, True, True, 5.0), expected, strict=True):
        assert torch.equal(found, exact)
    for view in (wide[:, 1::3], z.T.contiguous().T):
        for found, exact in zip(run(view, labels, grad, True, True, 5.0), expected, strict=True):
            assert_same_in_another_order(found, exact)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.gpu
@pytest.mark.parametrize("inside", [False, True])
def test_captures_into_a_cuda_graph(inside):
    z, labels = make_input(600, 64, 9, True, torch.bfloat16, "cuda")
    grad, scale = torch.rand(600, device="cuda"), torch.tensor(10.0, device="cuda")
    expected = run(z, labels, grad, inside, True, scale=scale)  # compiles, which a capture cannot
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(z, labels, grad, inside, True, scale=scale)
    graph.replay()
    for found, exact in zip(captured, expected, strict=True):
        assert torch.equal(found, exact)


def test_cuda_runs_triton_but_for_float64(device):
    for name in ("sup_con_fwd", "sup_con_bwd"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"sslops::{name}", "CUDA")
        for dtype in (torch.float32, torch.float64):
            args = (torch.ones(2, 2, dtype=dtype, device=device),)
            chosen = _library.gpu_kernel(name, f"sup_con.{name}", False, args)
            assert chosen is (getattr(kernels, name) if dtype is torch.float32 else None)
