"""KeyQueue: state, ages, several processes; queues out of other projects' checkpoints."""

import copy
import io

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

import sslops
from sslops import KeyQueue, load_queue
from tests.processes import spawn


def test_starts_as_mocos_queue():
    queue = KeyQueue(50, 7)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(50))
    assert queue.written() is queue.keys
    assert len(queue) == 50
    assert not queue.valid().any()
    assert (queue.ages() == -1).all()
    half = KeyQueue(50, 7, dtype=torch.bfloat16, init="empty")
    assert half.keys.dtype is torch.bfloat16
    assert not half.keys.any()


def test_a_queue_that_starts_empty_shows_what_was_written(backend):
    queue = KeyQueue(5, 3, init="empty", normalize=False)
    assert queue.written().shape == (0, 3)
    keys = torch.arange(12.0)[:, None].expand(12, 3)
    queue.enqueue(keys[:3])
    assert torch.equal(queue.written(), keys[:3])
    assert queue.written().data_ptr() == queue.keys.data_ptr()
    assert queue.valid().tolist() == [True] * 3 + [False] * 2
    queue.enqueue(keys[3:7])
    assert queue.written()[:, 0].tolist() == [5, 6, 2, 3, 4]
    assert queue.ages().tolist() == [1, 0, 4, 3, 2]
    assert queue.valid().all()
    queue.enqueue(keys)
    assert queue.written()[:, 0].tolist() == [8, 9, 10, 11, 7]  # slot 19 % 5 is the oldest
    assert queue.ages().tolist() == [3, 2, 1, 0, 4]


def test_ages_count_the_keys_that_came_after():
    queue, written = KeyQueue(7, 2), {}
    total = 0
    for B in (2, 3, 0, 5, 9, 1):
        for n in range(total, total + B):
            written[n % 7] = n
        total += B
        queue.enqueue(torch.randn(B, 2))
        expected = [total - 1 - written[s] if s in written else -1 for s in range(7)]
        assert queue.ages().tolist() == expected


def test_ids(backend):
    queue = KeyQueue(4, 2, with_ids=True)
    assert queue.ids.tolist() == [-1] * 4
    queue.enqueue(torch.randn(3, 2), ids=torch.tensor([5, 6, 7], dtype=torch.int32))
    queue.enqueue(torch.randn(2, 2))  # a stale id must not outlive its key
    assert queue.ids.tolist() == [-1, 6, 7, -1]
    queries, keys = torch.randn(2, 2), torch.randn(2, 2)
    loss = sslops.info_nce(
        queries, keys, queue=queue.keys, query_ids=torch.tensor([6, 9]), key_ids=queue.ids
    )
    assert loss.isfinite()


def test_state_dict_round_trip():
    queue = KeyQueue(6, 3, with_ids=True, init="empty")
    queue.enqueue(torch.randn(4, 3), torch.arange(4))
    file = io.BytesIO()
    torch.save(queue.state_dict(), file)
    file.seek(0)
    state = torch.load(file)
    assert list(state) == ["keys", "pointer", "ids"]
    other = KeyQueue(6, 3, with_ids=True, init="empty")
    other.load_state_dict(state)
    assert torch.equal(other.written(), queue.written())
    for each in (queue, other, copy.deepcopy(queue)):
        torch.manual_seed(1)
        each.enqueue(torch.randn(5, 3), torch.arange(5))
        assert each.pointer.item() == 9
        assert each.written().shape == (6, 3)
    for name, value in queue.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    inside = torch.nn.ModuleDict({"queue": KeyQueue(6, 3, with_ids=True, init="empty")})
    inside.load_state_dict({f"queue.{name}": value for name, value in state.items()})
    assert inside["queue"].written().shape == (4, 3)
    with pytest.raises(RuntimeError, match="size mismatch for keys"):
        KeyQueue(7, 3, with_ids=True).load_state_dict(state)


def test_meta_and_other_dtypes():
    with torch.device("meta"):
        queue = KeyQueue(4, 3)
    queue.load_state_dict(KeyQueue(4, 3).state_dict(), assign=True)
    queue = queue.to(torch.float16)
    queue.enqueue(torch.randn(2, 3))
    assert queue.keys.dtype is torch.float16
    assert queue.pointer.dtype is torch.int64


def test_fullgraph_compile_shows_too_little_rather_than_too_much(backend):
    torch._dynamo.reset()
    queue = KeyQueue(8, 3, init="empty")
    step = torch.compile(queue.enqueue, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        step(torch.randn(2, 3))
    assert queue.pointer.item() == 6
    assert queue.written().shape == (0, 3)
    queue.load_state_dict(queue.state_dict())  # reads the pointer
    assert queue.written().shape == (6, 3)


def test_repr():
    assert repr(KeyQueue(4, 2)) == "KeyQueue(4, 2, dtype=torch.float32, init='random')"
    more = KeyQueue(4, 2, with_ids=True, normalize=False)
    assert "init='random', with_ids=True, normalize=False" in repr(more)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((0, 2), {}, ValueError, "size and dim must be at least 1, got 0 and 2"),
        ((2, 0), {}, ValueError, "size and dim must be at least 1, got 2 and 0"),
        ((2, 2), {"dtype": torch.int8}, TypeError, "dtype must be .* got torch.int8"),
        ((2, 2), {"init": "zeros"}, ValueError, "random or empty, got 'zeros'"),
    ],
)
def test_constructor_refuses(args, kwargs, error, message):
    with pytest.raises(error, match=f"KeyQueue: .*{message}"):
        KeyQueue(*args, **kwargs)


def test_enqueue_refuses():
    queue = KeyQueue(4, 2)
    before = queue.keys.clone()
    for args, error, message in (
        (([1.0],), TypeError, "KeyQueue: keys must be a tensor, got list"),
        ((torch.zeros(3, 3),), ValueError, r"KeyQueue: keys must be \[B, 2\]"),
        ((torch.zeros(1, 2), torch.zeros(1).long()), ValueError, "ids need with_ids=True"),
    ):
        with pytest.raises(error, match=message):
            queue.enqueue(*args)
    with pytest.raises(ValueError, match=r"ids must be \[1\]"):
        KeyQueue(4, 2, with_ids=True).enqueue(torch.zeros(1, 2), torch.zeros(2).long())
    assert torch.equal(queue.keys, before)
    assert queue.pointer.item() == 0


def worker(rank, folder):
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    queue = KeyQueue(10, 3, with_ids=True, normalize=False)
    world = dist.group.WORLD
    for step, sizes in enumerate([(2, 2), (3, 1), (0, 4), (9, 5)]):
        rows = torch.arange(sizes[rank]) + 100 * step + 50 * rank
        keys = rows[:, None].float().expand(-1, 3).requires_grad_()
        queue.enqueue(keys, rows, group=world, uneven=sizes[0] != sizes[1])
    try:
        queue.enqueue(torch.zeros(rank + 1, 3), group=world)
        refused = ""
    except ValueError as error:
        refused = str(error)
    torch.save({"state": queue.state_dict(), "refused": refused}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")
def test_two_processes_hold_the_same_queue(tmp_path):
    spawn(worker, str(tmp_path))
    torch.manual_seed(0)
    single = KeyQueue(10, 3, with_ids=True, normalize=False)
    for step, (first, second) in enumerate([(2, 2), (3, 1), (0, 4), (9, 5)]):
        rows = torch.cat([torch.arange(first), 50 + torch.arange(second)]) + 100 * step
        single.enqueue(rows[:, None].float().expand(-1, 3), rows)
    for rank in range(2):
        saved = torch.load(tmp_path / f"{rank}.pt")
        assert saved["refused"] == (
            "KeyQueue: ranks must have as many keys each without uneven=True, got [1, 2]"
        )
        for name, value in single.state_dict().items():
            assert torch.equal(saved["state"][name], value)


def unit(*shape, dim):
    return F.normalize(torch.randn(shape), dim=dim)


MOCO = {
    "module.encoder_q.weight": torch.ones(2),
    "module.queue": unit(4, 12, dim=0),
    "module.queue_ptr": torch.tensor([8]),
}


def test_loads_mocos_queue_and_goes_on_where_it_stopped():
    queue = load_queue(MOCO)
    assert torch.equal(queue.keys, MOCO["module.queue"].T)
    assert queue.keys.is_contiguous()
    assert queue.ages().tolist() == [7, 6, 5, 4, 3, 2, 1, 0, 11, 10, 9, 8]
    queue.enqueue(torch.ones(2, 4))
    torch.testing.assert_close(queue.keys[8:10], torch.full((2, 4), 0.5))
    assert torch.equal(queue.keys[:8], MOCO["module.queue"].T[:8])
    assert torch.equal(load_queue(MOCO, prefix="module.").keys, MOCO["module.queue"].T)


def test_loads_lightlys_bank_in_both_layouts():
    bank = unit(12, 4, dim=1)
    for stored in (bank, bank.T.contiguous()):
        queue = load_queue({"bank": stored, "bank_ptr": torch.tensor([0])})
        assert torch.equal(queue.keys, bank)
        assert queue.pointer.item() == 12


def test_loads_one_of_solo_learns_queues():
    state = {"queue": unit(2, 4, 12, dim=1), "queue_ptr": torch.tensor([4])}
    for index in range(2):
        assert torch.equal(load_queue(state, index=index).keys, state["queue"][index].T)
    with pytest.raises(ValueError, match=r"shape \(2, 4, 12\) and index None"):
        load_queue(state)
    with pytest.raises(ValueError, match=r"shape \(2, 4, 12\) and index 2"):
        load_queue(state, index=2)


def test_fills_a_queue_in_its_dtype():
    queue = KeyQueue(12, 4, dtype=torch.bfloat16, with_ids=True, init="empty")
    queue.enqueue(torch.randn(2, 4), torch.arange(2))
    assert load_queue(MOCO, into=queue) is queue
    assert torch.equal(queue.keys, MOCO["module.queue"].T.bfloat16())
    assert (queue.ids == -1).all()
    assert queue.written().shape == (12, 4)


@pytest.mark.parametrize(
    ("state", "kwargs", "message"),
    [
        (MOCO, {"layout": "K"}, "layout must be auto, KD or DK, got 'K'"),
        (MOCO, {"prefix": "model."}, r"with prefix 'model.', got \['module.encoder_q"),
        ({"queue": torch.ones(2, 3)}, {}, r"one queue and queue_ptr, .* got \['queue'\]"),
        (MOCO | {"queue": 0, "queue_ptr": 0}, {}, r"got \['module.queue', 'queue'\]"),
        (MOCO, {"index": 0}, r"module.queue must be a matrix, .* \(4, 12\) and index 0"),
        (MOCO, {"into": KeyQueue(8, 4)}, r"fit into \[8, 4\], got K = 12, D = 4"),
        (MOCO | {"module.queue_ptr": torch.tensor([12])}, {}, r"in \[0, 12\), got \[12\]"),
        (MOCO | {"module.queue": unit(4, 4, dim=0)}, {}, r"shape \(4, 4\) may be .* \[D, K\]"),
        (MOCO | {"module.queue": unit(12, 4, dim=0)}, {}, r"shape \(12, 4\) may be \[K, D\]"),
    ],
)
def test_refuses_what_it_cannot_tell(state, kwargs, message):
    with pytest.raises(ValueError, match=f"load_queue: .*{message}"):
        load_queue(state, **kwargs)


def test_a_layout_that_is_given_is_believed():
    square = MOCO | {"module.queue": unit(12, 12, dim=0)}
    assert torch.equal(load_queue(square, layout="DK").keys, square["module.queue"].T)
    assert torch.equal(load_queue(square, layout="KD").keys, square["module.queue"])
