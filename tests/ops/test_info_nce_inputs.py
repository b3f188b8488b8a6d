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


@pytest.mark.parametrize("kind", KINDS)
def test_any_strides(backend, kind):
    queries, keys, kwargs = arguments(kind)
    expected = sslops.info_nce(queries, keys, **kwargs)
    want = torch.autograd.grad(expected, queries)[0]
    queue = kwargs.pop("queue", None)
    for change in (
        lambda x: x.detach().t().contiguous().t(),
        lambda x: torch.randn(len(x), 3 * x.shape[1])[:, ::3].copy_(x.detach()),
        lambda x: torch.randn(2 * len(x), x.shape[1])[::2].copy_(x.detach()),
    ):
        leaf = change(queries).requires_grad_()
        extra = kwargs if queue is None else {"queue": change(queue)}
        loss = sslops.info_nce(leaf, change(keys), **extra)
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
        (grad,) = torch.autograd.grad(loss, leaf)
        assert grad.is_contiguous()
        torch.testing.assert_close(grad, want, rtol=1e-4, atol=1e-6)


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("grad", [0.0, 65536.0, -2.0])
def test_upstream_gradient_of_any_size(backend, kind, dtype, grad):
    queries, keys, kwargs = arguments(kind, dtype=dtype)
    loss = sslops.info_nce(queries, keys, temperature=0.5, **kwargs)
    once = torch.autograd.grad(loss, queries, retain_graph=True)[0].double()
    (scaled,) = torch.autograd.grad(loss * grad, queries)
    tolerance = torch.finfo(dtype).eps * 2
    # float16 cannot hold the small ones without the factor
    atol = abs(grad) * (1e-7 if dtype is torch.float16 else 0.0)
    torch.testing.assert_close(scaled.double(), once * grad, rtol=tolerance, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
def test_backward_twice_and_double_backward(backend, kind):
    queries, keys, kwargs = arguments(kind)
    loss = sslops.info_nce(queries, keys, **kwargs)
    (first,) = torch.autograd.grad(loss, queries, retain_graph=True)
    (second,) = torch.autograd.grad(loss, queries, retain_graph=True)
    assert torch.equal(first, second)
    (grad,) = torch.autograd.grad(loss, queries, create_graph=True)
    with pytest.raises(RuntimeError, match=r"info_nce.*: double backward is not implemented"):
        grad.sum().backward()


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


@pytest.mark.parametrize("value", [0.0, -0.1, math.nan])
@pytest.mark.parametrize("kind", KINDS)
def test_tensor_temperature_that_is_not_positive_gives_nan(backend, value, kind):
    queries, keys, kwargs = arguments(kind)
    loss, stats = sslops.info_nce(
        queries, keys, temperature=torch.tensor(value), return_stats=True, **kwargs
    )
    loss.backward()
    assert loss.isnan()
    assert queries.grad.isnan().all()
    assert not stats.hit.any()


def test_autocast_casts_as_a_matrix_product(backend):
    for kind in KINDS:
        queries, keys, kwargs = arguments(kind)
        with torch.autocast("cpu", torch.bfloat16):
            loss = sslops.info_nce(queries, keys, **kwargs)
            with torch.autocast("cpu", enabled=False):
                exact = sslops.info_nce(queries, keys, **kwargs)
        assert loss.dtype is torch.float32
        assert torch.equal(loss, sslops.info_nce(queries.bfloat16(), keys.bfloat16(), **kwargs))
        assert torch.equal(exact, sslops.info_nce(queries, keys, **kwargs))
        loss.backward()
        assert queries.grad.dtype is torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_detached_and_complete(kind):
    queries, keys, kwargs = arguments(kind)
    loss, stats = sslops.info_nce(queries, keys, return_stats=True, **kwargs)
    sides = [stats.loss, stats.key_loss] if kind == "symmetric" else [stats.loss]
    torch.testing.assert_close(sum(sides).mean() / len(sides), loss.detach())
    assert not any(each.requires_grad for each in stats)
    lengths = (20, 20, 20, 20, 20, 20) if kind == "symmetric" else (20, 20, 20, 0, 0, 0)
    assert tuple(map(len, stats)) == lengths


@pytest.mark.parametrize("kind", KINDS)
def test_fullgraph_compile_with_dynamic_shapes(backend, kind):
    torch._dynamo.reset()

    def step(queries, keys, temperature, kwargs):
        return sslops.info_nce(queries, keys, temperature=temperature, return_stats=True, **kwargs)

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for M in (6, 11):
        queries, keys, kwargs = arguments(kind, M=M)
        if kind in ("keys", "queue"):
            kwargs["targets"] = torch.randint(M, (M,))
        found = []
        for run in (compiled, step):
            temperature = torch.tensor(0.2, requires_grad=True)
            loss, stats = run(queries, keys, temperature, kwargs)
            grads = torch.autograd.grad(loss, (queries, temperature))
            found.append((loss.detach(), tuple(stats), grads))
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("kind", ["keys", "queue", "symmetric"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("permuted", [False, True])
def test_opcheck(kind, dtype, permuted):
    """Also of dense inputs whose features are not adjacent: results are contiguous all the same."""

    def rows(n, requires_grad=True):
        x = torch.randn(4, n, dtype=dtype).t() if permuted else torch.randn(n, 4, dtype=dtype)
        return x.detach().requires_grad_(requires_grad)

    queries, keys, scale = rows(6), rows(6), torch.tensor(3.0, requires_grad=True)
    negatives = rows(9) if kind == "queue" else None
    targets = None if kind == "symmetric" else torch.tensor([5, 5, 0, 1, 2, 2])
    ids = (torch.arange(6) % 3 - 1, torch.arange(9 if kind == "queue" else 6) % 3)
    tensors = (queries, keys, negatives, targets, *ids)
    columns = kind == "symmetric"
    for stats in (False, True):
        forward = (*tensors, scale, 2.0, False, columns, True, stats)
        torch.library.opcheck(OPS.info_nce_fwd, forward)
        torch.library.opcheck(OPS.info_nce_kept, forward)
    plain = [each if each is None else each.detach() for each in tensors]
    args = (None, 6.0, False)
    *found, _, _, kept = OPS.info_nce_kept(*plain, *args, columns, True, False)
    grad = torch.rand(6)
    saved = (*plain, *found, *args, True)
    key_grad = grad if columns else None
    for needs in ([True, True, True], [True, False, False]):
        torch.library.opcheck(OPS.info_nce_bwd, (grad, key_grad, *saved, needs))
        again = (grad, key_grad, *plain, *found, kept, *args, True, needs)
        torch.library.opcheck(OPS.info_nce_kept_bwd, again)
    # without queries the derivative of the scale is NaN, which opcheck takes for a difference
    torch.library.opcheck(
        OPS.info_nce_bwd,
        (grad, key_grad, *saved, [False, True, False]),
        test_utils=("test_schema", "test_faketensor"),
    )
    if columns:
        return
    single = [queries, keys, None if negatives is None else negatives.detach(), *tensors[3:]]
    for stats in (False, True):
        torch.library.opcheck(OPS.info_nce_single, (*single, scale, 2.0, False, True, stats))
    loss, _, _, dqueries, slope = OPS.info_nce_single(*plain, *args, True, False)
    for needs in ([True, True, True], [False, True, False]):
        torch.library.opcheck(
            OPS.info_nce_single_bwd,
            (grad, *plain[:2], targets, loss, dqueries, slope, None, 6.0, True, needs),
        )


def test_meta_tensors_have_a_shape():
    for kind in KINDS:
        queries, keys, kwargs = arguments(kind)
        kwargs = {k: v.to("meta") if k == "queue" else v for k, v in kwargs.items()}
        leaf = queries.detach().to("meta").requires_grad_()
        loss = sslops.info_nce(leaf, keys.detach().to("meta"), **kwargs)
        loss.backward()
        assert leaf.grad.shape == leaf.shape


Q, K = torch.zeros(4, 8), torch.zeros(6, 8)
I4, I6 = torch.zeros(4, dtype=torch.int64), torch.zeros(6, dtype=torch.int64)


@pytest.mark.parametrize(
    ("queries", "keys", "kwargs", "error", "message"),
    [
        ([1.0], K, {}, TypeError, "queries must be a tensor, got list"),
        (Q, 3, {}, TypeError, "keys must be a tensor, got int"),
        (Q.long(), K, {}, TypeError, "queries must be float16.*got torch.int64"),
        (Q, K.half(), {}, TypeError, "queries and keys must share their dtype, got queries"),
        (Q, K, {"queue": K.int()}, TypeError, "queue must be float16.*got torch.int32"),
        (Q[0], K, {}, ValueError, r"queries must be \[rows, features\].*got shape \(8,\)"),
        (Q[:0], K, {}, ValueError, r"at least one of each, got shape \(0, 8\)"),
        (Q[:, :0], K[:, :0], {}, ValueError, r"at least one of each, got shape \(4, 0\)"),
        (Q, K[:, :7], {}, ValueError, r"keys must have the 8 features of queries.*\(6, 7\)"),
        (Q, K, {"queue": K[:, 1:]}, ValueError, "queue must have the 8 features of queries"),
        (Q, K, {"queue": K[:0]}, ValueError, r"queue must be .* got shape \(0, 8\)"),
        (Q, K.to("meta"), {}, ValueError, "keys must be on the device.*got meta and cpu"),
        (Q, K, {"queue": K.to("meta")}, ValueError, "queue must be on the device"),
        (K, Q, {}, ValueError, "without targets every query needs its key, got 6 and 4"),
        (Q, K, {"targets": I6}, ValueError, r"targets must be \[4\], got shape \(6,\)"),
        (Q, K, {"targets": I4.float()}, TypeError, "targets must be an integer .* got torch.f"),
        (Q, K, {"targets": [0, 1, 2, 3]}, TypeError, "targets must be an integer .* got list"),
        (Q, K, {"targets": I4 + 6}, ValueError, r"targets must be in \[0, 6\), got 6 to 6"),
        (Q, K, {"targets": I4 - 1}, ValueError, r"targets must be in \[0, 6\), got -1 to -1"),
        (Q, K, {"targets": I4.to("meta")}, ValueError, "targets must be on the device"),
        (Q, K, {"query_ids": I4}, ValueError, "query_ids and key_ids go together"),
        (Q, K, {"key_ids": I6}, ValueError, "query_ids and key_ids go together"),
        (Q, K, {"query_ids": I4, "key_ids": I4}, ValueError, r"key_ids must be \[6\]"),
        (Q, K, {"query_ids": I6, "key_ids": I6}, ValueError, r"query_ids must be \[4\]"),
        (Q, K, {"query_ids": Q[:, 0], "key_ids": I6}, TypeError, "query_ids must be an integer"),
        (
            Q,
            K,
            {"query_ids": I4, "key_ids": I6, "queue": torch.zeros(9, 8)},
            ValueError,
            r"key_ids must be \[9\], got shape \(6,\)",
        ),
        (Q, K, {"symmetric": True}, ValueError, "as many queries as keys.*got 4 and 6"),
        (Q, Q, {"symmetric": True, "targets": I4}, ValueError, "no targets.*targets True"),
        (Q, Q, {"symmetric": True, "queue": K}, ValueError, "no queue.*queue True"),
        (Q, K, {"temperature": 0.0}, ValueError, "temperature must be positive.*got 0.0"),
        (Q, K, {"temperature": math.nan}, ValueError, "positive and finite, got nan"),
        (Q, K, {"temperature": math.inf}, ValueError, "positive and finite, got inf"),
        (Q, K, {"temperature": torch.ones(2)}, ValueError, r"one element, got shape \(2,\)"),
        (Q, K, {"temperature": torch.tensor(1)}, TypeError, "temperature must be float16"),
        (Q, K, {"reduction": "avg"}, ValueError, "none, mean or sum, got 'avg'"),
        (Q, K, {"weights": torch.ones(6)}, ValueError, r"weights must be \[4\], got shape \(6,\)"),
        (Q, K, {"weights": [1.0]}, TypeError, "weights must be a tensor, got list"),
        (Q, K, {"weights": I4}, TypeError, "weights must be float16"),
        (Q, K, {"weights": torch.ones(4, device="meta")}, ValueError, "got meta and cpu"),
    ],
)  # fmt: skip
def test_refuses(queries, keys, kwargs, error, message):
    with pytest.raises(error, match=message) as caught:
        sslops.info_nce(queries, keys, **kwargs)
    assert str(caught.value).startswith("info_nce: ")
