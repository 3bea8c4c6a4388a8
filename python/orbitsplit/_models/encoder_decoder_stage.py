"""What one stage of an encoder-decoder model computes, whichever layers of the encoder or the decoder it has.

The first forward of a prompt runs through all stages. Those of the encoder send its hidden state on; from where the
decoder's embeddings are on, what the encoder made of the prompt follows the decoder's hidden state in one tensor, so
that every later stage gets it once. In later steps the stages of the encoder pass tokens on and compute nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .architecture import Layout
from .cut_hooks import CutHooks, StageExit
from .device import to_host
from .encoder_decoder import decoder_inputs, example_prompt, new_encoder_decoder_cache, run_encoder
from .generation_inputs import entering
from .source import dummy_ids

_MASK = "attention_mask"


class PromptCache(EncoderDecoderCache):  # type: ignore[misc]  # transformers is not typed
    """The cache of a stage, which knows the shape of what the encoder made, but does not keep it."""

    shape: torch.Size | None = None


class EncoderDecoderStage:
    """The forwards of the layers [start, stop) of a model, whose other layers and modules are placeholders.

    Layers are counted over both lists: 0 is what runs before the encoder's layers, then come those,
    `EncoderLayout.middle_layer` is the encoder's norm with the decoder's embeddings, and behind it are the decoder's
    layers and the head.
    """

    def __init__(self, model: PreTrainedModel, layout: Layout, start: int, stop: int) -> None:
        assert layout.encoder is not None, "other models have no encoder"
        self.layout = layout.encoder
        self._model = model
        # `forget_padding` takes what the decoder may need to know of the configuration.
        self._config: PreTrainedConfig = model.config
        middle = self.layout.middle_layer
        self.takes_prompt = start == 0
        self.is_last = stop == layout.layer_count + 2
        # Whether what arrives for later steps are tokens, and what is sent on.
        self.takes_tokens, self.sends_tokens = start <= middle, stop <= middle
        self._cuts = CutHooks()
        self._fixed_tokens = layout.image_tokens
        self._hidden_size = layout.hidden_size
        if 0 < start <= middle:
            self._cuts.enter_at(layout.encoder_layers_of(model)[0])
        if self.sends_tokens:
            self._cuts.leave_behind(layout.encoder_layers_of(model)[-1])
            return
        layers = layout.decoder_layers_of(model)
        if start > middle:
            self._cuts.enter_at(layers[0])
        self._cuts.leave_behind(layers[-1])

    def new_cache(self, most_tokens: int | None = None) -> PromptCache:
        """Return an empty cache for one group of sequences, which end at `most_tokens` tokens if that is known."""
        made = new_encoder_decoder_cache(self._config, most_tokens)
        return PromptCache(made.self_attention_cache, made.cross_attention_cache)

    @torch.inference_mode()
    def forward_prompt(
        self, x: Tensor | None, prompt: Mapping[str, Tensor], ids: Tensor, cache: Cache, *, replayed: int = 0
    ) -> Tensor:
        """Run the stage on a prompt and the first tokens of the decoder, and fill the cache.

        `prompt` has the encoder's inputs by name; past the first stage their shapes count alone, but for a mask.
        `ids` [b, T] are the decoder's, the last `replayed` of which run one at a time. `x` is what the stage before
        sends, None on the first stage. Returns what the next stage takes: a hidden state of the encoder [b, S, H], or
        of the decoder with the encoder's output behind it [b, T + S, H]; on the last stage the logits [b, V].
        """
        assert isinstance(cache, PromptCache), "it is of a stage with an encoder"
        new = ids.shape[1]
        if self.takes_tokens:
            memory = self._encode(x, prompt)
            if self.sends_tokens:
                return to_host(memory)
            x = ids
        else:
            assert x is not None, "the stage before sends it"
            x, memory = x[:, :new], x[:, new:]
        memory = entering(memory, self._model.device)
        cache.shape = memory.shape
        mask = prompt.get(_MASK)
        pieces = torch.split(x, [new - replayed] + [1] * replayed, dim=1)
        outputs = [
            self._decode(piece, memory, mask, cache, is_first=number == 0, without_head=number < replayed)
            for number, piece in enumerate(pieces)
        ]
        if self.is_last:
            return to_host(outputs[-1])
        return to_host(torch.cat([*outputs, memory], dim=1))

    @torch.inference_mode()
    def forward_step(self, x: Tensor, mask: Tensor | None, cache: Cache) -> Tensor:
        """Run the stage on a further token of each row, with the mask of the prompt.

        `x` is the tokens [b, 1] or the decoder's hidden state [b, 1, H]; returns the same for the next stage, or on the
        last one the logits [b, V].
        """
        if self.sends_tokens:
            return x
        assert isinstance(cache, PromptCache), "it is of a stage with an encoder"
        assert cache.shape is not None, "a prompt has run"
        # Keys and values of it are in the cache: what reads it nevertheless, gets what no number is made of.
        nothing = torch.full((1, 1, 1), float("nan"), dtype=self._model.dtype, device=self._model.device)
        return to_host(self._decode(x, nothing.expand(cache.shape), mask, cache, is_first=False))

    def example_outputs(self, rows: int, tokens: int) -> list[Tensor]:
        """Return what the stage gives for a made-up prompt, and for a token behind it."""
        output, cache = self._run_example(rows, tokens)
        step = torch.zeros(rows, 1, dtype=torch.long) if self.takes_tokens else self._hidden(rows, 1)
        return [output] if self.sends_tokens else [output, self.forward_step(step, None, cache)]

    def cache_bytes_per_token(self) -> int:
        """Return the bytes of keys and values of a token: one of the decoder's own, or one of the prompt's."""
        if self.sends_tokens:
            return 0
        _, cache = self._run_example(1, 2)
        sizes = []
        for part in (cache.self_attention_cache, cache.cross_attention_cache):
            states = [getattr(layer, name, None) for layer in part.layers for name in ("keys", "values")]
            own = [state for state in states if isinstance(state, Tensor) and state.is_floating_point()]
            sizes.append(sum(state.nbytes // max(1, state.shape[-2]) for state in own))
        return max(sizes)

    def _run_example(self, rows: int, tokens: int) -> tuple[Tensor, PromptCache]:
        """Return what the stage gives for a made-up prompt and two tokens of the decoder, and the cache of both."""
        prompt, ids = example_prompt(self._config, rows=rows, tokens=tokens), torch.zeros(rows, 2, dtype=torch.long)
        cache, x = self.new_cache(), None
        if not self.takes_prompt:
            length = self._fixed_tokens or tokens
            x = self._hidden(rows, length if self.takes_tokens else length + ids.shape[1])
        return self.forward_prompt(x, prompt, ids, cache), cache

    def _hidden(self, rows: int, tokens: int) -> Tensor:
        shape = (rows, tokens, self._hidden_size)
        numbers = torch.linspace(-1.0, 1.0, rows * tokens * self._hidden_size)
        return numbers.reshape(shape).to(self._model.dtype)

    def _encode(self, x: Tensor | None, prompt: Mapping[str, Tensor]) -> Tensor:
        """Return what the encoder's layers up to the stage's last one make of a prompt."""
        inputs = {name: value.to(self._model.device) for name, value in prompt.items()}
        if not self.takes_prompt and "input_ids" in inputs:
            inputs["input_ids"] = dummy_ids(self._config, inputs["input_ids"])
        for name, value in inputs.items():
            if value.is_floating_point():
                inputs[name] = value.to(self._model.dtype)
        self._cuts.received = None if x is None else entering(x, self._model.device)
        self._cuts.leaves = self.sends_tokens
        try:
            return run_encoder(self._model, inputs)
        except StageExit as left:
            return left.hidden
        finally:
            self._cuts.received = None

    def _decode(
        self,
        x: Tensor,
        memory: Tensor,
        mask: Tensor | None,
        cache: PromptCache,
        *,
        is_first: bool,
        without_head: bool = False,
    ) -> Tensor:
        """Run tokens [b, n], or their hidden state, through the decoder's layers; return logits of the last one."""
        x = entering(x, self._model.device)
        ids = x if self.takes_tokens else dummy_ids(self._config, x)
        mask = None if mask is None else mask.to(self._model.device)
        self._cuts.received = None if self.takes_tokens else x
        self._cuts.leaves = without_head or not self.is_last
        try:
            output: Any = self._model(
                **decoder_inputs(self._model, ids, memory, mask, cache, is_first=is_first), return_dict=True
            )
        except StageExit as left:
            return left.hidden
        finally:
            self._cuts.received = None
        logits: Tensor = output.logits[:, -1]
        return logits
