"""InfoNCE on the CPU and in plain PyTorch: numbers, gradients, closed forms, runs that agree."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import sslops
from sslops._info_nce_args import InfoNCEArgs
from sslops.reference import _rows
from sslops.reference import info_nce as reference
from tests.conftest import running
from tests.layouts import LAYOUTS
from tests.naive import info_nce_logits, loop_info_nce

from .info_nce_checks import ALL, Case, check, make_case, ours

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# M, N, D: alone; one negative; odd everything; more keys than a tile; two ragged tiles each; wide
SHAPES = [(1, 1, 1), (1, 2, 3), (33, 65, 7), (5, 300, 32), (270, 531, 130), (40, 67, 600)]


@pytest.mark.every_isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("M", "N", "D"), SHAPES)
def test_keys_as_negatives(backend, M, N, D, dtype):
    check(make_case(M, N, D, dtype))
    check(make_case(M, N, D, dtype, targets=True), trained=("queries", "scale"))  # single pass


@pytest.mark.every_isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("M", "N", "D"), [(1, 1, 1), (1, 3, 2), *SHAPES[2:]])
def test_queue(backend, M, N, D, dtype):
    check(make_case(M, N, D, dtype, queue=dtype))


@pytest.mark.parametrize("queue", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_queue_of_another_dtype(backend, dtype, queue):
    """Float32 queries keep their digits unless the queue has bfloat16's."""
    check(make_case(20, 300, 40, dtype, queue=queue))


@pytest.mark.every_isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("M", "D"), [(1, 1), (2, 3), (33, 7), (270, 130), (300, 33), (40, 600)])
def test_symmetric(backend, M, D, dtype):
    check(make_case(M, M, D, dtype, symmetric=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [0.005, 0.02, 0.3, 1.0])
def test_temperatures(backend, dtype, temperature):
    check(make_case(30, 70, 24, dtype, temperature=temperature))
    check(make_case(30, 270, 24, dtype, queue=dtype, temperature=temperature))
    check(make_case(40, 40, 24, dtype, symmetric=True, temperature=temperature))


@pytest.mark.parametrize("size", [0.2, 4.0, 30.0])
def test_dot_products_of_any_size(backend, size):
    for kwargs in ({}, {"queue": torch.float32}, {"symmetric": True}):
        case = make_case(70, 70, 20, torch.float32, temperature=0.3, normalize=False, **kwargs)
        case.queries, case.keys = case.queries * size, case.keys * size
        if case.queue is not None:
            case.queue = case.queue * size
        check(case)


@pytest.mark.parametrize("trained", [(), ("queries",), ("keys",), ("scale",), ("keys", "scale")])
@pytest.mark.parametrize("kind", ["keys", "queue", "symmetric"])
def test_any_part_may_be_trained(backend, trained, kind):
    kwargs = {"keys": {}, "queue": {"queue": torch.float32}, "symmetric": {"symmetric": True}}
    check(make_case(35, 35, 9, torch.float32, **kwargs[kind]), trained=trained)
    check(make_case(35, 35, 9, torch.bfloat16, **kwargs[kind]), trained=trained)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_very_uneven_weights(backend, dtype):
    """Weights over eight orders of magnitude, in a scale that fp16 cannot hold."""
    grad = 10.0 ** torch.linspace(-4, 4, 60)
    for kwargs in ({}, {"queue": dtype}, {"symmetric": True}):
        case = make_case(60, 60, 16, torch.float32, **kwargs)
        check(case, grad)
        case.queries, case.keys = case.queries.to(dtype), case.keys.to(dtype)
        _, _, grads = ours(case, ("queries", "keys"), grad)
        light = ours(case, ("queries",), grad * (grad < 1))[2]["queries"][:30]
        assert light.abs().max() > 0  # alone they are seen
        assert all(each.isfinite().all() for each in grads.values())


@given(
    M=st.integers(1, 40),
    more=st.integers(0, 40),
    D=st.integers(1, 40),
    temperature=st.floats(0.02, 2.0),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(["keys", "targets", "queue", "symmetric"]),
    ids=st.sampled_from([None, 1, 3, 50]),
    within=st.booleans(),
    normalize=st.booleans(),
    trained=st.sampled_from([(), ("queries",), ("keys",), ("queries", "scale"), ALL]),
    layouts=st.tuples(*[st.sampled_from(list(LAYOUTS))] * 3),
    order=st.integers(-20, 2),
    seed=st.integers(0, 1000),
)
def test_fuzz(
    backend_name, M, more, D, temperature, dtype, kind, ids, within, normalize, trained, layouts,
    order, seed,
):  # fmt: skip
    """Any shape, stride, dtype, ids, and weights down to 10^-20."""
    torch.manual_seed(seed)
    N = M if kind == "symmetric" else M + more
    kwargs = {"targets": True} if kind == "targets" else {"symmetric": kind == "symmetric"}
    queue = dtype if kind == "queue" else None
    case = make_case(M, N, D, dtype, queue=queue, temperature=temperature, **kwargs)
    if D == 1:  # away from zero: there the gradient of the normalisation is rounding alone
        case.queries, case.keys = (x + x.sign().add(0.5).sign() for x in (case.queries, case.keys))
    case.normalize = normalize
    if ids is not None:
        case.query_ids = torch.randint(-1, ids, (M,))
        case.key_ids = torch.randint(-1, ids, (N,))
        case.same_id_only = within and kind != "symmetric"
    for name, way in zip(("queries", "keys", "queue"), layouts, strict=True):
        if getattr(case, name) is not None:
            setattr(case, name, LAYOUTS[way](getattr(case, name)))
    grad = torch.rand(M) + 0.1
    if dtype is torch.float32:
        grad = grad * 10.0**order
    with running(backend_name):
        check(case, grad, trained)


def test_reference_matches_a_double_loop():
    queries, keys = torch.randn(6, 4).double(), torch.randn(9, 4).double()
    for kwargs in (
        {},
        {"targets": torch.tensor([8, 0, 0, 3, 7, 2])},
        {"queue": torch.randn(11, 4).double(), "query_ids": torch.randint(-1, 3, (6,))},
    ):
        ids = torch.randint(-1, 3, (11,)) if "query_ids" in kwargs else None
        queue = kwargs.get("queue")
        kwargs |= {} if queue is None else {"queue": F.normalize(queue, dim=1), "key_ids": ids}
        found = sslops.info_nce(queries, keys, temperature=0.3, reduction="none", **kwargs)
        plain = {k: v if k == "queue" else v.tolist() for k, v in kwargs.items()}
        torch.testing.assert_close(found, loop_info_nce(queries, keys, 0.3, **plain))


@pytest.mark.parametrize("kind", ["keys", "detached", "queue", "symmetric"])
@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck_in_float64(kind, normalize):
    kwargs = {"normalize": normalize, "symmetric": kind == "symmetric"}
    if kind == "queue":
        kwargs["queue"] = torch.randn(7, 3).double()
    if kind in ("keys", "queue"):
        kwargs["targets"] = torch.tensor([4, 0, 4, 1])
    queries = torch.randn(4, 3).double().requires_grad_()
    keys = torch.randn(4 if kind == "symmetric" else 5, 3).double()
    keys.requires_grad_(kind != "detached")
    temperature = torch.tensor(0.4).double().requires_grad_()
    weights = torch.rand(4).double().requires_grad_()
    for reduction in ("none", "mean"):
        assert torch.autograd.gradcheck(
            lambda q, k, t, w: sslops.info_nce(
                q,
                k,
                temperature=t,
                weights=w,
                reduction=reduction,  # noqa: B023
                **kwargs,
            ),
            (queries, keys, temperature, weights),
        )


def test_reference_in_chunks(monkeypatch):
    cases = [
        make_case(50, 60, 6, torch.float64, targets=True),
        make_case(50, 60, 6, torch.float64, queue=torch.float32),
        make_case(60, 60, 6, torch.float64, symmetric=True),
    ]
    grad = torch.rand(60).double()
    whole = [ours(case, ALL, grad[: len(case.queries)]) for case in cases]
    monkeypatch.setattr(_rows, "CHUNK", 60 * 7)
    for case, (loss, stats, grads) in zip(cases, whole, strict=True):
        again, found, dagain = ours(case, ALL, grad[: len(case.queries)])
        torch.testing.assert_close(again, loss)
        torch.testing.assert_close(tuple(found), tuple(stats))
        torch.testing.assert_close(dagain, grads)


def test_reference_in_float64_has_no_threshold():
    """PyTorch's own softplus drops log(1 + exp(-x)) above x = 20."""
    queries, keys = torch.eye(2).double(), torch.eye(2).double().flip(0)
    loss, *_ = reference.info_nce_fwd(*InfoNCEArgs(queries, keys, scale_factor=1 / 0.047))
    x = 1 / 0.047
    exact = x + math.log1p(math.exp(-x))
    torch.testing.assert_close(
        loss, torch.tensor([exact, exact], dtype=torch.float64), rtol=1e-15, atol=0
    )


@pytest.mark.parametrize(("M", "N", "D"), [(1, 2, 3), (90, 90, 20), (60, 600, 40)])
def test_equal_rows_are_at_chance(backend, M, N, D):
    """Every candidate is as likely as the positive: log(candidates), no gradient, no hit."""
    for kind in ("keys", "queue", "symmetric"):
        if kind == "symmetric" and M != N:
            continue
        queries = torch.ones(M, D, requires_grad=True)
        keys = torch.ones(M if kind == "queue" else N, D, requires_grad=True)
        queue = F.normalize(torch.ones(N, D), dim=1) if kind == "queue" else None
        loss, stats = sslops.info_nce(
            queries, keys, queue=queue, symmetric=kind == "symmetric", return_stats=True
        )
        candidates = N + 1 if queue is not None else N
        assert loss.item() == pytest.approx(math.log(candidates), abs=1e-5)
        loss.backward()
        assert max(queries.grad.abs().max(), keys.grad.abs().max()) < 1e-5
        assert not stats.hit.any() or queue is not None  # one ulp decides there


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_perfect_pairs_have_no_loss(backend, dtype):
    for temperature in (0.02, 0.005):
        for kwargs in ({}, {"symmetric": True}, {"queue": -torch.eye(16, dtype=dtype)}):
            queries = torch.eye(16, dtype=dtype).requires_grad_()
            keys = torch.eye(16, dtype=dtype).requires_grad_()
            loss, stats = sslops.info_nce(
                queries, keys, temperature=temperature, return_stats=True, **kwargs
            )
            assert 0 <= loss.item() < 1e-6
            assert stats.hit.all()
            loss.backward()
            assert queries.grad.abs().max() < 1e-4
            assert keys.grad.abs().max() < 1e-4


@pytest.mark.parametrize("cosine", [0.0, 0.6, -1.0])
def test_two_points_by_hand(backend, cosine):
    """One negative: loss log(1 + e^d), d = (negative - positive) / tau, slope its sigmoid."""
    tau = 0.5
    queries = torch.tensor([[1.0, 0.0]], requires_grad=True)
    negative = torch.tensor([[cosine, math.sqrt(1 - cosine**2)]])
    keys = torch.tensor([[0.6, 0.8]])
    d = (cosine - 0.6) / tau
    slope = 1 / (1 + math.exp(-d))
    # d loss / d query = slope (negative - key) / tau, less its part along the unit query
    expected = torch.tensor([[0.0, slope * float(negative[0, 1] - 0.8) / tau]])
    for kwargs in ({"queue": negative}, {}):
        own = keys if kwargs else torch.cat([keys, negative])
        loss = sslops.info_nce(queries, own, temperature=tau, **kwargs)
        torch.testing.assert_close(loss.item(), math.log1p(math.exp(d)), rtol=1e-6, atol=1e-7)
        (grad,) = torch.autograd.grad(loss, queries)
        torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.every_isa
def test_exponentials_have_the_digits_of_float32(backend):
    """One negative at cosine c: log(1 + e^(c - 1)); the polynomial for bfloat16 errs by 1e-6."""
    query = torch.tensor([[1.0, 0.0]])
    for cosine in torch.linspace(-1, 1, 101):
        keys = torch.stack([query[0], torch.stack([cosine, (1 - cosine**2).clamp_min(0).sqrt()])])
        loss = sslops.info_nce(query, keys, temperature=1.0, normalize=False)
        assert loss.item() == pytest.approx(math.log1p(math.exp(cosine - 1)), abs=3e-7)


def exact_loss(queries, keys, temperature, queue=None):
    """In a form that keeps the digits of losses below float64's epsilon."""
    queue = None if queue is None else queue.double()
    logits = info_nce_logits(queries, keys, 1 / temperature, queue=queue)
    return (logits[:, 1:] - logits[:, :1]).exp().sum(dim=1).log1p()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [0.05, 0.02])
def test_solved_pairs(backend, dtype, temperature):
    """1 - p of the positive is computed and not subtracted: gradients of tiny losses are right."""
    keys = torch.randn(60, 64)
    queries = (keys + 0.1 * torch.randn(60, 64)).to(dtype)
    keys = keys.to(dtype)
    for kwargs in ({}, {"symmetric": True}, {"queue": F.normalize(torch.randn(99, 64), dim=1)}):
        q, k = queries.clone().requires_grad_(), keys.clone().requires_grad_()
        a, b = queries.double().requires_grad_(), keys.double().requires_grad_()
        loss = sslops.info_nce(q, k, temperature=temperature, reduction="none", **kwargs)
        truth = exact_loss(a, b, temperature, kwargs.get("queue"))
        if "symmetric" in kwargs:
            truth = (truth + exact_loss(b, a, temperature)) / 2
        # exp(logit) is off by as much as the rounded rows make the logit
        rtol = 4 * torch.finfo(dtype).eps / temperature
        torch.testing.assert_close(loss.double(), truth, rtol=rtol, atol=1e-30)
        size = 2.0 ** -round(math.log2(truth.max().item()))  # or float16 could not hold them
        (loss * size).sum().backward()
        (truth * size).sum().backward()
        for ours_, exact in ((q, a), (k, b)):
            error = (ours_.grad.double() - exact.grad).norm() / exact.grad.norm()
            assert error < rtol


def test_row_order_does_not_matter(backend):
    case = make_case(40, 90, 8, torch.float32, targets=True)
    rows, columns = torch.randperm(40), torch.randperm(90)
    loss = ours(case, (), torch.ones(40))[0]
    place = columns.argsort()
    shuffled = Case(
        case.queries[rows] * 3.0, case.keys[columns] * 0.5, targets=place[case.targets[rows]]
    )
    torch.testing.assert_close(ours(shuffled, (), torch.ones(40))[0], loss[rows])


@pytest.mark.parametrize("key_weight", [0.0, 0.01, 100.0])
def test_light_rows_beside_heavy_ones_with_large_sums(backend, key_weight):
    """Weights of both directions are folded into the exponentials, unless that flushes them."""
    from sslops._library import op

    keys = torch.linspace(0.9, 1.0, 40)[:, None].expand(40, 3).contiguous()
    queries = torch.full((40, 3), 1.0)
    grad = torch.where(torch.arange(40) < 20, 1e-9, 1.0)
    grads = []
    for dtype in (torch.float32, torch.float64):
        args = InfoNCEArgs(
            queries.to(dtype), keys.to(dtype), scale_factor=25.0, symmetric=True, normalize=False
        )
        *saved, _, _ = op("info_nce_fwd", queries)(*args)
        _, lse, *_ = saved
        given = (grad.to(dtype), torch.full((40,), key_weight, dtype=dtype))
        needs = [True, False, False, False]
        grads.append(op("info_nce_bwd", queries)(*given, *args, *saved, needs)[0])
    assert lse.max() < 78  # no maximum is kept
    error = (grads[0].double() - grads[1]) / (grad + key_weight)[:, None]
    assert error.abs().max() < 1e-3
