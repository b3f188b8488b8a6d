"""Tar archives that people have: packed, cut off, with links to nothing."""

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["has_end", "open_tar"]


def _header() -> type[tarfile.TarInfo]:
    """A class of headers that knows whether the last block it was asked for is the end's mark.

    tarfile takes whatever is no header, cut off or damaged, for the end.
    """

    class Header(tarfile.TarInfo):
        ended = False

        @classmethod
        def frombuf(cls, buf: Any, encoding: str, errors: str) -> Any:
            Header.ended = len(buf) == tarfile.BLOCKSIZE and not any(buf)
            return super().frombuf(buf, encoding, errors)

    return Header


@contextmanager
def open_tar(path: Path, rule: str) -> Iterator[tarfile.TarFile]:
    """An open archive; whatever fails while it is read is a ValueError "`rule`, got PATH: why".

    Raises:
        ValueError: it is no tar, or damaged.
    """
    try:
        with tarfile.open(path, tarinfo=_header()) as archive:
            yield archive
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, KeyError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
        raise ValueError(f"{rule}, got {path}: {why}") from error


def has_end(archive: tarfile.TarFile) -> bool:
    """Whether an archive of `open_tar`, read to its end, has the mark of one: a block of zeros.

    Else it may be cut off or damaged, and what follows was not read.
    """
    return bool(archive.tarinfo.ended)  # type: ignore[attr-defined]  # of _header
