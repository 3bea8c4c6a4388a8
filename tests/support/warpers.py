"""Logits processors as groups have them, for settings of sampling."""

from __future__ import annotations

from typing import Any

from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from orbitsplit._models.logits_processors import pack_processor


def warpers(*, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> tuple[dict[str, Any], ...]:
    """Return what transformers' generate makes of these settings, in its order."""
    found: list[Any] = []
    if temperature != 1.0:
        found.append(TemperatureLogitsWarper(temperature))
    if top_k:
        found.append(TopKLogitsWarper(top_k=top_k))
    if top_p < 1.0:
        found.append(TopPLogitsWarper(top_p=top_p))
    return tuple(pack_processor(processor) for processor in found)
