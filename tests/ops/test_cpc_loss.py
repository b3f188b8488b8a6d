"""CPC's loss: every step and choice of negatives against a loop over steps."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sslops
from tests.conftest import running
from tests.layouts import LAYOUTS
from tests.naive import naive_cpc
from tests.numerics import assert_as_accurate_as

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NEGATIVES = ["all", "sequence", "other", 5]


def make_input(K: int, B: int, T: int, D: int, dtype: torch.dtype = torch.float32):
    """Predictions near their targets: ([K, B, T, D], [B, T, D])."""
    targets = torch.randn(B, T, D)
    predictions = torch.randn(K, B, T, D)
    for k in range(1, K + 1):
        predictions[k - 1, :, : T - k] = targets[:, k:] + 0.5 * torch.randn(B, T - k, D)
    return predictions.to(dtype), targets.to(dtype)


def drawn(seed: int, positions: int, negatives):
    """The places that `cpc_loss` draws with this seed, or the word it was given."""
    if isinstance(negatives, str):
        return negatives
    return torch.randperm(positions, generator=torch.Generator().manual_seed(seed))[:negatives]


def check(predictions, targets, negatives, temperature=0.1, normalize=True):
    """Loss and gradients, allowed twice the error of plain PyTorch in the dtype."""
    dtype, (K, B, T, _) = predictions.dtype, predictions.shape
    found = {}
    for kind in (dtype, torch.float64, "ours"):
        own = dtype if kind == "ours" else kind
        wide = torch.promote_types(dtype, torch.float32) if kind == "ours" else kind
        leaves = [predictions.to(own), targets.to(own), torch.tensor(temperature).to(wide)]
        leaves = [each.detach().requires_grad_() for each in leaves]
        if kind == "ours":
            loss, stats = sslops.cpc_loss(
                *leaves[:2], negatives=negatives, temperature=leaves[2], normalize=normalize,
                generator=torch.Generator().manual_seed(3), return_stats=True,
            )  # fmt: skip
            steps = stats.loss
        else:
            places = drawn(3, B * T, negatives)
            steps = naive_cpc(*leaves, negatives=places, normalize=normalize)
            loss, steps = steps.mean(), steps.detach()
        grads = torch.autograd.grad(loss, leaves)
        names = ("loss", "steps", "predictions", "targets", "temperature")
        found[kind] = dict(zip(names, (loss.detach(), steps, *grads), strict=True))
    norms = [each.double().norm(dim=-1) for each in (predictions, targets)]
    x, y = (1.0 if normalize else float(norm.max()) for norm in norms)
    used = torch.cat([norms[0][k - 1, :, : T - k].flatten() for k in range(1, K + 1)])
    inverse = [1 / float(n.min()) if normalize else 1.0 for n in (used, norms[1])]
    logit = x * y / temperature + math.log(B * T + 1)
    bounds = {
        "loss": logit,
        "steps": logit,
        "predictions": logit / temperature * y * inverse[0] / (K * B * (T - K)),
        "targets": logit / temperature * x * inverse[1] / min(B, T - K),
        "temperature": logit * x * y / temperature**2,
    }
    for name, bound in bounds.items():
        assert_as_accurate_as(
            found["ours"][name], found[dtype][name], found[torch.float64][name],
            name=name, scale=bound,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize(
    ("K", "B", "T", "D"), [(1, 3, 2, 1), (2, 1, 6, 3), (3, 5, 11, 7), (2, 8, 40, 33)]
)
def test_matches_a_loop_over_steps(backend, K, B, T, D, negatives, dtype):
    check(*make_input(K, B, T, D, dtype), negatives)


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_the_paper_s_score(backend, negatives):
    """Dot products of any size, temperature 1."""
    predictions, targets = make_input(2, 4, 9, 12)
    check(0.7 * predictions, targets, negatives, temperature=1.0, normalize=False)


@given(
    K=st.integers(1, 3),
    B=st.integers(1, 5),
    more=st.integers(1, 6),
    D=st.integers(2, 12),
    negatives=st.sampled_from(["all", "sequence", "other", 1, 2, 100]),
    temperature=st.floats(0.05, 2.0),
    dtype=st.sampled_from(DTYPES),
    layouts=st.tuples(*[st.sampled_from(list(LAYOUTS))] * 2),
    seed=st.integers(0, 1000),
)
def test_fuzz(backend_name, K, B, more, D, negatives, temperature, dtype, layouts, seed):
    torch.manual_seed(seed)
    if isinstance(negatives, int):
        negatives = min(negatives, B * (K + more))
    inputs = make_input(K, B, K + more, D, dtype)
    with running(backend_name):
        rows = [LAYOUTS[way](x) for way, x in zip(layouts, inputs, strict=True)]
        check(*rows, negatives, temperature)


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_gradcheck_in_float64(negatives):
    predictions, targets = make_input(2, 2, 4, 3, torch.float64)
    temperature = torch.tensor(0.4).double()
    leaves = [each.requires_grad_() for each in (predictions, targets, temperature)]

    def loss(p, z, t):
        generator = torch.Generator().manual_seed(1)
        return sslops.cpc_loss(p, z, negatives=negatives, temperature=t, generator=generator)

    assert torch.autograd.gradcheck(loss, leaves)


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_positions_without_a_target_are_not_used(backend, negatives):
    predictions, targets = make_input(2, 3, 6, 4)
    for k in (1, 2):
        predictions[k - 1, :, 6 - k :] = math.nan
    predictions.requires_grad_()
    loss = sslops.cpc_loss(predictions, targets, negatives=negatives)
    assert loss.isfinite()
    loss.backward()
    assert not predictions.grad[0, :, 5:].any()
    assert not predictions.grad[1, :, 4:].any()
    assert predictions.grad.isfinite().all()


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_equal_rows_are_at_chance(backend, negatives):
    B, T = 4, 9
    predictions, targets = torch.ones(2, B, T, 3), torch.ones(B, T, 3)
    loss, stats = sslops.cpc_loss(predictions, targets, negatives=negatives, return_stats=True)
    if isinstance(negatives, str):
        candidates = {"all": B * T, "sequence": T, "other": (B - 1) * T + 1}[negatives]
        assert loss.item() == pytest.approx(math.log(candidates), abs=1e-5)
        assert not stats.accuracy.any()
    else:  # rows whose positive was drawn have one negative less
        assert math.log(negatives) <= loss.item() + 1e-5 <= math.log(negatives + 1) + 2e-5


def test_perfect_predictions(backend):
    targets = torch.eye(12).view(2, 6, 12)
    predictions = torch.stack([targets.roll(-1, dims=1), targets.roll(-2, dims=1)]).requires_grad_()
    for negatives in NEGATIVES:
        loss, stats = sslops.cpc_loss(
            predictions, targets, negatives=negatives, temperature=0.02, return_stats=True
        )
        assert 0 <= loss.item() < 1e-6
        assert torch.equal(stats.accuracy, torch.ones(2))
        (grad,) = torch.autograd.grad(loss, predictions)
        assert grad.abs().max() < 1e-6


def test_one_sequence_has_no_other(backend):
    predictions, targets = make_input(2, 1, 6, 4)
    predictions.requires_grad_()
    loss = sslops.cpc_loss(predictions, targets, negatives="other")
    assert loss == 0
    loss.backward()
    assert not predictions.grad.any()


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_frozen_targets(backend, negatives):
    """The single-pass path gives what the two-pass path gives."""
    predictions, targets = make_input(2, 3, 7, 5)
    found = []
    for trained in (False, True):
        p, z = predictions.clone().requires_grad_(), targets.clone().requires_grad_(trained)
        loss = sslops.cpc_loss(
            p, z, negatives=negatives, generator=torch.Generator().manual_seed(1)
        )
        found.append((loss.detach(), torch.autograd.grad(loss, p)[0]))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_draws_repeat_with_their_generator():
    predictions, targets = make_input(2, 3, 7, 5)

    def loss(seed):
        generator = torch.Generator().manual_seed(seed)
        return sslops.cpc_loss(predictions, targets, negatives=4, generator=generator)

    assert torch.equal(loss(1), loss(1))
    assert not torch.equal(loss(1), loss(2))
    everything = sslops.cpc_loss(predictions, targets, negatives=21)
    torch.testing.assert_close(everything, sslops.cpc_loss(predictions, targets))


def test_statistics():
    predictions, targets = make_input(3, 4, 10, 8)
    loss, stats = sslops.cpc_loss(predictions.requires_grad_(), targets, return_stats=True)
    torch.testing.assert_close(stats.loss.mean(), loss.detach())
    assert not stats.loss.requires_grad
    flat = targets.reshape(40, 8)
    cosines = torch.nn.functional.cosine_similarity(
        predictions[1, :, :8].reshape(-1, 1, 8), flat[None], dim=2
    )
    right = torch.arange(40).view(4, 10)[:, 2:].reshape(-1)
    accuracy = (cosines.argmax(dim=1) == right).float().mean()
    torch.testing.assert_close(stats.accuracy[1], accuracy)


P, Z = torch.zeros(2, 3, 5, 4), torch.zeros(3, 5, 4)
