"""Choose who computes: the C++ extension or the Numba fallback, two modules with the same functions.

`ORBITSPLIT_BACKEND=native|numba` decides; without it the extension is used where it is installed. The choice
is made when a function is first needed, because importing Numba takes longer than importing everything else.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_MODULES = {"native": "._core", "numba": "._numba"}
_chosen: ModuleType | None = None


def backend() -> ModuleType:
    """Return the module that implements planner and codecs.

    Raises `ValueError` for an unknown `ORBITSPLIT_BACKEND`, `ImportError` if the one asked for is not
    installed.
    """
    global _chosen
    if _chosen is None:
        _chosen = _choose()
    return _chosen


@contextmanager
def use_backend(name: str) -> Iterator[ModuleType]:
    """Use the backend `name` until the block ends, in every thread: for comparing both in one process."""
    global _chosen
    before, _chosen = _chosen, load_backend(name)
    try:
        yield _chosen
    finally:
        _chosen = before


def load_backend(name: str) -> ModuleType:
    """Return the module of the backend `name`, "native" or "numba"."""
    if name not in _MODULES:
        raise ValueError(f'ORBITSPLIT_BACKEND is "{name}"; valid are {" and ".join(_MODULES)}')
    try:
        return importlib.import_module(_MODULES[name], __package__)
    except ModuleNotFoundError as error:
        if error.name == "numba":
            raise ImportError(
                'the Numba backend needs Numba, which is not installed: pip install "orbitsplit[numba]"'
            ) from error
        raise


def backend_name() -> str:
    """Return "native" or "numba"."""
    return "native" if backend().__name__.endswith("._core") else "numba"


def _choose() -> ModuleType:
    name = os.environ.get("ORBITSPLIT_BACKEND", "")
    if name:
        return load_backend(name)
    try:
        return load_backend("native")
    except ModuleNotFoundError:
        pass
    try:
        return load_backend("numba")
    except ImportError as error:
        raise ImportError(f"the C++ extension of orbitsplit is missing, and {error}") from error
