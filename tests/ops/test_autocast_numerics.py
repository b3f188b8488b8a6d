"""Autocast to float16 at its limits; what is stored and averaged is not cast."""

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

import sslops
from sslops.ops import _info_nce_op

from .autocast_cases import ENTRIES, B, D, queue, sides_of

FAR = {
    name: entry for name, entry in ENTRIES.items()
    if entry.own and "dot" not in name and "GradCache" not in name
}  # fmt: skip


@pytest.mark.parametrize("factor", [1e6, 1e-6, 1e30, 1e-10])
@pytest.mark.parametrize("name", FAR)
def test_float16_does_not_overflow_where_lengths_do_not_count(name, factor):
    """As in plain PyTorch, whose float32 norms come before the cast."""
    entry = FAR[name]
    near = sides_of(entry, (torch.float32,) * 2)
    far = [(each.detach() * factor).requires_grad_() for each in near]
    with torch.autocast("cpu", torch.float16):
        entry.call(*near).backward()
        loss = entry.call(*far)
    loss.backward()
    exact = [each.detach().double().requires_grad_() for each in far]
    truth = entry.call(*exact)
    truth.backward()
    assert abs(loss - truth) <= 4 * torch.finfo(torch.float16).eps * entry.scale
    for side, other in zip(far, exact, strict=True):
        if other.grad is None:
            continue
        most = float(other.grad.abs().max())
        torch.testing.assert_close(side.grad.double(), other.grad, rtol=0, atol=0.02 * most)


def test_float16_gradients_stand_a_loss_scale():
    """Those of rows with one element, the largest, are no larger than in plain PyTorch."""
    rows = torch.eye(B, D) * 0.51
    x, y = (each.clone().requires_grad_() for each in (rows, rows.roll(1, 0)))
    with torch.autocast("cpu", torch.float16):
        loss = sslops.info_nce(x, y, temperature=0.2)
        logits = F.normalize(x, dim=1) @ F.normalize(y, dim=1).T / 0.2
    (loss * 80_000).backward()
    ours, x.grad = x.grad, None
    (F.cross_entropy(logits.float(), torch.arange(B)) * 80_000).backward()
    torch.testing.assert_close(ours, x.grad, rtol=0.01, atol=0.01 * float(x.grad.abs().max()))


def test_a_row_that_is_not_finite_is_nan():
    q = torch.randn(4, D)
    for bad in (float("inf"), float("nan")):
        q[1, 2] = bad
        with torch.autocast("cpu", torch.float16):
            assert sslops.nt_xent(q).isnan()
            assert sslops.info_nce(q, torch.randn(4, D)).isnan()
    losses = []
    for nothing in (0.0, 1e-20):  # below the least norm of torch.nn.functional.normalize
        q[1] = nothing
        with torch.autocast("cpu", torch.float16):
            losses.append(sslops.nt_xent(q))
    assert losses[0].isfinite()
    assert torch.equal(*losses)


def test_a_queue_is_neither_cast_nor_copied():
    """autocast changes what is stored in no way, and a step copies no negatives."""
    q, k = sides_of(ENTRIES["info_nce"], (torch.bfloat16, torch.float32))
    keys, read = queue(torch.float32), []

    def recorded(name, tensor):
        op = original(name, tensor)
        return lambda *args: read.append(args[2].data_ptr()) or op(*args)

    original = _info_nce_op.op
    with (
        torch.autocast("cpu", torch.bfloat16),
        patch.object(_info_nce_op, "op", recorded),
    ):
        sslops.info_nce(q, k, queue=keys.keys).backward()
        with torch.no_grad():
            sslops.info_nce(q, k, queue=keys.keys)
        keys.enqueue(k)
    assert read == [keys.keys.data_ptr()] * 2
    plain = queue(torch.float32)
    plain.enqueue(k)
    assert torch.equal(keys.keys, plain.keys)
    assert keys.keys.dtype is torch.float32


def test_an_average_is_not_cast():
    target, source = torch.zeros(5), torch.rand(5)
    with torch.autocast("cpu", torch.bfloat16):
        sslops.ema_update_([target], [source], 0.75)
    torch.testing.assert_close(target, 0.25 * source, rtol=1e-6, atol=0)
