"""Replicas of requests in flight, which hosts keep for a coordinator and return to the next one.

    to the host     reset, then begun, more and forget at any time
    from the host   begun and more for what it has, then replicas: only then it counts as one that is there

A replica has no prompt: who sent the request sends it again, and its digest (`key`) finds the tokens so far.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

# Of all requests together. A request beyond is not replicated: where the coordinator is lost, it is computed again.
MOST_REQUESTS = 1024
MOST_TOKENS = 1 << 19
# In a message, of at most 1 MiB.
_TOKENS_AT_ONCE = 1 << 14

Step = tuple[int, list[int]]


@dataclass
class Replica:
    """A request in flight: the digest of all that its text depends on, its seed, and its tokens in the order they came.

    An entry of `steps` is the first of some rows, and the new token of each of them.
    """

    key: str
    seed: int | None
    steps: list[Step] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """The number of tokens."""
        return sum(len(tokens) for _, tokens in self.steps)

    def rows(self, count: int) -> list[list[int]]:
        """Return the tokens of each of `count` rows."""
        rows: list[list[int]] = [[] for _ in range(count)]
        for first, tokens in self.steps:
            for row, token in enumerate(tokens, start=first):
                rows[row].append(token)
        return rows


class ReplicaTable:
    """The replicas of one coordinator's requests, by their ids, as a host keeps and returns them.

    `term` is that coordinator's. `is_complete` once a host has returned all.
    """

    def __init__(self) -> None:
        self.term = 0
        self.is_complete = False
        self.replicas: dict[str, Replica] = {}
        self._tokens = 0

    def take(self, message: Mapping[str, Any]) -> bool:
        """Take a message, if it is about replicas, and return whether.

        Raises KeyError, TypeError or ValueError for what no coordinator or host sends, as more than the limits.
        """
        if "begun" in message:
            seed = message["seed"]
            self.replicas[str(message["begun"])] = Replica(str(message["key"]), None if seed is None else int(seed))
        elif "more" in message:
            steps = [(int(first), [int(token) for token in tokens]) for first, tokens in message["steps"]]
            self.replicas[message["more"]].steps += steps
            self._tokens += sum(len(tokens) for _, tokens in steps)
        elif "forget" in message:
            self._tokens -= self.replicas.pop(message["forget"]).tokens
        elif "reset" in message:
            self.term = int(message["reset"])
            self.clear()
        elif "replicas" in message:
            self.term, self.is_complete = int(message["term"]), True
        else:
            return False
        if len(self.replicas) > MOST_REQUESTS or self._tokens > MOST_TOKENS:
            raise ValueError(
                f"{len(self.replicas):,} requests with {self._tokens:,} tokens are to be kept, "
                f"the limits are {MOST_REQUESTS:,} and {MOST_TOKENS:,}"
            )
        return True

    def clear(self) -> None:
        """Forget all of them."""
        self.replicas, self._tokens = {}, 0

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yield what the next coordinator gets."""
        for name, replica in self.replicas.items():
            yield from messages_of(name, replica, None)
        yield {"replicas": len(self.replicas), "term": self.term}


def messages_of(name: str, replica: Replica, known: int | None) -> Iterator[dict[str, Any]]:
    """Yield messages about a replica to an end that knows its first `known` steps; None: nothing of it."""
    if known is None:
        yield {"begun": name, "key": replica.key, "seed": replica.seed}
    steps, start = replica.steps, known or 0
    while start < len(steps):
        stop, tokens = start, 0
        while stop < len(steps) and tokens < _TOKENS_AT_ONCE:
            tokens += len(steps[stop][1])
            stop += 1
        yield {"more": name, "steps": steps[start:stop]}
        start = stop
