"""MoCo against its paper's algorithm, on one process and on two; its recipes and what it says."""

import copy
import io
import json
import math
import re

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel

from sslops.training import train
from sslops.training.augment import RECIPES as VIEWS
from sslops.training.config import make_config
from sslops.training.distributed.process import World, join, leave, main_value
from sslops.training.distributed.wrap import parallelise
from sslops.training.engine.collapse import Diagnosis
from sslops.training.loggers.console import Console
from sslops.training.methods import Batch, DataShape
from sslops.training.methods.figures import Chart
from sslops.training.methods.moco import MoCo, MoCoConfig
from sslops.training.models.split_bn import SplitBatchNorm2d
from sslops.training.recipes import RECIPES
from tests.processes import spawn

SHAPE = DataShape(1, 8, 10)
B, K = 8, 24


def make(**changes):
    fields = {"width": 8, "proj_hidden": 32, "proj_dim": 16, "batch": B, "queue": K, "bn_splits": 2}
    torch.manual_seed(0)
    return MoCo(MoCoConfig(**{**fields, **changes}), SHAPE).train()


def make_views(steps=3):
    return torch.rand(steps, 2, B, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def update(method, optimizer, views, step):
    """One turn of the loop."""
    method.shuffle_seed = step
    method.before_step(step, 10)
    out = method(views)
    optimizer.zero_grad()
    out["loss"].backward()
    optimizer.step()
    method.after_step(step)
    return out


def sgd(method):
    return torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.5)


def test_a_copy_of_the_method_trains_as_the_method_does():
    method = make()
    other, average = copy.deepcopy(method), AveragedModel(method)
    views = make_views(2)
    for each in (method, other, average.module):
        optimizer = sgd(each)
        for step, pair in enumerate(views):
            update(each, optimizer, pair, step)
    average.update_parameters(method)
    for each in (other, average.module):
        for a, b in zip(
            method.key_encoder.parameters(), each.key_encoder.parameters(), strict=True
        ):
            assert torch.equal(a, b)
    assert not torch.equal(
        *[next(e.parameters()) for e in (method.key_encoder, make().key_encoder)]
    )


def test_two_steps_of_algorithm_1():
    """In plain PyTorch, line by line, with its order: average, keys, loss, update, enqueue."""
    method = make(bn_splits=1, key_momentum=0.7, temperature=0.3)
    f_q = copy.deepcopy(nn.Sequential(method.encoder, method.head))
    f_k = copy.deepcopy(f_q)
    queue = method.queue.keys.clone()
    ours, theirs = sgd(method), torch.optim.SGD(f_q.parameters(), 0.5)
    for step, views in enumerate(make_views()):
        for p_k, p_q in zip(f_k.parameters(), f_q.parameters(), strict=True):
            p_k.data = 0.7 * p_k.data + 0.3 * p_q.data
        q = F.normalize(f_q(views[0]), dim=1)
        k = F.normalize(f_k(views[1]), dim=1).detach()
        positive, negative = (q * k).sum(1, keepdim=True), q @ queue.T
        logits = torch.cat([positive, negative], 1)  # [B, 1 + K]
        loss = F.cross_entropy(logits / 0.3, torch.zeros(B, dtype=torch.int64))
        theirs.zero_grad()
        loss.backward()
        theirs.step()
        out = update(method, ours, views, step)
        torch.testing.assert_close(out["loss"], loss)
        torch.testing.assert_close(out["accuracy"], (logits.argmax(1) == 0).float().mean())
        torch.testing.assert_close(out["positive_similarity"], positive.mean().detach())
        torch.testing.assert_close(out["negative_similarity"], negative.mean().detach())
        queue[step * B : (step + 1) * B] = k
        torch.testing.assert_close(method.queue.keys, queue)
        # Batch norm's statistics are those of each network's own forward passes.
        pairs = zip(method.key_encoder.encoder.state_dict().values(), f_k.state_dict().values(),
                    strict=True)  # fmt: skip
        for mine, other in pairs:
            torch.testing.assert_close(mine, other)
    assert torch.equal(method.queue.ages()[: 3 * B], torch.arange(3 * B - 1, -1, -1))


def test_the_queue_waits_for_the_end_of_the_step():
    method, views = make(), make_views()[0]
    before = method.queue.keys.clone()
    method.before_step(0, 10)
    out = method(views)
    out["loss"].backward()
    assert torch.equal(method.queue.keys, before)
    assert out["queue_fill"] == 0
    method.after_step(0)
    assert method.queue.pointer == B
    assert torch.equal(method.queue.keys[B:], before[B:])
    out = method(views)
    assert out["queue_fill"] == pytest.approx(B / K)
    assert out["queue_age"] == pytest.approx((B - 1) / 2 * B / K / B)
    assert all(p.grad is None for p in method.key_encoder.parameters())


def test_any_batch_fits_the_ring():
    """The paper's code needs K % batch == 0."""
    method = make(queue=11)
    optimizer = sgd(method)
    for step, views in enumerate(make_views()):
        update(method, optimizer, views, step)
    assert method.queue.pointer == 3 * B
    assert sorted(method.queue.ages().tolist()) == list(range(11))


def test_symmetric_sums_both_directions_and_enqueues_both():
    views = make_views()[0]
    both, one, other = make(symmetric=True), make(), make()
    for method in (both, one, other):
        method.before_step(0, 10)
    out = both(views)
    losses = [one(views)["loss"], other(views.flip(0))["loss"]]
    torch.testing.assert_close(out["loss"], sum(losses))
    assert both.chance == pytest.approx(2 * math.log(K + 1))
    both.after_step(0)
    for method in (one, other):
        method.after_step(0)
    keys = torch.cat([one.queue.keys[:B], other.queue.keys[:B]])
    torch.testing.assert_close(both.queue.keys[: 2 * B], keys)


def test_heads_have_no_batch_norm():
    v1, v2 = make(version="v1").head, make(version="v2").head
    assert isinstance(v1, nn.Linear)
    assert (v1.in_features, v1.out_features) == (32, 16)
    assert [type(layer) for layer in v2] == [nn.Linear, nn.ReLU, nn.Linear]
    assert (v2[0].out_features, v2[2].out_features) == (32, 16)
    assert all(layer.bias is not None for layer in (v1, v2[0], v2[2]))


def test_recipes_of_the_papers():
    v1, v2 = (
        make_config(MoCoConfig, "moco", {"data": "imagenet", "version": version})
        for version in ("v1", "v2")
    )
    assert make_config(MoCoConfig, "moco", {"data": "imagenet"}) == v2
    for config in (v1, v2):
        assert (config.optimizer, config.momentum, config.weight_decay) == ("sgd", 0.9, 1e-4)
        assert (config.lr, config.batch, config.lr_scaling) == (0.03, 256, "linear")
        assert (config.queue, config.key_momentum, config.epochs) == (65_536, 0.999, 200)
        assert (config.arch, config.proj_dim, config.proj_hidden) == ("resnet50", 128, 2048)
    assert (v1.version, v1.temperature, v1.schedule, v1.views) == ("v1", 0.07, "step", "moco-v1")
    assert (v2.version, v2.temperature, v2.schedule, v2.views) == ("v2", 0.2, "cosine", "moco-v2")
    first, second = VIEWS["moco-v1"], VIEWS["moco-v2"]
    for views in (first, second):
        assert (views.crop_scale, views.flip, views.grey) == ((0.2, 1.0), 0.5, 0.2)
        assert (views.brightness, views.contrast, views.saturation) == (0.4, 0.4, 0.4)
    assert (first.jitter, first.hue, first.blur) == (1.0, 0.4, 0.0)
    assert (second.jitter, second.hue, second.blur) == (0.8, 0.1, 0.5)
    assert second.blur_sigma == (0.1, 2.0)
    small = make_config(MoCoConfig, "moco", {"data": "cifar10", "recipe": "cifar10-resnet18"})
    assert (small.arch, small.bn_splits, small.batch, small.lr) == ("resnet18", 8, 512, 0.06)
    assert (small.weight_decay, small.queue, small.key_momentum) == (5e-4, 4096, 0.99)
    assert (small.temperature, small.schedule, small.views) == (0.1, "cosine", "colour")


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith(("/moco", "/moco-v1"))])
def test_every_recipe_builds(name):
    data, method = name.split("/")
    given = {"recipe": data, "image_size": 32}
    if method == "moco-v1":
        given["version"] = "v1"
    config = make_config(MoCoConfig, "moco", given)
    assert RECIPES[name].fields.keys() <= vars(config).keys()
    assert config.version == ("v1" if method == "moco-v1" else RECIPES[name].fields["version"])
    with torch.device("meta"):
        channels = 1 if config.views in ("digits", "grey") else 3
        method = MoCo(config, DataShape(channels, 32, 10))
    assert method.chance == pytest.approx(math.log(config.queue + 1))
    assert not method.cautions
    assert any(isinstance(layer, SplitBatchNorm2d) for layer in method.encoder.modules())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": "grei"}, "moco: no such views, got 'grei'; did you mean 'grey'"),
        ({"bn_splits": 3}, "bn_splits: must be .* divide the batch of 8, got 3"),
        ({"bn_splits": 0}, "bn_splits: must be at least 1 .* got 0"),
        ({"queue": 0}, "config: queue must be at least 1, got 0"),
        ({"key_momentum": 1.5}, "momentum must be in .* got 1.5"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_one_group_on_one_device_is_warned_of(tmp_path):
    assert "--bn-splits 8" in make(bn_splits=1).cautions[0]
    text = io.StringIO()
    fields = {"width": 8, "proj_hidden": 32, "batch": 64, "steps": 2, "bn_splits": 1}
    train("moco", data="digits", out=tmp_path / "a", console=Console(text), evaluate=False,
          knn_every=0, **fields)  # fmt: skip
    assert "warning: batch norm sees the whole batch at once" in text.getvalue()


def test_diagnosis_names_queue_keys_and_batch_norm():
    record = {"step": 900, "loss": 8.32, "chance": math.log(4097), "accuracy": 0.0}
    (stuck,) = Diagnosis(1000, 50, MoCo.hints)(record)
    assert re.search(r"8\.320 is still its chance value 8\.318.*keys change.*queue", stuck)
    (leak,) = Diagnosis(1000, 50, MoCo.hints)({**record, "step": 10, "loss": 1, "accuracy": 1.0})
    assert re.search(r"solved \(100\.0%\).*batch norm.*--bn-splits", leak)


def test_the_rise_of_the_loss_is_explained_once(tmp_path):
    text = io.StringIO()
    fields = {"width": 8, "proj_hidden": 32, "batch": 64, "steps": 12, "queue": 512, "log_every": 1}
    result = train("moco", data="digits", out=tmp_path / "a", console=Console(text), knn_every=0,
                   evaluate=False, **fields)  # fmt: skip
    assert text.getvalue().count("note: the loss rises while the queue fills") == 1
    assert "512 random directions" in text.getvalue()
    lines = (result.dir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert records[7]["loss"] > records[0]["loss"]  # or there would be nothing to explain
    assert [record["queue_fill"] for record in records[:3]] == [0.0, 0.125, 0.25]
    assert records[-1]["queue_fill"] == 1.0
    assert records[0]["chance"] == pytest.approx(math.log(513))
    assert not make().notes({"step": 1000, "loss": 2.0}) | make().notes({"step": 1, "loss": 2.0})


def test_figures_show_similarities_and_ages():
    method = make().eval()
    batch = Batch(torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8), None)
    with torch.no_grad():
        empty = method.figures(batch, torch.Generator())
        method.queue.enqueue(torch.randn(20, 16))
        drawn = method.figures(batch, torch.Generator())
    assert drawn.keys() == empty.keys() == {"similarity-to-the-queries", "age-of-the-queue"}
    assert all(isinstance(chart, Chart) for chart in drawn.values())
    for chart in drawn.values():
        for bars in chart.series.values():
            assert sum(share for _, share in bars) == pytest.approx(1.0)
    assert "oldest of 20 keys is 2 steps old" in drawn["age-of-the-queue"].caption


@pytest.mark.slow
def test_learns_digits(tmp_path):
    fields = {"width": 16, "proj_hidden": 64, "batch": 128, "steps": 120, "queue": 512}
    fields |= {"epochs": 12, "warmup_epochs": 1.0, "temperature": 0.1}
    result = train("moco", data="digits", out=tmp_path / "a", console=Console(io.StringIO()),
                   evaluate=False, knn_every=200, **fields)  # fmt: skip
    last = json.loads((result.dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["loss"] < 0.85 * last["chance"]
    assert last["accuracy"] > 20 / 513  # chance is 1 in 513
    assert last["knn"] > 0.85
    assert last["positive_similarity"] > last["negative_similarity"] + 0.3


def worker(process, folder):
    world = join("cpu")
    method = make()
    parallel, optimizer = parallelise(method, world, "ddp"), sgd(method)
    for step, views in enumerate(make_views()):
        method.shuffle_seed = step
        method.before_step(step, 10)
        out = parallel(views[:, process * B // 2 : (process + 1) * B // 2])
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        method.after_step(step)
    layers = {type(layer) for layer in method.encoder.modules()}
    assert main_value(float(process), world) == 0.0
    torch.save({"state": method.state_dict(), "layers": layers}, f"{folder}/{process}.pt")
    leave()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")
def test_two_processes_are_one_with_two_groups(tmp_path):
    """Shuffle-BN over processes and SplitBN on one device are the same computation."""
    spawn(worker, str(tmp_path))
    method = make(bn_splits=2)
    optimizer = sgd(method)
    for step, views in enumerate(make_views()):
        update(method, optimizer, views, step)
    first, second = (
        torch.load(tmp_path / f"{process}.pt", weights_only=False) for process in range(2)
    )
    assert torch.equal(first["state"]["queue.keys"], second["state"]["queue.keys"])
    assert first["state"]["queue.pointer"] == 3 * B
    for name, expected in method.state_dict().items():
        if "running" in name:  # the mean over the groups, which are the processes
            mean = (first["state"][name] + second["state"][name]) / 2
            torch.testing.assert_close(mean, expected)
            assert not torch.equal(first["state"][name], second["state"][name])
        else:
            torch.testing.assert_close(first["state"][name], expected, rtol=1e-4, atol=1e-5)
    assert main_value(3.0, World(0, 1, torch.device("cpu"))) == 3.0
