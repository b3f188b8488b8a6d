"""Every argument of every loss that sslops.compat stands in for, with values to try.

An argument of a package that no `Option` names fails `make peers`; one that is listed is compared
with the package, as a drop-in and patched. `tests/compat/_compat_options_*.py` hold the lists.
"""

import importlib
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

B, D, K = 12, 8, 64


class Option(NamedTuple):
    """A value of an argument."""

    argument: str
    label: str
    init: Callable[[], dict[str, Any]] = dict  # of the constructor, made anew for each object
    call: Callable[[dict[str, Any]], dict[str, Any]] = lambda given: {}  # what of the call changes
    context: Callable[[], Any] = nullcontext
    differs: str = ""  # how the drop-in's result does, as docs/migration says; of both if patched
    patched_differs: bool = False


class Target(NamedTuple):
    """A class or function and its options."""

    package: str  # sslops.compat.<package>
    module: str  # of the original
    name: str
    method: str  # which takes the inputs; empty for a function
    inputs: Callable[[], dict[str, Any]]
    options: list[Option]
    first: Callable[[], tuple[Any, ...]] = tuple  # positional arguments before those of `init`
    calls: int = 1
    positional: bool = False  # versions differ in the names
    state: Callable[[Any], list[Tensor]] = lambda loss: []  # what a call leaves behind


CONTEXTS = [
    Option("", "defaults"),
    Option("", "no_grad", context=torch.no_grad),
    Option("", "inference_mode", context=torch.inference_mode),
    Option("", "autocast", context=lambda: torch.autocast("cpu", torch.bfloat16)),
]


def values(argument: str, *given: Any, **options: Any) -> list[Option]:
    """An Option of the constructor for each value; a callable makes its value."""

    def option(value: Any) -> Option:
        made = value if callable(value) else (lambda: value)
        label = getattr(value, "__name__", str(value))
        return Option(argument, label, lambda: {argument: made()}, **options)

    return [option(each) for each in given]


def inits(argument: str, **labelled: Callable[[], dict[str, Any]]) -> list[Option]:
    """An Option for each combination of arguments of the constructor."""
    return [Option(argument, label, init) for label, init in labelled.items()]


def calls(
    argument: str, init: Callable[[], dict[str, Any]] = dict, **labelled: Callable[[Any], Any]
) -> list[Option]:
    """An Option for each function from the inputs to those that are changed."""
    return [Option(argument, label, init, call) for label, call in labelled.items()]


def of_rows(argument: str, init: Callable[[], dict[str, Any]] = dict) -> list[Option]:
    """What may come as [rows, D]."""

    def change(function: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Any]], dict[str, Any]]:
        return lambda given: {argument: function(given[argument])}

    return calls(
        argument,
        init,
        one_row_less=change(lambda x: x[:-1]),
        one_row=change(lambda x: x[:1]),
        no_row=change(lambda x: x[:0]),
        other_features=change(lambda x: x[:, :-1]),
        flat=change(lambda x: x.flatten()),
        stacked=change(lambda x: x[None]),
        strided=change(lambda x: x.T.contiguous().T),
        nan=change(lambda x: torch.cat([x[:1] / 0 * 0, x[1:]])),
        infinite=change(lambda x: torch.cat([x[:1] / 0, x[1:]])),
        zero_row=change(lambda x: torch.cat([0 * x[:1], x[1:]])),
        integers=change(lambda x: (10 * x).long()),
        half=change(lambda x: x.half()),
    )


def together(names: tuple[str, ...], **labelled: Callable[[Tensor], Tensor]) -> list[Option]:
    """The same change of several inputs."""

    def option(label: str, function: Callable[[Tensor], Tensor]) -> Option:
        return Option(names[0], label, dict, lambda given: {n: function(given[n]) for n in names})

    return [option(*each) for each in labelled.items()]


SIZES: dict[str, Callable[[Tensor], Tensor]] = {
    "one_sample": lambda x: x[:1],
    "two_samples": lambda x: x[:2],
    "no_sample": lambda x: x[:0],
    "all_zero": lambda x: 0 * x,
    "all_equal": lambda x: x[:1].expand_as(x).clone(),
}


def targets() -> list[Target]:
    """All of them."""
    found: list[Target] = []
    for part in ("vision", "metric", "text"):
        found += importlib.import_module(f"tests.compat._compat_options_{part}").TARGETS
    return found
