"""Codebooks that the demo calibrated before, by model, text, settings and version: calibrating takes minutes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orbitsplit as osp
from orbitsplit._models.gguf import cache_root

from .logs import log


def codebook_folder() -> Path:
    """Return where codebooks are kept, beside converted models."""
    return cache_root().parent / "codebooks"


def kept_codebook(
    model: Path | str,
    texts: Sequence[str],
    settings: Mapping[str, Any],
    calibrate: Callable[[], osp.Codebook],
    folder: Path | None = None,
) -> tuple[osp.Codebook, bool]:
    """Return the codebook of a model, and whether it was there already; if not, `calibrate` makes it.

    A codebook names the weights that it belongs to, and a pipeline compares them: one of another model is noticed.
    """
    place = (codebook_folder() if folder is None else folder) / f"{_key(model, texts, settings)}.safetensors"
    if place.exists():
        try:
            return osp.Codebook.load(place), True
        except ValueError as error:
            log.warning("a kept codebook is calibrated anew: %s", error)
    book = calibrate()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        book.save(place)
    except OSError as error:  # it took minutes and is good for this time
        log.warning("the codebook is not kept for the next time: %s", error)
    return book, False


def _key(model: Path | str, texts: Sequence[str], settings: Mapping[str, Any]) -> str:
    """Return a digest of all that a codebook depends on; of a model's files their sizes and times, not their bytes."""
    files = []
    if Path(model).is_dir():
        found = sorted(file for file in Path(model).iterdir() if file.is_file())
        files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in found]
    parts = [osp.__version__, str(model), files, dict(settings)]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=list).encode())
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()[:32]
