"""What a second forward pass needs to do what the first one did."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

__all__ = ["Autocast", "Buffers", "Draws", "kept_buffers"]


class Draws:
    """State of torch's generators, of the host and of the devices of `tensors`, and of `others`."""

    def __init__(self, tensors: Sequence[Tensor], others: Sequence[torch.Generator] = ()) -> None:
        self._tensors, self._others = tensors, others
        self._host = torch.get_rng_state()
        self._devices, self._states = get_device_states(*tensors)
        self._own = [generator.get_state() for generator in others]

    def _restore(self) -> None:
        torch.set_rng_state(self._host)
        set_device_states(self._devices, self._states)
        for generator, state in zip(self._others, self._own, strict=True):
            generator.set_state(state)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draw the same numbers once more inside the block; afterwards go on as before it."""
        after = Draws(self._tensors, self._others)
        self._restore()
        try:
            yield
        finally:
            after._restore()


class Autocast:
    """The autocast of the host and of the kinds of device of `tensors`.

    Its cache is off: a cast that was made without graph must not be found by a pass with one.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        kinds = {"cpu", *(tensor.device.type for tensor in tensors)}
        self._kinds = {
            kind: (torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in sorted(kinds)
            if torch.amp.is_autocast_available(kind)
        }

    @contextmanager
    def again(self) -> Iterator[None]:
        """The same autocast inside the block."""
        with ExitStack() as stack:
            for kind, (dtype, enabled) in self._kinds.items():
                stack.enter_context(
                    torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False)
                )
            yield


class Buffers:
    """Buffers of modules, so that running statistics are updated by one of two passes."""

    def __init__(self) -> None:
        self._saved: list[tuple[Tensor, Tensor]] = []
        self.taken = False

    def take(self, modules: Sequence[nn.Module]) -> None:
        """Remember the buffers as they are, at the first call."""
        if not self.taken:
            self.taken = True
            found = {id(b): b for module in modules for b in module.buffers()}
            self._saved = [(b, b.clone()) for b in found.values()]

    def restore(self) -> None:
        """Put them back: all, as batch norm does not raise the version of what it writes."""
        with torch.no_grad():
            for buffer, saved in self._saved:
                buffer.copy_(saved)


@contextmanager
def kept_buffers(*modules: nn.Module) -> Iterator[Any]:
    """Leave the buffers of `modules` after the block as they were before it."""
    buffers = Buffers()
    buffers.take(modules)
    try:
        yield buffers
    finally:
        buffers.restore()
