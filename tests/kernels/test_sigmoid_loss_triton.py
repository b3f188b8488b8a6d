"""The pairwise sigmoid loss's Triton kernels, on a GPU or in the interpreter."""

import pytest
import torch
import torch.nn.functional as F

from sslops import _library
from tests.numerics import assert_as_accurate_as, assert_same_in_another_order

pytest.importorskip("triton")
from sslops.kernels import sigmoid_loss as kernels
from sslops.reference import sigmoid_loss as reference

# The interpreter works on padding and on rows of nothing; numpy would warn of each.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")]

# M, N, D, scale, bias, normalize: smallest; every size odd; blocks, ragged; a last block of one
# row; wider than rows that stay whole; rows of norm 5; a start far from balance as SigLIP's
CASES = [
    (1, 1, 1, 1.0, 0.0, True),
    (1, 2, 3, 10.0, -10.0, True),
    (65, 67, 3, 10.0, -3.0, True),
    (70, 150, 64, 10.0, -10.0, True),
    (129, 129, 130, 20.0, -5.0, True),
    (66, 66, 300, 5.0, 1.0, True),
    (6, 9, 17, 2.0, -1.0, False),
]
NAMES = ("loss", "dqueries", "dkeys", "dscale", "dbias")


def make_inputs(M, N, D, normalize, dtype, device):
    keys = torch.randn(N, D)
    queries = keys[:M] + 0.5 * torch.randn(M, D)
    if not normalize:
        keys, queries = (5 * F.normalize(t, dim=1) for t in (keys, queries))
    return queries.to(device, dtype), keys.to(device, dtype)


def naive(queries, keys, ids, scale, bias, normalize):
    """The sum over all pairs as a user writes it: the logits are stored."""
    x, y = (F.normalize(t, dim=1) if normalize else t for t in (queries, keys))
    sign = 2 * torch.eye(len(x), len(y), dtype=x.dtype, device=x.device) - 1
    each = -F.logsigmoid(sign * (x @ y.T * scale + bias))
    if ids is not None:
        same = (ids[0][:, None] == ids[1]) & (ids[0] >= 0)[:, None]
        each = torch.where(same & (sign < 0), 0.0, each)
    return each.sum()


def run(queries, keys, ids, scale, bias, normalize, grads=True):
    """The launcher's results; scale and bias are numbers or tensors."""
    args = []
    for value, default in ((scale, 1.0), (bias, 0.0)):
        args += [value, default] if isinstance(value, torch.Tensor) else [None, value]
    return kernels.sigmoid_loss_fwd(queries, keys, *(ids or (None, None)), *args, normalize, grads)


def check(found, queries, keys, ids, scale, bias, normalize):
    """Every result against float64, allowed twice the error of plain PyTorch in the dtype."""
    truth = reference.sigmoid_loss_fwd(
        queries.double(), keys.double(), *(ids or (None, None)), None, scale, None, bias,
        normalize, True,
    )  # fmt: skip
    leaves = [t.detach().requires_grad_() for t in (queries, keys)]
    leaves += [queries.new_tensor(value).requires_grad_() for value in (scale, bias)]
    loss = naive(*leaves[:2], ids, *leaves[2:], normalize)
    theirs = (loss.detach(), *torch.autograd.grad(loss, leaves))
    norms = torch.cat([queries, keys]).double().norm(dim=1)
    largest = 1.0 if normalize else float(norms.max()) ** 2
    logit = largest * scale + abs(bias)
    by_norm = 1 / float(norms.min()) if normalize else float(norms.max())
    pairs = len(queries) * max(1.0, float(truth[0]) / len(queries))  # what the sums are made of
    bounds = (pairs * logit, scale * logit * max(by_norm, 1), scale * logit * max(by_norm, 1))
    for name, ours, other, exact, bound in zip(
        NAMES, found, theirs, truth, (*bounds, pairs * logit * largest, pairs * logit), strict=True
    ):
        assert_as_accurate_as(ours, other, exact, name=name, scale=bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("M, N, D, scale, bias, normalize", CASES)
def test_matches_float64(M, N, D, scale, bias, normalize, dtype, device):
    if device == "cpu" and dtype is torch.bfloat16:
        pytest.skip("Triton's interpreter computes bfloat16 as if it were uint16")
    queries, keys = make_inputs(M, N, D, normalize, dtype, device)
    found = run(queries, keys, None, scale, bias, normalize)
    check(found, queries, keys, None, scale, bias, normalize)
    assert all(each.dtype is torch.float32 for each in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_ids_leave_out_negatives_only(dtype, device):
    queries, keys = make_inputs(66, 70, 20, True, dtype, device)
    ids = [torch.randint(-1, 4, (n,), device=device) * 2**40 for n in (66, 70)]
    ids = [torch.where(each < 0, -1, each) for each in ids]
    check(run(queries, keys, ids, 10.0, -2.0, True), queries, keys, ids, 10.0, -2.0, True)


def test_small_probabilities_keep_their_digits(device):
    """With a bias of -20 a pair's loss is 2e-9, far below the rounding of 1 + exp."""
    queries, keys = torch.eye(4, 8, device=device), torch.eye(8, device=device)[4:].clone()
    queries[:, 4:] = -torch.eye(4, device=device)  # cosine -1 / sqrt(2), 0 for other pairs
    keys = torch.cat([keys, torch.eye(8, device=device)[:1]])
    args = (None, 1.0, None, -20.0, True)
    found = run(queries, keys, None, 1.0, -20.0, True)
    truth = reference.sigmoid_loss_fwd(queries.double(), keys.double(), None, None, *args, True)
    torch.testing.assert_close(found[2][4].double(), truth[2][4], rtol=1e-5, atol=0)
    torch.testing.assert_close(found[0].double(), truth[0], rtol=1e-6, atol=0)


def test_tensors_are_read_on_the_device(device):
    queries, keys = make_inputs(70, 70, 40, True, torch.float16, device)
    by_number = run(queries, keys, None, 10.0, -2.0, True)
    tensors = torch.tensor(10.0, device=device), torch.tensor(-2.0, device=device)
    for number, tensor in zip(by_number, run(queries, keys, None, *tensors, True), strict=True):
        assert torch.equal(number, tensor)


def test_without_gradients(device):
    queries, keys = make_inputs(66, 70, 20, True, torch.float32, device)
    loss, *rest = run(queries, keys, None, 10.0, -2.0, True, grads=False)
    assert torch.equal(loss, run(queries, keys, None, 10.0, -2.0, True)[0])
    assert all(each.shape == (0,) for each in rest)


@pytest.mark.parametrize("scale", [0.0, -3.0, float("nan")])
def test_no_positive_scale_gives_nan(scale, device):
    queries, keys = make_inputs(6, 7, 4, True, torch.float16, device)
    for value in (scale, torch.tensor(scale, device=device)):
        assert all(each.isnan().all() for each in run(queries, keys, None, value, 0.0, True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_bad_row_reaches_the_other_side(bad, dtype, device):
    queries, keys = make_inputs(70, 70, 5, True, dtype, device)
    keys[66, 2] = bad
    loss, dqueries, dkeys, dscale, dbias = run(queries, keys, None, 10.0, -2.0, True)
    assert all(each.isnan().all() for each in (loss, dqueries, dkeys[66], dscale, dbias))
    assert dkeys[:66].isfinite().all()


def test_any_strides_and_the_same_bits_twice(device):
    queries, keys = make_inputs(34, 40, 40, True, torch.float32, device)
    expected = run(queries, keys, None, 10.0, -2.0, True)
    wide = torch.full((40, 120), float("nan"), device=device)
    wide[:, 1::3] = keys
    for found, exact in zip(run(queries, keys, None, 10.0, -2.0, True), expected, strict=True):
        assert torch.equal(found, exact)
    for view in (wide[:, 1::3], keys.T.contiguous().T):
        for found, exact in zip(run(queries, view, None, 10.0, -2.0, True), expected, strict=True):
            assert_same_in_another_order(found, exact)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.gpu
def test_captures_into_a_cuda_graph():
    queries, keys = make_inputs(600, 700, 64, True, torch.bfloat16, "cuda")
    tensors = torch.tensor(10.0, device="cuda"), torch.tensor(-2.0, device="cuda")
    expected = run(queries, keys, None, *tensors, True)  # compiles, which a capture cannot
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(queries, keys, None, *tensors, True)
    graph.replay()
    for found, exact in zip(captured, expected, strict=True):
        assert torch.equal(found, exact)


def test_cuda_runs_triton_but_for_float64(device):
    assert torch._C._dispatch_has_kernel_for_dispatch_key("sslops::sigmoid_loss_fwd", "CUDA")
    for dtype in (torch.float32, torch.float64):
        args = (torch.ones(2, 2, dtype=dtype, device=device),)
        chosen = _library.gpu_kernel(
            "sigmoid_loss_fwd", "sigmoid_loss.sigmoid_loss_fwd", False, args
        )
        assert chosen is (kernels.sigmoid_loss_fwd if dtype is torch.float32 else None)
