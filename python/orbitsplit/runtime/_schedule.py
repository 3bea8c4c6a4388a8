"""Who sends what when. Knows neither processes nor sockets, so it runs in a test as in a satellite.

Rows run through the chain in groups. Each group has its own KV cache and runs on its own, so while one group is on a
link another is computed: prefill fills the chain back to back, and a group starts to decode as soon as its first
token is back, with no barrier in between. Groups may begin and end at any time.

    first stage     Lead     begins groups, owns their tokens and their ends, sends the next step when a token is back
    other stages    Follower forward whatever arrives; the last one turns logits into tokens for the first

Every message is an answer to one before it, except those that begin a group. A group has one message under way, so
where one arrives damaged, nothing else of the group is on any link: this is told down the chain, and the first stage
sends its last message of the group once more, as does every stage that it reaches, up to the one that missed it.
Nothing is computed twice, so caches are what they would have been, to the last bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from orbitsplit.runtime._messages.groups import Group

# How often in a row a group's messages are sent again after damage, with no token in between. Damage is rare where
# links work.
MOST_DAMAGES = 8


class Kind(IntEnum):
    """What a message says."""

    BEGIN = 0  # a group begins: its description, and what `x` of step 0 is
    STEP = 1  # a further step
    END = 2  # the group has ended, forget its cache
    DAMAGED = 3  # what was to arrive was damaged
    STOP = 4  # no more work


class Message(NamedTuple):
    """One message. `x` is an activation [b, S, H], or the new tokens [b] on the way back to the first stage."""

    kind: Kind
    group: int = 0
    step: int = 0
    x: Tensor | None = None
    begun: Group | None = None


class Inlet(Protocol):
    """Where a stage gets its messages from, in the order they were sent."""

    def receive(self) -> Message:
        """Wait for the next message."""


class Outlet(Protocol):
    """Where a stage puts its results; no call waits for the receiver."""

    def begin(self, group: Group, x: Tensor) -> None:
        """Send the first result of a group on, with what the next stage must know of it."""

    def send(self, group: int, step: int, x: Tensor) -> None:
        """Send a further result on."""

    def repeat(self, group: int) -> None:
        """Send the last result of a group once more: a later stage did not get what was made of it."""

    def tell(self, kind: Kind, group: int = 0) -> None:
        """Send a message without a result on: END, DAMAGED or STOP."""


class Forward(Protocol):
    """What a stage computes, with one KV cache per group."""

    def begin(self, group: Group) -> None:
        """Make room for a group."""

    def forward(self, group: int, step: int, x: Any) -> Tensor:
        """Return the activation [b, S, H] that leaves the stage, or the new tokens [b] on the last stage.

        `x` is the activation of the stage before; on the first stage the tokens [b, S], or the inputs by name of a
        group that generates nothing.
        """

    def drop(self, group: int) -> None:
        """Forget a group."""


class Report(Protocol):
    """Whom the first stage tells about its groups."""

    def tokens(self, group: int, tokens: Tensor) -> None:
        """Say that a group got one more token [b] in each row."""

    def end(self, group: int) -> None:
        """Say that a group has ended."""

    def retry(self, group: int, tokens: int, failures: int) -> None:
        """Say that a group is restarted with the tokens that it got, after so many corrupted messages in a row."""

    def fail(self, group: int, reason: str) -> None:
        """Say that a group is given up."""


@dataclass
class _Running:
    """A group under way: `x` is what it began with, `got` the tokens since then, one [b] a step."""

    group: Group
    x: Any
    rows_running: Tensor
    got: list[Tensor] = field(default_factory=list)
    damages: int = 0
    is_cancelled: bool = False


class Lead:
    """The first stage. At most `most_groups` groups are under way; others wait in the order they came."""

    def __init__(self, stage: Forward, outlet: Outlet, report: Report, *, most_groups: int) -> None:
        self._stage = stage
        self._outlet = outlet
        self._report = report
        self._most_groups = most_groups
        self._waiting: deque[_Running] = deque()
        self._running: dict[int, _Running] = {}

    def begin(self, group: Group, x: Any) -> None:
        """Begin a group: `x` are its tokens [b, S], or the inputs of its forward."""
        rows_running = torch.ones(group.rows, dtype=torch.bool)
        rows_running[list(group.ended_rows)] = False
        self._waiting.append(_Running(group, x, rows_running))
        self._fill()

    def cancel(self, group: int) -> None:
        """End a group as soon as its message is back; one that has ended already is no matter."""
        for running in self._waiting:
            if running.group.id == group:
                self._waiting.remove(running)
                self._report.end(group)
                return
        if group in self._running:
            self._running[group].is_cancelled = True

    def returned(self, message: Message) -> None:
        """Take what the last stage sent: tokens, or the word that something was damaged."""
        running = self._running[message.group]
        if running.is_cancelled:
            self._finish(running)
        elif message.x is None:
            self._repeat(running)
        elif not running.group.generates:
            self._finish(running)
        elif self._goes_on(running, message.x):
            step = message.step + 1
            x = self._stage.forward(message.group, step, running.got[-1][:, None])
            self._outlet.send(message.group, step, x)
        else:
            self._finish(running)

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self._most_groups:
            running = self._waiting.popleft()
            self._running[running.group.id] = running
            self._start(running)

    def _start(self, running: _Running) -> None:
        self._stage.begin(running.group)
        self._outlet.begin(running.group, self._stage.forward(running.group.id, 0, running.x))

    def _goes_on(self, running: _Running, tokens: Tensor) -> bool:
        """Add one token to each row, as transformers' generate does: a row that has ended gets the pad token."""
        group = running.group
        tokens = torch.where(running.rows_running, tokens, group.pad_token_id)
        running.got.append(tokens)
        running.damages = 0
        running.rows_running &= ~torch.isin(tokens, torch.tensor(group.eos_token_ids, dtype=torch.int64))
        self._report.tokens(group.id, tokens)
        return bool(running.rows_running.any()) and len(running.got) < group.max_new_tokens

    def _repeat(self, running: _Running) -> None:
        running.damages += 1
        if running.damages > MOST_DAMAGES:
            self._report.fail(running.group.id, f"{running.damages} of its messages in a row arrived damaged")
            self._forget(running)
            return
        self._report.retry(running.group.id, len(running.got), running.damages)
        self._outlet.repeat(running.group.id)

    def _finish(self, running: _Running) -> None:
        self._report.end(running.group.id)
        self._forget(running)

    def _forget(self, running: _Running) -> None:
        group = running.group.id
        del self._running[group]
        self._stage.drop(group)
        self._outlet.tell(Kind.END, group)
        self._fill()


class Follower:
    """Any other stage: forwards what arrives, and what it has forwarded already, it sends again."""

    def __init__(self, stage: Forward, outlet: Outlet) -> None:
        self._stage = stage
        self._outlet = outlet
        self._steps: dict[int, int] = {}  # of each group the last one that arrived whole

    def take(self, message: Message) -> bool:
        """Take the next message; return whether there will be more."""
        kind, group, step, x, begun = message
        if kind is not Kind.BEGIN and kind is not Kind.STEP:
            if kind is Kind.END:
                self._stage.drop(group)
                self._steps.pop(group, None)
            self._outlet.tell(kind, group)
            return kind is not Kind.STOP
        if self._steps.get(group) == step:
            self._outlet.repeat(group)
            return True
        self._steps[group] = step
        if begun is not None:
            self._stage.begin(begun)
            self._outlet.begin(begun, self._stage.forward(group, step, x))
        else:
            self._outlet.send(group, step, self._stage.forward(group, step, x))
        return True


def follow(stage: Forward, inlet: Inlet, outlet: Outlet) -> None:
    """Run any other stage until it is told to stop."""
    follower = Follower(stage, outlet)
    while follower.take(inlet.receive()):
        pass


class Loopback:
    """Outlet of a chain of one stage: what it sends goes straight back, into the first stage's inbox."""

    def __init__(self, put: Callable[[Message], None]) -> None:
        self._put = put

    def begin(self, group: Group, x: Tensor) -> None:
        """Return the first tokens."""
        self.send(group.id, 0, x)

    def send(self, group: int, step: int, x: Tensor) -> None:
        """Return further tokens."""
        self._put(Message(Kind.STEP, group, step, x))

    def repeat(self, group: int) -> None:
        """Fail: what never leaves the process is not damaged."""
        raise AssertionError(f"a message of group {group} was lost within a process")

    def tell(self, kind: Kind, group: int = 0) -> None:
        """Tell nobody: there is no other stage."""
