"""Settings of generate: tokens equal those of transformers' own, of five families, however they are generated."""

from __future__ import annotations

import inspect
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    WatermarkingConfig,
)
from transformers.generation.logits_process import LogitsProcessorList, NoRepeatNGramLogitsProcessor

import orbitsplit as osp
from orbitsplit import LinkConditions
from orbitsplit.runtime import Pipeline
from orbitsplit.runtime._parent import request
from tests.support import chaos
from tests.support.entry_points import declare_processor
from tests.support.tiny_models import (
    EOS,
    LAYERS,
    PAD,
    VOCABULARY,
    computing_in_groups,
    load_unsplit,
    one_thread,
    save_tiny_model,
    save_tiny_tokenizer,
    tiny_prompts,
)

FAMILIES = ("llama", "gpt2", "gemma2", "mixtral", "bloom")
NEW, SEED, GROUPS = 16, 7, 2
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 0.9}
# Tokens that end a row are frequent, so that rows end at different steps.
ENDS = list(range(3, 15))
CORRUPTION = LinkConditions.from_toml("""
[[links]]
between = ["node 0", "node 1"]
corrupt = 0.1
""")


class TwiceTheSame:
    """A stopping criterion of a caller: a row ends with the second token of one kind of four."""

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return (input_ids[:, 9:] % 4 == 1).sum(dim=1) >= 2


SETTINGS: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.4},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1, "encoder_no_repeat_ngram_size": 1},
    "min_p": {"min_p": 0.08, **SAMPLED},
    "typical_p": {"typical_p": 0.6, "epsilon_cutoff": 0.01, "top_k": 0, **SAMPLED},
    "top_h": {"top_h": 0.5, "top_p": 0.9, **SAMPLED},
    "bad_words_ids": {"bad_words_ids": [[number] for number in range(20, 60)] + [[70, 71], [8, 9]]},
    "min_new_tokens": {"min_new_tokens": 6, "eos_token_id": ENDS},
    "forced_eos_token_id": {
        "forced_eos_token_id": EOS,
        "eos_token_id": [EOS],
        "exponential_decay_length_penalty": (4, 1.3),
    },
    "suppress_tokens": {"suppress_tokens": list(range(40, 70)), "begin_suppress_tokens": list(range(70, 90))},
    "sequence_bias": {"sequence_bias": [[[30], 4.0], [[30, 31], 9.0], [[5], -3.0]]},
    "stopping_criteria": {"stopping_criteria": [TwiceTheSame()], "eos_token_id": [EOS, 11]},
    "logits_processor": {"logits_processor": LogitsProcessorList([NoRepeatNGramLogitsProcessor(1)])},
    "watermarking_config": {"watermarking_config": WatermarkingConfig(bias=3.0)},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 2.0, "renormalize_logits": True},
}


@pytest.fixture(scope="module", params=FAMILIES)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    save_tiny_model(path, request.param)
    return path


@pytest.fixture(scope="module")
def model(directory: Path) -> PreTrainedModel:
    return load_unsplit(directory)


@pytest.fixture(scope="module")
def pipe(directory: Path) -> Iterator[Pipeline]:
    plan = osp.Plan.manual(cuts=[2], layers=LAYERS)
    workload = osp.Workload(micro_batches=GROUPS, prompt_tokens=9, new_tokens=NEW)
    with Pipeline(replace(plan, workload=workload), directory) as opened:
        yield opened


def judged(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, *, groups: int = 1, seed: int = SEED, **settings: Any
) -> Any:
    """What transformers generates, rows computed in so many groups."""
    settings = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": PAD, **settings}
    torch.manual_seed(seed)
    with computing_in_groups(model, groups):
        return model.generate(ids, attention_mask=mask, **settings)


@pytest.mark.parametrize("kind", ["greedy", "sampled"])
@pytest.mark.parametrize("name", SETTINGS)
def test_rows_in_micro_batches(name: str, kind: str, pipe: Pipeline, model: PreTrainedModel) -> None:
    settings = {"max_new_tokens": NEW, "do_sample": False, **(SAMPLED if kind == "sampled" else {}), **SETTINGS[name]}
    ids, mask = tiny_prompts((5, 9, 2))
    expected = judged(model, ids, mask, groups=GROUPS, **settings)
    assert torch.equal(pipe.generate(ids, mask, seed=SEED, **settings), expected)
    # Where a setting changed nothing, nothing would be shown.
    plain = judged(model, ids, mask, groups=GROUPS, **(SAMPLED if settings["do_sample"] else {}))
    assert not torch.equal(plain, expected)


def test_rows_that_share_forwards(pipe: Pipeline, model: PreTrainedModel) -> None:
    """Each with its own settings and its own length, in packs of the others."""
    asked = []
    for number, name in enumerate(SETTINGS):
        ids, mask = tiny_prompts((3 + number,), seed=number)
        settings = {"max_new_tokens": NEW, "do_sample": False, **(SAMPLED if number % 2 else {}), **SETTINGS[name]}
        asked.append((ids, mask, settings))
    running = [pipe.submit(ids, mask, seed=SEED, **settings) for ids, mask, settings in asked]
    for one, (ids, mask, settings), name in zip(running, asked, SETTINGS, strict=True):
        assert torch.equal(one.result(60.0), judged(model, ids, mask, **settings)), name


@pytest.mark.parametrize("name", SETTINGS)
def test_guesses_from_the_text(name: str, pipe: Pipeline, model: PreTrainedModel) -> None:
    ids = tiny_prompts((9,), seed=3)[0].repeat(1, 2)
    settings = {"max_new_tokens": NEW, "do_sample": False, **SETTINGS[name]}
    expected = judged(model, ids, torch.ones_like(ids), **settings)
    assert torch.equal(pipe.generate(ids, seed=SEED, prompt_lookup_num_tokens=5, **settings), expected)


def test_scores_and_logits_are_those_of_transformers(pipe: Pipeline, model: PreTrainedModel) -> None:
    ids, mask = tiny_prompts((5, 9, 2))
    settings: dict[str, Any] = {"repetition_penalty": 1.4, "eos_token_id": ENDS, "max_new_tokens": NEW}
    settings |= {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "do_sample": False}
    expected = judged(model, ids, mask, **settings)
    found: Any = pipe.generate(ids, mask, **settings)
    assert torch.equal(found.sequences, expected.sequences)
    for of_pipe, of_model in ((found.scores, expected.scores), (found.logits, expected.logits)):
        assert len(of_pipe) == len(of_model)
        for one, other in zip(of_pipe, of_model, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prompt_lookup", [0, 5])
def test_log_probabilities_are_those_of_the_model(prompt_lookup: int, pipe: Pipeline, model: PreTrainedModel) -> None:
    ids = tiny_prompts((9,), seed=3)[0].repeat(1, 2)
    steps: list[Any] = []
    prompts: list[Any] = []
    running = pipe.submit(
        ids,
        max_new_tokens=NEW,
        repetition_penalty=1.2,
        do_sample=True,
        seed=SEED,
        logprobs=3,
        prompt_logprobs=2,
        prompt_lookup_num_tokens=prompt_lookup,
        on_logprobs=steps.append,
        on_prompt_logprobs=prompts.append,
    )
    text = running.result(60.0)
    with torch.no_grad():
        logprobs = model(text).logits[0].log_softmax(dim=-1)
    (rows,) = prompts
    (new,) = running.logprobs()
    assert [step[0] for step in steps] == new
    assert rows == running.prompt_logprobs()
    assert rows[0][0] is None
    for place, (one, top) in enumerate([*((one, 2) for one in rows[0][1:]), *((one, 3) for one in new)], start=1):
        assert one.token_id == text[0, place]
        assert one.logprob == pytest.approx(float(logprobs[place - 1, one.token_id]), abs=1e-4)
        values, tokens = logprobs[place - 1].topk(top)
        assert [token for token, _ in one.top] == tokens.tolist()
        assert [value for _, value in one.top] == pytest.approx(values.tolist(), abs=1e-4)


def test_padding_and_ended_rows_have_no_log_probabilities(pipe: Pipeline) -> None:
    ids, mask = tiny_prompts((2, 5))
    output: Any = pipe.generate(
        ids, mask, max_new_tokens=NEW, eos_token_id=ENDS, logprobs=0, prompt_logprobs=0, return_dict_in_generate=True
    )
    assert [[one is None for one in row] for row in output.prompt_logprobs] == [
        [True] * 4 + [False],
        [True] + [False] * 4,
    ]
    for row, found in zip(output.sequences[:, 5:].tolist(), output.logprobs, strict=True):
        length = next((place + 1 for place, token in enumerate(row) if token in ENDS), NEW)
        assert [one.token_id for one in found] == row[:length]
        assert all(one.top == () for one in found)


def test_several_texts_of_one_prompt(pipe: Pipeline, model: PreTrainedModel) -> None:
    ids, mask = tiny_prompts((3, 5))
    settings: dict[str, Any] = {"do_sample": True, "top_k": 0, "num_return_sequences": 2, "max_new_tokens": NEW}
    expected = judged(model, ids, mask, groups=GROUPS, **settings)
    assert torch.equal(pipe.generate(ids, mask, seed=SEED, **settings), expected)
    assert expected.shape[0] == 4


def test_penalties_of_presence_and_frequency_count_new_tokens(pipe: Pipeline, model: PreTrainedModel) -> None:
    """The judge is a loop of forwards with the formula of OpenAI's documentation."""
    ids = tiny_prompts((6,))[0]
    presence, frequency = 1.5, 0.75
    text = ids.clone()
    for _ in range(NEW):
        with torch.no_grad():
            logits = model(text).logits[0, -1]
        counts = torch.zeros(VOCABULARY)
        for token in text[0, ids.shape[1] :].tolist():
            counts[token] += 1
        logits = logits - counts * frequency - (counts > 0) * presence
        text = torch.cat([text, logits.argmax().reshape(1, 1)], dim=1)
    options: dict[str, Any] = {"max_new_tokens": NEW, "eos_token_id": (), "do_sample": False}
    found = pipe.generate(ids, presence_penalty=presence, frequency_penalty=frequency, **options)
    assert torch.equal(found, text)
    assert not torch.equal(pipe.generate(ids, **options), text)


def test_a_batch_goes_in_as_a_tokenizer_returns_it(directory: Path, pipe: Pipeline, model: PreTrainedModel) -> None:
    save_tiny_tokenizer(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    texts = ["the satellite passes", "data"]
    batch = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
    expected = judged(model, batch["input_ids"], batch["attention_mask"], groups=GROUPS, max_new_tokens=5)
    if "token_type_ids" in inspect.signature(type(model).forward).parameters:
        with pytest.raises(ValueError, match="token_type_ids are given, which this model reads"):
            pipe.generate(**batch, token_type_ids=torch.zeros_like(expected), max_new_tokens=5)
    else:  # such as tokenizers of no family return
        batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    assert torch.equal(pipe.generate(**batch, max_new_tokens=5), expected)
    for kind in ("np", None):
        given: dict[str, Any] = tokenizer(
            texts, padding=True, padding_side="left", return_tensors=kind, return_token_type_ids=False
        )
        assert torch.equal(pipe.generate(**given, max_new_tokens=5), expected)
    # One prompt as a list, under the name that transformers has for it, with an option that changes nothing here.
    prompt = [5, 6, 7]
    one = judged(model, torch.tensor([prompt]), torch.ones(1, 3), max_new_tokens=None, max_length=8)
    assert torch.equal(pipe.generate(inputs=prompt, max_length=8, use_cache=True), one)


def test_stop_strings(pipe: Pipeline, model: PreTrainedModel) -> None:
    characters = ["Ġ", *map(chr, range(ord("!"), ord("~") + 1))]
    vocabulary = {character: number for number, character in enumerate(["<pad>", "<s>", *characters])}
    bytewise = Tokenizer(BPE(vocabulary, merges=[]))
    bytewise.pre_tokenizer, bytewise.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytewise, pad_token="<pad>")
    ids, mask = tiny_prompts((5, 9))
    said = tokenizer.batch_decode(judged(model, ids, mask, groups=GROUPS)[:, 9:])
    settings: dict[str, Any] = {"stop_strings": [said[0][3:5], said[1][6:8]], "tokenizer": tokenizer}
    expected = judged(model, ids, mask, groups=GROUPS, **settings)
    assert expected.shape[1] < 9 + NEW
    assert torch.equal(pipe.generate(ids, mask, max_new_tokens=NEW, do_sample=False, **settings), expected)
    steps = list(pipe.stream(ids, mask, max_new_tokens=NEW, do_sample=False, **settings))
    assert torch.equal(torch.stack(steps, dim=1), expected[:, 9:])


def test_settings_over_a_link_that_corrupts(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path)
    ids = [tiny_prompts((3 + number,), seed=number)[0] for number in range(4)]
    asked = [
        {"max_new_tokens": 30, "seed": SEED, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, **options}
        for options in ({}, {**SAMPLED, "min_p": 0.05}, {"prompt_lookup_num_tokens": 4}, {"logprobs": 2})
    ]
    with Pipeline(osp.Plan.manual(cuts=[2], layers=LAYERS), tmp_path, conditions=CORRUPTION) as pipe:
        running = [pipe.submit(prompt, **options) for prompt, options in zip(ids, asked, strict=True)]  # type: ignore[arg-type]
        for one, prompt, options in zip(running, ids, asked, strict=True):
            known = {name: options[name] for name in options if name not in ("logprobs", "prompt_lookup_num_tokens")}
            expected = judged(model, prompt, torch.ones_like(prompt), **known)
            assert torch.equal(one.result(60.0), expected)
        assert [one.token_id for one in running[3].logprobs()[0]] == running[3].tokens()[0, ids[3].shape[1] :].tolist()


def test_the_generation_config_of_the_model_and_of_the_call(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path)
    model.generation_config = GenerationConfig(
        repetition_penalty=1.3,
        no_repeat_ngram_size=2,
        min_p=0.05,
        do_sample=True,
        max_new_tokens=9,
        eos_token_id=[EOS, 11],
        pad_token_id=PAD,
        bad_words_ids=[[20], [21]],
    )
    model.generation_config.save_pretrained(tmp_path)
    ids, mask = tiny_prompts((5, 9))
    other = GenerationConfig(do_sample=False, repetition_penalty=1.7, max_new_tokens=6)
    calls: list[dict[str, Any]] = [{}, {"min_p": 0.3}, {"do_sample": False}, {"generation_config": other}]
    with Pipeline(osp.Plan.manual(cuts=[2], layers=LAYERS), tmp_path) as pipe:
        for call in calls:
            torch.manual_seed(SEED)
            with one_thread():
                expected = model.generate(ids, attention_mask=mask, **call)
            assert torch.equal(pipe.generate(ids, mask, seed=SEED, **call), expected), call


@pytest.mark.parametrize("rank", [0, 2])
def test_texts_in_flight_resume_after_a_loss(rank: int) -> None:
    with chaos.tiny_model() as path:
        subject = chaos.subject("tiny", path, 40)
        plan = osp.Plan.manual(cuts=[2, 4], layers=len(subject.profile.layers) - 2)
        names = ("s0", "s1", "s2", "s3")
        network = osp.Network(
            name="all to all",
            nodes=tuple(osp.Node(name=name, memory_bytes=10**9, slowdown=1.0) for name in names),
            links=tuple(osp.Link(a, b, 1e9, 0.001) for a in names for b in names if a != b),
        )
        stages = tuple(replace(stage, node=name) for stage, name in zip(plan.stages, names, strict=False))
        # Stages do not wait for who kills one of them: with faster links all is over when that was held up a moment.
        links = tuple(replace(link, latency_s=0.01) for link in plan.links)
        workload = osp.Workload(micro_batches=chaos.ROWS, prompt_tokens=chaos.PROMPT_TOKENS, new_tokens=40)
        asked: list[dict[str, Any]] = [
            {"repetition_penalty": 1.4, "logprobs": 1, "prompt_logprobs": 0},
            {"no_repeat_ngram_size": 1, **SAMPLED},
            {"min_new_tokens": 30, "eos_token_id": ENDS, "frequency_penalty": 0.5},
        ]
        common: dict[str, Any] = {"max_new_tokens": 40, "pad_token_id": 0, "seed": SEED}
        patience: dict[str, Any] = {"heartbeat_timeout_s": chaos.HEARTBEAT_S, "stall_timeout_s": chaos.STALL_S}
        with Pipeline(
            replace(plan, stages=stages, links=links, workload=workload),
            path,
            replan=osp.replanner(subject.profile, network),
            **patience,
        ) as pipe:
            undisturbed = [pipe.submit(subject.prompts, **settings, **common) for settings in asked]
            expected = [one.result(60.0) for one in undisturbed]
            seen = []

            def strike(_tokens: Tensor) -> None:
                seen.append(None)
                if len(seen) == 15:
                    os.kill(pipe.pids[rank], signal.SIGKILL)

            running = [pipe.submit(subject.prompts, on_tokens=strike, **settings, **common) for settings in asked]
            for one, tokens in zip(running, expected, strict=True):
                assert torch.equal(one.result(chaos.LIMIT_S), tokens)
            assert len(pipe.recoveries) == 1
            for found, before in zip(running[0].logprobs(), undisturbed[0].logprobs(), strict=True):
                assert [one.token_id for one in found] == [one.token_id for one in before]
                assert [one.logprob for one in found] == pytest.approx([one.logprob for one in before], abs=1e-4)
            assert running[0].prompt_logprobs() == undisturbed[0].prompt_logprobs()


def test_a_processor_of_a_package_that_all_nodes_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_tiny_model(tmp_path / "model")
    package = tmp_path / "package"
    package.mkdir()
    processor = declare_processor(package, monkeypatch).Only([10, 20, 30])
    ids, mask = tiny_prompts((5,))
    with Pipeline(osp.Plan.manual(cuts=[2], layers=LAYERS), tmp_path / "model") as pipe:
        tokens = pipe.generate(ids, mask, max_new_tokens=NEW, do_sample=False, logits_processor=[processor])
    assert torch.equal(tokens, judged(model, ids, mask, logits_processor=LogitsProcessorList([processor])))


def test_prompts_in_chunks_and_behind_a_prefix_that_is_kept(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path)
    prefix = tiny_prompts((20,), seed=1)[0]
    prompts = [torch.cat([prefix, tiny_prompts((length,), seed=length)[0]], dim=1) for length in (3, 7)]
    settings: dict[str, Any] = {"max_new_tokens": NEW, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2}
    plan = replace(osp.Plan.manual(cuts=[2], layers=LAYERS), chunk_tokens=6)
    with Pipeline(plan, tmp_path, prefix_cache_tokens=200) as pipe:
        for prompt in prompts:
            expected = judged(model, prompt, torch.ones_like(prompt), **settings)
            for _ in range(2):  # from a prefix the second time
                assert torch.equal(pipe.submit(prompt, **settings).result(60.0), expected)
            running = pipe.submit(prompt, prompt_logprobs=0, **settings)
            assert torch.equal(running.result(60.0), expected)
            with torch.no_grad():
                logprobs = model(prompt).logits[0, :-1].log_softmax(dim=-1).gather(1, prompt[0, 1:, None])[:, 0]
            (found,) = running.prompt_logprobs()
            assert [one.logprob for one in found if one is not None] == pytest.approx(logprobs.tolist(), abs=1e-4)


def test_log_probabilities_of_a_prompt_are_made_of_a_part_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Logits of a whole prompt take gigabytes, which no plan has reserved.
    monkeypatch.setattr(request, "_MOST_LOGITS_TOKENS", 6)
    model, prompt = save_tiny_model(tmp_path), tiny_prompts((20,), seed=1)[0]
    with Pipeline(osp.Plan.manual(cuts=[2], layers=LAYERS), tmp_path) as pipe:
        running = pipe.submit(prompt, prompt_logprobs=0, max_new_tokens=2)
        running.result(60.0)
    assert [state.group.chunk_tokens for state in running.states.values()] == [6]
    with torch.no_grad():
        logprobs = model(prompt).logits[0, :-1].log_softmax(dim=-1).gather(1, prompt[0, 1:, None])[:, 0]
    (found,) = running.prompt_logprobs()
    assert [one.logprob for one in found if one is not None] == pytest.approx(logprobs.tolist(), abs=1e-4)
