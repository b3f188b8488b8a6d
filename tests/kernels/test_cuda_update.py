"""The CUDA kernels that write in place: moving average and ring buffer."""

import pytest
import torch

from tests.numerics import assert_as_accurate_as

from ._cuda import PLACES, running_cuda

pytestmark = pytest.mark.slow

ema = pytest.importorskip("sslops.reference.ema", reason="ema_update_ is not there")
queue = pytest.importorskip("sslops.reference.queue", reason="enqueue_ is not there")
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SEEDS = [-1, 0, (1 << 62) - 12345]


@pytest.fixture(scope="module", autouse=True, params=PLACES)
def _place(request):
    with running_cuda(request.param):
        yield


def tensors(make):
    """Pairs of every two dtypes; sizes around a group of four, a block and a chunk."""
    targets, sources = [], []
    for t in FLOATS:
        for s in FLOATS:
            for n in (1, 6, 130, 33000 if t is not s else 3):
                targets.append(make(n).to(t))
                sources.append(make(n).to(s))
    return targets, sources


def integers(n):
    return torch.randint(-64, 64, (n,)) / 8.0


def update(targets, sources, momentum, seed):
    """(what the kernel made of the targets, what the reference did)"""
    expected = [each.clone() for each in targets]
    tensor, value = None, momentum
    if isinstance(momentum, torch.Tensor):
        tensor, value = momentum.to(targets[0].device), 1.0
    ema.ema_update_(expected, sources, tensor, value, seed)
    torch.ops.sslops.ema_update__cuda(targets, sources, tensor, value, seed)
    return targets, expected


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.75, torch.tensor(0.25), torch.tensor(0.0)])
def test_every_bit_where_the_average_is_exact(momentum, seed):
    found, expected = update(*tensors(integers), momentum, seed)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("momentum", [0.996, 0.3, torch.tensor(0.996), torch.tensor(0.1)])
def test_average_to_a_unit_in_the_last_place(momentum):
    targets, sources = tensors(torch.randn)
    largest = max(float(each.abs().max()) for each in [*targets, *sources])
    found, expected = update(targets, sources, momentum, -1)
    for a, b in zip(found, expected, strict=True):
        eps = max(torch.finfo(a.dtype).eps, torch.finfo(torch.float32).eps)
        assert (a.double() - b.double()).abs().max() <= eps * largest


def test_stochastic_rounding_is_that_of_the_reference():
    """The same noise: but where the average itself differs in its last bit, the same bits."""
    for dtype in (torch.bfloat16, torch.float16):
        t = torch.randn(20000).mul(10.0 ** torch.randint(-7, 4, (20000,))).to(dtype)
        (found,), (expected,) = update([t], [torch.randn(20000)], 0.99, 7)
        assert (found == expected).double().mean() > 0.999


def test_one_leaves_every_bit():
    t = torch.tensor([float("nan"), -0.0, 1.0]).to(torch.bfloat16)
    before = t.view(torch.int16).clone()
    update([t], [torch.randn(3)], torch.tensor(1.0), -1)
    assert torch.equal(t.view(torch.int16), before)


@pytest.mark.parametrize("seed", SEEDS)
def test_strides_integers_and_nothing(seed):
    pairs = [
        (torch.rand(3, 5).t(), torch.rand(3, 5).t()),
        (torch.rand(3, 5).t().half(), torch.rand(5, 3)),
        (torch.rand(4, 6)[:, ::2], torch.rand(4, 3)),
        (torch.zeros(0), torch.zeros(0)),
        (torch.tensor(3), torch.tensor(4)),
        (torch.arange(70000), torch.arange(70000) + 1),
        (torch.tensor([True, False, True]), torch.tensor([False, False, True])),
        (torch.rand(9)[1:], torch.rand(9)[1:]),  # not aligned to four
    ]
    targets, sources = ([pair[n] for pair in pairs] for n in (0, 1))
    found, expected = update(targets, sources, 0.75, seed)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6 if a.dtype is torch.float32 else 1e-3, atol=0)


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "every other": lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("seed", SEEDS[:2])
@pytest.mark.parametrize("source", LAYOUTS)
@pytest.mark.parametrize("target", [name for name in LAYOUTS if name != "expanded"])
def test_copies_live_until_the_kernel_has_read_them(target, source, seed):
    """More pairs than one launch takes, so that copies are made while others wait."""
    shapes = [(2, 3 + n % 5, 4, 5) for n in range(90)]
    targets = [LAYOUTS[target](torch.rand(shape)) for shape in shapes]
    sources = [LAYOUTS[source](torch.rand(shape)) for shape in shapes]
    found, expected = update(targets, sources, 0.75, seed)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", FLOATS[:3], ids=str)
@pytest.mark.parametrize("keys_dtype", FLOATS[:3], ids=str)
@pytest.mark.parametrize(("K", "B"), [(5, 0), (1, 1), (5, 3), (5, 5), (5, 12), (40, 37)])
def test_enqueue(K, B, keys_dtype, dtype, normalize):
    ring, ids = torch.randn(K, 37).to(dtype), torch.arange(K)
    pointer = torch.tensor([2**40 + 3])
    keys = torch.randn(B, 40).to(keys_dtype)[:, :37]
    new_ids = torch.arange(100, 100 + 2 * B)[::2]
    expected = [each.clone() for each in (ring, pointer, ids)]
    truth = ring.double()
    queue.enqueue_(truth, pointer.clone(), keys.double(), None, None, normalize)
    queue.enqueue_(*expected[:2], keys, expected[2], new_ids, normalize)
    torch.ops.sslops.enqueue__cuda(ring, pointer, keys, ids, new_ids, normalize)
    assert torch.equal(pointer, expected[1])
    assert torch.equal(ids, expected[2])
    if normalize:
        assert_as_accurate_as(ring, expected[0], truth, name="queue", scale=1.0)
    else:
        assert torch.equal(ring, expected[0])


def test_enqueue_without_ids_and_a_row_of_zeros():
    ring, pointer = torch.ones(3, 4), torch.tensor(2)
    torch.ops.sslops.enqueue__cuda(ring, pointer, torch.zeros(2, 4), None, None, True)
    assert ring.tolist() == [[0.0] * 4, [1.0] * 4, [0.0] * 4]
    assert int(pointer) == 4
