"""Profiles and codebooks that the demo made before, by model, settings, machine and versions: they take minutes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TypeVar

import orbitsplit as osp
from orbitsplit._models.gguf import cache_root

from .logs import log
from .progress import keeps


class _Savable(Protocol):
    def save(self, path: Path, /) -> None: ...


Made = TypeVar("Made", bound=_Savable)


def kept_folder() -> Path:
    """Return where they are kept, beside converted models."""
    return cache_root().parent / "demo"


def kept_profile(
    model: Path | str,
    settings: Mapping[str, Any],
    measure: Callable[[], osp.ModelProfile],
    *,
    is_fresh: bool = False,
) -> tuple[osp.ModelProfile, bool]:
    """Return the profile of a model on this machine, and whether it was there already; if not, `measure` makes it."""
    from orbitsplit._profiling.timing import machine_name

    place = kept_folder() / f"{_key(model, (), {**settings, 'machine': machine_name()})}.json"
    return _kept(place, osp.ModelProfile.load, measure, is_fresh=is_fresh)


def kept_codebook(
    model: Path | str,
    texts: Sequence[str],
    settings: Mapping[str, Any],
    calibrate: Callable[[Path | None], osp.Codebook],
    *,
    is_fresh: bool = False,
) -> tuple[osp.Codebook, bool]:
    """Return the codebook of a model, and whether it was there already; if not, `calibrate(checkpoint)` makes it.

    An interrupted calibration leaves its checkpoint, from which the next one resumes. A codebook names the weights that
    it belongs to, and a pipeline compares them: one of another model is noticed.
    """
    place = kept_folder() / f"{_key(model, texts, settings)}.safetensors"
    partial = place.with_suffix(".partial")
    if is_fresh:
        partial.unlink(missing_ok=True)
    keeps(partial, "what was calibrated, and the next demo resumes")
    return _kept(
        place, osp.Codebook.load, lambda: calibrate(partial if _is_there(place.parent) else None), is_fresh=is_fresh
    )


def _kept(place: Path, load: Callable[[Path], Made], make: Callable[[], Made], *, is_fresh: bool) -> tuple[Made, bool]:
    """Return what is in a file, and true; or what `make` makes, which is written there, and false."""
    if place.exists() and not is_fresh:
        try:
            return load(place), True
        except ValueError as error:
            log.warning("%s cannot be used and is made anew: %s", place, error)
    made = make()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        made.save(place)
    except OSError as error:  # it took minutes and is good for this time
        log.warning("%s is not kept for the next time: %s", place, error)
    return made, False


def _is_there(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return True


def _key(model: Path | str, texts: Sequence[str], settings: Mapping[str, Any]) -> str:
    """Return a digest of all that a result depends on; of a model's files their sizes and times, not their bytes."""
    files = []
    if Path(model).is_dir():
        found = sorted(file for file in Path(model).iterdir() if file.is_file())
        files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in found]
    versions = [version(name) for name in ("orbitsplit", "torch", "transformers")]  # as a checkpoint has them
    parts = [versions, str(model), files, dict(settings)]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=list).encode())
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()[:32]
