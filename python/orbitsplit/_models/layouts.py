"""The layouts of models: how they run their layers, found once for each configuration."""

from __future__ import annotations

import json

from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .architecture import Layout, without_paths
from .encoder_decoder import find_encoder_decoder
from .probe import find_plain_layout
from .source import has_encoder, model_class

# By the model's class and its whole configuration. A forward on the meta device takes a second or two, and every stage
# of a pipeline needs its result: workers have what the server that forks them has found.
_LAYOUTS: dict[tuple[type[PreTrainedModel], str], Layout] = {}
_MOST_LAYOUTS = 64


def find_layout(config: PreTrainedConfig) -> Layout:
    """Return how a model runs its layers, from one forward on the meta device; found once for each configuration.

    Raises `ValueError`, naming the architecture and the reason, for a model whose layers depend on more than the
    hidden state of the layer before: split into stages, it would compute something else.
    """
    key = _layout_key(config)
    layout = _LAYOUTS.get(key)
    if layout is None:
        layout = _find_layout(config)
        if len(_LAYOUTS) >= _MOST_LAYOUTS:
            _LAYOUTS.clear()
        _LAYOUTS[key] = layout
    return layout


def knows_layout(config: PreTrainedConfig) -> bool:
    """Return whether `find_layout` has found the layout already."""
    return _layout_key(config) in _LAYOUTS


def _layout_key(config: PreTrainedConfig) -> tuple[type[PreTrainedModel], str]:
    """Return what a layout depends on: where the model lies does not count."""
    document = json.loads(config.to_json_string(use_diff=False))
    return model_class(config), json.dumps(without_paths(document), sort_keys=True)


def _find_layout(config: PreTrainedConfig) -> Layout:
    return find_encoder_decoder(config) if has_encoder(config) else find_plain_layout(config)
