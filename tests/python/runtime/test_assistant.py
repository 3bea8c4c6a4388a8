"""Guesses of an assistant: those of transformers' generate, from a cache that follows what turned out right."""

from __future__ import annotations

import gc
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

import orbitsplit as osp
from orbitsplit._models.stage import StageModel
from orbitsplit._plans.trace import Recorder
from orbitsplit.runtime._drafts import DraftLength
from orbitsplit.runtime._emulation.pace import Pace
from orbitsplit.runtime._messages.groups import Group, Sampling, packed_mask
from orbitsplit.runtime._messages.limits import Limits
from orbitsplit.runtime._schedule.first_stage import FirstStage
from orbitsplit.runtime._schedule.protocol import Loopback, Message
from orbitsplit.runtime._worker.assistant import Assistant, ModelDrafts, with_assistant
from orbitsplit.runtime._worker.computation import Computation
from tests.support.fake_workers import ready
from tests.support.tiny_models import LAYERS, save_near_model, save_tiny_model, tiny_prompts
from tests.support.warpers import warpers

pytestmark = pytest.mark.usefixtures("single_thread")

NEW, MOST = 41, 4
ALL = LAYERS + 2


@dataclass(frozen=True)
class Pair:
    """A model and another of nearly the same weights, both as transformers and as stages run them."""

    judge: PreTrainedModel
    model: StageModel
    near_judge: PreTrainedModel
    near: StageModel


# gemma3_text slides over 6 tokens, so what is taken back was left behind.
@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    judge = save_tiny_model(folder / "model", request.param)
    near_judge = save_near_model(folder / "near", judge)
    stages = [StageModel.load(folder / name, 0, ALL) for name in ("model", "near")]
    return Pair(judge, stages[0], near_judge, stages[1])


@dataclass
class Report:
    """What the first stage reports."""

    got: dict[int, list[int]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    def tokens(self, group: int, tokens: Tensor, details: Tensor | None = None) -> None:
        self.got.setdefault(group, []).append(int(tokens))

    def end(self, group: int) -> None:
        """Nothing waits for it."""

    def retry(self, group: int, tokens: int, failures: int) -> None:
        raise AssertionError("nothing is corrupted here")

    def fail(self, group: int, kind: str, reason: str) -> None:
        self.failed[group] = reason


class Alone:
    """One stage in this process that has all layers, and an assistant; what was guessed behind which text."""

    def __init__(self, model: StageModel, assistant: StageModel) -> None:
        pace = Pace(Recorder())
        self.assistant = Assistant(assistant, pace)
        self.report = Report()
        self.inbox: deque[Message] = deque()
        self.guessed: list[tuple[list[int], list[int]]] = []
        self.made: list[weakref.ref[ModelDrafts]] = []
        stage = Computation("it", model, pace, lambda *_: None, lambda _: None)
        limits = Limits(most_groups=4, most_sequences=4, most_packs=1, pack_tokens=32)
        self.first = FirstStage(stage, Loopback(self.inbox.append), self.report, limits, self.drafts)

    def drafts(self, group: Group, tokens: Tensor) -> ModelDrafts:
        made = self.assistant.drafts(group, tokens)
        assert isinstance(made, ModelDrafts)
        guess, text = made.guess, made._text

        def watched(count: int) -> list[int]:
            before = list(text)
            self.guessed.append((before, guess(count)))
            return self.guessed[-1][1]

        made.guess = watched  # type: ignore[method-assign]
        self.made.append(weakref.ref(made))
        return made

    def run(self) -> None:
        while self.first.has_work or self.inbox:
            while self.inbox:
                self.first.returned(self.inbox.popleft())
            self.first.advance()


def group_of(prompt: Tensor, number: int = 0, **changes: Any) -> Group:
    usual: dict[str, Any] = {"mask": None, "draft_tokens": MOST, "uses_assistant": True}
    return Group(number, 1, prompt.shape[1], max_new_tokens=NEW, **{**usual, **changes})


def continued(judge: PreTrainedModel, text: Sequence[int], count: int) -> list[int]:
    """Return the likeliest next tokens by transformers' generate."""
    prompt = torch.tensor([text])
    tokens = judge.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, eos_token_id=None)
    found: list[int] = tokens[0, len(text) :].tolist()
    return found


@pytest.fixture
def all_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send as many guesses as allowed, whatever laps take."""
    monkeypatch.setattr(DraftLength, "choose", lambda length: length._most)


@pytest.mark.usefixtures("all_guesses")
def test_an_assistant_that_is_the_model_is_right_each_time(pair: Pair) -> None:
    prompt, _ = tiny_prompts((9,))
    alone = Alone(pair.model, pair.model)
    alone.first.begin(group_of(prompt), prompt)
    alone.run()
    assert alone.report.got[0] == continued(pair.judge, prompt[0].tolist(), NEW)
    # The prompt gives one token, each lap one and as many as were guessed.
    assert len(alone.guessed) == (NEW - 1) // (MOST + 1)


@pytest.mark.usefixtures("all_guesses")
@pytest.mark.parametrize("sampling", [None, Sampling(seed=5)], ids=["greedy", "sampled"])
def test_what_is_guessed_is_what_the_assistant_would_say_and_changes_no_token(
    pair: Pair, sampling: Sampling | None
) -> None:
    prompt, _ = tiny_prompts((9,))
    alone = Alone(pair.model, pair.near)
    alone.first.begin(
        group_of(prompt, sampling=sampling, processors=warpers(temperature=0.5) if sampling else ()), prompt
    )
    alone.run()
    torch.manual_seed(5)
    options: dict[str, Any] = {"do_sample": True, "temperature": 0.5, "top_k": 0, "top_p": 1.0} if sampling else {}
    mask = torch.ones_like(prompt)
    expected = pair.judge.generate(prompt, attention_mask=mask, max_new_tokens=NEW, eos_token_id=None, **options)
    assert alone.report.got[0] == expected[0, prompt.shape[1] :].tolist()
    for text, guesses in alone.guessed:
        assert guesses == continued(pair.near_judge, text, len(guesses))
    laps = len(alone.guessed)
    assert (NEW - 1) // (MOST + 1) < laps < NEW - 1  # some were right, some were wrong


@pytest.mark.usefixtures("all_guesses")
def test_groups_have_caches_of_their_own_that_end_with_them(pair: Pair) -> None:
    alone = Alone(pair.model, pair.near)
    prompts = [tiny_prompts((length,), seed=length)[0] for length in (5, 9, 7)]
    packable = pair.model.runs_packs()
    for number, prompt in enumerate(prompts):
        alone.first.begin(group_of(prompt, number, is_packable=packable), prompt)
    while len(alone.report.got.get(2, [])) < 3:
        alone.first.advance()
        while alone.inbox:
            alone.first.returned(alone.inbox.popleft())
    alone.first.cancel(2)
    alone.run()
    for number, prompt in enumerate(prompts[:2]):
        assert alone.report.got[number] == continued(pair.judge, prompt[0].tolist(), NEW)
    gc.collect()
    assert [made() for made in alone.made] == [None, None, None]


def test_an_error_of_a_guess_ends_its_group_alone(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    if not pair.model.runs_packs():
        pytest.skip("each group runs alone")
    monkeypatch.setattr(DraftLength, "choose", lambda length: length._most)
    alone = Alone(pair.model, pair.near)
    prompts = [tiny_prompts((length,), seed=length)[0] for length in (5, 9)]
    for number, prompt in enumerate(prompts):
        alone.first.begin(group_of(prompt, number, is_packable=True), prompt)
    made = alone.made[1]()
    assert made is not None

    def broken(count: int) -> list[int]:
        raise ValueError("no guess")

    made.guess = broken  # type: ignore[method-assign]
    del made
    alone.run()
    assert alone.report.failed == {1: "it: ValueError: no guess"}
    assert alone.report.got[0] == continued(pair.judge, prompts[0][0].tolist(), NEW)


def drafts_of(model: StageModel, group: Group, tokens: Tensor, pace: Pace | None = None) -> ModelDrafts:
    made = Assistant(model, pace or Pace(Recorder())).drafts(group, tokens)
    assert isinstance(made, ModelDrafts)
    return made


def test_a_text_that_was_taken_in_before_has_the_same_guesses(pair: Pair) -> None:
    text = tiny_prompts((40,))[0]
    drafts = drafts_of(pair.near, group_of(text), text[0])
    assert drafts.behind == 40
    drafts.catch_up()
    assert drafts.behind == 1
    assert drafts.guess(MOST) == continued(pair.near_judge, text[0].tolist(), MOST)
    assert drafts.behind == 0
    # Nothing right, and then long without a guess: all that is known since runs at once.
    more = tiny_prompts((20,), seed=1)[0]
    for token in more[0].tolist():
        drafts.append(token)
    assert drafts.behind == 20
    drafts.catch_up()
    assert drafts.guess(MOST) == continued(pair.near_judge, torch.cat([text, more], dim=1)[0].tolist(), MOST)


def test_padding_is_no_part_of_the_text(pair: Pair) -> None:
    text = tiny_prompts((7,))[0]
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.int64), text], dim=1)
    group = group_of(padded, mask=packed_mask(torch.tensor([[0] * 4 + [1] * 7])))
    assert drafts_of(pair.near, group, padded[0]).guess(3) == continued(pair.near_judge, text[0].tolist(), 3)


def test_guesses_end_with_a_token_that_ends_the_text(pair: Pair) -> None:
    text = tiny_prompts((7,))[0]
    expected = continued(pair.near_judge, text[0].tolist(), MOST)
    end = expected.index(expected[1])
    drafts = drafts_of(pair.near, group_of(text, eos_token_ids=(96, expected[1])), text[0])
    assert drafts.guess(MOST) == expected[: end + 1]


def test_there_are_no_guesses_beyond_the_table_of_positions(tmp_path: Path) -> None:
    judge = save_tiny_model(tmp_path, "gpt2", n_positions=12, max_position_embeddings=12)
    text = tiny_prompts((9,))[0]
    drafts = drafts_of(StageModel.load(tmp_path, 0, ALL), group_of(text), text[0])
    # The last guess does not run, so twelve positions are enough for the text and four.
    assert drafts.guess(8) == continued(judge, text[0].tolist(), 4)
    for token in (5, 6, 7, 8):
        drafts.append(token)
    assert drafts.guess(8) == []
    drafts.catch_up()


def test_guesses_take_their_time_at_the_pace_of_the_node(pair: Pair) -> None:
    text, slowdown = tiny_prompts((9,))[0], 6.0
    recorder = Recorder()
    recorder.begin(7)
    drafts = drafts_of(pair.near, group_of(text, 7), text[0], Pace(recorder, slowdown=slowdown))
    drafts.append(5)
    drafts.guess(MOST)
    ((kind, group, step, start_s, stop_s),), cpu_s = recorder.take(7)
    assert (kind, group, step) == ("compute", 7, 1)
    assert cpu_s > 0
    assert stop_s - start_s >= slowdown * cpu_s


def test_what_a_stage_reports_has_the_weights_and_the_cache_of_the_assistant(pair: Pair) -> None:
    weights = sum(parameter.nbytes for parameter in pair.near_judge.parameters())
    cache = LAYERS * 2 * 2 * 8 * 4  # keys and values of two heads of eight numbers, float32
    workload = osp.Workload(batch_size=1, micro_batches=2, prompt_tokens=10, new_tokens=5)
    found = with_assistant(ready(weight_bytes=1000, cache_bytes_per_token=50), pair.near, workload)
    assert found.assistant_bytes == weights + workload.sequences * 15 * cache
    assert found.weight_bytes == 1000 + found.assistant_bytes
    assert found.cache_bytes_per_token == 50 + cache
