"""MoCo v3 in two processes: the loss, gradient and keys of one process with the whole batch."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from sslops.training.distributed.process import join, leave
from sslops.training.distributed.wrap import parallelise
from tests.processes import spawn
from tests.training.test_mocov3 import make, random_views

pytestmark = pytest.mark.slow


class Plain(nn.Module):
    """Without batch norm, whose statistics are per process."""

    def __init__(self, *widths):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(widths[0], widths[1]), nn.Tanh(), nn.Linear(*widths[1:])
        )

    def forward(self, x):
        return self.layers(x)


def without_bn():
    method = make(batch=12, size=8)
    method.encoder, method.projector, method.predictor = (
        Plain(64, 8, 8), Plain(8, 8, 6), Plain(6, 8, 6),
    )  # fmt: skip
    method.keys = type(method.keys)(nn.Sequential(method.encoder, method.projector))
    with torch.no_grad():
        for parameter in method.keys.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return method


def with_bn():
    method = make(batch=12)
    with torch.no_grad():
        for parameter in method.keys.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return method


BUILDS = {"without BN": without_bn, "with BN": with_bn}


def worker(process, folder):
    world = join("cpu")
    saved = {}
    for name, build in BUILDS.items():
        method = build()
        model = parallelise(method, world, "ddp")
        method.before_step(3, 10)
        out = model(random_views(12)[:, process * 6 : process * 6 + 6])
        out["loss"].backward()
        total = out["loss"].detach().clone()
        dist.all_reduce(total)
        grads = {key: p.grad for key, p in method.named_parameters() if p.requires_grad}
        saved[name] = {"loss": total / 2, "grads": grads, "keys": method.keys.state_dict()}
    torch.save(saved, f"{folder}/{process}.pt")
    leave()


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    spawn(worker, str(folder))
    return [torch.load(folder / f"{process}.pt") for process in range(2)]


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")
@pytest.mark.parametrize("name", BUILDS)
def test_two_processes_have_the_gradient_of_one(of_two_processes, name):
    method = BUILDS[name]()
    method.before_step(3, 10)
    loss = method(random_views(12))["loss"]
    loss.backward()
    for saved in (process[name] for process in of_two_processes):
        torch.testing.assert_close(saved["loss"], loss.detach())
        for key, parameter in method.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(
                    saved["grads"][key], parameter.grad, atol=1e-5, rtol=1e-4
                )
        for key, value in method.keys.state_dict().items():
            torch.testing.assert_close(saved["keys"][key], value, atol=1e-5, rtol=1e-5)
