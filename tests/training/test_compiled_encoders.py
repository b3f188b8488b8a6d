"""--compile reaches whatever a method calls of its encoder, and changes no number."""

import copy
import functools
from dataclasses import replace

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from sslops.training import train
from sslops.training.config import make_config
from sslops.training.distributed.process import World
from sslops.training.engine.setup import build_method, load_data, shape_of
from sslops.training.engine.step import prepare_encoder
from sslops.training.loggers.console import Console
from sslops.training.methods import find_method
from sslops.training.run.drawing import _some

from .method_cases import METHOD_CASES
from .test_training import assert_same

pytestmark = pytest.mark.slow

WORLD = World(0, 1, torch.device("cpu"))
CASES = {name: fields for name, fields in reversed(METHOD_CASES)}  # the first of each method


@pytest.fixture
def compiled_ops(monkeypatch):
    """Operators in all graphs that torch.compile has made, which run without code generation."""
    ops = []

    def forward(graph, inputs):
        ops.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return make_boxed_func(graph)

    def backward(graph, inputs):
        return make_boxed_func(graph)

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=forward, bw_compiler=backward)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    yield ops
    torch._dynamo.reset()


def first_step(name, config):
    """The method after the backward pass of one step, and the loss."""
    data, train, _ = load_data(config)
    method = build_method(name, config, shape_of(data), WORLD)
    views = method.views(_some(train, 16, WORLD), torch.Generator().manual_seed(0))
    prepare_encoder(method.encoder, config)
    torch.manual_seed(1)
    loss = method.step(views)["loss"]
    loss.backward()
    return method, loss.detach()


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_method_trains_a_compiled_encoder(name, compiled_ops):
    config = make_config(find_method(name).config, name, {**CASES[name], "threads": 1})
    plain, loss = first_step(name, config)
    assert not compiled_ops
    method, compiled_loss = first_step(name, replace(config, compile=True))
    layers = [each for each in method.encoder.modules() if isinstance(each, nn.Conv1d | nn.Conv2d)]
    assert layers
    assert sum("convolution" in op for op in compiled_ops) >= len(layers)
    torch.testing.assert_close(compiled_loss, loss)
    for a, b in zip(plain.parameters(), method.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert plain.state_dict().keys() == method.state_dict().keys()
    plain.load_state_dict(method.state_dict())
    assert_same(dict(plain.state_dict()), dict(method.state_dict()))


def test_a_copy_of_the_trained_encoder_has_its_own_weights(compiled_ops, tmp_path):
    result = train(
        "cpc-image", **CASES["cpc-image"], out=tmp_path / "a", console=Console(quiet=True),
        evaluate=False, steps=1, compile=True, batch=8, threads=1,
    )  # fmt: skip
    assert compiled_ops
    images = torch.rand(2, 3, 16, 16)
    expected = result.encoder(images)
    twin = copy.deepcopy(result.encoder)
    with torch.no_grad():
        for weight in twin.parameters():
            weight.zero_()
    assert twin(images).abs().max() < expected.abs().max()
    torch.save(result.encoder, tmp_path / "encoder.pt")
