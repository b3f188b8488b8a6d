"""NT-Xent's Triton kernels: numbers on a GPU or in the interpreter, and the op's dispatch."""

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from sslops import _library
from tests.numerics import assert_as_accurate_as, assert_same_in_another_order, naive_nt_xent

pytest.importorskip("triton")
from sslops.kernels import _config, _tile
from sslops.kernels import nt_xent as kernels
from sslops.reference import nt_xent as reference

# The interpreter works on padding and on rows of nothing; numpy would warn of each.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")]

# M, D, V, temperature, normalize: smallest; every size odd; two blocks, one ragged; a last block
# of one row, which has only itself there; wider than rows that stay whole; rows of norm 5, whose
# logits reach 1250; cosines that need their own maximum
CASES = [
    (2, 1, 2, 1.0, True),
    (65, 3, 5, 0.1, True),
    (200, 64, 2, 0.02, True),
    (129, 130, 3, 0.1, True),
    (66, 300, 2, 0.005, True),
    (6, 17, 2, 0.02, False),
    (134, 64, 2, 0.005, True),
]


def make_input(M: int, D: int, V: int, normalize: bool, dtype: torch.dtype, device: str) -> Tensor:
    """Views that resemble each other, or the softmax would be flat: [M, D]."""
    z = torch.randn(M // V, D).repeat(V, 1) + 0.5 * torch.randn(M, D)
    if not normalize:
        z *= 5 / z.norm(dim=1, keepdim=True)
    return z.to(device, dtype)


def run(z, grad, V, normalize, temperature=None, scale=None, stats=True):
    """(loss, lse, hit, dz, dscale) of the launchers."""
    args = (scale, 1.0 if temperature is None else 1 / temperature, V, normalize)
    loss, lse, hit = kernels.nt_xent_fwd(z, *args, stats)
    return loss, lse, hit, *kernels.nt_xent_bwd(grad, z, lse, *args)


def check(results, z, grad, V, normalize, temperature):
    """Every result against float64, allowed twice the error of plain PyTorch in z's dtype."""
    leaf = z.double().requires_grad_()
    scale = torch.tensor(1 / temperature, dtype=torch.float64, requires_grad=True)
    truth = naive_nt_xent(leaf, 1 / scale, V, normalize)
    truth_dz, truth_dscale = torch.autograd.grad(truth, (leaf, scale), grad.double())
    user, user_scale = (t.detach().to(z.dtype).requires_grad_() for t in (leaf, scale))
    naive = naive_nt_xent(user, 1 / user_scale, V, normalize)
    naive_dz, naive_dscale = torch.autograd.grad(naive, (user, user_scale), grad.to(z.dtype))

    loss, lse, hit, dz, dscale = results
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
    exact = reference.nt_xent_fwd(z.double(), None, 1 / temperature, V, normalize, True)
    assert_as_accurate_as(lse, exact[1].to(z.dtype), exact[1], name="lse", scale=logit)
    wrong = (hit != exact[2]).double().mean()  # a tie of rounded rows may fall either way
    assert wrong <= (0.0 if z.dtype is torch.float32 else 0.02), f"hit: {wrong:.1%} differ"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("M, D, V, temperature, normalize", CASES)
def test_matches_float64(M, D, V, temperature, normalize, dtype, device):
    if device == "cpu" and dtype is torch.bfloat16:
        pytest.skip("Triton's interpreter computes bfloat16 as if it were uint16")
    z = make_input(M, D, V, normalize, dtype, device)
    grad = torch.rand(M, device=device) / M
    results = run(z, grad, V, normalize, temperature)
    check(results, z, grad, V, normalize, temperature)
    assert results[0].dtype is results[4].dtype is torch.float32


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.0165])
def test_fixed_offset_is_exact_in_float32(temperature, monkeypatch, device):
    """The case that float32 never takes by itself, to float32's tolerance."""
    monkeypatch.setattr(_config, "FIXED_DTYPES", (torch.float32,))
    z = make_input(200, 20, 2, True, torch.float32, device)
    z[3] = -z[103]  # a row whose positive is opposite
    grad = torch.rand(200, device=device)
    check(run(z, grad, 2, True, temperature), z, grad, 2, True, temperature)


@pytest.mark.parametrize("online", [True, False])
def test_strips_of_many_blocks(online, monkeypatch, device):
    """Column sums that one program collects over several row blocks; the last strip is ragged."""
    monkeypatch.setattr(_tile, "MAX_STRIPS", 2)
    monkeypatch.setattr(_config, "FIXED_DTYPES", () if online else (torch.float32,))
    z = make_input(390, 8, 2, True, torch.float32, device)
    grad = torch.rand(390, device=device)
    check(run(z, grad, 2, True, 0.1), z, grad, 2, True, 0.1)


@pytest.mark.parametrize("temperature", [0.1, 0.005])
def test_the_device_chooses_the_case(temperature, device):
    """A tensor scale launches both kernels of each pass, and one of them does the work."""
    z = make_input(130, 40, 2, True, torch.float16, device)
    grad = torch.rand(130, device=device)
    by_number = run(z, grad, 2, True, temperature)
    by_tensor = run(z, grad, 2, True, scale=torch.tensor(1 / temperature, device=device))
    for number, tensor in zip(by_number, by_tensor, strict=True):
        assert torch.equal(number, tensor)


@pytest.mark.parametrize("scale", [0.0, -3.0, float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_no_positive_scale_gives_nan(scale, dtype, device):
    z = make_input(6, 4, 2, True, dtype, device)
    grad = torch.ones(6, device=device)
    for by_tensor in (True, False):
        args = (torch.tensor(scale, device=device), 1.0) if by_tensor else (None, scale)
        loss, lse, hit = kernels.nt_xent_fwd(z, *args, 2, True, True)
        dz, dscale = kernels.nt_xent_bwd(grad, z, lse, *args, 2, True)
        assert all(t.isnan().all() for t in (loss, lse, dz, dscale))
        assert not hit.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_bad_row_reaches_every_row(bad, dtype, device):
    z = make_input(134, 5, 2, True, dtype, device)
    z[130, 2] = bad
    loss, lse, hit, dz, dscale = run(z, torch.ones(134, device=device), 2, True, 0.1)
    assert all(t.isnan().all() for t in (loss, lse, dz, dscale))
    assert not hit.any()


def test_zero_row_as_normalize_has_it(device):
    z = make_input(6, 5, 2, True, torch.float32, device)
    z[1] = 0
    z[2] *= 1e-13 / z[2].norm()  # shorter than the 1e-12 that divides it
    grad = torch.rand(6, device=device)
    loss, _, _, dz, dscale = run(z, grad, 2, True, 0.5)
    args = (None, 2.0, 2, True)
    truth = reference.nt_xent_fwd(z.double(), *args, False)
    truth_dz, truth_dscale = reference.nt_xent_bwd(grad.double(), z.double(), truth[1], *args)
    torch.testing.assert_close(loss.double(), truth[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(dz.double(), truth_dz, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dscale.double(), truth_dscale, rtol=1e-5, atol=1e-6)


def test_hit_is_strict(device):
    """A negative that is the same row as the positive ties with it."""
    z = make_input(200, 16, 2, True, torch.float32, device)
    z[7] = z[107]  # rows 7 and 107 are views of one sample, with cosine 1
    z[20] = z[107]  # 20 is a view of another
    hit = run(z, torch.ones(200, device=device), 2, True, 0.1)[2]
    assert not hit[7]
    assert not hit[107]
    assert torch.equal(hit, reference.nt_xent_fwd(z.double(), None, 10.0, 2, True, True)[2])
    alone = run(z[:2], torch.ones(2, device=device), 2, True, 0.1)[2]
    assert alone.all()  # no negatives at all


def test_any_strides(device):
    z = make_input(66, 40, 2, True, torch.float32, device)
    wide = torch.full((66, 120), float("nan"), device=device)
    wide[:, 1::3] = z
    grad = torch.full((), 0.25, device=device).expand(66)  # as of a mean
    expected = run(z, grad.contiguous(), 2, True, 0.1)
    for view in (wide[:, 1::3], z.T.contiguous().T):
        results = run(view, grad, 2, True, 0.1)
        assert results[3].is_contiguous()
        for result, contiguous in zip(results, expected, strict=True):
            assert_same_in_another_order(result, contiguous)


def test_upstream_gradient_of_any_size_in_float16(device):
    """A loss scaler's factor must not overflow, nor 1 / M vanish, in half-precision products."""
    z = make_input(200, 32, 2, True, torch.float16, device) * 100
    args = (None, 10.0, 2, True)
    _, lse, _ = kernels.nt_xent_fwd(z, *args, False)
    truth_lse = reference.nt_xent_fwd(z.double(), *args, False)[1]
    ones = torch.ones(200, device=device)
    truth, _ = reference.nt_xent_bwd(ones.double(), z.double(), truth_lse, *args)
    for size in (2.0**16, 1.0):
        dz, dscale = kernels.nt_xent_bwd(size * ones, z, lse, *args)
        error = (dz.double() / size - truth).abs().max() / truth.abs().max()
        assert error < 2e-3, f"dz is off by {error:.2g} of its maximum at {size}"
    dz, dscale = kernels.nt_xent_bwd(0 * ones, z, lse, *args)
    assert not dz.any()
    assert dscale == 0


def test_tf32_sees_the_same_rounded_rows_everywhere(monkeypatch, device):
    """With rows rounded to TF32 the loss is exact for those rows, as no product rounds again."""
    monkeypatch.setattr(kernels, "matmul_precision", lambda dtype, device: "tf32")
    z = make_input(66, 24, 2, True, torch.float32, device)
    x = kernels.unit_rows(z, True, "tf32")[0][:66, :24]
    assert not (x.view(torch.int32) & 0x1FFF).any()
    exact = torch.nn.functional.normalize(z.double(), dim=1)
    assert ((x - exact).abs() <= 2.0**-11 * exact.abs() + 1e-7).all()

    grad = torch.rand(66, device=device)
    loss = run(z, grad, 2, True, 0.1)[0]
    args = (None, 10.0, 2, False)
    truth = reference.nt_xent_fwd(x.double(), *args, False)
    torch.testing.assert_close(loss.double(), truth[0], rtol=0, atol=1e-5)
    truth_dx, _ = reference.nt_xent_bwd(grad.double(), x.double(), truth[1], *args)
    dx = run(x, grad, 2, False, 0.1)[3]  # rounded once, the rows stay; only g is rounded
    assert (dx - truth_dx).abs().max() <= 2.0**-11 * 10  # of weights up to 1, before they cancel


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.gpu
def test_captures_into_a_cuda_graph():
    z = make_input(600, 64, 2, True, torch.bfloat16, "cuda")
    grad, scale = torch.rand(600, device="cuda"), torch.tensor(10.0, device="cuda")
    expected = run(z, grad, 2, True, scale=scale)  # compiles, which a capture cannot
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(z, grad, 2, True, scale=scale)
    graph.replay()
    for result, other in zip(captured, expected, strict=True):
        assert torch.equal(result, other)


def gpu(name, *args):
    """What a CUDA tensor would meet."""
    kernel = _library.gpu_kernel(name, f"nt_xent.{name}", False, args)
    return (kernel or getattr(reference, name))(*args)


def test_cuda_runs_triton_but_for_float64(device):
    for name in ("sslops::nt_xent_fwd", "sslops::nt_xent_bwd"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
    args = (None, 10.0, 2, True)
    for dtype, backend in ((torch.float32, kernels), (torch.float64, reference)):
        z = make_input(6, 4, 2, True, dtype, device)
        grad = torch.ones(6, dtype=dtype, device=device)
        ours, theirs = gpu("nt_xent_fwd", z, *args, False), backend.nt_xent_fwd(z, *args, False)
        assert torch.equal(ours[0], theirs[0])
        ours = gpu("nt_xent_bwd", grad, z, theirs[1], *args)
        assert torch.equal(ours[0], backend.nt_xent_bwd(grad, z, theirs[1], *args)[0])


def test_rejects_more_rows_than_sums_can_hold(monkeypatch, device):
    monkeypatch.setattr(kernels, "MAX_ROWS", 4)
    with pytest.raises(ValueError, match=r"at most 4 rows on CUDA, got 6"):
        kernels.nt_xent_fwd(torch.zeros(6, 2, device=device), None, 1.0, 2, True, False)


def test_import_of_sslops_leaves_triton_alone():
    code = "import sys; import sslops; print([m for m in sys.modules if 'sslops.kernels.' in m])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "['sslops.kernels._architectures']"  # asked for names of GPUs
