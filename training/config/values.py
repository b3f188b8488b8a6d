"""Types of a configuration's values, looked at where it is made: before a run has a folder."""

import os
from collections.abc import Mapping
from dataclasses import fields
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = ["fitting", "fitting_values"]

# What is written in place of an object, for fields in which people expect objects to go.
MEANT = {
    "data": "a name that `sslops list` shows or the path of a folder",
    "eval_data": "a name that `sslops list` shows or the path of a folder",
    "out": "the path of a folder",
    "arch": "the name of an encoder that `sslops list` shows",
    "views": "the name of an augmentation that `sslops list` shows",
    "second_views": "the name of an augmentation that `sslops list` shows",
    "device": "auto, cpu, cuda, cuda:1 or a device of torch",
    "recipe": "a name that `sslops list` shows",
}
UNFIT = object()
KINDS = {str: "text", int: "a whole number", float: "a number", bool: "True or False"}


def fitting_values(owner: str, cls: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values as fields of a dataclass hold them: paths as text, numpy's numbers as Python's.

    Args:
        owner: who says what is wrong.
        cls: the dataclass.
        given: by field; names that are no field are passed on.

    Raises:
        TypeError: a value is of another type than its field.
        ValueError: a value is not of the field's list.
    """
    kinds = _kinds(cls)
    return {
        name: fitting(f"{owner}: {name}", name, value, kinds[name]) if name in kinds else value
        for name, value in given.items()
    }


def _kinds(cls: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


def fitting(what: str, name: str, value: Any, kind: Any) -> Any:
    """`value` as one of the type `kind`; see `fitting_values`."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    for each in kinds:
        found = _as(each, name, value)
        if found is not UNFIT:
            return found
    meant = " or ".join(_meant(each, name) for each in kinds if each is not NoneType)
    listed = isinstance(value, str) and any(get_origin(each) is Literal for each in kinds)
    raise (ValueError if listed else TypeError)(f"{what} must be {meant}, got {_shown(value)}")


def _as(kind: Any, name: str, value: Any) -> Any:
    """`value` as it is kept, or UNFIT."""
    if kind is NoneType:
        return None if value is None else UNFIT
    if get_origin(kind) is Literal:
        return value if isinstance(value, str) and value in get_args(kind) else UNFIT
    if kind is bool:
        return value if isinstance(value, bool) else UNFIT
    if kind is int or kind is float:
        wanted = Integral if kind is int else Real
        if isinstance(value, bool) or not isinstance(value, wanted):
            return UNFIT
        number: Any = value
        return number if type(number) in (int, float) else kind(number)
    if kind is str and not isinstance(value, str):
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        if name == "device" and type(value).__name__ == "device":  # torch's, not imported here
            return str(value)
        return UNFIT
    return value


def _meant(kind: Any, name: str) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    return MEANT.get(name, KINDS[kind]) if kind is str else KINDS[kind]


def _shown(value: Any) -> str:
    """Short: numbers and text as they are written, of all else the kind."""
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    if isinstance(value, str):
        return repr(value) if len(value) <= 40 else f"{value[:40]!r}..."
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
