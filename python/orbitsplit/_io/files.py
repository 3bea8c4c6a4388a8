"""Files read and written in one way: text with its file named in errors, and files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def read_text(path: str | Path) -> str:
    """Return the text of a UTF-8 file, with or without a byte order mark.

    Raises:
        ValueError: The file is not UTF-8; the message names the file, the byte and its offset.
        OSError: The file cannot be read.
    """
    return text_of(Path(path).read_bytes(), path)


def text_of(data: bytes, path: str | Path) -> str:
    """Return what `read_text` returns of a file with these bytes; `path` is for its message."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Not the decoder's own offset, which does not count a byte order mark.
        offset = error.start + len(data) - len(error.object)
        # From None: a UnicodeDecodeError prints the whole file.
        raise ValueError(f"{path} is not UTF-8 text: byte 0x{data[offset]:02x} at offset {offset}") from None


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file with line feeds, whole or not at all; see `atomic_write`."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a new file in the folder of `path`, of the same suffix, which replaces `path` when the block ends.

    Its contents are on the disk before it is renamed: `path` is the old file or the new one, also after a power
    failure. If the block raises, `path` stays as it was and the unfinished file is removed.

    A file that exists keeps its permissions, and a symbolic link stays one: the file it leads to is replaced. What
    cannot be replaced, such as `/dev/stdout` or a named pipe, is written in place.

    Raises:
        OSError: The file cannot be written; the message names `path`.
    """
    final = Path(os.path.realpath(path))
    if _is_written_in_place(Path(path), final):
        with _naming(path):
            yield Path(path)
        return
    with _naming(path):
        unfinished = _new_file(final)
    try:
        with _naming(path, unfinished):
            yield unfinished
            _synchronise(unfinished)
            unfinished.replace(final)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise
    with suppress(OSError):  # a file system whose folders cannot be opened
        _synchronise(final.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`, which gets the name `path` when the block ends; there must be nothing there.

    All files in it are on the disk before it is renamed. If the block raises, it is removed with what it holds. Its
    name until then begins with `unfinished_prefix(path)`.

    Raises:
        OSError: The folder cannot be made or renamed; the message names `path`.
    """
    with _naming(path):
        unfinished = path.with_name(unfinished_prefix(path) + os.urandom(4).hex())
        unfinished.mkdir()
    try:
        with _naming(path, unfinished):
            yield unfinished
            for written in (*unfinished.rglob("*"), unfinished):
                _synchronise(written)
            unfinished.rename(path)
    except BaseException:
        import shutil  # which decompressors come with

        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    with suppress(OSError):
        _synchronise(path.parent)


def unfinished_prefix(path: Path) -> str:
    """Return how the names of what is to become `path` begin."""
    return f".{path.stem.lstrip('.')[:32]}-"  # names have a limit, which that of `path` may reach


def _is_written_in_place(path: Path, final: Path) -> bool:
    # /dev/stdout may lead to a regular file, and what the process prints later must not go to one that was replaced.
    is_open = any(
        place.is_relative_to(root)
        for place in (path.absolute(), final)
        for root in ("/dev/stdout", "/dev/stderr", "/dev/fd", "/proc")
    )
    return is_open or (path.exists() and not path.is_file())


def _new_file(final: Path) -> Path:
    """Create an empty file beside `final`, with its permissions or those of any new file."""
    path = final.with_name(f"{unfinished_prefix(final)}{os.urandom(4).hex()}{final.suffix}")
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        # Before it holds anything: what others may not read, they may not read half written either.
        if final.exists():
            os.fchmod(descriptor, final.stat().st_mode & 0o7777)
    finally:
        os.close(descriptor)
    return path


@contextmanager
def _naming(path: str | Path, unfinished: Path | None = None) -> Iterator[None]:
    """Make errors of the system name `path`, which the caller knows, where they name the unfinished file or none."""
    try:
        yield
    except OSError as error:
        is_of_path = unfinished is None or error.filename in (None, unfinished, str(unfinished))
        if error.errno is None or not is_of_path:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
