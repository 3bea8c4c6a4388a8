"""Models of an encoder and a decoder: how they run their two lists of layers, found by inspecting them.

The encoder runs once for each prompt. Every layer of the decoder attends to what it made, so that travels with the
prompt through the stages of the decoder; later steps have keys and values of it in their caches.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel

from .architecture import Layout, plain_bounds, running_unknown_code
from .cut_form import CutForm
from .device import single_thread
from .encoder_layout import EncoderLayout
from .kv_cache import growing_cache
from .passthrough import LayerCall
from .probe import Probe
from .small_config import shrunk
from .source import (
    cache_argument,
    decoder_layer_count,
    encoder_layer_count,
    layer_count,
    model_class,
    unsupported,
)
from .valueless import build_on_meta, build_unfilled

# Of a model whose inputs are no tokens: what its feature extractor makes of a prompt has this name.
FEATURES = "input_features"
# Loops of transformers around generate that a pipeline can run with its own generate inside.
_LOOPS = ("WhisperGenerationMixin",)
_OTHER_ORDER = "its hidden states are not rows, tokens and channels, in this order"
_PROBE_ROWS, _PROBE_TOKENS, _PROBE_NEW_TOKENS = 2, 3, 4


def find_encoder_decoder(config: PreTrainedConfig) -> Layout:
    """Return how a model runs the layers of its encoder and of its decoder, from one forward on the meta device.

    Raises as `find_layout`.
    """
    _check_class(config)
    with running_unknown_code(config, "it cannot be built"):
        model = build_on_meta(config)
    try:
        return _observed(model, config, "meta")
    except Exception:  # whatever an architecture's code makes of tensors without values
        few = shrunk(config, strength=0)
    with running_unknown_code(config, "it cannot be built"):
        model = build_unfilled(few)
    with running_unknown_code(config, "its forward fails"), single_thread():
        found = _observed(model, few, "cpu")
    assert found.encoder is not None, "it has an encoder"
    encoder = replace(found.encoder, layer_count=encoder_layer_count(config))
    layers = layer_count(config)
    return replace(found, bounds=plain_bounds(layers), running=tuple(range(layers)), encoder=encoder)


def _check_class(config: PreTrainedConfig) -> None:
    architecture: Any = model_class(config)
    accepted = inspect.signature(architecture.forward).parameters
    if cache_argument(architecture) is None:
        raise ValueError(unsupported(config, "its forward takes no cache"))
    if "encoder_outputs" not in accepted or "decoder_input_ids" not in accepted:
        raise ValueError(unsupported(config, "its forward takes no outputs of an encoder"))
    if architecture.generate is not GenerationMixin.generate and not has_own_loop(architecture):
        raise ValueError(unsupported(config, "it generates in a loop of its own"))


def has_own_loop(architecture: type[PreTrainedModel]) -> bool:
    """Return whether transformers has a loop around generate for a class that a pipeline can run too: Whisper's."""
    return any(base.__name__ in _LOOPS for base in architecture.__mro__)


def example_prompt(
    config: PreTrainedConfig, *, rows: int, tokens: int, device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """Return inputs of zeros of an encoder: `rows` texts of `tokens` tokens, or recordings of a length that it takes.

    Raises `ValueError` for a model that takes neither.
    """
    name = model_class(config).main_input_name
    if name == "input_ids":
        return {name: torch.zeros(rows, tokens, dtype=torch.long, device=device)}
    bins, frames = getattr(config, "num_mel_bins", None), getattr(config, "max_source_positions", None)
    per_channel = getattr(config, "input_feat_per_channel", None)
    if name == FEATURES and isinstance(per_channel, int):
        return {name: torch.zeros(rows, 4 * tokens, per_channel * config.input_channels, device=device)}
    if name != FEATURES or not isinstance(bins, int) or not isinstance(frames, int):
        raise ValueError(unsupported(config, f"it takes {name} of no known size, not token ids"))
    return {name: torch.zeros(rows, bins, 2 * frames, device=device)}  # two frames become a position


def new_encoder_decoder_cache(config: PreTrainedConfig, most_tokens: int | None = None) -> EncoderDecoderCache:
    """Return an empty cache of a decoder, of its own tokens and of the encoder's output."""
    own = growing_cache(config.get_text_config(decoder=True), most_tokens)
    del own.layers[decoder_layer_count(config) :]  # some configurations tell the encoder's number of layers
    return EncoderDecoderCache(own, DynamicCache())


def run_encoder(model: PreTrainedModel, prompt: Mapping[str, Tensor]) -> Tensor:
    """Return what the encoder of a model makes of a prompt, as transformers' generate runs it."""
    encoder: Any = model.get_encoder()
    accepted = inspect.signature(encoder.forward).parameters
    takes_any = any(one.kind is one.VAR_KEYWORD for one in accepted.values())
    inputs = {name: value for name, value in prompt.items() if takes_any or name in accepted}
    made: Tensor = encoder(**inputs, return_dict=True)[0]
    return made


class EncoderOutput(BaseModelOutput):  # type: ignore[misc]  # transformers is not typed
    """The output of an encoder, which mixtures of experts ask for what only training needs."""

    router_logits = None
    router_probs = None


def decoder_inputs(
    model: PreTrainedModel,
    ids: Tensor,
    memory: Tensor,
    attention_mask: Tensor | None,
    cache: EncoderDecoderCache,
    *,
    is_first: bool,
) -> dict[str, Any]:
    """Return what transformers' generate gives a model for new ids [b, n] of the decoder."""
    found: dict[str, Any] = model.prepare_inputs_for_generation(
        ids,
        past_key_values=cache,
        attention_mask=attention_mask,
        encoder_outputs=EncoderOutput(last_hidden_state=memory),
        use_cache=True,
        is_first_iteration=is_first,
    )
    return found


def _observed(model: PreTrainedModel, config: PreTrainedConfig, device: str) -> Layout:
    """Observe a forward of the encoder and one of the decoder."""
    encoder, decoder = model.get_encoder(), model.get_decoder()
    if encoder is model or decoder is model:
        raise ValueError(unsupported(config, "its encoder and its decoder are not modules of their own"))
    prompt = example_prompt(config, rows=_PROBE_ROWS, tokens=_PROBE_TOKENS, device=device)
    first, shared = _probe_of(model, encoder, encoder_layer_count(config))
    first.observe(lambda: {"memory": run_encoder(model, prompt)}, prompt.values())
    own = first.weighty()
    first.check_plain()
    assert first.left is not None, "else there is a fault"
    rows, tokens, hidden_size = first.left.shape
    if rows != _PROBE_ROWS:
        raise ValueError(unsupported(config, _OTHER_ORDER))
    ids = torch.zeros(_PROBE_ROWS, _PROBE_NEW_TOKENS, dtype=torch.long, device=device)
    memory = torch.zeros(_PROBE_ROWS, tokens, hidden_size, dtype=model.dtype, device=device)
    second, decoder_shared = _probe_of(model, decoder, decoder_layer_count(config))
    second.observe(lambda: _decode(model, ids, memory), [ids])
    others = second.weighty()
    second.check_plain()
    assert second.left is not None, "else there is a fault"
    if second.left.shape[:2] != ids.shape:
        raise ValueError(unsupported(config, _OTHER_ORDER))
    if second.left.shape[-1] != hidden_size:
        raise ValueError(unsupported(config, "its encoder and its decoder have hidden states of different widths"))
    reads_tokens = "input_ids" in prompt
    encoder_layout = EncoderLayout(
        layers_name=first.layers_name,
        layer_count=len(first.layers),
        tuple_length=first.exchange.tuple_length,
        middle=frozenset((first.ran["after"] & own) | (second.ran["before"] & others)),
        shared=shared,
        decoder_shared=decoder_shared,
        positions=_positions(decoder, config, "max_target_positions"),
        prompt_positions=_positions(encoder, config, "max_source_positions") if reads_tokens else None,
    )
    before, after = frozenset(first.ran["before"] & own), frozenset(second.ran["after"] & others)
    layers = len(first.layers) + 1 + len(second.layers)
    sides = {name for name, module in model.named_modules() if module in (encoder, decoder)}
    return Layout(
        layers_name=second.layers_name,
        bounds=plain_bounds(layers),
        running=tuple(range(layers)),
        before=before,
        after=after,
        image_modules=frozenset(),
        idle=frozenset((own & others) - sides - before - after - encoder_layout.middle),
        everywhere=frozenset(),
        call=LayerCall(second.exchange.tuple_length),
        form=CutForm((hidden_size,)),
        changes_between=False,
        image_tokens=None if reads_tokens else tokens,
        state="cache",
        encoder=encoder_layout,
    )


def _probe_of(model: PreTrainedModel, side: nn.Module, count: int) -> tuple[Probe, frozenset[str]]:
    """Return what observes the layers of an encoder or a decoder, and what the first one has alone."""
    found = _list_of(model, side, count)
    shared = _only_in_first(found[1])
    return Probe(model, "cache", found=found, sharing=bool(shared)), shared


def _decode(model: PreTrainedModel, ids: Tensor, memory: Tensor) -> dict[str, Any]:
    cache = new_encoder_decoder_cache(model.config)
    output: Any = model(**decoder_inputs(model, ids, memory, None, cache, is_first=True))
    return {name: value for name, value in output.items() if "encoder" not in name}


def _list_of(model: PreTrainedModel, side: nn.Module, count: int) -> tuple[str, nn.ModuleList]:
    """Return name and list of the layers of an encoder or a decoder. Raises `ValueError` if there is none."""
    own = set(side.modules())
    found = [
        (sum(parameter.numel() for parameter in module.parameters()), name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and module in own
    ]
    if not found:
        raise ValueError(unsupported(model.config, f"its {type(side).__name__} has no list of {count} layers"))
    _, name, layers = max(found, key=lambda candidate: candidate[0])
    return name, layers


def _only_in_first(layers: nn.ModuleList) -> frozenset[str]:
    """Return the embeddings that the first layer has alone, as of relative positions; none if it has other modules."""
    first, *others = (
        {name for name, module in layer.named_modules() if next(module.parameters(recurse=False), None) is not None}
        for layer in layers
    )
    own = first.difference(*others) if others else set()
    is_plain = all(isinstance(layers[0].get_submodule(name), nn.Embedding) for name in own)
    return frozenset(own if is_plain else ())


def _positions(side: nn.Module, config: PreTrainedConfig, name: str) -> int | None:
    """Return how many positions the table of an encoder or a decoder has, None without one."""
    most = getattr(config, name, None) or getattr(config, "max_position_embeddings", None)
    tables = (
        module.num_embeddings
        for name, module in side.named_modules()
        if isinstance(module, nn.Embedding) and "pos" in name
    )
    return next((most for rows in tables if isinstance(most, int) and most <= rows <= most + 2), None)
