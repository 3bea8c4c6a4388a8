"""What transformers' generate does and a pipeline does not: refused, or named in a warning, and right otherwise."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

import orbitsplit as osp
from orbitsplit._models.generation_rules import rope_change, unapplied_settings
from orbitsplit.runtime import Pipeline
from orbitsplit.runtime._parent.unapplied import check_generation
from tests.support.fake_workers import ready
from tests.support.tiny_models import LAYERS, PAD, load_unsplit, save_tiny_model, tiny_config

pytestmark = pytest.mark.timeout(120)

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


def check(model: Any, mask: torch.Tensor, new: int, *, groups: int = 1, is_sampled: bool = False) -> list[str]:
    """Return the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_generation(model, mask, max_new_tokens=new, micro_batches=groups, is_sampled=is_sampled)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repetition_penalty", 1.05),
        ("no_repeat_ngram_size", 3),
        ("min_length", 9),
        ("min_new_tokens", 2),
        ("bad_words_ids", [[5]]),
        ("suppress_tokens", [4]),
        ("begin_suppress_tokens", [4]),
        ("forced_eos_token_id", 2),
        ("num_beams", 4),
        ("sequence_bias", [[[5], 2.0]]),
        ("exponential_decay_length_penalty", (3, 1.1)),
        ("guidance_scale", 1.5),
        ("stop_strings", ["."]),
    ],
)
def test_a_setting_that_changes_tokens_is_named(name: str, value: Any) -> None:
    found = unapplied_settings(GenerationConfig(**{name: value}), of_sampling=False)
    assert found == (f"{name}={value!r}",)
    (message,) = check(ready(unapplied=found), ones(3), 5)
    assert message == f"the model's generation config sets {name}={value!r}, which a pipeline does not apply"


@pytest.mark.parametrize(
    ("name", "value"),
    [("min_p", 0.1), ("typical_p", 0.9), ("epsilon_cutoff", 3e-4), ("eta_cutoff", 3e-4), ("top_h", 0.4)],
)
def test_a_setting_of_sampling_is_named_where_tokens_are_sampled(name: str, value: float) -> None:
    config = GenerationConfig(do_sample=True, **{name: value})
    found = unapplied_settings(config, of_sampling=True)
    assert found == (f"{name}={value!r}",)
    assert unapplied_settings(config, of_sampling=False) == ()
    assert check(ready(unapplied_sampling=found), ones(3), 5) == []
    assert len(check(ready(unapplied_sampling=found), ones(3), 5, is_sampled=True)) == 1


def test_settings_that_change_nothing_are_not_named() -> None:
    neutral = {"repetition_penalty": 1.0, "num_beams": 1, "min_length": 0, "no_repeat_ngram_size": 0, "typical_p": 1.0}
    for config in (None, GenerationConfig(), GenerationConfig(temperature=0.5, top_k=7, top_p=0.3, **neutral)):
        assert unapplied_settings(config, of_sampling=False) == unapplied_settings(config, of_sampling=True) == ()


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
    config = GenerationConfig.from_pretrained(path)
    config.repetition_penalty = 1.5
    config.save_pretrained(path)
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
    expected = unsplit.generate(
        ids, attention_mask=mask, max_new_tokens=new, do_sample=False, repetition_penalty=1.0, pad_token_id=PAD
    )
    with pytest.warns(UserWarning, match=r"generation config sets repetition_penalty=1.5, which a pipeline does not"):
        found = pipe.generate(ids, mask, max_new_tokens=new)
    assert torch.equal(found, expected)


@pytest.mark.filterwarnings("ignore:the model's generation config sets repetition_penalty")
def test_a_text_that_crosses_the_change_leaves_the_pipeline_usable(pipe: Pipeline) -> None:
    """Regression: other tokens than those of generate, in silence."""
    ids = torch.full((1, 9), 7)
    with pytest.raises(ValueError, match=r"9 tokens and 8 new ones cross 12 .* max_new_tokens may be 4"):
        pipe.generate(ids, torch.ones_like(ids), max_new_tokens=8)
    assert pipe.generate(ids, torch.ones_like(ids), max_new_tokens=4).shape == (1, 13)
