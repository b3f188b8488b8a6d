"""DistributedDataParallel over many micro-batches: gradients are averaged once, after the last."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["Averaging"]


class Averaging:
    """Which micro-batch is the last one of each DistributedDataParallel module.

    Args:
        modules: where to look for them.
        encoders: what runs each micro-batch; a function may run any of them.
    """

    def __init__(
        self, modules: Sequence[nn.Module], encoders: Sequence[Callable[..., object]]
    ) -> None:
        found = {id(m): m for top in modules for m in top.modules()}
        self.modules = [m for m in found.values() if isinstance(m, DistributedDataParallel)]
        self._last: dict[int, int] = {}
        for number, encoder in enumerate(encoders):
            inside = list(encoder.modules()) if isinstance(encoder, nn.Module) else None
            for n, module in enumerate(self.modules):
                if inside is None or module in inside:
                    self._last[n] = number

    @contextmanager
    def postponed(self, number: int | None) -> Iterator[None]:
        """Only what runs for the last time in micro-batch `number` averages inside the block."""
        with ExitStack() as stack:
            for n, module in enumerate(self.modules):
                if number is None or self._last.get(n) != number:
                    stack.enter_context(module.no_sync())
            yield

    def completion(self, number: int, outputs: Sequence[Tensor]) -> list[Tensor]:
        """What must go backward beside the `outputs` of micro-batch `number`: sums of nothing.

        A module that averages waits for each of its weights, also for those that only other
        micro-batches or the loss itself used. Where it looks for unused ones, it does not.
        """
        idle: list[Tensor] = []
        for n, module in enumerate(self.modules):
            if self._last.get(n) == number and not module.find_unused_parameters:
                idle += _unreached(module, outputs)
        return [param.flatten()[:0].sum() for param in idle]


def _unreached(module: nn.Module, outputs: Sequence[Tensor]) -> list[Tensor]:
    """Parameters with gradient that the graph of `outputs` does not lead to."""
    stack = [out.grad_fn for out in outputs]
    seen: set[torch.autograd.graph.Node] = set()
    reached: set[int] = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            reached.add(id(node.variable))
        stack += [following for following, _ in node.next_functions]
    return [p for p in module.parameters() if p.requires_grad and id(p) not in reached]
