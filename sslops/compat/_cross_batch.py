"""pytorch-metric-learning's memory of earlier batches."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from sslops.compat._pair_entries import ENTRIES
from sslops.compat._pair_loss import all_pairs, compared, fits, pairs_of, reduce_by
from sslops.compat._shared import LenientState, drop_in_of, enqueue


class CrossBatchMemory(LenientState):
    """Compare with the embeddings of earlier batches; those of this one enter the memory first.

    A row is not compared with itself in the memory. Embeddings, labels and the position in the
    ring are part of the state dict.

    Args:
        loss: `NTXentLoss` or `SupConLoss`; any other loss of the package gets the pairs, or the
            miner's triplets, as `indices_tuple`.
        embedding_size: D.
        memory_size: rows of the memory.
        collect_stats: accepted.
        miner: of (embeddings, labels, keys, key_labels), which chooses the pairs; plain PyTorch.

    Raises:
        ValueError: more rows than the memory has, or both `indices_tuple` and `enqueue_mask`.

    Example:
        >>> from sslops.compat.pytorch_metric_learning import NTXentLoss
        >>> loss = CrossBatchMemory(NTXentLoss(), embedding_size=16, memory_size=32)
        >>> for _ in range(3):
        ...     value = loss(torch.randn(8, 16), torch.arange(8) % 4)
        >>> loss.queue_idx
        24
    """

    # `fused` does
    reads = ("loss", "miner", "embedding_size", "memory_size", "queue_idx", "has_been_filled")
    embedding_memory: Tensor
    label_memory: Tensor

    def __init__(
        self,
        loss: nn.Module,
        embedding_size: int,
        memory_size: int = 1024,
        miner: Any = None,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.miner = miner
        self.embedding_size = embedding_size
        self.memory_size = memory_size
        self.collect_stats = bool(collect_stats)
        self.reset_queue()

    def extra_repr(self) -> str:
        """The settings, as `print(model)` shows them."""
        return f"embedding_size={self.embedding_size}, memory_size={self.memory_size}"

    def reset_queue(self) -> None:
        """Forget everything."""
        shape = (self.memory_size, self.embedding_size)
        self.register_buffer("embedding_memory", torch.zeros(shape))
        self.register_buffer("label_memory", torch.zeros(self.memory_size, dtype=torch.long))
        self.has_been_filled = False
        self.queue_idx = 0

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Sequence[Tensor] | None = None,
        enqueue_mask: Tensor | None = None,
    ) -> Tensor:
        """Loss of [M, D] and labels [M]; rows of `enqueue_mask` only enter the memory."""
        if indices_tuple is not None and enqueue_mask is not None:
            raise ValueError("CrossBatchMemory: needs indices_tuple or enqueue_mask, got both")
        if enqueue_mask is None and len(embeddings) > self.memory_size:
            raise ValueError(
                f"CrossBatchMemory: the memory of {self.memory_size} must hold a batch, got"
                f" {len(embeddings)} rows"
            )
        found = self.fused(embeddings, labels, indices_tuple, enqueue_mask)
        if found is not NotImplemented:
            return cast(Tensor, found)
        queries, labels, keys, key_labels, own = _remembered(self, embeddings, labels, enqueue_mask)
        if self.miner:
            pairs: Sequence[Tensor] = self.miner(queries, labels, keys, key_labels)
        else:
            pairs = all_pairs(labels, key_labels.clone())
        if own is not None:
            pairs = _without_own(pairs, own)
        if indices_tuple is not None:
            pairs = _together(pairs, indices_tuple)
        return cast(Tensor, self.loss(queries, labels, pairs, keys, key_labels))

    def fused(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Sequence[Tensor] | None = None,
        enqueue_mask: Tensor | None = None,
    ) -> Any:
        """The loss by kernels, or NotImplemented before anything has entered the memory."""
        loss: Any = self.loss
        entry_of = ENTRIES.get(drop_in_of(loss) or "")
        if entry_of is None or self.miner or indices_tuple is not None:
            return NotImplemented
        entering = len(embeddings)
        if enqueue_mask is not None:
            if enqueue_mask.dtype is not torch.bool or enqueue_mask.shape != labels.shape:
                return NotImplemented
            entering = int(enqueue_mask.sum())
        asking = len(embeddings) - (0 if enqueue_mask is None else entering)
        rows = min(self.memory_size, self.queue_idx + entering)
        if not (
            loss.embedding_regularizer is None
            and fits(loss, embeddings, labels, embeddings, labels)
            and embeddings.shape[1] == self.embedding_size
            and entering <= self.memory_size
            and asking * (self.memory_size if self.has_been_filled else rows) > 4
        ):
            return NotImplemented
        asked = _remembered(self, embeddings, labels, enqueue_mask)
        entry = entry_of(loss, compared(*asked))
        return reduce_by(loss, {"loss": entry}, asked[0], asked[1])

    def add_to_memory(self, embeddings: Tensor, labels: Tensor, batch_size: int) -> None:
        """Write rows into the ring."""
        self.curr_batch_idx = enqueue(embeddings, self.embedding_memory, self.queue_idx)
        enqueue(labels, self.label_memory, self.queue_idx)
        end = self.queue_idx + batch_size
        self.has_been_filled = self.has_been_filled or end >= self.memory_size
        self.queue_idx = end % self.memory_size

    def get_extra_state(self) -> tuple[int, bool]:
        """Position in the ring, and whether it has been around."""
        return self.queue_idx, self.has_been_filled

    def set_extra_state(self, state: tuple[int, bool]) -> None:
        """Restore what `get_extra_state` returned."""
        self.queue_idx, self.has_been_filled = state


def _remembered(
    memory: Any, embeddings: Tensor, labels: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Let rows enter; who asks, among which keys, and which key is the asking row itself."""
    labels = labels.to(embeddings.device)
    memory.embedding_memory = memory.embedding_memory.to(embeddings)
    memory.label_memory = memory.label_memory.to(labels)
    entering = (embeddings, labels)
    if mask is not None:
        entering = (embeddings[mask], labels[mask])
        embeddings, labels = embeddings[~mask], labels[~mask]
    memory.add_to_memory(*entering, len(entering[0]))
    full = memory.memory_size if memory.has_been_filled else memory.queue_idx
    keys = memory.embedding_memory[:full].clone()  # the next batch is written into it
    own = memory.curr_batch_idx if mask is None else None
    return embeddings, labels, keys, memory.label_memory[:full].clone(), own


def _without_own(pairs: Sequence[Tensor], own: Tensor) -> tuple[Tensor, ...]:
    """Pairs or triplets without positives that are the anchor itself."""
    kept = own[pairs[0]] != pairs[1]
    if len(pairs) == 3:
        return tuple(each[kept] for each in pairs)
    return (pairs[0][kept], pairs[1][kept], *pairs[2:])


def _together(ours: Sequence[Tensor], given: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Both lists of pairs, or of triplets if the first are."""
    if len(ours) == 4:
        given = pairs_of(given)
    elif len(given) == 4:
        a1, p, a2, n = given
        one, two = torch.where(a1[:, None] == a2)
        given = (a1[one], p[one], n[two])
    return tuple(torch.cat([x, y.to(x.device)]) for x, y in zip(ours, given, strict=True))
