"""Tokens guessed ahead: how many guesses a plan may send with each token, and how many tokens come of a lap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from orbitsplit._io.validation import check_count, quoted
from orbitsplit._profiling.profile import ModelProfile
from orbitsplit._profiling.rows import has_rows
from orbitsplit._profiling.workload import Workload

DraftTokens = int | Literal["auto"] | None

# More guesses than this are never tried: the last of them is right too seldom.
_MOST_TRIED = 15
# The objectives that guesses can improve: the first token comes out of the prefill, without any.
_SOONER = ("latency", "throughput", "time_per_token")


def tokens_per_lap(acceptance: float, draft_tokens: int) -> float:
    """Return how many tokens a lap with so many guesses gives on average, each of them right with this probability.

    A guess counts only if those before it are right: 1 + p + ... + p^k = (1 - p^(k+1)) / (1 - p).
    """
    if acceptance == 1:
        return 1.0 + draft_tokens
    return (1 - acceptance ** (draft_tokens + 1)) / (1 - acceptance)


def drafts_to_try(
    profiles: Sequence[ModelProfile], workload: Workload, draft_tokens: DraftTokens, objective: str
) -> tuple[int | None, ...]:
    """Return the numbers of guesses of which a plan has the best; None is none.

    A lap with k guesses computes as a step of 1 + k rows does. "auto" are all k that all profiles have times of, up to
    15, if micro-batches have one row and a guess may be right.

    Raises:
        ValueError, TypeError: `draft_tokens` is neither None, "auto" nor a positive integer, or micro-batches have
            several rows, or no guess is right.
    """
    if draft_tokens is None:
        return (None,)
    if isinstance(draft_tokens, str):
        if draft_tokens != "auto":
            raise ValueError(f'draft_tokens is {quoted(draft_tokens)}, must be a number of guesses, "auto" or None')
        if workload.batch_size > 1 or workload.acceptance == 0 or workload.new_tokens < 2 or objective not in _SOONER:
            return (None,)
        known = [k for k in range(1, _MOST_TRIED + 1) if all(has_rows(profile, 1 + k) for profile in profiles)]
        return (None, *known)
    check_count("draft_tokens", draft_tokens, 1)
    check_draft_rows(draft_tokens, workload)
    if workload.acceptance == 0:
        raise ValueError(
            f"draft_tokens is {draft_tokens}, and the acceptance of the workload is 0: no guess would be right"
        )
    return (draft_tokens,)


def check_steps(profile: ModelProfile, workload: Workload, draft_tokens: object) -> None:
    """Raise ValueError for steps that a model with an encoder does not take: of guesses, or shared by requests."""
    if profile.encoder_layers is None:
        return
    if workload.arrivals_per_s is not None:
        raise ValueError(
            f"the workload has arrivals_per_s {workload.arrivals_per_s:g}, and requests of {profile.model}, which has "
            f"an encoder, do not share forwards: plan for a batch"
        )
    if workload.acceptance or isinstance(draft_tokens, int):
        raise ValueError(
            f"{profile.model} has an encoder, and its tokens are generated one at a time: plan with acceptance 0 and "
            f"without draft_tokens"
        )


def check_draft_rows(draft_tokens: int, workload: Workload) -> None:
    """Raise ValueError unless micro-batches have one row: guesses of several rows would be right at different times."""
    if workload.batch_size > 1:
        raise ValueError(
            f"draft_tokens is {draft_tokens}, and micro-batches have {workload.batch_size} rows, must have one"
        )
