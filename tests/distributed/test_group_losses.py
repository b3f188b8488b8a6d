"""Every loss among 1, 2 and 4 processes is that of one process with all rows."""

from itertools import product

import pytest
import torch
import torch.distributed as dist

import sslops
from tests.distributed.group_cases import CASES, inputs_of, part, run, spawned

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available(), reason="torch without distributed"),
]

WAYS = {"gather": sslops.Gather, "ring": sslops.Ring}
# samples of each rank, and in which dtypes they are compared
LAYOUTS = {
    "alone": ([6], ("float64",)),
    "even": ([4, 4], ("float64", "float32")),
    "uneven": ([3, 5], ("float64",)),
    "even of four": ([2, 2, 2, 2], ("float64",)),
    "uneven of four": ([3, 1, 2, 2], ("float64", "float32")),
    "one without": ([3, 0, 1, 4], ("float64",)),
}
RUNS = [(name, layout, dtype, way) for name, layout, way in product(CASES, LAYOUTS, WAYS)
        for dtype in LAYOUTS[layout][1]]  # fmt: skip
# Of the largest element, from one process in float64 or in the same dtype: in float32 that one
# errs up to 1.1e-6 itself, by the rounding of its logits.
ALLOWED = {"float64": 1e-12, "float32": 1e-6}


def share_of(case, sizes, rank=None):
    """Weights of the rows of reduction="none", view after view; of one rank or of all."""
    if not case.rows:
        return torch.ones((), dtype=torch.float64)
    torch.manual_seed(7)
    whole = torch.randn(case.rows, sum(sizes), dtype=torch.float64)
    first = sum(sizes[:rank]) if rank is not None else 0
    size = sizes[rank] if rank is not None else sum(sizes)
    return whole[:, first : first + size].flatten()


def work(rank, groups):
    found = {}
    for key in RUNS:
        name, layout, dtype, way = key
        case, (sizes, _) = CASES[name], LAYOUTS[layout]
        if rank < len(sizes):
            inputs, scale, bias = inputs_of(case, sizes, getattr(torch, dtype))
            own = part(case, inputs, sizes, rank)
            share = share_of(case, sizes, rank).to(scale.dtype)
            found[key] = run(case, own, scale, bias, WAYS[way](groups[len(sizes)]), share)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return spawned(work, tmp_path_factory.mktemp("ranks"))


def assert_close(actual, expected, same, dtype, name):
    assert actual.shape == expected.shape, name
    if expected.numel():
        scale = max(1e-3, expected.abs().max().item())
        error = min((actual.double() - each).abs().max().item() for each in (expected, same))
        assert error <= ALLOWED[dtype] * scale, f"{name}: error {error:.3g} of {scale:.3g}"


@pytest.mark.parametrize(("name", "layout", "dtype", "way"), RUNS)
def test_ranks_together_are_one_process(name, layout, dtype, way, found):
    case, (sizes, _) = CASES[name], LAYOUTS[layout]
    inputs, scale, bias = inputs_of(case, sizes, getattr(torch, dtype))
    wide = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    share = share_of(case, sizes)
    whole = run(case, wide, scale.double(), bias.double(), None, share)
    alike = run(case, inputs, scale, bias, None, share.to(scale.dtype))
    ranks = [found[r][name, layout, dtype, way] for r in range(len(sizes))]
    # a user's own sum over rows is summed over the ranks, the package's is averaged by DDP
    over = 1 if case.rows else len(sizes)
    for rank, each in enumerate(ranks):
        losses = [whole["loss"], alike["loss"]]
        if case.rows:
            first, last = sum(sizes[:rank]), sum(sizes[: rank + 1])
            losses = [loss.view(case.rows, -1)[:, first:last].flatten() for loss in losses]
        assert_close(each["loss"], *losses, dtype, "loss")
        own, same = (
            part(case, {k: one[k] for k in case.trained}, sizes, rank) for one in (whole, alike)
        )
        for key in case.trained:
            assert_close(each[key] / over, own[key], same[key], dtype, f"gradient of {key}")
    for key in ("scale", "bias"):
        if key in whole:
            total = sum(each[key].double() for each in ranks) / over
            assert_close(total, whole[key], alike[key], dtype, f"gradient of {key}")


def test_the_gradients_say_something():
    for name, case in CASES.items():
        inputs, scale, bias = inputs_of(case, [8], torch.float64)
        whole = run(case, inputs, scale, bias, None, share_of(case, [8]))
        for key in case.trained:
            assert name == "sup_con nothing alike" or whole[key].abs().max() > 1e-3, (name, key)
