"""ema_update_ on the CPU and in plain PyTorch: numbers, exact ends, rounding, layouts, compile."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sslops
from sslops.reference import ema as reference
from tests.conftest import running
from tests.layouts import LAYOUTS
from tests.numerics import assert_as_accurate_as

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
HALVES = [torch.bfloat16, torch.float16]
PAIRS = list(itertools.product(DTYPES, DTYPES))
SIZES = [(), (1,), (7,), (16,), (33, 5), (3, 1, 129), (40000,)]


def tensors(dtype, sizes=SIZES):
    return [torch.randn(size).to(dtype) for size in sizes]


def bits(tensor):
    return tensor.contiguous().view(
        {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    )


def check_average(targets, sources, momentum, update=sslops.ema_update_):
    """Every result against float64: twice plain PyTorch's error, and rounded only once."""
    pairs = list(zip(targets, sources, strict=True))
    truth = [momentum * t.double() + (1 - momentum) * s.double() for t, s in pairs]
    naive = [t.clone().mul_(momentum).add_(s, alpha=1 - momentum) for t, s in pairs]
    largest = [
        float(torch.cat([t.ravel(), s.ravel(), t.new_zeros(1)]).abs().amax()) for t, s in pairs
    ]
    update(targets, sources, momentum)
    for (ours, s), plain, exact, scale in zip(pairs, naive, truth, largest, strict=True):
        if ours.numel() == 0:
            continue
        assert_as_accurate_as(ours, plain, exact, name=f"{ours.dtype}", scale=scale)
        inside = torch.promote_types(torch.promote_types(ours.dtype, s.dtype), torch.float32)
        if inside is not torch.float64:  # else the truth is no better
            target = torch.finfo(ours.dtype)
            once = 0.5 * target.eps * exact.abs() + target.smallest_normal * target.eps
            bound = once + 4 * torch.finfo(inside).eps * scale
            assert bool(((ours.double() - exact).abs() <= bound).all())


@pytest.mark.every_isa
@pytest.mark.parametrize(("target", "source"), PAIRS, ids=str)
@pytest.mark.parametrize("momentum", [0.999, 0.3])  # each side of a half has its formula
def test_matches_float64(backend, target, source, momentum):
    check_average(tensors(target), tensors(source), momentum)


@pytest.mark.parametrize("momentum", [0.0, 1e-3, 0.5, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_momentum(backend, momentum, dtype):
    check_average(tensors(dtype), tensors(dtype), momentum)


@pytest.mark.parametrize("momentum", [0.0, 0.996, 1.0])
def test_any_mix_in_one_call(backend, momentum):
    targets = [tensors(t, [(n + 1, 3)])[0] for n, (t, _) in enumerate(PAIRS)]
    sources = [tensors(s, [(n + 1, 3)])[0] for n, (_, s) in enumerate(PAIRS)]
    check_average(targets, sources, momentum)


@given(
    sizes=st.lists(st.lists(st.integers(0, 20), max_size=3), min_size=1, max_size=6),
    pair=st.sampled_from(PAIRS),
    layouts=st.tuples(*[st.sampled_from(list(LAYOUTS))] * 2),
    momentum=st.floats(0.0, 1.0),
    seed=st.integers(0, 1000),
)
def test_fuzz(backend_name, sizes, pair, layouts, momentum, seed):
    torch.manual_seed(seed)
    targets, sources = (
        [LAYOUTS[way](each) for each in tensors(dtype, sizes)]
        for way, dtype in zip(layouts, pair, strict=True)
    )
    with running(backend_name):
        check_average(targets, sources, momentum)


def test_matches_a_loop_over_elements(backend):
    t, s = torch.randn(5), torch.randn(5)
    expected = [0.75 * float(a) + 0.25 * float(b) for a, b in zip(t, s, strict=True)]
    sslops.ema_update_([t], [s], 0.75)
    torch.testing.assert_close(t, torch.tensor(expected))


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize(("target", "source"), PAIRS, ids=str)
def test_both_ends_are_exact(backend, target, source, stochastic, as_tensor):
    """Also for values whose difference is no number, negative zeros and NaN with a payload."""
    odd = [float("inf"), -float("inf"), float("nan"), -0.0, 0.0, 3.0, -1e-7, 6e4]
    t = torch.tensor(odd, dtype=target)
    bits(t)[2] |= 3
    s = torch.tensor(odd[::-1], dtype=source)
    before = t.clone()

    def end(value):
        return torch.tensor(value) if as_tensor else value

    sslops.ema_update_([t], [s], end(1.0), stochastic_rounding=stochastic)
    assert torch.equal(bits(t), bits(before))
    sslops.ema_update_([t], [s], end(0.0), stochastic_rounding=stochastic)
    if target is source or not stochastic:
        assert torch.equal(t.isnan(), s.isnan())
        number = ~s.isnan()
        assert torch.equal(bits(t)[number], bits(s.to(target))[number])


@pytest.mark.parametrize("momentum", [0.9, 0.4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_tensors_stay(backend, dtype, momentum):
    """The weights of t and s sum to one exactly: no drift, however many steps."""
    t = torch.randn(100).to(dtype)
    before = t.clone()
    for _ in range(50):
        sslops.ema_update_([t], [before.clone()], momentum)
    assert torch.equal(t, before)


def test_a_momentum_on_the_device(backend):
    t, s = tensors(torch.float32), tensors(torch.bfloat16)
    expected = [each.clone() for each in t]
    sslops.ema_update_(expected, s, 0.99)
    for dtype in (torch.float32, torch.float64):
        ours = [each.clone() for each in t]
        sslops.ema_update_(ours, s, torch.full((1,), 0.99, dtype=dtype))
        torch.testing.assert_close(ours, [e.clone() for e in t], rtol=1, atol=1)
        for a, b, start in zip(ours, expected, t, strict=True):
            torch.testing.assert_close(a - start, b - start, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool], ids=str)
def test_integers_are_copied(backend, dtype):
    t, s = torch.zeros(33, dtype=dtype), torch.arange(33).to(dtype)
    average = torch.zeros(3)
    sslops.ema_update_([t, average], [s, torch.ones(3)], 0.5)
    assert torch.equal(t, s)
    assert torch.equal(average, torch.full((3,), 0.5))


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize(("target", "source"), list(itertools.product(LAYOUTS, LAYOUTS)))
def test_any_strides(backend, target, source, stochastic):
    t, s = torch.randn(4, 6, 5).bfloat16(), torch.randn(4, 6, 5)
    expected = t.clone()
    torch.manual_seed(5)
    sslops.ema_update_([expected], [s], 0.9, stochastic_rounding=stochastic)
    ours, theirs = LAYOUTS[target](t), LAYOUTS[source](s)
    torch.manual_seed(5)
    sslops.ema_update_([ours], [theirs], 0.9, stochastic_rounding=stochastic)
    assert torch.equal(ours, expected)


def test_a_slice_leaves_its_surroundings(backend):
    whole = torch.zeros(10, 10)
    sslops.ema_update_([whole[2:5, 3:7]], [torch.ones(3, 4)], 0.5)
    assert whole.sum() == 0.5 * 12
    assert whole[2:5, 3:7].sum() == 0.5 * 12


@pytest.mark.parametrize("numel", [3, 32768, 100_003])
def test_any_number_of_threads(backend, numel):
    t, s = torch.randn(numel), torch.randn(numel)
    expected = torch.lerp(t, s, 0.25)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            ours = [t.clone(), torch.zeros(5), t.clone()]
            sslops.ema_update_(ours, [s, torch.ones(5), s], 0.75)
            torch.testing.assert_close(ours, [expected, torch.full((5,), 0.25), expected])
    finally:
        torch.set_num_threads(before)


def test_autograd_sees_the_write(backend):
    t = torch.randn(4, requires_grad=True)
    loss = (t * t).sum()
    sslops.ema_update_([t], [torch.zeros(4)], 0.5)
    assert t.requires_grad
    assert t.is_leaf
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.slow
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(backend, requires_grad):
    for target, source in [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float64)]:
        t = [torch.randn(n, 3).to(target).requires_grad_(requires_grad) for n in (2, 4)]
        s = [torch.randn(n, 3).to(source) for n in (2, 4)]
        for momentum, value, seed in [(None, 0.9, -1), (torch.tensor(0.9), 0.0, 3)]:
            for name in ("ema_update_", "ema_update__reference"):
                op = getattr(torch.ops.sslops, name)
                torch.library.opcheck(op, (t, s, momentum, value, seed))


@pytest.mark.slow
def test_fullgraph_compile_with_dynamic_shapes(backend):
    torch._dynamo.reset()

    def step(t, s, tied):
        sslops.ema_update_([t, tied, tied], [s, s, s], 0.9)
        return t * 2

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (3, 8, 21):
        s = torch.randn(n, 2).bfloat16()
        ours = [torch.randn(n, 2, requires_grad=True) for _ in range(2)]
        expected = [each.detach().clone() for each in ours]
        with torch.no_grad():
            out = compiled(*ours[:1], s, ours[1])
        torch.testing.assert_close(out, step(expected[0], s, expected[1]))
        torch.testing.assert_close([each.detach() for each in ours], expected)


@pytest.mark.skipif(not sslops.HAS_EXTENSION, reason="sslops._C is not compiled")
def test_compiled_op_checks_what_would_read_out_of_bounds():
    op = torch.ops.sslops.ema_update_
    with pytest.raises(ValueError, match="as many sources as targets, got 0 and 1"):
        op([torch.zeros(3)], [], None, 0.5, -1)
    with pytest.raises(ValueError, match=r"shape of its target, got \[2\] and \[3\]"):
        op([torch.zeros(3)], [torch.zeros(2)], None, 0.5, -1)
    with pytest.raises(TypeError, match="floating or of one dtype, got Float and Long"):
        op([torch.zeros(3)], [torch.zeros(3, dtype=torch.int64)], None, 0.5, -1)


def test_reference_hash_has_the_documented_bits():
    """One word by hand, in Python integers; and the second word of an element number past 2**32."""
    words = reference.random_words(5, (7 << 32) + 9, 2, torch.device("cpu"))

    def mix(x):
        x = ((x ^ x >> 16) * 0x7FEB352D) % 2**32
        x = ((x ^ x >> 15) * 0x846CA68B) % 2**32
        return x ^ x >> 16

    first = mix((9 + 2 * 0x9E3779B9) % 2**32)
    k0, k1 = mix(first ^ 7), mix((mix(7) + first) % 2**32)
    assert words.tolist() == [mix((mix(n ^ k0) + k1) % 2**32) for n in range(5)]
