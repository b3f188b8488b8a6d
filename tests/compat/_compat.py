"""Value and gradients of a compat loss against its plain statement, by the tolerance rule."""

import math

import torch

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
