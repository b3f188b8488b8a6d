"""Pitfall 17: offsets beyond 32 bits, in files that have holes instead of memory."""

import importlib

import pytest
import torch
import torch.nn.functional as F

import sslops
from sslops._info_nce_args import InfoNCEArgs

D = 24
SLOTS = 2**24 + 8  # of 128 features: the last slots begin beyond 2**31


@pytest.fixture
def sparse(tmp_path):
    """A function of (elements, dtype): memory that exists where it is written."""

    def make(size, dtype):
        file = tmp_path / str(len(list(tmp_path.iterdir())))
        try:
            return torch.from_file(str(file), True, size, dtype=dtype)
        except (RuntimeError, OSError):
            pytest.skip("no file of this size can be mapped here")

    return make


def rows_apart(sparse, M, apart, dtype, D=D):
    """Random rows [M, D] that begin `apart` elements from each other."""
    z = sparse((M - 1) * apart + D, dtype).as_strided((M, D), (apart, 1))
    return z.copy_(torch.randn(M, D))


def test_losses(backend, sparse):
    z = rows_apart(sparse, 3, 2**31 + 64, torch.bfloat16)
    dense = z.clone()
    other = torch.randn(3, D).bfloat16()
    queue = F.normalize(torch.randn(3, D), dim=1).bfloat16()
    for call in (
        lambda z: sslops.info_nce(z, other, temperature=0.1),
        lambda z: sslops.info_nce(other, z, temperature=0.1),
        lambda z: sslops.info_nce(other, queue, queue=z, temperature=0.1),
        lambda z: sslops.clip_loss(other, z, 10.0),
        lambda z: sslops.sup_con(z, torch.tensor([0, 0, 1])),
        lambda z: sslops.sigmoid_loss(z, other, 10.0),
        lambda z: sslops.nt_xent(z, num_views=3),
    ):
        assert torch.equal(call(z), call(dense))
    large = torch.empty(2**20, 4096, device="meta", requires_grad=True)
    sslops.info_nce(large, large.detach()).backward()
    assert large.grad.shape == large.shape


def test_averages(backend, sparse):
    """Not of so many elements, as each of them would be written."""
    z = rows_apart(sparse, 3, 2**31 + 64, torch.bfloat16)
    dense, goal = z.clone(), torch.randn(3, D)
    for targets in ([z], [dense]):
        sslops.ema_update_(targets, [goal], 0.9)
    assert torch.equal(z, dense)
    sslops.ema_update_([goal], [z], 0.0)
    assert torch.equal(goal, dense.float())


def check_queue(enqueue, sparse, dtype):
    """Four keys: two in the last slots, two in the first; the others stay zero."""
    keys = torch.randn(4, 128).to(dtype)
    queue, pointer = sparse(SLOTS * 128, dtype).view(SLOTS, 128), torch.tensor(7 * SLOTS - 2)
    enqueue(queue, pointer, keys)
    assert torch.equal(queue[[-2, -1, 0, 1]], keys)
    for slot in (2, SLOTS // 2, SLOTS - 3):
        assert not queue[slot].any()


def test_slots(backend, sparse):
    def enqueue(*args):
        sslops.enqueue_(*args, normalize=False)

    check_queue(enqueue, sparse, torch.bfloat16)


@pytest.fixture
def interpreted(monkeypatch):
    """Of a name, the module of Triton kernels, run on the memory itself."""
    if torch.cuda.is_available():
        pytest.skip("a GPU cannot map a file")
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    # which would copy every storage onto itself, holes and all
    monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)
    return lambda name: importlib.import_module(f"sslops.kernels.{name}")


# strides below 2**31 as a larger one would make the interpreter count in 64 bits by itself
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
def test_rows_of_triton(interpreted, sparse):
    """Those of both passes of NT-Xent; of InfoNCE queries, keys, and a queue that is not dense."""
    z = rows_apart(sparse, 4, 2**30 + 64, torch.float16)
    queue = rows_apart(sparse, 200, 2**24 - 64, torch.float16)
    nt_xent, info_nce = map(interpreted, ("nt_xent", "info_nce"))
    found = []
    for rows, negatives in ((z, queue), (z.clone(), queue.clone())):
        args = (None, 2.0, 2, True)
        loss, lse, hit = nt_xent.nt_xent_fwd(rows, *args, True)
        back = nt_xent.nt_xent_bwd(torch.ones(4), rows, lse, *args)
        single = info_nce.info_nce_fwd(
            *InfoNCEArgs(rows, rows, negatives, scale_factor=2.0, stats=True, plan="frozen_keys")
        )
        found.append((loss, lse, hit, *back, *single))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_slots_of_triton(interpreted, sparse):
    kernels = interpreted("queue")

    def enqueue(queue, pointer, keys):
        apart = rows_apart(sparse, 4, 2**30 + 64, torch.float16, 128).copy_(keys)
        kernels.enqueue_(queue, pointer, apart, None, None, False)

    check_queue(enqueue, sparse, torch.float16)
