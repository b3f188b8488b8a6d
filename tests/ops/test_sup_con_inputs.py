"""Supervised contrastive loss: runs that agree, registration, refusals."""

import math

import pytest
import torch

import sslops

from .test_sup_con import DTYPES, MEANS, make_input

OPS = torch.ops.sslops


def run(z, labels, mean, grad):
    leaf, scale = z.clone().requires_grad_(), torch.tensor(0.1, requires_grad=True)
    loss, stats = sslops.sup_con(
        leaf, labels, temperature=scale, mean=mean, reduction="none", return_stats=True
    )
    return loss.detach(), *stats, *torch.autograd.grad(loss, (leaf, scale), grad)


@pytest.mark.parametrize("mean", MEANS)
def test_same_bits_on_every_run(backend, mean):
    for dtype in (torch.float32, torch.bfloat16):
        z, labels = make_input(600, 33, 9, dtype)
        grad = torch.rand(600)
        first = run(z, labels, mean, grad)
        for _ in range(3):
            assert all(map(torch.equal, run(z, labels, mean, grad), first))


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_number_of_threads(backend, mean, dtype):
    z, labels = make_input(900, 20, 9, dtype)
    grad, before = torch.rand(900), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = run(z, labels, mean, grad)
        for threads in (2, 3, 7):
            torch.set_num_threads(threads)
            rtol = 1e-5 if dtype is torch.float32 else 2e-2
            for actual, expected in zip(run(z, labels, mean, grad), single, strict=True):
                torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grad", [0.0, 65536.0])
def test_upstream_gradient_of_any_size(backend, grad, dtype):
    z, labels = make_input(40, 8, 5, dtype)
    z.requires_grad_()
    loss = sslops.sup_con(z, labels, temperature=0.5)
    once = torch.autograd.grad(loss, z, retain_graph=True)[0].double()
    scaled = torch.autograd.grad(loss * grad, z)[0].double()
    atol = grad * (1e-7 if dtype is torch.float16 else 0.0)
    torch.testing.assert_close(scaled, once * grad, rtol=2 * torch.finfo(dtype).eps, atol=atol)


@pytest.mark.parametrize("mean", MEANS)
def test_backward_twice_and_double_backward(backend, mean):
    z, labels = make_input(20, 5, 4)
    z.requires_grad_()
    loss = sslops.sup_con(z, labels, mean=mean)
    (first,) = torch.autograd.grad(loss, z, retain_graph=True)
    (second,) = torch.autograd.grad(loss, z, retain_graph=True)
    assert torch.equal(first, second)
    (grad,) = torch.autograd.grad(loss, z, create_graph=True)
    with pytest.raises(RuntimeError, match="sup_con: double backward is not implemented"):
        grad.sum().backward()


def test_autocast_casts_as_a_matrix_product(backend):
    z, labels = make_input(40, 16, 5)
    z.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = sslops.sup_con(z, labels)
        with torch.autocast("cpu", enabled=False):
            exact = sslops.sup_con(z, labels)
    assert torch.equal(loss, sslops.sup_con(z.bfloat16(), labels))
    assert torch.equal(exact, sslops.sup_con(z, labels))
    loss.backward()
    assert z.grad.dtype is torch.float32


@pytest.mark.parametrize("mean", MEANS)
def test_fullgraph_compile_with_dynamic_shapes(backend, mean):
    torch._dynamo.reset()

    def step(z, labels, temperature):
        return sslops.sup_con(z, labels, temperature=temperature, mean=mean, return_stats=True)

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for M in (6, 11):
        z, labels = make_input(M, 8, 3)
        z.requires_grad_()
        found = []
        for each in (compiled, step):
            temperature = torch.tensor(0.2, requires_grad=True)
            loss, stats = each(z, labels, temperature)
            grads = torch.autograd.grad(loss, (z, temperature))
            found.append((loss.detach(), tuple(stats), grads))
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("permuted", [False, True])
def test_opcheck(inside, dtype, permuted):
    z = torch.randn(5, 8, dtype=dtype).t() if permuted else torch.randn(8, 5, dtype=dtype)
    z, scale = z.detach().requires_grad_(), torch.tensor(3.0, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2])
    torch.library.opcheck(OPS.sup_con_fwd, (z, labels, scale, 2.0, inside, True))
    torch.library.opcheck(OPS.sup_con_fwd, (z, labels, None, 2.0, inside, False))
    plain, args = z.detach(), (None, 2.0, inside, True)
    _, lse, positive_lse = OPS.sup_con_fwd(plain, labels, *args)
    grad = torch.rand(8)
    torch.library.opcheck(OPS.sup_con_bwd, (grad, plain, labels, lse, positive_lse, *args))


def test_gradient_of_strided_input_is_contiguous(backend):
    z, labels = make_input(10, 6, 3)
    leaf = z.t().contiguous().t().requires_grad_()
    (grad,) = torch.autograd.grad(sslops.sup_con(leaf, labels), leaf)
    assert grad.is_contiguous()
    dense = z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(sslops.sup_con(dense, labels), dense)
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-6)


def test_meta_tensors_have_a_shape():
    labels = torch.zeros(8, dtype=torch.int64, device="meta")
    assert sslops.sup_con(torch.randn(8, 4, device="meta"), labels).shape == ()


Z, L = torch.zeros(4, 8), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("z", "labels", "kwargs", "error", "message"),
    [
        ([1.0], L, {}, TypeError, "z must be a tensor, got list"),
        (Z.long(), L, {}, TypeError, "z must be float16.*got torch.int64"),
        (Z, L.float(), {}, TypeError, "labels must be an integer tensor, got torch.float32"),
        (Z, [0, 0, 1, 1], {}, TypeError, "labels must be an integer tensor, got list"),
        (Z, L[:3], {}, ValueError, r"labels must be \[4\], got shape \(3,\)"),
        (Z[None], L[:2], {}, ValueError, r"labels must be \[4\], got shape \(2,\)"),
        (Z, L.to("meta"), {}, ValueError, "labels must be on the device.*meta and cpu"),
        (Z[0], L, {}, ValueError, r"z must be \[M, D\] or \[V, B, D\], got shape \(8,\)"),
        (Z[:1], L[:1], {}, ValueError, r"two rows and one feature, got shape \(1, 8\)"),
        (Z[:, :0], L, {}, ValueError, r"two rows and one feature, got shape \(4, 0\)"),
        (Z, L, {"mean": "both"}, ValueError, "outside or inside, got 'both'"),
        (Z, L, {"temperature": 0.0}, ValueError, "positive and finite, got 0.0"),
        (Z, L, {"temperature": math.inf}, ValueError, "positive and finite, got inf"),
        (Z, L, {"temperature": torch.ones(3)}, ValueError, "temperature must have one element"),
        (Z, L, {"temperature": torch.tensor(1)}, TypeError, "temperature must be float16"),
        (Z, L, {"reduction": "avg"}, ValueError, "none, mean or sum, got 'avg'"),
        (Z, L, {"weights": [1.0]}, TypeError, "weights must be a tensor, got list"),
        (Z, L, {"weights": L}, TypeError, "weights must be float16"),
        (Z, L, {"weights": torch.ones(4, 8)}, ValueError, r"must be \[4\], got shape \(4, 8\)"),
        (Z, L, {"weights": torch.ones(4, device="meta")}, ValueError, "weights must be on the"),
    ],
)
def test_refuses(z, labels, kwargs, error, message):
    with pytest.raises(error, match=message) as caught:
        sslops.sup_con(z, labels, **kwargs)
    assert str(caught.value).startswith("sup_con: ")
