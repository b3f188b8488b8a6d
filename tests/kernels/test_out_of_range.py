"""Indices that point nowhere: nothing is read or written out of bounds, and the row says NaN.

On a GPU nobody can look at them without waiting for the device. Every implementation runs between
pages that nothing may touch (_guarded.py), at sizes that fill whole pages: 64 rows of 16
float32, which the kernels also pad to whole pages.
"""

import pytest
import torch
import torch.nn.functional as F

from sslops._info_nce_args import InfoNCEArgs, InfoNCESaved
from sslops.ops._group_info_nce import _positive

from ._cuda import running_cuda
from ._guarded import guarded_memory

ROWS, D = 64, 16
OUTSIDE = [-1, -(2**31) - 2, -(2**63), ROWS, 2**31 + 5, 2**32 + 3, 2**62, 2**63 - 1]
BAD = [5 + 7 * n for n in range(len(OUTSIDE))]  # the rows with such targets
OTHERS = [n for n in range(ROWS) if n not in BAD]
EXTREME = [-(2**63), -(2**32), -1, 0, 3, 2**32 + 3, 2**62, 2**63 - 1]
PLACES = ["reference", "triton", "emulated", pytest.param("gpu", marks=pytest.mark.gpu)]


pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning"),
]  # of no rows


@pytest.fixture(scope="module", params=PLACES)
def ops(request):
    """Name of an op -> what computes it; None where that has no kernel of its own."""
    if request.param in ("emulated", "gpu"):
        with running_cuda(request.param):
            yield lambda name: getattr(torch.ops.sslops, f"{name}_cuda", None)
        return
    if request.param == "triton":
        pytest.importorskip("triton")
        from sslops.kernels import info_nce, queue, sup_con

        # on a GPU between nothing but other tensors: what comes out is compared all the same
        place = torch.device("cuda") if torch.cuda.is_available() else guarded_memory()
        with place:
            modules = (info_nce, queue, sup_con)
            yield lambda name: next(
                (getattr(each, name) for each in modules if hasattr(each, name)), None
            )
        return
    with guarded_memory():
        yield lambda name: getattr(torch.ops.sslops, f"{name}_reference")


def sides():
    queries, keys, queue = (torch.randn(ROWS, D) for _ in range(3))
    return queries, keys, F.normalize(queue, dim=1), torch.randperm(ROWS)


def results(ops, queries, keys, negatives, targets):
    """Everything that does not add rows up, by name: first index is the row's."""
    args = InfoNCEArgs(queries, keys, negatives, targets, scale_factor=10.0, stats=True)
    *saved, hit, _ = ops("info_nce_fwd")(*args)
    ones = torch.ones(ROWS)
    dq, dk, dn, dscale = ops("info_nce_bwd")(ones, None, *args, *saved, [True] * 4)
    args = args._replace(plan="frozen_keys")
    *single, single_hit, _ = ops("info_nce_fwd")(*args)
    again = torch.ops.sslops.info_nce_bwd_reference(ones, None, *args, *single, [True] * 4)
    rows = {"loss": saved[0], "lse": saved[1], "dq": dq, "single_dq": again[0]}
    single = InfoNCESaved(*single)
    rows |= {"single": single.loss, "single_lse": single.lse}
    rows |= {"dqueries": single.dqueries, "dscale_rows": single.dscale}
    return rows, (hit, single_hit), {"dk": dk, "dn": dn, "dscale": dscale}, again[1]


@pytest.mark.parametrize("queue", [False, True])
def test_rows_without_a_positive_are_nan_and_no_others(ops, queue):
    queries, keys, negatives, targets = sides()
    negatives = negatives if queue else None
    expected, hits, before, dk_single = results(ops, queries, keys, negatives, targets)
    wrong = targets.index_copy(0, torch.tensor(BAD), torch.tensor(OUTSIDE))
    found, found_hits, sums, found_dk_single = results(ops, queries, keys, negatives, wrong)
    for name, each in found.items():
        assert each[BAD].isnan().all(), name
        assert torch.equal(each[OTHERS], expected[name][OTHERS]), name
    for hit, was in zip(found_hits, hits, strict=True):
        assert not hit[BAD].any()
        assert torch.equal(hit[OTHERS], was[OTHERS])
    # a sum in which such a row takes part is NaN, one in which it does not is that of the others
    assert sums["dscale"].isnan()
    drawn = [(found_dk_single, dk_single)]
    if queue:
        assert sums["dn"].isnan().all()
        drawn.append((sums["dk"], before["dk"]))
    else:
        assert sums["dk"].isnan().all()
    for dk, was in drawn:
        assert torch.equal(dk[targets[OTHERS]], was[targets[OTHERS]])
        assert not dk[targets[BAD]].any()


def test_positives_among_many_processes():
    x, k, _, targets = sides()
    found = _positive(x, k, targets.index_copy(0, torch.tensor(BAD), torch.tensor(OUTSIDE)))
    assert found[BAD].isnan().all()
    assert torch.equal(found[OTHERS], _positive(x, k, targets)[OTHERS])


def test_targets_of_any_stride(ops):
    queries, keys, _, targets = sides()
    expected = results(ops, queries, keys, None, targets)[0]
    spread = torch.full((3 * ROWS,), 2**62)
    spread[::3] = targets
    for name, each in results(ops, queries, keys, None, spread[::3])[0].items():
        assert torch.equal(each, expected[name]), name


def test_ids_are_compared_and_never_followed(ops):
    queries, keys, _, targets = sides()
    ids = [torch.tensor(EXTREME)[torch.randint(len(EXTREME), (ROWS,))] for _ in range(2)]
    # the same ids in another alphabet
    small = [torch.where(each < 0, -1, each.abs() % 1000) for each in ids]
    assert len({each % 1000 for each in EXTREME if each >= 0}) == sum(e >= 0 for e in EXTREME)
    found, expected = (
        ops("info_nce_fwd")(
            *InfoNCEArgs(queries, keys, None, targets, *each, scale_factor=10.0, stats=True)
        )
        for each in (ids, small)
    )
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("inside", [False, True])
def test_labels_are_compared_and_never_followed(ops, inside):
    if ops("sup_con_fwd") is None:
        pytest.skip("it has no kernel of its own")
    z = torch.randn(ROWS, D)
    labels = torch.tensor(EXTREME)[torch.randint(len(EXTREME), (ROWS,))]
    small = torch.where(labels < 0, -1, labels.abs() % 1000)
    all_results = []
    for each in (labels, small):
        out = ops("sup_con_fwd")(z, each, None, 10.0, inside, True)
        grads = ops("sup_con_bwd")(torch.ones(ROWS), z, each, *out[1:], None, 10.0, inside, True)
        all_results.append([*out, *grads])
    for a, b in zip(*all_results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("total", [-1, -7, -(2**40) - 3, 2**40 + 3, 2**62])
@pytest.mark.parametrize(("K", "B"), [(ROWS, 3), (5, 7), (64, 64)])
def test_a_ring_begins_anywhere(ops, total, K, B):
    """Of a pointer below zero Python's remainder is the slot."""
    queue, ids = torch.zeros(K, D), torch.full((K,), -1)
    pointer, keys = torch.tensor(total), torch.randn(B, D)
    ops("enqueue_")(queue, pointer, keys, ids, torch.arange(B), False)
    expected, expected_ids = torch.zeros(K, D), torch.full((K,), -1)
    for b in range(B):
        expected[(total + b) % K], expected_ids[(total + b) % K] = keys[b], b
    assert torch.equal(queue, expected)
    assert torch.equal(ids, expected_ids)
    assert int(pointer) == total + B
