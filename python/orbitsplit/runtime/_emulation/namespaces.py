"""One Linux network namespace per node, so that real connections between nodes have the rates of links.

They emulate several machines on one: processes in different namespaces reach each other only through the network.

Each node has the interface `eth0` with its address, on a bridge that connects all nodes at full speed for traffic
without a link (rendezvous, heartbeats). Two nodes with a link are also connected by a pair of virtual interfaces, with
a token bucket filter (`tc tbf`) at the sending end of each direction, and traffic between their addresses is routed
there. Delay is not emulated here (netem is not in every kernel), but by the pipeline's delivery times. Everything is
inside the namespaces; the host's own network gets nothing but their names.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

from orbitsplit._errors import OrbitsplitError
from orbitsplit._network.network import Link, Network, Node

_MOST_NODES = 254 * 256
# The burst (with less than a few packets the rate is not reached) and the queue (with less, TCP loses packets).
_BURST_BYTES, _BURST_S = 8_000, 0.002
_QUEUE_BYTES, _QUEUE_S = 300_000, 0.05


class Namespaces:
    """The nodes of a network as network namespaces of this machine, for the duration of the `with` block. Needs root.

    `nodes` are the names of the nodes to create, all by default. When the block ends, for whatever reason, processes
    that still run in the namespaces are killed and the namespaces are deleted.

    Example:
        >>> with Namespaces(Network.load("network.toml")) as spaces:  # doctest: +SKIP
        ...     subprocess.run(spaces.command("sat-0", ["ping", "-c1", spaces.address("sat-1")]), check=True)

    Raises:
        ValueError: A node is not in the network, or is named twice.
        OrbitsplitError: This machine cannot create namespaces; the message quotes the command that failed.
    """

    def __init__(self, network: Network, nodes: Sequence[str] | None = None) -> None:
        names = [node.name for node in network.nodes] if nodes is None else list(nodes)
        for name in names:
            network.index(name)
            if names.count(name) > 1:
                raise ValueError(f"node {name!r} appears {names.count(name)} times, expected once")
        if len(names) > _MOST_NODES:
            raise ValueError(f"{len(names)} nodes, there are addresses for {_MOST_NODES}")
        self._links = [link for link in network.links if link.source in names and link.destination in names]
        self._index = {name: k for k, name in enumerate(names)}
        # The process and a random part, so that parallel runs, and threads of one, do not collide.
        self._prefix = f"orbitsplit-{os.getpid()}-{secrets.token_hex(3)}"
        self._bridge = f"{self._prefix}-bridge"

    def __enter__(self) -> Namespaces:
        try:
            self._create()
        except BaseException:
            self._delete()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._delete()

    def namespace(self, node: str) -> str:
        """Return the name of the node's namespace. Raises ValueError for an unknown node."""
        return f"{self._prefix}-{self._position(node)}"

    def address(self, node: str) -> str:
        """Return the node's IPv4 address. Raises ValueError for an unknown node."""
        high, low = divmod(self._position(node), 254)
        return f"10.77.{high}.{low + 1}"

    def interface(self, node: str) -> str:
        """Return the name that the interface of a link to the node has at its other end. Raises as `address`."""
        return f"to-{self._position(node)}"

    def command(self, node: str, arguments: Sequence[str]) -> list[str]:
        """Return the command that runs `arguments` on the node, with Gloo on the node's interface.

        Raises:
            ValueError: There is no such node.
        """
        return ["ip", "netns", "exec", self.namespace(node), "env", "GLOO_SOCKET_IFNAME=eth0", *arguments]

    def _position(self, node: str) -> int:
        if node not in self._index:
            raise ValueError(f"no node {node!r}; the nodes are {', '.join(self._index)}")
        return self._index[node]

    def _create(self) -> None:
        _run(f"ip netns add {self._bridge}")
        _run(f"ip -n {self._bridge} link add bridge0 type bridge")
        _run(f"ip -n {self._bridge} link set bridge0 up")
        for node, k in self._index.items():
            space = self.namespace(node)
            _run(f"ip netns add {space}")
            _run(f"ip -n {space} link set lo up")
            _run(f"ip link add eth0 netns {space} type veth peer name port{k} netns {self._bridge}")
            _run(f"ip -n {self._bridge} link set port{k} master bridge0 up")
            _run(f"ip -n {space} address add {self.address(node)}/16 dev eth0")
            _run(f"ip -n {space} link set eth0 up")
        for one, other in {tuple(sorted((link.source, link.destination))) for link in self._links}:
            self._join(one, other)
        for link in self._links:
            self._limit(link.source, link.destination, link.bytes_per_s)

    def _join(self, one: str, other: str) -> None:
        # Routes in both directions even for a link in one: a kernel that checks reverse paths drops packets otherwise.
        near, far = self.namespace(one), self.namespace(other)
        names = {one: self.interface(other), other: self.interface(one)}
        _run(f"ip link add {names[one]} netns {near} type veth peer name {names[other]} netns {far}")
        for node in (one, other):
            _run(f"ip -n {self.namespace(node)} link set {names[node]} up")
        for node, peer in ((one, other), (other, one)):
            route = f"{self.address(peer)}/32 dev {names[node]} src {self.address(node)}"
            _run(f"ip -n {self.namespace(node)} route add {route}")

    def _limit(self, source: str, destination: str, bytes_per_s: float) -> None:
        burst = max(_BURST_BYTES, round(_BURST_S * bytes_per_s))
        queue = max(_QUEUE_BYTES, round(_QUEUE_S * bytes_per_s))
        limit = f"tbf rate {round(8 * bytes_per_s)}bit burst {burst}b limit {queue}b"
        _run(f"tc -n {self.namespace(source)} qdisc add dev {self.interface(destination)} root {limit}")

    def _delete(self) -> None:
        spaces = [self._bridge, *(self.namespace(node) for node in self._index)]
        for space in spaces:
            with suppress(OrbitsplitError):  # it was not created yet
                for process in _run(f"ip netns pids {space}").split():
                    with suppress(ProcessLookupError):
                        os.kill(int(process), signal.SIGKILL)
        # One command, which Ctrl-C does not interrupt, so that a second Ctrl-C leaves nothing behind.
        lines = "".join(f"netns delete {space}\n" for space in spaces)
        with suppress(FileNotFoundError):
            _start(["ip", "-force", "-batch", "-"]).communicate(lines)


def why_unavailable() -> str | None:
    """Return why this machine cannot create namespaces with limited links, None if it can (which is tried)."""
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            return f"the program {program} is not installed (package iproute2)"
    if os.geteuid() != 0:
        return f"creating network namespaces needs root, this is user {os.geteuid()}"
    nodes = tuple(Node(name, 1, slowdown=1.0) for name in ("a", "b"))
    try:
        with Namespaces(Network("trial", nodes, (Link("a", "b", 1e6),))):
            return None
    except OrbitsplitError as error:
        return str(error)


def is_available() -> bool:
    """Return whether namespaces work here; `why_unavailable` returns the reason."""
    return why_unavailable() is None


def _run(command: str) -> str:
    """Run a command and return its output. Raises OrbitsplitError with its error message."""
    try:
        process = _start(shlex.split(command))
    except FileNotFoundError as error:
        raise OrbitsplitError(f"{command!r} failed: {error.filename} is not installed (package iproute2)") from None
    output, complaint = process.communicate()
    if process.returncode:
        raise OrbitsplitError(f"{command!r} failed: {complaint.strip()}")
    return output


def _start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(arguments, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
