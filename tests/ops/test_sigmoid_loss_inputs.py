"""Pairwise sigmoid loss: which gradients are wanted, registration, refusals."""

import math

import pytest
import torch

import sslops

from .test_sigmoid_loss import DTYPES, pairs, run

OPS = torch.ops.sslops


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grad", [0.0, 65536.0, -2.0])
def test_upstream_gradient_of_any_size(backend, grad, dtype):
    image, text = pairs(40, 50, 8, dtype)
    once = run(image, text, 3.0, -2.0, upstream=1 / 4096)
    for actual, expected in zip(
        run(image, text, 3.0, -2.0, upstream=grad / 4096)[1:], once[1:], strict=True
    ):
        # float16 holds the small ones in steps of 6e-8
        atol = abs(grad) * (1e-7 if dtype is torch.float16 else 0.0)
        rtol = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(actual.double(), expected.double() * grad, rtol=rtol, atol=atol)


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


def test_backward_twice_and_double_backward(backend):
    image, text = (each.requires_grad_() for each in pairs(20, 20, 8))
    loss = sslops.sigmoid_loss(image, text, 3.0, -2.0)
    (first,) = torch.autograd.grad(loss, text, retain_graph=True)
    (second,) = torch.autograd.grad(loss, text, retain_graph=True)
    assert torch.equal(first, second)
    (grad,) = torch.autograd.grad(loss, text, create_graph=True)
    with pytest.raises(RuntimeError, match="sigmoid_loss: double backward is not implemented"):
        grad.sum().backward()


def test_strides(backend):
    image, text = pairs(20, 30, 8)
    expected = run(image, text, 3.0, -2.0)
    leaf = image.t().contiguous().t().requires_grad_()
    wide = torch.zeros(30, 24)[:, ::3].copy_(text)
    loss = sslops.sigmoid_loss(leaf, wide, 3.0, -2.0, reduction="sum")
    torch.testing.assert_close(loss.detach(), expected[0])
    (grad,) = torch.autograd.grad(loss, leaf)
    assert grad.is_contiguous()
    torch.testing.assert_close(grad, expected[1], rtol=1e-5, atol=1e-6)


def test_autocast_casts_as_a_matrix_product(backend):
    image, text = pairs(20, 30, 8)
    with torch.autocast("cpu", torch.bfloat16):
        cast = sslops.sigmoid_loss(image, text, 3.0, -2.0)
        with torch.autocast("cpu", enabled=False):
            exact = sslops.sigmoid_loss(image, text, 3.0, -2.0)
    assert cast.dtype is torch.float32
    assert torch.equal(cast, sslops.sigmoid_loss(image.bfloat16(), text.bfloat16(), 3.0, -2.0))
    assert torch.equal(exact, sslops.sigmoid_loss(image, text, 3.0, -2.0))


def test_fullgraph_compile_with_dynamic_shapes(backend):
    torch._dynamo.reset()
    compiled = torch.compile(sslops.sigmoid_loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for M in (5, 9):
        leaves = (*pairs(M, M + 3, 8), torch.tensor(4.0), torch.tensor(-2.0))
        leaves = [each.requires_grad_() for each in leaves]
        found = []
        for each in (compiled, sslops.sigmoid_loss):
            loss = each(*leaves)
            found.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("permuted", [False, True])
def test_opcheck(dtype, permuted):
    image, text = pairs(6, 9, 4, dtype)
    if permuted:
        image, text = image.t().contiguous().t(), text.t().contiguous().t()
    ids = (torch.arange(6) % 3 - 1, torch.arange(9) % 3)
    leaves = [
        each.requires_grad_() for each in (image, text, torch.tensor(3.0), torch.tensor(-1.0))
    ]
    image, text, scale, bias = leaves
    for grads in (False, True):
        args = (image, text, *ids, scale, 2.0, bias, 0.0, True, grads)
        plain = (image.detach(), text.detach(), None, None, None, 2.0, None, -1.0, False, grads)
        if grads:
            torch.library.opcheck(OPS.sigmoid_loss_fwd, args)
        torch.library.opcheck(OPS.sigmoid_loss_fwd, plain)
    _, *found = OPS.sigmoid_loss_fwd(*plain)
    torch.library.opcheck(OPS.sigmoid_loss_bwd, (torch.tensor(2.0), *plain[:2], *found))


Z, I4 = torch.zeros(4, 8), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((Z, [1], 1.0), {}, TypeError, "text must be a tensor, got list"),
        ((Z, Z.half(), 1.0), {}, TypeError, "image and text must share their dtype"),
        ((Z.int(), Z, 1.0), {}, TypeError, "image must be float16.*got torch.int32"),
        ((Z[0], Z, 1.0), {}, ValueError, r"image must be \[rows, features\]"),
        ((Z, Z[:3], 1.0), {}, ValueError, "every image needs its text, got 4 images and 3 texts"),
        ((Z, Z[:, :7], 1.0), {}, ValueError, "text must have the 8 features of image"),
        ((Z, Z.to("meta"), 1.0), {}, ValueError, "text must be on the device.*meta and cpu"),
        ((Z, Z, 0.0), {}, ValueError, "logit_scale must be positive and finite, got 0.0"),
        ((Z, Z, math.inf), {}, ValueError, "logit_scale must be positive and finite, got inf"),
        ((Z, Z, torch.ones(2)), {}, ValueError, "logit_scale must have one element"),
        ((Z, Z, torch.tensor(2)), {}, TypeError, "logit_scale must be float16"),
        ((Z, Z, 1.0, torch.ones(2)), {}, ValueError, "logit_bias must have one element"),
        ((Z, Z, 1.0, torch.tensor(2)), {}, TypeError, "logit_bias must be float16"),
        ((Z, Z, 1.0), {"image_ids": I4}, ValueError, "image_ids and text_ids go together"),
        ((Z, Z, 1.0), {"image_ids": I4[:3], "text_ids": I4}, ValueError, r"must be \[4\]"),
        ((Z, Z, 1.0), {"image_ids": Z[:, 0], "text_ids": I4}, TypeError, "an integer tensor"),
        ((Z, Z, 1.0), {"reduction": "none"}, ValueError, "mean or sum, got 'none'"),
    ],
)
def test_refuses(args, kwargs, error, message):
    with pytest.raises(error, match=message) as caught:
        sslops.sigmoid_loss(*args, **kwargs)
    assert str(caught.value).startswith("sigmoid_loss: ")
