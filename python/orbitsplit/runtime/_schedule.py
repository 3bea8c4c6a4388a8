"""Who sends what when. Knows neither processes nor sockets, so it runs in a test as in a satellite.

The rows of a batch are divided into groups. Each group has its own KV cache and runs through the chain on its own,
so while one group is on a link another is computed: prefill fills the chain back to back, and a group starts to
decode as soon as its first token is back, with no barrier in between.

    first stage     drive    owns tokens and end-of-sequence state; sends activations on and tokens come back
    other stages    follow   forward whatever arrives; the last one turns logits into tokens for the first

Every message is an answer to one before it, except the prompts: nobody waits for anything but its next message.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ._record import Record


@dataclass(frozen=True, slots=True)
class Job(Record):
    """One batch to generate for: `rows` sequences of `prompt_tokens` tokens (padded), in `groups` groups."""

    id: int
    rows: int
    prompt_tokens: int
    max_new_tokens: int
    groups: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int

    def rows_of(self, group: int) -> slice:
        """Return the rows of a group; sizes differ by one at most, larger groups first."""
        size, larger = divmod(self.rows, self.groups)
        start = group * size + min(group, larger)
        return slice(start, start + size + (group < larger))

    @property
    def largest_group(self) -> int:
        """Return the number of rows of the largest group."""
        return -(-self.rows // self.groups)


class Step(NamedTuple):
    """One message: what a group is at step `step` (0: prefill), or its end (`x` is None).

    `x` is an activation [b, S, H], or the new tokens [b] on the way back to the first stage.
    """

    group: int
    step: int
    x: Tensor | None


class Inlet(Protocol):
    """Where a stage gets its messages from, in the order they were sent."""

    def expect(self, messages: int) -> None:
        """Announce that at least so many more messages will come, so that room can be made for them ahead."""

    def receive(self) -> Step:
        """Wait for the next message."""


class Outlet(Protocol):
    """Where a stage puts its results; neither call waits for the receiver."""

    def send(self, group: int, step: int, x: Tensor) -> None:
        """Send a result on."""

    def end(self, group: int) -> None:
        """Say that the group has ended."""


class Forward(Protocol):
    """What a stage computes, with one KV cache per group."""

    def forward(self, group: int, step: int, x: Tensor) -> Tensor:
        """Return the activation [b, S, H] that leaves the stage, or the new tokens [b] on the last stage."""

    def drop(self, group: int) -> None:
        """Forget the group's KV cache."""


class Sequences:
    """Tokens and end-of-sequence state of all rows, as in transformers' greedy generate.

    A row ends with its first end-of-sequence token and is filled with the pad token from then on; a group ends
    when all its rows have, or at `max_new_tokens`.
    """

    def __init__(self, job: Job, input_ids: Tensor) -> None:
        self._job = job
        self._tokens = torch.full((job.rows, job.prompt_tokens + job.max_new_tokens), job.pad_token_id)
        self._tokens[:, : job.prompt_tokens] = input_ids
        self._eos = torch.tensor(job.eos_token_ids, dtype=torch.int64)
        self._running = torch.ones(job.rows, dtype=torch.bool)
        self._lengths = [job.prompt_tokens] * job.groups

    def prompt(self, group: int) -> Tensor:
        """Return the group's prompts [b, S]."""
        return self._tokens[self._job.rows_of(group), : self._job.prompt_tokens]

    def append(self, group: int, tokens: Tensor) -> bool:
        """Add one token [b] to each row of the group; return whether any row goes on."""
        rows = self._job.rows_of(group)
        running = self._running[rows]
        self._tokens[rows, self._lengths[group]] = torch.where(running, tokens, self._job.pad_token_id)
        self._lengths[group] += 1
        self._running[rows] = running & ~torch.isin(tokens, self._eos)
        return bool(self._running[rows].any()) and self.new_tokens(group) < self._job.max_new_tokens

    def last(self, group: int) -> Tensor:
        """Return the newest token of each row of the group [b, 1]."""
        stop = self._lengths[group]
        return self._tokens[self._job.rows_of(group), stop - 1 : stop]

    def new_tokens(self, group: int) -> int:
        """Return how many tokens the group has got."""
        return self._lengths[group] - self._job.prompt_tokens

    def result(self) -> Tensor:
        """Return all rows [B, S + new], as long as the longest group."""
        return self._tokens[:, : max(self._lengths)].clone()


class Loopback:
    """Inlet and outlet of a chain of one stage: its tokens come straight back."""

    def __init__(self) -> None:
        self._steps: deque[Step] = deque()

    def expect(self, messages: int) -> None:
        """Need no room: messages stay in this process."""

    def receive(self) -> Step:
        """Return the oldest result."""
        return self._steps.popleft()

    def send(self, group: int, step: int, x: Tensor) -> None:
        """Keep a result until it is received."""
        self._steps.append(Step(group, step, x))

    def end(self, group: int) -> None:
        """Tell nobody: there is no other stage."""


def drive(job: Job, sequences: Sequences, stage: Forward, returned: Inlet, onward: Outlet) -> None:
    """Run the first stage: all prompts, then one step of a group whenever its token is back."""
    for group in range(job.groups):
        returned.expect(1)
        onward.send(group, 0, stage.forward(group, 0, sequences.prompt(group)))
    running = job.groups
    while running:
        group, step, tokens = returned.receive()
        assert tokens is not None, "the last stage sends tokens only"
        if sequences.append(group, tokens):
            returned.expect(1)
            onward.send(group, step + 1, stage.forward(group, step + 1, sequences.last(group)))
        else:
            stage.drop(group)
            onward.end(group)
            running -= 1


def follow(job: Job, stage: Forward, inlet: Inlet, outlet: Outlet) -> None:
    """Run any other stage: forward what arrives until every group has ended."""
    # A group that has not ended has one more message to come: so many receives can be posted and none is left over.
    inlet.expect(job.groups)
    running = job.groups
    while running:
        group, step, x = inlet.receive()
        if x is None:
            stage.drop(group)
            outlet.end(group)
            running -= 1
        else:
            inlet.expect(1)
            outlet.send(group, step, stage.forward(group, step, x))
