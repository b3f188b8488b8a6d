"""Nested tuples, lists and mappings of tensors: their tensors, their rows, their parts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from sslops._join import cat
from sslops._names import shown

__all__ = ["concatenate", "map_tensors", "split_rows", "tensors_of"]


def map_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """`value` with every tensor replaced by `change(tensor)`; all else stays.

    A mapping that its items as keywords do not make again becomes a dict.
    """
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        items = {key: map_tensors(each, change) for key, each in value.items()}
        return _rebuilt(type(value), items) if isinstance(value, dict) else items
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(each, change) for each in value))
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(each, change) for each in value)
    return value


def _rebuilt(kind: type[dict[Any, Any]], items: dict[Any, Any]) -> dict[Any, Any]:
    """`items` as that kind of dict (a ModelOutput of transformers), where keywords make one."""
    if kind is dict:
        return items
    try:
        found = kind(**items)
    except Exception:  # it may want other arguments, and check them as it likes
        return items
    same = list(found) == list(items) and all(found[key] is items[key] for key in items)
    return found if same else items


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in `value`, from left to right."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [tensor for each in value for tensor in tensors_of(each)]
    return []


def split_rows(value: Any, size: int) -> list[Any]:
    """`value` cut along the first dimension of its tensors; what has no rows is in every part.

    Raises:
        ValueError: no tensor with rows, no rows, or tensors that differ in them.
    """
    rows = {len(tensor) for tensor in tensors_of(value) if tensor.ndim}
    if not rows:
        raise ValueError(f"GradCache: an input must hold tensors with rows, got {type(value)}")
    if len(rows) > 1:
        raise ValueError(
            "GradCache: the tensors of an input must have the same number of rows, got"
            f" {shown(rows)}"
        )
    if rows == {0}:
        raise ValueError("GradCache: an input must have at least one row, got 0")

    def part(start: int) -> Any:
        return map_tensors(value, lambda t: t[start : start + size] if t.ndim else t)

    return [part(start) for start in range(0, rows.pop(), size)]


def concatenate(parts: Sequence[Any]) -> Any:
    """The inverse of `split_rows` for parts that hold nothing but tensors."""
    columns = zip(*(tensors_of(part) for part in parts), strict=True)
    whole = iter([cat(column) for column in columns])
    return map_tensors(parts[0], lambda _: next(whole))
