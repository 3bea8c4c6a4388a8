"""Which of several coordinators works: the one with a majority of the hosts, for a term of its own.

All coordinators have the same voters: the nodes that may have a host. Four rules keep two of them from working at
once:

- A host serves one coordinator at a time, and ends the processes of the one before it joins another.
- A coordinator begins with a majority of the voters: more than half, or half of them with the first. Two majorities
  have a host in common, and that serves only one.
- A coordinator that has lost its majority ends. It notices the silence of a host before that gives it up.
- A host that has just started counts for none that does not work yet, before the others have no host of its name or
  must have noticed the silence of an earlier one (`_node.predecessor`): terms are in the memory of hosts alone.

A term is the number of one coordinator's work, greater than all that its hosts have known (as in Raft). Hosts follow no
coordinator of an older term than they have known, and a coordinator that learns of a newer one ends.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from orbitsplit._io.validation import listed

# A host gives its coordinator up after a silence that is so much longer than the one after which that gives it up.
PATIENCE = 1.25


class Election:
    """One coordinator's part. `term` is 0 until it works, `failure` says why it must work no more, None before that.

    Raises TypeError for a string, ValueError without voters, or for one that is named twice.
    """

    def __init__(self, voters: Iterable[str]) -> None:
        if isinstance(voters, str):
            raise TypeError("quorum is a string, must be the names of nodes")
        self.voters = tuple(voters)
        if not self.voters:
            raise ValueError("quorum names no nodes, there must be one at least")
        if twice := [name for name in self.voters if self.voters.count(name) > 1]:
            raise ValueError(f"quorum names {twice[0]!r} {len(twice)} times, each must be there once")
        self.term = 0
        self._newest = 0
        self.failure: str | None = None

    def has_majority(self, nodes: Iterable[str]) -> bool:
        """Return whether these nodes are a majority of the voters; there is none in the others then."""
        held = set(self.voters).intersection(nodes)
        return 2 * len(held) > len(self.voters) or (2 * len(held) == len(self.voters) and self.voters[0] in held)

    def note(self, term: int) -> None:
        """Take note of the newest term that a host has known, also of one that does not stay."""
        self._newest = max(self._newest, term)

    def update(self, nodes: Collection[str]) -> bool:
        """Take note of the nodes whose hosts are there, and return whether a term has begun with it."""
        if self.failure is not None:
            return False
        if not self.term:
            if self.has_majority(nodes):
                self.term = self._newest + 1
            return self.term > 0
        if self._newest > self.term:
            self.failure = f"another coordinator has taken over: it has term {self._newest}, this one {self.term}"
        elif not self.has_majority(nodes):
            held = [name for name in self.voters if name in nodes]
            self.failure = (
                f"this coordinator has lost the majority: {len(held)} of {len(self.voters)} hosts are with it"
                f"{f' ({listed(held)})' if held else ''}, and another one may take over"
            )
        return False
