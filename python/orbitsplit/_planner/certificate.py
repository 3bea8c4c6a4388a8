"""Certificates of plans: the proven bound, binding constraints, alternatives and relaxations.

Plain data with a text and a JSON form; `certificate` in `certify.py` makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from orbitsplit._io.units import format_seconds
from orbitsplit._io.validation import check_keys, list_of, mapping_of, records_of


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another plan for the same problem.

    Attributes:
        name: What distinguishes it, such as "without sat-1".
        total_s: Seconds of the objective; None if there is no such plan.
        breaks: The limits that it violates, or why there is none; empty if it violates no limit.
        is_proven: False if the search was stopped: `total_s` is then an upper bound.
    """

    name: str
    total_s: float | None
    breaks: str
    is_proven: bool = True


@dataclass(frozen=True, slots=True)
class Binding:
    """A binding constraint: if it is relaxed, the best plan is better.

    Attributes:
        constraint: Its name, such as "memory of sat-1".
        relaxed: How it was relaxed: "lifted" or "twice as fast". With weight levels and the memory of a node also what
            the lightest weight level there would save and lose.
        total_s: Seconds of the objective of the best plan after that.
        is_proven: False if the search was stopped: `total_s` is then an upper bound.
    """

    constraint: str
    relaxed: str
    total_s: float
    is_proven: bool


@dataclass(frozen=True, slots=True)
class Relaxation:
    """The smallest change of one kind that makes an infeasible problem feasible.

    Attributes:
        kind: "memory", "loss", "links", "pins" or "nodes".
        amount: Bytes more on every node, a loss budget, a number of links or nodes, or 1 for lifted pins; None if no
            amount is enough.
        text: The same in words.
    """

    kind: Literal["memory", "loss", "links", "pins", "nodes"]
    amount: float | None
    text: str


@dataclass(frozen=True, slots=True)
class Certificate:
    """How good a plan is, and which constraints keep it from being better.

    Attributes:
        status: As in a `Solution`.
        total_s: Seconds of the objective; None without a plan.
        lower_bound_s: No plan takes fewer seconds; None if infeasible.
        gap: (total - lower bound) / total; None without a plan.
        objective: As in `SolveOptions`; all seconds are of this objective.
        reason: Why the problem is infeasible, or which limit ended the search; None if optimal.
        binding: Binding constraints, the one with the largest effect first.
        slack: Names of the constraints whose relaxation does not improve the plan.
        alternatives: The best plans under a further restriction.
        relaxations: Of an infeasible problem, the smallest relaxation of each kind.
        unanswered: Names of constraints and alternatives that the limits of the search left undecided.
    """

    status: str
    total_s: float | None
    lower_bound_s: float | None
    gap: float | None
    objective: str = "latency"
    reason: str | None = None
    binding: tuple[Binding, ...] = ()
    slack: tuple[str, ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    relaxations: tuple[Relaxation, ...] = ()
    unanswered: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the certificate as JSON-ready data; `from_dict` takes it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Certificate:
        """Make a certificate from what `to_dict` returned. Raises ValueError or TypeError naming the key."""
        values = dict(mapping_of("certificate", data))
        check_keys("certificate", values, cls)
        for key, record in (("binding", Binding), ("alternatives", Alternative), ("relaxations", Relaxation)):
            values[key] = records_of(f"certificate.{key}", list_of(f"certificate.{key}", values.get(key, [])), record)
        for key in ("slack", "unanswered"):
            values[key] = tuple(list_of(f"certificate.{key}", values.get(key, [])))
        return cls(**values)

    def __str__(self) -> str:
        return "\n".join([self._headline(), *self._sections()])

    def _headline(self) -> str:
        if self.total_s is None or self.gap is None or self.lower_bound_s is None:
            return f"{self.status}: {self.reason}"
        objective = "" if self.objective == "latency" else f" of {self.objective.replace('_', ' ')}"
        bound = f"lower bound {format_seconds(self.lower_bound_s)} (gap {100 * self.gap:.2g} %)"
        return f"{self.status}: {format_seconds(self.total_s)}{objective}, {bound}"

    def _sections(self) -> list[str]:
        lines = []
        if self.binding:
            lines += ["binding constraints:", *_table([self._binding_row(binding) for binding in self.binding])]
        if self.slack:
            lines += ["slack constraints: " + ", ".join(self.slack)]
        if self.alternatives:
            lines += ["alternatives:", *_table([self._alternative_row(other) for other in self.alternatives])]
        if self.relaxations:
            lines += [
                "smallest relaxation of each kind:",
                *(f"  {relaxation.text}" for relaxation in self.relaxations),
            ]
        if self.unanswered:
            lines += ["not answered within the time limit: " + ", ".join(self.unanswered)]
        return lines

    def _binding_row(self, binding: Binding) -> tuple[str, ...]:
        note = binding.relaxed if binding.is_proven else f"{binding.relaxed}; upper bound"
        return (binding.constraint, format_seconds(binding.total_s), self._change(binding.total_s), note)

    def _alternative_row(self, other: Alternative) -> tuple[str, ...]:
        if other.total_s is None:
            return (other.name, "-", "", other.breaks)
        note = other.breaks if other.is_proven else "upper bound"
        return (other.name, format_seconds(other.total_s), self._change(other.total_s), note)

    def _change(self, total_s: float) -> str:
        if not self.total_s:
            return ""
        return f"{100 * (total_s / self.total_s - 1):+.1f} %"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
