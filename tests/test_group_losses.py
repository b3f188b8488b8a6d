"""Every loss among 1, 2 and 4 processes is that of one process with all rows."""

import os
import socket
from datetime import timedelta
from itertools import product

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import sslops
from tests.group_cases import CASES, inputs_of, part, run

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")

WAYS = {"gather": sslops.Gather, "ring": sslops.Ring}
# samples of each rank: even, uneven, and one rank with nothing
SIZES = {"alone": [6], "even": [4, 4], "uneven": [3, 5], "even of four": [2, 2, 2, 2],
         "uneven of four": [3, 1, 2, 2], "one without": [3, 0, 1, 4]}  # fmt: skip
DTYPES = {"float64": torch.float64, "float32": torch.float32}
# error relative to the largest element
ALLOWED = {"float64": 1e-12, "float32": 2e-6}


def share_of(case, sizes, rank=None):
    """Weights of the rows of reduction="none", view after view; of one rank or of all."""
    if not case.rows:
        return torch.ones(())
    torch.manual_seed(7)
    whole = torch.randn(case.rows, sum(sizes))
    first = sum(sizes[:rank]) if rank is not None else 0
    size = sizes[rank] if rank is not None else sum(sizes)
    return whole[:, first : first + size].flatten()


def worker(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=4, timeout=timedelta(seconds=60))
    groups = {1: dist.new_group([0]), 2: dist.new_group([0, 1]), 4: dist.group.WORLD}
    found = {}
    for name, layout, dtype, way in product(CASES, SIZES, DTYPES, WAYS):
        case, sizes = CASES[name], SIZES[layout]
        if rank >= len(sizes):
            continue
        inputs, scale, bias = inputs_of(case, sizes, DTYPES[dtype])
        own = part(case, inputs, sizes, rank)
        share = share_of(case, sizes, rank).to(DTYPES[dtype])
        group = WAYS[way](groups[len(sizes)])
        found[name, layout, dtype, way] = run(case, own, scale, bias, group, share)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (port, str(folder)), nprocs=4)
    return [torch.load(folder / f"{rank}.pt") for rank in range(4)]


def assert_close(actual, expected, dtype, name):
    assert actual.shape == expected.shape, name
    scale = max(1e-3, expected.abs().max().item()) if expected.numel() else 1.0
    error = (actual.double() - expected).abs().max().item() if expected.numel() else 0.0
    assert error <= ALLOWED[dtype] * scale, f"{name}: error {error:.3g} of {scale:.3g}"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_ranks_together_are_one_process(name, layout, way, found):
    case, sizes = CASES[name], SIZES[layout]
    for dtype in DTYPES:
        inputs, scale, bias = inputs_of(case, sizes, DTYPES[dtype])
        wide = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
        share = share_of(case, sizes).double()
        whole = run(case, wide, scale.double(), bias.double(), None, share)
        ranks = [found[r][name, layout, dtype, way] for r in range(len(sizes))]
        # a user's own sum over rows is summed over the ranks, the package's is averaged by DDP
        over = 1 if case.rows else len(sizes)
        for rank, each in enumerate(ranks):
            expected = whole["loss"]
            if case.rows:
                rows = expected.view(case.rows, -1)
                expected = rows[:, sum(sizes[:rank]) : sum(sizes[: rank + 1])].flatten()
            assert_close(each["loss"], expected, dtype, "loss")
            own = part(case, {k: whole[k] for k in case.trained}, sizes, rank)
            for key in case.trained:
                assert_close(each[key] / over, own[key], dtype, f"gradient of {key}")
        for key in {"scale", "bias"} & whole.keys():
            total = sum(each[key].double() for each in ranks) / over
            assert_close(total, whole[key], dtype, f"gradient of {key}")


def test_the_gradients_say_something():
    for name, case in CASES.items():
        inputs, scale, bias = inputs_of(case, [8], torch.float64)
        whole = run(case, inputs, scale, bias, None, share_of(case, [8]).double())
        for key in case.trained:
            assert name == "sup_con nothing alike" or whole[key].abs().max() > 1e-3, (name, key)
