"""What losses save for their gradient: never M x N numbers that nobody reads."""

from contextlib import ExitStack
from unittest.mock import patch

import pytest
import torch

import sslops
from sslops import _library

M, D = 96, 24  # M x M numbers are just twice those of both sides: where similarities may be kept
LABELS = torch.arange(M) % 7
HALF = LABELS[: M // 2]


def leaf(*shape, dtype, grad=True):
    return torch.randn(*shape, dtype=dtype).requires_grad_(grad)


def pair(call, *, frozen=False):
    return lambda dtype: call(leaf(M, D, dtype=dtype), leaf(M, D, dtype=dtype, grad=not frozen))


def views(call):
    return lambda dtype: call(leaf(2, M // 2, D, dtype=dtype))


def sequences(negatives):
    # 96 rows of 2 steps among 2 x 26 positions
    return lambda dtype: sslops.cpc_loss(
        leaf(2, 2, 26, D, dtype=dtype), leaf(2, 26, D, dtype=dtype), negatives=negatives
    )


def queue(call):
    return lambda dtype: call(
        leaf(M, D, dtype=dtype), leaf(M, D, dtype=dtype, grad=False), torch.randn(3 * M, D)
    )


SCALE = torch.tensor(5.0, requires_grad=True)
# name -> the loss of fresh leaves
LOSSES = {
    "info_nce": pair(lambda q, k: sslops.info_nce(q, k)),
    "info_nce none": pair(lambda q, k: sslops.info_nce(q, k, reduction="none").sum()),
    "info_nce symmetric": pair(lambda q, k: sslops.info_nce(q, k, symmetric=True)),
    "info_nce ids": pair(lambda q, k: sslops.info_nce(q, k, query_ids=LABELS, key_ids=LABELS)),
    "info_nce frozen keys": pair(lambda q, k: sslops.info_nce(q, k), frozen=True),
    "info_nce frozen queries": pair(lambda q, k: sslops.info_nce(k, q), frozen=True),
    "info_nce queue": queue(lambda q, k, queue: sslops.info_nce(q, k, queue=queue)),
    "clip_loss": pair(lambda q, k: sslops.clip_loss(q, k, SCALE)),
    "clip_loss none": pair(lambda q, k: sslops.clip_loss(q, k, 5.0, reduction="none").sum()),
    "clip_loss frozen": pair(lambda q, k: sslops.clip_loss(q, k, 5.0), frozen=True),
    "clip_loss smoothing": pair(lambda q, k: sslops.clip_loss(q, k, 5.0, label_smoothing=0.1)),
    "clip_loss scale alone": pair(lambda q, k: sslops.clip_loss(q.detach(), k, SCALE), frozen=True),
    "sigmoid_loss": pair(lambda q, k: sslops.sigmoid_loss(q, k, SCALE, -5.0)),
    "nt_xent": views(lambda z: sslops.nt_xent(z)),
    "nt_xent ids": views(lambda z: sslops.nt_xent(z, ids=HALF)),
    "nt_xent ids none": views(lambda z: sslops.nt_xent(z, ids=HALF, reduction="none").sum()),
    "sup_con": views(lambda z: sslops.sup_con(z, HALF)),
    "sup_con inside": views(lambda z: sslops.sup_con(z, HALF, mean="inside")),
    "cpc_loss": sequences("all"),
    "cpc_loss sequence": sequences("sequence"),
    "cpc_loss sampled": sequences(40),
}
# name -> (dtype, what is changed): no compiled kernel in any of them
WITHOUT = {
    "reference": (torch.float32, lambda: sslops.use_backend("reference")),
    "reference in bfloat16": (torch.bfloat16, lambda: sslops.use_backend("reference")),
    "float64": (torch.float64, lambda: patch.object(_library, "_has_extension", True)),
    "no extension": (torch.float32, lambda: patch.object(_library, "_has_extension", False)),
    "no extension in float16": (
        torch.float16, lambda: patch.object(_library, "_has_extension", False)
    ),
}  # fmt: skip


def saved_numbers(call):
    """(the loss, numbers of each tensor that its graph keeps)."""
    sizes = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = call()
    return loss, list(sizes.values())


@pytest.mark.parametrize("setting", WITHOUT)
@pytest.mark.parametrize("name", LOSSES)
def test_without_compiled_kernels_no_similarities_are_kept(name, setting):
    dtype, change = WITHOUT[setting]
    with ExitStack() as stack:
        stack.enter_context(change())
        loss, sizes = saved_numbers(lambda: LOSSES[name](dtype))
    # sides, their unit rows and their gradients at most, and some vectors
    assert max(sizes) <= 3 * M * D, name  # the queue
    assert M * M not in sizes, name
    assert sum(sizes) <= 4 * 2 * M * D + 20 * M, name
    loss.backward()
    SCALE.grad = None


@pytest.mark.parametrize("setting", WITHOUT)
def test_a_pair_of_sides_saves_them_alone(setting):
    """Neither similarities nor gradients, where both would save no time."""
    dtype, change = WITHOUT[setting]
    with ExitStack() as stack:
        stack.enter_context(change())
        for name in ("info_nce", "info_nce none", "clip_loss", "clip_loss none", "nt_xent ids"):
            _, sizes = saved_numbers(lambda name=name: LOSSES[name](dtype))
            assert sum(sizes) <= 2 * M * D + 10 * M, name


@pytest.mark.skipif(not sslops.HAS_EXTENSION, reason="sslops._C is not compiled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_compiled_kernels_keep_similarities_where_they_read_them(dtype):
    kept = {
        "info_nce none", "clip_loss none", "clip_loss frozen", "clip_loss scale alone",
        "nt_xent ids none",
    }  # fmt: skip
    for name in LOSSES:
        _, sizes = saved_numbers(lambda name=name: LOSSES[name](dtype))
        assert (M * M in sizes) == (name in kept), name
    with sslops.use_backend("cpp"):
        _, sizes = saved_numbers(lambda: LOSSES["clip_loss none"](dtype))
        assert M * M in sizes


def test_the_choice_is_the_same_when_compiled():
    torch._dynamo.reset()

    def step(q, k):
        return sslops.clip_loss(q, k, 5.0, reduction="none").sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for dtype in (torch.float32, torch.float64):
        q, k = leaf(M, D, dtype=dtype), leaf(M, D, dtype=dtype)
        _, sizes = saved_numbers(lambda q=q, k=k: compiled(q, k))
        wanted = sslops.HAS_EXTENSION and dtype is torch.float32
        assert (M * M in sizes) == wanted
    torch._dynamo.reset()
