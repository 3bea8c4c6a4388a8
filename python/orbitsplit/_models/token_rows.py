"""Texts as rows of token ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.configuration_utils import PreTrainedConfig

from orbitsplit._io.files import read_text


def check_ids(ids: Tensor, config: PreTrainedConfig, *, least: int) -> None:
    """Raise `TypeError` or `ValueError` for what are no token ids [N, S] of a model, with S at least `least`."""
    if ids.is_floating_point():
        raise TypeError(f"token ids are {ids.dtype}, expected integers")
    if ids.dim() != 2 or not len(ids):
        raise ValueError(f"token ids have shape {tuple(ids.shape)}, expected a non-empty [N, S]")
    if ids.shape[1] < least:
        raise ValueError(f"token ids have shape {tuple(ids.shape)}, rows of at least {least} tokens are needed")
    vocabulary = config.get_text_config().vocab_size
    if not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise ValueError(f"token ids are from {int(ids.min())} to {int(ids.max())}, the vocabulary has {vocabulary}")


def read_texts(name: str, data: Any) -> Iterator[str]:
    """Yield texts, and those of text files. Raises `TypeError` naming the argument for what is neither."""
    if isinstance(data, (str, Path)):
        raise TypeError(f"{name} is a single text or path, expected a sequence of them")
    if not isinstance(data, Iterable):
        raise TypeError(f"{name} is {type(data).__name__}, expected texts (str) or text files (Path)")
    for item in data:
        if isinstance(item, Path):
            yield read_text(item)
        elif isinstance(item, str):
            yield item
        else:
            raise TypeError(f"{name} holds {type(item).__name__}, expected texts (str) or text files (Path)")


def token_rows(tokenizer: Any, texts: Iterable[str], tokens: int) -> Tensor:
    """Return rows [N, tokens] of the concatenated texts, each with the tokens that the tokenizer puts before a prompt.

    Raises `ValueError` for too few tokens.
    """
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    begun = tokenizer("a")["input_ids"]
    start = begun[: len(begun) - len(bare)] if begun[len(begun) - len(bare) :] == bare else []
    stream: list[int] = []
    for text in texts:
        stream += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    step = tokens - len(start)
    if tokens < 2 or step < 1:
        raise ValueError(f"prompt_tokens is {tokens}, must be at least {max(2, len(start) + 1)}")
    rows = [start + stream[at : at + step] for at in range(0, len(stream) - step + 1, step)]
    if len(rows) < 2:
        raise ValueError(f"the texts have {len(stream)} tokens, must fill at least two rows of {tokens} tokens")
    return torch.tensor(rows)
