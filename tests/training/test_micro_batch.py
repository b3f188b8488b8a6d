"""--micro-batch and --checkpointing: less memory, the same training."""

import copy
import io
import itertools
import os
import signal

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from sslops.training import train
from sslops.training.config import make_config
from sslops.training.data import load as load_data
from sslops.training.distributed.process import join, leave, seed_everything, wait
from sslops.training.distributed.wrap import parallelise
from sslops.training.engine.setup import shape_of
from sslops.training.engine.signals import Interrupted
from sslops.training.engine.step import Step, prepare_encoder, restore_encoder
from sslops.training.loggers.console import Console
from sslops.training.methods import Batch, ContrastiveMethod, Method, find_method
from sslops.training.methods.simclr import SimCLR
from sslops.training.models import build_encoder, encoder_names
from sslops.training.models.declared import checkpoint_blocks
from sslops.training.storage.checkpoint import load
from tests.ops.test_grad_cache import relative
from tests.processes import spawn
from tests.training.method_cases import METHOD_CASES
from tests.training.test_training import assert_same, records, run

pytestmark = pytest.mark.slow

B, MICRO = 24, 5
GROUPS = 8  # a micro-batch that MoCo's divided batch norm can divide
CPU = torch.device("cpu")


def without_bn(module):
    """Rows no longer depend on each other."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, nn.Identity())
        else:
            without_bn(child)


def setting(name, fields, bn):
    """A method, the views of a batch, and its config."""
    entry = find_method(name)
    config = make_config(entry.config, name, {**fields, "batch": B})
    data = load_data(config.data, root=config.data_root, size=config.image_size)
    seed_everything(0)
    method = entry.build(config, shape_of(data))
    if not bn:
        without_bn(method)
    labels = None if data.train.labels is None else data.train.labels[:B]
    batch = Batch(data.train.images[:B], labels)
    views = method.views(batch, torch.Generator().manual_seed(0))
    method.train()
    method.before_step(0, 10)
    return method, views, config


def stepped(method, views, config, micro, model=None, share=B):
    """Loss and gradients of one update."""
    config = copy.copy(config)
    object.__setattr__(config, "micro_batch", micro)
    step = Step(method, model or method, config, share=share, device=CPU, bf16=False)
    method.zero_grad()
    torch.manual_seed(0)  # of a loss that draws its negatives
    out = step(views, lambda loss: None)
    return out, [p.grad for p in method.parameters() if p.grad is not None]


SUPERVISED = next(case for case in METHOD_CASES if case[0] == "supervised")
CONTRASTIVE = [
    case for case in METHOD_CASES if issubclass(find_method(case[0]).build, ContrastiveMethod)
]


def ids(case):
    return case[0] if isinstance(case, tuple) else None


@pytest.mark.parametrize("case", [*CONTRASTIVE, SUPERVISED], ids=ids)
def test_gradients_are_those_of_the_whole_batch(case):
    method, views, config = setting(*case, bn=False)
    assert isinstance(method, ContrastiveMethod) or method.mean_loss
    whole, expected = stepped(method, views, config, None)
    out, grads = stepped(method, views, config, MICRO)
    assert relative([out["loss"].detach()], [whole["loss"].detach()]) < 1e-6
    assert relative(grads, expected) < 1e-6
    for name in whole.keys() - {"loss"}:
        torch.testing.assert_close(out[name], whole[name].detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CONTRASTIVE, ids=ids)
def test_batch_norm_sees_a_micro_batch(case):
    """As if the micro-batches were embedded one after the other, each once, with graph."""
    method, views, config = setting(*case, bn=True)
    other = copy.deepcopy(method)
    parts = [other.embed(part) for part in other.parts(views, GROUPS)]
    torch.manual_seed(0)  # as in `stepped`
    loss = other.contrast(tuple(torch.cat(each) for each in zip(*parts, strict=True)))["loss"]
    loss.backward()
    _, grads = stepped(method, views, config, GROUPS)
    assert relative(grads, [p.grad for p in other.parameters() if p.grad is not None]) < 1e-5
    for (name, a), (_, b) in zip(method.named_buffers(), other.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


class Odd(Method):
    """Neither contrastive nor a mean."""

    def views(self, batch, generator):
        return batch.images

    def step(self, views):
        return {"loss": views.std()}


def test_other_losses_refuse():
    config = make_config(find_method("simclr").config, "simclr", {"micro_batch": 2})
    with pytest.raises(ValueError, match="a loss that is a mean over images, got Odd"):
        Step(Odd(), Odd(), config, share=4, device=CPU, bf16=False)
    Step(Odd(), Odd(), config, share=2, device=CPU, bf16=False)  # nothing to take apart
    with pytest.raises(ValueError, match="micro_batch must be at least 1, got 0"):
        make_config(find_method("simclr").config, "simclr", {"micro_batch": 0})


@pytest.mark.parametrize("knobs", [{}, {"checkpointing": True, "precision": "bf16"}])
def test_resumes_to_the_bit(tmp_path, monkeypatch, knobs):
    knobs = {**knobs, "micro_batch": 24, "steps": 6}
    run(tmp_path / "whole", **knobs)

    def after_step(self, now):
        if now == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(SimCLR, "after_step", after_step)
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", **knobs)
    monkeypatch.undo()
    torch.rand(7)
    run(tmp_path / "parts", **knobs, resume=True)
    whole, parts = (load(tmp_path / name / "checkpoint" / "last.pt") for name in ("whole", "parts"))
    assert whole["step"] == 6
    assert_same(whole, parts)


@pytest.mark.parametrize("micro", [None, 24])
@pytest.mark.parametrize("case", [c for c in METHOD_CASES if c[1].get("data") == "digits"], ids=ids)
def test_checkpointing_changes_nothing(tmp_path, case, micro):
    states = []
    for checkpointing in (False, True):
        out = tmp_path / str(checkpointing)
        name, fields = case
        common = {"batch": 64, "steps": 3, "knn_every": 0, "evaluate": False, "micro_batch": micro}
        console = Console(io.StringIO())
        train(name, out=out, console=console, checkpointing=checkpointing, **common, **fields)
        states.append(load(out / "checkpoint" / "last.pt"))
    # running statistics too: the second computation does not count its batch again
    assert_same(states[0]["method"], states[1]["method"])
    assert_same(states[0]["optimizer"], states[1]["optimizer"])


def saved_bytes(encoder, images):
    """Bytes that the graph of a forward pass holds."""
    held = {}

    def pack(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = encoder(images)
    del out
    return sum(held.values())


@pytest.mark.parametrize("arch", encoder_names())
def test_checkpointing_holds_less_and_gives_the_same(arch):
    size = 8 if arch == "cnn-tiny" else 32
    options = {"width": 24, "depth": 3} if arch.startswith("vit") else {"width": 8}
    encoder = build_encoder(arch, 3, size, seed=0, **options)
    other, start = copy.deepcopy(encoder), copy.deepcopy(encoder.state_dict())
    config = make_config(find_method("simclr").config, "simclr", {"checkpointing": True})
    prepare_encoder(other, config)
    assert len(checkpoint_blocks(encoder)) >= 3
    images = torch.rand(16, 3, size, size)
    assert saved_bytes(other, images) < 0.7 * saved_bytes(encoder, images)
    for each in (encoder, other):
        each.load_state_dict(start)
        each(images).square().mean().backward()
    assert_same(dict(encoder.state_dict()), dict(other.state_dict()))
    for a, b in zip(encoder.parameters(), other.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    with pytest.raises(ValueError, match=r"--checkpointing needs .* got Flatten"):
        prepare_encoder(nn.Flatten(), config)


def test_everything_at_once(tmp_path):
    knobs = {"micro_batch": 24, "checkpointing": True, "precision": "bf16", "channels_last": True}
    run(tmp_path / "plain", steps=2, **knobs)
    run(tmp_path / "compiled", steps=2, compile=True, **knobs)
    plain, compiled = (records(tmp_path / name)[-1]["loss"] for name in ("plain", "compiled"))
    assert compiled == pytest.approx(plain, rel=2e-2)  # bfloat16, other orders of operations


def worker(process, folder):
    world = join("cpu")
    for n, case in enumerate([*CONTRASTIVE, SUPERVISED]):
        for how in ("ddp", "fsdp"):
            torch.save(updates(case, how, world), f"{folder}/{n}-{how}-{process}.pt")
    wait(world)  # a process that ends while the other computes may abort it
    leave()


def updates(case, how, world):
    """Loss and whole gradients of the second of two updates."""
    method, views, config = setting(*case, bn=False)
    share = method.parts(views, B // 2)[world.rank]
    model = parallelise(method, world, how)
    for _ in range(2):  # the second update finds the reducer ready
        out, grads = stepped(method, share, config, MICRO, model, B // 2)
    whole = [g.full_tensor() if isinstance(g, DTensor) else g.clone() for g in grads]
    return out["loss"].detach().clone(), whole


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")
def test_gradients_of_two_processes_are_those_of_one(tmp_path):
    spawn(worker, str(tmp_path))
    for n, case in enumerate([*CONTRASTIVE, SUPERVISED]):
        method, views, config = setting(*case, bn=False)
        _, expected = stepped(method, views, config, None)
        for how, process in itertools.product(("ddp", "fsdp"), range(2)):
            _, grads = torch.load(tmp_path / f"{n}-{how}-{process}.pt")
            assert relative(grads, expected) < 1e-6, (case[0], how, process)


def test_an_encoder_may_checkpoint_by_itself():
    """One that declares `set_grad_checkpointing` is asked, and its modules are left alone."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.on, self.layers = False, nn.Sequential(nn.Linear(2, 2))

        def set_grad_checkpointing(self, enable=True):
            self.on = enable

    encoder = Own()
    for checkpointing in (False, True):
        changes = {"checkpointing": checkpointing}
        config = make_config(find_method("simclr").config, "simclr", changes)
        prepare_encoder(encoder, config)
        assert encoder.on is checkpointing
        assert not any("forward" in vars(module) for module in encoder.modules())
        restore_encoder(encoder, config)
        assert not encoder.on


def test_an_encoder_may_declare_its_blocks():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))

        def checkpoint_blocks(self):
            return [self.first]

    encoder = Own()
    config = make_config(find_method("simclr").config, "simclr", {"checkpointing": True})
    prepare_encoder(encoder, config)
    assert [name for name, each in encoder.named_modules() if "forward" in vars(each)] == ["first"]
