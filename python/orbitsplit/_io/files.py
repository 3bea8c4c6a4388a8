"""Files read and written in one way: text with its file named in errors, and files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def read_text(path: str | Path) -> str:
    """Return the text of a UTF-8 file, with or without a byte order mark.

    Raises:
        ValueError: The file is not UTF-8; the message names the file, the byte and its place.
        OSError: The file cannot be read.
    """
    data = Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # From None: a UnicodeDecodeError prints the whole file.
        place = f"byte 0x{error.object[error.start]:02x} at offset {error.start}"
        raise ValueError(f"{path} is not UTF-8 text: {place}") from None


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file with line feeds, whole or not at all; see `atomic_write`."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a new path in the folder of `path` to write to; it takes the place of `path` when the block ends.

    What is written is on the disk before it is renamed, so that `path` is the old file, the new one or absent, also
    after a power failure. If the block raises, `path` stays as it was and the unfinished file is removed.

    A file that exists keeps its permissions. What is no regular file, such as `/dev/stdout` or a pipe, is written in
    place.

    Raises:
        OSError: The file cannot be written; the message names `path`.
    """
    # A symbolic link stays one: the file it leads to is replaced.
    final = Path(os.path.realpath(path))
    if final.exists() and not final.is_file():
        yield final
        return
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{final.name}.", dir=final.parent)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None
    os.close(descriptor)
    unfinished = Path(name)
    try:
        yield unfinished
        unfinished.chmod(final.stat().st_mode & 0o7777 if final.exists() else 0o666 & ~_umask())
        _synchronise(unfinished)
        unfinished.replace(final)
    except BaseException as error:
        with suppress(OSError):
            unfinished.unlink()
        if isinstance(error, OSError) and error.filename in (name, None):
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise
    with suppress(OSError):  # a file system whose folders cannot be opened
        _synchronise(final.parent)


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    # Can only be read by setting it; another thread that creates a file at this very moment would use this one.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
