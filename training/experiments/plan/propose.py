"""What makes a configuration fit a device."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from sslops.training.config import TrainConfig
from sslops.training.experiments.plan.simulate import Memory, simulate
from sslops.training.loggers.progress import working
from sslops.training.methods import ContrastiveMethod, DataShape, find_method

__all__ = ["Option", "propose"]

SMALL = (4, 8)  # micro-batches from which that of larger ones is estimated, before it is looked at


@dataclass(frozen=True)
class Option:
    """A way to run a configuration.

    Attributes:
        changes: config fields that differ from what was asked.
        config: with them.
        memory: of one process.
    """

    changes: dict[str, Any]
    config: TrainConfig
    memory: Memory

    @property
    def flags(self) -> str:
        """The changes as they are typed."""
        names = (f"--{name.replace('_', '-')}" for name in self.changes)
        values = ("" if value is True else f" {value}" for value in self.changes.values())
        return " ".join(a + b for a, b in zip(names, values, strict=True))


@working("working out the memory")
def propose(
    name: str,
    config: TrainConfig,
    shape: DataShape,
    limit: int | None,
    *,
    precision: Literal["fp32", "bf16"],
    processes: int = 1,
) -> list[Option]:
    """What was asked, then changes until one fits `limit` bytes: the last, if any does.

    Checkpointing goes first, as it changes no number; then the largest micro-batch (a power of two;
    batch norm has its statistics), then both, then all of it in bfloat16.

    Args:
        name: of the method.
        config: what was asked.
        shape: of the images.
        limit: bytes; None looks at nothing but what was asked.
        precision: what `config.precision` stands for.
        processes: among which the batch is divided.
    """
    share = config.batch // processes
    method = find_method(name).build(replace(config, compile=False), shape)
    divisible = isinstance(method, ContrastiveMethod) or method.mean_loss
    found: list[Option] = []

    def look(changes: dict[str, Any]) -> Memory:
        asked = replace(config, **changes)
        bf16 = changes.get("precision", precision) == "bf16"
        return simulate(name, asked, shape, bf16=bf16, processes=processes)

    def fits(changes: dict[str, Any]) -> bool:
        try:
            memory = look(changes)
        except ValueError:  # the method or its encoder refuses
            if not found:
                raise
            return False
        found.append(Option(changes, replace(config, **changes), memory))
        return limit is None or memory.total <= limit

    if fits({}) or limit is None:
        return found
    casts: list[dict[str, Any]] = [{}] if precision == "bf16" else [{}, {"precision": "bf16"}]
    twice: dict[str, Any] = {} if config.checkpointing else {"checkpointing": True}
    for cast in casts:
        if cast and fits(cast):
            return found
        if twice and fits({**twice, **cast}):
            return found
        if not divisible or config.micro_batch is not None:
            continue
        for changes in [cast, {**twice, **cast}] if twice else [cast]:

            def total(size: int, changes: dict[str, Any] = changes) -> int:
                return look({"micro_batch": size, **changes}).total

            size = _largest(total, share, limit)
            if size and fits({"micro_batch": size, **changes}):
                return found
    return found


def _largest(total: Callable[[int], int], share: int, limit: int) -> int | None:
    """The largest power of two below `share` whose total fits; the smallest one if none does."""
    sizes = [1 << n for n in range(1, share.bit_length()) if 1 << n < share]
    if not sizes:
        return None
    try:
        a, b = (total(size) for size in SMALL)
        grows = max(1, (b - a) // (SMALL[1] - SMALL[0]))
        sizes = [size for size in sizes if a + (size - SMALL[0]) * grows <= limit] or sizes[:1]
    except ValueError:
        pass  # the method takes no micro-batch that small
    for size in reversed(sizes):
        try:
            if total(size) <= limit:
                return size
        except ValueError:
            continue
    return sizes[0]
