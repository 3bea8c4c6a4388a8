"""One stage of a model: its layers, its weights and, of a causal language model, its KV cache.

transformers' own forward stays in charge, so that masks, positions and caches are computed by the code that
defines them. On a stage, that forward runs with placeholders: layers of other stages return the hidden state unchanged,
and modules of other stages (embeddings, final norm, pooler, head) return tensors of the right shape without weights.
The received hidden state enters at the first layer; all stages but the last end the forward behind their last layer.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import GenerationConfig
from transformers.cache_utils import Cache
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging as transformers_logging

from orbitsplit._io.device_names import CPU

from .architecture import Layout, Passthrough, find_layout, modules_outside, running_unknown_code
from .decode_steps import DecodeSteps
from .device import open_device, to_host
from .fused_layers import fuse_layers
from .fused_norms import fuse_norms
from .kv_cache import growing_cache, takes_chunks
from .source import example_inputs, forget_padding, load_options, model_class, read_config, unsupported, without_values
from .stored_dtype import convert_parameters, keep_stored, stored_dtype

# Of what torch allocates on a CPU, in bytes.
_ALIGNMENT = 64
# How much the outputs of a prompt in chunks may differ from those of the whole, relative to the largest: other shapes
# round differently, and a wrong mask or position changes more.
_CHUNK_TOLERANCE = {torch.float32: 1e-4}
_HALF_TOLERANCE = 0.05


class StageModel:
    """The layers [start, stop) of a model, with the weights of those only.

    Layers are counted as in a problem: 0 is what runs before the transformer layers (embeddings of tokens or patches),
    1 to n are those, n + 1 is what runs after (final norm, pooler, head), so that `layers` is n + 2. A causal language
    model `generates`: `forward` runs it token by token with a cache. `forward_once` runs any model, whole sequences at
    once.
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
        self._image_tokens = layout.image_tokens
        self._received: Tensor | None = None
        self._steps: DecodeSteps | None = None
        # With a padding token, forwards without a mask look for it in the ids, which are dummies past stage 0.
        forget_padding(model)
        self.transformer_layers = layers = layout.layers_of(model)
        if not self.is_first:
            layers[0].register_forward_pre_hook(self._enter, with_kwargs=True)
        self._leaves = not self.is_last
        layers[-1].register_forward_hook(self._leave)

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
        return growing_cache(self.config.get_text_config(decoder=True), most_tokens, spare_tokens=spare_tokens)

    def runs_chunks(self) -> bool:
        """Whether a prompt may run through the stage in several forwards that extend a cache.

        It depends on the kinds of caches, and on a trial: a padded prompt in two chunks gives what it gives as a whole.
        """
        if not self.generates or not takes_chunks(self.new_cache()):
            return False
        rows, first, tokens = 2, 4, 7
        mask = torch.ones(rows, tokens, dtype=torch.long)
        mask[1, :2] = 0
        x = self._example(rows, tokens)
        whole = self.forward(x, mask, self.new_cache())
        cache = self.new_cache()
        self.forward(x[:, :first], mask[:, :first], cache, without_head=True)
        last = self.forward(x[:, first:], mask, cache)
        expected = whole if self.is_last else whole[:, first:]
        tolerance = _CHUNK_TOLERANCE.get(self.model.dtype, _HALF_TOLERANCE)
        return bool((last - expected).abs().max() <= tolerance * expected.abs().max())

    @torch.inference_mode()
    def forward(
        self, x: Tensor, attention_mask: Tensor, cache: Cache, *, without_head: bool = False, logits_to_keep: int = 1
    ) -> Tensor:
        """Run the stage on new tokens and extend the cache.

        `x` is the token ids [B, S] on the first stage, else the hidden state [B, S, H] of the stage before;
        `attention_mask` [B, past + S] covers the cached tokens too. Returns the hidden state [B, S, H] to send,
        or on the last stage the logits [B, V] of the last position, with more than one of `logits_to_keep` those of the
        last ones, [B, positions, V]; `without_head` the hidden state there too. Tensors are in the processor's memory,
        whatever the stage's device.
        """
        is_padded = self._is_padded(attention_mask)
        steps = self._steps if x.shape[1] == 1 and not is_padded else None
        self._received = self._entering(x)
        self._leaves = steps is None and (without_head or not self.is_last)
        try:
            if steps is not None:
                return steps.forward(self._received, attention_mask.shape[1] - 1, cache, without_head=without_head)
            inputs = self._inputs(self._received, attention_mask, is_padded=is_padded, logits_to_keep=logits_to_keep)
            output = self.model(**inputs, past_key_values=cache, use_cache=True)
        except _StageExit as left:
            return to_host(left.hidden)
        finally:
            self._received = None
            self._leaves = not self.is_last
        return to_host(output.logits[:, -1] if logits_to_keep == 1 else output.logits[:, -logits_to_keep:])

    @torch.inference_mode()
    def forward_once(self, x: Tensor | None, inputs: Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """Run the stage on whole sequences or images, without a cache.

        `x` is the hidden state [B, S, H] of the stage before, None on the first stage. `inputs` are the model's on
        every stage; past the first one only `attention_mask` and `position_ids` are read, and the shapes of the
        others. Returns the hidden state [B, S, H] to send, or on the last stage the tensors that the model returns, by
        name: `logits` (a causal language model's at all positions), `last_hidden_state`, `pooler_output` and so on.
        """
        options: dict[str, Any] = {"use_cache": False} if "use_cache" in self._accepted else {}
        inputs = {name: self._entering(value) for name, value in inputs.items()}
        self._received = None if x is None else self._entering(x)
        try:
            output = self.model(**inputs, **options)
        except _StageExit as left:
            return to_host(left.hidden)
        finally:
            self._received = None
        return {name: to_host(value) for name, value in output.items() if isinstance(value, Tensor)}

    @staticmethod
    def _is_padded(attention_mask: Tensor) -> bool:
        return not bool(attention_mask.all())

    def _entering(self, x: Tensor) -> Tensor:
        """Return what enters the stage on its device."""
        return _aligned(x) if self.device.type == CPU else x.to(self.device)

    def _inputs(self, x: Tensor, attention_mask: Tensor, *, is_padded: bool, logits_to_keep: int) -> dict[str, Any]:
        tokens, attention_mask = x.shape[1], attention_mask.to(self.device)
        # Past the first stage only the shape of the ids is used.
        inputs: dict[str, Any] = {"input_ids": x if self.is_first else x.new_zeros(x.shape[:2], dtype=torch.long)}
        # As transformers' generate does it: positions from the mask, and the mask dropped where nothing is padded,
        # because attention is faster without (and rounds differently).
        if "position_ids" in self._accepted:
            positions = (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 0)
            inputs["position_ids"] = positions[:, -tokens:]
        inputs["attention_mask"] = attention_mask if is_padded else None
        if "logits_to_keep" in self._accepted:
            inputs["logits_to_keep"] = logits_to_keep
        return inputs

    def _enter(self, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args:
            return (self._received, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._received}

    def _leave(self, _layer: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        if self._leaves:
            raise _StageExit(output[0] if isinstance(output, (tuple, list)) else output)

    def _check_forward(self) -> None:
        # Placeholders of the embeddings return NaN, so a layer or head that reads them past the first layer fails here.
        # The same forward warms up the allocator, so that the first timed one is like the others.
        with running_unknown_code(self.config, "a stage of it does not run"):
            outputs = self._try_forward()
        if not all(bool(output.isfinite().all()) for output in outputs):
            reason = "its layers read the embeddings beside the hidden state, or its weights are not finite"
            raise ValueError(unsupported(self.config, reason))

    def _prepare_steps(self, layout: Layout) -> None:
        """Let steps run without transformers' preparations if one with them gives the same bits."""
        steps = None
        if self.generates and self.device.type == CPU:
            steps = DecodeSteps.of(self.model, layout, is_first=self.is_first, is_last=self.is_last)
        if steps is None:
            return
        expected = self._example_steps()
        self._steps = steps
        if not all(torch.equal(x, y) for x, y in zip(self._example_steps(), expected, strict=True)):
            self._steps = None

    def _example_steps(self) -> list[Tensor]:
        """Return the outputs for a prompt of three tokens and for two steps behind it."""
        cache, rows = self.new_cache(), 2
        return [
            self.forward(self._example(rows, new), torch.ones(rows, total, dtype=torch.long), cache)
            for new, total in ((3, 3), (1, 4), (1, 5))
        ]

    def _try_forward(self) -> list[Tensor]:
        rows, tokens = 1, 2
        if self.generates:
            x = self._example(rows, tokens)
            return [self.forward(x, torch.ones(rows, tokens, dtype=torch.long), self.new_cache())]
        inputs = example_inputs(self.config, rows=rows, tokens=tokens)
        output = self.forward_once(None if self.is_first else self._hidden(rows, tokens), inputs)
        return [output] if isinstance(output, Tensor) else list(output.values())

    def _example(self, rows: int, tokens: int) -> Tensor:
        """Return what a stage of a causal language model receives: token ids, or the hidden state of others."""
        if not self.is_first:
            return self._hidden(rows, tokens)
        ids: Tensor = example_inputs(self.config, rows=rows, tokens=tokens)["input_ids"]
        return ids

    def _hidden(self, rows: int, tokens: int) -> Tensor:
        shape = (rows, self._image_tokens or tokens, self.hidden_size)
        return torch.linspace(-1.0, 1.0, math.prod(shape)).reshape(shape).to(self.model.dtype)


def load_part(
    model: str | Path,
    start: int,
    stop: int,
    *,
    dtype: torch.dtype = torch.float32,
    tensors: Mapping[str, Any] | None = None,
    is_fused: bool = True,
) -> tuple[PreTrainedModel, Layout]:
    """Return a model with the weights of its layers [start, stop) alone, and how it runs its layers.

    Arguments and errors as of `StageModel.load`. In the place of other modules are ones without weights. If `is_fused`,
    the core computes layers and norms where it gives what they do.
    """
    config = read_config(model)
    layout = find_layout(config)
    layers = layout.layer_count + 2
    if not 0 <= start < stop <= layers:
        raise ValueError(f"stage [{start}, {stop}) is not a non-empty range within the model's {layers} layers")
    stored = stored_dtype(model, config)
    architecture = _stage_class(model_class(config), layout, start, stop, stored)
    source = model if tensors is None else None
    with _quiet_loading():
        loaded, info = architecture.from_pretrained(
            source,
            config=config,
            state_dict=tensors,
            dtype=dtype,
            output_loading_info=True,
            **load_options(model, config),
        )
    _check_complete(loaded, set(info["missing_keys"]), f"stage [{start}, {stop}) of {model}")
    convert_parameters(loaded)
    _forget_embeddings(loaded, layout, start)
    if is_fused:
        fuse_layers(layout.layers_of(loaded))
        fuse_norms(loaded)
    return loaded, layout


def _check_movable(model: PreTrainedModel, device: str) -> None:
    if any(parameter.dtype == torch.uint8 for parameter in model.parameters()):
        raise ValueError(f"quantised weights run on the processor alone, not on {device}: give the node float weights")


def _aligned(x: Tensor) -> Tensor:
    """Return a tensor in memory as torch itself allocates it: matrix products may round differently elsewhere."""
    return x if x.data_ptr() % _ALIGNMENT == 0 and x.is_contiguous() else x.clone(memory_format=torch.contiguous_format)


class _StageExit(BaseException):
    """Ends a model's forward behind the last layer; not an Exception, which a forward may catch."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class _Placeholder(nn.Module):
    """Replaces a module of another stage: its output has the right shape and is NaN; it has no weights."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "_module", module.to("meta"))  # unregistered: its weights are not ours to load
        self._signature: Any = None
        self._output: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_module"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # The forward on meta takes about as long as half a layer of a small model, and decode steps repeat it
        # with the same shapes. Only the shapes are kept: some models scale the embeddings in place.
        signature = tree_map_only(Tensor, lambda x: (x.shape, x.dtype), (args, kwargs))
        if self._signature != signature:
            on_meta = tree_map_only(Tensor, lambda x: x.to("meta"), (args, kwargs))
            self._output = object.__getattribute__(self, "_module")(*on_meta[0], **on_meta[1])
            self._signature = signature
        device = next((x.device for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)), None)
        return tree_map_only(Tensor, functools.partial(_filled, device=device), self._output)


def _filled(x: Tensor, *, device: torch.device | None) -> Tensor:
    value = float("nan") if x.is_floating_point() else 0
    return torch.full(x.shape, value, dtype=x.dtype, device=device)


def _stage_class(
    architecture: type[PreTrainedModel], layout: Layout, start: int, stop: int, stored: torch.dtype | None
) -> type[PreTrainedModel]:
    """Return the architecture as it is on a stage, for transformers' own loader to fill; see `keep_stored`."""

    def initialise(self: PreTrainedModel, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        with without_values():
            architecture.__init__(self, config, *args, **kwargs)
        _strip(self, layout, start, stop)
        keep_stored(self, stored)

    members = {
        "__init__": initialise,
        "__module__": architecture.__module__,
        # By default these are the first weight's, and what runs after the layers may have none.
        "dtype": property(lambda model: model.config.dtype),
        "device": property(lambda model: next((weight.device for weight in model.parameters()), torch.device("cpu"))),
        # The weights of other stages; missing weights of the stage itself are checked.
        "_keys_to_ignore_on_load_unexpected": [".*"],
    }
    return type(architecture.__name__, (architecture,), members)


def _strip(model: PreTrainedModel, layout: Layout, start: int, stop: int) -> None:
    """Replace the modules of other stages. The source of a tied head stays on the last stage until it is loaded."""
    is_first, is_last = start == 0, stop == layout.layer_count + 2
    sources = set((model.all_tied_weights_keys or {}).values()) if is_last else set()
    if not is_last:
        model.all_tied_weights_keys = {}
    for name, module in modules_outside(model, layout.layers_name).items():
        owned = (is_first and name in layout.before) or (is_last and name in layout.after)
        tied = any(f"{name}.{key}" in sources for key, _ in module.named_parameters())
        if name in layout.before | layout.after | layout.idle and not owned and not tied:
            model.set_submodule(name, _Placeholder(module))
    layers = layout.layers_of(model)
    for index, layer in enumerate(layers):
        if not start <= index + 1 < stop:
            layers[index] = Passthrough(index, layer.to("meta"), layout.tuple_length)


def _forget_embeddings(model: PreTrainedModel, layout: Layout, start: int) -> None:
    # A tied head has its weight by now; the embeddings it came from are neither run nor kept.
    if start > 0:
        for name in layout.before:
            module = model.get_submodule(name)
            if not isinstance(module, _Placeholder) and name not in layout.after:
                model.set_submodule(name, _Placeholder(module))


def _check_complete(model: PreTrainedModel, missing: set[str], what: str) -> None:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    missing = (missing & tensors.keys()) | {name for name, tensor in tensors.items() if tensor.is_meta}
    if missing:
        raise ValueError(f"{what}: the checkpoint lacks {len(missing)} weights, the first is {min(missing)}")


@contextmanager
def _quiet_loading() -> Iterator[None]:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
