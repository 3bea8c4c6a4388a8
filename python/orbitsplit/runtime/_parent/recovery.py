"""Recovery from losses: the nodes and links lost, the plan without them, and the report."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from orbitsplit._errors import TransportError
from orbitsplit._plans.plan import Plan
from orbitsplit._plans.successor import with_settings_of

# The kinds of errors that are losses, after which the others can resume; any other error would recur.
LOSS_KINDS = ("killed", "hangs", "memory", "link")
# Maps the plan that ran, and the nodes and links lost so far, to the plan that replaces it.
Replan = Callable[[Plan, Sequence[str], Sequence[tuple[str, str]]], Plan]


def _none(_nodes: Iterable[str]) -> list[str]:
    return []


@dataclass
class Losses:
    """The nodes and links that a pipeline has lost so far."""

    nodes: list[str] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)
    # Nodes that have come back and are not forgiven yet.
    returned: set[str] = field(default_factory=set)

    def add(self, error: TransportError) -> None:
        """Add the node or link that an error names."""
        if error.link is not None:
            self.links.append(error.link)
        elif error.node is not None:
            self.nodes.append(error.node)

    def forget(self, returned: Collection[str], errors: Iterable[TransportError]) -> None:
        """Forget the losses of nodes that have come back; of those lost in this recovery, by `errors`, in the next one.

        Else a host that comes back whenever its start has failed would be tried for ever.
        """
        lost_now = {error.node for error in errors}
        self.returned.update(returned)
        forgiven = {node for node in self.returned if node not in lost_now}
        self.returned -= forgiven
        self.nodes = [node for node in self.nodes if node not in forgiven]

    def plan_without(
        self, replan: Replan, before: Plan, error: TransportError, absent: Callable[[Iterable[str]], list[str]] = _none
    ) -> Plan:
        """Return the plan of `replan` without the losses, and nodes that are `absent`, of those that it is given.

        Raises TransportError if it uses a loss or an absent node.
        """
        found, away = replan(before, tuple(self.nodes), tuple(self.links)), list[str]()
        while more := [node for node in absent(stage.node for stage in found.stages) if node not in away]:
            away += more
            found = replan(before, (*self.nodes, *away), tuple(self.links))
        nodes = [stage.node for stage in found.stages]
        ring = {*pairwise(nodes), (nodes[-1], nodes[0])}
        if again := [*(set(nodes) & set(self.nodes)), *(ring & set(self.links))]:
            raise TransportError(f"{error}; the plan that replaces it uses what was lost: {again[0]}")
        if unusable := [node for node in nodes if node in away]:
            raise TransportError(f"{error}; the plan that replaces it uses a node that is not there: {unusable[0]}")
        return with_settings_of(found, before)


@dataclass(frozen=True, slots=True)
class Recovery:
    """One recovery of a pipeline: the loss, the plans before and after, and the seconds until work resumed.

    `loading_s` is the part of `seconds` in which the slowest stage read its weights, and started its process if that is
    new. `further` are losses after the first, before work resumed.
    """

    error: TransportError
    before: Plan
    after: Plan
    seconds: float
    loading_s: float
    further: tuple[TransportError, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the recovery as JSON-ready data."""
        return {
            **_described(self.error),
            "before": str(self.before),
            "after": str(self.after),
            "seconds": self.seconds,
            "loading_s": self.loading_s,
            "further": [_described(error) for error in self.further],
        }

    def __str__(self) -> str:
        causes = "; then ".join(str(error).splitlines()[0] for error in (self.error, *self.further))
        return f"{causes}; resumed after {self.seconds:.1f} s as {self.after}"


def _described(error: TransportError) -> dict[str, Any]:
    return {"kind": error.kind, "node": error.node, "link": error.link, "message": str(error).splitlines()[0]}
