"""Pipelines that `run` and `serve` start, while what takes seconds to import or to load shows its progress."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orbitsplit as osp
from orbitsplit._io.garbage import no_collections
from orbitsplit._models import lazy_imports
from orbitsplit._models.model_path import find_model
from orbitsplit.runtime._parent import worker_process

from .inputs import RunInputs
from .progress import ProgressBars

# More guesses of a small model are seldom all right.
_ASSISTANT_TOKENS = 8


def assistant_guesses(model: str | None, tokens: int | None) -> int | None:
    """Return how many tokens an assistant guesses at most, None without one. Raises ValueError where it is missing."""
    if model is None:
        if tokens is not None:
            raise ValueError("--assistant-tokens needs --assistant-model")
        return None
    find_model(model)
    return _ASSISTANT_TOKENS if tokens is None else tokens


def open_pipeline(
    inputs: RunInputs,
    progress: ProgressBars,
    *,
    is_torchrun: bool = False,
    generation: Mapping[str, Any] = MappingProxyType({}),
    **options: Any,
) -> tuple[osp.Pipeline, Any, Path | str]:
    """Start the pipeline of a plan; return it, the model's tokenizer and the model's directory or hub id.

    `generation` are options that `generate` will get, which are checked first. `options` are further arguments of
    `Pipeline`.
    """
    progress("importing torch and transformers", 0.0)
    lazy_imports.install()
    if not is_torchrun and options["hosts"] is None:
        worker_process.prepare(inputs.model)
    with no_collections():
        from orbitsplit._models.source import load_tokenizer, open_model
        from orbitsplit.runtime import GenerationOptions, Pipeline

    GenerationOptions(**generation)
    path = open_model(inputs.model, progress=progress)
    deployment = None
    if is_torchrun:
        from orbitsplit.runtime import _torchrun as torchrun

        deployment = torchrun.deploy(inputs.plan)
    with ThreadPoolExecutor(1) as loading:
        tokenizer = loading.submit(load_tokenizer, path)  # large ones take as long as the stages
        pipe = Pipeline(
            inputs.plan,
            path,
            codebook=inputs.codebook,
            conditions=inputs.conditions,
            replan=inputs.replan,
            progress=progress,
            deployment=deployment,
            **options,
        )
        try:
            return pipe, tokenizer.result(), path
        except BaseException:
            pipe.close()
            raise
