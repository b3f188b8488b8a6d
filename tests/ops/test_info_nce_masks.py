"""InfoNCE: what a row may see, by ids; rows that see nothing."""

import math

import pytest
import torch
import torch.nn.functional as F

import sslops

from .info_nce_checks import ALL, check, make_case, ours

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def ids(n: int, kinds: int) -> torch.Tensor:
    """Some of them -1, which never matches."""
    return torch.randint(-1, kinds, (n,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kinds", [1, 7, 1000])
@pytest.mark.parametrize("same_id_only", [False, True])
@pytest.mark.parametrize(("M", "N", "D"), [(1, 1, 3), (40, 90, 8), (290, 300, 20)])
def test_ids(backend, M, N, D, same_id_only, kinds, dtype):
    """From nearly everything left out to nearly nothing, and the other way with `same_id_only`."""
    for kwargs in ({}, {"targets": True}, {"queue": dtype}):
        case = make_case(M, N, D, dtype, same_id_only=same_id_only, **kwargs)
        case.query_ids, case.key_ids = ids(M, kinds), ids(N, kinds)
        check(case)
    check(case, trained=("queries",))


@pytest.mark.every_isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kinds", [1, 7, 1000])
@pytest.mark.parametrize("M", [3, 40, 290])
def test_ids_of_both_sides(backend, M, kinds, dtype):
    """The two directions are masked differently, as the ids of one pair may differ."""
    case = make_case(M, M, 16, dtype, symmetric=True)
    case.query_ids, case.key_ids = ids(M, kinds), ids(M, kinds)
    check(case)


@pytest.mark.every_isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blocks_of_ids(backend, dtype):
    """Whole tiles are left out, or alone are seen: sequences that lie together."""
    sequence = torch.arange(600) // 100
    for same_id_only in (False, True):
        case = make_case(600, 600, 12, dtype, same_id_only=same_id_only)
        case.query_ids = case.key_ids = sequence
        check(case)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_integers_of_any_kind(dtype):
    queries, keys = torch.randn(2, 12, 5)
    row, column = torch.randint(0, 4, (2, 12))
    expected = sslops.info_nce(queries, keys, query_ids=row, key_ids=column)
    found = sslops.info_nce(queries, keys, query_ids=row.to(dtype), key_ids=column.to(dtype))
    assert torch.equal(found, expected)


def test_ids_beyond_32_bits(backend):
    """Equal in their lower halves alone they are different."""
    queries, keys = torch.randn(2, 300, 5)
    row = torch.arange(300)
    big = torch.arange(300) + (torch.arange(300) % 2 << 40)
    found = sslops.info_nce(queries, keys, query_ids=row, key_ids=big.flip(0), reduction="none")
    left = row[:, None] == big.flip(0)
    logits = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T / 0.07
    left &= ~torch.eye(300, dtype=torch.bool)
    expected = logits.masked_fill(left, -math.inf).log_softmax(dim=1).diagonal().neg()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["keys", "detached", "queue", "symmetric"])
@pytest.mark.parametrize("normalize", [True, False])
def test_rows_without_a_negative(backend, kind, dtype, normalize):
    """Loss 0 and gradient 0, beside rows that have some."""
    D = 6
    queries = torch.randn(40, D, dtype=dtype, requires_grad=True)
    keys = torch.randn(40, D, dtype=dtype, requires_grad=kind != "detached")
    temperature = torch.tensor(0.1, requires_grad=True)
    queue = F.normalize(torch.randn(50, D), dim=1).to(dtype) if kind == "queue" else None
    row_ids, key_ids = torch.full((40,), 3), torch.full((40 if queue is None else 50,), 3)
    arguments = {"query_ids": row_ids, "key_ids": key_ids, "queue": queue, "normalize": normalize}
    arguments |= {"symmetric": kind == "symmetric", "temperature": temperature}
    loss, stats = sslops.info_nce(queries, keys, reduction="none", return_stats=True, **arguments)
    assert torch.equal(loss, torch.zeros(40))
    assert stats.hit.all()
    loss.sum().backward()
    for each in (queries, keys, temperature):
        assert each.grad is None or not each.grad.any()

    row_ids[:20] = -1  # from here on some rows see all
    leaves = [queries, temperature, *([] if kind == "detached" else [keys])]
    loss = sslops.info_nce(queries, keys, reduction="none", **arguments)
    if kind != "symmetric":
        assert (loss[:20] > 0).all()
        assert torch.equal(loss[20:], torch.zeros(20))
    grads = torch.autograd.grad(loss.sum(), leaves)
    assert all(each.isfinite().all() for each in grads)
    if kind in ("detached", "queue"):
        assert not grads[0][20:].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("M", [9, 300])
def test_a_bad_query_spoils_its_row_alone(backend, bad, dtype, M):
    queries, keys = torch.randn(2, M, 6).to(dtype)
    queue = F.normalize(torch.randn(70, 6), dim=1).to(dtype)
    queries[M // 2, 1] = bad
    rows = torch.arange(M) != M // 2
    for kwargs in ({}, {"queue": queue}):
        leaf = queries.clone().requires_grad_()
        loss, stats = sslops.info_nce(leaf, keys, reduction="none", return_stats=True, **kwargs)
        assert loss[M // 2].isnan()
        assert not stats.hit[M // 2]
        assert loss[rows].isfinite().all()
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
        assert grad[M // 2].isnan().all()
        assert grad[rows].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("M", [9, 300])
def test_a_bad_negative_spoils_every_row(backend, dtype, M):
    queries, keys = torch.randn(2, M, 6).to(dtype)
    queue = F.normalize(torch.randn(300, 6), dim=1).to(dtype)
    queue[280, 1] = math.nan
    for kwargs in ({"queue": queue}, {}, {"symmetric": True}):
        other = keys.clone()
        other[M // 2, 3] = math.nan
        leaf = queries.clone().requires_grad_()
        loss, stats = sslops.info_nce(
            leaf,
            keys if "queue" in kwargs else other,
            reduction="none",
            return_stats=True,
            **kwargs,
        )
        assert loss.isnan().all()
        assert not stats.hit.any()
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
        assert grad.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_bad_negative_that_is_left_out_is_not_seen(backend, dtype):
    """In the losses; its product with a probability of zero may still spoil gradients."""
    queries, keys = torch.randn(2, 20, 6).to(dtype)
    keys[7] = math.nan
    row_ids = torch.zeros(20, dtype=torch.int64)
    key_ids = torch.arange(20) - 7
    key_ids[:7] = -1
    loss = sslops.info_nce(queries, keys, query_ids=row_ids, key_ids=key_ids, reduction="none")
    assert loss[7].isnan()  # there it is the positive
    assert loss.isfinite().sum() == 19


def test_no_gradient_flows_into_left_out_keys(backend):
    case = make_case(30, 40, 8, torch.float32)
    case.query_ids, case.key_ids = torch.full((30,), 5), torch.full((40,), -1)
    case.key_ids[35:] = 5
    grads = ours(case, ALL, torch.rand(30))[2]
    assert not grads["keys"][35:].any()
    assert (grads["keys"][:35].abs().sum(dim=1) > 0).all()


def test_ids_equal_fewer_negatives():
    """Leaving out is the same as never having had them."""
    queries, keys, queue = torch.randn(8, 5), torch.randn(8, 5), torch.randn(20, 5)
    key_ids = torch.where(torch.arange(20) < 12, -1, 2)
    row_ids = torch.full((8,), 2)
    found = sslops.info_nce(queries, keys, queue=queue, query_ids=row_ids, key_ids=key_ids)
    torch.testing.assert_close(found, sslops.info_nce(queries, keys, queue=queue[:12]))


def test_keys_left_out_by_the_hundred_set_no_maximum(backend):
    """Among logits of -300 a tile without any negative must not count as one of logit 0."""
    queries, keys = torch.ones(3, 1), torch.full((600, 1), -300.0)
    row_ids, key_ids = torch.full((3,), 7), torch.full((600,), 8)
    key_ids[:256] = 7
    loss = sslops.info_nce(
        queries, keys, targets=torch.tensor([599, 0, 300]), query_ids=row_ids, key_ids=key_ids,
        temperature=1.0, normalize=False, reduction="none",
    )  # fmt: skip
    expected = torch.tensor([344.0, 345.0, 344.0]).log()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
