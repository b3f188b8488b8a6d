"""`lightly.loss.NTXentLoss` and `lightly.models.utils.update_momentum`, of lightly 1.6.

Arguments and differences: docs/migration/lightly.md.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from sslops import ema_update_, enqueue_, info_nce, nt_xent
from sslops._join import cat, stack
from sslops.compat._shared import (
    LenientState,
    check_alike,
    factor_fits,
    is_number,
    rows_fit,
    settings_of,
)
from sslops.distributed import all_gather, all_gather_with_grad, rank, world_size
from sslops.ops._checks import FLOATING

__all__ = ["NTXentLoss", "update_momentum"]


class _MemoryBank(LenientState):
    """Ring of unit rows: bank [K, D] and the slot that is written next, bank_ptr [1].

    Of a size (K,) the first rows tell D.
    """

    bank: Tensor
    bank_ptr: Tensor

    def __init__(self, size: tuple[int, ...], gather_distributed: bool = False) -> None:
        super().__init__()
        self.size = size
        self.gather_distributed = gather_distributed
        self.register_buffer("bank", torch.empty(size[0], 0))
        self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.long))
        if len(size) == 2:
            self._make(size[1])

    def _make(self, features: int) -> None:
        self.bank = F.normalize(self.bank.new_empty(self.size[0], features).normal_(), dim=-1)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **more: Any) -> None:
        saved = state_dict.get(f"{prefix}bank")
        if len(self.size) == 1 and saved is not None and len(saved) == self.size[0]:
            self.bank = self.bank.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **more)

    def extra_repr(self) -> str:
        """The settings, as `print(model)` shows them."""
        return f"size={self.size}"

    def ready_for(self, rows: Tensor) -> None:
        """Make the bank if its number of features was not given."""
        if not self.bank.shape[1]:
            self.bank = self.bank.to(rows.device)
            self._make(rows.shape[1])

    def update(self, rows: Tensor) -> None:
        """Write unit rows, of all processes with `gather_distributed`."""
        rows = all_gather(rows) if self.gather_distributed else rows.detach()
        enqueue_(self.bank, self.bank_ptr, rows.to(self.bank), normalize=False)
        self.bank_ptr.remainder_(len(self.bank))  # theirs is a slot, ours counts on

    def forward(
        self, output: Tensor, labels: Tensor | None = None, update: bool = False
    ) -> tuple[Tensor, Tensor]:
        """(output, a copy of the bank [D, K]); then the bank takes the rows in, on `update`."""
        self.ready_for(output)
        bank = self.bank.clone().T
        if update:
            self.update(output)
        return output, bank


class NTXentLoss(nn.Module):
    """NT-Xent of two views, or MoCo's loss with a memory bank, as lightly computes them.

    With `gather_distributed` every process returns the mean over its own rows against everyone's;
    after DistributedDataParallel's mean the gradient is that of one process with the whole batch.

    Args:
        temperature: tau; not positive: plain PyTorch.
        memory_bank_size: 0, or (K, D): the negatives are then the bank's K rows alone, and the
            bank takes in `out1` after each loss of an `out0` that requires a gradient. K alone, as
            before lightly 1.6: the first batch tells D.
        gather_distributed: compare with the rows of all processes; with a bank, fill it with them.
            Without a process group there is this process alone.

    Raises:
        ValueError: a temperature within 1e-8 of 0, a size that is no number or pair of
            non-negative numbers, `gather_distributed` where torch has no torch.distributed.

    Example:
        >>> loss = NTXentLoss(temperature=0.1, memory_bank_size=(64, 16))
        >>> out0, out1 = torch.randn(8, 16, requires_grad=True), torch.randn(8, 16)
        >>> loss(out0, out1).backward()
        >>> loss.memory_bank.bank_ptr
        tensor([8])
    """

    reads = ("temperature", "gather_distributed", "memory_bank")  # `fused` does

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        if abs(temperature) < 1e-8:
            raise ValueError(f"NTXentLoss: temperature must not be 0, got {temperature}")
        whole = isinstance(memory_bank_size, int)
        size: tuple[int, ...] = (memory_bank_size,) if whole else tuple(memory_bank_size)  # type: ignore[assignment,arg-type]
        if min(size, default=-1) < 0 or (size != (0,) and not whole and len(size) != 2):
            raise ValueError(
                "NTXentLoss: memory_bank_size must be 0, size or (size, features), got"
                f" {memory_bank_size}"
            )
        if gather_distributed and not dist.is_available():
            raise ValueError(
                "NTXentLoss: gather_distributed needs torch.distributed, got a torch without it"
            )
        self.temperature = temperature
        self.gather_distributed = gather_distributed
        self.memory_bank = _MemoryBank(size, gather_distributed) if size[0] else None

    def extra_repr(self) -> str:
        """The settings, as `print(model)` shows them."""
        return settings_of(self, "temperature", gather_distributed=False)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Loss of two views, [B, D] each, of the same samples."""
        loss = self.fused(out0, out1)
        return cast(Tensor, self._plain(out0, out1) if loss is NotImplemented else loss)

    def fused(self, out0: Tensor, out1: Tensor) -> Any:
        """The loss by kernels, or NotImplemented."""
        if not (
            rows_fit(out0, out1)
            and out0.shape == out1.shape
            and factor_fits(self.temperature, out0)
        ):
            return NotImplemented
        memory: Any = self.memory_bank
        if memory is not None and not isinstance(memory.size, tuple):
            return NotImplemented  # a bank of another version
        if memory is not None and memory.size[0]:
            return _against_bank(memory, out0, out1, self.temperature)
        z = stack([out0, out1])
        if self.gather_distributed and world_size() > 1:
            return _against_all(z, self.temperature)
        return nt_xent(z, temperature=self.temperature)

    def _plain(self, out0: Tensor, out1: Tensor) -> Tensor:
        B, tau = len(out0), self.temperature
        out0, out1 = F.normalize(out0, dim=1), F.normalize(out1, dim=1)
        index = torch.arange(B, device=out0.device)
        if self.memory_bank is not None:
            out1, bank = self.memory_bank(out1, update=out0.requires_grad)
            positive = torch.einsum("nc,nc->n", out0, out1)[:, None]
            logits = cat([positive, out0 @ bank.to(out0.device)], dim=1)
            return F.cross_entropy(logits / tau, torch.zeros_like(index))
        check_alike("NTXentLoss", out0=out0, out1=out1)
        views, first = (out0, out1), 0
        if self.gather_distributed and world_size() > 1:
            views, first = (all_gather_with_grad(out0), all_gather_with_grad(out1)), rank() * B
        own = torch.cat([index, index + len(views[0])]) + first  # where this process's rows are
        logits = cat([out0, out1]) @ cat(views).T / tau
        alone = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, own[:, None], True)
        return F.cross_entropy(logits.masked_fill(alone, -torch.inf), own.roll(B))


def _against_bank(memory: Any, out0: Tensor, out1: Tensor, temperature: float) -> Any:
    update = out0.requires_grad and torch.is_grad_enabled()
    if isinstance(memory, _MemoryBank):
        memory.ready_for(out0)
    bank: Tensor = memory.bank
    if bank.device != out0.device or bank.shape[1:] != out0.shape[1:]:
        return NotImplemented
    if isinstance(memory, _MemoryBank):  # no copy: the loss is there before the bank changes
        loss = info_nce(out0, out1, queue=bank, temperature=temperature)
        if update:
            memory.update(F.normalize(out1.detach(), dim=1))
        return loss
    _, negatives = memory(F.normalize(out1.detach(), dim=1), update=update)
    return info_nce(out0, out1, queue=negatives.T, temperature=temperature)


def _against_all(z: Tensor, temperature: float) -> Any:
    B, everyone = z.shape[1], all_gather_with_grad(z, dim=1)  # [2, W B, D]
    index = torch.arange(everyone.shape[0] * everyone.shape[1], device=z.device).view(2, -1)
    own = index[:, rank() * B : (rank() + 1) * B]
    return info_nce(
        z.flatten(0, 1), everyone.flatten(0, 1), targets=own.flip(0).flatten(),
        query_ids=own.flatten(), key_ids=index.flatten(), temperature=temperature,
    )  # fmt: skip


@torch.no_grad()
def update_momentum(model: nn.Module, model_ema: nn.Module, m: float) -> None:
    """Move the parameters of `model_ema` to m * themselves + (1 - m) * those of `model`.

    Args:
        model: the trained one.
        model_ema: its average, with the same parameters.
        m: usually in [0, 1]; else plain PyTorch.

    Raises:
        RuntimeError: modules without parameters, or with other ones.
    """
    if fused_update_momentum(model, model_ema, m) is NotImplemented:
        averages: list[Tensor] = list(model_ema.parameters())
        torch._foreach_mul_(averages, m)
        torch._foreach_add_(averages, [*model.parameters()], alpha=1.0 - m)


@torch.no_grad()
def fused_update_momentum(model: nn.Module, model_ema: nn.Module, m: float) -> Any:
    """None by one kernel, or NotImplemented."""
    sources, averages = list(model.parameters()), list(model_ema.parameters())
    alike = [
        [(each.shape, each.device, each.layout) for each in part] for part in (sources, averages)
    ]
    if not (
        sources
        and alike[0] == alike[1]
        and all(each.dtype in FLOATING for each in (*sources, *averages))
        and _apart(sources, averages)
        and is_number(m)
        and 0 <= m <= 1
    ):
        return NotImplemented
    ema_update_(averages, sources, m)
    return None


def _apart(sources: Sequence[Tensor], averages: Sequence[Tensor]) -> bool:
    """Whether the op takes them: on one device, and no memory twice, which the package rewrites."""
    tracing = torch.compiler.is_compiling()
    read, written = (
        [id(each) if tracing else each.data_ptr() for each in part if each.numel()]
        for part in (sources, averages)
    )
    written = [each for each in written if each]  # meta tensors have none
    return (
        len({each.device for each in averages}) == 1
        and len(set(written)) == len(written)
        and set(written).isdisjoint(read)
        and not any(0 in each.stride() for each in averages)
    )
