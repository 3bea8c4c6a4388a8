"""Going on after a loss: the text is as if nothing had happened, or the error says what would be needed."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import psutil
import pytest
import torch

import orbitsplit as osp
from orbitsplit.runtime import Pipeline
from orbitsplit.runtime._messages.control import unpack_request
from orbitsplit.runtime._messages.groups import Group
from tests.support import chaos
from tests.support.chaos import PROMPT_TOKENS, Subject
from tests.support.processes import workers
from tests.support.tiny_models import computing_in_groups, load_unsplit

NEW_TOKENS = 80
NAMES = ("s0", "s1", "s2", "s3")
ASKED: dict[str, Any] = {"eos_token_id": (), "pad_token_id": 0}


@pytest.fixture(scope="module")
def long() -> Iterator[Subject]:
    """A run of several seconds, into which faults fall at random."""
    with chaos.tiny_model() as model:
        yield chaos.subject("tiny", model, 400)


@pytest.fixture(scope="module")
def tiny(long: Subject) -> Subject:
    """The first tokens of the same, where a fault comes after a number of tokens."""
    return replace(long, new_tokens=NEW_TOKENS, expected=long.expected[:, : PROMPT_TOKENS + NEW_TOKENS])


def make_network(names: tuple[str, ...] = NAMES, *, memory_bytes: int = 10**9) -> osp.Network:
    return osp.Network(
        name="all to all",
        nodes=tuple(osp.Node(name=name, memory_bytes=memory_bytes, slowdown=1.0) for name in names),
        links=tuple(osp.Link(a, b, 1e9, 0.001) for a in names for b in names if a != b),
    )


def tight_network(tiny: Subject, names: tuple[str, ...] = NAMES) -> osp.Network:
    """Return nodes of which each holds two transformer layers and not three, so that three nodes are needed."""
    problem = osp.build_problem(tiny.profile, make_network(), make_plan(tiny).workload)
    embeddings, *layers, head = map(int, problem.layer_memory_bytes)
    assert embeddings + head < max(layers) // 2
    # And a quarter of a layer, beside what a stage's process takes for itself.
    own_bytes = int(problem.nodes[0].headroom_bytes)
    return make_network(names, memory_bytes=own_bytes + 2 * max(layers) + embeddings + head + max(layers) // 4)


def make_plan(tiny: Subject, *, cuts: tuple[int, ...] = (2, 4)) -> osp.Plan:
    plan = osp.Plan.manual(cuts=cuts, layers=len(tiny.profile.layers) - 2)
    stages = tuple(replace(stage, node=name) for stage, name in zip(plan.stages, NAMES, strict=False))
    workload = osp.Workload(micro_batches=chaos.ROWS, prompt_tokens=PROMPT_TOKENS, new_tokens=tiny.new_tokens)
    # Stages do not wait for who strikes: with links as fast as this machine all is over when that was held up a moment.
    links = tuple(replace(link, latency_s=0.005) for link in plan.links)
    return replace(plan, stages=stages, links=links, workload=workload)


@contextmanager
def opened(
    tiny: Subject, network: osp.Network | None = None, *, cuts: tuple[int, ...] = (2, 4), **options: Any
) -> Iterator[Pipeline]:
    """Open a pipeline that can replan, and check that none of its processes outlives it."""
    options = {"replan": osp.replanner(tiny.profile, network or make_network()), **options}
    patience: dict[str, Any] = {"heartbeat_timeout_s": chaos.HEARTBEAT_S, "stall_timeout_s": chaos.STALL_S}
    with Pipeline(make_plan(tiny, cuts=cuts), tiny.model, **patience, **options) as pipe:
        children = workers()
        assert len(children) >= len(pipe.pids)
        yield pipe
        children |= workers()
    assert psutil.wait_procs(children, timeout=60)[1] == []


class Strike:
    """Signals a stage's process once enough steps have come; for `on_tokens`."""

    def __init__(self, pipe: Pipeline, rank: int, number: int, *, after: int = 20) -> None:
        self._pipe, self._rank, self._number, self._left = pipe, rank, number, after

    def __call__(self, _tokens: torch.Tensor) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(self._pipe.pids[self._rank], self._number)


def generated(pipe: Pipeline, tiny: Subject, *strikes: Strike) -> torch.Tensor:
    def on_tokens(tokens: torch.Tensor) -> None:
        for strike in strikes:
            strike(tokens)

    running = pipe.submit(tiny.prompts, max_new_tokens=tiny.new_tokens, on_tokens=on_tokens, **ASKED)
    return running.result(timeout_s=chaos.LIMIT_S)


@pytest.mark.parametrize("rank", [0, 2])
def test_the_text_is_the_same_after_a_node_was_killed(tiny: Subject, rank: int) -> None:
    with opened(tiny) as pipe:
        assert torch.equal(generated(pipe, tiny, Strike(pipe, rank, signal.SIGKILL)), tiny.expected)
        (recovery,) = pipe.recoveries
        assert (recovery.error.kind, recovery.error.node) == ("killed", NAMES[rank])
        assert NAMES[rank] not in [stage.node for stage in pipe.plan.stages]
        assert recovery.after == pipe.plan
        assert 0 < recovery.loading_s < recovery.seconds < 15.0 + recovery.loading_s
        assert recovery.to_dict()["node"] == NAMES[rank]
        assert "was killed by signal 9" in str(recovery)
        # It stays usable, with measurements.
        pipe.generate(tiny.prompts, max_new_tokens=4, **ASKED)
        assert pipe.last_run is not None


@pytest.mark.parametrize("exact_resume", [True, False])
def test_known_tokens_are_replayed_unless_a_quick_resume_is_asked_for(tiny: Subject, exact_resume: bool) -> None:
    begun: list[Group] = []
    with opened(tiny, exact_resume=exact_resume) as pipe:
        request = pipe._sessions._request

        def watched(data: bytes) -> None:
            if data and isinstance(asked := unpack_request(data), tuple):
                begun.append(asked[0])
            request(data)

        pipe._sessions._request = watched  # type: ignore[method-assign]
        tokens = generated(pipe, tiny, Strike(pipe, 1, signal.SIGKILL))
        assert len(pipe.recoveries) == 1
    known = [group.tokens - chaos.PROMPT_TOKENS for group in begun]
    assert known[: chaos.ROWS] == [0] * chaos.ROWS
    assert len(known) == 2 * chaos.ROWS
    assert min(known[chaos.ROWS :]) >= 18
    assert [group.replayed for group in begun] == (known if exact_resume else [0] * len(known))
    # At once other tokens may win where two are nearly level, but none of those that were known.
    same = tiny.new_tokens if exact_resume else min(known[chaos.ROWS :])
    assert tokens.shape == tiny.expected.shape
    assert torch.equal(tokens[:, : chaos.PROMPT_TOKENS + same], tiny.expected[:, : chaos.PROMPT_TOKENS + same])


def test_the_text_is_the_same_after_a_node_hung_and_then_another_was_killed(tiny: Subject) -> None:
    with opened(tiny) as pipe:
        strikes = Strike(pipe, 1, signal.SIGSTOP), Strike(pipe, 0, signal.SIGKILL, after=40)
        assert torch.equal(generated(pipe, tiny, *strikes), tiny.expected)
        assert [recovery.error.kind for recovery in pipe.recoveries] == ["hangs", "killed"]
        assert len({recovery.error.node for recovery in pipe.recoveries}) == 2


def test_the_text_is_the_same_after_a_link_was_cut(tiny: Subject) -> None:
    cut = osp.LinkConditions.from_toml('[[links]]\nfrom = "s1"\nto = "s2"\ndown = [["0 s", "forever"]]\n')
    with opened(tiny, conditions=cut) as pipe:
        assert torch.equal(generated(pipe, tiny), tiny.expected)
        (recovery,) = pipe.recoveries
        assert (recovery.error.kind, recovery.error.link) == ("link", ("s1", "s2"))
        nodes = [stage.node for stage in pipe.plan.stages]
        assert ("s1", "s2") not in pairwise(nodes)


def test_everything_in_flight_resumes_sampled_text_too(tiny: Subject) -> None:
    asked: dict[str, Any] = {"max_new_tokens": 40, "do_sample": True, "temperature": 1.5, **ASKED}
    with opened(tiny) as pipe:
        undisturbed = [pipe.generate(tiny.prompts[:rows], seed=rows, **asked) for rows in (1, 2, 3)]
        strike = Strike(pipe, 2, signal.SIGKILL)
        running = [pipe.submit(tiny.prompts[:rows], seed=rows, on_tokens=strike, **asked) for rows in (1, 2, 3)]
        for one, expected in zip(running, undisturbed, strict=True):
            assert torch.equal(one.result(timeout_s=chaos.LIMIT_S), expected)
        assert len(pipe.recoveries) == 1


def test_a_node_that_was_not_in_the_plan_joins_where_it_is_needed(tiny: Subject) -> None:
    with opened(tiny, tight_network(tiny)) as pipe:
        assert torch.equal(generated(pipe, tiny, Strike(pipe, 1, signal.SIGKILL)), tiny.expected)
        assert {stage.node for stage in pipe.plan.stages} == {"s0", "s2", "s3"}
        assert [recovery.before.stages[1].node for recovery in pipe.recoveries] == ["s1"]


@pytest.mark.parametrize("rank", [0, 2])
def test_a_node_that_is_lost_while_the_others_start_is_recovered_from(tiny: Subject, rank: int) -> None:
    # It ended the start, with a plan without it at hand.
    struck: list[int] = []

    def progress(phase: str, _fraction: float) -> None:
        started = sorted(one.pid for one in workers())
        if phase == "starting 3 processes" and len(started) == 3 and not struck:
            struck.append(started[rank])
            os.kill(started[rank], signal.SIGKILL)

    with opened(tiny, progress=progress) as pipe:
        (recovery,) = pipe.recoveries
        assert (recovery.error.kind, recovery.error.node) == ("killed", f"s{rank}")
        assert f"s{rank}" not in {stage.node for stage in pipe.plan.stages}
        assert torch.equal(pipe.generate(tiny.prompts, max_new_tokens=tiny.new_tokens, **ASKED), tiny.expected)


def test_a_node_that_is_lost_while_it_joins_is_a_further_loss(tiny: Subject) -> None:
    # The other one that joins was left waiting for it, up to the limit for a start: it was not of the plan before.
    first: set[psutil.Process] = set()
    struck: list[int] = []

    def progress(phase: str, _fraction: float) -> None:
        joining = workers() - first if first and not struck else ()
        for process in sorted(joining, key=lambda process: process.pid)[:1]:
            assert phase == "starting 3 processes"
            struck.append(process.pid)
            process.kill()

    network = tight_network(tiny, ("s0", "s1", "s2", "s3", "s4"))
    with opened(tiny, network, cuts=(3,), progress=progress) as pipe:
        first |= workers()
        assert torch.equal(generated(pipe, tiny, Strike(pipe, 1, signal.SIGKILL)), tiny.expected)
        (recovery,) = pipe.recoveries
        (further,) = recovery.further
        assert (recovery.error.node, further.kind) == ("s1", "killed")
        assert {stage.node for stage in pipe.plan.stages} == {"s0", "s2", "s3", "s4"} - {further.node}
        assert recovery.seconds < 60.0  # the limit for a start is 600 s
        assert recovery.to_dict()["further"][0]["node"] == further.node
        assert str(recovery).count("was killed by signal 9") == 2


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are set as Linux does")
def test_a_node_that_runs_out_of_memory_is_lost(tiny: Subject) -> None:
    prompts = torch.randint(3, 97, (48, 500), generator=torch.Generator().manual_seed(0))
    whole = load_unsplit(tiny.model)
    with computing_in_groups(whole, chaos.ROWS):
        expected = whole.generate(
            prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=2, do_sample=False, eos_token_id=None
        )
    with opened(tiny) as pipe:
        # Room for what is there already, and a little more: far less than the layers need for these prompts.
        limit = psutil.Process(pipe.pids[1]).memory_info().vms + (8 << 20)
        resource.prlimit(pipe.pids[1], resource.RLIMIT_AS, (limit, limit))
        assert torch.equal(pipe.generate(prompts, max_new_tokens=2, timeout_s=chaos.LIMIT_S, **ASKED), expected)
        (recovery,) = pipe.recoveries
        assert (recovery.error.kind, recovery.error.node) == ("memory", "s1")
        assert 'node "s1" (stage 1, layers 3-4) failed: ' in str(recovery)


def test_without_another_plan_the_error_says_what_is_needed_and_has_the_tokens(tiny: Subject) -> None:
    with opened(tiny, tight_network(tiny, NAMES[:3])) as pipe:
        reason = r'node "s1" .*without it the pipeline cannot recover: .*(memory|bytes|GB)'
        with pytest.raises(osp.TransportError, match=reason) as caught:
            generated(pipe, tiny, Strike(pipe, 1, signal.SIGKILL))
        assert (caught.value.kind, caught.value.node) == ("killed", "s1")
        got = caught.value.tokens
        # All rows have the tokens of the steps before; some may have one more.
        assert torch.equal(got[:, : PROMPT_TOKENS + 20], tiny.expected[:, : PROMPT_TOKENS + 20])
        assert chaos.begins_as(got, tiny.expected)
        with pytest.raises(osp.TransportError, match="the pipeline cannot be used"):
            pipe.generate(tiny.prompts, max_new_tokens=1)


def test_a_plan_that_uses_what_was_lost_is_refused(tiny: Subject) -> None:
    with (
        opened(tiny, replan=lambda running, _nodes, _links: running) as pipe,
        pytest.raises(osp.TransportError, match="the plan that replaces it uses what was lost: s1"),
    ):
        generated(pipe, tiny, Strike(pipe, 1, signal.SIGKILL))


def test_an_error_of_a_stage_is_not_retried(tiny: Subject) -> None:
    with opened(tiny) as pipe:
        with pytest.raises(osp.TransportError, match=r"the request failed on node") as caught:
            # Of other inputs than a language model's; the parent lets them through, the model does not.
            pipe.forward(pixel_values=torch.zeros(1, 3, 4, 4))
        assert caught.value.kind == "request"
        assert pipe.recoveries == ()
        assert pipe.generate(tiny.prompts, max_new_tokens=1, **ASKED).shape == (3, PROMPT_TOKENS + 1)


def test_replanning_that_fails_ends_the_pipeline(tiny: Subject) -> None:
    def replan(_plan: osp.Plan, _nodes: Any, _links: Any) -> osp.Plan:
        raise RuntimeError("no idea")

    with (
        opened(tiny, replan=replan) as pipe,
        pytest.raises(osp.TransportError, match="the pipeline cannot recover: RuntimeError: no idea"),
    ):
        generated(pipe, tiny, Strike(pipe, 1, signal.SIGKILL))


def test_closing_while_it_recovers_leaves_no_process(tiny: Subject) -> None:
    is_planning, may_go_on = threading.Event(), threading.Event()
    replan = osp.replanner(tiny.profile, make_network())

    def slowly(*arguments: Any) -> osp.Plan:
        is_planning.set()
        may_go_on.wait(30)
        return replan(*arguments)

    with opened(tiny, replan=slowly) as pipe:
        running = pipe.submit(tiny.prompts, max_new_tokens=400, **ASKED)
        os.kill(pipe.pids[1], signal.SIGKILL)
        assert is_planning.wait(30)
        pipe.close()
        may_go_on.set()
        with pytest.raises(osp.TransportError, match="the pipeline was closed"):
            running.result(timeout_s=30)


@pytest.mark.parametrize("seed", [1000, 1001])
def test_chaos(long: Subject, seed: int) -> None:
    outcome = chaos.run_once(long, seed)
    assert chaos.is_fine(outcome), outcome
