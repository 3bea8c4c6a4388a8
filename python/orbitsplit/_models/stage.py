"""One stage of a model: its layers, its weights and, of a causal language model, its KV cache.

transformers' own forward stays in charge, so that masks, positions and caches are computed by the code that
defines them. On a stage, that forward runs with placeholders: layers of other stages return the hidden state unchanged,
and modules of other stages (embeddings, final norm, pooler, head) return tensors of the right shape without weights.
The received hidden state enters at the first layer; all stages but the last end the forward behind their last layer.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.cache_utils import Cache
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from orbitsplit._io.device_names import CPU

from .architecture import Layout, running_unknown_code
from .cache_state import LayerBytes, has_movable_layers, layer_bytes
from .cut_hooks import LayerCutHooks, StageExit
from .decode_steps import MOST_PACKED, DecodeSteps
from .device import open_device, to_host
from .encoder_decoder_stage import EncoderDecoderStage
from .generation_inputs import entering, generation_inputs
from .image_inputs import image_names, prepared
from .kv_cache import takes_chunks
from .model_part import load_part
from .own_state import InputsSoFar, OwnState, empty_state, layers_in
from .packing import PackedCache, can_pack, packing
from .source import check_padding, dummy_ids, forget_padding, unsupported
from .stage_trials import caches_behind, chunks_agree, example_packs, example_steps, outputs_of_trial, packs_agree


class StageModel:
    """The layers [start, stop) of a model, with the weights of those only.

    Layers are counted as in a problem: 0 is what runs before the transformer layers (embeddings of tokens or patches),
    1 to n are those, n + 1 is what runs after (final norm, pooler, head), so that `layers` is n + 2. A causal language
    model `generates`: `forward` runs it token by token with a cache. `forward_once` runs any model, whole sequences at
    once. A model with an encoder and a decoder has an `encoder_decoder`, which runs both, in the place of these.
    """

    def __init__(self, model: PreTrainedModel, layout: Layout, start: int, stop: int) -> None:
        self.model = model
        self.start = start
        self.stop = stop
        self.layers = layout.layer_count + 2
        self.hidden_size = layout.hidden_size
        self.device: torch.device = model.device
        self.config: PreTrainedConfig = copy.deepcopy(model.config)
        self.generates = layout.generates
        self.generation_config: GenerationConfig | None = getattr(model, "generation_config", None)
        self._accepted = frozenset(inspect.signature(type(model).forward).parameters)
        self.image_tokens = layout.image_tokens
        self._steps: DecodeSteps | None = None
        self._packed_steps: DecodeSteps | None = None
        # With a padding token, forwards without a mask look for it in the ids, which are dummies past stage 0.
        forget_padding(model)
        self.transformer_layers = layout.layers_of(model)
        self.layout = layout
        self.encoder_decoder = EncoderDecoderStage(model, layout, start, stop) if layout.encoder is not None else None
        if self.encoder_decoder is not None:
            return
        self._cuts = LayerCutHooks(model, layout, start, stop)
        self._cuts.leaves = not self.is_last

    @classmethod
    def load(
        cls,
        model: str | Path,
        start: int,
        stop: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: str = CPU,
        tensors: Mapping[str, Any] | None = None,
    ) -> StageModel:
        """Load the layers [start, stop) of a model directory or hub id onto a device of this machine.

        Only the weights of these layers are read; with a tied head, the last stage also holds the embedding matrix.
        `tensors` has the weights by name in the place of the directory's files, each of them read by `[...]`.
        Raises ValueError for an empty or too long range, an architecture that cannot be split, a checkpoint that lacks
        weights of the stage, a device that is not here, and one that quantised weights do not run on.
        """
        place = open_device(device)
        loaded, layout = load_part(model, start, stop, dtype=dtype, tensors=tensors, is_fused=place.type == CPU)
        if place.type != CPU:
            _check_movable(loaded, device)
            loaded.to(place)
        stage = cls(loaded, layout, start, stop)
        stage._check_forward()
        stage._prepare_steps(layout)
        return stage

    @property
    def is_first(self) -> bool:
        """Whether the stage starts with the embeddings and takes the model's inputs."""
        return self.start == 0

    @property
    def is_last(self) -> bool:
        """Whether the stage ends with the head and returns what the model does."""
        return self.stop == self.layers

    @property
    def weight_bytes(self) -> int:
        """Bytes of the stage's own weights; a shared tensor counts once."""
        return sum(parameter.nbytes for parameter in self.model.parameters())

    def new_cache(self, most_tokens: int | None = None, *, spare_tokens: int = 0) -> Cache:
        """Return an empty KV cache for one group of sequences, which end at `most_tokens` tokens if that is known.

        The last `spare_tokens` tokens can be taken back by `rewind`.
        """
        if self.encoder_decoder is not None:
            return self.encoder_decoder.new_cache(most_tokens)
        assert self.layout.state is not None, "a model that generates keeps a state"
        return empty_state(self.layout.state, self.config, most_tokens, spare_tokens=spare_tokens)

    def runs_chunks(self) -> bool:
        """Whether a prompt may run through the stage in several forwards that extend a cache.

        It depends on the kinds of caches, and on a trial: a padded prompt in two chunks gives what it gives as a whole.
        """
        if not self.generates or self.encoder_decoder is not None:
            return False
        return takes_chunks(self.new_cache()) and chunks_agree(self)

    @torch.inference_mode()
    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor,
        cache: Cache,
        *,
        without_head: bool = False,
        logits_to_keep: int = 1,
        beside: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Run the stage on new tokens and extend the cache.

        `x` is the token ids [B, S] on the first stage, else the hidden state [B, S, W] of the stage before;
        `attention_mask` [B, past + S] covers the cached tokens too. Returns the hidden state [B, S, W] to send,
        or on the last stage the logits [B, V] of the last position, with more than one of `logits_to_keep` those of the
        last ones, [B, positions, V]; `without_head` the hidden state there too. Of a text with images, `beside` has
        what else the model takes of these tokens, on the first stage with the images. Tensors are in the processor's
        memory, whatever the stage's device.
        """
        is_padded, tokens = self._is_padded(attention_mask), x.shape[1]
        steps = self._steps if tokens == 1 and not is_padded and beside is None else None
        x = entering(x, self.device)
        self._cuts.received = cache.append(x) if isinstance(cache, InputsSoFar) else x
        self._cuts.leaves = steps is None and (without_head or not self.is_last)
        try:
            if steps is not None:
                return steps.forward(self._cuts.received, attention_mask.shape[1] - 1, cache, without_head=without_head)
            ids = self._cuts.received if self.is_first else dummy_ids(self.config, self._cuts.received)
            mask = attention_mask.to(self.device)
            inputs = generation_inputs(self._accepted, ids, mask, cache, is_padded=is_padded)
            if "logits_to_keep" in self._accepted:
                inputs["logits_to_keep"] = logits_to_keep
            if beside is not None:
                inputs = prepared(
                    self.model, inputs, {name: entering(one, self.device) for name, one in beside.items()}
                )
            output = self.model(**inputs)
        except StageExit as left:
            self._check_rows(cache, x)
            return to_host(left.hidden[:, -tokens:])
        finally:
            self._cuts.received = None
            self._cuts.leaves = not self.is_last
            if isinstance(cache, OwnState):
                # Of a forward that failed before the layers there is none: what the text had stays.
                cache.value = cache.value if self._cuts.state is None else self._cuts.state
                self._cuts.state = None
        self._check_rows(cache, x)
        return to_host(output.logits[:, -1] if logits_to_keep == 1 else output.logits[:, -logits_to_keep:])

    @property
    def image_inputs(self) -> tuple[str, ...]:
        """The inputs by which the model's forward takes images beside a text; none if it does not."""
        return image_names(type(self.model)) if self.generates else ()

    @property
    def takes_token_types(self) -> bool:
        """Whether the model's forward has token_type_ids."""
        return "token_type_ids" in self._accepted

    def runs_packs(self) -> bool:
        """Whether steps of several sequences may share a forward of the stage, see `forward_packed`.

        It depends on the configuration, and on a trial: each sequence gets what it gets alone.
        """
        config = self.model.config.get_text_config(decoder=True)
        if self.encoder_decoder is not None:
            return False
        if not self.generates or "position_ids" not in self._accepted or not can_pack(config, self.new_cache()):
            return False
        return packs_agree(self)

    def cache_bytes_per_token(self) -> int:
        """Return the bytes that keys and values of one more token take, before windows are full."""
        if not self.generates:
            return 0
        if self.encoder_decoder is not None:
            return self.encoder_decoder.cache_bytes_per_token()
        tokens = 2
        cache = caches_behind(self, [tokens])[0]
        if isinstance(cache, InputsSoFar):
            return cache.nbytes // tokens
        states = [
            state
            for layer in layers_in(cache)
            for state in (getattr(layer, "keys", None), getattr(layer, "values", None))
            if isinstance(state, Tensor) and state.is_floating_point()
        ]
        return sum(state.nbytes for state in states) // tokens

    def cache_layers(self) -> tuple[LayerBytes, ...]:
        """Return the bytes that each of the stage's transformer layers keeps of a sequence.

        Empty if another process cannot go on with its caches, see `has_movable_layers`, or it has no such layers.
        """
        tokens = 2
        if not self.generates or self.encoder_decoder is not None or not self.layout.is_plain:
            return ()
        if not has_movable_layers(self.new_cache(), self.layers - 2):
            return ()
        layers = caches_behind(self, [tokens])[0].layers[self.first_layer : self.last_layer]
        return tuple(layer_bytes(layer, tokens) for layer in layers)

    @property
    def first_layer(self) -> int:
        """The index of the stage's first transformer layer."""
        return self.layout.bounds[self.start]

    @property
    def last_layer(self) -> int:
        """The index behind the stage's last transformer layer."""
        return self.layout.bounds[self.stop]

    @torch.inference_mode()
    def forward_packed(
        self,
        x: Tensor,
        caches: Sequence[Cache],
        starts: Sequence[int],
        sizes: Sequence[int],
        *,
        logits_at: Sequence[int] = (),
    ) -> Tensor:
        """Run the stage on new tokens of several sequences, which lie side by side, and extend their caches.

        `x` is the token ids [1, n] on the first stage, else the hidden state [1, n, H]: `sizes[k]` tokens from position
        `starts[k]` on of the sequence that `caches[k]` has the earlier ones of. Returns the hidden state [1, n, H], or
        on the last stage the logits [m, V] at the m places `logits_at` of the row, without any the hidden state too.
        Only where `runs_packs`.
        """
        places = [place for start, size in zip(starts, sizes, strict=True) for place in range(start, start + size)]
        cache = PackedCache(caches, sizes)
        steps = self._packed_steps if len(places) <= MOST_PACKED else None
        self._cuts.received = entering(x, self.device)
        self._cuts.leaves = steps is None and (not logits_at or not self.is_last)
        try:
            if steps is not None:
                return steps.forward_packed(self._cuts.received, places, cache, logits_at=logits_at)
            ids = self._cuts.received
            if not self.is_first:  # only the shape of the ids is used
                ids = dummy_ids(self.config, ids)
            inputs: dict[str, Any] = {"input_ids": ids, "position_ids": torch.tensor([places], device=self.device)}
            if "logits_to_keep" in self._accepted and not self._cuts.leaves:
                inputs["logits_to_keep"] = torch.tensor(logits_at, device=self.device)
            with packing(self.model.config.get_text_config(decoder=True), cache):
                output = self.model(**inputs, past_key_values=cache, use_cache=True)
        except StageExit as left:
            return to_host(left.hidden)
        finally:
            self._cuts.received = None
            self._cuts.leaves = not self.is_last
        return to_host(output.logits[0] if "logits_to_keep" in inputs else output.logits[0, list(logits_at)])

    @torch.inference_mode()
    def forward_once(self, x: Tensor | None, inputs: Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """Run the stage on whole sequences or images, without a cache.

        `x` is the hidden state [B, S, H] of the stage before, None on the first stage. `inputs` are the model's on
        every stage; past the first one only `attention_mask` and `position_ids` are read, and the shapes of the
        others. Returns the hidden state [B, S, H] to send, or on the last stage the tensors that the model returns, by
        name: `logits` (a causal language model's at all positions), `last_hidden_state`, `pooler_output` and so on.
        """
        options: dict[str, Any] = {"use_cache": False} if "use_cache" in self._accepted else {}
        inputs = {name: entering(value, self.device) for name, value in inputs.items()}
        if x is None:
            check_padding(self.config, inputs)
        elif "input_ids" in inputs:
            inputs["input_ids"] = dummy_ids(self.config, inputs["input_ids"], inputs.get("attention_mask"))
        self._cuts.received = None if x is None else entering(x, self.device)
        try:
            output = self.model(**inputs, **options)
        except StageExit as left:
            return to_host(left.hidden)
        finally:
            self._cuts.received = None
        return {name: to_host(value) for name, value in output.items() if isinstance(value, Tensor)}

    @staticmethod
    def _is_padded(attention_mask: Tensor) -> bool:
        return not bool(attention_mask.all())

    def _check_rows(self, cache: Cache, received: Tensor) -> None:
        """Raise ValueError where a model makes other rows than it got, as RWKV of transformers 5.23 in a step."""
        made, given = self._cuts.rows_and_tokens, tuple(received.shape[:2])
        if isinstance(cache, OwnState) and made != given:
            raise ValueError(
                f"{type(self.model).__name__} mixes the rows of a batch: of {list(given)} rows and tokens it makes "
                f"{list(made or ())}; run one row at a time"
            )

    def _check_forward(self) -> None:
        # Placeholders of the embeddings return NaN, so a layer or head that reads them past the first layer fails here.
        # The same forward warms up the allocator, so that the first timed one is like the others.
        with running_unknown_code(self.config, "a stage of it does not run"):
            outputs = outputs_of_trial(self)
        if not all(bool(output.isfinite().all()) for output in outputs):
            reason = "its layers read the embeddings beside the hidden state, or its weights are not finite"
            raise ValueError(unsupported(self.config, reason))

    def _prepare_steps(self, layout: Layout) -> None:
        """Let steps run without transformers' preparations if one with them gives the same bits."""
        steps = None
        if self.generates and self.device.type == CPU and self.encoder_decoder is None:
            steps = DecodeSteps.of(self.model, layout, is_first=self.is_first, is_last=self.is_last)
        if steps is None:
            return
        expected = example_steps(self)
        self._steps = steps
        if not all(torch.equal(x, y) for x, y in zip(example_steps(self), expected, strict=True)):
            self._steps = None
            return
        if can_pack(self.model.config.get_text_config(decoder=True), self.new_cache()):
            expected = example_packs(self)
            self._packed_steps = steps
            if not all(torch.equal(x, y) for x, y in zip(example_packs(self), expected, strict=True)):
                self._packed_steps = None


def _check_movable(model: PreTrainedModel, device: str) -> None:
    if any(parameter.dtype == torch.uint8 for parameter in model.parameters()):
        raise ValueError(f"quantised weights run on the processor alone, not on {device}: give the node float weights")
