"""Import a package for its losses, without the requirements that they do not use."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from torch import nn


class _Anything(type):
    """Metaclass of classes that have every attribute."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _anything(name)


def _anything(name: str) -> _Anything:
    return _Anything(name, (nn.Module,), {"__init__": lambda self, *_, **__: None})


class _StandIn(ModuleType):
    """Empty module that has every name, as an empty class."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _anything(name)


class _Finder:
    """Finds stand-ins for packages that a peer imports but its losses do not use."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.split(".")[0] in self.names:
            return importlib.util.spec_from_loader(name, self)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


# What each package imports beside its losses: models, images, trainers, loggers.
UNUSED = {
    "lightly": ("torchvision", "timm", "pytorch_lightning"),
    "open_clip": ("torchvision", "timm"),
    "solo": (
        "torchvision", "timm", "pytorch_lightning", "einops", "torchmetrics", "pl_bolts", "wandb",
        "PIL",
    ),
}  # fmt: skip


def import_peer(module: str) -> Any:
    """Import a module of a peer; of its unused requirements, stand-ins replace the missing ones.

    They are gone from `sys.modules` afterwards, so that nobody else takes them for real.

    Raises:
        ImportError: the package, or something that its losses do need, is missing.
    """
    unused = UNUSED.get(module.split(".", maxsplit=1)[0], ())
    missing = [name for name in unused if importlib.util.find_spec(name) is None]
    finder = _Finder(missing)
    sys.meta_path.append(finder)
    try:
        return importlib.import_module(module)
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] in missing]:
            del sys.modules[name]
