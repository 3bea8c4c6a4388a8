"""How many tokens a request may have: what the plan reserves memory for, unless the operator says otherwise."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from transformers import RobertaConfig

import orbitsplit as osp
from orbitsplit.serve import serve_model
from tests.support.fake_engine import FakeEngine, byte_tokenizer
from tests.support.tiny_models import LAYERS, save_tiny_model

MODEL_CONTEXT = 512
COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("context") / "tiny"
    save_tiny_model(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def plan_for(prompt_tokens: int, new_tokens: int, *, memory_bytes: int | None = 1 << 30) -> osp.Plan:
    plan = osp.Plan.manual(cuts=[2], layers=LAYERS)
    stages = tuple(replace(stage, memory_bytes=memory_bytes) for stage in plan.stages)
    return replace(plan, stages=stages, workload=osp.Workload(prompt_tokens=prompt_tokens, new_tokens=new_tokens))


@contextmanager
def served(model: Path, plan: osp.Plan | None, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[TestClient]:
    """Yield a client of the application that `serve_model` would run."""
    apps: list[Any] = []
    monkeypatch.setattr("orbitsplit.serve._server.run", lambda app, *_arguments, **_options: apps.append(app))
    engine: Any = FakeEngine()
    engine.plan = plan
    try:
        serve_model(engine, model, **options)
        with TestClient(apps[0]) as client:
            yield client
    finally:
        engine.close()


def complete(client: TestClient, prompt_tokens: int, max_tokens: int) -> tuple[int, str]:
    response = client.post(COMPLETIONS, json={"model": "tiny", "prompt": "a" * prompt_tokens, "max_tokens": max_tokens})
    return response.status_code, response.text


def test_a_request_beyond_what_the_plan_reserves_is_400_with_the_numbers(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It was answered, with more keys and values than the plan had memory for.
    with served(model, plan_for(16, 32), monkeypatch) as client:
        assert complete(client, 16, 32)[0] == 200
        assert complete(client, 40, 8)[0] == 200
        status, text = complete(client, 16, 33)
        assert status == 400
        assert "the context is 48 tokens: the prompt's 16 and 33 new ones are 49" in text
        status, text = complete(client, 48, 1)
        assert status == 400
        assert "the prompt has 48 tokens, the context is 48 with the answer" in text


@pytest.mark.parametrize("context", [20, 100, MODEL_CONTEXT])
def test_the_operator_raises_or_lowers_the_limit(model: Path, monkeypatch: pytest.MonkeyPatch, context: int) -> None:
    with served(model, plan_for(16, 32), monkeypatch, context_tokens=context) as client:
        assert complete(client, 10, context - 10)[0] == 200
        status, text = complete(client, 10, context - 9)
        assert status == 400
        assert f"the context is {context} tokens" in text


@pytest.mark.parametrize(
    "plan", [None, plan_for(16, 32, memory_bytes=None), plan_for(400, 400)], ids=["none", "without limits", "larger"]
)
def test_otherwise_the_context_of_the_model_is_the_limit(
    model: Path, monkeypatch: pytest.MonkeyPatch, plan: osp.Plan | None
) -> None:
    with served(model, plan, monkeypatch) as client:
        assert complete(client, 10, MODEL_CONTEXT - 10)[0] == 200
        assert complete(client, 10, MODEL_CONTEXT - 9)[0] == 400


@pytest.mark.parametrize(("padding", "expected"), [(1, 512), (0, 513)])
def test_positions_behind_that_of_padding_are_the_context_of_roberta(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, padding: int, expected: int
) -> None:
    # Longer texts have no position embeddings.
    folder = tmp_path / "tiny"
    RobertaConfig(max_position_embeddings=514, pad_token_id=padding).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    with served(folder, None, monkeypatch) as client:
        status, text = complete(client, 600, 1)
    assert status == 400
    assert f"the context is {expected} with the answer" in text


def test_more_than_the_context_of_the_model_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(ValueError, match=r"context_tokens is 513, the context of .*tiny is 512"),
        served(model, None, monkeypatch, context_tokens=513),
    ):
        pass


def test_the_operator_is_warned_of_both(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "orbitsplit.serve"):
        with served(model, plan_for(16, 32), monkeypatch):
            assert "requests may have 48 tokens, as many as the plan reserves memory for" in caplog.text
        caplog.clear()
        with served(model, plan_for(16, 32), monkeypatch, context_tokens=100):
            assert "requests may have 100 tokens, the plan reserves memory for 48" in caplog.text
        caplog.clear()
        with served(model, plan_for(16, 32), monkeypatch, context_tokens=20):
            assert caplog.text == ""
