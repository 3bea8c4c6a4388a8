"""Chunks of prompts: which lengths a plan may have, and the best of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from orbitsplit._io.validation import check_count, quoted
from orbitsplit._planner.problem import Problem
from orbitsplit._planner.solve import Solution, SolveOptions
from orbitsplit._planner.tied_weights import TiedBytes, solve_with_tied_weights
from orbitsplit._profiling.profile import ModelProfile
from orbitsplit._profiling.workload import Workload

ChunkTokens = int | Literal["auto"] | None

# The objectives that chunks can improve: a token step has none, and all chunks of a prompt take longer than the whole.
_SOONER = ("latency", "time_to_first_token")


@dataclass(frozen=True, slots=True)
class ChunkChoice:
    """The best plan over all lengths of chunks.

    `confirming` is the problem by which `evaluate` confirms the solution, whose bound and gap are those over all
    lengths. `found` has the seconds of the objective of the best plan for each length, the longest being the whole.
    """

    chunk_tokens: int | None
    problem: Problem
    confirming: Problem
    solution: Solution
    found: tuple[tuple[int, float], ...] = ()


def chunks_of(profile: ModelProfile, chunk_tokens: int | None) -> int:
    """Return the number of chunks of a prompt. Raises ValueError if the profile does not say what they take."""
    if chunk_tokens is None:
        return 1
    check_count("chunk_tokens", chunk_tokens, 1)
    if chunk_tokens >= profile.prompt_tokens:
        return 1
    if profile.is_measured and not profile.chunks:
        raise ValueError(
            f"chunk_tokens is {chunk_tokens}, and the profile of {profile.model} has no times of chunks: it was made "
            f"for prompts of less than 32 tokens or by an earlier version, or the model runs prompts only as a whole"
        )
    return -(-profile.prompt_tokens // chunk_tokens)


def lengths_to_try(
    profiles: Sequence[ModelProfile], workload: Workload, chunk_tokens: ChunkTokens, objective: str
) -> tuple[int | None, ...]:
    """Return the lengths of chunks of which a plan has the best; None is the prompt as a whole.

    "auto" are those that all profiles were measured with, and the whole. Chunks of one prompt are equally long.

    Raises:
        ValueError, TypeError: `chunk_tokens` is neither None, "auto" nor a positive integer.
    """
    if isinstance(chunk_tokens, str):
        if chunk_tokens != "auto":
            raise ValueError(f'chunk_tokens is {quoted(chunk_tokens)}, must be a number of tokens, "auto" or None')
        if objective not in _SOONER or not all(profile.chunks for profile in profiles):
            return (None,)
        counts = {chunks_of(profiles[0], chunk.tokens) for chunk in profiles[0].chunks}
        return (None, *(math.ceil(workload.prompt_tokens / count) for count in sorted(counts)))
    if chunk_tokens is None:
        return (None,)
    check_count("chunk_tokens", chunk_tokens, 1)
    return (chunk_tokens if chunk_tokens < workload.prompt_tokens else None,)


def solve_over_lengths(
    build: Callable[[int | None], Problem],
    lengths: Sequence[int | None],
    tied_bytes: TiedBytes,
    *,
    prompt_tokens: int,
    options: SolveOptions,
) -> ChunkChoice:
    """Return the plan of the smallest objective over all lengths of chunks; each search starts from the best plan.

    A time limit is that of all searches together. Limits of a plan do not depend on the length, so that a problem that
    is infeasible for one is so for all.
    """
    ends_s = None if options.time_limit_s is None else time.monotonic() + options.time_limit_s
    best: ChunkChoice | None = None
    found: list[tuple[int, float]] = []
    bounds: list[float] = []
    for number, length in enumerate(lengths):
        if ends_s is not None:
            left_s = max(0.0, ends_s - time.monotonic()) / (len(lengths) - number)
            options = replace(options, time_limit_s=left_s)
        problem = build(length)
        incumbent = () if best is None else best.solution.stages
        confirming, solution = solve_with_tied_weights(problem, tied_bytes, options=options, incumbent=incumbent)
        if solution.status == "infeasible":
            return ChunkChoice(length, problem, confirming, solution)
        bounds.append(solution.lower_bound_s or 0.0)
        if solution.objective_s is not None:
            found.append((length or prompt_tokens, solution.objective_s))
        if best is None or _is_sooner(solution, best.solution):
            best = ChunkChoice(length, problem, confirming, solution)
    assert best is not None, "there is a length to try"
    return replace(best, solution=_over_all(best.solution, min(bounds)), found=tuple(sorted(found)))


def _over_all(solution: Solution, bound_s: float) -> Solution:
    """Return the solution with the bound over all lengths, where that is lower than its own."""
    objective_s = solution.objective_s
    if objective_s is None or solution.lower_bound_s is None or bound_s >= solution.lower_bound_s:
        return solution
    return replace(solution, status="feasible", lower_bound_s=bound_s, gap=1 - bound_s / objective_s)


def _is_sooner(one: Solution, other: Solution) -> bool:
    return one.objective_s is not None and (other.objective_s is None or one.objective_s < other.objective_s)
