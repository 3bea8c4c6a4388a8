"""The hosts of a coordinator as `orbitsplit nodes` lists them: what they hold, and how their links were measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orbitsplit._errors import TransportError
from orbitsplit._io.validation import record_of
from orbitsplit.runtime._messages.hosts import PROTOCOL
from orbitsplit.runtime._messages.tls_channel import HANDSHAKE_S, Credentials, TlsChannel


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStatus:
    """A host that is there.

    Attributes:
        node: The node of plans that it is.
        address: Its address, as the coordinator sees it.
        cores: Its processors.
        memory_bytes: Its memory (0: unknown).
        start: The first layer of its stage, None if it has none.
        stop: The layer behind its stage.
        resident_bytes: Memory of the stage's process.
        slowdown: How many times longer than on the node of the profile its layers took when it joined, or as planned.
        note: Why a spare is left alone.
    """

    node: str
    address: str
    cores: int
    memory_bytes: int
    start: int | None = None
    stop: int | None = None
    resident_bytes: int = 0
    slowdown: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRate:
    """A link between hosts: as the network or the plan has it, and as an exchange has shown it; None: unknown."""

    source: str
    destination: str
    planned_bytes_per_s: float | None = None
    measured_bytes_per_s: float | None = None
    planned_latency_s: float | None = None
    measured_latency_s: float | None = None


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """The hosts of a coordinator in the order of their names, and the links that are planned on or were measured."""

    hosts: tuple[HostStatus, ...]
    links: tuple[LinkRate, ...] = ()

    @classmethod
    def of(cls, coordinator: str, *, credentials: str | Path) -> FleetStatus:
        """Ask the coordinator at "host:port", with the credentials that its hosts have.

        Raises:
            OSError: It is not reached, or the credentials cannot be read.
            TransportError: It has other credentials, is of another version, or does not answer.
            ValueError: The address has another form.
        """
        channel = TlsChannel.connect(coordinator, Credentials(credentials))
        try:
            channel.send({"nodes": PROTOCOL})
            answer = channel.receive(HANDSHAKE_S)
        finally:
            channel.release()
        if answer is None or "hosts" not in answer:
            reason = "it went away" if answer is None else answer.get("refused", "it answers something else")
            raise TransportError(f"the coordinator at {coordinator} lists no nodes: {reason}", kind="host")
        return cls.from_dict(answer)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data; `from_dict` takes it back."""
        return {"hosts": [asdict(host) for host in self.hosts], "links": [asdict(link) for link in self.links]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FleetStatus:
        """Make a status from what `to_dict` returned. Raises ValueError for what is none."""
        hosts = tuple(record_of(f"hosts[{k}]", one, HostStatus) for k, one in enumerate(data["hosts"]))
        return cls(hosts, tuple(record_of(f"links[{k}]", one, LinkRate) for k, one in enumerate(data["links"])))
