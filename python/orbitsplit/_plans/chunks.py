"""Chunks of prompts: which lengths a plan may have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from orbitsplit._io.validation import check_count, quoted
from orbitsplit._profiling.profile import ModelProfile
from orbitsplit._profiling.workload import Workload

ChunkTokens = int | Literal["auto"] | None

# The objectives that chunks can improve: a token step has none, and all chunks of a prompt take longer than the whole.
_SOONER = ("latency", "time_to_first_token")


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
