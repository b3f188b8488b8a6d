"""Tar archives that people have: packed, cut off, with links to nothing."""

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["has_end", "open_tar"]


@contextmanager
def open_tar(path: Path, rule: str) -> Iterator[tarfile.TarFile]:
    """An open archive; whatever fails while it is read is a ValueError "`rule`, got PATH: why".

    Raises:
        ValueError: it is no tar, or damaged.
    """
    try:
        with tarfile.open(path) as archive:
            yield archive
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, KeyError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
        raise ValueError(f"{rule}, got {path}: {why}") from error


def has_end(archive: tarfile.TarFile) -> bool:
    """Whether an archive that was read to its end has the mark of one; else it may be cut off."""
    assert archive.fileobj is not None
    return archive.fileobj.tell() >= archive.offset + tarfile.BLOCKSIZE  # which it was read from
