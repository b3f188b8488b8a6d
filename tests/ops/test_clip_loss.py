"""CLIP's loss on the CPU and in plain PyTorch; its kernels are info_nce's with both sides."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import sslops
from tests.conftest import running
from tests.layouts import LAYOUTS
from tests.naive import naive_clip
from tests.numerics import assert_as_accurate_as

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def pairs(N: int, D: int, dtype: torch.dtype = torch.float32):
    text = torch.randn(N, D)
    return (text + 0.5 * torch.randn(N, D)).to(dtype), text.to(dtype)


def check(image, text, scale, weights=None, normalize=True, **kwargs):
    """Loss of each pair and all gradients, allowed twice the error of plain PyTorch."""
    dtype, N = image.dtype, len(image)
    grad = torch.rand(N) + 0.1 if weights is None else weights
    found = {}
    for kind in (dtype, torch.float64, "ours"):
        own = dtype if kind == "ours" else kind
        wide = torch.promote_types(dtype, torch.float32) if kind == "ours" else kind
        leaves = [image.to(own), text.to(own), torch.tensor(scale).to(wide)]
        leaves = [each.detach().requires_grad_() for each in leaves]
        if kind == "ours":
            loss = sslops.clip_loss(*leaves, reduction="none", normalize=normalize, **kwargs)
        else:
            loss = naive_clip(*leaves, normalize=normalize, **kwargs)
        grads = torch.autograd.grad(loss, leaves, grad.to(loss.dtype))
        found[kind] = dict(
            zip(("loss", "image", "text", "scale"), (loss.detach(), *grads), strict=True)
        )
    norms = [each.double().norm(dim=1) for each in (image, text)]
    x, t = (1.0 if normalize else float(norm.max()) for norm in norms)
    logit = scale * x * t + math.log(N)
    by_norm = [1 / float(norm.min()) if normalize else 1.0 for norm in norms]
    # a key that all rows find most likely collects the weight of all
    mass = float(grad.abs().max()) * (2 + math.sqrt(N))
    bounds = {
        "loss": logit,
        "image": logit * scale * t * by_norm[0] * mass,
        "text": logit * scale * x * by_norm[1] * mass,
        "scale": logit * x * t * float(grad.abs().sum()),
    }
    for name, bound in bounds.items():
        assert_as_accurate_as(
            found["ours"][name], found[dtype][name], found[torch.float64][name],
            name=name, scale=bound,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize(("N", "D"), [(1, 1), (2, 3), (33, 7), (270, 130), (40, 600)])
def test_matches_float64(backend, N, D, smoothing, dtype):
    check(*pairs(N, D, dtype), 1 / 0.07, label_smoothing=smoothing)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [0.7, 10.0, 100.0])
def test_scales_up_to_clip_s_maximum(backend, scale, dtype):
    check(*pairs(50, 24, dtype), scale)
    check(*pairs(50, 24, dtype), scale, label_smoothing=0.2)


@pytest.mark.parametrize("size", [0.2, 4.0])
def test_rows_that_are_not_normalised(backend, size):
    image, text = pairs(60, 20)
    check(image * size, text * size, 3.0, normalize=False, label_smoothing=0.1)


@given(
    N=st.integers(1, 50),
    D=st.integers(2, 40),
    scale=st.floats(0.5, 100.0),
    dtype=st.sampled_from(DTYPES),
    smoothing=st.sampled_from([0.0, 0.1]),
    kinds=st.sampled_from([None, 1, 5]),
    layouts=st.tuples(*[st.sampled_from(list(LAYOUTS))] * 2),
    normalize=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_fuzz(backend_name, N, D, scale, dtype, smoothing, kinds, layouts, normalize, seed):
    torch.manual_seed(seed)
    kwargs = {"label_smoothing": smoothing}
    if kinds is not None:
        kwargs = {name: torch.randint(-1, kinds, (N,)) for name in ("image_ids", "text_ids")}
    size = 1.0 if normalize else D**-0.5
    rows = [LAYOUTS[way](x * size) for way, x in zip(layouts, pairs(N, D, dtype), strict=True)]
    with running(backend_name):
        check(*rows, scale, normalize=normalize, **kwargs)


def test_weights_and_reductions():
    image, text = pairs(12, 5)
    weights = torch.rand(12)
    rows = sslops.clip_loss(image, text, 10.0, reduction="none")
    assert rows.shape == (12,)

    def loss(**kwargs):
        return sslops.clip_loss(image, text, 10.0, **kwargs)

    torch.testing.assert_close(loss(reduction="sum"), rows.sum())
    torch.testing.assert_close(loss(), rows.mean())
    torch.testing.assert_close(loss(weights=weights, reduction="none"), rows * weights)
    torch.testing.assert_close(loss(weights=weights), (rows * weights).sum() / weights.sum())


def test_is_the_mean_of_two_info_nce():
    image, text = pairs(30, 9)
    a = sslops.info_nce(image, text, temperature=0.1)
    b = sslops.info_nce(text, image, temperature=0.1)
    loss, stats = sslops.clip_loss(image, text, 10.0, label_smoothing=0.3, return_stats=True)
    plain = sslops.clip_loss(image, text, 10.0)
    torch.testing.assert_close(plain, (a + b) / 2)
    torch.testing.assert_close((stats.loss.mean() + stats.key_loss.mean()) / 2, plain)
    assert loss > plain
    assert torch.equal(stats.key_hit, sslops.info_nce(text, image, return_stats=True)[1].hit)


@pytest.mark.parametrize("kwargs", [{}, {"label_smoothing": 0.2}, {"normalize": False}])
def test_gradcheck_in_float64(kwargs):
    leaves = [torch.randn(4, 3).double(), torch.randn(4, 3).double(), torch.tensor(3.0).double()]
    leaves = [each.requires_grad_() for each in (*leaves, torch.rand(4).double())]
    assert torch.autograd.gradcheck(
        lambda i, t, s, w: sslops.clip_loss(i, t, s, weights=w, **kwargs), leaves
    )


def test_equal_rows_are_at_chance(backend):
    image, text = torch.ones(2, 40, 6)
    loss, stats = sslops.clip_loss(image, text, 20.0, return_stats=True)
    assert loss.item() == pytest.approx(math.log(40), abs=1e-5)
    assert not stats.hit.any()
    assert not stats.key_hit.any()
    smooth = sslops.clip_loss(image, text, 20.0, label_smoothing=0.5)
    assert smooth.item() == pytest.approx(math.log(40), abs=1e-4)


def test_two_pairs_by_hand(backend):
    """Cosines c of the pairs, 0 of the others: log(1 + exp(-kappa c)) in both directions."""
    image = torch.eye(2)
    text = torch.tensor([[0.6, 0.0, 0.8], [0.0, 0.6, 0.8]])
    image = F.pad(image, (0, 1))
    loss = sslops.clip_loss(image, text, 5.0)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-3.0)), abs=1e-6)
    smooth = sslops.clip_loss(image, text, 5.0, label_smoothing=0.1)
    assert smooth.item() == pytest.approx(loss.item() + 0.1 * 3.0 / 2, abs=1e-6)


def test_learnt_logarithm_of_the_scale(backend):
    image, text = pairs(20, 6)
    found = []
    for loss in (sslops.clip_loss, lambda *args: naive_clip(*args).mean()):
        log_scale = torch.tensor(2.0, requires_grad=True)
        loss(image, text, log_scale.exp()).backward()
        found.append(log_scale.grad)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


I4, Z = torch.zeros(4, dtype=torch.int64), torch.zeros(4, 8)
