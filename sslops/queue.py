"""A queue of keys as a module: the ring buffer of `sslops.enqueue_` with its state."""

from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from sslops._names import shown
from sslops.ops._checks import check_whole
from sslops.ops.queue import check_keys, enqueue_

__all__ = ["KeyQueue"]


class KeyQueue(nn.Module):
    r"""The K newest keys, as negatives for `sslops.info_nce`; a ring buffer on the device.

    A loss reads `queue.keys` (or `queue.written()`) before the keys of its own step enter it:

        loss = sslops.info_nce(queries, keys, queue=queue.keys, temperature=0.2)
        loss.backward()
        queue.enqueue(keys)

    `info_nce` has its gradient when it returns, so `enqueue` may also come before `backward`. Plain
    PyTorch losses save the queue; autograd then raises, it never uses the changed rows.

    All state is in `state_dict`: `keys` [K, D], `pointer` (0-d int64, how many keys were ever
    enqueued) and, with ids, `ids` [K] int64. Processes hold equal queues if they start equal
    (one seed, or inside DistributedDataParallel) and enqueue with `group`. DistributedDataParallel
    would copy all of the queue from rank 0 at each forward: give it `broadcast_buffers=False`.

    Args:
        size: K, slots.
        dim: D, features.
        dtype: of the stored keys; bfloat16 and float16 halve memory and the time of the loss.
        normalize: store unit rows; False stores keys as they are.
        with_ids: keep an int64 id beside every key, -1 where there is none.
        init: "random" starts with unit rows of normal deviates, as MoCo's code does: the loss has
            its K negatives, and `keys` its shape, from the first step, but the first K keys compete
            with noise. "empty" starts with zero rows, each of which adds exp(0) to a loss that
            reads all of `keys`: read `written()`, whose length grows with the queue, so that a
            compiled or captured step has to wait until it is full.

    Raises:
        TypeError: `dtype` is not float16, bfloat16, float32 or float64.
        ValueError: size or dim below 1, unknown `init`.

    Source:
        He et al. 2020, arXiv:1911.05722, section 3.2 and algorithm 1.

    Example:
        >>> queue = KeyQueue(8, 4, with_ids=True, init="empty")
        >>> queue.enqueue(torch.ones(3, 4), ids=torch.tensor([7, 8, 9]))
        >>> queue.written().shape, queue.ages().tolist()
        (torch.Size([3, 4]), [2, 1, 0, -1, -1, -1, -1, -1])
    """

    keys: Tensor
    pointer: Tensor
    ids: Tensor | None

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        normalize: bool = True,
        with_ids: bool = False,
        init: Literal["random", "empty"] = "random",
    ) -> None:
        super().__init__()
        check_whole("KeyQueue", "size", size)
        check_whole("KeyQueue", "dim", dim)
        if size < 1 or dim < 1:
            raise ValueError(f"KeyQueue: size and dim must be at least 1, got {size} and {dim}")
        if dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise TypeError(
                f"KeyQueue: dtype must be float16, bfloat16, float32 or float64, got {dtype}"
            )
        if init not in ("random", "empty"):
            raise ValueError(f"KeyQueue: init must be random or empty, got {init!r}")
        self.normalize = normalize
        self.init = init
        keys = torch.zeros(size, dim)
        if init == "random":
            keys = F.normalize(keys.normal_(), dim=1)
        self.register_buffer("keys", keys.to(dtype))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        ids = torch.full((size,), -1, dtype=torch.int64) if with_ids else None
        self.register_buffer("ids", ids)
        self._known = 0  # slots that the host knows to be written: a lower bound, as none unwrites

    def enqueue(
        self,
        keys: Tensor,
        ids: Tensor | None = None,
        *,
        group: "dist.ProcessGroup | None" = None,
        uneven: bool = False,
    ) -> None:
        """Write `keys` over the oldest; of all ranks in rank order, if `group` is given.

        Args:
            keys: [B, D], any B, floating dtype and strides; detached.
            ids: [B] integers; without them a queue with ids stores -1.
            group: gather the keys of all its ranks, so that their queues stay equal;
                `torch.distributed.group.WORLD` for all. Default: this process alone.
            uneven: ranks may have different B. On a GPU that costs a synchronisation, as the host
                has to learn the sizes; without it they must be equal, which only the CPU checks.

        Raises:
            TypeError: `keys` or `ids` is not of a floating or integer dtype.
            ValueError: wrong shape or device, ids for a queue without, unequal B of the ranks
                without `uneven`. Nothing is written then.
        """
        check_keys("KeyQueue", keys, self.keys)  # before the other ranks wait for them
        if ids is not None and self.ids is None:
            raise ValueError("KeyQueue: ids need with_ids=True, got ids for a queue without")
        if self.ids is not None and ids is None:
            ids = torch.full((len(keys),), -1, dtype=torch.int64, device=keys.device)
        keys = keys.detach()
        if group is not None:
            keys, ids = _gather(keys, ids, group, uneven)
        enqueue_(
            self.keys, self.pointer, keys, normalize=self.normalize, ids=ids, queue_ids=self.ids
        )
        if _runs_now(keys):
            self._known = min(len(self), self._known + len(keys))

    def written(self) -> Tensor:
        """[n, D] view of the slots that may be compared with; never synchronises.

        All K for init="random", whose first rows are meant as negatives. For "empty" the slots that
        the host knows to be written: every eager `enqueue` and every loaded state counts; steps
        inside a compiled graph or a replayed CUDA graph do not, which makes it too short but never
        shows a row that was not written.
        """
        return self.keys if self.init == "random" else self.keys[: self._known]

    def valid(self) -> Tensor:
        """[K] bool on the device: which slots a key was ever written to."""
        return torch.arange(len(self), device=self.pointer.device) < self.pointer

    def ages(self) -> Tensor:
        """[K] int64: how many keys came after the one in each slot; -1 where there is none."""
        slots = torch.arange(len(self), device=self.pointer.device)
        ages = torch.remainder(self.pointer - 1 - slots, len(self))
        return torch.where(slots < self.pointer, ages, -1)

    def __len__(self) -> int:
        return self.keys.shape[0]

    def extra_repr(self) -> str:
        """The hyper-parameters, as `print(model)` shows them."""
        size, dim = self.keys.shape
        more = ", with_ids=True" if self.ids is not None else ""
        more += "" if self.normalize else ", normalize=False"
        return f"{size}, {dim}, dtype={self.keys.dtype}, init={self.init!r}{more}"

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.pointer.device.type != "meta":
            self._known = min(len(self), int(self.pointer))


def _runs_now(keys: Tensor) -> bool:
    """Whether an op that was just called on `keys` runs once, and not when a graph is replayed."""
    if torch.compiler.is_compiling():
        return False
    return not (keys.is_cuda and torch.cuda.is_current_stream_capturing())


def _gather(
    keys: Tensor, ids: Tensor | None, group: "dist.ProcessGroup", uneven: bool
) -> tuple[Tensor, Tensor | None]:
    """Keys and ids of all ranks of `group`, in rank order."""
    world = dist.get_world_size(group)
    if world == 1:
        return keys, ids
    sizes = [len(keys)] * world
    if uneven or keys.device.type == "cpu":
        own = torch.tensor([len(keys)], device=keys.device)
        all_sizes = [torch.empty_like(own) for _ in range(world)]
        dist.all_gather(all_sizes, own, group=group)
        sizes = torch.cat(all_sizes).tolist()
        if not uneven and len(set(sizes)) > 1:
            raise ValueError(
                f"KeyQueue: ranks must have as many keys each without uneven=True, got"
                f" {shown(sizes)}"
            )
    return _gather_rows(keys, sizes, group), ids if ids is None else _gather_rows(ids, sizes, group)


def _gather_rows(rows: Tensor, sizes: list[int], group: "dist.ProcessGroup") -> Tensor:
    most = max(sizes)
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
