"""Options and arguments: what is accepted, and refused by name, before any work."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import orbitsplit as osp
from orbitsplit.runtime._messages import control
from orbitsplit.runtime._messages.control_store import ControlStore
from orbitsplit.runtime._parent.generation_options import GenerationKeywords
from orbitsplit.runtime._parent.options import TIMEOUT_KEYWORDS
from tests.support.fake_workers import WAIT_S, FakeStages, fake_pipeline, open_fake_pipeline, ready

PROMPT = torch.full((1, 3), 5)

# An argument of generate, submit and stream, a wrong value, and the error with its message.
WRONG: list[tuple[str, Any, type[Exception], str]] = [
    ("max_new_tokens", 2.5, TypeError, "max_new_tokens is 2.5, must be an integer"),
    ("max_new_tokens", True, TypeError, "max_new_tokens is True, must be an integer"),
    ("max_new_tokens", np.True_, TypeError, "must be an integer"),
    ("max_new_tokens", torch.tensor(True), TypeError, "must be an integer"),
    ("max_new_tokens", torch.tensor([3]), TypeError, "max_new_tokens is tensor"),
    ("max_new_tokens", "3", TypeError, "max_new_tokens is '3', must be an integer"),
    ("max_new_tokens", -1, ValueError, "max_new_tokens is -1, must be at least 1"),
    ("max_new_tokens", 10**12, ValueError, "max_new_tokens is 1000000000000, must be at most 2147483647"),
    ("seed", 1.5, TypeError, "seed is 1.5, must be an integer"),
    ("seed", 2**70, ValueError, "seed is 1180591620717411303424, must be at most 18446744073709551615"),
    ("seed", -(2**63) - 1, ValueError, "seed is -9223372036854775809, must be at least"),
    ("seed", True, TypeError, "seed is True, must be an integer"),
    ("top_k", 2.5, TypeError, "top_k is 2.5, must be an integer"),
    ("top_k", -1, ValueError, "top_k is -1, must be at least 0"),
    ("temperature", "0.7", TypeError, "temperature is '0.7', must be a number"),
    ("temperature", True, TypeError, "temperature is True, must be a number"),
    ("temperature", math.nan, ValueError, "temperature is nan, must be finite"),
    ("temperature", math.inf, ValueError, "temperature is inf, must be finite"),
    ("temperature", -1, ValueError, "temperature is -1, must be above 0"),
    ("temperature", 0.0, ValueError, "temperature is 0.0, must be above 0"),
    ("temperature", 1j, TypeError, "temperature is 1j, must be a number"),
    # An OverflowError, and the whole of a long text, before both had one validator.
    ("temperature", 10**400, ValueError, "temperature has 401 digits, must be at most 1.8e308"),
    ("max_new_tokens", "x" * 10**6, TypeError, "... (1,000,000 characters), must be an integer"),
    ("top_p", 0, ValueError, "top_p is 0, must be above 0"),
    ("top_p", 1.5, ValueError, "top_p is 1.5, must be at most 1"),
    ("top_p", [0.5], TypeError, "must be a number"),
    ("do_sample", 1, TypeError, "do_sample is 1, must be true or false"),
    ("do_sample", "yes", TypeError, "do_sample is 'yes', must be true or false"),
    ("eos_token_id", 2.0, TypeError, "eos_token_id is 2.0, must be an integer"),
    ("eos_token_id", [2, "3"], TypeError, "eos_token_id is '3', must be an integer"),
    ("eos_token_id", "2", TypeError, "eos_token_id is '2', must be an integer or a sequence"),
    ("eos_token_id", 2**70, ValueError, "eos_token_id is 1180591620717411303424, must be at most"),
    ("pad_token_id", True, TypeError, "pad_token_id is True, must be an integer"),
    ("pad_token_id", 97, ValueError, "pad_token_id is 97, the model's tokens are 0 to 96"),
    ("attention_mask", "111", TypeError, "attention_mask is a str, must be a tensor, an array of integers or lists"),
    ("attention_mask", [[1, 1, 1], [1]], ValueError, "attention_mask has rows of 1 and 3 tokens: pad them on the left"),
    ("input_ids", [[5, 5, 5.5]], TypeError, "a number in input_ids is 5.5, must be an integer"),
    ("input_ids", [5, True], TypeError, "a number in input_ids is True, must be an integer"),
    ("input_ids", [], ValueError, "input_ids are torch.int64 [1, 0], expected non-empty"),
    ("input_ids", np.full((1, 3), 5.0), TypeError, "input_ids is a ndarray, must be a tensor, an array of integers"),
    ("input_ids", None, TypeError, "needs input_ids, or inputs"),
    ("inputs", PROMPT, TypeError, "needs input_ids, or inputs as transformers names them: one of the two"),
    ("min_p", 1.5, ValueError, "min_p is 1.5, must be at most 1"),
    ("repetition_penalty", 0, ValueError, "repetition_penalty is 0, must be above 0"),
    ("logprobs", 129, ValueError, "logprobs is 129, must be at most 128"),
    ("generation_config", {"top_k": 3}, TypeError, "must be a GenerationConfig"),
    # What transformers itself says.
    ("bad_words_ids", [[-1]], ValueError, "`bad_words_ids` has to be a list of positive integers"),
    ("suppress_tokens", "x", ValueError, "too many dimensions"),
    ("stop_strings", ["."], ValueError, "you must pass the model's tokenizer"),
    ("sequence_bias", [[[5, 97], 1.0]], ValueError, "a biased or forbidden sequence has 97, the model's tokens are 0"),
    # What it has and a pipeline does not.
    ("num_beams", 4, ValueError, "num_beams=4, which a pipeline does not do: beams would reorder the caches"),
    ("force_words_ids", [[5]], ValueError, "force_words_ids=[[5]], which a pipeline does not do: forced words need"),
    ("guidance_scale", 1.5, ValueError, "guidance_scale=1.5, which a pipeline does not do"),
    ("output_hidden_states", True, ValueError, "stages send on hidden states"),
    ("inputs_embeds", PROMPT, ValueError, "input_ids and attention_mask alone"),
    ("do_samples", True, TypeError, "got an unexpected keyword argument 'do_samples'; did you mean do_sample?"),
    ("logits_processor", [abs], TypeError, "code does not travel to the stage that has the logits. Give instances of"),
]


def test_wrong_arguments_are_refused_by_name_and_leave_other_requests_alone(tmp_path: Path) -> None:
    # They were found in a worker, which ended the pipeline as if a node had failed, or were silently accepted.
    with fake_pipeline(tmp_path) as (pipe, workers):
        other = pipe.submit(PROMPT, max_new_tokens=1)
        for name, value, kind, message in WRONG:
            arguments: dict[str, Any] = {"input_ids": PROMPT, "max_new_tokens": 4, "do_sample": True, name: value}
            for call in (pipe.generate, pipe.submit, lambda **given: next(iter(pipe.stream(**given)))):
                with pytest.raises(kind) as caught:
                    call(**arguments)
                assert message in str(caught.value), (name, value)
        stages = FakeStages(pipe)
        ((group, _),) = stages.requests(1)
        stages.report(("tokens", group.id, [7]), ("end", group.id, None))
        assert other.result(WAIT_S).tolist() == [[5, 5, 5, 7]]
        # Nothing else was requested of the stages but limits.
        assert not ControlStore.join(pipe._sessions._store.address).has(control.request_key(0, 2))
        assert workers.calls == []


@pytest.mark.parametrize("wrong", [[1, 2], "no function"])
def test_callbacks_and_limits_of_time_are_checked_too(tmp_path: Path, wrong: Any) -> None:
    with fake_pipeline(tmp_path) as (pipe, _):
        for name in ("on_tokens", "on_end"):
            with pytest.raises(TypeError, match=f"{name} is .*, must be a function"):
                pipe.submit(PROMPT, max_new_tokens=1, **{name: wrong})
        for call in (pipe.generate, pipe.forward):
            with pytest.raises(TypeError, match=r"timeout_s is .*, must be a number"):
                call(input_ids=PROMPT, timeout_s=wrong, **({"max_new_tokens": 1} if call == pipe.generate else {}))
        with pytest.raises(ValueError, match="timeout_s is -1, must be at least 0"):
            pipe.generate(PROMPT, max_new_tokens=1, timeout_s=-1)
    with pytest.raises(TypeError, match=r"replan is .*, must be a function"):
        open_fake_pipeline(tmp_path, replan=wrong)


def test_numbers_of_numpy_and_0_d_tensors_are_accepted() -> None:
    options = osp.GenerationOptions(
        max_new_tokens=np.int16(4),  # type: ignore[arg-type]
        eos_token_id=torch.tensor([2, 9]),  # type: ignore[arg-type]
        pad_token_id=torch.tensor(0),  # type: ignore[arg-type]
        do_sample=np.True_,  # type: ignore[arg-type]
        temperature=np.float64(0.5),
        top_k=np.array(3),  # type: ignore[arg-type]
        top_p=torch.tensor(0.25),  # type: ignore[arg-type]
        seed=np.uint64(2**64 - 1),  # type: ignore[arg-type]
    )
    plain = osp.GenerationOptions(
        max_new_tokens=4,
        eos_token_id=(2, 9),
        pad_token_id=0,
        do_sample=True,
        temperature=0.5,
        top_k=3,
        top_p=0.25,
        seed=2**64 - 1,
    )
    assert options == plain
    assert [type(getattr(options, field.name)) for field in fields(options)] == [
        type(getattr(plain, field.name)) for field in fields(plain)
    ]
    assert osp.GenerationOptions(max_new_tokens=1, eos_token_id=np.int64(7)).eos_token_id == (7,)  # type: ignore[arg-type]
    assert osp.GenerationOptions(max_new_tokens=1, eos_token_id=()).eos_token_id == ()


def test_temperature_zero_is_greedy_decoding_unless_it_samples() -> None:
    assert osp.GenerationOptions(max_new_tokens=1, temperature=0).temperature == 0
    with pytest.raises(ValueError, match="temperature is 0, must be above 0"):
        osp.GenerationOptions(max_new_tokens=1, temperature=0, do_sample=True)


def test_options_are_frozen_and_keyword_only() -> None:
    options: Any = osp.GenerationOptions(max_new_tokens=4)
    with pytest.raises(FrozenInstanceError):
        options.max_new_tokens = 5
    with pytest.raises(TypeError, match="positional"):
        osp.GenerationOptions(4)  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional"):
        osp.Timeouts(4.0)  # type: ignore[misc]


def test_the_keywords_are_the_fields() -> None:
    assert list(GenerationKeywords.__annotations__) == [field.name for field in fields(osp.GenerationOptions)]
    assert list(TIMEOUT_KEYWORDS.values()) == [field.name for field in fields(osp.Timeouts)]


def test_options_and_keywords_ask_for_the_same(tmp_path: Path) -> None:
    given: dict[str, Any] = {"max_new_tokens": 4, "eos_token_id": 9, "do_sample": True, "top_k": 3, "seed": 1}
    with fake_pipeline(tmp_path) as (pipe, _):
        pipe.submit(PROMPT, **given)
        pipe.submit(PROMPT, options=osp.GenerationOptions(**given))
        first, second = (group for group, _ in FakeStages(pipe).requests(2))
        assert (first.max_new_tokens, first.eos_token_ids, first.sampling) == (
            second.max_new_tokens,
            second.eos_token_ids,
            second.sampling,
        )


def test_options_and_keywords_together_are_refused(tmp_path: Path) -> None:
    options = osp.GenerationOptions(max_new_tokens=4)
    with fake_pipeline(tmp_path) as (pipe, _):
        for name in ("generate", "submit", "stream"):
            call: Any = getattr(pipe, name)

            def made(*arguments: Any, call: Any = call, **given: Any) -> Any:
                result = call(*arguments, **given)
                return next(iter(result))  # a stream starts with its first step

            with pytest.raises(TypeError, match=rf"{name}\(\) got options= and top_k=, which is a field"):
                made(PROMPT, options=options, seed=1, top_k=3)
            with pytest.raises(TypeError, match=rf"{name}\(\) got an unexpected keyword argument 'max_tokens'"):
                made(PROMPT, max_new_tokens=1, max_tokens=3)
            with pytest.raises(TypeError, match=r"options is \{'seed': 1\}, must be a GenerationOptions"):
                made(PROMPT, options={"seed": 1})


def test_timeouts_are_given_as_an_object_or_by_keywords(tmp_path: Path) -> None:
    timeouts = osp.Timeouts(start_s=50, stall_s=np.float32(3))  # type: ignore[arg-type]
    assert timeouts == osp.Timeouts(start_s=50.0, heartbeat_s=8.0, stall_s=3.0)
    with fake_pipeline(tmp_path, timeouts=timeouts) as (pipe, _):
        assert pipe._sessions._settings.timeouts == timeouts
    with fake_pipeline(tmp_path, start_timeout_s=50, stall_timeout_s=3) as (pipe, _):
        assert pipe._sessions._settings.timeouts == timeouts
    with pytest.raises(TypeError, match=r"Pipeline\(\) got timeouts= and heartbeat_s=, which is a field"):
        open_fake_pipeline(tmp_path, timeouts=timeouts, heartbeat_timeout_s=3.0)


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"start_s": 0}, ValueError, "start_s is 0, must be above 0"),
        ({"heartbeat_s": math.inf}, ValueError, "heartbeat_s is inf, must be finite"),
        ({"stall_s": "3"}, TypeError, "stall_s is '3', must be a number"),
        ({"stall_s": True}, TypeError, "stall_s is True, must be a number"),
    ],
)
def test_wrong_timeouts_are_refused(wrong: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        osp.Timeouts(**wrong)


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"most_groups": 0}, ValueError, "most_groups is 0, must be at least 1"),
        ({"most_groups": 1.5}, TypeError, "most_groups is 1.5, must be an integer"),
        ({"threads": True}, TypeError, "threads is True, must be an integer"),
        ({"secret": b"only for us"}, TypeError, "secret is a bytes, must be a string"),
        ({"timeouts": 5.0}, TypeError, "timeouts is 5.0, must be a Timeouts"),
    ],
)
def test_wrong_arguments_of_a_pipeline_are_refused(
    tmp_path: Path, wrong: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        open_fake_pipeline(tmp_path, **wrong)
    assert "only for us" not in str(caught.value)


@pytest.mark.parametrize(
    ("tokens", "new_tokens", "message"),
    [
        (100, 1, "input_ids have 100 tokens, the model has 64 positions"),
        (65, 1, "input_ids have 65 tokens, the model has 64 positions"),
        (60, 6, "max_new_tokens is 6, must be at most 5 after 60 tokens: the model has 64 positions"),
    ],
)
def test_requests_beyond_a_models_positions_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: int, new_tokens: int, message: str
) -> None:
    monkeypatch.setattr("tests.support.fake_workers.ready", lambda: ready(positions=64))
    with fake_pipeline(tmp_path) as (pipe, _):
        with pytest.raises(ValueError, match=message):
            pipe.submit(torch.full((1, tokens), 5), max_new_tokens=new_tokens)
        # The last new token needs no position, and padding has none.
        pipe.submit(torch.full((1, 60), 5), max_new_tokens=5)
        mask = torch.tensor([[0] * 40 + [1] * 60])
        pipe.submit(torch.full((1, 100), 5), mask, max_new_tokens=5)
        with pytest.raises(ValueError, match="input_ids have 65 tokens, the model has 64 positions"):
            pipe.forward(input_ids=torch.full((1, 65), 5))
