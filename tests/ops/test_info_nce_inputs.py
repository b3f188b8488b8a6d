"""InfoNCE: what it accepts, what it refuses, how it is registered."""

import math

import pytest
import torch
import torch.nn.functional as F

import sslops
from tests.naive import naive_info_nce

OPS = torch.ops.sslops
KINDS = ["keys", "detached", "queue", "symmetric"]


def arguments(kind: str, D: int = 8, M: int = 20, dtype=torch.float32):
    """(queries, keys, keywords) of one of the paths; the leaves require a gradient."""
    queries = torch.randn(M, D, dtype=dtype, requires_grad=True)
    keys = torch.randn(M, D, dtype=dtype, requires_grad=kind != "detached")
    kwargs = {"symmetric": True} if kind == "symmetric" else {}
    if kind == "queue":
        kwargs["queue"] = F.normalize(torch.randn(50, D), dim=1).to(dtype)
    return queries, keys, kwargs


def test_weights_and_reductions():
    for kind in KINDS:
        queries, keys, kwargs = arguments(kind)
        weights = torch.rand(20, requires_grad=True)
        rows = sslops.info_nce(queries, keys, reduction="none", **kwargs)

        def loss(kwargs=kwargs, queries=queries, keys=keys, **more):
            return sslops.info_nce(queries, keys, **kwargs, **more)

        torch.testing.assert_close(loss(reduction="sum"), rows.sum())
        torch.testing.assert_close(loss(), rows.mean())
        torch.testing.assert_close(loss(weights=weights, reduction="none"), rows * weights)
        mean = loss(weights=weights)
        torch.testing.assert_close(mean, (rows * weights).sum() / weights.sum())
        mean.backward()
        torch.testing.assert_close(
            weights.grad, ((rows - mean) / weights.sum()).detach(), rtol=1e-4, atol=1e-6
        )


def test_a_queue_may_change_after_the_loss(backend):
    """MoCo enqueues between forward and backward."""
    queries, keys, kwargs = arguments("queue")
    (expected,) = torch.autograd.grad(sslops.info_nce(queries, keys, **kwargs), queries)
    loss = sslops.info_nce(queries, keys, **kwargs)
    kwargs["queue"].fill_(math.nan)
    assert torch.equal(torch.autograd.grad(loss, queries)[0], expected)


def test_a_queue_never_gets_a_gradient():
    queries, keys, kwargs = arguments("queue")
    kwargs["queue"].requires_grad_()
    sslops.info_nce(queries, keys, **kwargs).backward()
    assert kwargs["queue"].grad is None


def test_learnt_temperature(backend):
    for kind in KINDS:
        queries, keys, kwargs = arguments(kind)
        log_scale = torch.tensor(2.0, requires_grad=True)
        sslops.info_nce(queries, keys, temperature=(-log_scale).exp(), **kwargs).backward()
        expected = torch.tensor(2.0, requires_grad=True)
        symmetric = kwargs.pop("symmetric", False)
        loss = naive_info_nce(queries.detach(), keys.detach(), (-expected).exp(), **kwargs).mean()
        if symmetric:
            back = naive_info_nce(keys.detach(), queries.detach(), (-expected).exp())
            loss = (loss + back.mean()) / 2
        loss.backward()
        torch.testing.assert_close(log_scale.grad, expected.grad, rtol=1e-5, atol=1e-6)
        half = torch.tensor([0.5], dtype=torch.bfloat16, requires_grad=True)
        sslops.info_nce(queries, keys, temperature=half).backward()
        assert (half.grad.dtype, half.grad.shape) == (torch.bfloat16, (1,))


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_detached_and_complete(kind):
    queries, keys, kwargs = arguments(kind)
    loss, stats = sslops.info_nce(queries, keys, return_stats=True, **kwargs)
    sides = [stats.loss, stats.key_loss] if kind == "symmetric" else [stats.loss]
    torch.testing.assert_close(sum(sides).mean() / len(sides), loss.detach())
    assert not any(each.requires_grad for each in stats)
    lengths = (20, 20, 20, 20, 20, 20) if kind == "symmetric" else (20, 20, 20, 0, 0, 0)
    assert tuple(map(len, stats)) == lengths


Q, K = torch.zeros(4, 8), torch.zeros(6, 8)
I4, I6 = torch.zeros(4, dtype=torch.int64), torch.zeros(6, dtype=torch.int64)
