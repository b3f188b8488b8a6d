"""Stochastic rounding of ema_update_: unbiased, repeatable, the same bits in every back end."""

import pytest
import torch

import sslops
from sslops.reference import ema as reference

HALVES = [torch.bfloat16, torch.float16]


def rounded(x, dtype, seed=None, momentum=0.0):
    """`x` float32, rounded at random: with momentum 0 that is all the op does."""
    if seed is not None:
        torch.manual_seed(seed)
    target = torch.zeros(x.shape, dtype=dtype)
    sslops.ema_update_([target], [x], momentum, stochastic_rounding=True)
    return target


def neighbours(x, dtype):
    """The two values of `dtype` around each x, in float64."""
    near = x.to(dtype)
    step = near.view(torch.int16)
    away = near.abs().double() < x.abs().double()
    other = (step + torch.where(away, 1, -1).to(torch.int16)).view(dtype)
    pair = torch.stack([near.double(), other.double()])
    return pair.amin(0), pair.amax(0)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    "value", [1.0010, -1.0001, 3.14159e-3, 123.456, 7.3e-6, -4.1e-7, 3e-8, 6.0975e-5]
)
def test_up_and_down_with_the_probability_of_nearness(backend, dtype, value):
    """The float16 values below 6.1e-5 are subnormal there."""
    n = 200_000
    x = torch.full((n,), value)
    low, high = neighbours(x[:1], dtype)
    out = rounded(x, dtype, seed=1).double()
    assert bool(((out == low) | (out == high)).all())
    p = float((x[0].double() - low) / (high - low))
    share = float((out == high).double().mean())
    # 5 standard deviations of a share of n draws
    assert abs(share - p) <= 5 * (max(p * (1 - p), 1 / n) / n) ** 0.5, (share, p)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_what_fits_is_not_changed(backend, dtype):
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    out = rounded(every.float(), dtype)
    number = ~every.isnan()
    assert torch.equal(out.view(torch.int16)[number], every.view(torch.int16)[number])
    assert out[~number].isnan().all()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_rounding_to_nearest_is_pytorchs(backend, dtype):
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype).float()
    between = torch.cat([(every[1:] + every[:-1]) / 2, every * 1.0001, every * 0.9999])
    x = between[between.isfinite()].contiguous()
    out = torch.full(x.shape, 9.0, dtype=dtype)
    sslops.ema_update_([out], [x], 0.0)
    assert torch.equal(out, x.to(dtype))
    assert torch.equal(out.signbit(), x.signbit())


@pytest.mark.every_isa
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_backend_has_the_bits_of_the_reference(backend, dtype):
    x = torch.cat([torch.randn(5000) * 10.0**e for e in range(-9, 5)])
    sources = [x[:77], x, torch.randn(20, 3)]
    targets = [torch.zeros(s.shape, dtype=dtype) for s in sources]
    torch.manual_seed(3)
    sslops.ema_update_(targets, sources, 0.0, stochastic_rounding=True)
    torch.manual_seed(3)
    seed = int(torch.randint(1 << 62, ()))
    for index, (t, s) in enumerate(zip(targets, sources, strict=True)):
        assert torch.equal(t, reference.round_stochastically(s, dtype, seed, index))


def test_a_seed_repeats_and_draws_differ(backend):
    x = torch.rand(2, 4000)
    first = rounded(x, torch.bfloat16, seed=1)
    assert torch.equal(rounded(x, torch.bfloat16, seed=1), first)
    assert not torch.equal(rounded(x, torch.bfloat16), first)
    a, b = torch.zeros(2, 4000, dtype=torch.bfloat16)  # two tensors of one call
    sslops.ema_update_([a, b], [x[0], x[0].clone()], 0.0, stochastic_rounding=True)
    assert not torch.equal(a, b)


def test_neighbouring_elements_and_calls_are_independent(backend):
    """The rounding errors of neighbours, tensors and calls are uncorrelated."""
    n = 100_000
    x = torch.full((n,), 1.0 + 2.0**-8)  # half way
    ups = []
    for _ in range(4):
        pair = torch.zeros(2, n, dtype=torch.bfloat16)
        sslops.ema_update_([*pair], [x, x], 0.0, stochastic_rounding=True)
        ups += [*((pair > 1.0).double() - 0.5)]
    for k, up in enumerate(ups):
        for lag in (1, 2, 3, 4, 8, 16, 32, 64, 256, 4096):
            assert abs(float((up[lag:] * up[:-lag]).mean())) < 5 * 0.25 / n**0.5
        for other in ups[:k]:
            assert abs(float((up * other).mean())) < 5 * 0.25 / n**0.5


def test_a_bfloat16_average_arrives(backend):
    """Rounding to nearest stops far away; at random the average reaches the source."""
    start, goal, steps = 1.0, 2.0, 400
    goals = torch.full((20_000,), goal, dtype=torch.bfloat16)
    stuck = torch.full((20_000,), start, dtype=torch.bfloat16)
    moving = stuck.clone()
    for _ in range(steps):
        sslops.ema_update_([stuck], [goals], 0.999)
        sslops.ema_update_([moving], [goals], 0.999, stochastic_rounding=True)
    assert torch.equal(stuck, torch.full_like(stuck, start))
    expected = goal - (goal - start) * 0.999**steps
    spread = (steps * 2.0**-7 * 0.001) ** 0.5  # of one element
    assert abs(float(moving.double().mean()) - expected) < 5 * spread / 20_000**0.5
