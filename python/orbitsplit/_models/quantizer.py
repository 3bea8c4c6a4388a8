"""The quantization method "orbitsplit" of transformers: `from_pretrained` loads what `convert` wrote.

A model's config.json names the modules whose weights are quantized, so that a recipe may mix formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.modeling_utils import PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from .fingerprint import SOURCE_HASH
from .quantized import replace_with_quantized

METHOD = "orbitsplit"
VERSION = 1


@register_quantization_config(METHOD)
class WeightsConfig(QuantizationConfigMixin):  # type: ignore[misc]  # transformers is not typed
    """What is quantized how.

    `formats` names the modules of each weight format, `layers` the list of transformer layers. `layer_hashes` has the
    digest of each of these before it was quantized (see `hash_layer`), by which codebooks know a model; `source` says
    what was converted. `int8_rows` has the number of rows in int8 of tables in int4 (see `RefinedWeights`).
    """

    def __init__(
        self,
        formats: Mapping[str, list[str]],
        layers: str,
        layer_hashes: list[str],
        source: str = "",
        int8_rows: Mapping[str, int] | None = None,
        version: int = VERSION,
        **_kwargs: Any,
    ) -> None:
        if version != VERSION:
            raise ValueError(f"weights quantized by orbitsplit, version {version}; this version reads {VERSION}")
        self.quant_method = METHOD  # one that transformers does not list
        self.version = version
        self.formats = {name: list(modules) for name, modules in formats.items()}
        self.layers = layers
        self.layer_hashes = list(layer_hashes)
        self.source = source
        self.int8_rows = dict(int8_rows or {})

    def by_module(self) -> dict[str, str]:
        """Return the format of each quantized module."""
        return {module: name for name, modules in self.formats.items() for module in modules}


@register_quantizer(METHOD)
class WeightsQuantizer(HfQuantizer):  # type: ignore[misc]
    """Puts quantized modules into a model before its weights are loaded."""

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_kwargs: Any) -> None:
        quantized = self.quantization_config
        replace_with_quantized(model, quantized.by_module(), quantized.int8_rows)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_kwargs: Any) -> PreTrainedModel:
        layers = model.get_submodule(self.quantization_config.layers)
        for layer, digest in zip(layers.children(), self.quantization_config.layer_hashes, strict=True):
            vars(layer)[SOURCE_HASH] = digest
        return model

    def is_serializable(self) -> bool:
        """Say whether `save_pretrained` works on the model: it does, weights are tensors like others."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether the weights can be trained: they cannot."""
        return False


def weights_config(config: Any) -> WeightsConfig | None:
    """Return what is quantized in a model by its configuration, None if nothing is by orbitsplit.

    Raises ValueError for a version that is not known.
    """
    found = getattr(config, "quantization_config", None)
    if isinstance(found, WeightsConfig):
        return found
    if isinstance(found, Mapping) and found.get("quant_method") == METHOD:
        return WeightsConfig(**{key: value for key, value in found.items() if key != "quant_method"})
    return None
