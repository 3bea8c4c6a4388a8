"""What is told of a loss that a pipeline survived."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orbitsplit._errors import TransportError
from orbitsplit._plans.plan import Plan


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
