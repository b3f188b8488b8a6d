"""Compat losses over two processes: the gradient is that of one process with the whole batch."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from sslops.compat import lightly, open_clip, solo_learn
from sslops.compat import sentence_transformers as st
from sslops.compat._ranking import DIRECTIONS
from sslops.training.distributed.process import join, leave
from tests.processes import spawn

pytestmark = pytest.mark.slow

B, D_IN, D, PROCESSES = 8, 5, 4, 2
OWN = {"rank": 0, "world_size": 1}


class Model(nn.Module):
    """An encoder, and the scale and bias that some losses learn."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(D_IN, D)
        self.log_scale, self.bias = (
            nn.Parameter(torch.tensor(1.5)),
            nn.Parameter(torch.tensor(-1.0)),
        )

    def forward(self, views):
        # zeros keep every parameter in the graph, as DistributedDataParallel wants
        rest = 0.0 * (self.log_scale + self.bias)
        return self.layer(views) + rest, self.log_scale.exp() + rest, self.bias + rest


def clip(local, own, z, scale, bias):
    x = F.normalize(z, dim=-1)
    return open_clip.ClipLoss(local, False, **own)(x[0], x[1], scale, bias)


def clip_logits(local, own, z, scale, bias):
    """As a subclass of open_clip's would compute its loss."""
    x = F.normalize(z, dim=-1)
    loss = open_clip.ClipLoss(local, True, **own)
    logits = loss.get_logits(x[0], x[1], scale, bias)
    labels = loss.get_ground_truth(z.device, len(logits[0]))
    return sum(F.cross_entropy(each, labels) for each in logits) / 2


def siglip(own, z, scale, bias):
    x = F.normalize(z, dim=-1)
    return open_clip.SigLipLoss(**own)(x[0], x[1], scale, bias)


def lightly_bank(z, gather):
    torch.manual_seed(3)  # the same bank everywhere
    loss = lightly.NTXentLoss(0.5, (12, D), gather)
    first = loss(z[0], z[1])
    return first + loss(z[1], z[2])  # the second reads what the first wrote


def simclr(own, z):
    B = z.shape[1]
    ids = torch.arange(B).repeat(3) + own["rank"] * B
    return solo_learn.simclr_loss_func(z.flatten(0, 1), ids, 0.5)


ALL = (DIRECTIONS, "joint")
BACK = (("query_to_doc", "doc_to_query"), "per_direction")
# name -> (loss of this process, whether its value is the mean over all processes already)
CASES = {
    "lightly": (lambda own, z, *_: lightly.NTXentLoss(0.5, 0, True)(z[0], z[1]), False),
    "lightly with a bank": (lambda own, z, *_: lightly_bank(z, True), False),
    "open_clip": (lambda own, *args: clip(False, own, *args), True),
    "open_clip local": (lambda own, *args: clip(True, own, *args), False),
    "open_clip logits": (lambda own, *args: clip_logits(False, own, *args), True),
    "open_clip local logits": (lambda own, *args: clip_logits(True, own, *args), False),
    "open_clip siglip": (siglip, False),
    "solo_learn": (lambda own, z, *_: simclr(own, z), False),
    "sentence_transformers": (
        lambda own, z, *_: st.multiple_negatives_ranking_loss(
            list(z), 2.0, directions=ALL[0], partition_mode=ALL[1], gather_across_devices=True
        ),
        False,
    ),
    "sentence_transformers per direction": (
        lambda own, z, *_: st.multiple_negatives_ranking_loss(
            list(z), 2.0, directions=BACK[0], partition_mode=BACK[1], gather_across_devices=True
        ),
        False,
    ),
    "sentence_transformers cached": (None, False),
}


def run(name, own, images, model):
    """Value and gradients of one process."""
    case, _ = CASES[name]
    model.zero_grad(set_to_none=True)
    if case is None:
        value = cached(images, model)
    else:
        value = case(own, *model(images))
    value.backward()
    grads = {key.removeprefix("module."): p.grad.clone() for key, p in model.named_parameters()}
    return value.detach(), grads


def cached(images, model):
    class Embed(nn.Module):
        """Gives the model the interface of a SentenceTransformer."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, features):
            return {"sentence_embedding": self.inner(features["input_ids"])[0]}

    whole = Embed(model.module if hasattr(model, "module") else model)
    if hasattr(model, "module"):
        whole = nn.parallel.DistributedDataParallel(whole)
    loss = st.CachedMultipleNegativesRankingLoss(
        whole, 2.0, mini_batch_size=3, gather_across_devices=True
    )
    return loss([{"input_ids": each} for each in images], None)


def data():
    torch.manual_seed(0)
    return torch.randn(3, B, D_IN), Model()


def worker(rank, folder):
    join("cpu")
    images, model = data()
    share = images[:, rank * B // PROCESSES : (rank + 1) * B // PROCESSES]
    own = {"rank": rank, "world_size": PROCESSES}
    found = {}
    for name in CASES:
        parallel = nn.parallel.DistributedDataParallel(model)
        found[name] = run(name, own, share, parallel)
        del parallel
    torch.save(found, f"{folder}/{rank}.pt")
    leave()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    if not dist.is_available():
        pytest.skip("torch was built without distributed")
    folder = tmp_path_factory.mktemp("processes")
    spawn(worker, str(folder), count=PROCESSES)
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.parametrize("name", CASES)
def test_gradient_of_two_processes_is_that_of_one(name, found):
    images, model = data()
    value, grads = run(name, OWN, images, model)
    values = torch.stack([each[name][0] for each in found])
    if CASES[name][1]:
        torch.testing.assert_close(values, value.expand(PROCESSES))
    else:
        torch.testing.assert_close(values.mean(), value)
    for each in found:
        for key, grad in grads.items():
            torch.testing.assert_close(each[name][1][key], grad, rtol=1e-4, atol=1e-6)


def test_the_gradients_say_something():
    images, model = data()
    for name in CASES:
        assert run(name, OWN, images, model)[1]["layer.weight"].abs().max() > 1e-3, name
