"""The models that the stages of a plan load: that they are there, have the plan's layers, and belong together."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from orbitsplit._io.validation import quoted
from orbitsplit._models.quantizer import weights_config
from orbitsplit._models.source import layer_count, open_model, read_config
from orbitsplit._plans.plan import Plan


def check_layers(plan: Plan, model: str | Path) -> None:
    """Raise `ValueError` for a model of another number of layers than the plan."""
    layers = layer_count(read_config(model))
    if plan.layers != layers + 2:
        raise ValueError(
            f"the plan has {plan.layers} layers, {model} has {layers + 2} "
            f"(embeddings, {layers} transformer layers, head)"
        )


def source_hashes(plan: Plan) -> tuple[str, ...]:
    """Return the digests of the layers that the plan's `weight_models` were converted from; empty where none was.

    Only configurations are read. Raises as `open_model`, and ValueError for models of other layers or sources.
    """
    hashes: dict[str, list[str]] = {}
    for name, model in plan.weight_models.items():
        path = open_model(model)
        check_layers(plan, path)
        quantized = weights_config(read_config(path))
        if quantized is not None:
            hashes[name] = quantized.layer_hashes
    for first, second in pairwise(hashes):
        if hashes[first] != hashes[second]:
            raise ValueError(
                f"weights {quoted(first)} and {quoted(second)} were converted from different models: "
                f"{plan.weight_models[first]} and {plan.weight_models[second]}"
            )
    return tuple(next(iter(hashes.values()), ()))
