"""Packs: steps of several groups in one message, which share a forward on each stage."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

# Packs have numbers from here on, groups below: both stand in the same field of headers.
FIRST_PACK = 1 << 63
_PART = struct.Struct("<QiI")


class Part(NamedTuple):
    """The share of a group in a pack: its next `tokens` tokens, which are the step `step` of it."""

    group: int
    step: int
    tokens: int


def pack_parts(parts: Iterable[Part]) -> bytes:
    """Return the description of a pack as bytes."""
    return b"".join(_PART.pack(*part) for part in parts)


def unpack_parts(data: bytes | memoryview) -> tuple[Part, ...]:
    """Return what `pack_parts` was given. Raises ValueError for other bytes."""
    if not data or len(data) % _PART.size:
        raise ValueError(f"{len(data)} bytes describe no pack, whose parts have {_PART.size} each")
    parts = tuple(Part(*values) for values in _PART.iter_unpack(data))
    if len({part.group for part in parts}) < len(parts) or not all(part.step > 0 < part.tokens for part in parts):
        raise ValueError("the parts of a pack are steps after the prompt, of different groups, with tokens")
    return parts


class OpenPacks:
    """The packs that may have to be sent again: those with a group that has neither a later step nor an end.

    `forget(number)` is called with every other.
    """

    def __init__(self, forget: Callable[[int], None]) -> None:
        self._forget = forget
        self._members: dict[int, set[int]] = {}
        self._pack_of: dict[int, int] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._members

    def has_latest(self, group: int) -> bool:
        """Whether the latest step of a group is in a pack."""
        return group in self._pack_of

    def groups(self, number: int) -> Sequence[int]:
        """Return the groups of a pack without a later step, in order."""
        return sorted(self._members[number])

    def add(self, number: int, groups: Iterable[int]) -> None:
        """Add a pack, which has a later step of each of its groups."""
        for group in groups:
            self.leave(group)
            self._pack_of[group] = number
            self._members.setdefault(number, set()).add(group)

    def leave(self, group: int) -> None:
        """Note that a group has a later step, or an end."""
        number = self._pack_of.pop(group, None)
        if number is None:
            return
        self._members[number].discard(group)
        if not self._members[number]:
            del self._members[number]
            self._forget(number)
