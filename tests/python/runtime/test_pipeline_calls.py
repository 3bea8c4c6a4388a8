"""Ways to call a pipeline: sampling, streaming, concurrent callers, one forward of any model, corruption, forgery."""

from __future__ import annotations

import math
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    GenerationConfig,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.generation.streamers import BaseStreamer

import orbitsplit as osp
from orbitsplit import LinkShape
from orbitsplit._models import child_process
from orbitsplit.runtime import Pipeline
from orbitsplit.runtime._parent.session import Deployment
from tests.support.ports import unused_port
from tests.support.tiny_models import (
    LAYERS,
    VOCABULARY,
    computing_in_groups,
    one_thread,
    save_tiny_model,
    tiny_prompts,
)

GROUPS = 2


def make_plan(cuts: list[int], layers: int = LAYERS) -> osp.Plan:
    return replace(osp.Plan.manual(cuts=cuts, layers=layers), workload=osp.Workload(micro_batches=GROUPS))


CORRUPT = osp.LinkConditions.from_toml('seed = 5\n[[links]]\nbetween = ["node 0", "node 1"]\ncorrupt = 0.1\n')


@pytest.fixture(scope="module", params=["plain", "authenticated, corrupted"])
def pipe(directory: Path, request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    options: dict[str, Any] = {"secret": "s", "conditions": CORRUPT} if request.param != "plain" else {}
    with Pipeline(make_plan([1, 3]), directory, **options) as pipe:
        yield pipe


def generated(model: PreTrainedModel, input_ids: Tensor, mask: Tensor, new_tokens: int, **options: Any) -> Tensor:
    """What one process generates, greedily by default, in the shapes that the pipelines here compute in."""
    with computing_in_groups(model, GROUPS):
        tokens: Tensor = model.generate(
            input_ids, attention_mask=mask, max_new_tokens=new_tokens, **{"do_sample": False, **options}
        )
    return tokens


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.6, "top_k": 9}, {"top_p": 0.7, "temperature": 1.4}])
def test_sampled_tokens_are_those_of_transformers(
    pipe: Pipeline, unsplit: PreTrainedModel, settings: dict[str, Any]
) -> None:
    input_ids, mask = tiny_prompts((3, 9, 5, 12))
    torch.manual_seed(7)
    expected = generated(unsplit, input_ids, mask, 12, do_sample=True, **settings)
    tokens = pipe.generate(input_ids, mask, max_new_tokens=12, do_sample=True, seed=7, **settings)
    assert torch.equal(tokens, expected)


def test_what_the_caller_does_not_say_of_sampling_the_generation_config_says(tmp_path: Path) -> None:
    whole = save_tiny_model(tmp_path, "llama")
    whole.generation_config = GenerationConfig(
        do_sample=True, temperature=1.7, top_k=7, top_p=0.8, pad_token_id=0, eos_token_id=2
    )
    whole.generation_config.save_pretrained(tmp_path)
    input_ids, mask = tiny_prompts((3, 9, 5, 12))
    with Pipeline(make_plan([]), tmp_path) as pipe:
        for said in ({}, {"top_k": 30}, {"temperature": 1.0, "top_p": 1.0}):
            torch.manual_seed(3)
            expected = generated(whole, input_ids, mask, 20, do_sample=True, **said)
            found = pipe.generate(input_ids, mask, max_new_tokens=20, do_sample=True, seed=3, **said)
            assert torch.equal(found, expected)


def test_without_a_seed_samples_differ(pipe: Pipeline) -> None:
    input_ids, mask = tiny_prompts((3,))
    drawn = {tuple(pipe.generate(input_ids, mask, max_new_tokens=20, do_sample=True)[0].tolist()) for _ in range(3)}
    assert len(drawn) > 1


class Streamer(BaseStreamer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        self.is_ended = False

    def put(self, value: Tensor) -> None:
        self.values.append(value)

    def end(self) -> None:
        self.is_ended = True


def test_a_streamer_of_transformers_gets_prompts_and_then_each_step(pipe: Pipeline) -> None:
    input_ids, mask = tiny_prompts((3, 9, 5))
    streamer = Streamer()
    tokens = pipe.generate(input_ids, mask, max_new_tokens=6, eos_token_id=(), streamer=streamer)
    assert streamer.is_ended
    assert torch.equal(streamer.values[0], input_ids)
    assert torch.equal(torch.stack(streamer.values[1:], dim=1), tokens[:, input_ids.shape[1] :])


def test_a_stream_yields_each_step_and_is_cancelled_where_it_is_left(pipe: Pipeline, unsplit: PreTrainedModel) -> None:
    input_ids, mask = tiny_prompts((4, 6))
    expected = generated(unsplit, input_ids, mask, 8, eos_token_id=None)
    steps = list(pipe.stream(input_ids, mask, max_new_tokens=8, eos_token_id=()))
    assert torch.equal(torch.stack(steps, dim=1), expected[:, input_ids.shape[1] :])
    # None of these would leave room for another in time, if it went on.
    for _ in range(3):
        for step in pipe.stream(input_ids, mask, max_new_tokens=100_000, eos_token_id=()):
            assert step.shape == (2,)
            break
    assert torch.equal(pipe.generate(input_ids, mask, max_new_tokens=8, eos_token_id=(), timeout_s=30), expected)


def test_many_callers_at_once_get_their_own_tokens(pipe: Pipeline, unsplit: PreTrainedModel) -> None:
    prompts = [tiny_prompts(tuple(range(2, 2 + rows)), seed=rows) for rows in (1, 2, 3, 4) * 4]

    def one(index: int) -> Tensor:
        input_ids, mask = prompts[index]
        return pipe.submit(input_ids, mask, max_new_tokens=3 + index).result(timeout_s=60)

    with ThreadPoolExecutor(8) as callers:
        found = list(callers.map(one, range(len(prompts))))
    for index, (tokens, (input_ids, mask)) in enumerate(zip(found, prompts, strict=True)):
        assert torch.equal(tokens, generated(unsplit, input_ids, mask, 3 + index))


def test_a_cancelled_batch_ends_with_the_tokens_it_has(pipe: Pipeline) -> None:
    input_ids, mask = tiny_prompts((4, 6))
    ended = threading.Event()
    errors: list[BaseException | None] = []

    def on_end(error: BaseException | None) -> None:
        errors.append(error)
        ended.set()

    running = pipe.submit(input_ids, mask, max_new_tokens=400, eos_token_id=(), on_end=on_end)
    running.cancel()
    assert ended.wait(60)
    assert errors == [None]
    assert running.result().shape[1] < input_ids.shape[1] + 400
    running.cancel()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, r"temperature is 0\.0, must be above 0"),
        ({"top_k": -1}, "top_k is -1, must be at least 0"),
        ({"top_p": 1.5}, r"top_p is 1\.5, must be at most 1"),
    ],
)
def test_wrong_settings_of_sampling_are_refused(pipe: Pipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipe.generate(torch.full((1, 3), 5), max_new_tokens=1, do_sample=True, **options)


def test_a_forward_of_a_decoder_gives_logits_at_all_positions(pipe: Pipeline, unsplit: PreTrainedModel) -> None:
    input_ids, mask = tiny_prompts((3, 9, 5))
    logits = pipe.forward(input_ids=input_ids, attention_mask=mask).logits
    # The same kernels on the same shapes: equal to the last bit. It was compared with a forward on all threads.
    with torch.no_grad(), computing_in_groups(unsplit, GROUPS):
        expected = unsplit(input_ids=input_ids, attention_mask=mask).logits
    assert logits.shape == (3, 9, VOCABULARY)
    assert torch.equal(logits[mask == 1], expected[mask == 1])
    assert pipe.last_run is not None
    assert (pipe.last_run.new_tokens, pipe.last_run.decode_s) == (0, 0.0)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "inputs are none; expected input_ids or pixel_values"),
        ({"position_ids": torch.zeros(1, 3)}, "inputs are position_ids; expected"),
        ({"input_ids": torch.ones(1, 3)}, r"input_ids are torch.float32 \[1, 3\]"),
        ({"input_ids": torch.ones(1, 3).long(), "attention_mask": torch.ones(1, 2)}, r"attention_mask are \[1, 2\]"),
    ],
)
def test_wrong_inputs_of_a_forward_are_refused(pipe: Pipeline, inputs: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipe.forward(**inputs)


def test_what_arrives_corrupted_is_sent_again(pipe: Pipeline, request: pytest.FixtureRequest) -> None:
    input_ids, mask = tiny_prompts((4, 6))
    pipe.generate(input_ids, mask, max_new_tokens=40, eos_token_id=())
    assert pipe.last_run is not None
    corrupted, intact = (link.frames - 2 * 40 for link in pipe.last_run.links)
    if request.node.callspec.params["pipe"] == "plain":
        assert (corrupted, intact) == (0, 0)
    else:
        # The next link gets what arrived intact.
        assert corrupted > intact == 0


@pytest.mark.parametrize("where", ["argument", "environment"])
def test_an_empty_secret_is_refused(where: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Messages went without a check that could not be forged.
    if where == "environment":
        monkeypatch.setenv("ORBITSPLIT_SECRET", "")
    with pytest.raises(ValueError, match="the secret is empty; give none"):
        Pipeline(make_plan([2]), directory, secret="" if where == "argument" else None)


def test_an_error_of_a_streamer_is_the_callers_and_the_pipeline_survives(
    pipe: Pipeline, unsplit: PreTrainedModel
) -> None:
    class Closed(BaseStreamer):
        def put(self, value: torch.Tensor) -> None:
            raise BrokenPipeError("nobody reads")

        def end(self) -> None:
            pass

    input_ids, mask = tiny_prompts((4,))
    with pytest.raises(BrokenPipeError):
        pipe.generate(input_ids, mask, max_new_tokens=8, streamer=Closed(), eos_token_id=())
    expected = generated(unsplit, input_ids, mask, 4, eos_token_id=None)
    assert torch.equal(pipe.generate(input_ids, mask, max_new_tokens=4, eos_token_id=(), timeout_s=60), expected)


def test_a_stage_with_another_secret_is_refused(directory: Path) -> None:
    port = unused_port()
    # As on another machine: the second stage's process is started by somebody else.
    arguments = (f"127.0.0.1:{port}", "1", "0")
    loopback = next(name for _, name in socket.if_nameindex() if name in ("lo", "lo0"))
    environment = {"ORBITSPLIT_SECRET": "guessed", "GLOO_SOCKET_IFNAME": loopback, "OMP_NUM_THREADS": "1"}
    worker = "orbitsplit.runtime._worker.process"
    options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "environment": environment}
    with child_process.start(worker, *arguments, **options) as stranger:
        try:
            deployment = Deployment(port=port, remote_nodes=(None, "node 1"))
            with Pipeline(make_plan([2]), directory, secret="ours", deployment=deployment) as pipe:
                assert pipe.pids[1] == 0
                with pytest.raises(osp.TransportError, match="is corrupted or not authentic") as caught:
                    pipe.generate(torch.full((1, 3), 5), max_new_tokens=4)
            assert (caught.value.kind, caught.value.node) == ("failed", "node 1")
            assert 'link from node "node 0" to node "node 1"' in str(caught.value)
        finally:
            stranger.kill()


def least_of(measured_s: Callable[[], float], *, below: float) -> float:
    """Return the least of five measurements, or the first below a limit: a busy machine only adds to some of them."""
    least_s = math.inf
    for _ in range(5):
        least_s = min(least_s, measured_s())
        if least_s < below:
            break
    return least_s


def test_the_times_of_conditions_count_from_when_the_pipeline_is_ready(directory: Path) -> None:
    # They counted from before the processes were started, so that this was over before anything was sent.
    down = osp.LinkConditions.from_toml('[[links]]\nfrom = "node 0"\nto = "node 1"\ndown = [["0 s", "4 s"]]\n')
    with Pipeline(make_plan([2]), directory, conditions=down) as pipe:

        def prefill_s() -> float:
            pipe.generate(torch.full((1, 3), 5), max_new_tokens=2, eos_token_id=())
            assert pipe.last_run is not None
            return pipe.last_run.prefill_s

        assert prefill_s() > 0.2
        assert least_of(prefill_s, below=1.0) < 1.0


@pytest.mark.parametrize(
    ("latencies_s", "conditions", "step_s"),
    [
        # A second each is that of links which are not on the way.
        ((), {("node 2", "node 0"): 0.3, ("node 2", "node 1"): 1.0, ("node 1", "node 0"): 1.0}, 0.3),
        ((0.01, 0.01), {("node 2", "node 1"): 0.3, ("node 2", "node 0"): 1.0}, 0.31),
        ((0.01, 0.01), {("node 2", "node 1"): 0.2, ("node 1", "node 0"): 0.2}, 0.4),
    ],
)
def test_tokens_return_under_the_conditions_of_their_way(
    latencies_s: tuple[float, ...], conditions: dict[tuple[str, str], float], step_s: float, directory: Path
) -> None:
    """Regression: whatever the conditions said of these links, tokens returned after the plan's latency."""
    plan = replace(make_plan([1, 2]), return_latency_s=0.02, return_latencies_s=latencies_s)
    links = tuple(LinkShape(*ends, latency_s=latency_s) for ends, latency_s in conditions.items())
    with Pipeline(plan, directory, conditions=osp.LinkConditions(links)) as pipe:

        def decode_s() -> float:
            pipe.generate(torch.full((1, 3), 5), max_new_tokens=3, eos_token_id=())
            assert pipe.last_run is not None
            return pipe.last_run.decode_s

        # Three tokens return; by what is not on the way they would take two seconds longer.
        assert 3 * step_s < least_of(decode_s, below=3 * step_s + 0.8) < 3 * step_s + 0.8


def test_a_forward_of_an_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=97, **sizes)).save_pretrained(tmp_path)
    whole = BertModel.from_pretrained(tmp_path).eval()
    inputs = {
        "input_ids": torch.randint(1, 97, (4, 9)),
        "attention_mask": torch.tensor([[1] * 9, [1] * 5 + [0] * 4, [1] * 9, [1] * 2 + [0] * 7]),
        "token_type_ids": torch.tensor([[0] * 4 + [1] * 5] * 4),
    }
    with Pipeline(make_plan([1, 2], layers=3), tmp_path) as pipe:
        found = pipe.forward(**inputs)
        with pytest.raises(ValueError, match="the model does not generate tokens: use forward"):
            pipe.generate(inputs["input_ids"], max_new_tokens=1)
    expected = by_groups(whole, inputs, GROUPS)
    for name in ("last_hidden_state", "pooler_output"):
        assert torch.equal(found[name], expected[name])


def by_groups(model: PreTrainedModel, inputs: dict[str, Tensor], groups: int) -> dict[str, Tensor]:
    """What a model puts out for the rows of each group on their own, with one thread, as stages compute."""
    parts = zip(*(value.tensor_split(groups) for value in inputs.values()), strict=True)
    with torch.no_grad(), one_thread():
        found = [model(**dict(zip(inputs, map(Tensor.clone, part), strict=True))) for part in parts]
    return {name: torch.cat([part[name] for part in found]) for name in found[0]}


def test_a_forward_of_a_vision_transformer_through_a_compressed_link(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    config = ViTConfig(image_size=16, patch_size=4, num_labels=5, **sizes)
    ViTForImageClassification(config).save_pretrained(tmp_path)
    whole = ViTForImageClassification.from_pretrained(tmp_path).eval()
    images = torch.randn(5, 3, 16, 16)
    expected = by_groups(whole, {"pixel_values": images}, 3)["logits"]
    for codec, tolerance in (("raw", 0.0), ("int8", 0.05)):
        plan = replace(osp.Plan.manual([2], 3, codecs=[codec]), workload=osp.Workload(micro_batches=3))
        with Pipeline(plan, tmp_path) as pipe:
            torch.testing.assert_close(pipe.forward(pixel_values=images).logits, expected, rtol=0, atol=tolerance)
            assert pipe.last_run is not None
            assert pipe.last_run.groups == 3
            assert pipe.last_run.links[0].frames == 3
