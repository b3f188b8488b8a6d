"""Ring buffer of keys: schema, kernels per device, public function."""

import torch
from torch import Tensor

from sslops._library import define, op
from sslops.ops._checks import check_device, check_floating, integer_vector
from sslops.reference import queue as _reference

__all__ = ["enqueue_"]


def _fake(
    queue: Tensor,
    pointer: Tensor,
    keys: Tensor,
    queue_ids: Tensor | None,
    ids: Tensor | None,
    normalize: bool,
) -> None:
    return None


define(
    "enqueue_",
    "(Tensor(a!) queue, Tensor(b!) pointer, Tensor keys, Tensor(c!)? queue_ids, Tensor? ids,"
    " bool normalize) -> ()",
    _reference.enqueue_,
    fake=_fake,
    triton="queue.enqueue_",
    cuda=True,
)


def enqueue_(
    queue: Tensor,
    pointer: Tensor,
    keys: Tensor,
    *,
    normalize: bool = True,
    ids: Tensor | None = None,
    queue_ids: Tensor | None = None,
) -> None:
    r"""Write a batch of keys over the oldest rows of a ring buffer, in place and in one pass.

    $$ \text{queue}_{(p + b) \bmod K} \leftarrow k_b / \max(\lVert k_b \rVert, 10^{-12})
       \quad (b = 0, \dots, B-1), \qquad p \leftarrow p + B $$

    Any B goes: 0, more than K (the newest K win), not a divisor of K. Norms are computed in
    float32 and rows rounded once, to the queue's dtype. Nothing is read on the host on a GPU, so a
    CUDA graph can hold it, and nothing is differentiated.

    A loss reads the queue before the keys of its own step enter it. `sslops.info_nce` with a
    `queue` has its gradient when it returns, so the queue may change before `backward()`; plain
    PyTorch products save the queue, and autograd then raises instead of using the changed one.

    Args:
        queue: [K, D] float32, bfloat16 or float16 (float64 in plain PyTorch), contiguous; written.
        pointer: int64, one element, at least 0, on the device of `queue`: how many keys were ever
            enqueued, so that the next slot is `pointer % K` and `min(pointer, K)` slots are
            written. Advanced by B.
        keys: [B, D] of any of these dtypes, any strides, on the device of `queue`.
        normalize: False stores the keys as they are.
        ids: [B] integers to store beside the keys (`info_nce` leaves out negatives by them).
        queue_ids: [K] int64, contiguous, written with `ids`.

    Raises:
        TypeError: a tensor is not of a dtype listed above.
        ValueError: wrong shape, tensors on different devices, a queue that is empty, not
            contiguous or requires grad, keys in the memory of the queue, one of `ids` and
            `queue_ids` without the other. Nothing is written then.

    Source:
        He et al. 2020, arXiv:1911.05722, section 3.2 and algorithm 1.

    Example:
        >>> queue, pointer = torch.zeros(4, 2), torch.tensor(0)
        >>> enqueue_(queue, pointer, torch.tensor([[3.0, 4.0]]).expand(6, 2))
        >>> queue[0], pointer
        (tensor([0.6000, 0.8000]), tensor(6))
    """
    _check_queue(queue, pointer)
    check_keys("enqueue_", keys, queue)
    if (ids is None) != (queue_ids is None):
        raise ValueError("enqueue_: ids and queue_ids go together, got one without the other")
    if ids is not None and queue_ids is not None:
        ids = integer_vector("enqueue_", "ids", ids, keys.shape[0], queue)
        integer_vector("enqueue_", "queue_ids", queue_ids, queue.shape[0], queue)
        if queue_ids.dtype is not torch.int64 or not queue_ids.is_contiguous():
            raise ValueError(
                f"enqueue_: queue_ids must be int64 and contiguous, got {queue_ids.dtype} with"
                f" strides {queue_ids.stride()}"
            )
    if not torch.compiler.is_compiling() and _shares_memory(queue, keys):
        raise ValueError("enqueue_: keys must not be in the memory of queue, got a view of it")
    if keys.requires_grad:
        keys = keys.detach()
    op("enqueue_", queue)(queue, pointer, keys, queue_ids, ids, normalize)


def check_keys(op: str, keys: Tensor, queue: Tensor) -> None:
    """Raise unless `keys` are rows that `queue` [K, D] can take."""
    check_floating(op, "keys", keys)
    if keys.ndim != 2 or keys.shape[1] != queue.shape[1]:
        raise ValueError(f"{op}: keys must be [B, {queue.shape[1]}], got shape {tuple(keys.shape)}")
    check_device(op, "keys", keys, queue)


def _check_queue(queue: Tensor, pointer: Tensor) -> None:
    check_floating("enqueue_", "queue", queue)
    if queue.ndim != 2 or queue.numel() == 0 or not queue.is_contiguous():
        raise ValueError(
            "enqueue_: queue must be [K, D] with K, D >= 1 and contiguous, got shape"
            f" {tuple(queue.shape)} with strides {queue.stride()}"
        )
    if queue.requires_grad:
        raise ValueError("enqueue_: queue must not require grad, got one that does")
    if not isinstance(pointer, Tensor) or pointer.dtype is not torch.int64:
        kind = pointer.dtype if isinstance(pointer, Tensor) else type(pointer).__name__
        raise TypeError(f"enqueue_: pointer must be an int64 tensor, got {kind}")
    if pointer.numel() != 1:
        raise ValueError(
            f"enqueue_: pointer must have one element, got shape {tuple(pointer.shape)}"
        )
    check_device("enqueue_", "pointer", pointer, queue)


def _shares_memory(queue: Tensor, keys: Tensor) -> bool:
    start = queue.untyped_storage().data_ptr()
    return start != 0 and start == keys.untyped_storage().data_ptr()
