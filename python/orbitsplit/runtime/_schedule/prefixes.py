"""Caches of groups that have ended, kept for others whose prompts begin alike."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

# The shortest beginning that is worth a copy.
_SHORTEST = 16


class Prefixes:
    """The texts whose keys and values every stage has kept, the least recently used first.

    `forget(group)` is called for one that is kept no longer, and `has_tokens(group, tokens)` tells whether the caches
    of one still have what its first tokens need.
    """

    def __init__(self, forget: Callable[[int], None], has_tokens: Callable[[int, int], bool]) -> None:
        self._forget = forget
        self._has_tokens = has_tokens
        self._texts: OrderedDict[int, Tensor] = OrderedDict()
        self._in_use: Counter[int] = Counter()

    @property
    def tokens(self) -> int:
        """The tokens of all texts together."""
        return sum(map(len, self._texts.values()))

    def find(self, prompt: Tensor) -> tuple[int, int] | None:
        """Return the group that begins like a prompt [S] for longest, and for how many tokens; None if none does.

        At least one token of the prompt is left to be run.
        """
        best: tuple[int, int] | None = None
        for group, text in self._texts.items():
            most = min(len(text), len(prompt) - 1)
            same = int(torch.cat([text[:most] == prompt[:most], torch.zeros(1, dtype=torch.bool)]).int().argmin())
            if same < _SHORTEST or (best is not None and same <= best[1]) or not self._has_tokens(group, same):
                continue
            best = group, same
        return best

    def use(self, group: int) -> None:
        """Note that a group begins with another's caches, which must not be forgotten until `release`."""
        self._texts.move_to_end(group)
        self._in_use[group] += 1

    def release(self, group: int) -> None:
        """Note that one group has what it needs of another."""
        self._in_use[group] -= 1

    def add(self, group: int, text: Tensor) -> None:
        """Add a text [S] whose caches are kept from now on. Another with the same beginning is forgotten."""
        for other, known in list(self._texts.items()):
            if len(known) <= len(text) and not self._in_use[other] and torch.equal(known, text[: len(known)]):
                self._drop(other)
        self._texts[group] = text

    def shrink(self, most_tokens: int) -> None:
        """Forget the least recently used until the others have at most so many tokens, as far as none is in use."""
        for group in list(self._texts):
            if self.tokens <= most_tokens:
                return
            if not self._in_use[group]:
                self._drop(group)

    def _drop(self, group: int) -> None:
        del self._texts[group]
        self._in_use.pop(group, None)
        self._forget(group)
