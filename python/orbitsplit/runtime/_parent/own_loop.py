"""transformers' own loops around generate, with a pipeline in the place of the generate inside: Whisper's.

Such a loop decides with which tokens the decoder starts, cuts long recordings into segments, and tries again what came
out badly. It runs here as it is, on a model without weights; only what it calls a model for goes to the stages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import Seq2SeqLMOutput

from orbitsplit._models.source import model_class
from orbitsplit._models.valueless import build_on_meta

# Generates with keywords of `Pipeline.generate`; returns tokens, or an output by name if that was asked for.
Generate = Callable[[dict[str, Any]], Any]


class _InPipeline(GenerationMixin):  # type: ignore[misc]  # transformers is untyped here
    """What a loop calls: generate, and for a single token the forward."""

    in_pipeline: Generate

    def generate(self, inputs: Tensor | None = None, **keywords: Any) -> Any:
        """Generate in the pipeline, as `GenerationMixin.generate` does here."""
        for name in ("synced_gpus", "prefix_allowed_tokens_fn"):
            if not keywords.get(name):
                keywords.pop(name, None)
        return self.in_pipeline({"inputs": inputs, **keywords})


def _forward(model: Any, decoder_input_ids: Tensor, use_cache: bool = False, **inputs: Any) -> Seq2SeqLMOutput:
    """Return the logits of the next token, as a forward of the model would."""
    options = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True, "do_sample": False}
    made = model.in_pipeline({**inputs, "decoder_input_ids": decoder_input_ids, **options})
    return Seq2SeqLMOutput(logits=made.logits[0][:, None])


def generate_in_loop(
    config: PreTrainedConfig, generation_config: Mapping[str, Any], generate: Generate, keywords: Mapping[str, Any]
) -> Any:
    """Run a model's own loop around generate with the keywords of a call, and return what it returns."""
    architecture = model_class(config)
    members = {
        "device": property(lambda _model: torch.device("cpu")),
        "forward": _forward,
        "in_pipeline": staticmethod(generate),
    }
    model: Any = build_on_meta(config)
    model.__class__ = type(architecture.__name__, (architecture, _InPipeline), members)
    model.generation_config = GenerationConfig.from_dict(dict(generation_config))
    return model.generate(**keywords)
