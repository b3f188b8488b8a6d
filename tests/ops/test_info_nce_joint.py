"""InfoNCE's gradient that comes with the loss: strips, wrong guesses, what it falls back to.

Its accuracy is checked wherever info_nce's is (info_nce_checks.check).
"""

import math

import pytest
import torch
import torch.nn.functional as F

import sslops
from sslops._info_nce_args import InfoNCEArgs
from sslops._library import op
from sslops.ops import _info_nce_op
from sslops.ops._info_nce_op import info_nce_rows
from sslops.reference.info_nce import multiple_of
from tests.conftest import running
from tests.numerics import assert_as_accurate_as

from .info_nce_checks import ALL, check, make_case, ours

OPS = torch.ops.sslops
compiled = pytest.mark.skipif(not sslops.HAS_EXTENSION, reason="sslops._C is not compiled")


def recorded(monkeypatch):
    """The plans that are chosen, as they are."""
    plans, original = [], _info_nce_op.choose_plan

    def choose(a, *, reduced):
        plans.append(original(a, reduced=reduced))
        return plans[-1]

    monkeypatch.setattr(_info_nce_op, "choose_plan", choose)
    return plans


@compiled
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_known_mean_takes_one_pass(monkeypatch, reduction, weighted):
    plans = recorded(monkeypatch)
    q, k = (torch.randn(9, 5, requires_grad=True) for _ in range(2))
    w = torch.rand(9, requires_grad=True) if weighted else None
    (3e4 * sslops.info_nce(q, k, weights=w, reduction=reduction)).backward()
    assert plans == ["grad_in_forward"]
    plans.clear()
    rows = sslops.info_nce(q, k, reduction="none")
    (rows if w is None else rows * w).sum().backward()
    assert plans == ["save_logits"]
    plans.clear()
    with torch.no_grad():
        sslops.info_nce(q, k)
    assert plans == ["recompute"]


@compiled
def test_both_directions_take_one_pass_where_all_pairs_are_no_more_than_the_rows(monkeypatch):
    plans = recorded(monkeypatch)
    x, y = (torch.randn(9, 5, requires_grad=True) for _ in range(2))
    scale, w = torch.tensor(3.0, requires_grad=True), torch.rand(9, requires_grad=True)
    for weights in (None, w):
        for reduction in ("mean", "sum"):
            loss = sslops.clip_loss(
                x, y, scale, weights=weights, reduction=reduction, label_smoothing=0.1
            )
            loss.backward()
    sslops.info_nce(x, y, symmetric=True).backward()
    assert plans == 5 * ["grad_in_forward"]
    plans.clear()
    more = [torch.randn(21, 5, requires_grad=True) for _ in range(2)]
    sslops.clip_loss(*more, scale).backward()  # 21 > 4 x 5
    sslops.info_nce(*more, reduction="none").sum().backward()
    assert plans == 2 * ["recompute"]
    plans.clear()
    sslops.clip_loss(x, y, scale, reduction="none").sum().backward()
    sslops.clip_loss(x, y.detach(), scale).backward()
    sslops.clip_loss(x.detach(), y.detach(), scale).backward()
    assert plans == 3 * ["save_logits"]


@compiled
@pytest.mark.parametrize("negatives", ["all", "sequence", "other", 7])
def test_cpc_takes_one_pass(monkeypatch, negatives):
    plans = recorded(monkeypatch)
    predictions, targets = torch.randn(3, 4, 9, 5), torch.randn(4, 9, 5)
    leaves = predictions.requires_grad_(), targets.requires_grad_()
    (0.3 * sslops.cpc_loss(*leaves, negatives=negatives)).backward()
    assert plans == ["grad_in_forward"]


@compiled
def test_nt_xent_without_duplicates_takes_one_pass(monkeypatch):
    plans = recorded(monkeypatch)
    z, ids = torch.randn(12, 5, requires_grad=True), torch.arange(6) % 5
    sslops.nt_xent(z, ids=ids, weights=torch.rand(12)).backward()
    assert plans == ["grad_in_forward"]
    plans.clear()
    sslops.nt_xent(z, ids=ids[:4], num_views=3).backward()  # several positives: no plain sum
    assert plans == ["save_logits"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_wrong_guess_costs_time_alone(backend, dtype):
    case = make_case(60, 70, 16, dtype, targets=True)
    grad = torch.rand(60) + 0.1
    for row_weights in (
        torch.ones(60),
        torch.zeros(60),
        grad.roll(1),
        grad * (1 + 1e-5 * (grad > 0.5)),
    ):
        _, _, other = ours(case, ALL, grad, row_weights=row_weights)
        _, _, exact = ours(case, ALL, grad)
        assert all(torch.equal(other[name], exact[name]) for name in ALL)


def test_multiples():
    w = torch.tensor([0.0, 1.0, -2.0, 1e-30])
    assert multiple_of(-3 * w, w) == -3
    assert multiple_of(0 * w, w) == 0
    assert multiple_of(torch.full((4,), 65536.0), None) == 65536
    assert multiple_of(w, None) is None
    assert multiple_of(3 * w + torch.tensor([1e-30, 0, 0, 0]), w) is None
    assert multiple_of(3 * w + torch.tensor([0, 0, 0, 1e-34]), w) is None  # each by itself
    for bad in (float("nan"), float("inf")):
        assert multiple_of(bad * torch.ones(4), None) is None
        assert multiple_of(torch.ones(4), torch.full((4,), bad)) is None
    assert multiple_of(torch.ones(4), torch.zeros(4)) is None


@pytest.mark.slow
@pytest.mark.every_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("symmetric", [False, True])
def test_strips(backend, dtype, threads, symmetric):
    """Several strips and column tiles, and threads that wait for each other's columns."""
    if symmetric:  # all of 700 rows are kept
        case = make_case(700, 700, 180, dtype, symmetric=True)
    else:
        case = make_case(700, 800, 24, dtype, targets=True)
    grad, before = torch.rand(700) + 0.1, torch.get_num_threads()
    _, _, exact = ours(case, ALL, grad)
    try:
        torch.set_num_threads(threads)
        loss, stats, grads = ours(case, ALL, grad, row_weights=grad)
        again = ours(case, ALL, grad, row_weights=grad)
        check(case, grad)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(loss, again[0])
    assert all(map(torch.equal, stats, again[1]))
    assert all(torch.equal(grads[name], again[2][name]) for name in ALL)
    torch.testing.assert_close(grads, exact, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [30, 64, 100, 300])
def test_sequences_shorter_than_a_tile(backend, dtype, length):
    """Tiles fall into rectangles, of which some are left out whole; some targets lie in these."""
    case = make_case(500, 600, 24, dtype, targets=True, same_id_only=True)
    case.query_ids, case.key_ids = torch.arange(500) // length, torch.arange(600) // length
    check(case)
    case.query_ids = case.query_ids.flip(0)
    check(case)


@pytest.mark.parametrize("directions", [(1, 0), (0, 1), (1, 1), (1, 2)])
def test_one_direction_of_two(backend, directions):
    """Rows and columns that do not count alike are no multiple of what was guessed."""
    q, k, w = torch.randn(30, 8), torch.randn(30, 8), torch.rand(30) + 0.1

    def gradients(op, **plan):
        leaves = [each.clone().requires_grad_() for each in (q, k)]
        args = InfoNCEArgs(*leaves, scale_factor=3.0, symmetric=True, **plan)
        loss, _, key_loss, *_ = op(*args)
        total = ((directions[0] * loss + directions[1] * key_loss) * w).sum()
        return torch.autograd.grad(total, leaves)

    found = gradients(op("info_nce_fwd", q), plan="grad_in_forward", row_weights=w)
    torch.testing.assert_close(found, gradients(OPS.info_nce_fwd_reference), rtol=1e-4, atol=1e-5)


def test_more_pairs_than_there_is_room_for(backend):
    """1,100 x 1,100 exponentials, when 2 x 2 x 1,100 rows of 3 are fewer: two passes."""
    q, k = torch.randn(1100, 3), torch.randn(1100, 3)
    args = InfoNCEArgs(q, k, scale_factor=3.0, symmetric=True, stats=True, plan="grad_in_forward")
    found, expected = op("info_nce_fwd", q)(*args), OPS.info_nce_fwd_reference(*args)
    for each, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(each, exact, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_too_narrow_for_strips(backend, dtype):
    """A strip of 128 rows would be larger than twice the inputs: two passes."""
    check(make_case(130, 5000, 3, dtype, targets=True))


@pytest.mark.parametrize("size", [0.1, 1.0, 3.0, 60.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_trained_negatives_apart_from_the_keys(backend, dtype, size):
    """As cpc_loss draws them; with keys so large that their logits need a maximum."""
    M, N, D, K, factor = 40, 50, 12, 60, 0.7
    targets, ids = torch.randint(N, (M,)), (torch.arange(M) % 5 - 1, torch.arange(K) % 5 - 1)
    inputs = [torch.randn(n, D).mul(size if n == N else 1).to(dtype) for n in (M, N, K)]
    w = torch.rand(M) + 0.1

    def losses(kind, plain):
        q, k, n = leaves = [x.to(kind, copy=True).requires_grad_() for x in inputs]
        if not plain:
            args = InfoNCEArgs(q, k, n, targets, *ids, w, scale_factor=factor, normalize=False)
            loss, _ = info_nce_rows(args, reduced=True)
        else:
            logits = factor * torch.cat([(q * k[targets]).sum(1, keepdim=True), q @ n.T], dim=1)
            same = (ids[0][:, None] == ids[1]) & (ids[0][:, None] >= 0)
            logits = logits.masked_fill(F.pad(same, (1, 0)), -math.inf)
            loss = F.cross_entropy(logits, torch.zeros(M, dtype=torch.int64), reduction="none")
        (loss * w).sum().backward()
        return loss.detach(), *(x.grad for x in leaves)

    truth, naive = losses(torch.float64, True), losses(dtype, True)
    q, k, n = (x.double().norm(dim=1).max() for x in inputs)
    logit = factor * q * max(k, n) + math.log(K)
    mass = w.sum()
    bounds = (logit, logit * factor * max(k, n) * w.max(), *[logit * factor * q * mass] * 2)
    for name, *each, bound in zip(
        ("loss", "dq", "dk", "dn"), losses(dtype, False), naive, truth, bounds, strict=True
    ):
        assert_as_accurate_as(*each, name=name, scale=float(bound))


def test_large_negatives_beside_unit_rows(backend):
    """Negatives are taken as they lie, and their size decides whether a maximum is needed."""
    q, k, n = torch.randn(40, 12), torch.randn(40, 12), 60 * torch.randn(50, 12)
    for reduced in (True, False):
        leaves = [each.clone().requires_grad_() for each in (q, k, n)]
        loss, _ = info_nce_rows(InfoNCEArgs(*leaves, scale_factor=2.0), reduced=reduced)
        exact = [each.double().requires_grad_() for each in (q, k, n)]
        x, y = (F.normalize(each, dim=1) for each in exact[:2])
        logits = 2 * torch.cat([(x * y).sum(1, keepdim=True), x @ exact[2].T], dim=1)
        expected = logits.logsumexp(1) - logits[:, 0]
        torch.testing.assert_close(loss, expected.float(), rtol=1e-5, atol=1e-5)
        found = torch.autograd.grad(loss.sum(), leaves)
        wanted = torch.autograd.grad(expected.sum(), exact)
        for each, truth in zip(found, wanted, strict=True):
            size = float(truth.abs().max())  # logits of some hundreds
            torch.testing.assert_close(each, truth.float(), rtol=0, atol=1e-4 * size)


@pytest.mark.parametrize("temperature", [0.1, 0.005])
def test_half_precision_gradients_below_their_range(backend, temperature):
    """A gradient scaler's 65,536 must reach them before they are rounded to float16."""
    case = make_case(64, 64, 16, torch.float16, temperature=temperature)
    grad = torch.full((64,), 1.0)
    tiny = [
        ours(case, ("keys",), s * grad, row_weights=1e-9 * grad)[2]["keys"] for s in (1e-9, 1.0)
    ]
    assert (tiny[0] == 0).float().mean() > 0.5  # as any float16 gradient of that size
    exact = ours(case, ("keys",), grad)[2]["keys"]
    torch.testing.assert_close(tiny[1], exact, rtol=2e-3, atol=1e-6)


def test_positives_far_above_what_float32_holds(backend):
    """exp(100) of a key against exp(60) of a trained negative: the quotient is still a number."""
    q, k, n = torch.ones(3, 1), torch.full((3, 1), 100.0), torch.full((2, 1), 60.0)
    n.requires_grad_()
    loss, _ = info_nce_rows(InfoNCEArgs(q, k, n, normalize=False), reduced=True)
    (dn,) = torch.autograd.grad(loss.sum(), n)
    torch.testing.assert_close(dn, torch.full((2, 1), 3 * math.exp(-40)), rtol=1e-4, atol=0)


def test_sums_of_many_large_terms(backend):
    """Each is a float32 number, their sum is not."""
    q, k = torch.full((130, 192), 0.1), torch.full((40_000, 192), 0.1)
    q, k = q.requires_grad_(), k.requires_grad_()
    temperature = 1.92 / 79
    loss = sslops.info_nce(q, k, temperature=temperature, normalize=False)
    assert loss.item() == pytest.approx(math.log(40_000), rel=1e-5)
    _, dk = torch.autograd.grad(loss, (q, k))
    torch.testing.assert_close(dk[30_000], dk.new_full((192,), 0.1 / temperature / 40_000))


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["mean", "none"])  # known before, and kept
@pytest.mark.parametrize("symmetric", [False, True])
def test_fullgraph_compile(backend_name, symmetric, reduction):
    def loss(q, k):
        rows = sslops.info_nce(q, k, symmetric=symmetric, reduction=reduction)
        return (rows * torch.linspace(0, 1, len(q))).sum() if reduction == "none" else rows

    torch._dynamo.reset()  # all of these tests share the code of `loss`
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    with running(backend_name):
        for rows in (10, 25, 50):  # of 8 features: up to 32 are kept
            q, k = (torch.randn(rows, 8, requires_grad=True) for _ in range(2))
            expected = torch.autograd.grad(loss(q, k), (q, k))
            torch.testing.assert_close(torch.autograd.grad(compiled(q, k), (q, k)), expected)


def test_gradients_of_a_non_positive_temperature_are_nan(backend):
    q, k = (torch.randn(5, 3, requires_grad=True) for _ in range(2))
    loss = sslops.info_nce(q, k, temperature=torch.tensor(-1.0))
    assert loss.isnan()
    assert all(each.isnan().all() for each in torch.autograd.grad(loss, (q, k)))


def test_inputs_that_are_not_finite(backend):
    for bad in (float("nan"), float("inf")):
        q, k = torch.randn(40, 8), torch.randn(40, 8)
        q[3, 2] = bad
        q, k = q.requires_grad_(), k.requires_grad_()
        loss, stats = sslops.info_nce(q, k, return_stats=True)
        assert loss.isnan()
        assert not stats.hit[3]
        _, dk = torch.autograd.grad(loss, (q, k))
        assert dk.isnan().any()


@compiled
def test_refuses_weights_of_another_length():
    q = torch.randn(6, 4)
    with pytest.raises(ValueError, match=r"row_weights must be \[M\] with M = 6, got \[5\]"):
        OPS.info_nce_fwd(*InfoNCEArgs(q, q, row_weights=torch.ones(5), plan="grad_in_forward"))


@compiled
@pytest.mark.parametrize("plan", ["recompute", "save_logits", "grad_in_forward"])
def test_refuses_columns_of_other_keys_than_the_queries_own(plan):
    q, k = torch.randn(6, 4), torch.randn(7, 4)
    with pytest.raises(ValueError, match="as many keys as queries, got 7 and 6"):
        OPS.info_nce_fwd(*InfoNCEArgs(q, k, symmetric=True, plan=plan))


@compiled
def test_refuses_an_unknown_plan():
    q = torch.randn(6, 4)
    with pytest.raises(ValueError, match=r"info_nce: plan must be .*, got guess"):
        OPS.info_nce_fwd(*InfoNCEArgs(q, q, plan="guess"))
