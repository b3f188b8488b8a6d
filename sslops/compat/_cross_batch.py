"""pytorch-metric-learning's memory of earlier batches."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sslops.compat._pair_loss import PairLoss
from sslops.compat._shared import LenientState, enqueue


class CrossBatchMemory(LenientState):
    """Compare with the embeddings of earlier batches; those of this one enter the memory first.

    A row is not compared with itself in the memory. Embeddings, labels and the position in the
    ring are part of the state dict.

    Args:
        loss: `NTXentLoss` or `SupConLoss`.
        embedding_size: D.
        memory_size: rows of the memory.
        miner: must be None.

    Raises:
        ValueError: a miner or `indices_tuple`, more rows than the memory has.
        TypeError: another loss.

    Example:
        >>> from sslops.compat.pytorch_metric_learning import NTXentLoss
        >>> loss = CrossBatchMemory(NTXentLoss(), embedding_size=16, memory_size=32)
        >>> for _ in range(3):
        ...     value = loss(torch.randn(8, 16), torch.arange(8) % 4)
        >>> loss.queue_idx
        24
    """

    embedding_memory: Tensor
    label_memory: Tensor

    def __init__(
        self, loss: nn.Module, embedding_size: int, memory_size: int = 1024, miner: Any = None
    ) -> None:
        super().__init__()
        if not isinstance(loss, PairLoss):
            raise TypeError(
                "CrossBatchMemory: loss must be NTXentLoss or SupConLoss of sslops.compat (around"
                " another one, keep the package's own memory: patch takes the names to replace as"
                f" classes=[...]), got {type(loss).__name__}"
            )
        if miner is not None:
            raise ValueError(f"CrossBatchMemory: miner must be None, got {miner!r}")
        self.loss = loss
        self.embedding_size = embedding_size
        self.memory_size = memory_size
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
        """Loss of [M, D] and the integers [M]; rows of `enqueue_mask` only enter the memory."""
        if indices_tuple is not None:
            raise ValueError("CrossBatchMemory: indices_tuple must be None, got indices")
        labels = labels.to(embeddings.device)
        entering, own = (embeddings, labels), None
        if enqueue_mask is not None:
            entering = (embeddings[enqueue_mask], labels[enqueue_mask])
            embeddings, labels = embeddings[~enqueue_mask], labels[~enqueue_mask]
        if len(entering[0]) > self.memory_size:
            raise ValueError(
                f"CrossBatchMemory: the memory of {self.memory_size} must hold a batch, got"
                f" {len(entering[0])} rows"
            )
        slots = self._add(*entering)
        if enqueue_mask is None:
            own = slots
        full = self.memory_size if self.has_been_filled else self.queue_idx
        keys = self.embedding_memory[:full].clone()  # the next batch is written into it
        return self.loss.compare(embeddings, labels, keys, self.label_memory[:full], own)

    def _add(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        self.embedding_memory = self.embedding_memory.to(embeddings)
        self.label_memory = self.label_memory.to(labels.device)
        slots = enqueue(embeddings, self.embedding_memory, self.queue_idx)
        enqueue(labels, self.label_memory, self.queue_idx)
        end = self.queue_idx + len(labels)
        self.has_been_filled = self.has_been_filled or end >= self.memory_size
        self.queue_idx = end % self.memory_size
        return slots

    def get_extra_state(self) -> tuple[int, bool]:
        """Position in the ring, and whether it has been around."""
        return self.queue_idx, self.has_been_filled

    def set_extra_state(self, state: tuple[int, bool]) -> None:
        """Restore what `get_extra_state` returned."""
        self.queue_idx, self.has_been_filled = state
