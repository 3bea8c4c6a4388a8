"""Refusal of architectures that compute something else in stages: each is tried once, and the verdict is kept.

What decides is a small model that is built like the one in question (`small_config.py`), run unsplit and in stages
(`twin.py`). It takes about a second, once for each class, configuration, version of torch and transformers, and state
of this package; large and small models of a family share the verdict.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import warnings
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.configuration_utils import PreTrainedConfig

from orbitsplit._io.files import read_text, write_text

from .architecture import without_paths
from .image_inputs import late_images
from .layouts import find_layout
from .small_config import shrunk
from .source import model_class, unsupported
from .twin import Verdict, is_of_machine, try_split
from .valueless import build_on_meta

# The most parameters of a model that is tried: more would take longer than a start may.
_MOST_PARAMETERS = 60_000_000
_STRENGTHS = (2, 1, 0)
_SETTLED = ("exact", "wrong")

_known: dict[str, Verdict] = {}


def check_architecture(config: PreTrainedConfig) -> None:
    """Raise `ValueError` for a model that cannot be split, or whose small twin computes something else in stages.

    Warns if no small twin of it can be built and run, so that nothing is known.
    """
    find_layout(config)
    verdict = find_verdict(config)
    if verdict.kind == "exact":
        return
    name = model_class(config).__name__
    if verdict.kind == "unknown":
        warnings.warn(
            f"{name} was not tried in stages on a small model before: {verdict.reason}", UserWarning, stacklevel=3
        )
        return
    if verdict.kind == "wrong":
        reason = f"a small model of it computes something else in stages than unsplit ({verdict.reason})"
    elif verdict.kind == "refused":
        reason = verdict.reason.rpartition("cannot be split into stages: ")[2]
    else:
        reason = f"a small model of it fails in stages ({verdict.reason})"
    raise ValueError(unsupported(config, reason))


def check_images(config: PreTrainedConfig) -> None:
    """Raise `ValueError` for a model that is not known to generate texts about images in stages as it does unsplit."""
    verdict = find_verdict(config, with_images=True)
    if verdict.kind != "exact":
        name = model_class(config).__name__
        reason = verdict.reason.rpartition("cannot be split into stages: ")[2]
        raise ValueError(f"{name} takes no images in stages: tried on a small model it is {verdict.kind} ({reason})")


def find_verdict(config: PreTrainedConfig, *, with_images: bool = False) -> Verdict:
    """Return what the trial of an architecture found, from the disk if there was one.

    It is tried with texts alone, or `with_images`.
    """
    key = _key(config) + ("-images" if with_images else "")
    verdict = _known.get(key) or _read(key)
    if verdict is None:
        try:
            verdict, _ = try_architecture(config, with_images=with_images)
        except Exception as error:
            if not is_of_machine(error):
                raise
            # Not kept: the next one may have what this one lacks.
            return Verdict("unknown", f"{type(error).__name__}: {error}")
        _write(key, verdict, model_class(config).__name__)
    _known[key] = verdict
    return verdict


def try_architecture(config: PreTrainedConfig, *, with_images: bool = False) -> tuple[Verdict, PreTrainedConfig | None]:
    """Try the smallest model that builds and runs; one that is more like the original if a smaller one does not.

    Returns what was found, and the configuration that was tried last, None if none builds.
    """
    late = late_images(config) if with_images else None
    if late is not None:
        return Verdict("refused", f"what it sees enters later layers too ({late})"), None
    verdict, tried, failure = Verdict("unknown"), None, "too many parameters"
    for strength in _STRENGTHS:
        try:
            small = shrunk(config, strength=strength)
            parameters = sum(parameter.numel() for parameter in build_on_meta(small).parameters())
        except Exception as error:  # whatever an architecture's code makes of sizes that do not fit
            if "cannot be split into stages" in str(error):
                return Verdict("refused", str(error)), None
            failure = f"{type(error).__name__}: {str(error).strip()[:200]}"
            continue
        if parameters > _MOST_PARAMETERS:
            break
        found = try_split(small, with_images=with_images)
        if found.kind in _SETTLED:
            return found, small
        verdict, tried = found, small
    return verdict if tried is not None else Verdict("unknown", f"no small model of it builds ({failure})"), tried


def _key(config: PreTrainedConfig) -> str:
    """Return a digest of all that a verdict depends on."""
    try:
        small = shrunk(config)
        document = without_paths(json.loads(small.to_json_string(use_diff=False)))
    except Exception:  # a configuration that cannot be shrunk has a verdict of its own
        document = without_paths(json.loads(config.to_json_string(use_diff=False)))
    for name in ("dtype", "torch_dtype", "transformers_version"):
        document.pop(name, None)
    versions = [_code(), torch.__version__, transformers.__version__]
    parts = [*versions, model_class(config).__name__, document]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


@functools.cache
def _code() -> str:
    """Return a digest of the code that runs stages and tries them: a version may name several, while one is made."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _file(key: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "orbitsplit" / "verdicts" / f"{key}.json"


def _read(key: str) -> Verdict | None:
    with suppress(OSError, ValueError, TypeError, RuntimeError):  # none, damaged, of another version, or no home
        document: dict[str, Any] = json.loads(read_text(_file(key)))
        return Verdict(document["kind"], document["reason"])
    return None


def _write(key: str, verdict: Verdict, name: str) -> None:
    with suppress(OSError, RuntimeError):  # it is found anew then
        _file(key).parent.mkdir(parents=True, exist_ok=True)
        write_text(_file(key), json.dumps({"architecture": name, **asdict(verdict)}) + "\n")
