"""The models that a plan's processes load: that they are there, have the plan's layers, and belong together."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from transformers.configuration_utils import PreTrainedConfig

from orbitsplit._io.validation import quoted
from orbitsplit._models.generation_rules import rope_change
from orbitsplit._models.kv_cache import growing_cache, takes_chunks
from orbitsplit._models.layouts import find_layout
from orbitsplit._models.own_state import state_kind
from orbitsplit._models.quantizer import weights_config
from orbitsplit._models.source import can_generate, layer_count, model_class, open_model, read_config
from orbitsplit._plans.plan import Plan


def open_models(
    plan: Plan, model: str | Path, assistant_model: str | Path | None, progress: Callable[[str, float], None] | None
) -> tuple[Path | str, Path | str | None]:
    """Return the directories or hub ids of a plan's model and its assistant, before any process is started.

    Raises as `open_model`, and ValueError for those that do not have the plan's layers or do not belong together.
    """
    path = open_model(model, progress=progress)
    check_layers(plan, path)
    assistant = None if assistant_model is None else open_model(assistant_model, progress=progress)
    if assistant is not None:
        check_assistant(assistant, path)
    source_hashes(plan)
    return path, assistant


def check_layers(plan: Plan, model: str | Path) -> None:
    """Raise `ValueError` for a model of another number of layers than the plan."""
    config = read_config(model)
    layers = layer_count(config)
    if plan.layers != layers + 2:  # some models hold layers together, which takes a second to find out
        layers = find_layout(config).layer_count
    if plan.layers != layers + 2:
        raise ValueError(
            f"the plan has {plan.layers} layers, {model} has {layers + 2} "
            f"(embeddings, {layers} transformer layers, head)"
        )


def check_assistant(assistant: str | Path, model: str | Path) -> None:
    """Raise ValueError for an assistant that cannot guess the tokens of a model. Only configurations are read."""
    own, config = read_config(assistant), read_config(model)
    for name, one in ((f"assistant_model {assistant}", own), (str(model), config)):
        if not _takes_back_tokens(one):
            raise ValueError(
                f"{name} cannot be used with an assistant, which needs causal language models that several tokens can "
                "be run through at once and taken back: it is none, layers of it keep a state, or its angles depend on "
                "the length of the text"
            )
    sizes = [one.get_text_config(decoder=True).vocab_size for one in (own, config)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"assistant_model {assistant} has a vocabulary of {sizes[0]:,} tokens, {model} one of {sizes[1]:,}: "
            "both need the same tokens"
        )


def _takes_back_tokens(config: PreTrainedConfig) -> bool:
    if not can_generate(config) or rope_change(config) is not None:
        return False
    if state_kind(model_class(config)) != "cache":
        return False
    return takes_chunks(growing_cache(config.get_text_config(decoder=True)))


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
