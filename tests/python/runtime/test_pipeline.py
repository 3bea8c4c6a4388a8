"""Pipelines of real processes: tokens equal to one process, measurements, and every way to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel

import orbitsplit as osp
from orbitsplit._cli import views
from orbitsplit._models.source import demo_model
from orbitsplit.runtime import Pipeline
from orbitsplit.runtime._parent import worker_process
from orbitsplit.runtime._parent.session import Deployment
from tests.support.processes import workers
from tests.support.tiny_models import (
    HIDDEN,
    LAYERS,
    PAD,
    VOCABULARY,
    computing_in_groups,
    load_unsplit,
    save_tiny_model,
    tiny_prompts,
)


def make_plan(cuts: list[int], *, micro_batches: int = 1, codecs: list[str | None] | None = None) -> osp.Plan:
    plan = osp.Plan.manual(cuts=cuts, layers=LAYERS, codecs=codecs)
    return replace(plan, workload=osp.Workload(micro_batches=micro_batches, prompt_tokens=8, new_tokens=8))


def alive(pids: tuple[int, ...]) -> list[int]:
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(scope="module")
def three_stages(directory: Path) -> Iterator[Pipeline]:
    with Pipeline(make_plan([1, 3], micro_batches=2), directory) as pipe:
        yield pipe
        pids = pipe.pids
    assert alive(pids) == []


LATENCY_S, RATE = 0.03, 50_000.0


@pytest.fixture(scope="module")
def slow_links(directory: Path) -> Iterator[Pipeline]:
    """Four stages, the first only the embeddings and the last only the head; one slow, half-duplex node."""
    plan = make_plan([0, 2, LAYERS], micro_batches=2, codecs=["raw", "int8", None])
    stages = list(plan.stages)
    stages[1] = replace(stages[1], slowdown=3.0, half_duplex=True)
    links = (osp.PlanLink(RATE, LATENCY_S), osp.PlanLink(RATE, LATENCY_S), osp.PlanLink())
    plan = replace(plan, stages=tuple(stages), links=links, return_latency_s=LATENCY_S)
    with Pipeline(plan, directory) as pipe:
        yield pipe


def greedy(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    new_tokens: int,
    *,
    groups: int = 2,
    **options: object,
) -> Tensor:
    """What one process generates, in the shapes of a pipeline of so many groups."""
    with computing_in_groups(model, groups):
        tokens: Tensor = model.generate(
            input_ids, attention_mask=attention_mask, max_new_tokens=new_tokens, do_sample=False, **options
        )
    return tokens


@pytest.mark.parametrize("length", [1, 7, 300])
def test_tokens_equal_those_of_one_process(three_stages: Pipeline, unsplit: PreTrainedModel, length: int) -> None:
    input_ids, mask = tiny_prompts((length,))
    tokens = three_stages.generate(input_ids, mask, max_new_tokens=32, eos_token_id=())
    assert tokens.shape == (1, length + 32)
    assert torch.equal(tokens, greedy(unsplit, input_ids, mask, 32, eos_token_id=-1))


@pytest.mark.parametrize("lengths", [(3, 9, 5, 12), (4, 2, 8)])
def test_unequal_left_padded_prompts(
    three_stages: Pipeline, unsplit: PreTrainedModel, lengths: tuple[int, ...]
) -> None:
    input_ids, mask = tiny_prompts(lengths)
    tokens = three_stages.generate(input_ids, mask, max_new_tokens=32)
    assert torch.equal(tokens, greedy(unsplit, input_ids, mask, 32))


def test_rows_end_at_their_own_end_of_sequence_token(three_stages: Pipeline, unsplit: PreTrainedModel) -> None:
    input_ids, mask = tiny_prompts((6, 3, 8, 5))
    free = greedy(unsplit, input_ids, mask, 16, eos_token_id=-1)
    # Tokens that end two of the rows in the middle, and so both groups at different steps.
    eos = [int(free[0, input_ids.shape[1] + 4]), int(free[3, input_ids.shape[1] + 9])]
    expected = greedy(unsplit, input_ids, mask, 16, eos_token_id=eos)
    assert (expected == PAD).sum() > (input_ids == PAD).sum()
    assert torch.equal(three_stages.generate(input_ids, mask, max_new_tokens=16, eos_token_id=eos), expected)


def test_the_result_is_as_short_as_the_longest_row(three_stages: Pipeline, unsplit: PreTrainedModel) -> None:
    input_ids, mask = tiny_prompts((5,))
    third = int(greedy(unsplit, input_ids, mask, 3, eos_token_id=-1)[0, -1])
    tokens = three_stages.generate(input_ids, mask, max_new_tokens=50, eos_token_id=third)
    assert torch.equal(tokens, greedy(unsplit, input_ids, mask, 50, eos_token_id=third))
    assert tokens.shape[1] <= 8


def test_without_a_mask_padding_is_derived_from_the_pad_token(three_stages: Pipeline, unsplit: PreTrainedModel) -> None:
    input_ids, mask = tiny_prompts((6, 3))
    expected = greedy(unsplit, input_ids, mask, 8)
    assert torch.equal(three_stages.generate(input_ids, max_new_tokens=8), expected)


def test_padding_is_derived_from_the_pad_token_in_force(three_stages: Pipeline, unsplit: PreTrainedModel) -> None:
    # It was derived from the model's own pad token, even if the caller padded with another.
    input_ids, mask = tiny_prompts((6, 3))
    other = 96
    assert (input_ids != other).all()
    input_ids[mask == 0] = other
    expected = greedy(unsplit, input_ids, None, 8, pad_token_id=other)
    assert torch.equal(three_stages.generate(input_ids, max_new_tokens=8, pad_token_id=other), expected)


def test_a_single_token(three_stages: Pipeline, unsplit: PreTrainedModel) -> None:
    input_ids, mask = tiny_prompts((4, 4))
    assert torch.equal(three_stages.generate(input_ids, mask, max_new_tokens=1), greedy(unsplit, input_ids, mask, 1))
    assert three_stages.last_run is not None
    assert three_stages.last_run.token_step_s == 0.0


def test_the_run_counts_frames_and_bytes(three_stages: Pipeline) -> None:
    input_ids, mask = tiny_prompts((9, 9, 9))
    three_stages.generate(input_ids, mask, max_new_tokens=5, eos_token_id=())
    run = three_stages.last_run
    assert run is not None
    assert (run.sequences, run.prompt_tokens, run.new_tokens, run.groups) == (3, 9, 5, 2)
    for link in run.links:
        assert link.frames == 2 * 5
        assert link.original_bytes == 3 * (9 + 4) * HIDDEN * 4
        prefill = [osp.frame_bytes((rows, 9, HIDDEN), "float32", "raw") for rows in (2, 1)]
        decode = [osp.frame_bytes((rows, 1, HIDDEN), "float32", "raw") for rows in (2, 1)]
        assert (link.prefill_bytes, link.decode_bytes) == (sum(prefill), 4 * sum(decode))
        descriptions = link.message_bytes - link.frame_bytes - 96 * link.frames  # of the two groups
        assert 2 * 50 < descriptions < 2 * 500
    assert [(link.source, link.destination) for link in run.links] == [("node 0", "node 1"), ("node 1", "node 2")]


def test_the_run_records_seconds_and_memory(three_stages: Pipeline) -> None:
    input_ids, mask = tiny_prompts((9, 9))
    three_stages.generate(input_ids, mask, max_new_tokens=5, eos_token_id=())
    run = three_stages.last_run
    assert run is not None
    assert 0 < run.prefill_s < run.total_s == run.prefill_s + run.decode_s
    assert run.tokens_per_s == pytest.approx(10 / run.total_s)
    assert run.trace.stop_s >= run.total_s
    for stage in run.stages:
        assert 0 < stage.cpu_s <= stage.compute_s + stage.encode_s + stage.decode_s
        assert 100e6 < stage.baseline_bytes < stage.peak_bytes < stage.baseline_bytes + 200e6
    computed = {(e.group, e.step) for e in run.trace.of("node 1", "compute")}
    assert computed == {(group, step) for group in range(2) for step in range(5)}
    assert json.loads(json.dumps(run.to_dict()))["links"][0]["frames"] == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": torch.zeros(3, dtype=torch.int64)}, r"input_ids are torch.int64 \[3\]"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.int64)}, r"\[1, 0\]"),
        ({"input_ids": torch.zeros(1, 3)}, r"torch.float32 \[1, 3\]"),
        ({"attention_mask": torch.ones(1, 2)}, r"attention_mask is \[1, 2\], input_ids are \[1, 3\]"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, must be at least 1"),
        ({"attention_mask": torch.tensor([[1, 1, 0]])}, "row 0 of attention_mask has padding after its first token"),
        ({"input_ids": torch.tensor([[5, VOCABULARY, 5]])}, "input_ids hold 97, the model's tokens are 0 to 96"),
        ({"input_ids": torch.ones(1, 3, dtype=torch.bool)}, r"input_ids are torch.bool \[1, 3\], expected"),
        ({"pad_token_id": -1}, "pad_token_id is -1, the model's tokens are 0 to 96"),
    ],
)
def test_wrong_arguments_leave_the_pipeline_usable(
    three_stages: Pipeline, arguments: dict[str, object], message: str
) -> None:
    good = {"input_ids": torch.full((1, 3), 5), "attention_mask": torch.ones(1, 3), "max_new_tokens": 1}
    with pytest.raises(ValueError, match=message):
        three_stages.generate(**{**good, **arguments})  # type: ignore[arg-type]
    assert three_stages.generate(**good).shape == (1, 4)  # type: ignore[arg-type]


def test_a_request_that_fails_in_one_stage_leaves_others_running(
    three_stages: Pipeline, unsplit: PreTrainedModel
) -> None:
    input_ids, mask = tiny_prompts((6, 3))
    running = three_stages.submit(input_ids, mask, max_new_tokens=64, eos_token_id=())
    for _ in range(3):
        with pytest.raises(osp.TransportError, match=r'the request failed on node "node 0"') as caught:
            three_stages.forward(pixel_values=torch.zeros(1, 3, 4, 4))  # a Llama takes token ids
        assert caught.value.kind == "request"
    assert torch.equal(running.result(timeout_s=60), greedy(unsplit, input_ids, mask, 64, eos_token_id=-1))


def test_shaped_links_take_their_time(slow_links: Pipeline) -> None:
    input_ids, mask = tiny_prompts((200, 200))
    slow_links.generate(input_ids, mask, max_new_tokens=4, eos_token_id=())
    run = slow_links.last_run
    assert run is not None
    raw, int8 = (osp.frame_bytes((1, 200, HIDDEN), "float32", codec) / RATE for codec in ("raw", "int8"))
    # The first link sends two groups one after the other, then the last of them passes the second link.
    assert run.prefill_s >= 2 * raw + LATENCY_S + int8 + LATENCY_S
    assert run.decode_s >= 3 * 3 * LATENCY_S
    assert run.links[0].busy_s == pytest.approx(run.links[0].frame_bytes / RATE)
    assert run.links[1].ratio > 3
    assert run.links[0].original_bytes == run.links[1].original_bytes


def test_half_duplex_nodes_do_not_compute_while_they_transmit(slow_links: Pipeline) -> None:
    input_ids, mask = tiny_prompts((200, 200))
    overlaps = []
    for _ in range(5):
        slow_links.generate(input_ids, mask, max_new_tokens=2, eos_token_id=())
        assert slow_links.last_run is not None
        trace = slow_links.last_run.trace
        sent = trace.of("node 1", "send")
        worked = [e for kind in ("compute", "encode", "decode") for e in trace.of("node 1", kind)]
        assert len(sent) == 4
        assert all(w.stop_s <= s.start_s or w.start_s >= s.stop_s for w in worked for s in sent if s.duration_s > 0)
        # The node before it may: it works on the second group while the first is on its link, unless it is held up.
        first = trace.of("node 0", "send")[0]
        overlaps.append(
            any(first.start_s < e.stop_s and e.start_s < first.stop_s for e in trace.of("node 0", "compute"))
        )
        if overlaps[-1]:
            break
    assert any(overlaps)


def test_slow_nodes_take_longer_by_the_stated_factor(slow_links: Pipeline) -> None:
    input_ids, mask = tiny_prompts((200, 200))
    slow_links.generate(input_ids, mask, max_new_tokens=4, eos_token_id=())
    run = slow_links.last_run
    assert run is not None
    slow = run.stages[1]
    assert slow.compute_s + slow.encode_s + slow.decode_s >= 3.0 * slow.cpu_s
    assert run.trace.slowdowns == (1.0, 3.0, 1.0, 1.0)


def test_slow_downs_that_are_not_emulated_are_not_reported(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Those of the plan were, under torchrun.
    plan = make_plan([2])
    plan = replace(plan, stages=(plan.stages[0], replace(plan.stages[1], slowdown=3.0)))
    for emulates, slowdowns in ((False, (1.0, 1.0)), (True, (1.0, 3.0))):
        with Pipeline(plan, directory, deployment=Deployment(emulates=emulates)) as pipe:
            pipe.generate(*tiny_prompts((7,)), max_new_tokens=2)
            run = pipe.last_run
        assert run is not None
        assert tuple(stage.slowdown for stage in run.stages) == run.trace.slowdowns == slowdowns
        views.run(Console(width=200), run)
        assert ("slowdown" in capsys.readouterr().out) == emulates


def test_one_stage_is_a_plain_model_and_a_request_that_fails_names_its_node(tmp_path: Path) -> None:
    unsplit = save_tiny_model(tmp_path, "gpt2")
    with Pipeline(make_plan([], micro_batches=2), tmp_path) as pipe:
        input_ids, mask = tiny_prompts((7, 4, 5))
        assert torch.equal(pipe.generate(input_ids, mask, max_new_tokens=12), greedy(unsplit, input_ids, mask, 12))
        assert pipe.last_run is not None
        assert pipe.last_run.links == ()
        # It ended the pipeline, as a failure of the node.
        with pytest.raises(ValueError, match="input_ids have 600 tokens, the model has 512 positions"):
            pipe.generate(torch.full((1, 600), 5), max_new_tokens=4)
        running = pipe.submit(input_ids, mask, max_new_tokens=12)
        where = r'the request failed on node "node 0" \(stage 0, layers 0-5\): ValueError: You have to specify either'
        with pytest.raises(osp.TransportError, match=where) as caught:
            pipe.forward(pixel_values=torch.zeros(1, 3, 4, 4))  # the model takes token ids
        assert (caught.value.kind, caught.value.node) == ("request", None)
        assert torch.equal(running.result(timeout_s=60), greedy(unsplit, input_ids, mask, 12))
        assert len(alive(pipe.pids)) == 1


@pytest.mark.real_model
@pytest.mark.timeout(600)
def test_a_real_model_in_four_processes() -> None:
    path = demo_model()
    whole = load_unsplit(path)
    plan = osp.Plan.manual(cuts=[4, 9, 14], layers=18)
    plan = replace(plan, workload=osp.Workload(micro_batches=2))
    with Pipeline(plan, path) as pipe:
        for lengths in ((1,), (7,), (300,), (5, 31, 12, 20)):
            input_ids, mask = tiny_prompts(lengths)
            tokens = pipe.generate(input_ids, mask, max_new_tokens=8, eos_token_id=())
            assert torch.equal(tokens, greedy(whole, input_ids, mask, 8, eos_token_id=-1))
        run = pipe.last_run
    assert run is not None
    whole_bytes = sum(parameter.nbytes for parameter in whole.parameters())
    for stage in run.stages:
        # Beside the weights: KV cache and workspace of these prompts, and libraries that compute first loads.
        assert stage.used_bytes < stage.weight_bytes + 100e6
        assert stage.weight_bytes < 0.8 * whole_bytes


def kill_once_generating(signal_number: int, rank: int) -> tuple[Callable[[str, float], None], list[Pipeline]]:
    """Return a progress callback that signals a rank's process when tokens come out, and where to put the pipeline."""
    target: list[Pipeline] = []

    def progress(phase: str, fraction: float) -> None:
        if phase == "generating" and fraction > 0 and target:
            os.kill(target.pop().pids[rank], signal_number)

    return progress, target


@pytest.mark.parametrize(
    ("signal_number", "rank", "cuts"),
    [(signal.SIGKILL, 0, [2]), (signal.SIGKILL, 1, [2]), (signal.SIGKILL, 1, [1, 3]), (signal.SIGSTOP, 1, [2])],
)
def test_a_lost_node_ends_the_run_with_an_error_that_names_it_and_has_the_tokens(
    directory: Path, unsplit: PreTrainedModel, signal_number: int, rank: int, cuts: list[int]
) -> None:
    progress, target = kill_once_generating(signal_number, rank)
    with Pipeline(make_plan(cuts), directory, progress=progress, heartbeat_timeout_s=4.0) as pipe:
        target.append(pipe)
        is_killed = signal_number == signal.SIGKILL
        reason = r"was killed by signal 9 \(SIGKILL\)" if is_killed else "sent no heartbeat for"
        named = rf'node "node {rank}" \(stage {rank}, layers .*\) {reason}'
        prompt = torch.full((1, 3), 5)
        with pytest.raises(osp.TransportError, match=named) as caught:
            pipe.generate(prompt, max_new_tokens=50_000, eos_token_id=(), timeout_s=60)
        assert (caught.value.kind, caught.value.node) == ("killed" if is_killed else "hangs", f"node {rank}")
        new_tokens = caught.value.tokens.shape[1] - 3
        assert new_tokens > 0
        expected = greedy(unsplit, prompt, torch.ones_like(prompt), new_tokens, eos_token_id=-1)
        assert torch.equal(caught.value.tokens, expected)
        assert alive(pipe.pids) == []


def test_a_run_that_takes_too_long_ends_the_pipeline(directory: Path) -> None:
    with Pipeline(make_plan([]), directory) as pipe:
        with pytest.raises(osp.TransportError, match=r"did not finish generating within 0\.1 s") as caught:
            pipe.generate(torch.full((1, 3), 5), max_new_tokens=50_000, eos_token_id=(), timeout_s=0.1)
        assert (caught.value.kind, caught.value.node) == ("timeout", "node 0")
        assert torch.equal(caught.value.tokens[:, :3], torch.full((1, 3), 5))
        assert alive(pipe.pids) == []


def test_a_start_that_takes_too_long_names_the_stage(directory: Path) -> None:
    with pytest.raises(osp.TransportError, match=r'node "node 0" \(stage 0.* did not finish starting within 0.1 s'):
        Pipeline(make_plan([2]), directory, start_timeout_s=0.1)


def test_a_plan_for_another_model_is_refused(directory: Path) -> None:
    with pytest.raises(ValueError, match=r"the plan has 8 layers, .* has 6 \(embeddings, 4 transformer layers, head\)"):
        Pipeline(osp.Plan.manual(cuts=[2], layers=6), directory)


def test_a_model_and_a_known_dtype_are_needed(directory: Path) -> None:
    with pytest.raises(ValueError, match="the plan names no model"):
        Pipeline(make_plan([2]))
    with pytest.raises(ValueError, match="dtype is 'int8', must be one of float32, float16, bfloat16"):
        Pipeline(make_plan([2]), directory, dtype="int8")


def test_a_stage_must_fit_the_memory_of_its_node(directory: Path, unsplit: PreTrainedModel) -> None:
    plan = replace(make_plan([2]), dtype="bfloat16")
    modules = [*unsplit.model.layers[2:], unsplit.model.norm, unsplit.lm_head]
    needed = 2 * sum(parameter.numel() for module in modules for parameter in module.parameters())

    def limited(limit: int) -> osp.Plan:
        return replace(plan, stages=(plan.stages[0], replace(plan.stages[1], memory_bytes=limit)))

    with Pipeline(limited(needed), directory) as pipe:
        assert pipe.plan.dtype == "bfloat16"
        assert pipe.generate(torch.full((1, 3), 5), max_new_tokens=1).shape == (1, 4)
    where = rf'node "node 1" \(stage 1, layers 3-5\) needs {needed:,} bytes for its weights in bfloat16'
    with pytest.raises(ValueError, match=f"{where}, its limit is {needed - 1:,}"):
        Pipeline(limited(needed - 1), directory)


# Prints the workers' ids when the first tokens arrive, and continues until it is ended.
_PARENT = """
import sys
from orbitsplit._models import lazy_imports
lazy_imports.install()  # as the command line: half the time
import torch
from pathlib import Path
import orbitsplit as osp
printed = []
def progress(phase, fraction):
    if phase == "generating" and fraction > 0 and not printed:
        printed.append(True)
        print(*pipe.pids, flush=True)
try:
    with osp.Pipeline(osp.Plan.manual(cuts=[2], layers=4), Path(sys.argv[1]), progress=progress) as pipe:
        pipe.generate(torch.full((1, 3), 5), max_new_tokens=100_000, eos_token_id=())
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_the_processes_end_with_their_parent(directory: Path, signal_number: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(osp.__file__).parents[1])}
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # A shell starts background jobs, as of a whole CI run, with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert parent.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        parent.send_signal(signal_number)
        output, errors = parent.communicate(timeout=60)
    finally:
        parent.kill()
        parent.wait()
    _, still_alive = psutil.wait_procs(workers, timeout=60)
    assert still_alive == []
    assert errors == ""
    assert output == ("interrupted\n" if signal_number == signal.SIGINT else "")


# Codebooks.


CUTS = (1, LAYERS)


@pytest.fixture(scope="module")
def book(directory: Path) -> osp.Codebook:
    ids, _ = tiny_prompts((60,) * 10, seed=3)
    return osp.calibrate(directory, ids, cuts=CUTS, levels=(1.5,), codecs=("klt", "int8"), fit_samples=8)


def with_levels(book: osp.Codebook, *, micro_batches: int = 1) -> osp.Plan:
    """Return a plan with a matrix at the first cut and a fixed codec of the book at the last."""
    chosen = {CUTS[0]: book.level_of(CUTS[0], "klt 1.5"), CUTS[1]: book.level_of(CUTS[1], "int8")}
    return make_plan(list(CUTS), micro_batches=micro_batches).with_levels(book, chosen)


def generate_with_frames(
    model: PreTrainedModel, plan: osp.Plan, book: osp.Codebook, input_ids: Tensor, mask: Tensor, new_tokens: int
) -> tuple[Tensor, dict[int, list[int]]]:
    """Judge: the whole model under transformers' generate, hidden states at the cuts sent as frames."""
    sizes: dict[int, list[int]] = {stage.cut: [] for stage in plan.stages[:-1]}

    def sending(cut: int, level: int) -> Callable[..., Any]:
        def hook(_module: object, args: tuple[Any, ...]) -> tuple[Any, ...]:
            frame = osp.compress(args[0].contiguous(), codec=book[cut, level])
            sizes[cut].append(len(frame))
            return (osp.decompress(frame, book, framework="torch"), *args[1:])

        return hook

    handles = []
    for stage in plan.stages[:-1]:
        assert stage.codebook_level is not None
        module = model.model.layers[stage.cut] if stage.cut < LAYERS else model.model.norm
        handles.append(module.register_forward_pre_hook(sending(stage.cut, stage.codebook_level)))
    try:
        return greedy(model, input_ids, mask, new_tokens, groups=1, eos_token_id=-1), sizes
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture(scope="module")
def calibrated(directory: Path, book: osp.Codebook, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    scratch = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(scratch))
        pipe = Pipeline(with_levels(book), directory, codebook=book)
    with pipe:
        assert len(list(scratch.iterdir())) == 1
        yield pipe
    assert list(scratch.iterdir()) == []  # a book in memory leaves no file


@pytest.mark.parametrize("lengths", [(1,), (40,), (9, 3, 12)])
def test_tokens_equal_those_of_one_process_with_the_same_frames(
    calibrated: Pipeline, book: osp.Codebook, unsplit: PreTrainedModel, lengths: tuple[int, ...]
) -> None:
    input_ids, mask = tiny_prompts(lengths)
    expected, sizes = generate_with_frames(unsplit, calibrated.plan, book, input_ids, mask, 24)
    assert torch.equal(calibrated.generate(input_ids, mask, max_new_tokens=24, eos_token_id=()), expected)
    if lengths != (1,):  # and the frames do change what is said
        assert not torch.equal(expected, greedy(unsplit, input_ids, mask, 24, groups=1, eos_token_id=-1))
    run = calibrated.last_run
    assert run is not None
    for link, cut in zip(run.links, CUTS, strict=True):
        assert (link.prefill_bytes, link.decode_bytes) == (sizes[cut][0], sum(sizes[cut][1:]))


def test_a_codebook_as_a_path_and_groups_and_16_bits(
    directory: Path, book: osp.Codebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book.save(tmp_path / "book.safetensors")
    monkeypatch.chdir(tmp_path)
    # Weights loaded in 16 bits are still those of the book.
    with Pipeline(with_levels(book, micro_batches=2), directory, codebook="book.safetensors", dtype="bfloat16") as pipe:
        input_ids, mask = tiny_prompts((9, 3))
        assert pipe.generate(input_ids, mask, max_new_tokens=3, eos_token_id=()).shape == (2, 12)
        assert pipe.last_run is not None
        assert all(link.ratio > 1 for link in pipe.last_run.links)
    assert (tmp_path / "book.safetensors").exists()


def test_a_wrong_codebook_is_refused_before_anything_starts(
    directory: Path, book: osp.Codebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_arguments: object, **_options: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(worker_process, "start", never)
    other = osp.calibrate(directory, tiny_prompts((30,) * 4)[0], cuts=CUTS, levels=(2.0,), codecs=("fisher",))
    other.save(tmp_path / "other.safetensors")
    message = f"the plan needs codebook {book.hex_id}, this is codebook {other.hex_id}"
    for wrong in (other, tmp_path / "other.safetensors", str(tmp_path / "other.safetensors")):
        with pytest.raises(ValueError, match=message):
            Pipeline(with_levels(book), directory, codebook=wrong)
    with pytest.raises(ValueError, match=f"the plan needs codebook {book.hex_id}: pass it"):
        Pipeline(with_levels(book), directory)
    with pytest.raises(FileNotFoundError, match="nothing"):
        Pipeline(with_levels(book), directory, codebook=tmp_path / "nothing")
    damaged = tmp_path / "damaged.safetensors"
    book.save(damaged)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match=r"damaged\.safetensors is damaged"):
        Pipeline(with_levels(book), directory, codebook=damaged)
    with pytest.raises(AssertionError, match="a process was started"):  # else this test would prove nothing
        Pipeline(with_levels(book), directory, codebook=book)


def test_other_weights_are_refused_by_their_layer(unsplit: PreTrainedModel, book: osp.Codebook, tmp_path: Path) -> None:
    weight = unsplit.model.layers[2].mlp.up_proj.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1.1)
    unsplit.save_pretrained(tmp_path)
    with torch.no_grad():
        weight.copy_(kept)
    before = workers()
    with pytest.raises((ValueError, osp.TransportError), match=r"layer 2 of .* has other weights") as refused:
        Pipeline(with_levels(book), tmp_path, codebook=book)
    assert book.model.name in str(refused.value)
    assert workers() <= before


def test_a_codebook_that_is_not_needed_does_no_harm(directory: Path, book: osp.Codebook) -> None:
    with Pipeline(make_plan([]), directory, codebook=book) as pipe:
        assert pipe.generate(torch.full((1, 3), 5), max_new_tokens=1).shape == (1, 4)
