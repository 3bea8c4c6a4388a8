"""Text with its file named in errors, and files and folders that are whole or not there."""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import orbitsplit as osp
from orbitsplit._io.files import atomic_folder, atomic_write, read_text, write_text
from orbitsplit._io.tensor_file import read_tensors, write_tensors

TEXT = "naïve\nΔ\n"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def test_what_is_written_is_read_back_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", TEXT)
    assert (tmp_path / "a.txt").read_bytes() == TEXT.encode()
    assert read_text(tmp_path / "a.txt") == TEXT
    assert names(tmp_path) == ["a.txt"]


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert read_text(tmp_path / "a.txt") == TEXT


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_what_is_not_utf_8_is_named_by_its_offset_and_not_shown(mark: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(mark + b"secret \xe9t\xe9")
    with pytest.raises(ValueError, match=rf"a\.txt is not UTF-8 text: byte 0xe9 at offset {len(mark) + 7}$") as caught:
        read_text(tmp_path / "a.txt")
    # Nor with the traceback: a UnicodeDecodeError prints all that it was given.
    assert caught.value.__suppress_context__
    assert caught.value.__cause__ is None


def test_the_file_of_each_kind_of_document_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    plan = osp.Plan.manual(cuts=[1], layers=2)
    network = osp.Network.sample("cubesat_chain")
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_dict()), encoding="utf-8-sig")
    (tmp_path / "network.toml").write_text(network.to_toml(), encoding="utf-8-sig")
    (tmp_path / "conditions.toml").write_text("seed = 7\nlinks = []\n", encoding="utf-8-sig")
    assert osp.Plan.load(tmp_path / "plan.json") == plan
    assert osp.Network.load(tmp_path / "network.toml").nodes == network.nodes
    assert osp.LinkConditions.load(tmp_path / "conditions.toml").seed == 7


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    with umask(0o027):
        write_text(tmp_path / "a.txt", TEXT)
    assert mode(tmp_path / "a.txt") == 0o640


@pytest.mark.parametrize("permissions", [0o600, 0o664, 0o755])
def test_a_file_that_exists_keeps_its_permissions(permissions: int, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "a.txt").chmod(permissions)
    with atomic_write(tmp_path / "a.txt") as unfinished:
        assert mode(unfinished) == permissions  # before it holds anything
        unfinished.write_text("new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert mode(tmp_path / "a.txt") == permissions


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("there/a.txt")
    write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "there" / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["link.txt", "there"]
    assert names(tmp_path / "there") == ["a.txt"]


def test_a_symbolic_link_to_nothing_makes_the_file_it_names(tmp_path: Path) -> None:
    (tmp_path / "link.txt").symlink_to("a.txt")
    write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "a.txt").read_text() == "new"


@pytest.mark.parametrize("name", ["picture.svg", "noending", ".hidden", "a" * 250 + ".json", "é" * 120 + ".json"])
def test_the_unfinished_file_has_the_suffix_that_says_its_format(name: str, tmp_path: Path) -> None:
    with atomic_write(tmp_path / name) as unfinished:
        assert unfinished.parent == tmp_path
        assert unfinished.suffix == Path(name).suffix
        assert names(tmp_path) == [unfinished.name]
        unfinished.write_text("new")
    assert names(tmp_path) == [name]


def _fail_halfway(writing: AbstractContextManager[Path], error: BaseException) -> None:
    with writing as unfinished:
        (unfinished / "half.txt" if unfinished.is_dir() else unfinished).write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_exception_leaves_the_old_file_and_nothing_else(error: BaseException, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(type(error)) as caught:
        _fail_halfway(atomic_write(tmp_path / "a.txt"), error)
    assert caught.value is error
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def _write_tensors(path: Path) -> None:
    write_tensors(path, {"x": np.zeros(100_000, np.float32)}, {"format": "f", "version": 1})


def _write_text(path: Path) -> None:
    write_text(path, "x" * 200_000)


def _write_folder(path: Path) -> None:
    with atomic_folder(path) as unfinished:
        (unfinished / "part").mkdir()
        (unfinished / "part" / "weights.bin").write_bytes(bytes(200_000))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("write", [_write_text, _write_tensors])
def test_a_full_disk_leaves_the_old_file_and_the_error_names_it(write: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("old")
    with largest_file(50_000), pytest.raises(OSError, match=r"a\.safetensors") as caught:
        write(path)
    assert str(tmp_path) in str(caught.value)
    assert "/." not in str(caught.value)  # the unfinished file
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.safetensors"]
    write(path)
    assert path.stat().st_size > 50_000


def test_a_full_disk_leaves_no_folder(tmp_path: Path) -> None:
    with largest_file(50_000), pytest.raises(OSError, match="large"):
        _write_folder(tmp_path / "model")
    assert names(tmp_path) == []
    _write_folder(tmp_path / "model")
    assert names(tmp_path) == ["model"]
    assert (tmp_path / "model" / "part" / "weights.bin").stat().st_size == 200_000


def test_a_folder_that_is_not_there_is_named_as_the_caller_wrote_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        write_text("nowhere/a.txt", TEXT)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, "nowhere/a.txt")


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError) as caught:
        write_text(tmp_path, TEXT)
    assert str(caught.value.filename) == str(tmp_path)


def test_an_error_about_something_else_stays_as_it_is(tmp_path: Path) -> None:
    other = OSError("the network is down")
    with pytest.raises(OSError, match=r"^the network is down$") as caught, atomic_write(tmp_path / "a.txt"):
        raise other
    assert caught.value is other
    with pytest.raises(FileNotFoundError) as missing, atomic_write(tmp_path / "a.txt"):
        (tmp_path / "b.txt").read_text()
    assert missing.value.filename == str(tmp_path / "b.txt")
    assert names(tmp_path) == []


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, bool]] = []
    synchronise = os.fsync

    def fsync(descriptor: int) -> None:
        seen.append((os.readlink(f"/proc/self/fd/{descriptor}"), (tmp_path / "a.txt").exists()))
        synchronise(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "a.txt", TEXT)
    (unfinished, was_there), folder = seen
    assert Path(unfinished).parent == tmp_path
    assert not was_there
    assert folder == (str(tmp_path), True)


def test_every_file_of_a_folder_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, bool]] = []
    synchronise = os.fsync

    def fsync(descriptor: int) -> None:
        seen.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")).name, (tmp_path / "model").exists()))
        synchronise(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    _write_folder(tmp_path / "model")
    assert {name for name, was_there in seen if not was_there} >= {"part", "weights.bin"}
    assert seen[-1] == (tmp_path.name, True)


def test_a_folder_has_the_permissions_of_any_new_one(tmp_path: Path) -> None:
    with umask(0o027), atomic_folder(tmp_path / "model") as unfinished:
        assert unfinished.parent == tmp_path
    assert mode(tmp_path / "model") == 0o750


def test_an_exception_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _fail_halfway(atomic_folder(tmp_path / "model"), KeyboardInterrupt())
    assert names(tmp_path) == []


def test_a_folder_that_another_made_meanwhile_stays(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.txt").write_text("theirs")
    with pytest.raises(OSError, match=r"model'$"), atomic_folder(tmp_path / "model") as unfinished:
        (unfinished / "a.txt").write_text("ours")
    assert (tmp_path / "model" / "a.txt").read_text() == "theirs"
    assert names(tmp_path) == ["model"]


def test_a_named_pipe_is_written_in_place(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text(encoding="utf-8")))
    reader.start()
    write_text(tmp_path / "pipe", TEXT)
    reader.join(timeout=30)
    assert read == [TEXT]
    assert names(tmp_path) == ["pipe"]


def _printing(stdout: Any) -> None:
    """Run a process that prints, writes to /dev/stdout, and prints again."""
    code = (
        "from orbitsplit._io.files import write_text; print('before', flush=True)\n"
        "write_text('/dev/stdout', 'written\\n'); print('after')"
    )
    subprocess.run([sys.executable, "-c", code], stdout=stdout, check=True, timeout=120)


def test_standard_output_may_be_a_pipe() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as pipe:
        _printing(writing)
        os.close(writing)
        assert pipe.read() == "before\nwritten\nafter\n"


def test_standard_output_may_be_a_file(tmp_path: Path) -> None:
    with (tmp_path / "out.txt").open("ab") as file:  # as `>> out.txt`
        number = os.stat(file.fileno()).st_ino
        _printing(file)
    assert (tmp_path / "out.txt").stat().st_ino == number
    assert "after\n" in (tmp_path / "out.txt").read_text()
    assert names(tmp_path) == ["out.txt"]


def test_tensors_are_whole_or_not_there_and_read_back(tmp_path: Path) -> None:
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "y": np.array([1, 2], np.uint8)}
    write_tensors(tmp_path / "a.safetensors", arrays, {"format": "f", "version": 1, "more": [1]})
    document, found = read_tensors(tmp_path / "a.safetensors", "f", 1, is_checked=True)
    assert document == {"format": "f", "version": 1, "more": [1]}
    assert {name: found[name].tolist() for name in found} == {name: array.tolist() for name, array in arrays.items()}
    assert names(tmp_path) == ["a.safetensors"]


def test_a_picture_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure
    from orbitsplit._plans.timeline import timeline

    trace = osp.Trace(nodes=("a",), events=(osp.TraceEvent("a", "compute", 0, 0, 0.0, 1.0),))
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        timeline({"one": trace}, tmp_path / f"picture{suffix}")
        assert (tmp_path / f"picture{suffix}").read_bytes().startswith(start)
    before = names(tmp_path)

    def fail(_figure: Any, path: Any, **_options: Any) -> None:
        Path(path).write_text("half")
        raise MemoryError

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(MemoryError):
        timeline({"one": trace}, tmp_path / "picture.svg")
    assert (tmp_path / "picture.svg").read_bytes().startswith(b"<?xml")
    assert names(tmp_path) == before
