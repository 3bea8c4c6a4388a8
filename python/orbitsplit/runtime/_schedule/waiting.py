"""Groups that wait: which of them may start, given what is in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Generic, Protocol, TypeVar

from orbitsplit.runtime._messages.groups import Group
from orbitsplit.runtime._messages.limits import Limits


class HasGroup(Protocol):
    """Anything of a group."""

    @property
    def group(self) -> Group:
        """The group."""

    @property
    def has_returned(self) -> bool:
        """Whether its prompt has come back from the last stage."""


G = TypeVar("G", bound=HasGroup)


class WaitingLine(Generic[G]):
    """Groups in order of arrival. The first starts as soon as it may, and nothing overtakes it."""

    def __init__(self) -> None:
        self._line: deque[G] = deque()

    def append(self, one: G) -> None:
        """Add a group at the end."""
        self._line.append(one)

    def can_start(self, running: Collection[G], limits: Limits) -> bool:
        """Whether the first may start beside those that run."""
        if not self._line:
            return False
        group = self._line[0].group
        if len(running) >= (limits.most_sequences if group.is_packable else limits.most_groups):
            return False
        if limits.most_prompts is not None and sum(not one.has_returned for one in running) >= limits.most_prompts:
            return False
        if limits.cache_tokens is None or not running:
            return True
        return sum(cached_tokens(one.group) for one in running) + cached_tokens(group) <= limits.cache_tokens

    def first(self) -> G:
        """Return the first, which stays."""
        return self._line[0]

    def take(self) -> G:
        """Remove and return the first."""
        return self._line.popleft()

    def remove(self, group: int) -> bool:
        """Remove a group; return whether it was there."""
        found = next((one for one in self._line if one.group.id == group), None)
        if found is not None:
            self._line.remove(found)
        return found is not None


def cached_tokens(group: Group) -> int:
    """Return how many tokens' keys and values a group has in the end."""
    if not group.generates:
        return 0
    return group.rows * (group.encoder_tokens + group.tokens + group.max_new_tokens)
