"""Arrays and a JSON document in one .safetensors file. Reading and writing import safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .files import atomic_write
from .validation import quoted

Arrays = Mapping[str, npt.NDArray[Any]]

# The keys of a file's metadata: the document, and SHA-256 of it and of the arrays, because safetensors has no checksum.
_DOCUMENT, _DIGEST, _ARRAYS = "orbitsplit", "orbitsplit.sha256", "orbitsplit.arrays.sha256"


class _File(Mapping[str, npt.NDArray[Any]]):
    """The arrays of a file, each read at every access."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self._file: Any = safe_open(path, framework="numpy")

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if name not in self._file.keys():  # noqa: SIM118 - not a mapping
            raise KeyError(name)
        array: npt.NDArray[Any] = self._file.get_tensor(name)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._file.keys()))

    def __len__(self) -> int:
        return len(self._file.keys())

    def document(self) -> Any:
        """Return the document that was written with the arrays, None if there is none."""
        metadata = self._file.metadata() or {}
        text = metadata.get(_DOCUMENT, "null")
        if _DOCUMENT in metadata and _digest([text.encode()]) != metadata.get(_DIGEST):
            raise ValueError("its document does not match its checksum")
        return json.loads(text)

    def check(self) -> None:
        """Raise `ValueError` if the arrays are not those that were written."""
        if _digest_of(self) != (self._file.metadata() or {}).get(_ARRAYS):
            raise ValueError("its arrays do not match their checksum")


def write_tensors(path: str | Path, tensors: Arrays, document: Mapping[str, Any]) -> None:
    """Write arrays and a JSON document as one file, whole or not at all; see `atomic_write`. Raises `OSError`."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    text = json.dumps(document, allow_nan=False)
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    metadata = {_DOCUMENT: text, _DIGEST: _digest([text.encode()]), _ARRAYS: _digest_of(arrays)}
    with atomic_write(path) as unfinished:
        try:
            save_file(arrays, unfinished, metadata=metadata)
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error


def _digest(parts: Iterable[bytes]) -> str:
    import hashlib  # takes 20 ms, which `import orbitsplit` saves

    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _digest_of(arrays: Arrays) -> str:
    return _digest(part for name in sorted(arrays) for part in (name.encode(), arrays[name].tobytes()))


def read_tensors(
    path: str | Path, format_name: str, version: int, *, oldest: int | None = None, is_checked: bool = False
) -> tuple[dict[str, Any], Arrays]:
    """Return the document and the arrays that `write_tensors` wrote, of a version from `oldest` to `version`.

    Arrays are read at each access; with `is_checked`, their checksum is verified first, which reads all of them.

    Raises:
        ValueError: The file is something else, of another version, or damaged; the message names it.
        FileNotFoundError: There is no such file.
    """
    from safetensors import SafetensorError

    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"there is no file {source}")
    try:
        file = _File(source)
        document = file.document()
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{source} is not a .safetensors file, or damaged: {error}") from error
    found = document if isinstance(document, dict) else {}
    versions = range(version if oldest is None else oldest, version + 1)
    if found.get("format") != format_name or found.get("version") not in versions:
        known = " or ".join(map(str, versions))
        raise ValueError(
            f"{source}: expected format {quoted(format_name)} version {known}, "
            f"got {quoted(found.get('format'))} version {quoted(found.get('version'))}"
        )
    if is_checked:
        try:
            file.check()
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{source} is damaged: {error}") from error
    return found, file
