"""What a search minimises, as a field of an `Evaluation`."""

from __future__ import annotations

from .problem import Evaluation

FIELDS = {
    "latency": "objective_s",
    "throughput": "bottleneck_s",
    "time_to_first_token": "prefill_s",
    "time_per_token": "token_step_s",
}


def value_s(evaluation: Evaluation, objective: str) -> float:
    """Return the seconds that `solve` minimises for this objective. Raises ValueError for an unknown one."""
    if objective not in FIELDS:
        raise ValueError(f"objective is {objective!r}, must be one of {', '.join(FIELDS)}")
    seconds: float = getattr(evaluation, FIELDS[objective])
    return seconds
