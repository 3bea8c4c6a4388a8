"""Where tokens would differ from those of transformers' generate: refused, or named in a warning."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import orbitsplit as osp
from orbitsplit._models.generation_rules import rope_change
from orbitsplit.runtime import Pipeline
from orbitsplit.runtime._parent.unapplied import check_generation
from tests.support.fake_workers import fake_pipeline, ready
from tests.support.tiny_models import LAYERS, PAD, load_unsplit, save_tiny_model, tiny_config

LIMIT = 12
LONGROPE: dict[str, Any] = {
    "original_max_position_embeddings": LIMIT,
    "max_position_embeddings": 64,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [1.0, 2.0, 4.0, 8.0],
        "original_max_position_embeddings": LIMIT,
    },
}


def ones(*lengths: int) -> torch.Tensor:
    """The mask of prompts of these lengths, padded on the left."""
    width = max(lengths)
    return torch.tensor([[0] * (width - length) + [1] * length for length in lengths])


def check(model: Any, mask: torch.Tensor, new: int, *, groups: int = 1) -> list[str]:
    """Return the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_generation(model, mask, max_new_tokens=new, micro_batches=groups)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 4}, "the generation config has num_beams=4, which a pipeline does not do: beams would reorder"),
        ({"guidance_scale": 1.5}, "the generation config has guidance_scale=1.5, which a pipeline does not do"),
        ({"penalty_alpha": 0.6}, "the generation config has penalty_alpha=0.6, which a pipeline does not do"),
        ({"stop_strings": ["."]}, "you must pass the model's tokenizer"),
        ({"top_p": -0.5, "do_sample": True}, "`top_p` has to be a float > 0 and < 1, but is -0.5"),
    ],
)
def test_what_a_generation_config_asks_for_in_vain_is_refused(
    settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: all but sampling was ignored in silence, then with a warning."""
    monkeypatch.setattr("tests.support.fake_workers.ready", lambda: ready(generation_config=settings))
    with fake_pipeline(tmp_path) as (pipe, _), pytest.raises(ValueError, match=re.escape(message)):
        pipe.submit(torch.full((1, 3), 5), max_new_tokens=2)


def test_beams_of_a_config_may_be_overruled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.fake_workers.ready", lambda: ready(generation_config={"num_beams": 4}))
    with fake_pipeline(tmp_path) as (pipe, _):
        pipe.submit(torch.full((1, 3), 5), max_new_tokens=2, num_beams=1)


def test_where_the_rotary_embedding_changes() -> None:
    assert rope_change(tiny_config("llama")) is None
    assert rope_change(tiny_config("gpt2")) is None
    assert rope_change(tiny_config("phi3")) is None
    assert rope_change(tiny_config("phi3", **LONGROPE)) == ("longrope", LIMIT, True)
    longrope = LONGROPE["rope_parameters"]
    assert rope_change(tiny_config("llama", rope_parameters=longrope)) == ("longrope", LIMIT, False)
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert rope_change(tiny_config("llama", rope_parameters=dynamic)) == ("dynamic", 512, False)
    linear = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    assert rope_change(tiny_config("llama", rope_parameters=linear)) is None


@pytest.mark.parametrize(
    ("lengths", "new", "groups", "message"),
    [
        ((5,), 8, 1, None),  # the last of 13 tokens is not run
        (
            (5,),
            9,
            1,
            r"5 tokens and 9 new ones cross 12 .*longrope.* max_new_tokens may be 8, or the prompt longer than",
        ),
        ((12,), 1, 1, None),
        ((12,), 2, 1, "12 tokens and 2 new ones cross 12"),
        ((13,), 50, 1, None),
        ((13, 5), 50, 1, None),
        ((13, 5), 50, 2, "prompts of 5 and 13 tokens run in different micro-batches, and 12"),
        ((13, 5), 1, 2, "prompts of 5 and 13 tokens run in different micro-batches, and 12"),
        ((14, 13), 50, 2, None),
        ((13, 13), 50, 2, None),
        ((7, 5), 6, 2, None),
    ],
)
def test_a_text_that_crosses_the_change_is_refused(
    lengths: tuple[int, ...], new: int, groups: int, message: str | None
) -> None:
    model = ready(rope_change=("longrope", LIMIT, True))
    if message is None:
        assert check(model, ones(*lengths), new, groups=groups) == []
        return
    with pytest.raises(ValueError, match=message):
        check(model, ones(*lengths), new, groups=groups)


def test_an_embedding_that_depends_on_earlier_texts_is_named() -> None:
    model = ready(rope_change=("dynamic", LIMIT, False))
    assert check(model, ones(5), 8) == []
    (message,) = check(model, ones(5), 9)
    assert message.startswith("5 tokens and 9 new ones are more than 12, beyond which the model's rotary embedding")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("longrope")
    save_tiny_model(path, "phi3", **LONGROPE)
    return path


@pytest.fixture(scope="module")
def unsplit(directory: Path) -> PreTrainedModel:
    return load_unsplit(directory)


@pytest.fixture(scope="module")
def pipe(directory: Path) -> Iterator[Pipeline]:
    plan = osp.Plan.manual(cuts=[2], layers=LAYERS)
    with Pipeline(replace(plan, workload=osp.Workload(prompt_tokens=8, new_tokens=8)), directory) as opened:
        yield opened


@pytest.mark.parametrize(("width", "new"), [(5, 8), (12, 1), (13, 9), (20, 6)])
def test_texts_on_one_side_of_the_change_are_those_of_generate(
    width: int, new: int, pipe: Pipeline, unsplit: PreTrainedModel
) -> None:
    ids = torch.randint(3, 90, (2, width), generator=torch.Generator().manual_seed(width))
    mask = torch.ones_like(ids)
    expected = unsplit.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=PAD)
    assert torch.equal(pipe.generate(ids, mask, max_new_tokens=new), expected)


def test_a_text_that_crosses_the_change_leaves_the_pipeline_usable(pipe: Pipeline) -> None:
    """Regression: other tokens than those of generate, in silence."""
    ids = torch.full((1, 9), 7)
    with pytest.raises(ValueError, match=r"9 tokens and 8 new ones cross 12 .* max_new_tokens may be 4"):
        pipe.generate(ids, torch.ones_like(ids), max_new_tokens=8)
    assert pipe.generate(ids, torch.ones_like(ids), max_new_tokens=4).shape == (1, 13)
