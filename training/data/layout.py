"""How a tree of files becomes a data set: one rule for folders and archives, whatever they hold.

    train/ beside test/, val/ or validation/    parts: one to train on, one to test on
    CLASS/...                                   the first folder is the label, even one named like
                                                a part if what it is a part of is not there
    files alone                                 no labels

A single folder around all of that is looked through. What is left out is said in a line.
"""

import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple

import torch

from sslops._names import shown
from sslops.training.data.dataset import Dataset, Split
from sslops.training.data.notes import say
from sslops.training.data.split import split_validation
from sslops.training.loggers.words import listed

__all__ = [
    "Division",
    "assemble",
    "divide",
    "find_files",
    "hidden",
    "is_part",
    "natural",
    "only",
    "walk",
]

TRAIN = ("train", "training")  # in any case, as the next ones
HELD_OUT = ("test", "testing", "val", "valid", "validation")  # the first of them is tested on
TEST_FRACTION = 0.1
SPLIT_SEED = 0  # fixed, so that every run on a folder has the same test part

_NUMBER = re.compile("[0-9]+")


def natural(path: PurePath | str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Key that sorts numbers in names by value: frame2 before frame10.

    Names whose numbers have equally many digits come in the order of `sorted`.
    """
    parts = PurePath(path).parts
    return tuple(_NUMBER.sub(_by_value, part) for part in parts), parts


def _by_value(match: re.Match[str]) -> str:
    digits = match[0].lstrip("0")
    return f"0{chr(len(digits))}{digits}"  # 0: a digit, to what is none; then the longer is larger


def is_part(name: str) -> bool:
    """Whether a folder of that name is a part of the data, and no class."""
    return name.lower() in TRAIN + HELD_OUT


def hidden(path: PurePosixPath) -> bool:
    """Whether a program made it for itself: .thumbnails, ._1.png, __MACOSX."""
    return any(part.startswith((".", "__MACOSX")) for part in path.parts)


def only(names: Sequence[PurePosixPath], suffixes: frozenset[str], root: Path) -> list[int]:
    """Indices of the names that end in one of `suffixes`, in natural order; says the others."""
    others: Counter[str] = Counter()
    chosen = []
    for i, name in enumerate(names):
        if name.suffix.lower() in suffixes:
            chosen.append(i)
        else:
            others[name.suffix.lower() or "no ending"] += 1
    if others:
        counts = ", ".join(f"{count:,} {suffix}" for suffix, count in others.most_common(5))
        say(f"other files in {root} are not read: {counts}")
    return sorted(chosen, key=lambda i: natural(names[i]))


def find_files(root: Path, suffixes: frozenset[str], kind: str) -> list[PurePosixPath]:
    """Paths inside `root` of all files with one of the endings, in natural order.

    Raises:
        ValueError: a folder that cannot be listed, or a wanted file that is none: a link to
            nothing, a pipe.
    """
    names = [name for name in walk(root, kind) if not hidden(name)]
    names = [names[i] for i in only(names, suffixes, root)]
    for name in names:
        try:
            regular = stat.S_ISREG((root / name).stat().st_mode)
        except OSError as error:
            raise ValueError(
                f"{kind}: every file must be readable, got {root / name}: {error.strerror}"
            ) from error
        if not regular:
            raise ValueError(f"{kind}: every file must be readable, got {root / name}: no file")
    return names


def holds(root: Path, suffixes: frozenset[str]) -> bool:
    """Whether `root` is a folder with such a file somewhere in it."""
    return root.is_dir() and any(
        name.suffix.lower() in suffixes and not hidden(name) for name in walk(root, "data")
    )


def walk(root: Path, kind: str) -> Iterator[PurePosixPath]:
    """All files below `root`, through links, but never into a folder that holds the link."""

    def refuse(error: OSError) -> None:
        raise ValueError(
            f"{kind}: every folder must be readable, got {error.filename}: {error.strerror}"
        ) from error

    above: dict[str, frozenset[tuple[int, int]]] = {}
    for folder, inner, names in os.walk(root, onerror=refuse, followlinks=True):
        here = _identity(folder)
        seen = above.pop(folder, frozenset()) | {here}
        for name in [*inner]:
            path = os.path.join(folder, name)
            if _identity(path) in seen:  # by a link to a folder above
                say(f"{path} is not followed: it is a folder that holds it")
                inner.remove(name)
            else:
                above[path] = seen
        for name in names:
            yield PurePosixPath(Path(folder, name).relative_to(root).as_posix())


def _identity(folder: str) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


class Division(NamedTuple):
    """Which names are in which part; `test` is empty where none is set apart.

    `labels` are those of `train`, then of `test`, and empty without classes. `plain` are positions
    in `train` in the order of `sorted` names: over that one a tenth is set apart, as always, lest
    a run of an earlier version be tested on what it was trained on.
    """

    train: list[int]
    test: list[int]
    classes: tuple[str, ...]
    labels: list[int]
    plain: list[int]

    @property
    def used(self) -> list[int]:
        """`train`, then `test`."""
        return self.train + self.test


def divide(
    names: Sequence[PurePosixPath], *, kind: str, items: str, root: Path, labelled: bool = True
) -> Division:
    """Parts and labels of what lies in `root`, by the rule at the top of this file.

    Of several held-out parts the first of `HELD_OUT` is taken whose files have labels if those of
    train/ do. `train` beside folders that are no parts is a class, and so is `val` beside such ones
    without `train`. Classes are in the order of `sorted`, as everywhere: a label is a name and has
    no size.

    Args:
        names: paths inside `root`, in order; at least one.
        kind: prefix of errors.
        items: what they are, for messages: "images".
        root: for messages.
        labelled: False ignores class folders.

    Raises:
        ValueError: some in class folders and some outside, classes that train/ lacks, parts of
            which only one has classes, held-out parts alone or beside files, but without train/.
    """
    paths = _unwrapped([name.parts for name in names])
    tops: dict[str, list[int]] = defaultdict(list)
    for i, path in enumerate(paths):
        tops[path[0] if len(path) > 1 else ""].append(i)
    train, held_out = _parts(tops, kind, items, root, labelled)
    depth = 0 if train is None else 1
    members = {"train": list(range(len(paths))) if train is None else tops[train]}

    def folders(part: list[int]) -> list[str]:
        """Class folder of each; [] if all lie outside."""
        loose = [i for i in part if len(paths[i]) == depth + 1]
        if loose and len(loose) < len(part):
            raise ValueError(
                f"{kind}: {items} must all lie in class folders or all outside, got"
                f" {names[loose[0]]} beside folders in {root}"
            )
        return [] if loose else [paths[i][depth] for i in part]

    if held_out:
        assert train is not None
        deep = {part: any(len(paths[i]) > 2 for i in tops[part]) for part in (train, *held_out)}
        test = held_out[0]
        if labelled:
            test = next((part for part in held_out if deep[part] == deep[train]), test)
        members["test"] = tops[test]
        _say_unused({each: tops[each] for each in tops if each not in (train, test)},
                    train, test, items, root)  # fmt: skip
    train_part, test_part = members["train"], members.get("test", [])
    plain = sorted(range(len(train_part)), key=lambda k: names[train_part[k]])
    if not labelled:
        return Division(train_part, test_part, (), [], plain)
    found = {part: folders(indices) for part, indices in members.items()}
    classes = tuple(sorted(set(found["train"])))
    if held_out:
        if bool(found["test"]) != bool(classes):
            raise ValueError(
                f"{kind}: {train}/ and {test}/ must both have class folders, in {root}"
            )
        if unknown := sorted(set(found["test"]) - set(classes)):
            raise ValueError(
                f"{kind}: classes of {test}/ must be in {train}/, got {shown(unknown)} in {root}"
            )
    number = {name: label for label, name in enumerate(classes)}
    labels = [number[name] for part in found.values() for name in part]
    return Division(train_part, test_part, classes, labels, plain)


def _unwrapped(paths: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Without the folder around everything that an archive may have; it is no class."""
    while all(len(path) > 2 for path in paths) and len({path[0] for path in paths}) == 1:
        if is_part(paths[0][0]):
            break
        paths = [path[1:] for path in paths]
    return paths


def _parts(
    tops: dict[str, list[int]], kind: str, items: str, root: Path, labelled: bool
) -> tuple[str | None, list[str]]:
    """The folder to train on (None: everything), and the held-out ones, the preferred one first."""
    known = [name for name in TRAIN + HELD_OUT for top in tops if top.lower() == name]
    place = {top.lower(): top for top in reversed(tops)}
    train = next((place[name] for name in known if name in TRAIN), None)
    held_out = [place[name] for name in dict.fromkeys(known) if name in HELD_OUT]
    if train is not None and held_out:
        return train, held_out
    if len(tops) == 1 and known:
        if held_out:
            say(f"{root} holds {held_out[0]}/ alone, so that is divided to train and to test on")
        return place[known[0]], []
    if held_out and ("" in tops or all(is_part(top) for top in tops)):
        others = [f"{top}/" if top else items for top in tops if top != held_out[0]]
        raise ValueError(
            f"{kind}: {held_out[0]}/ is a part and needs train/ beside it, got"
            f" {shown(others, ', ')} in {root}"
        )
    if train is not None:
        how = "as a class" if labelled else "like the rest"
        say(f"{root}: {train}/ is read {how}, as no {'/, '.join(HELD_OUT)}/ is there")
    if held_out:
        several = len(held_out) > 1
        how = ("as classes" if several else "as a class") if labelled else "like the rest"
        which = listed(sorted(f"{part}/" for part in held_out))
        say(f"{root}: {which} {'are' if several else 'is'} read {how}, as no {TRAIN[0]}/ is there")
    return None, []


def _say_unused(
    unused: dict[str, list[int]], train: str, test: str, items: str, root: Path
) -> None:
    if unused:
        unread = shown(
            (
                f"{name}/ ({len(each):,} {items})" if name else f"{len(each):,} {items} beside them"
                for name, each in unused.items()
            ),
            ", ",
        )
        say(f"{root}: {train}/ is trained on and {test}/ tested on; not used: {unread}")


def assemble(images: Any, division: Division, path: Path) -> Dataset:
    """The data set of a folder or an archive.

    Where no part is set apart, a tenth is, and one at least (seeded, stratified when labelled),
    drawn over the order of `sorted` names.

    Args:
        images: Tensor, Waves or Clips of `division.used`, in that order.
        division: their parts and labels.
        path: of the folder or the archive.

    Raises:
        ValueError: a single image, which cannot be in two parts.
    """
    labels = torch.tensor(division.labels) if division.classes else None
    n = len(division.train)

    def split(rows: slice) -> Split:
        return Split(images[rows], None if labels is None else labels[rows])

    train = split(slice(n))
    if division.test:
        test = split(slice(n, None))
    else:
        if n < 2:
            raise ValueError(
                f"data: needs two files, one to train and one to test on, got {n} in {path}"
            )
        share = max(1, round(TEST_FRACTION * n)) / n
        order = torch.tensor(division.plain)
        train, test = split_validation(train, share, SPLIT_SEED, order=order)
    path = Path(os.path.abspath(path))  # a name for "." and "..", too
    return Dataset(
        path.name, train, test, division.classes, "that of your files", str(path.resolve())
    )
