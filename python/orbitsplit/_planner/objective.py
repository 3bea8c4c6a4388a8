"""The objectives of a search, as fields of an `Evaluation`."""

from __future__ import annotations

from orbitsplit._io.validation import check_string

from .problem import Evaluation

FIELDS = {
    "latency": "objective_s",
    "throughput": "bottleneck_s",
    "time_to_first_token": "prefill_s",
    "time_per_token": "token_step_s",
}
# Objectives of which the field is of a step, and the value of a token.
_BY_TOKEN = ("throughput", "time_per_token")


def check_objective(objective: str) -> None:
    """Raise TypeError for what is no string, ValueError unless there is such an objective."""
    check_string("objective", objective)
    if objective not in FIELDS:
        *most, last = FIELDS
        raise ValueError(f'objective is "{objective}"; valid are {", ".join(most)} and {last}')


def value_s(evaluation: Evaluation, objective: str) -> float:
    """Return the seconds that `solve` minimises for this objective. Raises ValueError for an unknown one."""
    check_objective(objective)
    seconds: float = getattr(evaluation, FIELDS[objective])
    return seconds / evaluation.tokens_per_step if objective in _BY_TOKEN else seconds
