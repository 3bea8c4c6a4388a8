"""Ordinary calls of `llm`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import Endpoint
from tests.clients.test_openai import LETTERS, Weather

llm = pytest.importorskip("llm")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of its own dependencies


@pytest.fixture
def model(endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    entry = {
        "model_id": "split",
        "model_name": endpoint.model,
        "api_base": endpoint.v1,
        "supports_schema": True,
        "supports_tools": True,
    }
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([entry]))  # JSON is YAML
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    return llm.get_model("split")


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt(model: Any, stream: bool) -> None:
    assert model.prompt("Hello", stream=stream, max_tokens=6, temperature=0, logit_bias=json.dumps(LETTERS)).text()


def test_a_conversation(model: Any) -> None:
    conversation = model.conversation()
    for prompt in ("Hello", "Why?"):
        assert conversation.prompt(
            prompt, stream=False, max_tokens=6, temperature=0, logit_bias=json.dumps(LETTERS)
        ).text()


def test_a_schema(model: Any) -> None:
    answer = model.prompt("The weather?", schema=Weather, stream=False, max_tokens=600, temperature=0)
    assert Weather.model_validate_json(answer.text())
