"""`/v1/embeddings` before a real pipeline of two stages of an encoder: the vectors of the whole model."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import OpenAI
from starlette.testclient import TestClient
from torch import Tensor
from transformers import BertConfig, BertModel

import orbitsplit as osp
from orbitsplit.serve import create_app, serve_model
from orbitsplit.serve._embeddings import embedding_settings
from tests.support.fake_engine import MODEL, FakeEngine, byte_tokenizer

TEXTS = ["a satellite", "Über", "a much longer text about orbits and links", "x"]
CONTEXT = 60


@dataclass(frozen=True)
class Encoder:
    """A pipeline of two stages, and the whole model."""

    pipe: osp.Pipeline
    whole: Any
    tokenizer: Any

    def client(self, **options: Any) -> TestClient:
        return TestClient(create_app(self.pipe, self.tokenizer, model_name=MODEL, context_tokens=CONTEXT, **options))

    def vector(self, text: str, *, pooling: str = "mean", normalizes: bool = True) -> Tensor:
        """Return what the whole model makes of one text alone."""
        with torch.inference_mode():
            hidden = self.whole(**self.tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        vector: Tensor = hidden[0] if pooling == "cls" else hidden.mean(dim=0)
        return vector / vector.norm() if normalizes else vector


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encoder]:
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    whole = BertModel(config).eval()
    whole.save_pretrained(folder)
    with osp.Pipeline(osp.Plan.manual(cuts=[2], layers=4), folder) as pipe:
        yield Encoder(pipe, whole, tokenizer)


def embedded(client: TestClient, **body: Any) -> list[Any]:
    response = client.post("/v1/embeddings", json={"model": MODEL, **body})
    assert response.status_code == 200, response.text
    return [one["embedding"] for one in response.json()["data"]]


def test_vectors_are_those_of_the_whole_model(encoder: Encoder) -> None:
    with encoder.client() as client:
        found = embedded(client, input=TEXTS)
        expected = [encoder.vector(text).tolist() for text in TEXTS]
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, abs=1e-5)
        assert embedded(client, input=encoder.tokenizer(TEXTS[0])["input_ids"])[0] == pytest.approx(found[0], abs=1e-6)


def test_a_text_may_fill_the_context(encoder: Encoder) -> None:
    text = "a" * CONTEXT  # which an answer would need a place in
    with encoder.client() as client:
        assert embedded(client, input=text)[0] == pytest.approx(encoder.vector(text).tolist(), abs=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pooling_and_length_are_options(encoder: Encoder, pooling: str) -> None:
    with encoder.client(pooling=pooling, normalizes=False) as client:
        (found,) = embedded(client, input="Über")
        assert found == pytest.approx(encoder.vector("Über", pooling=pooling, normalizes=False).tolist(), abs=1e-5)


def test_the_openai_client_gets_base64_and_fewer_dimensions(encoder: Encoder) -> None:
    with encoder.client() as transport:
        client = OpenAI(base_url="http://testserver/v1", api_key="none", http_client=transport)  # type: ignore[arg-type]
        answer = client.embeddings.create(model=MODEL, input=TEXTS)  # asks for base64
        assert answer.data[1].embedding == pytest.approx(encoder.vector(TEXTS[1]).tolist(), abs=1e-5)
        assert answer.usage.prompt_tokens == sum(len(text.encode()) for text in TEXTS)
        short = encoder.vector("x")[:8]
        cut = client.embeddings.create(model=MODEL, input="x", dimensions=8).data[0].embedding
        assert cut == pytest.approx((short / short.norm()).tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"input": "a" * (CONTEXT + 1)}, "input", f"{CONTEXT + 1} tokens, the context is {CONTEXT}"),
        ({"input": []}, "input", "none empty"),
        ({"input": ["a"] * 2049}, "input", "2049 inputs"),
        ({"input": "a", "dimensions": 33}, "dimensions", "the model has 32"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "float"),
        ({"input": [999]}, "input", "999"),
    ],
)
def test_what_is_at_fault_is_named(encoder: Encoder, body: dict[str, Any], param: str, words: str) -> None:
    with encoder.client() as client:
        response: httpx.Response = client.post("/v1/embeddings", json={"model": MODEL, **body})
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] == param
        assert words in error["message"]


def test_an_engine_without_forwards_says_so() -> None:
    engine = FakeEngine()
    try:
        with TestClient(create_app(engine, byte_tokenizer(), model_name=MODEL, context_tokens=9)) as client:
            response = client.post("/v1/embeddings", json={"model": MODEL, "input": "a"})
            assert response.status_code == 400
            assert response.json()["error"]["code"] == "unsupported_model"
    finally:
        engine.close()


class WithLogits:
    """An engine whose model ends with a head."""

    def submit(self, *arguments: Any, **options: Any) -> Any:
        raise AssertionError

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        return {"logits": torch.zeros(*input_ids.shape, 9)}


def test_an_encoder_with_a_head_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    BertConfig(architectures=["BertForMaskedLM"], vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    apps: list[Any] = []
    monkeypatch.setattr("orbitsplit.serve._server.run", lambda app, *_arguments, **_options: apps.append(app))
    with caplog.at_level(logging.WARNING, "orbitsplit.serve"):
        serve_model(WithLogits(), tmp_path, model_name=MODEL)
    assert "/v1/embeddings will refuse every request: BertForMaskedLM" in caplog.text
    with TestClient(apps[0]) as client:
        response = client.post("/v1/embeddings", json={"model": MODEL, "input": "a"})
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert message.startswith("BertForMaskedLM gives no hidden states")
    assert message.endswith("AutoModel.from_pretrained(...).save_pretrained(...), with its tokenizer, and serve that")


def test_a_chat_with_an_encoder_is_refused(encoder: Encoder) -> None:
    with encoder.client() as client:
        response = client.post("/v1/completions", json={"model": MODEL, "prompt": "a", "max_tokens": 1})
        assert response.status_code == 400
        assert "does not generate" in response.json()["error"]["message"]


MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


@pytest.mark.parametrize(
    ("modules", "pooling", "expected"),
    [
        (None, None, (None, None)),
        (MODULES, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, ("mean", True)),
        (MODULES[:2], {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, ("cls", False)),
        (MODULES, {"pooling_mode": "cls"}, ("cls", True)),
    ],
)
def test_settings_are_read_from_the_files_of_sentence_transformers(
    tmp_path: Path, modules: Any, pooling: Any, expected: Any
) -> None:
    if modules is not None:
        (tmp_path / "modules.json").write_text(json.dumps(modules))
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling/config.json").write_text(json.dumps(pooling))
    assert embedding_settings(tmp_path) == expected


@pytest.mark.parametrize("pooling", ["lasttoken", "mean_sqrt_len_tokens"])
def test_another_pooling_is_refused_with_its_name(tmp_path: Path, pooling: str) -> None:
    (tmp_path / "modules.json").write_text(json.dumps(MODULES))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    with pytest.raises(ValueError, match=f"pools its hidden states by {pooling},"):
        embedding_settings(tmp_path)


def test_another_module_is_refused_with_its_name(tmp_path: Path) -> None:
    # Its vectors would be others than those of sentence-transformers.
    dense = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (tmp_path / "modules.json").write_text(json.dumps([*MODULES[:2], dense]))
    with pytest.raises(ValueError, match="module of the type Dense, served are Transformer, Pooling, Normalize"):
        embedding_settings(tmp_path)
