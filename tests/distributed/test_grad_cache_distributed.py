"""GradCache over two processes: the gradients of one process with the whole batch."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sslops import GradCache, clip_loss
from sslops.distributed import all_gather_with_grad
from sslops.training.distributed.process import join, leave
from tests.ops.test_grad_cache import relative
from tests.processes import spawn

pytestmark = pytest.mark.slow

B, D, MICRO = 12, 4, 2


class Pair(nn.Module):
    """CLIP in one module: two encoders, the temperature, and batch norm that DDP broadcasts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(6, D), nn.Linear(5, D)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.bn = nn.BatchNorm1d(5)

    def forward(self, image=None, text=None):
        if text is None:
            return self.image(image)
        self.bn(text)  # writes its statistics and changes nothing else
        return self.text(text)


def loss_of(scale):
    return lambda a, b: clip_loss(all_gather_with_grad(a), all_gather_with_grad(b), scale.exp())


def inputs():
    torch.manual_seed(1)
    return torch.randn(B, 6), torch.randn(B, 5)


def one_model(find_unused):
    """One parallel module that both encoders run."""
    pair = Pair()
    model = DistributedDataParallel(pair, find_unused_parameters=find_unused)
    encoders = [lambda image: model(image=image), lambda text: model(text=text)]
    return pair, GradCache(encoders, loss_of(pair.scale), MICRO, model=model)


def two_models():
    """Each encoder parallel by itself, the temperature on every process by itself."""
    pair = Pair()
    encoders = [DistributedDataParallel(pair.image), DistributedDataParallel(pair.text)]
    return pair, GradCache(encoders, loss_of(pair.scale), [3, MICRO])


BUILD = {
    "one model": lambda: one_model(False),
    "unused found": lambda: one_model(True),
    "two models": two_models,
}


def worker(process, folder):
    join("cpu")
    image, text = (x[process * B // 2 : (process + 1) * B // 2] for x in inputs())
    saved = {}
    for name, build in BUILD.items():
        pair, step = build()
        for _ in range(2):  # a second step: the reducer is ready again
            pair.zero_grad()
            step(image, text).backward()
        saved[name] = {n: p.grad for n, p in pair.named_parameters() if p.grad is not None}
        saved[name]["mean"] = pair.bn.running_mean
    pair = DistributedDataParallel(Pair())
    try:
        GradCache(pair.module.text, lambda z: z.sum(), 2)(text)  # parallel unknown: no error
        GradCache(lambda x: pair.module.text(x), lambda z: z.sum(), 2, model=pair)(text)
    except RuntimeError as error:
        saved["error"] = str(error)
    torch.save(saved, f"{folder}/{process}.pt")
    leave()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    if not dist.is_available():
        pytest.skip("torch was built without distributed")
    folder = tmp_path_factory.mktemp("processes")
    spawn(worker, str(folder))
    return [torch.load(folder / f"{process}.pt") for process in range(2)]


@pytest.mark.parametrize("name", BUILD)
def test_gradients_are_those_of_one_process(saved, name):
    pair = Pair()
    image, text = inputs()
    clip_loss(pair.image(image), pair.text(text), pair.scale.exp()).backward()
    expected = {n: p.grad for n, p in pair.named_parameters() if p.grad is not None}
    for process in saved:
        for key, grad in expected.items():
            assert relative([process[name][key]], [grad]) < 1e-6, key


def test_running_statistics_are_written_by_the_second_pass(saved):
    """Process 0's, as DistributedDataParallel hands them on: three micro-batches, two steps."""
    text = inputs()[1]
    mean = torch.zeros(5)
    for part in [*text[: B // 2].split(MICRO)] * 2:
        mean = 0.9 * mean + 0.1 * part.mean(0)
    torch.testing.assert_close(saved[0]["one model"]["mean"], mean)


def test_encoders_that_pass_ddp_by_are_refused(saved):
    for process in saved:
        assert "must call the DistributedDataParallel module itself" in process["error"]
