"""The CUDA kernels of the losses: without a GPU (cuda_emulation.h), on one if there is."""

import math
import sys

import pytest
import torch

import sslops
from sslops._info_nce_args import InfoNCEArgs, InfoNCESaved
from tests.numerics import assert_as_accurate_as, naive_nt_xent
from tests.ops.info_nce_checks import check, make_case, ours

from ._cuda import PLACES, running_cuda

pytestmark = pytest.mark.slow

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module", autouse=True, params=PLACES)
def _place(request):
    with running_cuda(request.param):
        yield


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("M", "N", "D"), [(1, 1, 1), (1, 2, 3), (33, 65, 7), (5, 300, 32), (70, 131, 130)]
)
def test_keys_as_negatives(M, N, D, dtype):
    check(make_case(M, N, D, dtype))
    check(make_case(M, N, D, dtype, targets=True))
    check(make_case(M, N, D, dtype, targets=True), trained=("queries", "scale"))  # single pass


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_queries_of_few_keys(dtype):
    check(make_case(300, 5, 9, dtype, targets=True))
    check(make_case(300, 70, 9, dtype, queue=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("D", [16, 64, 72, 128, 200, 256, 300, 520])
def test_every_width_of_tile_and_several_chunks(D, dtype):
    check(make_case(20, 70, D, dtype))
    check(make_case(20, 70, D, dtype, queue=dtype))


@pytest.mark.parametrize("queue", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_queue_of_any_dtype(dtype, queue):
    check(make_case(20, 300, 40, dtype, queue=queue))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("M", "D"), [(1, 1), (2, 3), (67, 33), (130, 130)])
def test_symmetric(M, D, dtype):
    check(make_case(M, M, D, dtype, symmetric=True))


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ids(dtype, within):
    for shape, kwargs in (
        ((70, 90), {"targets": True}),
        ((70, 150), {"queue": dtype}),
        ((70, 70), {"symmetric": not within}),
    ):
        ids = [torch.randint(-1, 5, (n,)) for n in shape]
        case = make_case(*shape, 24, dtype, query_ids=ids[0], key_ids=ids[1], **kwargs)
        case.within = within
        check(case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("views", "D"), [(2, 24), (3, 130)])
def test_nt_xent(views, D, dtype, monkeypatch):
    """The kernels know no views; ids of the samples say what is left out."""
    monkeypatch.setattr(sys.modules["sslops.ops.nt_xent"], "backend", lambda: "cuda")
    z = torch.randn(views * 35, D).to(dtype)
    found = []
    for how, rows in ((sslops.nt_xent, z), (naive_nt_xent, z), (naive_nt_xent, z.double())):
        leaf = rows.clone().requires_grad_()
        loss = how(leaf, temperature=0.2, num_views=views).mean()
        found.append((loss, *torch.autograd.grad(loss, leaf)))
    for name, *each in zip(("loss", "gradient"), *found, strict=True):
        scale = 5.0 if name == "loss" else 5.0 * float(each[-1].abs().max())
        assert_as_accurate_as(*each, name=name, scale=scale)


def test_a_row_that_sees_nothing_has_no_loss():
    ids = torch.zeros(20, dtype=torch.int64)
    case = make_case(20, 20, 16, torch.bfloat16, query_ids=ids, key_ids=ids)
    loss, stats, grads = ours(case, ("queries", "keys"), torch.ones(20))
    assert not loss.any()
    assert stats.hit.all()
    assert not grads["queries"].any()
    assert not grads["keys"].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("D", [24, 100, 300])
def test_a_negative_that_is_the_positive_ties(D, dtype):
    """Or a collapsed encoder would look accurate: products are added in different orders."""
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 150, D).to(dtype)
    rows = {"normalize": False, "temperature": 7.0, "return_stats": True}
    _, stats = sslops.info_nce(queries, keys, queue=keys.clone(), **rows)
    assert not stats.hit.any()
    _, stats = sslops.info_nce(queries, keys[:1].expand_as(keys), symmetric=True, **rows)
    assert not stats.hit.any()
    assert not stats.key_hit[0]
    far = keys - 0.2 * queries  # of a lower product than the positive
    assert sslops.info_nce(queries, keys, queue=far[:1], **rows)[1].hit[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [0.005, 0.02, 1.0])
def test_temperatures(dtype, temperature):
    check(make_case(30, 70, 24, dtype, temperature=temperature))
    check(make_case(30, 140, 24, dtype, queue=dtype, temperature=temperature))


@pytest.mark.parametrize("size", [0.2, 4.0, 30.0])
def test_dot_products_of_any_size(size):
    case = make_case(70, 70, 20, torch.float32, temperature=0.3, normalize=False)
    case.queries, case.keys = case.queries * size, case.keys * size
    check(case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_very_uneven_weights(dtype):
    grad = 10.0 ** torch.linspace(-4, 4, 60)
    for kwargs in ({}, {"queue": dtype}, {"symmetric": True}):
        check(make_case(60, 60, 24, dtype, **kwargs), grad)


def test_shares_below_the_numbers_of_float16_are_kept():
    """200 negatives of share e^-17 each beside one of nearly 1: float16 rounds 4e-8 to 6e-8."""
    x, y, z = torch.eye(8)[:3].half()
    negatives = torch.cat([x[None], y.expand(200, 8)])
    args = InfoNCEArgs(
        x[None], z[None], negatives, scale_factor=17.0, normalize=False, plan="frozen_keys"
    )
    *saved, _, _ = torch.ops.sslops.info_nce_fwd_cuda(*args)
    dqueries = InfoNCESaved(*saved).dqueries
    share = 1 / (math.exp(17) + 201)
    torch.testing.assert_close(dqueries[0, 1].item(), 17 * 200 * share, rtol=1e-3, atol=0)


def test_gradients_that_float16_weights_could_not_hold():
    case = make_case(40, 40, 24, torch.float16, temperature=1.0)
    case.queries, case.keys = case.queries * 1000, case.keys * 1000
    grad = torch.full((40,), 2.0**22)  # times shares of about 1/40
    found = ours(case, ("queries", "keys"), grad)[2]
    case.queries, case.keys = case.queries.float(), case.keys.float()
    for name, expected in ours(case, ("queries", "keys"), grad)[2].items():
        error = (found[name].float() - expected).abs().max()
        assert error <= 4e-3 * expected.abs().max(), name


@pytest.mark.parametrize("trained", [(), ("queries",), ("keys",), ("scale",), ("keys", "scale")])
def test_any_part_may_be_trained(trained):
    check(make_case(35, 35, 9, torch.bfloat16), trained=trained)
    check(make_case(35, 50, 9, torch.bfloat16, queue=torch.bfloat16), trained=trained)


def test_strides_and_alignment():
    """Rows that cannot be copied 16 bytes at a time, and gradients that are expanded."""
    case = make_case(40, 50, 24, torch.bfloat16, queue=torch.bfloat16)
    expected = ours(case, ("queries",), torch.ones(40))[2]["queries"]
    wide = torch.randn(50, 33).to(torch.bfloat16)
    wide[:, 1:25] = case.queue
    case.queue = wide[:, 1:25]
    case.queries = case.queries.t().contiguous().t()
    again = ours(case, ("queries",), torch.ones(()).expand(40))[2]["queries"]
    assert torch.equal(again, expected)


def test_the_same_bits_again():
    case = make_case(130, 300, 40, torch.float16, queue=torch.float16)
    first, second = (ours(case, ("queries", "keys"), torch.ones(130))[2] for _ in range(2))
    assert torch.equal(first["queries"], second["queries"])
    assert torch.equal(first["keys"], second["keys"])


def test_no_temperature_gives_nan():
    args = [torch.randn(4, 8) for _ in range(2)]
    scale = torch.tensor(-1.0)
    args = InfoNCEArgs(*args, scale=scale, stats=True)
    loss, lse, *_ = torch.ops.sslops.info_nce_fwd_cuda(*args)
    assert loss.isnan().all()
    assert lse.isnan().all()
