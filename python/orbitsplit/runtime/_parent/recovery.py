"""Losses of a pipeline: what is lost, the plan without it, and what is told of a loss that was survived."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from orbitsplit._errors import TransportError
from orbitsplit._plans.plan import Plan

# From the plan that ran, and the nodes and links lost so far, to the plan that goes on.
Replan = Callable[[Plan, Sequence[str], Sequence[tuple[str, str]]], Plan]


@dataclass
class Losses:
    """The nodes and links that a pipeline has lost so far."""

    nodes: list[str] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)

    def add(self, error: TransportError) -> None:
        """Add what an error says is lost."""
        if error.link is not None:
            self.links.append(error.link)
        elif error.node is not None:
            self.nodes.append(error.node)

    def plan_without(self, replan: Replan, before: Plan, error: TransportError) -> Plan:
        """Return the plan that `replan` finds without what is lost. Raises TransportError if it uses that again."""
        found = replan(before, tuple(self.nodes), tuple(self.links))
        nodes = [stage.node for stage in found.stages]
        ring = {*pairwise(nodes), (nodes[-1], nodes[0])}
        if again := [*(set(nodes) & set(self.nodes)), *(ring & set(self.links))]:
            raise TransportError(f"{error}; the plan found without it uses it again: {again[0]}")
        return replace(found, dtype=before.dtype, threads=before.threads)


@dataclass(frozen=True, slots=True)
class Recovery:
    """How a pipeline went on after a loss: why, from which plan to which, and the seconds until it could go on.

    `loading_s` of them the slowest stage spent on reading its weights, and starting a process where it was a new one.
    `further` are the losses before it could go on, after the first.
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
        return f"{causes}; went on after {self.seconds:.1f} s as {self.after}"


def _described(error: TransportError) -> dict[str, Any]:
    return {"kind": error.kind, "node": error.node, "link": error.link, "message": str(error).splitlines()[0]}
