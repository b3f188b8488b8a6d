"""Two processes compute the gradient that one computes with the whole batch."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from sslops import nt_xent
from sslops.distributed import all_gather, all_gather_with_grad, rank, world_size
from sslops.training.distributed.process import join, leave
from sslops.training.distributed.wrap import parallelise
from tests.processes import spawn

pytestmark = pytest.mark.slow

V, B, D_IN, D = 2, 6, 5, 4


def loss_and_model():
    torch.manual_seed(0)
    images, model = torch.randn(V, B, D_IN), nn.Linear(D_IN, D)
    return images, model, lambda z: nt_xent(z, temperature=0.5)


def worker(process, folder):
    world = join("cpu")
    images, model, loss = loss_and_model()
    share = images[:, process * B // 2 : (process + 1) * B // 2]
    parallel = parallelise(model, world, "ddp")  # its gradient hooks live as long as it does
    value = loss(all_gather_with_grad(parallel(share), dim=1))
    value.backward()
    assert (world.rank, world.size, world.main) == (process, 2, process == 0)
    torch.save({"loss": value.detach(), "grad": model.weight.grad}, f"{folder}/{process}.pt")
    leave()
    assert not dist.is_initialized()


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")
def test_gradient_of_two_processes_is_that_of_one(tmp_path):
    spawn(worker, str(tmp_path))
    images, model, loss = loss_and_model()
    value = loss(model(images))
    value.backward()
    for process in range(2):
        # DistributedDataParallel averaged the gradients: both hold the whole batch's
        saved = torch.load(tmp_path / f"{process}.pt")
        torch.testing.assert_close(saved["loss"], value.detach())
        torch.testing.assert_close(saved["grad"], model.weight.grad)


def test_one_process_gathers_nothing():
    z = torch.randn(2, 3)
    assert all_gather_with_grad(z) is z
    assert torch.equal(all_gather(z), z)
    assert (rank(), world_size()) == (0, 1)
