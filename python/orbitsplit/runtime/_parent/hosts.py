"""The coordinator's end of hosts: they join with the credentials, start and end processes, and reach the control store.

A host has one channel for commands and reports, and one for each connection of its workers to the control store, which
itself listens on the loopback interface of the coordinator alone.

    from the host   join, store; then alive, started, ended, answer
    to the host     welcome or refused; then alive, start, kill, ask, leave

Whoever has the credentials may also ask for the nodes that are there, in a channel of its own.
Where there are several coordinators (`election`), both ends also send replicas of requests (`_messages/replicas`).
"""

from __future__ import annotations

import itertools
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from orbitsplit._errors import TransportError
from orbitsplit._io.validation import listed, quoted
from orbitsplit.runtime._messages.hosts import PROTOCOL, TICK_S, clock_id
from orbitsplit.runtime._messages.tls_channel import Credentials, TlsChannel, host_and_port

from .arguments import number as checked_number
from .authenticated_listener import AuthenticatedListener
from .election import PATIENCE, Election
from .fleet_status import FleetStatus, HostStatus
from .joined_host import HostInfo, JoinedHost
from .launcher import Loss
from .replicas import Replicas

# Not that of `log`, which imports torch: this is imported by the command line.
LOG = logging.getLogger("orbitsplit.runtime")

_POLL_S = 0.05
# Between two messages with what is new of requests.
_INFORM_S = 0.1

# What a pipeline knows of the hosts that are there.
Describe = Callable[[Sequence[HostInfo]], FleetStatus]


class Hosts:
    """The hosts of a coordinator: each has joined by `orbitsplit node` and runs the stages of the node it is named for.

    They are accepted at `address`, "host:port" (port 0: the system chooses one), from the moment this object is made
    until `close` or the end of a `with` block. `credentials` is the file that every host has as well, made by
    `orbitsplit credentials`. A host that has not been heard of for `silence_s` seconds, at least 1, is lost. One
    pipeline at a time runs on them.

    With a `quorum`, the names of all nodes that may have a host, this is one of several coordinators, all of which are
    known to hosts (`orbitsplit node --coordinator HOST:PORT,HOST:PORT`). It works once more than half of these hosts
    are with it (or half, with the first of them), and ends when they are not any more. Hosts then keep replicas of the
    requests in flight: tokens and seeds, no prompts. A request that is sent again to the next coordinator is resumed.

    Example:
        >>> with Hosts("10.0.0.1:29400", credentials="fleet.pem") as hosts:           # doctest: +SKIP
        ...     with Pipeline(plan, "path-or-hub-id", hosts=hosts) as pipe:
        ...         tokens = pipe.generate(input_ids, max_new_tokens=64)

    Raises TypeError or ValueError for a wrong argument, OSError if the address cannot be listened on.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:0",
        *,
        credentials: str | Path,
        silence_s: float = 8.0,
        quorum: Iterable[str] | None = None,
    ) -> None:
        # Below, a host is lost between two times at which it says that it is there.
        self._silence_s = checked_number("silence_s", silence_s, least=2 * TICK_S)
        loaded = Credentials(credentials)
        self._election = None if quorum is None else Election(quorum)
        self._works, self._has_changed = threading.Event(), threading.Event()
        self.replicas = Replicas()
        self._lock = threading.Lock()
        self._hosts: dict[str, JoinedHost] = {}
        # Nodes that have had a host, or that were missed by who needed one: the next host of them has come back.
        self._known: set[str] = set()
        self._returned: set[str] = set()
        self._store_address: str | None = None
        self._describe: Describe = _as_joined
        self._is_closed = False
        self._listener = AuthenticatedListener(address, loaded, self._serve)
        self._listener.start()
        for work in (self._watch, *(() if self._election is None else (self._elect_on_changes,))):
            threading.Thread(target=work, name="hosts", daemon=True).start()

    @property
    def address(self) -> str:
        """Where hosts are accepted, "host:port"."""
        return self._listener.address

    @property
    def nodes(self) -> tuple[HostInfo, ...]:
        """The hosts that are there, in the order of their names."""
        with self._lock:
            return tuple(self._hosts[name].info for name in sorted(self._hosts))

    def status(self) -> FleetStatus:
        """Return who is there, what they hold, and what is known of their links, as `orbitsplit nodes` prints it."""
        return self._describe(self.nodes)

    def wait_for(
        self, nodes: Iterable[str], timeout_s: float | None = None, *, on_poll: Callable[[], None] = lambda: None
    ) -> None:
        """Wait until the hosts of these nodes have joined. Raises TransportError that names those that have not."""
        wanted, deadline_s = list(nodes), None if timeout_s is None else time.monotonic() + timeout_s
        while absent := self.absent(wanted):
            on_poll()
            if deadline_s is not None and time.monotonic() > deadline_s:
                raise TransportError(
                    f"no host has joined as {listed(absent)} within {timeout_s:g} s, at {self.address}",
                    kind="host",
                    node=absent[0],
                )
            time.sleep(_POLL_S)

    @property
    def term(self) -> int | None:
        """The number of this coordinator's work among that of several; 0 before it works, None without a quorum."""
        return None if self._election is None else self._election.term

    def wait_for_majority(self, timeout_s: float | None = None, *, on_poll: Callable[[], None] = lambda: None) -> None:
        """Wait until a majority of the hosts of the quorum have joined, so that this coordinator works.

        Raises TransportError after `timeout_s` seconds, or where another coordinator works.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while self._election is not None and not self._works.is_set():
            on_poll()
            if deadline_s is not None and time.monotonic() > deadline_s:
                raise TransportError(f"no majority has joined within {timeout_s:g} s, at {self.address}", kind="host")
            time.sleep(_POLL_S)
        self.check()

    def close(self) -> None:
        """Tell all hosts that the work is over, and accept none any more. May be called twice."""
        with self._lock:
            self._is_closed = True
            hosts = list(self._hosts.values())
        self._listener.close()
        for host in hosts:
            with suppress(OSError):
                host.channel.send({"leave": True})
            host.drop(Loss("killed", "the coordinator has ended"))

    def __enter__(self) -> Hosts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # The methods below are for the pipeline.

    def check(self) -> None:
        """Raise TransportError of kind "host" where this coordinator must work no more."""
        if self._election is not None and self._election.failure is not None:
            raise TransportError(self._election.failure, kind="host")

    def absent(self, nodes: Iterable[str]) -> list[str]:
        """Return the nodes whose hosts are not there."""
        with self._lock:
            return [node for node in nodes if node not in self._hosts]

    def joined(self) -> dict[str, JoinedHost]:
        """Return the hosts that are there, by node; one that has joined again is another one."""
        with self._lock:
            return dict(self._hosts)

    def describe_by(self, describe: Describe) -> None:
        """Let a pipeline describe the hosts, until it ends."""
        self._describe = describe

    def without_our_clock(self, nodes: Iterable[str]) -> list[str]:
        """Return the nodes whose hosts have not this machine's clock, which emulated links need."""
        with self._lock:
            return [node for node in nodes if node in self._hosts and self._hosts[node].clock != clock_id()]

    def reserve(self, store_address: str) -> None:
        """Take note of a pipeline with the control store at an address of this machine, which runs on these hosts.

        Raises TransportError of kind "host" while another pipeline runs on these hosts.
        """
        with self._lock:
            if self._store_address is not None:
                raise TransportError(
                    f"another pipeline runs on the hosts of {self.address}: close it first, one at a time runs on them",
                    kind="host",
                )
            self._store_address = store_address
            self._returned.clear()  # before this pipeline

    def release(self) -> None:
        """Take note that the pipeline of the last `reserve` has ended."""
        self.replicas.outlive()
        self._store_address = None
        self._describe = _as_joined

    def host(self, node: str) -> JoinedHost:
        """Return the host of a node. Raises TransportError if it is not there."""
        with self._lock:
            found = self._hosts.get(node)
            self._known.add(node)
        if found is None:
            raise TransportError(f'node "{node}" has no host: none has joined, or it is lost', kind="killed", node=node)
        return found

    def take_returned(self) -> set[str]:
        """Return the nodes whose hosts have come back since the last call."""
        with self._lock:
            returned, self._returned = self._returned, set()
        return returned

    def _serve(self, channel: TlsChannel, peer: str, first: dict[str, Any]) -> None:
        """Serve a connection that has the credentials, as its first message asks."""
        if "store" in first:
            self._pass_to_store(channel, str(first["store"]))
        elif "nodes" in first:
            channel.send(self.status().to_dict() if first["nodes"] == PROTOCOL else {"refused": _other(first["nodes"])})
        else:
            self._join(channel, peer, first)

    def _pass_to_store(self, channel: TlsChannel, node: str) -> None:
        """Pass on what a process of a node and the store say, until an end closes or the node's host is lost."""
        address = self._store_address
        if address is not None and self.host(node).adopt(channel):
            channel.pass_through(socket.create_connection(host_and_port(address)))

    def _join(self, channel: TlsChannel, peer: str, first: dict[str, Any]) -> None:
        """Accept a host, and read its reports until it is lost."""
        spoken = first.get("protocol")
        if spoken != PROTOCOL:  # first of all, as the rest may be another in another version
            _refuse(channel, peer, first.get("join"), _other(spoken), is_final=True)
            return
        host = JoinedHost(channel, peer, first, self._has_changed.set)
        if (refusal := self._admit(host)) is not None:
            _refuse(channel, peer, host.info.node, refusal, is_final=False)
            return
        LOG.info("host %s joins as node %s", peer, quoted(host.info.node))
        threading.Thread(target=self._keep_informed, args=(host,), name="informed", daemon=True).start()
        try:
            host.read_reports()
            host.drop(Loss("killed", "the connection to its host has ended"))
        finally:
            host.drop(Loss("killed", "its host broke the protocol"))
            with self._lock:
                if self._hosts.get(host.info.node) is host:
                    del self._hosts[host.info.node]
            level = logging.INFO if self._is_closed else logging.WARNING
            LOG.log(level, "host %s, node %s, has left: %s", peer, quoted(host.info.node), host.reason)

    def _admit(self, host: JoinedHost) -> str | None:
        """Welcome a host; or return why it is refused for now."""
        node = host.info.node
        with self._lock:
            if self._is_closed:
                return "the coordinator is ending"
            if node in self._hosts:
                return f"node {quoted(node)} has a host, {self._hosts[node].info.address}"
            # First of all that it is sent: other threads see it when it is in the table.
            patience = 1.0 if self._election is None else PATIENCE
            host.channel.send({"welcome": PROTOCOL, "silence_s": patience * self._silence_s, **self._term_now()})
            self._hosts[node] = host
            if self._election is not None:
                self._election.note(host.term)
            if node in self._known:
                self._returned.add(node)
            self._known.add(node)
        return None

    def _watch(self) -> None:
        """Drop hosts that say nothing."""
        while not self._is_closed:
            time.sleep(TICK_S)
            with self._lock:
                hosts = list(self._hosts.values())
            for host in hosts:
                if host.silence.tick() > self._silence_s:
                    host.drop(Loss("hangs", f"nothing was heard of its host for {self._silence_s:g} s"))

    def _elect_on_changes(self) -> None:
        """See whether this coordinator works, whenever hosts come and go."""
        assert self._election is not None
        while not self._is_closed:
            self._has_changed.wait(TICK_S)
            self._has_changed.clear()
            self._elect(self._election)

    def _elect(self, election: Election) -> None:
        """See whether this coordinator works, with the hosts that are there."""
        with self._lock:
            hosts = {name: host for name, host in self._hosts.items() if host.returned.is_complete}
            has_begun = election.update(hosts)
            told = list(self._hosts.values()) if has_begun else []
        if not has_begun:
            if self._works.is_set():  # what they have returned since is of no use any more
                for host in hosts.values():
                    host.returned.clear()
            return
        # Before a host gets anything to do, so that none can do it for an older coordinator afterwards.
        for host in told:
            with suppress(OSError):
                host.channel.send({"alive": True, "term": election.term})
        count = self.replicas.inherit(host.returned for host in hosts.values())
        LOG.info(
            "this coordinator works, in term %d, with hosts %s: %d requests can be resumed",
            election.term,
            listed(hosts),
            count,
        )
        for host in hosts.values():
            host.returned.clear()
        self._works.set()

    def _term_now(self) -> dict[str, int]:
        """Return what hosts are told of this coordinator's term; one that is alone has none."""
        return {} if self.term is None else {"term": self.term}

    def _keep_informed(self, host: JoinedHost) -> None:
        """Tell a host that this end is alive, and what is new of the requests in flight.

        A thread for each host, since sending blocks where the network is cut.
        """
        known: dict[str, int] | None = None
        interval_s = TICK_S if self._election is None else _INFORM_S
        with suppress(OSError):  # the channel has ended
            for turn in itertools.count():
                if host.is_lost:
                    return
                if turn % round(TICK_S / interval_s) == 0:
                    host.channel.send({"alive": True, **self._term_now()})
                if self.term and known is None:
                    host.channel.send({"reset": self.term})
                    known = {}
                for message in () if known is None else self.replicas.changes(known):
                    host.channel.send(message)
                time.sleep(interval_s)


def _other(spoken: object) -> str:
    return f"it speaks protocol {spoken!r}, this coordinator {PROTOCOL}: use one version"


def _as_joined(hosts: Sequence[HostInfo]) -> FleetStatus:
    """Describe hosts on which no pipeline runs."""
    return FleetStatus(tuple(HostStatus(**asdict(host), note="no plan runs") for host in hosts))


def _refuse(channel: TlsChannel, peer: str, node: Any, reason: str, *, is_final: bool) -> None:
    LOG.warning("host %s is refused as node %s: %s", peer, quoted(str(node)), reason)
    channel.send({"refused": reason, "is_final": is_final})
