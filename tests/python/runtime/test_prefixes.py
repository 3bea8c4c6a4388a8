"""Prompts that begin alike share what was computed of them, and get the text that each gets alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from orbitsplit import Plan
from orbitsplit.runtime import Pipeline
from tests.support.processes import messages_sent
from tests.support.tiny_models import LAYERS, load_unsplit, save_tiny_model, tiny_prompts

pytestmark = pytest.mark.usefixtures("single_thread")

NEW = 8
PLAN = Plan.manual([1, 3], LAYERS, chunk_tokens=16)


def text_of(model: PreTrainedModel, prompt: Tensor) -> Tensor:
    mask = torch.ones_like(prompt)
    options = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0}
    tokens: Tensor = model.generate(prompt, attention_mask=mask, **options)
    return tokens


def chats(window: int) -> list[Tensor]:
    """Return prompts of which each begins like one before it: alike at first, a chat that goes on, once more."""
    shared = tiny_prompts((min(40, window - 12),), seed=1)[0]
    asked = [torch.cat([shared, tiny_prompts((3,), seed=seed)[0]], dim=1) for seed in (2, 3)]
    return [shared, *asked, asked[0]]


# A window of 6 tokens has moved on by the end of an answer; one of 64 has all of it.
@pytest.mark.parametrize(
    ("family", "window"), [("llama", 512), ("gpt2", 512), ("gemma2", 64), ("gemma3_text", 64), ("gemma3_text", 6)]
)
def test_texts_are_those_of_each_prompt_alone(family: str, window: int, tmp_path: Path) -> None:
    changes = {"sliding_window": window} if family.startswith("gemma") else {}
    save_tiny_model(tmp_path, family, **changes)
    model = load_unsplit(tmp_path)
    with Pipeline(PLAN, tmp_path, prefix_cache_tokens=300) as pipe:
        prompts = chats(max(window, 40))
        for drafts in (None, 3):
            for prompt in prompts:
                lookup = {} if drafts is None else {"prompt_lookup_num_tokens": drafts}
                text = pipe.submit(prompt, max_new_tokens=NEW, eos_token_id=(), **lookup).result(60.0)
                assert torch.equal(text, text_of(model, prompt))
        # A chat goes on where its last answer ended.
        longer = torch.cat([text, tiny_prompts((4,), seed=9)[0]], dim=1)
        assert torch.equal(
            pipe.submit(longer, max_new_tokens=NEW, eos_token_id=()).result(60.0), text_of(model, longer)
        )


@pytest.mark.parametrize("kept", [0, 300])
def test_what_is_known_does_not_run_again(tmp_path: Path, kept: int) -> None:
    save_tiny_model(tmp_path)
    prompt = tiny_prompts((100,), seed=4)[0]
    with Pipeline(PLAN, tmp_path, prefix_cache_tokens=kept) as pipe:
        for _ in range(2):
            pipe.submit(prompt, max_new_tokens=2, eos_token_id=()).result(60.0)
        sent = messages_sent(pipe)
    # Each chunk is a message: seven, a step and the end. Of the second prompt one chunk, and the first is forgotten.
    assert sent == 9 + (4 if kept else 9)
