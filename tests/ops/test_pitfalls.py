"""One test for each known way in which fused contrastive losses went wrong, here or elsewhere.

Number 17, offsets beyond 32 bits, has tests/ops/test_offsets.py.
"""

import math
import os
import shutil

import pytest
import torch
import torch.nn.functional as F

import sslops
from bench import bench_losses
from bench.cases import TEMPERATURE, make_case
from bench.check import truth as true_step
from bench.providers import PROVIDERS, Job, Provider
from tests.layouts import LAYOUTS
from tests.naive import info_nce_logits, naive_info_nce
from tests.numerics import naive_nt_xent

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LABELS = torch.arange(12) // 2


def losses(x, y, temperature):
    """Every loss of rows x and y [12, D] at one temperature, by name."""
    return {
        "nt_xent": sslops.nt_xent(torch.stack([x, y]), temperature=temperature),
        "nt_xent ids": sslops.nt_xent(
            torch.stack([x, y]), temperature=temperature, ids=torch.arange(12) // 2
        ),
        "info_nce": sslops.info_nce(x, y, temperature=temperature),
        "single": sslops.info_nce(x, y.detach(), temperature=temperature),
        "queue": sslops.info_nce(
            x, y, queue=F.normalize(y.detach().float(), dim=1).to(y.dtype), temperature=temperature
        ),
        "clip": sslops.clip_loss(x, y, 1 / temperature, label_smoothing=0.1),
        "sup_con": sslops.sup_con(x, LABELS, temperature=temperature),
        "inside": sslops.sup_con(y, LABELS, temperature=temperature, mean="inside"),
        "cpc": sslops.cpc_loss(x.view(1, 3, 4, -1), y.view(3, 4, -1), temperature=temperature),
        "sigmoid": sslops.sigmoid_loss(x, y, 1 / temperature, -1.0),
    }


def leaves(D: int = 6, dtype: torch.dtype = torch.float32):
    return [torch.randn(12, D, dtype=dtype, requires_grad=True) for _ in range(2)]


@pytest.mark.parametrize("temperature", [0.005, 0.05, 1.0])
@pytest.mark.parametrize("rows", ["opposite", "equal", "one-hot"])
def test_01_underflow_of_the_fixed_maximum(backend, rows, temperature):
    x = {
        "opposite": torch.ones(12, 6) * torch.tensor([1.0, -1.0]).repeat(6)[:, None],
        "equal": torch.ones(12, 6),
        "one-hot": F.one_hot(torch.arange(12), 16).float(),
    }[rows]
    for sign in (1.0, -1.0):  # -1: the positives are as far away as anything can be
        a, b = x.clone().requires_grad_(), (sign * x).requires_grad_()
        for name, loss in losses(a, b, temperature).items():
            assert loss.isfinite(), name
            assert loss >= 0, name
            wanted = b if name == "inside" else a
            assert torch.autograd.grad(loss, wanted)[0].isfinite().all(), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_02_rows_that_are_not_quite_unit(backend, dtype):
    """Rounded unit rows have cosines above 1, which at tau = 0.01 nobody may clamp."""
    x = F.normalize(1 + 0.2 * torch.randn(40, 33), dim=1).to(dtype)  # all of them are alike
    y = F.normalize(x.float() + 0.001 * torch.randn(40, 33), dim=1).to(dtype)
    above = (x.double() * y.double()).sum(dim=1).max() - 1
    assert above > torch.finfo(dtype).eps / 100 or dtype is torch.float32
    options = {"temperature": 0.01, "normalize": False}
    _, stats = sslops.info_nce(x, y, return_stats=True, **options)
    logits = info_nce_logits(x.double(), y.double(), 100.0, normalize=False)
    # a logit of 100, rounded to float32
    bound = {"rtol": 1e-6, "atol": 100 * 2.0**-22}
    torch.testing.assert_close(stats.lse.double(), logits.logsumexp(dim=1), **bound)
    # what a row has with itself is left out of the sum: subtracted, it would leave nothing
    z = torch.cat([x, y]).requires_grad_()
    rows = sslops.nt_xent(z, reduction="none", **options)
    exact = z.detach().double().requires_grad_()
    naive = naive_nt_xent(exact, 0.01, normalize=False)
    torch.testing.assert_close(rows.double(), naive, **bound)
    (grad,), (true,) = (torch.autograd.grad(r.sum(), t) for r, t in ((rows, z), (naive, exact)))
    assert (grad.double() - true).norm() <= (torch.finfo(dtype).eps + 1e-4) * true.norm()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_03_the_positive_is_rounded_as_the_sum(backend, dtype):
    """Else the loss of a peaked row is negative."""
    for D in (5, 64, 200):
        z = torch.randn(50, D).to(dtype)
        for temperature in (0.1, 0.01):
            for rows in (
                sslops.info_nce(z, z, temperature=temperature, reduction="none"),
                sslops.clip_loss(z, z, 1 / temperature, reduction="none"),
                sslops.nt_xent(torch.stack([z, z]), temperature=temperature, reduction="none"),
            ):
                assert (rows >= 0).all()


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_04_both_passes_multiply_in_one_precision(backend, precision):
    """Probabilities of the backward pass sum to one: between equal rows nothing pulls."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        x = torch.randn(1, 40).repeat(100, 1)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        loss = sslops.info_nce(a, b, temperature=0.05)
        for grad in torch.autograd.grad(loss, (a, b)):
            assert grad.abs().max() < 1e-5
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_05_small_probabilities_are_not_flushed(backend, dtype):
    """Each of 70,000 negatives has a probability that float16 holds with 7 bits at best."""
    queries = torch.randn(2, 4).to(dtype).requires_grad_()
    keys = torch.randn(2, 4).to(dtype)
    queue = F.normalize(torch.randn(70_000, 4) + 1.0, dim=1).to(dtype)
    exact = queries.detach().double().requires_grad_()
    sslops.info_nce(queries, keys, queue=queue, temperature=1.0).backward()
    naive_info_nce(exact, keys.double(), 1.0, queue=queue.double()).mean().backward()
    error = (queries.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert error < 2 * torch.finfo(dtype).eps + 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_06_sums_over_tiles_are_not_rounded(backend, dtype):
    """One key gathers 1,500 small contributions of one sign."""
    queries = (torch.randn(1500, 8) * 0.1 + 1.0).to(dtype)
    keys = torch.randn(3, 8).to(dtype).requires_grad_()
    targets = torch.zeros(1500, dtype=torch.int64)
    exact = keys.detach().double().requires_grad_()
    sslops.info_nce(queries, keys, targets=targets, temperature=0.5, reduction="sum").backward()
    loss = naive_info_nce(queries.double(), exact, 0.5, targets=targets)
    loss.sum().backward()
    error = (keys.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert error < 4 * torch.finfo(dtype).eps


def test_07_no_order_of_threads_in_a_sum(backend):
    """Also: test_same_bits_on_every_run of every loss, at sizes of many tiles."""
    x, y = leaves()
    for name, loss in losses(x, y, 0.1).items():
        again = losses(x, y, 0.1)[name]
        wanted = y if name == "inside" else x
        assert torch.equal(loss, again), name
        first, second = (torch.autograd.grad(each, wanted)[0] for each in (loss, again))
        assert torch.equal(first, second), name


def test_08_no_gradient_is_filtered(backend):
    """A flat softmax: every probability is below 10^-3, and all of them together push."""
    x, y = (torch.randn(1200, 16) for _ in range(2))
    a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
    exact = [each.double().requires_grad_() for each in (x, y)]
    sslops.info_nce(a, b, temperature=2.0, reduction="sum").backward()
    naive_info_nce(*exact, 2.0).sum().backward()
    for ours, truth in zip((a, b), exact, strict=True):
        torch.testing.assert_close(ours.grad.double(), truth.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_09_a_learnt_temperature_is_never_read(dtype):
    """Three parametrisations agree, in the parameter's dtype; on meta tensors a read would fail."""
    x, y = leaves()
    rates = {}
    for name, start, tau in (
        ("tau", 0.25, lambda p: p),
        ("scale", 4.0, lambda p: 1 / p),
        ("log scale", math.log(4.0), lambda p: (-p).exp()),
    ):
        parameter = torch.tensor(start, dtype=dtype, requires_grad=True)
        sslops.info_nce(x, y, temperature=tau(parameter)).backward()
        assert parameter.grad.dtype is dtype
        rates[name] = parameter.grad.item()
    rtol = 8 * torch.finfo(dtype).eps
    assert rates["scale"] * -16 == pytest.approx(rates["tau"], rel=max(rtol, 1e-5))
    assert rates["log scale"] * -4 == pytest.approx(rates["tau"], rel=max(rtol, 1e-5))
    tau = torch.ones((), device="meta", requires_grad=True)
    x, y = (torch.ones(12, 6, device="meta", requires_grad=True) for _ in range(2))
    for loss in (
        sslops.nt_xent(torch.stack([x, y]), temperature=tau),
        sslops.info_nce(x, y, temperature=tau),
        sslops.info_nce(x, y.detach(), temperature=tau),
        sslops.clip_loss(x, y, tau),
        sslops.sup_con(x, LABELS.to("meta"), temperature=tau),
        sslops.cpc_loss(x.view(1, 3, 4, 6), y.view(3, 4, 6), temperature=tau),
        sslops.sigmoid_loss(x, y, tau),
    ):
        assert torch.autograd.grad(loss, tau)[0].shape == ()


def test_10_the_upstream_gradient_enters_before_the_sums(backend):
    """Of any size, other for every row; a loss scaler's 65536 among them."""
    x, y = leaves()
    rows = sslops.info_nce(x, y, reduction="none")
    upstream = torch.tensor([65536.0, -3.0, 0.0, 1e-6]).repeat(3)
    ours = torch.autograd.grad(rows, (x, y), upstream)
    naive = torch.autograd.grad(naive_info_nce(x, y, 0.07), (x, y), upstream)
    for actual, expected in zip(ours, naive, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=0.5)


def test_11_autocast_changes_only_what_is_asked(backend):
    x, y = leaves()
    plain = losses(x, y, 0.1)
    half = losses(x.bfloat16(), y.bfloat16(), 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        cast = losses(x, y, 0.1)
        with torch.autocast("cpu", enabled=False):
            off = losses(x, y, 0.1)
    for name in plain:
        assert cast[name].dtype is torch.float32, name
        assert torch.equal(off[name], plain[name]), name
        if name != "queue":  # which is read as it lies
            assert torch.equal(cast[name], half[name]), name


def test_12_backward_twice_yes_twice_differentiated_no(backend):
    x, y = leaves()
    for name, loss in losses(x, y, 0.1).items():
        wanted = y if name == "inside" else x
        first = torch.autograd.grad(loss, wanted, retain_graph=True)[0]
        assert torch.equal(torch.autograd.grad(loss, wanted, retain_graph=True)[0], first), name
        (grad,) = torch.autograd.grad(loss, wanted, create_graph=True)
        with pytest.raises(RuntimeError, match="double backward is not implemented"):
            grad.sum().backward()


def test_13_the_mean_over_ranks_is_the_global_gradient(backend):
    """Each rank's rows against all keys: what distributed training averages is the whole."""
    x, y = leaves()
    whole = torch.autograd.grad(sslops.info_nce(x, y), (x, y))
    parts = []
    for rank in range(3):
        rows = torch.arange(4) + 4 * rank
        loss = sslops.info_nce(x[rows], y, targets=rows)
        parts.append(torch.autograd.grad(loss, (x, y)))
    for n in (0, 1):
        mean = sum(part[n] for part in parts) / 3
        torch.testing.assert_close(mean, whole[n], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_14_one_graph_for_all_losses():
    """Each op alone, with dynamic shapes and permuted inputs: the tests of that op."""
    torch._dynamo.reset()

    def total(x, y):
        return sum(losses(x, y, 0.1).values())

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    x, y = leaves()
    found = []
    for run in (compiled, total):
        loss = run(x, y)
        found.append((loss.detach(), *torch.autograd.grad(loss, (x, y))))
    torch.testing.assert_close(*found)


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "g++")), reason="inductor needs a C++ compiler"
)
def test_14_fullgraph_of_permuted_inputs_by_inductor(backend):
    """Inductor reads what an op returns by the strides that the fake kernels promise."""
    torch._dynamo.reset()

    def total(x, y):
        return sslops.nt_xent(3 * x, temperature=0.1) + sslops.clip_loss(x, y.sin(), 10.0)

    compiled = torch.compile(total, fullgraph=True, options={"fx_graph_cache": False})
    x, y = (LAYOUTS["transposed"](each.detach()).requires_grad_() for each in leaves())
    found = []
    for run in (compiled, total):
        loss = run(x, y)
        found.append((loss.detach(), *torch.autograd.grad(loss, (x, y))))
    torch.testing.assert_close(*found)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_15_capture_in_a_cuda_graph():
    """After one warm-up nothing tunes itself, synchronises, or adds to what it left behind."""
    x, y = (torch.randn(300, 64, device="cuda", requires_grad=True) for _ in range(2))
    tau = torch.tensor(0.1, device="cuda", requires_grad=True)

    def step():
        loss = sslops.info_nce(x, y, temperature=tau) + sslops.clip_loss(x, y, 1 / tau)
        loss = loss + sslops.nt_xent(torch.stack([x, y]), temperature=tau)
        return loss, *torch.autograd.grad(loss, (x, y, tau))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        expected = [each.detach().clone() for each in step()]
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(2):
        graph.replay()
        for actual, once in zip(captured, expected, strict=True):
            torch.testing.assert_close(actual, once)


@pytest.mark.parametrize("D", [1, 31, 33, 129])
def test_16_padded_features_add_nothing(backend, D):
    x, y = leaves(D)
    wide = [F.pad(each, (0, 64)) for each in (x, y)]
    for (name, narrow), padded in zip(
        losses(x, y, 0.1).items(), losses(*wide, 0.1).values(), strict=True
    ):
        torch.testing.assert_close(narrow, padded, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize(("M", "N"), [(1, 1), (1, 7), (31, 33), (257, 289)])
def test_18_ragged_sizes(backend, M, N):
    """No element is left unwritten (memory starts as NaN) and none is read past the end."""
    for D in (1, 3, 123):
        x = torch.randn(M, D, requires_grad=True)
        y = torch.randn(N + 2, D)
        y[N:] = math.nan  # beyond the end of what is passed
        keys = y[:N].detach().requires_grad_()
        rows = sslops.info_nce(x, keys, temperature=0.5, reduction="none")
        torch.testing.assert_close(rows, naive_info_nce(x, keys, 0.5), rtol=1e-4, atol=1e-4)
        for grad in torch.autograd.grad(rows.sum(), (x, keys)):
            assert grad.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_19_a_queue_is_read_before_it_is_written(backend, dtype):
    """Stored in another dtype, longer or shorter than the batch, changed before backward."""
    for length in (5, 100):
        x, y = leaves()
        queue = F.normalize(torch.randn(length, 6), dim=1).to(dtype)
        # against bfloat16 products are those of bfloat16, times 1 / tau
        tolerance = 10 * torch.finfo(dtype).eps if dtype is torch.bfloat16 else 1e-5
        loss = sslops.info_nce(x, y, queue=queue, temperature=0.1)
        expected = naive_info_nce(x, y, 0.1, queue=queue.clone()).mean()
        torch.testing.assert_close(loss, expected, rtol=0, atol=tolerance)
        want = torch.autograd.grad(expected, (x, y))
        queue.fill_(math.nan)
        for actual, truth in zip(torch.autograd.grad(loss, (x, y)), want, strict=True):
            torch.testing.assert_close(actual, truth, rtol=0, atol=tolerance)


def test_20_an_average_below_the_resolution(backend):
    """A step of an eighth of bfloat16's: lost to the nearest, right in the mean at random."""
    n, momentum = 20_000, 1 - 2**-10
    goal, counter = torch.full((n,), 2.0, dtype=torch.bfloat16), torch.tensor([7])
    exact = torch.ones(n)
    nearest, *ranks = (torch.ones_like(goal) for _ in range(3))
    sslops.ema_update_([exact, nearest], [goal, goal], momentum)
    assert (exact == 1 + 2**-10).all()
    assert (nearest == 1).all()
    for rank in ranks:
        torch.manual_seed(3)
        copied = torch.zeros_like(counter)
        sslops.ema_update_([rank, copied], [goal, counter], momentum, stochastic_rounding=True)
        assert torch.equal(copied, counter)
    assert torch.equal(*ranks)
    # five standard deviations of n draws
    assert float(ranks[0].double().mean()) - 1 == pytest.approx(2**-10, rel=0.1)


def test_21_a_wrong_answer_has_no_time(monkeypatch):
    """Here: the loss to the bit, and of its gradient only what the rows that ask get."""

    def one_sided(z):
        x = F.normalize(z, dim=1)
        logits = (x @ x.detach().T / TEMPERATURE).fill_diagonal_(-math.inf)
        return F.cross_entropy(logits, torch.arange(32).roll(16))

    case = make_case("nt_xent", "32x16", "float32", "cpu")
    wrong = Provider({"nt_xent": lambda case: Job(lambda: one_sided(**case.inputs))})
    monkeypatch.setitem(PROVIDERS, "sslops", wrong)
    step, _, why = bench_losses.admit(case, "sslops", true_step(case))
    assert step is None
    assert "z is off by" in why
    with pytest.raises(AssertionError, match="wrong"):  # before a clock is asked for
        bench_losses.report(None, "sweep", "nt_xent", "32x16", "float32", ("eager",))
