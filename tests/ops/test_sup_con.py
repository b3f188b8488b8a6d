"""Supervised contrastive loss on the CPU and in plain PyTorch: numbers, gradients, extremes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sslops
from sslops.reference import _rows
from sslops.reference import sup_con as reference
from tests.conftest import running
from tests.layouts import LAYOUTS
from tests.naive import naive_sup_con
from tests.numerics import assert_as_accurate_as

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
MEANS = ["outside", "inside"]
# M, D, classes: two rows; odd everything; tiles of every kind, ragged; many positives; wide
SHAPES = [(2, 1, 1), (33, 7, 5), (300, 32, 10), (530, 130, 40), (290, 16, 2), (40, 600, 9)]


def make_input(M: int, D: int, classes: int, dtype: torch.dtype = torch.float32):
    """Rows near their class's centre, some without a label: (z [M, D], labels [M])."""
    labels = torch.randint(0, classes, (M,))
    z = torch.randn(classes, D)[labels] + 0.7 * torch.randn(M, D)
    labels[torch.rand(M) < 0.1] = -1
    return z.to(dtype), labels


def check(z, labels, temperature=0.1, mean="outside", normalize=True, grad=None):
    """Every result against float64, allowed twice the error of plain PyTorch in z's dtype."""
    dtype, M = z.dtype, len(z)
    grad = torch.rand(M) + 0.1 if grad is None else grad
    found = {}
    for kind in (dtype, torch.float64, "ours"):
        leaf = z.to(dtype if kind == "ours" else kind).detach().requires_grad_()
        wide = torch.promote_types(dtype, torch.float32) if kind == "ours" else kind
        scale = torch.tensor(1 / temperature).to(wide).requires_grad_()
        options = {"mean": mean, "normalize": normalize}
        if kind == "ours":
            loss, stats = sslops.sup_con(
                leaf, labels, temperature=1 / scale, reduction="none", return_stats=True, **options
            )
        else:
            loss = naive_sup_con(leaf, labels, 1 / scale, **options)
        grads = torch.autograd.grad(loss, (leaf, scale), grad.to(loss.dtype))
        found[kind] = dict(zip(("loss", "z", "scale"), (loss.detach(), *grads), strict=True))

    norm = z.double().norm(dim=1)
    largest = 1.0 if normalize else float(norm.max()) ** 2
    logit = largest / temperature + math.log(M)
    by_norm = 1 / float(norm.min()) if normalize else float(norm.max())
    same = (labels[:, None] == labels) & (labels[:, None] >= 0)
    has_positive = (same.sum(dim=1) > 1) & (labels >= 0)
    assert torch.equal(stats.has_positive, has_positive)
    bounds = {
        "loss": logit,
        "z": logit / temperature * by_norm * float(grad.abs().max()) * 2,
        "scale": logit * largest * float(grad.abs().sum()),
    }
    for name, bound in bounds.items():
        assert_as_accurate_as(
            found["ours"][name], found[dtype][name], found[torch.float64][name],
            name=name, scale=bound,
        )  # fmt: skip
    args = (labels, None, 1 / temperature, mean == "inside", normalize)
    exact = reference.sup_con_fwd(z.double(), *args)[1]
    assert (stats.lse.double() - exact).abs().max() <= 4 * torch.finfo(dtype).eps * logit
    assert not found["ours"]["loss"][~has_positive].any()


@pytest.mark.every_isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize(("M", "D", "classes"), SHAPES)
def test_matches_float64(backend, M, D, classes, mean, dtype):
    check(*make_input(M, D, classes, dtype), mean=mean)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("temperature", [0.005, 0.02, 0.5, 1.0])
def test_temperatures(backend, temperature, mean, dtype):
    check(*make_input(80, 24, 7, dtype), temperature=temperature, mean=mean)


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("size", [0.2, 4.0])
def test_dot_products_of_any_size(backend, size, mean):
    z, labels = make_input(90, 20, 6)
    check(z * size, labels, temperature=0.3, mean=mean, normalize=False)


@pytest.mark.parametrize("mean", MEANS)
def test_very_uneven_weights(backend, mean):
    grad = 10.0 ** torch.linspace(-6, 6, 90)
    check(*make_input(90, 20, 6), mean=mean, grad=grad)


@given(
    M=st.integers(2, 60),
    D=st.integers(2, 40),
    classes=st.integers(1, 60),
    temperature=st.floats(0.02, 2.0),
    dtype=st.sampled_from(DTYPES),
    mean=st.sampled_from(MEANS),
    normalize=st.booleans(),
    layout=st.sampled_from(list(LAYOUTS)),
    order=st.integers(-15, 2),
    seed=st.integers(0, 1000),
)
def test_fuzz(
    backend_name, M, D, classes, temperature, dtype, mean, normalize, layout, order, seed
):
    torch.manual_seed(seed)
    z, labels = make_input(M, D, classes, dtype)
    if not normalize:
        z = z * D**-0.5
    grad = (torch.rand(M) + 0.1) * (10.0**order if dtype is torch.float32 else 1.0)
    with running(backend_name):
        check(LAYOUTS[layout](z), labels, temperature, mean, normalize, grad)


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck_in_float64(mean, normalize):
    z, temperature = torch.randn(7, 4).double(), torch.tensor(0.4).double()
    weights = torch.rand(7).double()
    labels = torch.tensor([0, 0, 1, -1, 0, 1, 2])
    leaves = [each.requires_grad_() for each in (z, temperature, weights)]
    for reduction in ("none", "mean", "sum"):

        def loss(z, t, w, reduction=reduction):
            options = {"mean": mean, "normalize": normalize, "reduction": reduction}
            return sslops.sup_con(z, labels, temperature=t, weights=w, **options)

        assert torch.autograd.gradcheck(loss, leaves)


@pytest.mark.parametrize("mean", MEANS)
def test_reference_in_chunks(monkeypatch, mean):
    z, labels = make_input(50, 6, 4, torch.float64)
    grad, args = torch.rand(50).double(), (None, 5.0, mean == "inside", True)
    whole = reference.sup_con_fwd(z, labels, *args)
    dz = reference.sup_con_bwd(grad, z, labels, *whole[1:], *args)
    monkeypatch.setattr(_rows, "CHUNK", 50 * 7)
    torch.testing.assert_close(reference.sup_con_fwd(z, labels, *args), whole)
    torch.testing.assert_close(reference.sup_con_bwd(grad, z, labels, *whole[1:], *args), dz)


def test_labels_of_pairs_are_nt_xent(backend):
    z = torch.randn(2, 30, 8)
    rows = sslops.nt_xent(z, temperature=0.2, reduction="none")
    for mean in MEANS:
        found = sslops.sup_con(z, torch.arange(30), temperature=0.2, mean=mean, reduction="none")
        torch.testing.assert_close(found, rows, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mean", MEANS)
def test_equal_rows_are_at_chance(backend, mean):
    z, labels = torch.ones(60, 5, requires_grad=True), torch.arange(60) % 7
    loss = sslops.sup_con(z, labels, temperature=0.1, mean=mean)
    assert loss.item() == pytest.approx(math.log(59), abs=2e-6)
    loss.backward()
    assert z.grad.abs().max() < 1e-5


@pytest.mark.parametrize("mean", MEANS)
def test_three_points_by_hand(backend, mean):
    """Row 0 with a positive at cosine 0.6, one at 0, and a negative at -1."""
    z = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]])
    loss = sslops.sup_con(
        z, torch.tensor([4, 4, 4, -1]), temperature=0.5, mean=mean, reduction="none"
    )
    total = math.exp(1.2) + 1 + math.exp(-2)
    expected = math.log(total) - 0.6
    if mean == "inside":
        expected = -math.log((math.exp(1.2) + 1) / total / 2)
    assert loss[0].item() == pytest.approx(expected, abs=1e-6)
    assert loss[3] == 0


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_without_a_positive(backend, mean, dtype):
    """Loss 0 and no part of the mean; still a negative of all others."""
    z, labels = torch.randn(50, 6).to(dtype).requires_grad_(), torch.arange(50)
    loss, stats = sslops.sup_con(z, labels, mean=mean, return_stats=True)
    assert loss == 0
    assert not stats.has_positive.any()
    loss.backward()
    assert not z.grad.any()
    labels[7] = 3
    z.grad = None
    loss, stats = sslops.sup_con(z, labels, mean=mean, return_stats=True)
    assert stats.has_positive.nonzero().flatten().tolist() == [3, 7]
    torch.testing.assert_close(loss, stats.loss.sum() / 2)
    loss.backward()
    assert z.grad.isfinite().all()
    assert (z.grad.float().abs().sum(dim=1) > 0).sum() > 2


@pytest.mark.parametrize("mean", MEANS)
def test_separated_classes_have_a_known_loss(backend, mean):
    """Positives at cosine 1, negatives at -1, a tiny temperature: log of the positives' number."""
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).repeat(5, 1).requires_grad_()
    loss = sslops.sup_con(z, torch.tensor([0, 1]).repeat(5), temperature=0.005, mean=mean)
    assert loss.item() == pytest.approx(math.log(4), abs=1e-4)
    loss.backward()
    assert z.grad.abs().max() < 1e-3
    apart = sslops.sup_con(z, torch.arange(10) // 2, temperature=0.005, mean=mean)
    assert apart.item() == pytest.approx(400 + math.log(4), rel=1e-5)


def test_weights_reductions_and_layouts():
    z, labels = torch.randn(2, 10, 5), torch.randint(0, 4, (10,))
    weights = torch.rand(2, 10)
    rows, stats = sslops.sup_con(z, labels, reduction="none", return_stats=True)
    some, flat = stats.has_positive, weights.flatten()
    assert some.all()
    flat_z, twice = z.flatten(0, 1), labels.repeat(2)
    assert torch.equal(sslops.sup_con(flat_z, twice, reduction="none"), rows)
    torch.testing.assert_close(sslops.sup_con(z, labels), rows.mean())
    torch.testing.assert_close(sslops.sup_con(z, labels, reduction="sum"), rows.sum())
    expected = (rows * flat).sum() / flat.sum()
    torch.testing.assert_close(sslops.sup_con(z, labels, weights=weights), expected)
    torch.testing.assert_close(sslops.sup_con(z, labels, weights=flat), expected)
    assert sslops.sup_con(z, labels, weights=flat * 0) == 0


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("M", [9, 300])
def test_not_a_number_is_not_hidden(backend, mean, M):
    z, labels = torch.randn(M, 5), torch.zeros(M, dtype=torch.int64)
    z[M // 2, 1] = math.nan
    z.requires_grad_()
    loss = sslops.sup_con(z, labels, mean=mean, reduction="none")
    assert loss.isnan().all()
    loss.sum().backward()
    assert z.grad.isnan().all()
    good = torch.randn(M, 5)
    for value in (0.0, -1.0, math.nan):
        assert sslops.sup_con(good, labels, mean=mean, temperature=torch.tensor(value)).isnan()
