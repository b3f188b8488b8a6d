"""What an adapter returns, and how its availability is asked."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from bench.cases import Case
from bench.providers.stand_ins import import_peer


class Skip(Exception):
    """This provider cannot run this case; the message says why."""


@dataclass(frozen=True)
class Job:
    """One implementation, bound to the inputs of a case.

    Attributes:
        loss: the forward pass; None for ops without one.
        after: what follows the backward pass in a training step, or all of an op without a loss.
        state: tensors that a step has changed, [K, D] for a queue.
        context: entered around everything that is timed, outside of the clock.
        waits: a step reads the device on the host, so that no CUDA graph can hold it.
    """

    loss: Callable[[], Tensor] | None = None
    after: Callable[[], object] | None = None
    state: Callable[[], Mapping[str, Tensor]] = dict
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    waits: bool = False


@dataclass(frozen=True)
class Provider:
    """A package or a way to write the ops.

    Attributes:
        ops: op -> adapter; ops that are missing here are not a part of it.
        package: whose version is recorded; "" for code of this repository.
        needs: modules that must import.
        cuda: whether it runs on CUDA devices only.
    """

    ops: Mapping[str, Callable[[Case], Job]]
    package: str = ""
    needs: tuple[str, ...] = ()
    cuda: bool = False
    extra: Callable[[], str | None] = field(default=lambda: None)

    def available(self, device: torch.device) -> str | None:
        """None, or why it cannot run on `device`."""
        if self.cuda and device.type != "cuda":
            return "needs a CUDA device"
        for module in self.needs:
            try:
                import_peer(module)
            except Exception as error:  # some fail with far more than an ImportError
                return f"{module} does not import: {type(error).__name__}: {error}"
        return self.extra()

    def version(self) -> str:
        """Of the package, or of torch for code of this repository."""
        try:
            return metadata.version(self.package or "torch")
        except metadata.PackageNotFoundError:
            return "unknown"
