"""transformers' stopping criteria, applied to a batch after each of its steps, in the caller's process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# What transformers' StoppingCriteriaList is: whether each row of some ids [B, S] is done, given the scores so far.
Criteria = Callable[[Tensor, tuple[Tensor, ...] | None], Tensor]


class Stopping:
    """The rows of a batch as transformers' generate continues them: until its criteria hold, or a token ends them.

    They need the tokens alone, which are here: so any function can be one of them. The stages learn of the end by a
    cancellation, and what they generate meanwhile is dropped.
    """

    def __init__(
        self, criteria: Criteria, input_ids: Tensor, *, eos_token_ids: Sequence[int], pad_token_id: int
    ) -> None:
        self.input_ids = input_ids
        self._criteria = criteria
        self._eos = torch.tensor(eos_token_ids, dtype=torch.int64)
        self._pad = pad_token_id
        self._running = torch.ones(len(input_ids), dtype=torch.bool)
        self._new_tokens = torch.zeros(len(input_ids), dtype=torch.int64)

    @property
    def is_over(self) -> bool:
        """Whether every row has ended."""
        return not self._running.any()

    def has_ended(self, row: int, step: int) -> bool:
        """Whether a row had ended before a step."""
        return step >= int(self._new_tokens[row]) and not self._running[row]

    def add(self, tokens: Tensor, scores: tuple[Tensor, ...] | None) -> Tensor:
        """Add one token [B] to each row, to ended rows the pad token as transformers does; return what was added.

        `scores` [B, V] are those of all steps, None if nobody asked for them.
        """
        if len(self._eos):
            tokens = torch.where(self._running, tokens, self._pad)
        self._new_tokens += self._running
        self.input_ids = torch.cat([self.input_ids, tokens[:, None]], dim=1)
        ended = torch.isin(tokens, self._eos) | self._criteria(self.input_ids, scores)
        self._running = self._running & ~ended
        return tokens
