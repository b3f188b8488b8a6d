"""Colours in two processes: the counts and the gradient of one process with all images."""

import pytest
import torch
import torch.distributed as dist

from sslops.training.augment.colour_bins import ab_bins
from sslops.training.distributed.process import join, leave
from sslops.training.methods.pixel_target import PixelTarget
from tests.processes import spawn

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


def work(rank, folder):
    join("cpu")
    try:
        found = gradient(slice(3 * rank, 3 * rank + 3))
        dist.all_reduce(found["grad"])
        found["grad"] /= 2  # as DistributedDataParallel
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        leave()


def test_two_processes_count_and_weigh_as_one(tmp_path):
    spawn(work, str(tmp_path))
    whole = gradient(slice(None))
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(found["totals"], whole["totals"])
        assert torch.equal(found["counts"], whole["counts"])
        torch.testing.assert_close(found["grad"], whole["grad"])
