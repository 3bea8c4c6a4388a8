"""Several coordinators: which one works, what hosts keep for the next one, and what neither of them may do."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

import orbitsplit as osp
from orbitsplit.runtime import Hosts
from orbitsplit.runtime._messages import replicas as limits
from orbitsplit.runtime._messages.groups import Group, Sampling
from orbitsplit.runtime._messages.hosts import PROTOCOL
from orbitsplit.runtime._messages.replicas import Replica, ReplicaTable, messages_of
from orbitsplit.runtime._messages.tls_channel import Credentials, TlsChannel, create_credentials
from orbitsplit.runtime._node import agent as agent_module
from orbitsplit.runtime._node.agent import NodeAgent
from orbitsplit.runtime._parent import replicas as replicas_module
from orbitsplit.runtime._parent.election import Election
from orbitsplit.runtime._parent.generation import Generation, GroupState
from orbitsplit.runtime._parent.replicas import Replicas, key_of, model_of
from tests.support.fake_workers import PLAN, ready

WAIT_S = 60.0
NAMES = ("s0", "s1", "s2")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("credentials") / "fleet.pem"
    create_credentials(made)
    return made


def wait_until(claim: Callable[[], Any]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not claim():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


@pytest.mark.parametrize("count", range(1, 7))
def test_no_two_parts_of_the_voters_have_a_majority(count: int) -> None:
    voters = [f"n{number}" for number in range(count)]
    with_majority = 0
    for sides in product((0, 1, None), repeat=count):  # with one coordinator, with the other, with none
        parts = [[voter for voter, side in zip(voters, sides, strict=True) if side == part] for part in (0, 1)]
        has = [Election(voters).has_majority(part) for part in parts]
        assert not all(has)
        with_majority += any(has)
        if None not in sides:  # a clean partition leaves one side that works
            assert any(has)
    assert with_majority
    assert not Election(voters).has_majority(["others", "of", "any", "number", "are", "no", "voters"])


def test_a_term_begins_with_a_majority_and_is_newer_than_all_that_it_has_known() -> None:
    election = Election(NAMES)
    election.note(4)
    assert not election.update(["s0"])
    election.note(7)
    election.note(5)
    assert election.update(["s0", "s1"])
    assert (election.term, election.failure) == (8, None)
    election.note(8)
    assert not election.update(["s1", "s2"])  # it goes on with any majority
    assert election.failure is None


@pytest.mark.parametrize(
    ("nodes", "newest", "reason"),
    [
        (["s1"], 1, r"lost the majority: 1 of 3 hosts are with it \(s1\), and another one may take over"),
        ([], 1, r"lost the majority: 0 of 3 hosts are with it, and"),
        (["s0", "s1"], 2, "another coordinator has taken over: it has term 2, this one 1"),
    ],
)
def test_a_coordinator_ends_for_good(nodes: list[str], newest: int, reason: str) -> None:
    election = Election(NAMES)
    assert election.update(NAMES)
    election.note(newest)
    assert not election.update(nodes)
    assert re.search(reason, election.failure or "")
    assert not election.update(NAMES)
    assert re.search(reason, election.failure or "")


def test_a_quorum_has_names_each_once(path: Path) -> None:
    with pytest.raises(TypeError, match="quorum is a string, must be the names of nodes"):
        Hosts(credentials=path, quorum="s0")
    with pytest.raises(ValueError, match="quorum names no nodes"):
        Hosts(credentials=path, quorum=[])
    with pytest.raises(ValueError, match="quorum names 's0' 2 times"):
        Hosts(credentials=path, quorum=["s0", "s1", "s0"])


# Hosts without stages, in this process.


@contextmanager
def agents(coordinators: str, path: Path, names: tuple[str, ...] = NAMES) -> Iterator[dict[str, NodeAgent]]:
    made = {name: NodeAgent(coordinators, name, path) for name in names}
    threads = [threading.Thread(target=agent.run) for agent in made.values()]
    for thread in threads:
        thread.start()
    try:
        yield made
    finally:
        for agent in made.values():
            agent.stop()
        for thread in threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()


@contextmanager
def coordinators(path: Path, count: int = 2) -> Iterator[list[Hosts]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Hosts(credentials=path, quorum=NAMES)) for _ in range(count)]


def names_of(hosts: Hosts) -> list[str]:
    return [host.node for host in hosts.nodes]


def generation(tokens: list[int], *, number: int = 0, seed: int | None = None, steps: int = 9) -> Generation:
    sampling = None if seed is None else Sampling(seed)
    group = Group(id=number, rows=1, tokens=len(tokens), mask=None, max_new_tokens=steps, sampling=sampling)
    made = Generation([GroupState(group, torch.tensor([tokens]))])
    made.key = key_of(made, seed=None, model={})
    return made


def tokens_kept(agent: NodeAgent) -> list[list[list[int]]]:
    """Return the tokens of each request, of one row, that a host keeps."""
    return [replica.rows(1) for replica in list(agent._replicas.replicas.values())]


def test_hosts_join_the_first_coordinator_and_bring_its_requests_to_the_next(path: Path) -> None:
    with coordinators(path) as (first, second), agents(f"{first.address},{second.address}", path) as there:
        first.wait_for_majority(WAIT_S)
        first.wait_for(NAMES, WAIT_S)
        assert (first.term, second.term, names_of(second)) == (1, 0, [])
        one, other = generation([1, 2, 3], number=5, seed=77), generation([1, 2, 4], number=6)
        first.replicas.begin(one)
        first.replicas.begin(other)
        for token in (10, 11, 12):
            first.replicas.add(5, [token])
        first.replicas.end(6)
        kept = [host.term for host in first._hosts.values()]
        assert kept == [0, 0, 0]  # what they have known when they joined
        for agent in there.values():  # what is new of requests is sent at intervals
            wait_until(lambda agent=agent: tokens_kept(agent) == [[[10, 11, 12]]])
        first.close()
        second.wait_for_majority(WAIT_S)
        assert second.term == 2
        again = generation([1, 2, 3], number=9, seed=5)
        second.replicas.resume(again)
        state = again.states[9]
        assert (again.is_resumed, [int(token) for token in state.got]) == (True, [10, 11, 12])
        assert state.group.sampling == Sampling(77)  # as the first coordinator has drawn
        once_more, ended = generation([1, 2, 3]), generation([1, 2, 4])
        second.replicas.resume(once_more)
        second.replicas.resume(ended)
        assert not once_more.is_resumed  # it was one request
        assert not ended.is_resumed


def test_a_coordinator_that_loses_the_majority_ends_and_the_other_works(path: Path) -> None:
    with coordinators(path) as (first, second):
        both = f"{first.address},{second.address}"
        with agents(both, path, ("s0",)):
            with agents(both, path, ("s1", "s2")):
                first.wait_for_majority(WAIT_S)
                first.wait_for(NAMES, WAIT_S)
                first.check()
            with agents(second.address, path, ("s1", "s2")):  # they do not reach the first one any more
                second.wait_for_majority(WAIT_S)
                wait_until(lambda: first._election is not None and first._election.failure)
                with pytest.raises(osp.TransportError, match=r"lost the majority: 1 of 3 .*\(s0\)") as caught:
                    first.check()
                assert caught.value.kind == "host"
                assert names_of(first) == ["s0"]
                second.check()


def test_hosts_that_no_majority_holds_try_the_next_coordinator(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "_UNDECIDED_S", (0.5, 1.0))
    with coordinators(path) as (first, second):
        with agents(f"{first.address},{second.address}", path, ("s0",)), agents(second.address, path, ("s1", "s2")):
            second.wait_for_majority(WAIT_S)
            second.wait_for(NAMES, WAIT_S)
        assert first.term == 0


def test_a_host_follows_no_older_coordinator(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with coordinators(path) as (first, second), agents(first.address, path, ("s1", "s2")):
        first.wait_for_majority(WAIT_S)
        with agents(second.address, path, ("s0",)) as there:
            there["s0"]._term = 3  # it has served a coordinator of this term
            there["s0"]._coordinators = [first.address]
            second.close()
            wait_until(lambda: "it has term 1, and this host has known term 3" in caplog.text)
        # Its offer tells the old one, which ends.
        wait_until(lambda: first._election is not None and first._election.failure)
        with pytest.raises(osp.TransportError, match="has taken over: it has term 3, this one 1"):
            first.check()


@pytest.mark.parametrize("reaches", ["both", "one"])
def test_a_host_that_restarts_makes_no_two_coordinators_work(path: Path, reaches: str) -> None:
    # Its agent forgets with its power which coordinator it served, and the connection ends for neither: both worked.
    with ExitStack() as stack:
        first, second = (stack.enter_context(Hosts(credentials=path, silence_s=2.0, quorum=NAMES)) for _ in range(2))
        stack.enter_context(agents(first.address, path, ("s1",)))
        first.wait_for(["s1"], WAIT_S)  # before the host that says nothing, which is lost after a silence
        channel = TlsChannel.connect(first.address, Credentials(path))
        stack.callback(channel.release)
        channel.send({"join": "s0", "protocol": PROTOCOL, "clock": "", "cores": 1, "memory_bytes": 1, "term": 0})
        channel.send({"replicas": 0, "term": 0})
        first.wait_for_majority(WAIT_S)
        stack.enter_context(agents(second.address, path, ("s2",)))
        other = first.address if reaches == "both" else "127.0.0.1:1"
        stack.enter_context(agents(f"{second.address},{other}", path, ("s0",)))
        second.wait_for(["s0", "s2"], WAIT_S)
        wait_until(lambda: second.term)
        assert first._election is not None
        assert "lost the majority: 1 of 3 hosts are with it (s1)" in (first._election.failure or "")


def test_a_host_counts_once_it_has_returned_its_replicas(path: Path) -> None:
    with coordinators(path, 1) as (hosts,), agents(hosts.address, path, ("s0",)):
        channel = TlsChannel.connect(hosts.address, Credentials(path))
        channel.send({"join": "s1", "protocol": PROTOCOL, "clock": "", "cores": 1, "memory_bytes": 1, "term": 0})
        assert (channel.receive(WAIT_S) or {})["term"] == 0
        hosts.wait_for(["s0", "s1"], WAIT_S)
        channel.send({"begun": "a", "key": "k", "seed": 3})
        channel.send({"more": "a", "steps": [[0, [8]], [0, [9]]]})
        with pytest.raises(osp.TransportError, match=r"no majority has joined within 1.2 s"):
            hosts.wait_for_majority(1.2)
        channel.send({"replicas": 1, "term": 0})
        hosts.wait_for_majority(WAIT_S)
        assert hosts.replicas._left == {"a": Replica("k", 3, [(0, [8]), (0, [9])])}
        wait_until(lambda: not hosts._hosts["s1"].returned.replicas)  # they are not kept twice
        channel.release()


def test_a_host_that_was_missed_has_come_back_when_it_joins(path: Path) -> None:
    with Hosts(credentials=path) as hosts:
        hosts.reserve("127.0.0.1:1")
        with pytest.raises(osp.TransportError, match='node "s1" has no host'):
            hosts.host("s1")
        with agents(hosts.address, path, ("s0", "s1")):
            hosts.wait_for(["s0", "s1"], WAIT_S)
            assert hosts.take_returned() == {"s1"}


# Replicas.


def test_hosts_learn_what_is_new_and_nothing_twice() -> None:
    own, table = Replicas(), ReplicaTable()
    known: dict[str, int] = {}
    own.begin(generation([1, 2], number=1))
    own.add(1, [5])
    for message in own.changes(known):
        assert table.take(message)
    assert list(own.changes(known)) == []
    own.add(1, [6])
    (message,) = own.changes(known)
    assert message["steps"] == [(0, [6])]
    table.take(message)
    (replica,) = table.replicas.values()
    assert replica.rows(1) == [[5, 6]]
    own.end(1)
    assert [list(message) for message in own.changes(known)] == [["forget"]]


def test_replicas_of_the_newest_term_with_most_tokens_are_taken_over() -> None:
    tables = [ReplicaTable() for _ in range(3)]
    for table, term, tokens in zip(tables, (1, 2, 2), ([1, 2, 3], [1], [1, 2]), strict=True):
        table.take({"reset": term})
        for message in messages_of("a", Replica("k", None, [(0, [token]) for token in tokens]), None):
            table.take(message)
    own = Replicas()
    assert own.inherit(tables) == 1
    assert own._left["a"].rows(1) == [[1, 2]]


def test_requests_beyond_the_limits_have_no_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas_module, "MOST_REQUESTS", 2)
    monkeypatch.setattr(replicas_module, "MOST_TOKENS", 3)
    own = Replicas()
    for number in range(3):
        own.begin(generation([1, number], number=number))
    assert len(own._own) == 2
    for token in range(3):
        own.add(0, [token])
    own.add(1, [7])  # no room: this one has no replica any more, and the others stay
    assert [one.tokens for one in own._own.values()] == [3]
    own.end(0)
    own.end(1)
    assert (own._own, own._tokens, own._groups) == ({}, 0, {})


def test_what_nobody_sends_again_is_forgotten_and_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas_module, "MOST_TOKENS", 3)
    table, own = ReplicaTable(), Replicas()
    for name in ("a", "b"):
        for message in messages_of(name, Replica(name, None, [(0, [1]), (0, [2])]), None):
            table.take(message)
    assert own.inherit([table]) == 1  # there is no room for both
    own.begin(generation([1, 2], number=4))
    for token in range(3):
        own.add(4, [token])
    assert own._own == {}
    monkeypatch.setattr(replicas_module.time, "monotonic", lambda: own._left_until_s + 1.0)
    own.begin(generation([1, 2], number=5))
    own.add(5, [8])
    assert (own._left, own._tokens) == ({}, 1)


def test_a_pipeline_that_ends_leaves_its_requests_to_who_sends_them_again(path: Path) -> None:
    """The groups of the next pipeline have the same numbers: their tokens once went into the replicas of the last."""
    with Hosts(credentials=path, quorum=NAMES) as hosts:
        own = hosts.replicas
        hosts.reserve("127.0.0.1:1")
        own.begin(generation([1, 2], number=0))
        own.add(0, [5])
        hosts.release()
        hosts.reserve("127.0.0.1:1")
        own.add(0, [9])  # of a group without a replica
        own.end(0)
        again = generation([1, 2], number=1)
        own.resume(again)
        assert [int(token) for token in again.states[1].got] == [5]
        assert (own._own, own._left, own._groups, own._tokens) == ({}, {}, {}, 0)


def test_a_host_keeps_no_more_than_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_TOKENS", 3)
    table = ReplicaTable()
    table.take({"begun": "a", "key": "k", "seed": None})
    with pytest.raises(ValueError, match="1 requests with 4 tokens are to be kept, the limits are 1,024 and 3"):
        table.take({"more": "a", "steps": [[0, [1, 2, 3, 4]]]})


def test_long_replicas_are_sent_in_parts() -> None:
    replica = Replica("k", None, [(0, [token]) for token in range(40_000)])
    table = ReplicaTable()
    messages = list(messages_of("a", replica, None))
    assert len(messages) == 1 + 3
    for message in messages:
        table.take(message)
    assert table.replicas["a"].steps == replica.steps


def test_a_digest_has_all_that_a_text_depends_on_and_nothing_else() -> None:
    same = generation([1, 2], number=3)
    assert generation([1, 2], number=8).key == same.key
    assert generation([1, 2], seed=1).key == generation([1, 2], seed=2).key  # seeds that nobody has chosen
    others = [generation([1, 3]), generation([1, 2], steps=8), generation([1, 2], seed=1)]
    assert len({same.key, *(one.key for one in others)}) == 4
    assert key_of(same, seed=None, model={"dtype": "float32"}) != same.key
    assert key_of(same, seed=5, model={}) != same.key


def test_a_digest_tells_models_of_equal_vocabulary_apart() -> None:
    """It once had dtype and vocabulary alone: a text that one model had begun went on with another."""

    def key(plan: osp.Plan = PLAN, layers: str = "abcd") -> str | None:
        inner = plan.stages[0].stop - 1
        parts = ready(layer_hashes=tuple(layers[:inner])), ready(layer_hashes=tuple(layers[inner:]))
        return key_of(generation([1, 2]), seed=None, model=model_of(plan, parts))

    def changed(plan: osp.Plan = PLAN, **changes: Any) -> osp.Plan:
        return replace(plan, stages=(replace(plan.stages[0], **changes), *plan.stages[1:]))

    cut = osp.Plan.manual(cuts=[3], layers=PLAN.layers - 2)
    assert key(cut) == key(changed(codec="raw")) == key()
    quantised = changed(replace(PLAN, weight_models={"int8": "m"}), weights="int8")
    others = [replace(PLAN, codebook="ab"), changed(codec="int8"), changed(cut, codec="int8"), quantised]
    bf16 = changed(codec="lossless_bf16")
    assert len({key(), key(layers="abcX"), key(bf16), *map(key, others)}) == 7
    assert key(replace(bf16, dtype="bfloat16")) == key(replace(PLAN, dtype="bfloat16"))


def test_rows_are_resumed_as_the_new_plan_divides_them() -> None:
    def batch(*sizes: int) -> Generation:
        groups = [Group(id=k, rows=size, tokens=2, mask=None, max_new_tokens=9) for k, size in enumerate(sizes)]
        made = Generation([GroupState(group, torch.ones(group.rows, 2, dtype=torch.int64)) for group in groups])
        made.key = key_of(made, seed=None, model={})
        return made

    before, own, emitted = batch(2, 1), Replicas(), list[Any]()
    own.begin(before)
    for group, tokens in ((0, [1, 2]), (1, [3]), (0, [4, 5]), (1, [6]), (1, [7])):
        own.add(group, tokens)
    table = ReplicaTable()
    for message in own.changes({}):
        table.take(message)
    after, following = batch(1, 2), Replicas()
    after._on_tokens = emitted.append
    following.inherit([table])
    following.resume(after)
    assert [[row.tolist() for row in state.got] for state in after.states.values()] == [[[1], [4]], [[2, 3], [5, 6]]]
    assert [tokens.tolist() for tokens in emitted] == [[1, 2, 3], [4, 5, 6]]
