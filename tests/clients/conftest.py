"""Servers for real clients: pipelines of two stages of a tiny language model and of a tiny encoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel

import orbitsplit as osp
from tests.support.fake_engine import MODEL, byte_tokenizer, serving
from tests.support.tiny_models import LAYERS, tiny_model

CONTEXT = 4096
# Of a row of the texts that codecs are fitted to.
TOKENS = 48
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


@dataclass(frozen=True)
class Planned:
    """A server of a plan that compresses within `max_accuracy_drop`, and texts that nothing was fitted to."""

    endpoint: Endpoint
    max_accuracy_drop: float
    texts: tuple[str, ...]


@pytest.fixture
def planned(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planned]:
    """A model that writes printable text, calibrated on its own, planned and verified within a limit of accuracy."""
    own = tmp_path_factory.mktemp("printable")
    model, tokenizer = printable_model(folder, own)
    fitted, checked, asked = (drawn_rows(model, seed=seed) for seed in (1, 2, 3))
    book = osp.calibrate(own, fitted, cuts=(2,), levels=(4.0, 3.0, 2.0), codecs=("klt",), prompt_tokens=TOKENS)
    limit = 0.08
    ends = ("a", "b"), ("b", "a")
    nodes = tuple(osp.Node(name, 10**9, flop_per_s=1e9) for name in "ab")
    plan = osp.plan(
        osp.profile(own, prompt_tokens=TOKENS),
        osp.Network("two nodes", nodes, tuple(osp.Link(*pair, 10_000.0) for pair in ends)),
        osp.Workload(prompt_tokens=TOKENS, new_tokens=1),
        codebook=book,
        max_accuracy_drop=limit,
        pins={"a": ["embeddings", "layer 1"], "b": ["layer 2", "head"]},
    )
    verified = osp.verify(plan, own, checked, codebook=book)
    assert verified.is_within
    assert verified.plan.codebook is not None  # it compresses
    with served(own, verified.plan, context=CONTEXT, codebook=book) as url:
        yield Planned(Endpoint(url, own), limit, tuple(tokenizer.batch_decode(asked)))


def printable_model(folder: Path, own: Path) -> tuple[Any, Any]:
    """Save the model of a folder so that it says printable ASCII alone, which clients can send; return it."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    said = torch.zeros(model.config.vocab_size, 1)
    said[tokenizer.convert_tokens_to_ids([chr(code) for code in range(33, 127)])] = 1
    with torch.no_grad():
        model.get_output_embeddings().weight *= said
    model.save_pretrained(own)
    tokenizer.save_pretrained(own)
    return model, tokenizer


def drawn_rows(model: Any, *, seed: int, rows: int = 24) -> torch.Tensor:
    """Return rows of tokens that a model draws, more often than not the likeliest."""
    torch.manual_seed(seed)
    with torch.no_grad():
        first = model(torch.randint(256, (rows, 1))).logits[:, -1].argmax(-1)[:, None]  # one that it says
    unsaid = (model.get_output_embeddings().weight == 0).all(1).nonzero()[:, 0].tolist()  # their logits are 0, not -inf
    settings: dict[str, Any] = {"do_sample": True, "temperature": 0.3, "top_k": 0, "suppress_tokens": unsaid}
    mask = torch.ones_like(first)
    drawn: torch.Tensor = model.generate(first, attention_mask=mask, max_new_tokens=TOKENS - 1, **settings)
    return drawn


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
def served(folder: Path, plan: osp.Plan, *, context: int, codebook: osp.Codebook | None = None) -> Iterator[str]:
    """Yield the address of a server of the model in a folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with osp.Pipeline(plan, folder, codebook=codebook) as pipe:
        engine: Any = Kept(pipe)
        with serving(engine, tokenizer=tokenizer, context_tokens=context) as running:
            yield running.url
