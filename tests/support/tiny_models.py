"""Tiny random causal language models of many families, for tests that need a real forward but no real weights."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

LAYERS = 4
HIDDEN = 32
VOCABULARY = 97
PAD, BOS, EOS = 0, 1, 2

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
_GROUPED: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8}
_SLIDING: dict[str, Any] = {
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
}
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}

# Per family, what its configuration needs beside the sizes above.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "mistral": _GROUPED,
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": _GROUPED,
    "qwen3_moe": {**_GROUPED, **_EXPERTS, "num_experts": 4, "decoder_sparse_step": 1},
    "gemma2": {**_GROUPED, **_SLIDING, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_GROUPED, **_SLIDING, "query_pre_attn_scalar": 8},
    "gpt2": {"n_inner": 64},
    "phi3": {"num_key_value_heads": 2},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 16},
    "gpt_neox": {},
    "bloom": {},
    "falcon": {"alibi": False, "new_decoder_architecture": False},
    "mixtral": {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {**_GROUPED, **_SLIDING, "num_local_experts": 4, "num_experts_per_tok": 2},
}


def tiny_config(family: str = "llama", **changes: Any) -> PreTrainedConfig:
    """Return the configuration of a model of `LAYERS` layers; `changes` override its fields."""
    config: PreTrainedConfig = AutoConfig.for_model(family, **{**_SIZES, **FAMILIES[family], **changes})
    return config


def tiny_model(family: str = "llama", *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Build a random model whose logits are so far apart that rounding rarely decides a greedy token."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(tiny_config(family, **changes), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.25)
    model.generation_config = GenerationConfig(pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, do_sample=False)
    return model.eval()


def save_tiny_model(directory: Path, family: str = "llama", *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Save a random model into `directory` as transformers does, and return it as it is loaded from there."""
    tiny_model(family, seed=seed, **changes).save_pretrained(directory, max_shard_size="20KB")
    return load_unsplit(directory)


def save_near_model(directory: Path, model: PreTrainedModel, *, noise: float = 0.02) -> PreTrainedModel:
    """Save a model of nearly the same weights, which often says the same; return it as it is loaded from there."""
    near = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in near.parameters():
            parameter += noise * torch.randn(parameter.shape, generator=generator)
    near.save_pretrained(directory)
    return load_unsplit(directory)


def load_unsplit(directory: Path) -> PreTrainedModel:
    """Load the judge of stages: the same weights in one process, from the same files.

    Matrix products may round differently by where in memory their operands lie, and weights lie as files have them.
    """
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model.eval()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one torch thread, as stages do by default; more of them divide sums and round differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def computing_in_groups(model: PreTrainedModel, groups: int) -> Iterator[None]:
    """Let a model compute as a pipeline with so many groups does: the rows of each on their own, with one thread.

    Kernels for other numbers of rows may round differently. What is compared to the last bit must have been computed in
    the same shapes; which those are is no matter of the model's, so its own `generate` remains the judge.
    """
    forward = model.forward
    caches: list[DynamicCache] = []

    @functools.wraps(forward)
    def in_groups(**inputs: Any) -> CausalLMOutputWithPast:
        cache = inputs.pop("past_key_values", None)
        rows, tokens = inputs["input_ids"].shape
        parts = torch.arange(rows).tensor_split(min(groups, rows))
        if cache is None:
            own: list[DynamicCache | None] = [None] * len(parts)
        else:
            if cache.get_seq_length() == 0:
                caches[:] = [DynamicCache(config=model.config) for _ in parts]
            own = list(caches)
            for layer in range(model.config.num_hidden_layers):  # `generate` reads lengths from it
                cache.update(*[torch.zeros(rows, 1, tokens, 1)] * 2, layer)
        logits = [
            forward(**{name: _rows(value, part) for name, value in inputs.items()}, past_key_values=part_cache).logits
            for part, part_cache in zip(parts, own, strict=True)
        ]
        return CausalLMOutputWithPast(logits=torch.cat(logits), past_key_values=cache)

    model.forward = in_groups
    try:
        with one_thread():
            yield
    finally:
        del model.forward


def _rows(value: Any, part: Tensor) -> Any:
    return value[part] if isinstance(value, Tensor) else value


def tiny_prompts(lengths: tuple[int, ...], *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return left-padded random prompts of the given lengths and their attention mask, both [B, max(lengths)]."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    input_ids = torch.randint(3, VOCABULARY, (len(lengths), width), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    for row, length in enumerate(lengths):
        input_ids[row, : width - length] = PAD
        attention_mask[row, : width - length] = 0
    return input_ids, attention_mask


@torch.no_grad()
def sampled_rows(model: PreTrainedModel, rows: int, tokens: int, *, seed: int) -> torch.Tensor:
    """Return rows of tokens [rows, tokens] that the model draws itself: text on which its probabilities are right."""
    torch.manual_seed(seed)
    start = torch.randint(3, VOCABULARY, (rows, 1))
    options: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "eos_token_id": ()}
    mask = torch.ones_like(start)
    drawn: Tensor = model.generate(start, attention_mask=mask, max_new_tokens=tokens - 1, pad_token_id=PAD, **options)
    return drawn


def save_tiny_tokenizer(path: Path) -> None:
    """Save a tokenizer of a few words beside a model, so that text can go in and out."""
    words = [
        "<pad>",
        "<s>",
        "</s>",
        "<unk>",
        *["the", "satellite", "passes", "over", "station", "and", "sends", "data"],
    ]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(path)
