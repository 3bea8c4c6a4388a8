"""Models with an encoder and a decoder in pipelines of four processes, against transformers' own generate."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import orbitsplit as osp
from orbitsplit._models.stage import StageModel
from orbitsplit.runtime import Pipeline
from orbitsplit.runtime._messages.control import EncoderInput
from orbitsplit.runtime._parent.generation_options import GenerationOptions
from orbitsplit.runtime._parent.images import ImagePrompts
from orbitsplit.runtime._parent.request import Request, forward_of, request_of
from orbitsplit.serve import serve_model
from tests.support.fake_workers import ready
from tests.support.tiny_encoder_decoders import (
    ENCODER_DECODERS,
    ENCODER_LAYERS,
    LAYERS,
    encoder_prompts,
    save_encoder_decoder,
)

pytestmark = pytest.mark.timeout(300)

NEW_TOKENS = 8
MIDDLE = ENCODER_LAYERS + 1


def workload(prompt_tokens: int, micro_batches: int) -> osp.Workload:
    return osp.Workload(micro_batches=micro_batches, prompt_tokens=prompt_tokens, new_tokens=NEW_TOKENS)


@pytest.fixture(scope="module", params=list(ENCODER_DECODERS))
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A model, its pipeline of four processes, prompts, and the kind."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    unsplit = save_encoder_decoder(folder, request.param)
    plan = osp.Plan.manual(cuts=[1, 3, 5], layers=LAYERS)
    with Pipeline(replace(plan, workload=workload(7, 2)), folder) as pipe:
        yield unsplit, pipe, encoder_prompts(request.param), request.param


def test_tokens_are_those_of_the_unsplit_model(subject: Any) -> None:
    unsplit, pipe, inputs, kind = subject
    assert len(pipe.pids) == 4
    assert pipe.has_encoder
    for options in (
        {"do_sample": False},
        {"do_sample": True, "temperature": 0.8, "top_k": 20},
        {"do_sample": False, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    ):
        torch.manual_seed(5)
        expected = unsplit.generate(**inputs, max_new_tokens=NEW_TOKENS, **options)
        assert torch.equal(pipe.generate(**inputs, max_new_tokens=NEW_TOKENS, seed=5, **options), expected)
        assert expected.unique().numel() > 3 or options == {"do_sample": False}
    # The prompts count, and what is no padding.
    name, options = next(iter(inputs)), {"do_sample": True, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    cases = [inputs, {**inputs, name: inputs[name].flip(0)}, {name: inputs[name]}]
    made = []
    for case in cases[: 2 if kind == "whisper" else 3]:
        torch.manual_seed(7)
        made.append(unsplit.generate(**case, **options))
        assert torch.equal(pipe.generate(**case, seed=7, **options), made[-1])
    assert all(not torch.equal(one, other) for one, other in pairwise(made))


def test_whispers_own_loop_runs_as_it_is(subject: Any) -> None:
    unsplit, pipe, inputs, kind = subject
    if kind != "whisper":
        pytest.skip("it has none")
    long = torch.randn(1, 8, 50, generator=torch.Generator().manual_seed(9))
    mask = torch.ones(1, 50, dtype=torch.long)
    for given in (
        {**inputs, "language": "de", "task": "translate"},
        {**inputs, "language": "en", "return_timestamps": True},
        {"input_features": long, "attention_mask": mask, "language": "en", "return_timestamps": True},
    ):
        expected = unsplit.generate(**given, max_new_tokens=NEW_TOKENS)
        assert torch.equal(pipe.generate(**given, max_new_tokens=NEW_TOKENS), expected)
    with pytest.raises(ValueError, match="own loop around generate decides"):
        pipe.submit(**inputs, max_new_tokens=2)


def test_first_tokens_of_the_decoder_may_be_given(subject: Any) -> None:
    unsplit, pipe, inputs, kind = subject
    ids = torch.tensor([[0, 11, 12]] * 3)
    options: dict[str, Any] = {"decoder_input_ids": ids, "do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5}
    running = pipe.submit(**inputs, **options)
    found = running.result(timeout_s=60)
    assert torch.equal(found[:, :3], ids)
    if kind == "whisper":  # whose own generate takes none
        assert found.shape == (3, 8)
        return
    assert torch.equal(found, unsplit.generate(**inputs, **options))
    several = {"do_sample": True, "num_return_sequences": 2, "max_new_tokens": 4}
    torch.manual_seed(8)
    expected = unsplit.generate(**inputs, **several, return_dict_in_generate=True, output_logits=True)
    made: Any = pipe.generate(**inputs, **several, return_dict_in_generate=True, output_logits=True, seed=8)
    assert torch.equal(made.sequences, expected.sequences)
    torch.testing.assert_close(made.logits, expected.logits, rtol=1e-4, atol=1e-4)


def test_links_between_stages_of_the_encoder_carry_tokens_alone_in_steps(subject: Any) -> None:
    _, pipe, inputs, kind = subject
    running = {"decoder_input_ids": torch.tensor([[0]] * 3), "do_sample": False, "min_new_tokens": NEW_TOKENS}
    pipe.generate(**inputs, max_new_tokens=NEW_TOKENS, **running)
    links, made = pipe.last_run.links, 16 if kind == "whisper" else 7
    assert pipe.last_run.prompt_tokens == made
    for link in links[:2]:  # cuts behind layers 1 and 3 of the encoder
        assert link.decode_bytes == 8 * 3 * (NEW_TOKENS - 1)
        assert link.original_bytes - link.decode_bytes == 3 * made * 32 * 4
    # Behind the cut in the decoder there are its own token and what the encoder made, once.
    assert links[2].original_bytes == 3 * (made + 1) * 32 * 4 + 3 * (NEW_TOKENS - 1) * 32 * 4


def test_a_stage_that_is_lost_or_moved_changes_no_token(tmp_path: Path) -> None:
    unsplit: Any = save_encoder_decoder(tmp_path, "t5")
    names = ("s0", "s1", "s2", "s3", "s4")
    nodes = tuple(osp.Node(name=name, memory_bytes=10**9, slowdown=1.0) for name in names)
    links = tuple(osp.Link(a, b, 1e9, 0.001) for a in names for b in names if a != b)
    network = osp.Network(name="all to all", nodes=nodes, links=links)
    profile = osp.profile(tmp_path, prompt_tokens=7, measure=True, rows=1)
    plan = osp.Plan.manual(cuts=[2, 5], layers=LAYERS, nodes=names[:3])
    plan = replace(plan, workload=workload(7, 2))
    inputs = encoder_prompts("t5")
    options: dict[str, Any] = {"do_sample": True, "max_new_tokens": 40, "min_new_tokens": 40}
    torch.manual_seed(6)
    expected = unsplit.generate(**inputs, **options)
    with Pipeline(plan, tmp_path, replan=osp.replanner(profile, network)) as pipe:
        begun = threading.Event()
        running = pipe.submit(**inputs, **options, seed=6, on_tokens=lambda _tokens: begun.set())
        assert begun.wait(60)
        other = osp.Plan.manual(cuts=[3, 4], layers=LAYERS, nodes=names[:3])
        # Stages do not wait for who kills one of them: with faster links all is over when that was held up a moment.
        links_of_other = tuple(replace(link, latency_s=0.01) for link in other.links)
        pipe.migrate(replace(other, links=links_of_other, workload=plan.workload))
        assert torch.equal(running.result(timeout_s=120), expected)
        for rank in (2, 0):
            left = [5]

            def strike(_tokens: Tensor, rank: int = rank, left: list[int] = left) -> None:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(pipe.pids[min(rank, len(pipe.pids) - 1)], signal.SIGKILL)

            running = pipe.submit(**inputs, **options, seed=6, on_tokens=strike)
            assert torch.equal(running.result(timeout_s=120), expected)
        assert len(pipe.recoveries) == 2


def test_lossy_links_lose_what_their_codec_does(tmp_path: Path) -> None:
    save_encoder_decoder(tmp_path, "bart")
    inputs = {name: value[:1] for name, value in encoder_prompts("bart").items()}
    cuts = [0, 3, MIDDLE + 2, LAYERS + 2]
    plan = osp.Plan.manual(cuts=[cut - 1 for cut in cuts[1:-1]], layers=LAYERS, codecs=["int8", "int4"])
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    with Pipeline(replace(plan, workload=workload(7, 1)), tmp_path) as pipe:
        found = pipe.generate(**inputs, **options)
        assert pipe.last_run is not None
        # The headers of such small frames take a part of it.
        assert pipe.last_run.links[1].ratio > 2
    stages = [StageModel.load(tmp_path, start, stop).encoder_decoder for start, stop in pairwise(cuts)]
    caches = [stage.new_cache() for stage in stages if stage is not None]
    tokens, codecs = torch.tensor([[0]]), ["int8", "int4", None]
    for step in range(NEW_TOKENS):
        x: Any = None if step == 0 else tokens[:, -1:]
        for stage, cache, codec in zip(stages, caches, codecs, strict=True):
            assert stage is not None
            x = stage.forward_prompt(x, inputs, tokens, cache) if step == 0 else stage.forward_step(x, None, cache)
            if codec is not None and x.is_floating_point():
                x = osp.decompress(osp.compress(x, codec=codec), framework="torch").clone()
        scores = x.clone()
        scores[:, 2] = -torch.inf if step < NEW_TOKENS - 1 else scores[:, 2]  # min_new_tokens
        tokens = torch.cat([tokens, scores.argmax(dim=-1)[:, None]], dim=1)
    # BART ends a text of the most tokens with its end token.
    assert torch.equal(found[:, :-1], tokens[:, :-1])


TEXT = EncoderInput("input_ids", "t5", vocabulary=97)
SPEECH = EncoderInput("input_features", "whisper", tokens=16, has_own_loop=True)
IDS = torch.tensor([[3, 4, 5], [6, 7, 8]])


def requested(encoder: EncoderInput = TEXT, mask: Any = None, **arguments: Any) -> Request:
    stage = ready(encoder=encoder, generation_config={"eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 1})
    ids = arguments.pop("ids", None)
    return request_of("generate", ids, mask, None, arguments, stage, ImagePrompts("unused"))


def test_the_decoder_starts_as_in_transformers() -> None:
    assert requested(ids=IDS).input_ids.tolist() == [[1], [1]]  # without another start the bos token
    assert requested(inputs=IDS, decoder_start_token_id=5).input_ids.tolist() == [[5], [5]]
    assert requested(ids=IDS, decoder_start_token_id=[5, 6]).input_ids.tolist() == [[5], [6]]
    own = requested(ids=IDS, decoder_start_token_id=5, decoder_input_ids=[[7], [8]])
    assert own.input_ids.tolist() == [[5, 7], [5, 8]]
    features = torch.zeros(2, 8, 32)
    spoken = requested(SPEECH, input_features=features, decoder_input_ids=IDS)
    assert spoken.input_ids.tolist() == IDS.tolist()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, TypeError, "needs input_ids, or inputs as transformers names them"),
        ({"ids": IDS, "inputs": IDS}, TypeError, "one of the two"),
        ({"ids": torch.tensor([[120]])}, ValueError, "input_ids hold 120, the model's tokens are 0 to 96"),
        ({"ids": IDS, "mask": torch.ones(2, 2)}, ValueError, r"attention_mask is \[2, 2\], input_ids are \[2, 3\]"),
        ({"ids": IDS, "mask": torch.tensor([[1, 1, 0], [0, 0, 0]])}, ValueError, "row 1 of attention_mask has nothing"),
        ({"ids": IDS, "decoder_input_ids": [[1]]}, ValueError, "decoder_input_ids are .1, 1., input_ids have 2 rows"),
        ({"ids": IDS, "decoder_attention_mask": IDS}, ValueError, "decoder_attention_mask is not for a pipeline"),
        ({"ids": IDS, "prompt_lookup_num_tokens": 2}, ValueError, "prompt_lookup_num_tokens is not for models with an"),
        ({"ids": IDS, "prompt_logprobs": 1}, ValueError, "prompt_logprobs is not for models with an encoder"),
        ({"ids": IDS, "num_beams": 2}, ValueError, "num_beams=2, which a pipeline does not do"),
        ({"encoder": SPEECH, "input_features": IDS}, ValueError, "expected non-empty floats of 3 dimensions"),
        (
            {"encoder": SPEECH, "input_features": torch.zeros(1, 8, 32)},
            ValueError,
            "as transformers' own loop around generate decides",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        requested(**arguments)


def test_what_such_a_model_does_not_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="forward is not for models with an encoder and a decoder"):
        forward_of({"input_ids": IDS}, ready(encoder=TEXT), micro_batches=1, next_number=lambda: 0)
    plain, unused = ready(), ImagePrompts("unused")
    with pytest.raises(ValueError, match=r"input_features=.*this model has no encoder"):
        request_of("generate", IDS, None, None, {"input_features": 1}, plain, unused)
    save_encoder_decoder(tmp_path, "bart")
    with pytest.raises(ValueError, match="the server is for models that continue texts"):
        serve_model(object(), tmp_path)  # type: ignore[arg-type]
    assert GenerationOptions(decoder_start_token_id=3).of_transformers() == {"decoder_start_token_id": 3}
