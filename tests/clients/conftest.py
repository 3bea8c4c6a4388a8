"""Servers for real clients: pipelines of two stages of a tiny language model and of a tiny encoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

import orbitsplit as osp
from tests.support.fake_engine import MODEL, byte_tokenizer, serving
from tests.support.tiny_models import LAYERS, tiny_model

CONTEXT = 4096
# As Hermes and Qwen have it: tools are listed, calls are between tags.
TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function | tojson }}{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclass(frozen=True)
class Endpoint:
    """A server, and the folder of its model."""

    url: str
    folder: Path
    model: str = MODEL

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"


class Kept:
    """A pipeline that its server does not close."""

    def __init__(self, pipe: osp.Pipeline) -> None:
        self.submit, self.forward, self.status = pipe.submit, pipe.forward, pipe.status

    def close(self) -> None:
        """Leave the pipeline to its `with` block."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a language model."""
    folder, tokenizer = tmp_path_factory.mktemp("model"), byte_tokenizer(chat_template=TEMPLATE)
    end = tokenizer.eos_token_id
    model = tiny_model(vocab_size=end + 1, pad_token_id=end, eos_token_id=end, max_position_embeddings=CONTEXT)
    model.generation_config.update(pad_token_id=end, eos_token_id=end, bos_token_id=None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def endpoint(folder: Path) -> Iterator[Endpoint]:
    """A language model in two stages."""
    with served(folder, osp.Plan.manual(cuts=[LAYERS // 2], layers=LAYERS), context=CONTEXT) as url:
        yield Endpoint(url, folder)


@pytest.fixture
def compressed(folder: Path) -> Iterator[Endpoint]:
    """The same with hidden states in eight bits on the link."""
    plan = osp.Plan.manual(cuts=[LAYERS // 2], layers=LAYERS, codecs=["int8"])
    with served(folder, plan, context=CONTEXT) as url:
        yield Endpoint(url, folder)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """An encoder."""
    folder, tokenizer = tmp_path_factory.mktemp("encoder"), byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(0)
    sizes: dict[str, int] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(vocab_size=len(tokenizer), intermediate_size=64, max_position_embeddings=256, **sizes)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with served(folder, osp.Plan.manual(cuts=[1], layers=2), context=256) as url:
        yield Endpoint(url, folder)


@contextmanager
def served(folder: Path, plan: osp.Plan, *, context: int) -> Iterator[str]:
    """Yield the address of a server of the model in a folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with osp.Pipeline(plan, folder) as pipe:
        engine: Any = Kept(pipe)
        with serving(engine, tokenizer=tokenizer, context_tokens=context) as running:
            yield running.url
