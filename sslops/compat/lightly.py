"""`lightly.loss.NTXentLoss` and `lightly.models.utils.update_momentum`, of lightly 1.6.

Differences: docs/migration/lightly.md.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslops import ema_update_, enqueue_, info_nce, nt_xent
from sslops.compat._shared import LenientState, settings_of
from sslops.distributed import all_gather, all_gather_with_grad, rank, world_size

__all__ = ["NTXentLoss", "update_momentum"]


class _MemoryBank(LenientState):
    """Ring of unit rows: bank [K, D] and the slot that is written next, bank_ptr [1]."""

    bank: Tensor
    bank_ptr: Tensor

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("bank", F.normalize(torch.randn(size), dim=-1))
        self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.long))

    def extra_repr(self) -> str:
        """The settings, as `print(model)` shows them."""
        return f"size={tuple(self.bank.shape)}"

    def update(self, rows: Tensor) -> None:
        enqueue_(self.bank, self.bank_ptr, rows, normalize=False)
        self.bank_ptr.remainder_(len(self.bank))  # theirs is a slot, ours counts on


class NTXentLoss(nn.Module):
    """NT-Xent of two views, or MoCo's loss with a memory bank, as lightly computes them.

    With `gather_distributed` every process returns the mean over its own rows against everyone's;
    after DistributedDataParallel's mean the gradient is that of one process with the whole batch.

    Args:
        temperature: tau > 0.
        memory_bank_size: 0, or (K, D): the negatives are then the bank's K rows alone, and the
            bank takes in `out1` after each loss of an `out0` that requires a gradient.
        gather_distributed: compare with the rows of all processes; with a bank, fill it with them.

    Raises:
        ValueError: temperature not positive and finite, a size that is neither 0 nor a pair of
            non-negative numbers, two views of different shapes.

    Example:
        >>> loss = NTXentLoss(temperature=0.1, memory_bank_size=(64, 16))
        >>> out0, out1 = torch.randn(8, 16, requires_grad=True), torch.randn(8, 16)
        >>> loss(out0, out1).backward()
        >>> loss.memory_bank.bank_ptr
        tensor([8])
    """

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        if not 1e-8 <= temperature < float("inf"):
            raise ValueError(
                f"NTXentLoss: temperature must be positive and finite, got {temperature}"
            )
        size = (memory_bank_size,) if isinstance(memory_bank_size, int) else memory_bank_size
        if tuple(size) != (0,) and (len(size) != 2 or min(size) < 0):
            raise ValueError(
                "NTXentLoss: memory_bank_size must be 0 or (size, features), got"
                f" {memory_bank_size}"
            )
        self.temperature = temperature
        self.gather_distributed = gather_distributed
        self.memory_bank = _MemoryBank((size[0], size[1])) if size[0] else None

    def extra_repr(self) -> str:
        """The settings, as `print(model)` shows them."""
        return settings_of(self, "temperature", gather_distributed=False)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Loss of two views, [B, D] each, of the same samples."""
        if out0.shape != out1.shape or out0.ndim != 2:
            raise ValueError(
                "NTXentLoss: out0 and out1 must be [B, D], got shapes"
                f" {tuple(out0.shape)} and {tuple(out1.shape)}"
            )
        if self.memory_bank is not None:
            return self._against_bank(out0, out1, self.memory_bank)
        if self.gather_distributed and world_size() > 1:
            return self._against_all(torch.stack([out0, out1]))
        return nt_xent(torch.stack([out0, out1]), temperature=self.temperature)

    def _against_bank(self, out0: Tensor, out1: Tensor, memory: _MemoryBank) -> Tensor:
        loss = info_nce(out0, out1, queue=memory.bank, temperature=self.temperature)
        if out0.requires_grad:
            rows = F.normalize(out1.detach(), dim=1)
            memory.update(all_gather(rows) if self.gather_distributed else rows)
        return cast(Tensor, loss)

    def _against_all(self, z: Tensor) -> Tensor:
        B, everyone = z.shape[1], all_gather_with_grad(z, dim=1)  # [2, W B, D]
        index = torch.arange(everyone.shape[0] * everyone.shape[1], device=z.device).view(2, -1)
        own = index[:, rank() * B : (rank() + 1) * B]
        loss = info_nce(
            z.flatten(0, 1), everyone.flatten(0, 1), targets=own.flip(0).flatten(),
            query_ids=own.flatten(), key_ids=index.flatten(), temperature=self.temperature,
        )  # fmt: skip
        return cast(Tensor, loss)


@torch.no_grad()
def update_momentum(model: nn.Module, model_ema: nn.Module, m: float) -> None:
    """Move the parameters of `model_ema` to m * themselves + (1 - m) * those of `model`.

    Args:
        model: the trained one.
        model_ema: its average, with the same parameters.
        m: in [0, 1].

    Raises:
        ValueError: m outside [0, 1].
    """
    if not 0 <= m <= 1:
        raise ValueError(f"update_momentum: m must be in [0, 1], got {m}")
    ema_update_(list(model_ema.parameters()), list(model.parameters()), m)
