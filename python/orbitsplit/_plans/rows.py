"""Rows of micro-batches: into which numbers of them a plan may divide the sequences of a workload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from orbitsplit._io.validation import check_count, quoted
from orbitsplit._profiling.profile import ModelProfile
from orbitsplit._profiling.rows import has_rows, profile_of_rows
from orbitsplit._profiling.workload import Workload

from .weight_options import Weights

Rows = int | Literal["auto"] | None


def divisions_to_try(profiles: Sequence[ModelProfile], workload: Workload, rows: Rows) -> tuple[Workload, ...]:
    """Return the workload with its sequences in the numbers of rows of which a plan has the best, fewest rows first.

    None is the workload as it is. "auto" are all m micro-batches of ceil(sequences / m) rows that all profiles have
    times of. Where rows do not divide the sequences, the last micro-batch counts as if it were full.

    Raises:
        ValueError, TypeError: `rows` is neither None, "auto" nor a positive integer, or the profiles have no times of
            several rows.
    """
    if rows is None:
        return (workload,)
    sequences = workload.sequences
    if not isinstance(rows, str):
        check_count("rows", rows, 1)
        return (_divided(workload, min(rows, sequences)),)
    if rows != "auto":
        raise ValueError(f'rows is {quoted(rows)}, must be a number of rows, "auto" or None')
    for profile in profiles:
        if sequences > 1 and profile.is_measured and not profile.rows:
            raise ValueError(
                f'rows is "auto", and the profile of {profile.model} has no times of several rows: it was made by an '
                f"earlier version, or the model generates no tokens"
            )
    numbers = sorted({-(-sequences // micro_batches) for micro_batches in range(1, sequences + 1)})
    return tuple(_divided(workload, n) for n in numbers if all(has_rows(profile, n) for profile in profiles))


def _divided(workload: Workload, rows: int) -> Workload:
    return replace(workload, micro_batches=-(-workload.sequences // rows), batch_size=rows)


def with_rows(profile: ModelProfile, weights: Weights, rows: int) -> tuple[ModelProfile, Weights]:
    """Return the profiles of a model and of its other weights as they would be for so many rows in a micro-batch.

    Raises ValueError if one has no times of so many rows.
    """
    options = {name: replace(option, profile=profile_of_rows(option.profile, rows)) for name, option in weights.items()}
    return profile_of_rows(profile, rows), options
