"""One small message per call: sizes, and that all ranks mean the same comparison.

Without it ranks that differ would wait for each other for ever, or compare what does not belong
together. It also carries the refusal of a rank whose own arguments are wrong.
"""

import math
import zlib
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sslops._names import shown
from sslops.parallel.team import Team, eager

T = TypeVar("T")
Same = float | str | torch.dtype
LENGTH = 24  # numbers in a header, the same for every loss so that two different ones can meet
OK, REFUSED = 0.0, 1.0


def checked_by_all(team: Team | None, op: str, like: object, check: Callable[[], T]) -> T:
    """What `check` returns; if it raises, every rank of the next `agree` raises as well.

    Args:
        team: the ranks; None for this process alone.
        op: name of the loss.
        like: what should be a tensor on the device of the call.
        check: looks at this rank's arguments, without any communication.
    """
    if team is None:
        return check()
    try:
        return check()
    except (TypeError, ValueError):
        _exchange(team, [REFUSED, _number(op)], None, _device(team, like))
        raise


@eager
def agree(
    team: Team,
    op: str,
    like: Tensor,
    sizes: Mapping[str, int],
    same: Mapping[str, Same],
    scalars: Mapping[str, Tensor | None],
) -> dict[str, list[int]]:
    """The sizes of every rank, after it is clear that the rest is the same on all.

    Args:
        team: the ranks.
        op: name of the loss.
        like: a tensor on the device of the call.
        sizes: what may differ: numbers of rows.
        same: what may not: numbers, names, dtypes.
        scalars: 0-d tensors that may not either, read here together with the rest.

    Raises:
        ValueError: ranks differ, or one of them refused its arguments. On all ranks.
    """
    values = [OK, _number(op), *map(float, sizes.values()), *map(_number, same.values())]
    tensors = [scalar for scalar in scalars.values() if scalar is not None]
    rows = _exchange(team, values, tensors, like.device)
    refused = [rank for rank, row in enumerate(rows) if row[0] != OK]
    if refused:
        raise ValueError(
            f"{op}: arguments must be right on all ranks, got a refusal by {shown(refused)}"
        )
    names = ["loss", *sizes, *same, *(name for name, each in scalars.items() if each is not None)]
    for column, name in enumerate(names, 1):
        found = [row[column] for row in rows]
        alike = all(each == found[0] or (each != each and found[0] != found[0]) for each in found)
        if name not in sizes and not alike:
            each = shown(_readable(name, found, same))
            raise ValueError(f"{op}: ranks must have the same {name}, got {each} in rank order")
    first = 2
    return {name: [int(row[first + n]) for row in rows] for n, name in enumerate(sizes)}


@eager
def _exchange(
    team: Team, values: list[float], tensors: list[Tensor] | None, device: torch.device
) -> list[list[float]]:
    header = torch.zeros(LENGTH, dtype=torch.float64)
    header[: len(values)] = torch.tensor(values, dtype=torch.float64)
    header = header.to(device)
    for n, tensor in enumerate(tensors or ()):
        header[len(values) + n] = tensor.detach()
    everyone = [torch.empty_like(header) for _ in range(team.size)]
    dist.all_gather(everyone, header, group=team.group)
    found: list[list[float]] = torch.stack(everyone).tolist()
    return found


def _number(value: Same) -> float:
    """A number for a name or dtype that is the same in every process."""
    if isinstance(value, (str, torch.dtype)):
        return float(zlib.crc32(str(value).encode()))
    return float(value)


def _readable(name: str, found: list[float], same: Mapping[str, Same]) -> list[float] | list[str]:
    """Numbers as they are; names and dtypes only as far as this process knows them."""
    own = same.get(name, name)
    if not isinstance(own, (str, torch.dtype)):
        return [int(each) if math.isfinite(each) and each == int(each) else each for each in found]
    return [str(own) if each == _number(own) else "another" for each in found]


def _device(team: Team, like: object) -> torch.device:
    if isinstance(like, Tensor):
        return like.device
    kinds = dist.get_backend(team.group)
    return torch.device("cuda" if kinds == "nccl" else "cpu")
