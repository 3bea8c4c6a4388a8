"""A group in flight as the first stage knows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from orbitsplit.runtime._drafts import Guessing
from orbitsplit.runtime._messages.groups import Group


@dataclass(eq=False)
class Flight:
    """A message with further steps, of which tokens of `awaited` groups have not returned."""

    awaited: int


@dataclass(eq=False)
class Running:
    """A group in flight: `x` is its initial input, `got` the tokens since then, one [b] per step.

    `step` is the last one that was sent, 1 below the first step before that. `flight` is the message that it is in, if
    the group shares forwards and has no prompt left to run; None once its tokens have returned.
    """

    group: Group
    x: Any
    rows_running: Tensor
    step: int
    guessing: Guessing | None = None
    got: list[Tensor] = field(default_factory=list)
    corruptions: int = 0
    is_cancelled: bool = False
    flight: Flight | None = None

    @property
    def has_returned(self) -> bool:
        """Whether its prompt has come back from the last stage."""
        return bool(self.got)

    @property
    def is_awaited(self) -> bool:
        """Whether its prompt, or a step after it, is under way."""
        return self.step >= len(self.got)


def next_tokens(running: Running, *, most_guesses: int) -> Tensor:
    """Return the last token [b, 1] of each row, and behind it guesses of the next ones."""
    x = running.got[-1][:, None]
    if running.guessing is None:
        return x
    left = running.group.max_new_tokens - len(running.got) - 1
    guesses = running.guessing.start(most=max(0, min(left, most_guesses)))
    return torch.cat([x, torch.tensor([guesses], dtype=torch.int64)], dim=1)


def kept_steps(first_step: int, last_step: int) -> range:
    """Return the steps that may have to be sent again: those of the prompt, or the last one after it."""
    return range(last_step if last_step > 0 else first_step, last_step + 1)
