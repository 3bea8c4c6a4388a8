"""The coordinator's replicas: what hosts keep of its requests in flight, and have kept of the last coordinator's.

A request of the last coordinator is resumed when it is sent again, as clients do whose connection has ended: all that
its text depends on is compared, not who sends it. So no host needs its prompt, and nothing is computed for nobody.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from orbitsplit.runtime._messages.replicas import MOST_REQUESTS, MOST_TOKENS, Replica, ReplicaTable, messages_of

if TYPE_CHECKING:  # they import torch, and the command line imports this
    from orbitsplit._plans.plan import Plan
    from orbitsplit.runtime._messages.control import Ready

    from .generation import Generation

LOG = logging.getLogger("orbitsplit.runtime")

# So long a request of the last coordinator may be sent again.
_KEEP_S = 300.0
# Fields of a group that its text does not depend on: its number, how it is divided and scheduled, and what has its own
# place in a digest.
_OF_NO_MATTER = {
    "id", "rows", "mask", "sampling", "is_recorded", "replayed", "chunk_tokens", "draft_tokens", "uses_assistant",
    "is_packable", "shares_prefix", "prefix_of", "known_tokens", "needs_ids", "ids",
}  # fmt: skip


class Replicas:
    """The requests in flight of one coordinator, and those of the last one that nobody has sent again yet.

    Requests are generations with a `key`, others are ignored.

    Bounded: what is beyond `MOST_REQUESTS` or `MOST_TOKENS` has no replica. Methods may be called from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._own: dict[str, Replica] = {}
        self._groups: dict[int, tuple[str, int]] = {}
        self._left: dict[str, Replica] = {}
        self._left_until_s = 0.0
        self._tokens = 0  # of both
        self._is_full = False

    def inherit(self, tables: Iterable[ReplicaTable]) -> int:
        """Take over what hosts have kept of the newest term, and return how many requests that are."""
        complete = list(tables)
        newest = max((table.term for table in complete), default=0)
        found: dict[str, Replica] = {}
        for table in complete:
            for name, replica in table.replicas.items() if table.term == newest else ():
                if name not in found or replica.tokens > found[name].tokens:
                    found[name] = replica
        with self._lock:
            for name, replica in found.items():  # of hosts with different ones there may be more than one can keep
                if len(self._left) < MOST_REQUESTS and self._has_room(replica.tokens):
                    self._left[name] = replica
                    self._tokens += replica.tokens
            self._left_until_s = time.monotonic() + _KEEP_S
            return len(self._left)

    def resume(self, generation: Generation) -> None:
        """Give a generation that is to be submitted the tokens that the last coordinator had of it, if any."""
        with self._lock:
            self._expire()
            found = [name for name, one in self._left.items() if one.key == generation.key]
            if not found:
                return
            # Of equal requests each is resumed once, those with most tokens first.
            replica = self._left.pop(max(found, key=lambda name: self._left[name].tokens))
            self._tokens -= replica.tokens
        count = sum(state.group.rows for state in generation.states.values())
        LOG.info("a request of the last coordinator is resumed with %d tokens", replica.tokens)
        generation.resume(replica.rows(count), replica.seed)

    def begin(self, generation: Generation) -> None:
        """Replicate a generation, with the tokens that it has; one without a key has no replica."""
        if generation.key is None:
            return
        states = list(generation.states.values())
        sampling = states[0].group.sampling
        made, first = Replica(generation.key, None if sampling is None else sampling.seed), 0
        groups = {}
        for state in states:
            made.steps += [(first, tokens.tolist()) for tokens in state.got]
            groups[state.group.id] = first
            first += state.group.rows
        with self._lock:
            self._expire()
            tokens = made.tokens
            if len(self._own) + len(self._left) >= MOST_REQUESTS or not self._has_room(tokens):
                return
            name = uuid.uuid4().hex
            self._own[name] = made
            self._tokens += tokens
            self._groups.update({group: (name, row) for group, row in groups.items()})

    def add(self, group: int, tokens: list[int]) -> None:
        """Add a token to each row of a group; a request for which there is no room any more has no replica then."""
        with self._lock:
            name, first = self._groups.get(group, ("", 0))
            replica = self._own.get(name)
            if replica is None:
                return
            if not self._has_room(len(tokens)):
                self._forget(name)
                return
            replica.steps.append((first, tokens))
            self._tokens += len(tokens)

    def end(self, group: int) -> None:
        """Forget a group that has ended; the request with its last one."""
        with self._lock:
            name, _ = self._groups.pop(group, ("", 0))
            if name in self._own and all(other != name for other, _ in self._groups.values()):
                self._forget(name)

    def outlive(self) -> None:
        """Keep the requests of a pipeline that has ended as those of the last coordinator, and forget its groups.

        Their callers have got an error, and may send them again, here or elsewhere. The next pipeline counts its groups
        from 0 again.
        """
        with self._lock:
            self._expire()
            self._groups.clear()
            if self._own:
                self._left.update(self._own)
                self._own.clear()
                self._left_until_s = time.monotonic() + _KEEP_S

    def changes(self, known: dict[str, int]) -> Iterator[dict[str, Any]]:
        """Yield what a host has to learn that knows so many steps of replicas by their ids, and update that."""
        with self._lock:
            self._expire()
            now = {
                name: Replica(one.key, one.seed, one.steps[known.get(name, 0) :])
                for name, one in (*self._own.items(), *self._left.items())
                if name not in known or len(one.steps) > known[name]
            }
            gone = [name for name in known if name not in self._own and name not in self._left]
        for name in gone:
            del known[name]
            yield {"forget": name}
        for name, news in now.items():
            yield from messages_of(name, news, 0 if name in known else None)
            known[name] = known.get(name, 0) + len(news.steps)

    def _has_room(self, tokens: int) -> bool:
        is_full = self._tokens + tokens > MOST_TOKENS
        if is_full and not self._is_full:
            LOG.warning(
                "requests beyond %d tokens in all have no replica: a loss of the coordinator loses them", MOST_TOKENS
            )
        self._is_full = is_full
        return not is_full

    def _forget(self, name: str) -> None:
        self._tokens -= self._own.pop(name).tokens

    def _expire(self) -> None:
        if self._left and time.monotonic() > self._left_until_s:
            self._tokens -= sum(one.tokens for one in self._left.values())
            self._left.clear()


def model_of(plan: Plan, ready: Sequence[Ready]) -> dict[str, Any]:
    """Return what a running plan computes, for `key_of`: the model, the precision of its layers, and what links lose.

    Plans with other cuts are the same here unless a codec loses something there.
    """
    exact = {None, "raw", *(("bf16", "lossless_bf16") if plan.dtype == "bfloat16" else ())}
    return {
        "dtype": plan.dtype,
        "vocabulary": ready[0].vocabulary,
        "layers": [layer for stage in ready for layer in stage.layer_hashes],
        "weights": [stage.weights for stage in plan.stages for _ in range(stage.start, stage.stop)],
        "codebook": plan.codebook,
        "codecs": [
            (stage.cut, stage.codec, stage.codebook_level) for stage in plan.stages[:-1] if stage.codec not in exact
        ],
    }


def key_of(generation: Generation, *, seed: int | None, model: Mapping[str, Any]) -> str | None:
    """Return the digest of all that the text of a generation depends on, of a `model` that is described by JSON values.

    A seed that nobody has chosen is not in it. None for what is not replicated: a forward, log-probabilities, logits
    and scores, prompts with images, and what the caller's own criteria end.
    """
    states = list(generation.states.values())
    group = states[0].group
    has_images = any(state.images for state in states)
    if not group.generates or group.details is not None or has_images or generation.has_criteria:
        return None
    described = {name: value for name, value in asdict(group).items() if name not in _OF_NO_MATTER}
    prompts = [row for state in states for row in state.x.tolist()]
    is_padded = any(state.group.mask is not None for state in states)
    masks = [row for state in states for row in state.group.attention_mask().tolist()] if is_padded else None
    document = [dict(model), described, prompts, masks, group.sampling is not None, seed]
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
