"""enqueue_ on the CPU and in plain PyTorch: numbers, the ring, registration, refusals."""

from collections import deque

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import sslops
from tests.conftest import running
from tests.layouts import LAYOUTS
from tests.numerics import assert_as_accurate_as

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# K, D, B, start: one of each; ragged D; wrap-around; B > K; B = K; twice round; long start
CASES = [
    (1, 1, 1, 0),
    (7, 3, 2, 0),
    (10, 37, 6, 7),
    (5, 16, 13, 4),
    (6, 130, 6, 2),
    (33, 64, 70, 100),
    (300, 600, 257, 10**12 + 5),
]


def expected_queue(queue, start, keys, normalize):
    """One key after another, by Python's own integers; float64."""
    out = queue.double()
    for b, key in enumerate(keys.double()):
        out[(start + b) % len(queue)] = F.normalize(key, dim=0) if normalize else key
    return out


def check(K, D, B, start, normalize, dtype, stored, layout="contiguous"):
    """The queue against float64 and what a user writes, with keys of any layout."""
    keys, queue = (3 * torch.randn(B, D)).to(dtype), torch.randn(K, D).to(stored)
    keys, pointer, before = LAYOUTS[layout](keys), torch.tensor(start), queue.clone()
    truth = expected_queue(queue, start, keys, normalize)
    # what a user writes computes the norm in the keys' dtype
    naive = before.clone()
    newest = keys[max(0, B - K) :]
    slots = (start + torch.arange(max(0, B - K), B)) % K
    naive[slots] = (F.normalize(newest, dim=1) if normalize else newest).to(stored)
    sslops.enqueue_(queue, pointer, keys, normalize=normalize)
    largest = 1.0 if normalize else float(keys.abs().max())
    assert_as_accurate_as(queue, naive, truth, name="queue", scale=largest)
    untouched = torch.ones(K, dtype=torch.bool).index_fill(0, slots, False)
    assert torch.equal(queue[untouched], before[untouched])
    assert pointer.item() == start + B
    if not normalize:
        assert torch.equal(queue, naive)


@pytest.mark.every_isa
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("K", "D", "B", "start"), CASES)
def test_shapes(backend, K, D, B, start, normalize):
    check(K, D, B, start, normalize, torch.float32, torch.float32)


@pytest.mark.every_isa
@pytest.mark.parametrize("stored", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("normalize", [True, False])
def test_dtypes(backend, normalize, dtype, stored):
    """Ragged rows, round the ring."""
    check(10, 37, 6, 7, normalize, dtype, stored)


@given(
    K=st.integers(1, 40),
    D=st.integers(1, 70),
    B=st.integers(1, 90),
    start=st.integers(0, 2**40),
    normalize=st.booleans(),
    dtype=st.sampled_from([*DTYPES, torch.float64]),
    stored=st.sampled_from(DTYPES),
    layout=st.sampled_from(list(LAYOUTS)),
    seed=st.integers(0, 1000),
)
def test_fuzz(backend_name, K, D, B, start, normalize, dtype, stored, layout, seed):
    torch.manual_seed(seed)
    with running(backend_name):
        check(K, D, B, start, normalize, dtype, stored, layout)


@pytest.mark.every_isa
@pytest.mark.parametrize("stored", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_number_is_rounded_as_by_pytorch(backend, dtype, stored):
    """All 65536 numbers of 16 bits; for float32 also what lies between, subnormals and infinity."""
    bits = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    keys = bits.view(torch.bfloat16 if dtype is torch.float32 else dtype).reshape(512, 128)
    if dtype is torch.float32:
        between = bits.view(torch.float16).float().reshape(512, 128)
        steps = [0.0, 2**-11, -(2**-11), 2**-12, 2**-11 + 2**-23]
        keys = torch.cat([keys.float(), *(between * (1 + step) for step in steps)], dim=1)
    queue = torch.zeros(keys.shape, dtype=stored)
    sslops.enqueue_(queue, torch.tensor(0), keys, normalize=False)
    torch.testing.assert_close(queue, keys.to(stored), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_any_strides(backend, dtype):
    dense = torch.randn(9, 20).to(dtype)
    wide = torch.full((9, 60), float("nan"), dtype=dtype)
    wide[:, 1::3] = dense
    rows = torch.full((18, 20), float("nan"), dtype=dtype)
    rows[::2] = dense
    expected = torch.zeros(16, 20)
    sslops.enqueue_(expected, torch.tensor(12), dense)
    for keys in (wide[:, 1::3], rows[::2], dense.T.contiguous().T):
        queue = torch.zeros(16, 20)
        sslops.enqueue_(queue, torch.tensor(12), keys)
        assert torch.equal(queue, expected)
    queue = torch.zeros(16, 20)
    sslops.enqueue_(queue, torch.tensor([2]), dense[:1].expand(30, 20))
    torch.testing.assert_close(queue, expected[12].expand(16, 20), rtol=0, atol=0)


def test_no_keys_change_nothing(backend):
    queue, pointer = torch.randn(4, 3), torch.tensor(6)
    before = queue.clone()
    sslops.enqueue_(queue, pointer, torch.empty(0, 3))
    assert torch.equal(queue, before)
    assert pointer.item() == 6


def test_ids_go_where_their_keys_go(backend):
    queue, pointer = torch.zeros(5, 2), torch.tensor(3)
    queue_ids = torch.full((5,), -1)
    ids = torch.arange(16, dtype=torch.int32)[::2]  # converted, and strided
    keys = ids[:, None] + torch.zeros(8, 2)
    sslops.enqueue_(queue, pointer, keys, normalize=False, ids=ids, queue_ids=queue_ids)
    assert queue_ids.tolist() == [14, 6, 8, 10, 12]  # the newest five, from slot 11 % 5 on
    assert torch.equal(queue[:, 0].long(), queue_ids)
    strided = torch.arange(4)[::2]
    sslops.enqueue_(queue, pointer, keys[:2], ids=strided, queue_ids=queue_ids)
    assert queue_ids.tolist() == [14, 0, 2, 10, 12]


class Model:
    """The K newest as a deque; where they lie is left to the ring."""

    def __init__(self, K):
        self.newest, self.total = deque(maxlen=K), 0

    def enqueue(self, keys, ids):
        self.newest.extend(zip(keys.tolist(), ids.tolist(), strict=True))
        self.total += len(ids)


@given(
    K=st.integers(1, 20),
    D=st.integers(1, 9),
    batches=st.lists(st.integers(0, 45), max_size=12),
    with_ids=st.booleans(),
    layout=st.sampled_from(list(LAYOUTS)),
    seed=st.integers(0, 1000),
)
def test_fuzz_any_sequence_is_a_deque(backend_name, K, D, batches, with_ids, layout, seed):
    torch.manual_seed(seed)
    queue, pointer = torch.zeros(K, D), torch.zeros((), dtype=torch.int64)
    queue_ids, model = torch.full((K,), -1), Model(K)
    for B in batches:
        keys, ids = torch.randn(B, D), torch.arange(model.total, model.total + B)
        extra = {"ids": ids, "queue_ids": queue_ids} if with_ids else {}
        with running(backend_name):
            sslops.enqueue_(queue, pointer, LAYOUTS[layout](keys), normalize=False, **extra)
        model.enqueue(keys, ids)
        assert pointer.item() == model.total
        filled = min(K, model.total)
        oldest = model.total - filled
        slots = [n % K for n in range(oldest, model.total)]
        stored = zip(queue[slots].tolist(), queue_ids[slots].tolist(), strict=True)
        for (key, id_), (expected, expected_id) in zip(stored, model.newest, strict=True):
            assert key == expected
            assert id_ == (expected_id if with_ids else -1)
        assert not queue[filled:].any()


def test_extremes_are_as_in_normalize(backend):
    rows = torch.tensor([0.0, 1e-30, 1e-13, 1e-12, 1.0, 1e18, 1e25, float("inf"), float("nan")])
    keys = rows[:, None] * torch.tensor([[0.6, 0.8, 0.0]])
    keys[-2, 2] = 1.0
    queue = torch.zeros(9, 3)
    sslops.enqueue_(queue, torch.tensor(0), keys)
    expected = F.normalize(keys, dim=1)
    torch.testing.assert_close(queue, expected, rtol=1e-6, atol=0, equal_nan=True)


def test_large_batches_on_several_threads(backend):
    """Beyond the size at which a second thread is used, and round the ring."""
    keys, before = torch.randn(5000, 64), torch.get_num_threads()
    queues = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            queue = torch.zeros(4000, 64)
            sslops.enqueue_(queue, torch.tensor(3900), keys)
            queues.append(queue)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*queues)
    for stored in (torch.float32, torch.bfloat16):  # copied and cast in two long pieces
        queue = torch.zeros(4000, 64, dtype=stored)
        sslops.enqueue_(queue, torch.tensor(3900), keys, normalize=False)
        assert torch.equal(queue.roll(-900, 0), keys[1000:].to(stored))
    torch.testing.assert_close(queues[0].roll(-900, 0), F.normalize(keys[1000:], dim=1))


@pytest.mark.slow
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("with_ids", [False, True])
def test_opcheck(backend, stored, with_ids):
    ids = (torch.full((6,), -1), torch.arange(4)) if with_ids else (None, None)
    args = (torch.zeros(6, 3, dtype=stored), torch.tensor(5), torch.randn(4, 3), *ids, True)
    for op in (torch.ops.sslops.enqueue_, torch.ops.sslops.enqueue__reference):
        torch.library.opcheck(op, args)


@pytest.mark.slow
def test_fullgraph_compile_with_dynamic_shapes(backend):
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def step(queue, pointer, keys, ids, queue_ids):
        before = queue.sum()
        sslops.enqueue_(queue, pointer, keys, ids=ids, queue_ids=queue_ids)
        return before, queue.sum()

    ours, theirs = ([torch.zeros(9, 4), torch.tensor(0), torch.full((9,), -1)] for _ in range(2))
    for B in (2, 5, 20):
        keys, ids = torch.randn(B, 4, requires_grad=True), torch.arange(B)
        step(ours[0], ours[1], keys, ids, ours[2])
        sslops.enqueue_(*theirs[:2], keys, ids=ids, queue_ids=theirs[2])
        for actual, expected in zip(ours, theirs, strict=True):
            assert torch.equal(actual, expected)


def test_autograd_sees_that_the_queue_changed(backend):
    queue, queue_ids = torch.randn(6, 3), torch.zeros(6, dtype=torch.int64)
    pointer = torch.tensor(0)
    queries = torch.randn(2, 3, requires_grad=True)
    plain = (queries @ queue.T).logsumexp(1).sum()
    fused = sslops.info_nce(queries, queries.detach(), queue=queue, reduction="sum")
    untouched = queue.clone()
    versions = [t._version for t in (queue, pointer, queue_ids)]
    keys = torch.randn(6, 3, requires_grad=True)
    sslops.enqueue_(queue, pointer, keys, ids=torch.arange(6), queue_ids=queue_ids)
    assert all(t._version > v for t, v in zip((queue, pointer, queue_ids), versions, strict=True))
    assert not queue.requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        plain.backward()
    (grad,) = torch.autograd.grad(fused, queries)
    again = sslops.info_nce(queries, queries.detach(), queue=untouched, reduction="sum")
    torch.testing.assert_close(grad, torch.autograd.grad(again, queries)[0], rtol=0, atol=0)


def test_inference_tensors(backend):
    with torch.inference_mode():
        queue, pointer = torch.zeros(4, 2), torch.tensor(0)
        sslops.enqueue_(queue, pointer, torch.ones(3, 2))
        assert pointer.item() == 3


QUEUE, POINTER, KEYS = torch.zeros(4, 8), torch.tensor(3), torch.ones(2, 8)
IDS, QUEUE_IDS = torch.arange(2), torch.full((4,), -1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"queue": [0.0]}, TypeError, "queue must be a tensor, got list"),
        ({"queue": QUEUE.int()}, TypeError, "queue must be float16.* got torch.int32"),
        ({"queue": QUEUE[0]}, ValueError, r"\[K, D\] with K, D >= 1 .* got shape \(8,\)"),
        ({"queue": QUEUE[:0]}, ValueError, r"got shape \(0, 8\)"),
        ({"queue": torch.zeros(8, 4).T}, ValueError, r"contiguous, .* strides \(1, 4\)"),
        (
            {"queue": torch.zeros(4, 8, requires_grad=True)},
            ValueError,
            "queue must not require grad",
        ),
        ({"pointer": 3}, TypeError, "pointer must be an int64 tensor, got int"),
        ({"pointer": POINTER.int()}, TypeError, "pointer must be an int64 tensor, got torch.int32"),
        ({"pointer": torch.zeros(2).long()}, ValueError, r"one element, got shape \(2,\)"),
        ({"pointer": POINTER.to("meta")}, ValueError, "pointer must be on .*, got meta and cpu"),
        ({"keys": [[1.0]]}, TypeError, "keys must be a tensor, got list"),
        ({"keys": KEYS.long()}, TypeError, "keys must be float16.* got torch.int64"),
        ({"keys": KEYS[0]}, ValueError, r"keys must be \[B, 8\], got shape \(8,\)"),
        ({"keys": KEYS[:, :7]}, ValueError, r"keys must be \[B, 8\], got shape \(2, 7\)"),
        ({"keys": KEYS.to("meta")}, ValueError, "keys must be on .*, got meta and cpu"),
        ({"keys": QUEUE[:2]}, ValueError, "keys must not be in the memory of queue"),
        ({"ids": IDS}, ValueError, "ids and queue_ids go together"),
        ({"queue_ids": QUEUE_IDS}, ValueError, "ids and queue_ids go together"),
        (
            {"ids": IDS.float(), "queue_ids": QUEUE_IDS},
            TypeError,
            "ids must be an integer tensor, got torch.float32",
        ),
        (
            {"ids": torch.arange(3), "queue_ids": QUEUE_IDS},
            ValueError,
            r"ids must be \[2\], got shape \(3,\)",
        ),
        (
            {"ids": IDS, "queue_ids": QUEUE_IDS[:3]},
            ValueError,
            r"queue_ids must be \[4\], got shape \(3,\)",
        ),
        (
            {"ids": IDS, "queue_ids": QUEUE_IDS.int()},
            ValueError,
            "queue_ids must be int64 and contiguous, got torch.int32",
        ),
        (
            {"ids": IDS, "queue_ids": torch.full((8,), -1)[::2]},
            ValueError,
            r"int64 and contiguous, got torch.int64 with strides \(2,\)",
        ),
    ],
)
def test_refuses_and_leaves_everything_as_it_was(backend, change, error, message):
    args = {"queue": QUEUE, "pointer": POINTER, "keys": KEYS} | change
    with pytest.raises(error, match=message) as caught:
        sslops.enqueue_(**args)
    assert str(caught.value).startswith("enqueue_: ")
    assert not QUEUE.any()
    assert POINTER.item() == 3
    assert bool((QUEUE_IDS == -1).all())
