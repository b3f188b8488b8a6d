"""Pairwise sigmoid loss on the CPU and in plain PyTorch: numbers, gradients, extremes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sslops
from sslops.reference import _rows
from sslops.reference import sigmoid_loss as reference
from tests.conftest import running
from tests.layouts import LAYOUTS
from tests.naive import naive_sigmoid, unit
from tests.numerics import assert_as_accurate_as

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# M, N, D: alone; texts without images; odd everything; tiles of every kind, ragged; wide
SHAPES = [(1, 1, 1), (2, 5, 3), (33, 65, 7), (270, 531, 130), (40, 67, 600)]


def pairs(M: int, N: int, D: int, dtype: torch.dtype = torch.float32):
    text = torch.randn(N, D)
    return (text[:M] + 0.5 * torch.randn(M, D)).to(dtype), text.to(dtype)


def random_ids(M: int, N: int, kinds: int):
    """Some of them -1, which never matches."""
    sizes = {"image_ids": M, "text_ids": N}
    return {name: torch.randint(-1, kinds, (size,)) for name, size in sizes.items()}


def run(image, text, scale, bias, upstream=1.0, **kwargs):
    """(loss, gradients of the four) of the chosen implementation; the sum over all pairs."""
    wide = torch.promote_types(image.dtype, torch.float32)
    leaves = [image, text, torch.tensor(scale).to(wide), torch.tensor(bias).to(wide)]
    leaves = [each.detach().requires_grad_() for each in leaves]
    loss = sslops.sigmoid_loss(*leaves, reduction="sum", **kwargs)
    return loss.detach(), *torch.autograd.grad(loss * upstream, leaves)


def sigmoids(image, text, scale, bias, normalize):
    """How wrong each pair is, [M, N]: what every algorithm sums to get the gradients."""
    x, t = unit(image, text, normalize=normalize)
    logits = x @ t.T * scale + bias
    own = torch.eye(*logits.shape, dtype=torch.bool)
    return torch.where(own, -logits, logits).sigmoid()


def check(image, text, scale=10.0, bias=-5.0, normalize=True, **kwargs):
    """Loss and all gradients, allowed twice the error of plain PyTorch in the dtype."""
    dtype, (M, N) = image.dtype, (len(image), len(text))
    names = ("loss", "image", "text", "scale", "bias")
    found = {}
    for kind in (dtype, torch.float64):
        leaves = [image.to(kind, copy=True), text.to(kind, copy=True)]
        leaves += [torch.tensor(scale).to(kind), torch.tensor(bias).to(kind)]
        leaves = [each.requires_grad_() for each in leaves]
        loss = naive_sigmoid(*leaves, normalize=normalize, **kwargs)
        found[kind] = (loss.detach(), *torch.autograd.grad(loss, leaves))
    ours = run(image, text, scale, bias, normalize=normalize, **kwargs)
    without = sslops.sigmoid_loss(
        image, text, scale, bias, normalize=normalize, reduction="sum", **kwargs
    )
    torch.testing.assert_close(without, ours[0], rtol=1e-5, atol=1e-5)
    norms = [each.double().norm(dim=1) for each in (image, text)]
    x, t = (1.0 if normalize else float(norm.max()) for norm in norms)
    inverse = [1 / float(norm.min()) if normalize else 1.0 for norm in norms]
    logit = scale * x * t + abs(bias)
    g = sigmoids(image.double(), text.double(), scale, bias, normalize)
    total, row, column = (float(each.max()) for each in (g.sum(), g.sum(1), g.sum(0)))
    # an error of eps * logit in each sigmoid, the slope of which is at most a quarter
    bounds = (
        float(found[torch.float64][0]) + M * logit,
        scale * t * inverse[0] * (row + logit * math.sqrt(N) / 4),
        scale * x * inverse[1] * (column + logit * math.sqrt(M) / 4),
        x * t * (total + logit * math.sqrt(M * N) / 4),
        total + logit * math.sqrt(M * N) / 4,
    )
    for n, name in enumerate(names):
        assert_as_accurate_as(
            ours[n], found[dtype][n], found[torch.float64][n], name=name, scale=bounds[n]
        )


@pytest.mark.every_isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("M", "N", "D"), SHAPES)
def test_matches_float64(backend, M, N, D, dtype):
    check(*pairs(M, N, D, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [0.5, 10.0, 117.0])
@pytest.mark.parametrize("bias", [-15.0, -3.0, 0.0, 7.0])
def test_scales_and_biases(backend, scale, bias, dtype):
    """From SigLIP's start to where it trained; every sigmoid at one end, or in the middle."""
    check(*pairs(50, 70, 24, dtype), scale, bias)


@pytest.mark.parametrize("size", [0.2, 4.0])
def test_dot_products_of_any_size(backend, size):
    image, text = pairs(60, 70, 20)
    check(image * size, text * size, 0.5, -2.0, normalize=False)


@pytest.mark.every_isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kinds", [1, 5, 1000])
def test_ids(backend, kinds, dtype):
    for M, N in ((1, 1), (40, 90), (290, 300)):
        ids = {
            "image_ids": torch.randint(-1, kinds, (M,)),
            "text_ids": torch.randint(-1, kinds, (N,)),
        }
        check(*pairs(M, N, 16, dtype), **ids)


@given(
    M=st.integers(1, 40),
    more=st.integers(0, 40),
    D=st.integers(2, 40),
    scale=st.floats(0.1, 50.0),
    bias=st.floats(-12.0, 5.0),
    dtype=st.sampled_from(DTYPES),
    kinds=st.sampled_from([None, 1, 5]),
    normalize=st.booleans(),
    layouts=st.tuples(*[st.sampled_from(list(LAYOUTS))] * 2),
    seed=st.integers(0, 1000),
)
def test_fuzz(backend_name, M, more, D, scale, bias, dtype, kinds, normalize, layouts, seed):
    torch.manual_seed(seed)
    N = M + more
    size = 1.0 if normalize else D**-0.5
    rows = [LAYOUTS[way](x * size) for way, x in zip(layouts, pairs(M, N, D, dtype), strict=True)]
    ids = {}
    if kinds is not None:
        ids = {
            "image_ids": torch.randint(-1, kinds, (M,)),
            "text_ids": torch.randint(-1, kinds, (N,)),
        }
    with running(backend_name):
        check(*rows, scale, bias, normalize, **ids)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradcheck_in_float64(normalize, reduction):
    leaves = [*pairs(4, 6, 3, torch.float64), torch.tensor(2.0), torch.tensor(-1.0)]
    leaves = [each.double().requires_grad_() for each in leaves]
    options = {"normalize": normalize, "reduction": reduction}
    options |= {"image_ids": torch.tensor([0, 1, 1, -1]), "text_ids": torch.arange(6)}
    assert torch.autograd.gradcheck(lambda *args: sslops.sigmoid_loss(*args, **options), leaves)


def test_reference_in_chunks(monkeypatch):
    image, text = pairs(50, 60, 6, torch.float64)
    args = (image, text, None, None, None, 4.0, None, -2.0, True, True)
    whole = reference.sigmoid_loss_fwd(*args)
    monkeypatch.setattr(_rows, "CHUNK", 60 * 7)
    torch.testing.assert_close(reference.sigmoid_loss_fwd(*args), whole)


def test_reductions():
    image, text = pairs(12, 20, 5)
    total = sslops.sigmoid_loss(image, text, 10.0, -3.0, reduction="sum")
    torch.testing.assert_close(sslops.sigmoid_loss(image, text, 10.0, -3.0), total / 12)


@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (1.0, 0.0), (100.0, 30.0)])
def test_equal_rows_by_hand(backend, scale, bias):
    """All cosines 1: one softplus(-(kappa + b)) and N - 1 of softplus(kappa + b) a row."""
    image, text = torch.ones(2, 40, 6)
    loss = sslops.sigmoid_loss(image, text, scale, bias)
    logit = scale + bias
    positive = max(-logit, 0) + math.log1p(math.exp(-abs(logit)))
    negative = max(logit, 0) + math.log1p(math.exp(-abs(logit)))
    assert loss.item() == pytest.approx(positive + 39 * negative, rel=1e-5)


def test_one_pair_by_hand(backend):
    image = torch.tensor([[1.0, 0.0]], requires_grad=True)
    text = torch.tensor([[0.6, 0.8]])
    bias = torch.tensor(-1.0, requires_grad=True)
    loss = sslops.sigmoid_loss(image, text, 5.0, bias)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-2.0)), abs=1e-6)
    loss.backward()
    slope = -1 / (1 + math.exp(2.0))
    assert bias.grad.item() == pytest.approx(slope, abs=1e-6)
    # the part along the unit row is projected out
    torch.testing.assert_close(image.grad, torch.tensor([[0.0, slope * 5 * 0.8]]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_solved_pairs_have_no_loss(backend, dtype):
    """Positives at 1, negatives at -1, far from the threshold: below any rounding, never NaN."""
    image = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=dtype)
    loss, *grads = run(image, image, 1000.0, 0.0)
    assert loss == 0
    assert not any(each.any() for each in grads)
    loss, *grads = run(image, -image, 1000.0, 0.0)  # and all of them wrong
    assert loss.item() == pytest.approx(4000.0)
    assert all(each.isfinite().all() for each in grads)


def test_all_left_out_but_the_positives(backend):
    image, text = pairs(30, 30, 8)
    ids = torch.zeros(30, dtype=torch.int64)
    loss = sslops.sigmoid_loss(image, text, 10.0, -1.0, image_ids=ids, text_ids=ids)
    cosine = torch.nn.functional.cosine_similarity(image, text)
    expected = torch.nn.functional.softplus(-(10 * cosine - 1)).mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_not_finite_inputs_propagate(backend, bad):
    image, text = pairs(40, 300, 6)
    text[290, 2] = bad
    loss, dimage, *_ = run(image, text, 10.0, -5.0)
    assert loss.isnan()
    assert dimage.isnan().all()
    for value in (0.0, -1.0, math.nan):
        good = sslops.sigmoid_loss(*pairs(4, 4, 3), torch.tensor(value))
        assert good.isnan()
