"""Where tokens would differ from those of transformers' generate: refused or warned about, never in silence."""

from __future__ import annotations

import warnings

from torch import Tensor

from orbitsplit.runtime._messages.control import Ready
from orbitsplit.runtime._messages.groups import rows_of


def check_generation(model: Ready, mask: Tensor, *, max_new_tokens: int, micro_batches: int) -> None:
    """Check that transformers' generate would give the tokens that a pipeline does, for prompts of a mask [B, S].

    Warns where tokens depend on earlier texts. Raises `ValueError` for a text that grows beyond the tokens at which the
    model encodes positions differently.
    """
    if model.rope_change is None:
        return
    kind, limit, recomputes_cache = model.rope_change
    width = mask.shape[1]
    last = width + max_new_tokens - 1  # the last new token is not run through the model
    if kind == "dynamic":
        if last > limit:
            _warn(
                f"{width} tokens and {max_new_tokens} new ones are more than {limit}, beyond which the model's rotary "
                f"embedding (dynamic) depends on the texts before"
            )
        return
    if recomputes_cache and width <= limit < last:
        raise ValueError(
            f"{width} tokens and {max_new_tokens} new ones cross {limit} (original_max_position_embeddings), where the "
            f"rotary embedding (longrope) changes and the cache would be computed anew, which a pipeline does not do: "
            f"max_new_tokens may be {limit - width + 1}, or the prompt longer than {limit}"
        )
    _check_groups(mask, limit, max_new_tokens, micro_batches)


def _check_groups(mask: Tensor, limit: int, max_new_tokens: int, micro_batches: int) -> None:
    """Raise unless all groups of a batch pass the limit in the same step, as rows of one batch do."""
    lengths = (mask != 0).sum(dim=1)
    rows = len(lengths)
    longest = [int(lengths[part].max()) for part in rows_of(rows, min(micro_batches, rows))]
    shortest, most = min(longest), max(longest)
    # The steps in which the longest group is beyond the limit, and the shortest is not.
    first, last = max(0, limit - most + 1), min(max_new_tokens - 1, limit - shortest)
    if first <= last:
        raise ValueError(
            f"prompts of {shortest} and {most} tokens run in different micro-batches, and {limit} "
            f"(original_max_position_embeddings) is between them, where the rotary embedding (longrope) changes for a "
            f"whole batch: give prompts of one length, or plan with one micro-batch"
        )


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=4)
