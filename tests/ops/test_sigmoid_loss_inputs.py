"""Pairwise sigmoid loss: which gradients are wanted, registration, refusals."""

import math

import pytest
import torch

import sslops

from .test_sigmoid_loss import pairs, run

OPS = torch.ops.sslops


@pytest.mark.parametrize("trained", [(0,), (1,), (2,), (3,), (1, 3)])
def test_any_part_may_be_trained(backend, trained):
    image, text = pairs(20, 30, 8)
    expected = run(image, text, 3.0, -2.0)[1:]
    leaves = [image, text, torch.tensor(3.0), torch.tensor(-2.0)]
    for n in trained:
        leaves[n].requires_grad_()
    loss = sslops.sigmoid_loss(*leaves, reduction="sum")
    grads = torch.autograd.grad(loss, [leaves[n] for n in trained])
    for n, grad in zip(trained, grads, strict=True):
        torch.testing.assert_close(grad, expected[n])
    with torch.no_grad():
        torch.testing.assert_close(sslops.sigmoid_loss(*leaves, reduction="sum"), loss.detach())


def test_learnt_logarithm_of_the_scale():
    image, text = pairs(20, 20, 8)
    log_scale = torch.tensor(math.log(10), requires_grad=True)
    bias = torch.tensor([-10.0], dtype=torch.bfloat16, requires_grad=True)
    sslops.sigmoid_loss(image, text, log_scale.exp(), bias, reduction="sum").backward()
    *_, dscale, dbias = run(image, text, 10.0, -10.0)
    torch.testing.assert_close(log_scale.grad, dscale * 10, rtol=1e-5, atol=1e-5)
    assert (bias.grad.dtype, bias.grad.shape) == (torch.bfloat16, (1,))
    torch.testing.assert_close(bias.grad.float().squeeze(), dbias, rtol=1e-2, atol=0)


Z, I4 = torch.zeros(4, 8), torch.zeros(4, dtype=torch.int64)
