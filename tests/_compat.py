"""Value and gradients of a compat loss against its plain statement, by the tolerance rule."""

import importlib
import math
import sys
from types import ModuleType

import torch
from torch import nn

from tests.numerics import assert_as_accurate_as


def value_and_grads(loss, tensors, dtype):
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]
    value = loss(*leaves)
    value = next(iter(value.values())) if isinstance(value, dict) else value
    return value.detach(), torch.autograd.grad(value.sum(), leaves)


def assert_same_loss(ours, plain, tensors, *, scale, dtype=torch.float32):
    """Both are functions of the tensors; `scale` is the inverse temperature."""
    tensors = [tensor.to(dtype) for tensor in tensors]  # the same numbers for all three
    value, grads = value_and_grads(ours, tensors, dtype)
    naive, naive_grads = value_and_grads(plain, tensors, dtype)
    truth, true_grads = value_and_grads(plain, tensors, torch.float64)
    logit = scale + math.log(len(tensors[0]) + 1)
    assert_as_accurate_as(value, naive, truth, name="loss", scale=logit)
    for n, (d, naive_d, true_d) in enumerate(zip(grads, naive_grads, true_grads, strict=True)):
        bound = logit * max(scale / len(tensors[0]), float(true_d.abs().max()))
        assert_as_accurate_as(d, naive_d, true_d, name=f"gradient {n}", scale=bound)


class _Anything(type):
    """Metaclass of classes that have every attribute."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _anything(name)


def _anything(name):
    return _Anything(name, (nn.Module,), {"__init__": lambda self, *_, **__: None})


class _StandIn(ModuleType):
    """Empty module that has every name, as an empty class."""

    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _anything(name)


class _Finder:
    """Finds stand-ins for packages that a peer imports but its losses do not use."""

    def __init__(self, names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            return importlib.util.spec_from_loader(name, self)
        return None

    def create_module(self, spec):
        return _StandIn(spec.name)

    def exec_module(self, module):
        pass


def import_peer(module, stand_ins=()):
    """Import a peer's module, with stand-ins for those of its requirements that are missing."""
    missing = [name for name in stand_ins if importlib.util.find_spec(name) is None]
    finder = _Finder(missing)
    sys.meta_path.append(finder)
    try:
        return importlib.import_module(module)
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] in missing]:
            del sys.modules[name]
