"""Pipelines that go over to another plan while they generate: hosts join, stages turn out slower than predicted."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import orbitsplit as osp
from orbitsplit.runtime import FleetStatus, Hosts, Pipeline
from orbitsplit.runtime._messages.tls_channel import create_credentials
from orbitsplit.runtime._parent import drift
from orbitsplit.runtime._parent.rebalancing import Rebalancer
from tests.support import chaos
from tests.support.chaos import PROMPT_TOKENS, Subject
from tests.support.fleet import CREDENTIALS, fleet

ASKED: dict[str, Any] = {"eos_token_id": (), "pad_token_id": 0}
NEW_TOKENS = 80
# So slow that a token of all three groups takes a tenth of a second and more, of which the processor is busy for a few
# milliseconds: what else this machine does is hardly seen in it.
SLOW = 30.0


@pytest.fixture(scope="module")
def tiny() -> Iterator[Subject]:
    with chaos.tiny_model() as model:
        yield chaos.subject("tiny", model, NEW_TOKENS)


def network(*slowdowns: float) -> osp.Network:
    nodes = tuple(osp.Node(f"s{k}", 10**9, slowdown=slowdown) for k, slowdown in enumerate(slowdowns))
    names = [node.name for node in nodes]
    return osp.Network("all to all", nodes, tuple(osp.Link(a, b, 1e9, 0.001) for a in names for b in names if a != b))


def planned(tiny: Subject, on: osp.Network) -> osp.Plan:
    workload = osp.Workload(micro_batches=chaos.ROWS, prompt_tokens=PROMPT_TOKENS, new_tokens=NEW_TOKENS)
    return osp.plan(tiny.profile, on, workload)


def test_a_faster_host_is_used_and_a_slow_one_left_alone(
    tiny: Subject, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="orbitsplit.runtime")
    create_credentials(tmp_path / CREDENTIALS)
    # Links are emulated, and slowdowns with them, from the first condition on.
    calm = osp.LinkConditions.from_toml('[[links]]\nfrom = "s0"\nto = "s1"\njitter = "1 us"\n')
    whole, known = network(SLOW, SLOW, 100 * SLOW), network(SLOW, SLOW)
    with Hosts(credentials=tmp_path / CREDENTIALS) as hosts, fleet(tmp_path, hosts.address) as there:
        for name in ("s0", "s1", "new"):
            there.start(name)
        hosts.wait_for(["s0", "s1", "new"], chaos.LIMIT_S)
        plan = planned(tiny, known)
        assert len(plan.stages) == 2
        options = {"hosts": hosts, "conditions": calm, "replan": osp.replanner(tiny.profile, whole)}
        with Pipeline(plan, tiny.model, **options) as pipe:
            there.start("s2")
            assert torch.equal(pipe.generate(tiny.prompts, max_new_tokens=NEW_TOKENS, **ASKED), tiny.expected)
            assert "new" in [stage.node for stage in pipe.plan.stages]
            assert 'as node "new" has joined' in caplog.text
            (migration,) = pipe.migrations
            assert migration.before == plan
            assert pipe.recoveries == ()
            deadline_s = time.monotonic() + chaos.LIMIT_S
            while '"s2" is left alone' not in caplog.text:
                assert time.monotonic() < deadline_s, caplog.text
                time.sleep(0.1)
            status = FleetStatus.of(hosts.address, credentials=tmp_path / CREDENTIALS)
            found = {host.node: host for host in status.hosts}
            assert set(found) == {"s0", "s1", "s2", "new"}
            assert found["s2"].note == "the plan stays the best one with it"
            assert found["s2"].slowdown is not None
            assert found["s2"].slowdown > 20 * SLOW
            assert found["new"].start is not None
            assert found["new"].resident_bytes > 0
            ends = {(link.source, link.destination): link for link in status.links}
            assert (ends["new", "s0"].planned_bytes_per_s, ends["s2", "s0"].planned_bytes_per_s) == (None, 1e9)
            assert (ends["s2", "s0"].measured_bytes_per_s or 0) > 1e4
        assert {host.note for host in hosts.status().hosts} == {"no plan runs"}


def test_a_stage_that_takes_longer_than_predicted_gets_fewer_layers(
    tiny: Subject, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The same on one machine: here the stage is emulated three times as slow as it was planned with."""
    caplog.set_level(logging.INFO, logger="orbitsplit.runtime")
    monkeypatch.setattr(drift, "WINDOW_S", 4.0)
    monkeypatch.setattr(drift, "LEAST_STEPS", 4)
    on = network(SLOW, SLOW)
    plan = planned(tiny, on)
    straggling = replace(plan, stages=(replace(plan.stages[0], slowdown=3 * SLOW), *plan.stages[1:]))
    with Pipeline(straggling, tiny.model, replan=osp.replanner(tiny.profile, on), rebalance=True) as pipe:
        assert torch.equal(pipe.generate(tiny.prompts, max_new_tokens=NEW_TOKENS, **ASKED), tiny.expected)
        assert f'as node "{plan.stages[0].node}" takes ' in caplog.text
        layers = {stage.node: stage.stop - stage.start for stage in pipe.plan.stages}
        assert layers.get(plan.stages[0].node, 0) < plan.stages[0].stop - plan.stages[0].start
        assert len(pipe.migrations) == caplog.text.count("going over to") == 1


class FakeHosts:
    def __init__(self, *names: str) -> None:
        self.there = {name: SimpleNamespace(runs_processes=False) for name in names}

    def joined(self) -> dict[str, Any]:
        return dict(self.there)


def looking(hosts: FakeHosts, sessions: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[str]]:
    """Return a rebalancer of stages on s0 and s1, and the names of the hosts that it measures."""
    on, measured = network(1.0, 1.0, 1.0), list[str]()
    settings = SimpleNamespace(deployment=SimpleNamespace(hosts=hosts))
    made: Any = Rebalancer(sessions, settings, FakeHosts(), SimpleNamespace(network=on))  # type: ignore[arg-type]
    monkeypatch.setattr(made, "_measure", lambda name, *_: measured.append(name))
    return made, measured


def running(*recoveries: str) -> SimpleNamespace:
    stages = [SimpleNamespace(node="s0"), SimpleNamespace(node="s1")]
    done = SimpleNamespace(done=recoveries)
    return SimpleNamespace(plan=SimpleNamespace(stages=stages), recoveries=done, is_ready=True)


def test_a_host_that_returns_during_a_recovery_is_measured_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan that was lost had a stage on it, so that it once counted as one that is used, for ever."""
    hosts, sessions = FakeHosts("s0", "s1", "s2"), running()
    made, measured = looking(hosts, sessions, monkeypatch)
    hosts.there["s1"] = SimpleNamespace(runs_processes=False)
    made._measure_joined()  # the loss is not noticed yet
    sessions.is_ready = False
    made._measure_joined()
    assert measured == []
    sessions.plan, sessions.is_ready = SimpleNamespace(stages=[SimpleNamespace(node="s0")]), True
    made._measure_joined()
    made._measure_joined()
    assert measured == ["s1"]


def test_a_host_that_runs_a_stage_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts, sessions = FakeHosts("s0", "s1"), running()
    made, measured = looking(hosts, sessions, monkeypatch)
    hosts.there["s1"] = SimpleNamespace(runs_processes=True)  # the next session has begun with it
    made._measure_joined()
    sessions.plan = SimpleNamespace(stages=[SimpleNamespace(node="s0")])
    made._measure_joined()
    assert measured == []


def test_a_host_that_joins_while_a_takeover_loads_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was missed when the pipeline began, and once taken for one that the plan could have used."""
    hosts = FakeHosts("s0", "s1", "s2")
    made, measured = looking(hosts, running("without s2"), monkeypatch)
    made._measure_joined()
    assert measured == ["s2"]
    made, measured = looking(hosts, running(), monkeypatch)
    made._measure_joined()
    assert measured == []


def test_what_cannot_rebalance_is_refused(tiny: Subject) -> None:
    plan = planned(tiny, network(SLOW, SLOW))
    with pytest.raises(ValueError, match=r"rebalance needs a replan of orbitsplit\.replanner"):
        Pipeline(plan, tiny.model, rebalance=True)
    with pytest.raises(TypeError, match="rebalance"):
        Pipeline(plan, tiny.model, rebalance="always")  # type: ignore[arg-type]
