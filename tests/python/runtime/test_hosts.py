"""Pipelines on hosts: separate agents over the loopback interface, which join, are lost and come back."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import orbitsplit as osp
from orbitsplit._models.architecture import find_layers
from orbitsplit._models.fingerprint import hash_layers
from orbitsplit.runtime import Hosts, Pipeline
from orbitsplit.runtime._messages.control import codecs_key
from orbitsplit.runtime._messages.tls_channel import create_credentials
from orbitsplit.runtime._parent import hosts as hosts_module
from orbitsplit.runtime._parent.host_launcher import HostLauncher
from orbitsplit.runtime._parent.session import Deployment
from tests.support import chaos
from tests.support.books_by_hand import book_by_hand
from tests.support.chaos import PROMPT_TOKENS, Subject
from tests.support.fleet import CREDENTIALS, Fleet, fleet
from tests.support.tiny_models import load_unsplit

NAMES = ("s0", "s1", "s2", "s3")
ASKED: dict[str, Any] = {"eos_token_id": (), "pad_token_id": 0}
NEW_TOKENS = 200  # far more than come while who strikes is held up


@pytest.fixture(scope="module")
def tiny() -> Iterator[Subject]:
    with chaos.tiny_model() as model:
        yield chaos.subject("tiny", model, NEW_TOKENS)


def network() -> osp.Network:
    return osp.Network(
        name="all to all",
        nodes=tuple(osp.Node(name=name, memory_bytes=10**9, slowdown=1.0) for name in NAMES),
        links=tuple(osp.Link(a, b, 1e9, 0.001) for a in NAMES for b in NAMES if a != b),
    )


def make_plan(tiny: Subject, names: tuple[str, ...] = NAMES, cuts: tuple[int, ...] = (2, 4)) -> osp.Plan:
    plan = osp.Plan.manual(cuts=cuts, layers=len(tiny.profile.layers) - 2)
    stages = tuple(replace(stage, node=name) for stage, name in zip(plan.stages, names, strict=False))
    workload = osp.Workload(micro_batches=chaos.ROWS, prompt_tokens=PROMPT_TOKENS, new_tokens=tiny.new_tokens)
    return replace(plan, stages=stages, workload=workload)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fleet")
    create_credentials(path / CREDENTIALS)
    return path


@pytest.fixture(scope="module")
def hosts(folder: Path) -> Iterator[Hosts]:
    with Hosts(credentials=folder / CREDENTIALS, silence_s=chaos.HEARTBEAT_S) as made:
        yield made


@pytest.fixture(scope="module")
def there(folder: Path, hosts: Hosts) -> Iterator[Fleet]:
    """The hosts of all tests here: their agents outlive pipelines, and those that a test ends are started again."""
    with fleet(folder, hosts.address) as made:
        yield made


@contextmanager
def opened(
    tiny: Subject, hosts: Hosts, there: Fleet, *, names: tuple[str, ...] = NAMES, **options: Any
) -> Iterator[Pipeline]:
    """Open a pipeline on hosts with these names, the only ones, and check that none of its processes is left."""
    for name in NAMES:
        if name not in names:
            there.kill(name)
        elif not there.is_running(name):
            there.start(name)
    hosts.wait_for(names, chaos.LIMIT_S)
    wait_until(lambda: hosts.absent(NAMES) == [name for name in NAMES if name not in names])
    usual: dict[str, Any] = {
        "plan": make_plan(tiny),
        "replan": osp.replanner(tiny.profile, network()),
        "heartbeat_timeout_s": chaos.HEARTBEAT_S,
        "stall_timeout_s": chaos.STALL_S,
        "rebalance": False,  # plans change by losses alone here; test_rebalancing.py has the others
    }
    with Pipeline(model=tiny.model, hosts=hosts, **{**usual, **options}) as pipe:
        yield pipe
    wait_until(lambda: not any(there.workers(name) for name in NAMES))


def wait_until(claim: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + chaos.LIMIT_S
    while not claim():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def generated(pipe: Pipeline, tiny: Subject, *strikes: tuple[int, Callable[[], None]]) -> torch.Tensor:
    """Return what is generated; a strike is called once as many steps have come as it says."""
    steps = iter(range(1, 1 + tiny.new_tokens))

    def on_tokens(_tokens: torch.Tensor) -> None:
        step = next(steps)
        for after, strike in strikes:
            if after == step:
                strike()

    running = pipe.submit(tiny.prompts, max_new_tokens=tiny.new_tokens, on_tokens=on_tokens, **ASKED)
    return running.result(timeout_s=chaos.LIMIT_S)


def test_the_text_is_the_same_while_hosts_are_killed_and_come_back(tiny: Subject, hosts: Hosts, there: Fleet) -> None:
    with opened(tiny, hosts, there, names=NAMES[:3]) as pipe:
        assert [host.node for host in hosts.nodes] == list(NAMES[:3])
        assert all(host.cores > 0 and host.memory_bytes > 0 for host in hosts.nodes)
        assert torch.equal(generated(pipe, tiny, (20, lambda: there.kill("s1"))), tiny.expected)
        (recovery,) = pipe.recoveries
        assert (recovery.error.kind, recovery.error.node) == ("killed", "s1")
        assert 'node "s1" (stage 1, layers 3-4) is lost: the connection to its host has ended' in str(recovery)
        assert recovery.seconds < 15.0 + recovery.loading_s
        assert {stage.node for stage in pipe.plan.stages} == {"s0", "s2"}  # "s3" is in the network, but not there
        there.start("s3")
        hosts.wait_for(["s3"], chaos.LIMIT_S)
        assert torch.equal(generated(pipe, tiny, (20, lambda: there.kill("s0"))), tiny.expected)
        assert {stage.node for stage in pipe.plan.stages} == {"s2", "s3"}
        there.start("s1")
        hosts.wait_for(["s1"], chaos.LIMIT_S)
        assert torch.equal(generated(pipe, tiny, (20, lambda: there.kill("s3"))), tiny.expected)
        assert {stage.node for stage in pipe.plan.stages} == {"s1", "s2"}
        pipe.generate(tiny.prompts, max_new_tokens=4, **ASKED)
        assert pipe.last_run is not None


def test_a_process_that_is_killed_is_lost_and_not_its_host(tiny: Subject, hosts: Hosts, there: Fleet) -> None:
    with opened(tiny, hosts, there) as pipe:
        strike = 20, lambda: os.kill(pipe.pids[0], signal.SIGKILL)
        assert torch.equal(generated(pipe, tiny, strike), tiny.expected)
        (recovery,) = pipe.recoveries
        assert str(recovery).startswith('node "s0" (stage 0, layers 0-2) was killed by signal 9 (SIGKILL)')
        assert hosts.absent(NAMES) == []


@pytest.mark.parametrize("what", ["process", "agent"])
def test_the_text_is_the_same_after_something_hung(tiny: Subject, hosts: Hosts, there: Fleet, what: str) -> None:
    with opened(tiny, hosts, there) as pipe:

        def hang() -> None:
            if what == "agent":
                there.suspend("s1")
            else:
                os.kill(pipe.pids[1], signal.SIGSTOP)

        assert torch.equal(generated(pipe, tiny, (20, hang)), tiny.expected)
        # Without its agent a stage goes on for a while, maybe to the end of the text.
        wait_until(lambda: len(pipe.recoveries) == 1)
        (recovery,) = pipe.recoveries
        assert (recovery.error.kind, recovery.error.node) == ("hangs", "s1")
        assert torch.equal(generated(pipe, tiny), tiny.expected)
        assert recovery.seconds < 15.0 + recovery.loading_s
        assert hosts.absent(["s1"]) == (["s1"] if what == "agent" else [])
        there.resume("s1")
        hosts.wait_for(["s1"], chaos.LIMIT_S)


def test_without_another_plan_the_error_names_the_host(tiny: Subject, hosts: Hosts, there: Fleet) -> None:
    with opened(tiny, hosts, there, replan=None) as pipe:
        with pytest.raises(osp.TransportError, match=r'^node "s2" \(stage 2, .*\) is lost: the connection') as caught:
            generated(pipe, tiny, (20, lambda: there.kill("s2")))
        assert (caught.value.kind, caught.value.node) == ("killed", "s2")
        known = caught.value.tokens
        assert torch.equal(known[:, :20], tiny.expected[:, :20])


def test_conditions_are_emulated_between_hosts_with_one_clock(tiny: Subject, hosts: Hosts, there: Fleet) -> None:
    cut = osp.LinkConditions.from_toml('[[links]]\nfrom = "s1"\nto = "s2"\ndown = [["0 s", "forever"]]\n')
    with opened(tiny, hosts, there, conditions=cut) as pipe:
        assert torch.equal(generated(pipe, tiny), tiny.expected)
        (recovery,) = pipe.recoveries
        assert (recovery.error.kind, recovery.error.link) == ("link", ("s1", "s2"))


def test_links_are_not_emulated_between_clocks(
    tiny: Subject, hosts: Hosts, there: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts_module, "clock_id", lambda: "another")
    slow = osp.LinkConditions.from_toml('[[links]]\nfrom = "s1"\nto = "s2"\njitter = "1 ms"\n')
    with (
        pytest.raises(ValueError, match=r"between machines with clocks of their own: .*s0.* of .*s2"),
        opened(tiny, hosts, there, conditions=slow),
    ):
        pass


def test_the_text_is_the_same_while_the_pipeline_goes_over_to_other_hosts(
    tiny: Subject, hosts: Hosts, there: Fleet
) -> None:
    with opened(tiny, hosts, there) as pipe:
        asked = threading.Event()
        running = pipe.submit(tiny.prompts, max_new_tokens=1900, on_tokens=lambda _: asked.set(), **ASKED)
        assert asked.wait(chaos.LIMIT_S)
        migration = pipe.migrate(make_plan(tiny, ("s3", "s1", "s0"), cuts=(1, 4)))
        wait_until(lambda: all(len(state.got) > NEW_TOKENS for state in running.states.values()))
        running.cancel()
        tokens = running.result(timeout_s=chaos.LIMIT_S)[:, : tiny.expected.shape[1]]
        assert torch.equal(tokens, tiny.expected)
        assert (migration.how, migration.loaded_ahead) == ("moved", ("s3", "s1", "s0"))
        assert migration.bytes_moved >= migration.predicted_bytes > 0
        assert pipe.recoveries == ()
        with pytest.raises(osp.TransportError, match="no host has joined for elsewhere of s0, elsewhere"):
            pipe.migrate(make_plan(tiny, ("s0", "elsewhere"), cuts=(2,)))


def test_codecs_come_from_the_coordinator(tiny: Subject, hosts: Hosts, there: Fleet) -> None:
    hashes = list(hash_layers(dict(enumerate(find_layers(load_unsplit(tiny.model))[1]))).values())
    book = book_by_hand({2: [("rough", 5.0, 0.0)]}, layers=6, width=64, layer_hashes=hashes)
    plan = make_plan(tiny, cuts=(2,)).with_levels(book, {2: 0})
    with Pipeline(plan, tiny.model, codebook=book) as pipe:
        expected = pipe.generate(tiny.prompts, max_new_tokens=20, **ASKED)
    with opened(tiny, hosts, there, plan=plan, codebook=book, replan=None) as pipe:
        assert not pipe._sessions._store.has(codecs_key(0, 0))  # which would keep it for as long as the pipeline runs
        # No worker can read the coordinator's own files.
        shutil.rmtree(pipe._sessions._codecs.path or "")
        assert torch.equal(pipe.generate(tiny.prompts, max_new_tokens=20, **ASKED), expected)
        assert pipe.last_run is not None
        assert pipe.last_run.links[0].frames > 0


def test_messages_have_a_secret_that_is_in_no_log(tiny: Subject, hosts: Hosts, there: Fleet) -> None:
    with opened(tiny, hosts, there) as pipe:
        launcher = pipe._sessions._launcher
        assert isinstance(launcher, HostLauncher)
        assert len(launcher._secret) == 64
        assert launcher._secret not in there.log("s0")


def test_a_pipeline_waits_for_its_hosts_and_says_which_are_missing(tiny: Subject, hosts: Hosts) -> None:
    plan = make_plan(tiny, names=("s0", "x1", "x2"))
    with pytest.raises(osp.TransportError, match=r"no host has joined as x1, x2 within 0.2 s") as caught:
        Pipeline(plan, tiny.model, hosts=hosts, start_timeout_s=0.2)
    assert caught.value.kind == "host"


def test_one_pipeline_at_a_time_runs_on_hosts(tiny: Subject, hosts: Hosts, there: Fleet) -> None:
    """Regression: a second one took over the way to the store, and the first never ended."""
    with opened(tiny, hosts, there, names=NAMES[:3]) as pipe:
        with pytest.raises(osp.TransportError, match=r"another pipeline runs on the hosts of 127\.0\.0\.1:") as caught:
            Pipeline(make_plan(tiny), tiny.model, hosts=hosts)
        assert caught.value.kind == "host"
        assert torch.equal(generated(pipe, tiny), tiny.expected)
    with Pipeline(make_plan(tiny), tiny.model, hosts=hosts) as pipe:
        assert torch.equal(generated(pipe, tiny), tiny.expected)


def test_hosts_and_a_deployment_exclude_each_other(tiny: Subject, hosts: Hosts) -> None:
    with pytest.raises(ValueError, match="hosts and deployment exclude each other"):
        Pipeline(make_plan(tiny), tiny.model, hosts=hosts, deployment=Deployment())
    with pytest.raises(TypeError, match="hosts"):
        Pipeline(make_plan(tiny), tiny.model, hosts="10.0.0.1:29400")  # type: ignore[arg-type]
