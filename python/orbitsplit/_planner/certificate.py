"""What is known of a plan beside its stages: how good it is proven to be, what binds, what else there is.

Plain data with a text and a JSON form; `certificate` in `_certifying` makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from orbitsplit._io.units import format_seconds
from orbitsplit._io.validation import check_keys, list_of, mapping_of, records_of


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another way to run the model: the seconds it would take, and which limits it breaks (empty: none).

    `total_s` is None where there is no such plan at all; `breaks` then says why. Where `is_proven` is false the search
    for the plan was stopped: it may take less.
    """

    name: str
    total_s: float | None
    breaks: str
    is_proven: bool = True


@dataclass(frozen=True, slots=True)
class Binding:
    """A constraint without which the best plan would be better.

    `constraint` names it, `relaxed` says what was granted ("lifted", "twice as fast"), `total_s` what the best plan
    would then take. Where `is_proven` is false the search for that plan was stopped: it may take less.
    """

    constraint: str
    relaxed: str
    total_s: float
    is_proven: bool


@dataclass(frozen=True, slots=True)
class Relaxation:
    """The least change of one kind that makes an infeasible problem feasible; `amount` None: none does.

    The amount is in bytes of memory, in the unit of the loss, or a number of links or nodes; `text` says it in words.
    """

    kind: Literal["memory", "loss", "links", "pins", "nodes"]
    amount: float | None
    text: str


@dataclass(frozen=True, slots=True)
class Certificate:
    """How good a plan is, and why it is no better.

    `binding` has the constraints that cost something, dearest first; `slack` names those that cost nothing.
    `alternatives` are the best plans under a further restriction. All seconds are those of the `objective`. An
    infeasible problem has `relaxations` instead. `unanswered` lists what the time limit left open.
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
        """Make a certificate from what `to_dict` returned. Raises ValueError naming the key."""
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
