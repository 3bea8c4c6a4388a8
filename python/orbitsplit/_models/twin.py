"""Whether a small model of random weights computes in stages what it does unsplit: the trial of an architecture."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging as transformers_logging

from .device import single_thread
from .encoder_decoder import example_prompt
from .generation_rules import rope_change
from .image_inputs import divided, example_images
from .layouts import find_layout
from .own_state import state_kind
from .prompt_parts import of_tokens
from .small_config import LONG_TOKENS
from .source import can_generate, classifies_texts, example_inputs, has_encoder, model_class, read_config
from .stage import StageModel

Kind = Literal["exact", "refused", "wrong", "crash", "unknown"]

# How much results of stages may differ from the unsplit model's, relative to the largest number: rounding differs
# where the core computes a layer, and a wrong mask, position or cache changes more.
_TOLERANCE = 2e-3
_ROWS, _PROMPT_TOKENS, _PADDED_TOKENS = 2, 5, 2
# The ids of a prompt are from these, clear of padding and of the tokens that stand for images.
_FIRST_ID, _LAST_ID = 5, 90


@dataclass(frozen=True)
class Verdict:
    """What a trial found, and why: the reason of a refusal, the place and size of a difference, or an exception."""

    kind: Kind
    reason: str = ""


def try_split(config: PreTrainedConfig, *, seed: int = 0, with_images: bool = False) -> Verdict:
    """Run a small model of random weights unsplit and in stages, and say whether both give the same.

    One that generates does so of texts, or `with_images` of texts with an image. "refused" is a model that cannot be
    split, "crash" an error that is no refusal, "unknown" one that does not run unsplit. A causal language model
    generates, with and without padding, beyond all lengths at which forwards change. Raises OSError and MemoryError,
    which say nothing about an architecture, and torch's own error for no memory.
    """
    with tempfile.TemporaryDirectory(prefix="orbitsplit-twin-") as folder, _quiet(seed), single_thread():
        try:
            _random_model(config).save_pretrained(folder)
            # As anyone loads it: the loader of some classes changes weights that were saved (Youtu's embeddings).
            unsplit: PreTrainedModel = model_class(config).from_pretrained(folder, dtype=torch.float32).eval()
            trial = _seen if with_images else _generated if can_generate(config) else _once
            trial = _translated if has_encoder(config) else trial
            cases = trial(unsplit)
        except Exception as error:  # whatever an architecture's own code raises
            if is_of_machine(error):
                raise
            if _is_refusal(error):
                return Verdict("refused", _first_line(error))
            return Verdict("unknown", f"it does not run unsplit: {_first_line(error)}")
        try:
            return _compare(folder, cases)
        except Exception as error:
            if is_of_machine(error):
                raise
            if _is_refusal(error):
                return Verdict("refused", _first_line(error))
            return Verdict("crash", f"{type(error).__name__}: {_first_line(error)}")


def is_of_machine(error: Exception) -> bool:
    """Whether an error says something about this machine, not about an architecture: no memory, a full disk."""
    return isinstance(error, (OSError, MemoryError)) or "allocate memory" in str(error)


def _is_refusal(error: Exception) -> bool:
    return isinstance(error, ValueError) and "cannot be split into stages" in str(error)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__


@contextmanager
def _quiet(seed: int) -> Iterator[None]:
    """Draw random numbers without changing those of the process, and show nothing of what the small model prints."""
    shown, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()


def _random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Build a model whose outputs depend on every token: weights as initialised hardly tell tokens apart."""
    model: PreTrainedModel = model_class(config)._from_config(config, dtype=torch.float32)
    embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter in embeddings:
                parameter.normal_(0.0, 0.5)
            elif parameter.dim() > 1 and "A_log" not in name:
                parameter.normal_(0.0, 1.2 / math.sqrt(max(1, parameter[0].numel())))
    return model.eval()


@dataclass(frozen=True)
class _Case:
    """Inputs of a forward without a cache, or tokens [B, S] behind a prompt of the size of its mask.

    `beside` has what all stages get of a prompt with images, `images` what the first stage gets. If the inputs are
    those of an encoder, all `tokens` are the decoder's.
    """

    name: str
    inputs: dict[str, Tensor]
    expected: dict[str, Tensor]
    tokens: Tensor | None = None
    beside: dict[str, Tensor] | None = None
    images: dict[str, Tensor] = field(default_factory=dict)


def _generated(model: PreTrainedModel) -> list[_Case]:
    """Return what transformers' generate makes of prompts, with the logits of every step."""
    cases = []
    first, last = _ids(model.config)
    rows = 1 if mixes_rows(model) else _ROWS
    change = rope_change(model.config)
    new_tokens = LONG_TOKENS - _PROMPT_TOKENS
    if change is not None and change.recomputes_cache:  # pipelines refuse texts that go beyond
        new_tokens = min(new_tokens, change.tokens - _PROMPT_TOKENS + 1)
    for padded in (0, _PADDED_TOKENS):
        ids = torch.randint(first, last, (rows, _PROMPT_TOKENS))
        mask = torch.ones_like(ids)
        mask[-1, :padded] = 0
        tokens, expected = _generate(model, {"input_ids": ids, "attention_mask": mask}, new_tokens)
        cases.append(_Case(_padding(padded), {"attention_mask": mask}, expected, tokens))
    return cases


def mixes_rows(model: PreTrainedModel) -> bool:
    """Return whether generate makes something else of a text where another is beside it; stages refuse that.

    Of models that use transformers' caches none is known to.
    """
    if state_kind(type(model)) != "own":
        return False
    ids = torch.arange(2 * _PROMPT_TOKENS).reshape(2, _PROMPT_TOKENS) + _ids(model.config)[0]
    both, alone = (
        _generate(model, {"input_ids": one, "attention_mask": torch.ones_like(one)}, 2)[1]["1"]
        for one in (ids, ids[:1])
    )
    return not _difference(both[:1], alone) <= _TOLERANCE


def _translated(model: PreTrainedModel) -> list[_Case]:
    """Return what transformers' generate makes of prompts that an encoder reads, with the logits of every step."""
    cases, first_ids, new_tokens = [], [1, 2], LONG_TOKENS
    layout = find_layout(model.config).encoder
    if layout is not None and layout.positions is not None:
        new_tokens = min(new_tokens, layout.positions - len(first_ids))
    name, like = next(iter(example_prompt(model.config, rows=_ROWS, tokens=LONG_TOKENS).items()))
    for padded in (0,) if like.is_floating_point() else (0, _PADDED_TOKENS):
        value = torch.randn_like(like) if like.is_floating_point() else torch.randint_like(like, *_ids(model.config))
        inputs = {name: value}
        if not like.is_floating_point():
            inputs["attention_mask"] = torch.ones_like(value)
            inputs["attention_mask"][1, LONG_TOKENS - padded :] = 0
        start = {"decoder_input_ids": torch.tensor([first_ids] * _ROWS), "decoder_start_token_id": first_ids[0]}
        # Not the class's own generate, which may be a loop around this one.
        tokens, expected = _generate(model, {**inputs, **start}, new_tokens, GenerationMixin.generate)
        cases.append(_Case(_padding(padded), inputs, expected, tokens))
    return cases


def _seen(model: PreTrainedModel) -> list[_Case]:
    """Return what transformers' generate makes of texts with images."""
    cases = []
    for padded in (0, _PADDED_TOKENS):
        inputs = example_images(model)
        inputs["input_ids"][1, :padded] = inputs["attention_mask"][1, :padded] = 0
        tokens, expected = _generate(model, inputs, LONG_TOKENS - _PROMPT_TOKENS)
        beside, images = divided(model, inputs)
        mask = {"attention_mask": inputs["attention_mask"]}
        cases.append(_Case(f"images, {_padding(padded)}", mask, expected, tokens, beside, images))
    return cases


def _padding(tokens: int) -> str:
    return f"{tokens} tokens of padding" if tokens else "without padding"


def _generate(
    model: PreTrainedModel, inputs: dict[str, Any], new_tokens: int, own: Callable[..., Any] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return prompts with new tokens, and the logits of each step; `own` is a generate in place of the class's."""
    settings = GenerationConfig(
        pad_token_id=0,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        return_dict_in_generate=True,
        output_logits=True,
    )
    generate = own or type(model).generate
    made: Any = generate(model, **inputs, generation_config=settings)
    expected = {str(step): logits for step, logits in enumerate(made.logits)}
    _check_finite(expected)
    return made.sequences, expected


def _once(model: PreTrainedModel) -> list[_Case]:
    """Return what a model makes of whole texts or images."""
    pad = getattr(model.config.get_text_config(decoder=True), "pad_token_id", None)
    rows = 1 if pad is None and classifies_texts(model.config, type(model)) else _ROWS
    inputs = example_inputs(model.config, rows=rows, tokens=_PROMPT_TOKENS)
    name, first = next(iter(inputs.items()))
    cases = []
    for padded in (0,) if first.is_floating_point() else (0, _PADDED_TOKENS):
        options = {
            name: torch.randn_like(first)
            if first.is_floating_point()
            else torch.randint_like(first, *_ids(model.config))
        }
        if padded:
            options["attention_mask"] = torch.ones_like(first)
            options["attention_mask"][-1, -padded:] = 0
            options[name] = options[name].masked_fill(options["attention_mask"] == 0, pad or 0)
        with torch.no_grad():
            output: Any = model(**options)
        expected = {key: value for key, value in output.items() if isinstance(value, Tensor)}
        _check_finite(expected)
        cases.append(_Case(_padding(padded), options, expected))
    return cases


def _ids(config: PreTrainedConfig) -> tuple[int, int]:
    """Return the first id of a prompt, and the one behind the last."""
    vocabulary: int = getattr(config.get_text_config(decoder=True), "vocab_size", None) or _LAST_ID
    return min(_FIRST_ID, vocabulary // 2), min(_LAST_ID, vocabulary)


def _check_finite(outputs: dict[str, Tensor]) -> None:
    if not outputs or not all(bool(x.isfinite().any()) for x in outputs.values()):
        raise ArithmeticError("its results are not finite")


def _compare(folder: str, cases: list[_Case]) -> Verdict:
    stages = _stages(folder)
    for case in cases:
        if case.tokens is None:
            found = _forward_once(stages, case.inputs)
        else:
            found = _steps(stages, case) if stages[0].encoder_decoder is None else _encoded_steps(stages, case)
        for name, expected in case.expected.items():
            if name not in found:
                return Verdict("wrong", f"{case.name}: the last stage does not return {name}")
            error = _difference(found[name], expected)
            if not error <= _TOLERANCE:
                where = f"step {name}" if case.tokens is not None else name
                return Verdict("wrong", f"{case.name}: {where} differs by {error:.2g} of the largest number")
    return Verdict("exact")


def _difference(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return math.inf
    finite = expected.isfinite()
    if not torch.equal(finite, found.isfinite()) or not bool(finite.any()):
        return math.inf
    scale = float(expected[finite].abs().max()) or 1.0
    return float((found[finite] - expected[finite]).abs().max()) / scale


def _stages(folder: str) -> list[StageModel]:
    """Return three stages: cuts behind the first layer, and among the last ones; of an encoder and a decoder four."""
    layout = find_layout(read_config(Path(folder)))
    layers = layout.layer_count + 2
    cuts = sorted({0, 2, max(2, layers - 2), layers})
    if layout.encoder is not None:
        middle = layout.encoder.middle_layer
        cuts = sorted({0, 2, middle, min(middle + 2, layers), layers})
    return [StageModel.load(folder, start, stop) for start, stop in pairwise(cuts)]


def _steps(stages: list[StageModel], case: _Case) -> dict[str, Tensor]:
    """Return the logits of the prompt and of each token behind it."""
    assert case.tokens is not None
    caches, mask = [stage.new_cache() for stage in stages], case.inputs["attention_mask"]
    prompt = mask.shape[1]
    x, found, start = case.tokens[:, :prompt], {}, 0
    for step in range(len(case.expected)):
        beside = None if case.beside is None else of_tokens(case.beside, start, start + x.shape[1])
        start += x.shape[1]
        for stage, cache in zip(stages, caches, strict=True):
            own = {**(beside or {}), **case.images} if stage.is_first and step == 0 and beside is not None else beside
            x = stage.forward(x, mask, cache, beside=own)
        found[str(step)] = x
        x = case.tokens[:, prompt + step, None]
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return found


def _encoded_steps(stages: list[StageModel], case: _Case) -> dict[str, Tensor]:
    """Return the logits behind the first tokens of a decoder and behind each token after them."""
    assert case.tokens is not None
    own = [stage.encoder_decoder for stage in stages if stage.encoder_decoder is not None]
    caches, mask = [stage.new_cache() for stage in own], case.inputs.get("attention_mask")
    first = case.tokens.shape[1] - len(case.expected)
    x: Tensor | None = None
    for stage, cache in zip(own, caches, strict=True):
        x = stage.forward_prompt(x, case.inputs, case.tokens[:, :first], cache)
    assert x is not None, "there are stages"
    found = {"0": x}
    for step in range(1, len(case.expected)):
        x = case.tokens[:, first + step - 1, None]
        for stage, cache in zip(own, caches, strict=True):
            x = stage.forward_step(x, mask, cache)
        found[str(step)] = x
    return found


def _forward_once(stages: list[StageModel], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    x: Any = None
    for stage in stages:
        x = stage.forward_once(x, inputs)
    assert isinstance(x, dict), "the last stage returns tensors by name"
    return x
