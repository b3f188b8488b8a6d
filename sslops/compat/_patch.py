"""Put the classes of sslops.compat into an installed package, and take them out again."""

import importlib
import sys
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

from sslops._names import shown

# package -> its import name, and the module that defines each name
_PACKAGES = {
    "lightly": (
        "lightly",
        {"NTXentLoss": "loss.ntx_ent_loss", "update_momentum": "models.utils"},
    ),
    "open_clip": ("open_clip", {"ClipLoss": "loss", "SigLipLoss": "loss"}),
    "pytorch_metric_learning": (
        "pytorch_metric_learning",
        {
            "NTXentLoss": "losses.ntxent_loss",
            "SupConLoss": "losses.supcon_loss",
            "SelfSupervisedLoss": "losses.self_supervised_loss",
            "CrossBatchMemory": "losses.cross_batch_memory",
        },
    ),
    "sentence_transformers": (
        "sentence_transformers",
        {
            "MultipleNegativesRankingLoss": (
                "sentence_transformer.losses.multiple_negatives_ranking"
            ),
            "CachedMultipleNegativesRankingLoss": (
                "sentence_transformer.losses.cached_multiple_negatives_ranking"
            ),
        },
    ),
    "solo_learn": (
        "solo",
        {"simclr_loss_func": "losses.simclr", "mocov2plus_loss_func": "losses.mocov2plus"},
    ),
    "info_nce_pytorch": ("info_nce", {"InfoNCE": "", "info_nce": ""}),
}


class Patch:
    """What `patch` returned: `undo()`, or leaving its `with` block, restores the originals."""

    def __init__(self, root: str, pairs: list[tuple[Any, Any]]) -> None:
        self._root = root
        self._pairs = pairs
        for theirs, ours in pairs:
            _swap(root, theirs, ours)

    def undo(self) -> None:
        """Restore what this patch replaced; a second call does nothing."""
        for theirs, ours in self._pairs:
            _swap(self._root, ours, theirs)
        self._pairs = []

    def __enter__(self) -> "Patch":
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


def patch(package: str, classes: str | Iterable[str] | None = None) -> Patch:
    """Replace an installed package's losses by those of `sslops.compat`, until undone.

    Every module of the package that holds one of the originals gets its replacement. Names that
    were imported into other modules before, and objects made before, stay what they were.

    Args:
        package: "lightly", "open_clip", "pytorch_metric_learning", "sentence_transformers",
            "solo_learn" or "info_nce_pytorch".
        classes: name or names to replace; default: all that `sslops.compat.<package>` has.

    Returns:
        A `Patch`, also a context manager. Of several for the same name the first one counts.

    Raises:
        ValueError: another package, or a name that is not replaced.
        ImportError: the package is not installed, cannot be imported, or lacks the name.

    Example:
        >>> with patch("lightly"):  # doctest: +SKIP
        ...     train()
    """
    if package not in _PACKAGES:
        raise ValueError(
            f"patch: package must be one of {tuple(_PACKAGES)}, got {package!r}{_hint(package)}"
        )
    root, places = _PACKAGES[package]
    names = (
        (classes,) if isinstance(classes, str) else tuple(places if classes is None else classes)
    )
    if unknown := set(names) - set(places):
        raise ValueError(
            f"patch: classes of {package} must be of {tuple(places)}, got {shown(unknown)}"
        )
    compat = importlib.import_module(f"sslops.compat.{package}")
    pairs = []
    for name in names:
        module = f"{root}.{places[name]}".rstrip(".")
        try:
            theirs = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            if isinstance(error, ModuleNotFoundError) and error.name == root:
                raise ImportError(f"patch: {package} is not installed, got {error}") from error
            raise ImportError(f"patch: {package} must have {module}.{name}, got {error}") from error
        ours = getattr(compat, name)
        if theirs is not ours:
            pairs.append((theirs, ours))
    return Patch(root, pairs)


def _hint(package: object) -> str:
    """Which package another spelling of its name, or the name it is imported by, may mean."""
    spelt = str(getattr(package, "__name__", package)).lower().replace("-", "_")
    meant = [name for name, (root, _) in _PACKAGES.items() if spelt in (name, root)]
    return f"; did you mean {meant[0]!r}?" if meant else ""


def _modules(root: str) -> Iterator[ModuleType]:
    for name, module in list(sys.modules.items()):
        if module is not None and (name == root or name.startswith(root + ".")):
            yield module


def _swap(root: str, old: Any, new: Any) -> None:
    for module in _modules(root):
        for name, value in list(vars(module).items()):
            if value is old:
                setattr(module, name, new)
