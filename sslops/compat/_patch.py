"""Put the kernels of sslops.compat under an installed package's losses, and take them out again."""

import functools
import importlib
import inspect
import sys
from abc import ABCMeta
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

from sslops._names import shown
from sslops.compat._shared import has_own_steps, steps_of

_RANKING = "sentence_transformer.losses"


class _Place(NamedTuple):
    """Where a name is defined, below the package, and which method of a class the kernels replace.

    A function is replaced itself: by the first of `fused` of sslops.compat that has its arguments.
    """

    module: str
    method: str = ""
    fused: tuple[str, ...] = ()
    optional: bool = False  # other versions of the package have another name


# package -> its import name, and the places of its names
_PACKAGES: dict[str, tuple[str, dict[str, _Place]]] = {
    "lightly": (
        "lightly",
        {
            "NTXentLoss": _Place("loss.ntx_ent_loss", "forward"),
            "update_momentum": _Place("models.utils", fused=("fused_update_momentum",)),
        },
    ),
    "open_clip": (
        "open_clip",
        {"ClipLoss": _Place("loss", "forward"), "SigLipLoss": _Place("loss", "forward")},
    ),
    "pytorch_metric_learning": (
        "pytorch_metric_learning",
        {
            "NTXentLoss": _Place("losses.ntxent_loss", "compute_loss"),
            "SupConLoss": _Place("losses.supcon_loss", "compute_loss"),
            "SelfSupervisedLoss": _Place("losses.self_supervised_loss", "forward"),
            "CrossBatchMemory": _Place("losses.cross_batch_memory", "forward"),
        },
    ),
    "sentence_transformers": (
        "sentence_transformers",
        {
            "MultipleNegativesRankingLoss": _Place(
                f"{_RANKING}.multiple_negatives_ranking", "compute_loss_from_embeddings"
            ),
            "CachedMultipleNegativesRankingLoss": _Place(
                f"{_RANKING}.cached_multiple_negatives_ranking", "calculate_loss"
            ),
        },
    ),
    "solo_learn": (
        "solo",
        {
            "simclr_loss_func": _Place(
                "losses.simclr", fused=("fused_simclr", "fused_simclr_of_views")
            ),
            "mocov2plus_loss_func": _Place(
                "losses.mocov2plus", fused=("fused_moco",), optional=True
            ),
            "moco_loss_func": _Place("losses.moco", fused=("fused_moco",), optional=True),
        },
    ),
    "info_nce_pytorch": (
        "info_nce",
        {"InfoNCE": _Place("", "forward"), "info_nce": _Place("", fused=("fused_info_nce",))},
    ),
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
    """Let an installed package's losses run on the kernels of sslops, until undone.

    Each class is replaced by a subclass of itself, so that its arguments, attributes, errors and
    checkpoints stay its own, and its own code runs wherever the kernels do not cover an option, an
    input or what a subclass has changed: a program does not fail for being patched. Every module of
    the package that holds one of the originals gets its replacement. Names that were imported into
    other modules before, and objects made before, stay what they were.

    Args:
        package: "lightly", "open_clip", "pytorch_metric_learning", "sentence_transformers",
            "solo_learn" or "info_nce_pytorch".
        classes: name or names to replace; default: all that `sslops.compat.<package>` has.

    Returns:
        A `Patch`, also a context manager. Of several for the same name the first one counts.

    Raises:
        ValueError: another package, or a name that is not replaced.
        ImportError: the package is not installed, cannot be imported, lacks the name, or has it
            with other arguments.

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
    there = {name: _found(package, name, must=classes is not None) for name in names}
    pairs = [
        (theirs, replacement(package, name))
        for name, theirs in there.items()
        if theirs is not None and original_of(theirs) is theirs
    ]
    return Patch(root, pairs)


def _found(package: str, name: str, must: bool = True) -> Any:
    """What the package has under the name now; None if it may lack it and does."""
    root, places = _PACKAGES[package]
    module = f"{root}.{places[name].module}".rstrip(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == root:
            raise ImportError(f"patch: {package} is not installed, got {error}") from error
        if places[name].optional and not must:
            return None
        raise ImportError(f"patch: {package} must have {module}.{name}, got {error}") from error


def original_of(theirs: Any) -> Any:
    """The package's own of what may be its replacement."""
    return vars(theirs).get("__wrapped__", theirs) if "drop_in" in vars(theirs) else theirs


def replacement(package: str, name: str) -> Any:
    """What the patch puts in the place of a name, the same at each call."""
    return _made(package, name, original_of(_found(package, name)))


@functools.cache
def _made(package: str, name: str, theirs: Any) -> Any:
    place = _PACKAGES[package][1][name]
    compat = importlib.import_module(f"sslops.compat.{package}")
    if place.method:
        candidates = [getattr(compat, name).fused]
        original = getattr(theirs, place.method, None)
    else:
        candidates = [getattr(compat, each) for each in place.fused]
        original = theirs
    fused = next((each for each in candidates if _takes(each, original)), None)
    if fused is None or original is None:
        known = " or ".join(str(inspect.signature(each)) for each in candidates)
        raise ImportError(
            f"patch: {package} must have {name} with arguments as in {known}, got"
            f" {inspect.signature(original) if original is not None else theirs}"
        )
    if not place.method:
        run = _one_or_other(fused, original)
        run.drop_in = name
        return run
    return _subclass(package, name, theirs, place.method, fused)


def _takes(fused: Callable[..., Any], original: Any) -> bool:
    if original is None:
        return False
    known, wanted = (list(inspect.signature(each).parameters) for each in (fused, original))
    return known[: len(wanted)] == wanted


def _one_or_other(fused: Callable[..., Any], original: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def run(*args: Any, **kwargs: Any) -> Any:
        found = fused(*args, **kwargs)
        return original(*args, **kwargs) if found is NotImplemented else found

    return run


def _subclass(package: str, name: str, theirs: type, method: str, fused: Callable[..., Any]) -> Any:
    """`theirs`, whose method first asks the kernels."""
    original = getattr(theirs, method)
    reads: tuple[str, ...] = getattr(
        importlib.import_module(f"sslops.compat.{package}"), name
    ).reads
    steps = steps_of(theirs)
    called = {key: step for key, step in steps.items() if key not in (method, "forward")}

    @functools.wraps(original)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        theirs_now = getattr(theirs, method)
        known = all(hasattr(self, each) for each in reads)  # in other versions they may not be
        # whenever the class, a subclass or the object was changed, its own code is what counts
        if theirs_now is not original or not known or has_own_steps(self, called):
            return theirs_now(self, *args, **kwargs)
        found = fused(self, *args, **kwargs)
        return original(self, *args, **kwargs) if found is NotImplemented else found

    made: Any = _kind_of(type(theirs))(
        theirs.__name__,
        (theirs,),
        {
            method: run,
            "drop_in": name,
            "drop_in_steps": {**steps, method: run},
            "__wrapped__": theirs,
            "__doc__": theirs.__doc__,
            # where a pickle finds it, patched or not
            "__module__": "sslops.compat._patched",
            "__qualname__": f"{package}__{name}",
        },
    )
    return made


@functools.cache
def _kind_of(kind: Any) -> Any:
    """The metaclass of a class that stands for the one it wraps: that one's objects are its own.

    The package asks for it by the patched name, of objects made before the patch, too.
    """

    def original(cls: Any) -> Any:
        return vars(cls).get("__wrapped__") if "drop_in" in vars(cls) else None

    base: Any = ABCMeta if kind is type else kind  # so that a subclass may be an ABC as before

    class StandsFor(base):  # type: ignore[misc]
        def __instancecheck__(cls, instance: object) -> bool:
            theirs = original(cls)
            return isinstance(instance, theirs) if theirs else super().__instancecheck__(instance)

        def __subclasscheck__(cls, subclass: type) -> bool:
            theirs = original(cls)
            return issubclass(subclass, theirs) if theirs else super().__subclasscheck__(subclass)

    return StandsFor


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
