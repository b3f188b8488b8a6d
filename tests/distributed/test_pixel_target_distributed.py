"""Colours in two processes: the counts and the gradient of one process with all images."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from sslops.training.augment.colour_bins import ab_bins
from sslops.training.distributed.process import join, leave
from sslops.training.methods.pixel_target import PixelTarget

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed"),
]


def gradient(rows):
    """Of the weighted loss of the images `rows`, and the counts after it."""
    generator = torch.Generator().manual_seed(0)
    ab = torch.randn(6, 2, 3, 3, generator=generator) * 25
    hint = torch.randint(10, (6, 3, 3), generator=generator)
    prediction = torch.randn(6, 313, 3, 3, generator=generator).requires_grad_()
    kept = torch.tensor([True, False, True, True, True, True])
    target = PixelTarget(ab_bins(), kind="classes", hints=10, neighbours=5, rebalance=True)
    loss = target(prediction[rows], ab[rows], hint[rows], kept[rows])["loss"]
    (grad,) = torch.autograd.grad(loss, prediction)
    return {"grad": grad, "totals": target.totals, "counts": target.counts}


def work(rank, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank),
                      WORLD_SIZE="2", LOCAL_RANK=str(rank))  # fmt: skip
    torch.set_num_threads(1)
    join("cpu")
    try:
        found = gradient(slice(3 * rank, 3 * rank + 3))
        dist.all_reduce(found["grad"])
        found["grad"] /= 2  # as DistributedDataParallel
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        leave()


def test_two_processes_count_and_weigh_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, (port, str(tmp_path)), nprocs=2)
    whole = gradient(slice(None))
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(found["totals"], whole["totals"])
        assert torch.equal(found["counts"], whole["counts"])
        torch.testing.assert_close(found["grad"], whole["grad"])
