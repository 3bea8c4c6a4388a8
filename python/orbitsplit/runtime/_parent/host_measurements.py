"""What a coordinator has its hosts measure: the short profile of one, and the links between two."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from orbitsplit._errors import TransportError
from orbitsplit._network.network import Network
from orbitsplit._plans.plan import Plan
from orbitsplit._plans.rebalance import MeasuredLink, MeasuredNode
from orbitsplit._profiling.profile import ModelProfile
from orbitsplit.runtime._messages.hosts import ShortProfile

from .joined_host import JoinedHost
from .log import LOG

# So many layers of the model are timed: enough for a median, few to load.
_TIMED_LAYERS = 4


def measure_node(host: JoinedHost, plan: Plan, profile: ModelProfile, model: str, slowdown: float) -> MeasuredNode:
    """Return the short profile of a host, timed as the profile was. Raises TransportError if it cannot be made.

    `slowdown` is emulated there, 1 where nothing is.
    """
    wanted = ShortProfile(
        model=model,
        start=1,
        stop=min(1 + _TIMED_LAYERS, len(profile.layers) - 1),
        prompt_tokens=profile.prompt_tokens,
        batch_size=profile.batch_size,
        dtype=plan.dtype,
        threads=profile.threads or plan.threads,
        slowdown=slowdown,
    )
    found = host.ask({"profile": asdict(wanted)})
    return MeasuredNode(wanted.start, tuple(found["prefill_s"]), tuple(found["decode_s"]), int(found["memory_bytes"]))


def measure_links(host: JoinedHost, others: Iterable[JoinedHost]) -> dict[tuple[str, str], MeasuredLink]:
    """Return what exchanges of a host with others show of the links in both directions; without those that fail."""
    links: dict[tuple[str, str], MeasuredLink] = {}
    for other in others:
        try:
            port = int(other.ask({"listen": True})["port"])
            found = host.ask({"link": f"{other.info.address}:{port}"})
        except TransportError as error:
            LOG.warning("the link between %s and %s is not measured: %s", host.info.node, other.info.node, error)
            continue
        latency_s = found["round_trip_s"] / 2
        links[host.info.node, other.info.node] = MeasuredLink(found["bytes_per_s"], latency_s)
        links[other.info.node, host.info.node] = MeasuredLink(found["back_bytes_per_s"], latency_s)
    return links


def below_emulated(links: dict[tuple[str, str], MeasuredLink], network: Network) -> dict[tuple[str, str], MeasuredLink]:
    """Return what messages have where the network's links are emulated on the measured ones: the slower of both."""
    emulated = {(link.source, link.destination): link for link in network.links}
    slower = dict(links)
    for ends, found in links.items():
        if (link := emulated.get(ends)) is not None:
            rate, latency_s = min(found.bytes_per_s, link.bytes_per_s), max(found.latency_s, link.latency_s)
            slower[ends] = MeasuredLink(rate, latency_s)
    return slower
