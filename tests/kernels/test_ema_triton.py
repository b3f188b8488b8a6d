"""ema_update_'s Triton kernel: numbers on a GPU or in the interpreter, and its tables."""

import itertools

import pytest
import torch

from sslops import _library
from sslops.reference import ema as reference
from tests.layouts import LAYOUTS
from tests.ops.test_ema import bits, check_average

pytest.importorskip("triton.language")
from sslops.kernels import ema as kernels

# the interpreter's words wrap, and it works on lanes that are masked; numpy would warn of each
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")]

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIZES = [(), (0,), (1,), (4096,), (3, 5, 7), (2, 4097)]


def skip_wrong_in_interpreter(device, *dtypes):
    if device == "cpu" and torch.bfloat16 in dtypes:
        pytest.skip("the interpreter rounds bfloat16 wrongly")


def run_both(targets, sources, momentum, value, seed):
    """(targets of the kernel, targets of the reference)."""
    ours, expected = ([t.clone() for t in targets] for _ in range(2))
    kernels.ema_update_(ours, sources, momentum, value, seed)
    reference.ema_update_(expected, sources, momentum, value, seed)
    return ours, expected


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 1e-3, 0.4, 0.5, 0.999, 1.0])
@pytest.mark.parametrize(("target", "source"), list(itertools.product(DTYPES, DTYPES)), ids=str)
def test_matches_float64(target, source, momentum, as_tensor, device):
    skip_wrong_in_interpreter(device, target, source)
    t = [torch.randn(size).to(device, target) for size in SIZES]
    s = [torch.randn(size).to(device, source) for size in SIZES]

    def update(targets, sources, value):
        scalar = torch.tensor(value, device=device) if as_tensor else None
        kernels.ema_update_(targets, sources, scalar, value, -1)

    before = [each.clone() for each in t]
    check_average(t, s, momentum, update)
    if momentum in (0.0, 1.0):
        for ours, start, other in zip(t, before, s, strict=True):
            assert torch.equal(ours, start if momentum else other.to(target))


@pytest.mark.parametrize("seed", [0, 7, (1 << 61) + 12345])
@pytest.mark.parametrize("target", [torch.float16, torch.bfloat16], ids=str)
def test_random_bits_are_the_references(target, seed, device):
    skip_wrong_in_interpreter(device, target)
    s = [torch.cat([torch.randn(999) * 10.0**e for e in range(-9, 5)]), torch.randn(3, 3)]
    s = [each.to(device) for each in s]
    t = [torch.zeros_like(each, dtype=target) for each in s]
    for ours, expected in zip(*run_both(t, s, None, 0.0, seed), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_ends_are_exact_beside_infinity(as_tensor, device):
    odd = [float("inf"), -float("inf"), float("nan"), -0.0, 0.0, 3.0, -1e-7, 6e4]
    t = torch.tensor(odd, dtype=torch.float16, device=device)
    bits(t)[2] |= 3
    s = torch.tensor(odd[::-1], device=device)
    for end in (1.0, 0.0):
        scalar = torch.tensor(end, device=device) if as_tensor else None
        (ours,), (expected,) = run_both([t], [s], scalar, end, -1)
        number = slice(None) if end == 1.0 else ~expected.isnan()
        assert torch.equal(bits(ours)[number], bits(expected)[number])
        assert torch.equal(ours.isnan(), expected.isnan())


def test_a_mix_of_dtypes_strides_and_addresses(device):
    """Groups with and without aligned addresses, integers of every size, strides."""
    flat = torch.randn(101, device=device)
    x = torch.randn(4, 6, 5, device=device)
    targets = [flat[1:50].half(), torch.zeros(5, device=device, dtype=torch.bool)]
    sources = [flat[3:52], torch.ones(5, device=device, dtype=torch.bool)]
    for dtype in (torch.int8, torch.int16, torch.int32, torch.int64):
        targets.append(torch.zeros(4099, device=device).to(dtype))
        sources.append(torch.arange(4099, device=device).to(dtype))
    ours, expected = run_both(targets, sources, None, 0.75, -1)
    torch.testing.assert_close(ours, expected)
    for target, source in itertools.product(LAYOUTS, LAYOUTS):
        for seed in (-1, 5):
            t, u = LAYOUTS[target](x.half()), LAYOUTS[target](x.half())
            s = LAYOUTS[source](x.flip(0))
            kernels.ema_update_([t], [s], None, 0.75, seed)
            reference.ema_update_([u], [s], None, 0.75, seed)
            torch.testing.assert_close(t, u, rtol=2e-3, atol=1e-6)


def test_tables_are_kept_until_an_address_changes(device):
    t, s = [torch.zeros(9000, device=device)], [torch.ones(9000, device=device)]
    kernels._tables.clear()
    kernels.ema_update_(t, s, None, 0.5, -1)
    kernels.ema_update_(t, s, None, 0.5, -1)
    assert len(kernels._tables) == 1
    assert torch.equal(t[0], torch.full_like(t[0], 0.75))
    s[0] = torch.zeros(9000, device=device)
    kernels.ema_update_(t, s, None, 0.5, -1)
    assert len(kernels._tables) == 2
    assert torch.equal(t[0], torch.full_like(t[0], 0.375))
    for n in range(1, kernels.MAX_TABLES + 5):
        kernels.ema_update_([t[0][:n]], [s[0][:n]], None, 0.5, -1)
    assert len(kernels._tables) == kernels.MAX_TABLES


def test_float64_in_a_list_takes_the_reference():
    lists = [torch.ones(2)], [torch.ones(2, dtype=torch.float64)]
    assert _library.gpu_kernel("ema_update_", "ema.ema_update_", False, lists) is None
    lists = [torch.ones(2)], [torch.ones(2)]
    kernel = _library.gpu_kernel("ema_update_", "ema.ema_update_", False, lists)
    assert kernel is kernels.ema_update_


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_in_a_cuda_graph_without_a_host_sync():
    import sslops

    t = [torch.zeros(n, device="cuda") for n in (7, 70000)]
    s = [torch.ones(n, device="cuda") for n in (7, 70000)]
    momentum = torch.tensor(0.5, device="cuda")
    sslops.ema_update_(t, s, momentum)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sslops.ema_update_(t, s, momentum)
    momentum.fill_(0.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        graph.replay()
        version = t[0]._version
        sslops.ema_update_(t, s, momentum)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert t[0]._version > version
    assert all(torch.equal(a, b) for a, b in zip(t, s, strict=True))
