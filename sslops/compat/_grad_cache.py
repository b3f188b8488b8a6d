"""Gradient of a loss of embeddings, whose encoder runs a few rows at a time (GradCache).

The embeddings come from a first pass without graph; the backward of the loss runs the encoder a
second time, piece by piece, with the same random numbers and the same autocast.

Source:
    Gao et al. 2021, arXiv:2101.06983, section 3.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import get_device_states, set_device_states

from sslops.compat._pieces import Features


class _Circumstances:
    """Random state and autocast of a first pass, for a second that must do the same."""

    def __init__(self, piece: Features) -> None:
        tensors = [value for value in piece.values() if isinstance(value, Tensor)]
        kind = tensors[0].device.type
        self._autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        self._cpu = torch.get_rng_state()
        self._devices, self._states = get_device_states(*tensors)

    @contextmanager
    def again(self) -> Iterator[None]:
        kind, dtype, enabled = self._autocast
        with (
            torch.random.fork_rng(devices=self._devices),
            torch.autocast(kind, dtype=dtype, enabled=enabled),
        ):
            torch.set_rng_state(self._cpu)
            set_device_states(self._devices, self._states)
            yield


def cached(
    embed: Callable[[Features], Tensor],
    loss_of: Callable[..., Tensor],
    columns: Sequence[list[Features]],
    model: object,
) -> Tensor:
    """Loss of the embeddings of all columns, with the activations of one piece at a time.

    Args:
        embed: embeddings [rows, D] of a piece.
        loss_of: scalar of the embeddings of each column, a list of pieces; `with_backward=True`
            it fills their gradients.
        columns: the pieces of each column.
        model: what `embed` runs; under DistributedDataParallel only the last piece synchronises.
    """
    flat = [piece for column in columns for piece in column]
    with torch.no_grad():
        seen = [(_Circumstances(piece), embed(dict(piece))) for piece in flat]
    rows = [embedded.detach().requires_grad_(torch.is_grad_enabled()) for _, embedded in seen]
    left = iter(rows)
    reps = [[next(left) for _ in column] for column in columns]
    if not torch.is_grad_enabled():
        return loss_of(reps)
    loss = loss_of(reps, with_backward=True)
    grads = [each.grad for each in rows]
    circumstances = [each for each, _ in seen]

    def replay(grad_loss: Tensor) -> None:
        for n, (piece, grad) in enumerate(zip(flat, grads, strict=True)):
            quiet: AbstractContextManager[Any] = nullcontext()
            if isinstance(model, DistributedDataParallel) and n + 1 < len(flat):
                quiet = model.no_sync()
            with quiet, torch.enable_grad():
                with circumstances[n].again():
                    embedded = embed(dict(piece))
                if grad is not None and embedded.requires_grad:
                    embedded.backward(grad * grad_loss.to(grad.dtype))  # type: ignore[no-untyped-call]

    loss = loss.detach().requires_grad_()
    loss.register_hook(replay)  # type: ignore[no-untyped-call]
    return loss
