"""Logits processors on their way to the last stage: of classes that it has, with plain values, and never as code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import WatermarkingConfig
from transformers.generation.logits_process import (
    ExponentialDecayLengthPenalty,
    LogitsProcessor,
    NoBadWordsLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TopKLogitsWarper,
)

from orbitsplit._models.logits_processors import needs_ids, pack_processor, unpack_processor
from tests.support.entry_points import declare_processor

IDS = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(1))
SCORES = torch.randn(2, 50, generator=torch.Generator().manual_seed(2))


class Own(LogitsProcessor):  # type: ignore[misc]
    """A caller's own."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores


@pytest.mark.parametrize(
    "processor",
    [
        TopKLogitsWarper(5),
        RepetitionPenaltyLogitsProcessor(1.5, prompt_ignore_length=torch.tensor([1, 0])),
        NoBadWordsLogitsProcessor([[3], [int(IDS[0, -1]), 7]], eos_token_id=2),
        SequenceBiasLogitsProcessor([[[4, 5], 1.5], [[6], -2.0]]),
        ExponentialDecayLengthPenalty((1, 1.3), [2, 3], 4),
        WatermarkingConfig(bias=2.0).construct_processor(50, "cpu"),
        WatermarkingConfig(seeding_scheme="selfhash", context_width=2).construct_processor(50, "cpu"),
    ],
    ids=lambda processor: type(processor).__name__,
)
def test_what_arrives_does_the_same(processor: Any) -> None:
    text = json.dumps(pack_processor(processor))
    assert len(text) < 1000
    arrived = unpack_processor(json.loads(text))
    assert torch.equal(arrived(IDS, SCORES.clone()), processor(IDS, SCORES.clone()))
    # Also after it was used, when it has made tensors of its values.
    again = unpack_processor(json.loads(json.dumps(pack_processor(processor))))
    assert torch.equal(again(IDS, SCORES.clone()), processor(IDS, SCORES.clone()))


@pytest.mark.parametrize(
    ("processor", "kind", "message"),
    [
        (Own(), TypeError, "test_logits_processors.Own: code does not travel to the stage"),
        (abs, TypeError, "code does not travel to the stage that has the logits. Give instances of the classes of"),
        (
            PrefixConstrainedLogitsProcessor(lambda _row, _ids: [1], 1),
            TypeError,
            "only numbers, texts and tensors travel",
        ),
    ],
)
def test_code_does_not_travel(processor: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        pack_processor(processor)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("transformers.generation.logits_process", "math"),
        ("builtins", "eval"),
        ("orbitsplit", "plan"),
    ],
)
def test_messages_cannot_name_other_code(module: str, name: str) -> None:
    with pytest.raises(ValueError, match="there is no logits processor"):
        unpack_processor({"kind": [module, name], "state": {"dict": []}})


def test_classes_that_a_package_declares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = declare_processor(tmp_path, monkeypatch)
    processor = module.Only(allowed=[3, 4])
    arrived = unpack_processor(json.loads(json.dumps(pack_processor(processor))))
    assert type(arrived) is module.Only
    assert arrived(IDS, SCORES).isfinite().sum(dim=1).tolist() == [2, 2]


def test_which_need_the_tokens_so_far() -> None:
    assert not needs_ids([TopKLogitsWarper(5)])
    assert needs_ids([TopKLogitsWarper(5), RepetitionPenaltyLogitsProcessor(1.5)])
    assert needs_ids([Own()])
