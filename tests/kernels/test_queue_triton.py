"""enqueue_'s Triton kernel: numbers on a GPU or in the interpreter, and the op's dispatch."""

import pytest
import torch

from sslops import _library

pytest.importorskip("triton")
from sslops.kernels import queue as kernels
from sslops.reference import queue as reference
from tests.numerics import assert_same_in_another_order

# The interpreter works on padding; numpy would warn of each.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")]

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# K, D, B, start: smallest; ragged everything and a wrap-around; B > K; wider than one sweep
CASES = [(1, 1, 1, 0), (40, 37, 23, 30), (5, 16, 23, 7), (9, 1100, 5, 10**12 + 3)]


def tensors(K, D, B, start, dtype, stored, device):
    """(queue, pointer, keys, queue_ids, ids) on `device`."""
    keys = (3 * torch.randn(B, D)).to(device, dtype)
    queue = torch.randn(K, D).to(device, stored)
    ids = torch.arange(B, device=device)
    return (
        queue,
        torch.tensor(start, device=device),
        keys,
        torch.full_like(queue[:, 0], -1).long(),
        ids,
    )


@pytest.mark.parametrize("stored", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("K", "D", "B", "start"), CASES)
def test_matches_the_reference(K, D, B, start, normalize, dtype, stored, device):
    if device == "cpu" and torch.bfloat16 in (dtype, stored):
        pytest.skip("Triton's interpreter computes bfloat16 as if it were uint16")
    ours = tensors(K, D, B, start, dtype, stored, device)
    theirs = [t.clone() for t in ours]
    kernels.enqueue_(*ours, normalize)
    reference.enqueue_(*theirs, normalize)
    one = torch.finfo(stored).eps  # a row rounded to the other side
    torch.testing.assert_close(ours[0], theirs[0], rtol=one if normalize else 0, atol=1e-7)
    assert torch.equal(ours[1], theirs[1])
    assert torch.equal(ours[3], theirs[3])


def test_without_ids_and_with_any_strides(device):
    queue, pointer, keys, _, _ = tensors(16, 20, 9, 12, torch.float32, torch.float32, device)
    wide = torch.full((9, 60), float("nan"), device=device)
    wide[:, 1::3] = keys
    expected = queue.clone()
    kernels.enqueue_(expected, pointer.clone(), keys, None, None, True)
    for view in (wide[:, 1::3], keys.T.contiguous().T):
        ours = queue.clone()
        kernels.enqueue_(ours, pointer.clone(), view, None, None, True)
        assert_same_in_another_order(ours, expected)


def test_extremes_are_as_in_normalize(device):
    rows = torch.tensor([0.0, 1e-13, 1.0, 1e25, float("nan"), float("inf")], device=device)
    keys = rows[:, None] * torch.tensor([0.6, 0.8], device=device)
    queue = torch.zeros(6, 2, device=device)
    kernels.enqueue_(
        queue, torch.zeros((), dtype=torch.int64, device=device), keys, None, None, True
    )
    expected = torch.nn.functional.normalize(keys, dim=1)
    torch.testing.assert_close(queue, expected, rtol=1e-6, atol=0, equal_nan=True)


def test_no_keys_launch_nothing(device):
    queue, pointer, keys, queue_ids, ids = tensors(4, 3, 0, 6, torch.float32, torch.float32, device)
    before = queue.clone()
    kernels.enqueue_(queue, pointer, keys, queue_ids, ids, True)
    assert torch.equal(queue, before)
    assert pointer.item() == 6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.gpu
def test_captures_into_a_cuda_graph():
    """Each replay goes on where the last one stopped."""
    args = tensors(100, 64, 30, 0, torch.bfloat16, torch.bfloat16, "cuda")
    theirs = [t.clone() for t in args]
    kernels.enqueue_(*[t.clone() for t in args], True)  # compiles, which a capture cannot
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernels.enqueue_(*args, True)
    for _ in range(5):
        args[2].normal_()
        theirs[2].copy_(args[2])
        graph.replay()
        reference.enqueue_(*theirs, True)
    torch.testing.assert_close(args[0], theirs[0], rtol=2**-7, atol=1e-7)
    assert args[1].item() == 150


def test_cuda_runs_triton_but_for_float64():
    assert torch._C._dispatch_has_kernel_for_dispatch_key("sslops::enqueue_", "CUDA")
    queue, pointer, keys = torch.zeros(4, 2), torch.tensor(0), torch.zeros(1, 2)
    for args, expected in (
        ((queue, pointer, keys), kernels.enqueue_),
        ((queue.double(), pointer, keys), None),
        ((queue, pointer, keys.double()), None),
    ):
        found = _library.gpu_kernel("enqueue_", "queue.enqueue_", True, (*args, None, None, True))
        assert found is expected


@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize("stored", [torch.float32, torch.float64], ids=str)
def test_what_a_gpu_would_call(stored, with_ids, device):
    """The kernel registered for CUDA, on tensors of any device: the write must not go unnoticed."""
    queue, pointer, keys, queue_ids, ids = tensors(6, 4, 4, 3, torch.float32, stored, device)
    args = [queue, pointer, keys, *((queue_ids, ids) if with_ids else (None, None))]
    theirs = [None if t is None else t.clone() for t in args]
    versions = [t._version for t in (queue, pointer, queue_ids)]
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    torch.ops.sslops.enqueue_.default.redispatch(cuda, *args, True)
    reference.enqueue_(*theirs, True)
    torch.testing.assert_close(queue, theirs[0], rtol=1e-6, atol=1e-7)
    assert torch.equal(pointer, theirs[1])
    changed = [t._version > v for t, v in zip((queue, pointer, queue_ids), versions, strict=True)]
    assert changed == [True, True, with_ids]
