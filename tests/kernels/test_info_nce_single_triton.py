"""InfoNCE's single pass on Triton: loss and gradient of the queries, split over the negatives."""

import math

import pytest
import torch
import torch.nn.functional as F

from sslops._info_nce_args import InfoNCEArgs, InfoNCESaved
from tests.numerics import assert_as_accurate_as

from .info_nce_cases import make_inputs, make_masks, naive, skip_what_the_interpreter_cannot

pytest.importorskip("triton")
from sslops.kernels import info_nce as kernels
from sslops.reference import info_nce as reference

# The interpreter works on padding and on rows of nothing; numpy would warn of each.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")]

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# M, N, K or None, D, temperature, normalize, masks: one row against one; keys as negatives;
# a queue; every size odd; wider than rows that stay whole; logits up to 1250; small temperature
CASES = [
    (1, 1, 1, 1, 1.0, True, ""),
    (1, 2, None, 3, 1.0, True, ""),
    (66, 66, None, 20, 0.1, True, "ids"),
    (65, 67, None, 33, 0.1, True, "targets"),
    (40, 40, 300, 64, 0.1, True, ""),
    (5, 3, 257, 20, 0.2, True, "targets ids"),
    (5, 5, 257, 20, 0.2, True, "ids within"),
    (9, 9, 130, 264, 0.1, True, ""),
    (6, 9, 70, 17, 0.02, False, ""),
    (40, 40, 200, 64, 0.005, True, ""),
]


def arguments(M, N, K, D, normalize, kind, dtype, device):
    """(queries, keys, negatives, masks)"""
    rows = make_inputs(M, N, K, D, normalize, dtype, device)
    targets, *rest = make_masks(M, K or N, kind, device)
    return *rows, (None if targets is None else targets % N, *rest)


def run(q, k, n, masks, factor, normalize, scale=None):
    """(loss, lse, hit, dqueries, dscale of the rows) of the launcher."""
    *ids, same_id_only = masks
    return of_rows(
        kernels.info_nce_fwd,
        InfoNCEArgs(
            q, k, n, *ids, scale=scale, scale_factor=factor, same_id_only=same_id_only,
            normalize=normalize, stats=True, plan="frozen_keys",
        ),
    )  # fmt: skip


def of_rows(forward, args):
    *saved, hit, _ = forward(*args)
    found = InfoNCESaved(*saved)
    return found.loss, found.lse, hit, found.dqueries, found.dscale


def check(found, q, k, n, masks, temperature, normalize):
    """Every result against float64, allowed twice the error of plain PyTorch in the dtype."""
    *ids, same_id_only = masks
    dtype = q.dtype if n is None or n.dtype is torch.float32 else n.dtype
    wide = [None if t is None else t.double() for t in (q, k, n)]
    truth = of_rows(
        reference.info_nce_fwd,
        InfoNCEArgs(
            *wide, *ids, scale_factor=1 / temperature, same_id_only=same_id_only,
            normalize=normalize, stats=True, plan="frozen_keys",
        ),
    )  # fmt: skip
    user = [None if t is None else t.detach().to(dtype) for t in (q, k, n)]
    leaf = user[0].requires_grad_()
    scale = leaf.new_full((len(q),), 1 / temperature).requires_grad_()
    theirs = naive(*user, *ids, scale[:, None], same_id_only, False, normalize)[0]
    dq, dscale = torch.autograd.grad(theirs.sum(), (leaf, scale))

    norms = torch.cat([wide[0].norm(dim=1), wide[1].norm(dim=1)])
    largest = 1.0 if normalize else float(norms.max()) ** 2
    logit = largest / temperature + math.log(len(k) if n is None else len(n))
    by_norm = 1 / float(norms.min()) if normalize else float(norms.max())
    bounds = logit, logit, logit / temperature * max(by_norm, 1), logit * largest
    exact = truth[0], truth[1], truth[3], truth[4]
    other = theirs, truth[1].to(dtype), dq, dscale
    ours = found[0], found[1], found[3], found[4]
    names = "loss", "lse", "dqueries", "dscale"
    for name, mine, naives, true, bound in zip(names, ours, other, exact, bounds, strict=True):
        assert_as_accurate_as(mine, naives, true, name=name, scale=bound)
        assert mine.dtype is torch.float32
    wrong = int((found[2] != truth[2]).sum())  # a tie of rounded rows may fall either way
    assert wrong <= (0.0 if dtype is torch.float32 else 0.03 * len(q)), f"hit: {wrong} differ"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("M, N, K, D, temperature, normalize, kind", CASES)
def test_matches_float64(M, N, K, D, temperature, normalize, kind, dtype, device):
    skip_what_the_interpreter_cannot(device, dtype)
    args = arguments(M, N, K, D, normalize, kind, dtype, device)
    check(run(*args, 1 / temperature, normalize), *args, temperature, normalize)


@pytest.mark.parametrize("pair", [(torch.float32, torch.float16), (torch.float16, torch.float32),
                                  (torch.float32, torch.bfloat16)], ids=str)  # fmt: skip
@pytest.mark.parametrize("D", [24, 300])
def test_negatives_of_another_dtype(pair, D, device):
    skip_what_the_interpreter_cannot(device, *pair)
    q, k, n, masks = arguments(20, 20, 150, D, True, "", torch.float32, device)
    args = q.to(pair[0]), k.to(pair[0]), n.to(pair[1]), masks
    check(run(*args, 5.0, True), *args, 0.2, True)


@pytest.mark.parametrize("processors", [1, 3, 1000])
def test_any_number_of_splits(processors, monkeypatch, device):
    monkeypatch.setattr(kernels, "_processors", lambda device: processors)
    args = arguments(40, 40, 700, 20, True, "ids", torch.float32, device)
    check(run(*args, 10.0, True), *args, 0.1, True)


def test_splits_fill_the_processors():
    assert kernels.number_of_splits(2, 1024, 132) == 57  # MoCo: 256 queries, 65536 negatives
    assert kernels.number_of_splits(132, 1024, 132) == 1
    assert kernels.number_of_splits(1, 3, 132) == 3  # no more than there are blocks
    assert kernels.number_of_splits(1, 10**6, 10**4) == kernels.MAX_SPLITS
    for programs in range(2, 2000):
        splits = kernels.number_of_splits(programs, 1024, 132)
        waves = -(-programs * splits // 132)
        assert programs * splits >= 0.85 * 132 * waves
        assert splits == 1 or programs * splits <= 11 * 132


def test_queue_is_read_as_it_lies(device):
    """Rows of a wider buffer, a transposed one, and one whose row stride is odd."""
    q, k, n, masks = arguments(33, 33, 150, 40, True, "", torch.float32, device)
    expected = run(q, k, n, masks, 5.0, True)
    wide = torch.full((150, 131), float("nan"), device=device)
    wide[:, 3:43] = n
    for view in (wide[:, 3:43], n.T.contiguous().T):
        for found, exact in zip(run(q, k, view, masks, 5.0, True), expected, strict=True):
            assert torch.equal(found, exact)


def test_temperature_is_read_on_the_device(device):
    args = arguments(33, 33, 150, 40, True, "", torch.float16, device)
    by_number = run(*args, 5.0, True)
    by_tensor = run(*args, 1.0, True, scale=torch.tensor(5.0, device=device))
    for number, tensor in zip(by_number, by_tensor, strict=True):
        assert torch.equal(number, tensor)


@pytest.mark.parametrize("K", [None, 300])
def test_nothing_left_to_compare_with(K, device):
    """Ids that leave out every negative: loss and gradient are zero, and the positive hits."""
    q, k, n, _ = arguments(6, 6, K, 5, True, "", torch.float32, device)
    ids = [torch.zeros(size, dtype=torch.int64, device=device) for size in (6, K or 6)]
    loss, lse, hit, dq, dscale = run(q, k, n, (None, *ids, False), 5.0, True)
    assert hit.all()
    assert not any(each.any() for each in (loss, dq, dscale))
    torch.testing.assert_close(lse, 5 * F.cosine_similarity(q, k))


def test_a_solved_row_keeps_its_gradient(device):
    """1 - p of 1e-9 is far below the rounding of p."""
    q, scale = torch.eye(4, 8, device=device), 22.0
    loss, _, _, dq, _ = run(q, q, None, (None, None, None, False), scale, False)
    exact = math.log1p(3 * math.exp(-scale))
    torch.testing.assert_close(loss, torch.full_like(loss, exact), rtol=1e-5, atol=0)
    expected = torch.ones(4, 4, device=device) / 3 - torch.eye(4, device=device) * 4 / 3
    torch.testing.assert_close(dq[:, :4], scale * exact * expected, rtol=1e-4, atol=0)


def test_hit_is_strict(device):
    """A negative that is the same row as the positive ties with it."""
    q, k, _, masks = arguments(70, 70, None, 16, True, "", torch.float32, device)
    k[20] = k[7]
    q[7] = q[20] = k[7]
    hit = run(q, k, None, masks, 10.0, True)[2]
    assert not hit[[7, 20]].any()
    assert hit.sum() > 40


@pytest.mark.parametrize("D", [24, 100, 300])
def test_a_queue_that_holds_the_positive_ties(D, device):
    """The positive is in no tile: its products are added in another order."""
    queries, keys = torch.randn(2, 150, D, device=device)
    masks = (None, None, None, False)
    assert not run(queries, keys, keys.clone(), masks, 7.0, False)[2].any()
    far = (keys - 0.2 * queries)[:1]  # of a lower product than the positive
    assert run(queries, keys, far, masks, 7.0, False)[2][0]


@pytest.mark.parametrize("K", [None, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_one_bad_negative_or_scale_gives_nan(K, dtype, device):
    q, k, n, masks = arguments(70, 70, K, 5, True, "", dtype, device)
    for scale in (0.0, -1.0, float("nan")):
        loss, lse, hit, dq, dscale = run(q, k, n, masks, scale, True)
        assert all(each.isnan().all() for each in (loss, lse, dq, dscale))
        assert not hit.any()
    (k if n is None else n)[66, 2] = float("nan")
    loss, lse, hit, dq, dscale = run(q, k, n, masks, 5.0, True)
    assert all(each.isnan().all() for each in (loss, lse, dq, dscale))
    assert not hit.any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.gpu
def test_captures_into_a_cuda_graph():
    args = arguments(256, 256, 65536, 128, True, "ids", torch.bfloat16, "cuda")
    scale = torch.tensor(10.0, device="cuda")
    expected = run(*args, 1.0, True, scale=scale)  # compiles, which a capture cannot
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(*args, 1.0, True, scale=scale)
    graph.replay()
    for found, exact in zip(captured, expected, strict=True):
        assert torch.equal(found, exact)
