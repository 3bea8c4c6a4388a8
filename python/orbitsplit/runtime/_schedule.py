"""The schedule: which stage sends what, and when. It knows neither processes nor sockets.

The rows of a batch run through the chain of stages in groups (micro-batches). Each group has its own KV cache and runs
independently, so that one group is computed while another is on a link: prefill keeps the chain full, and a group
starts to decode as soon as its first token has returned, without a barrier. Groups may start and end at any time.

    first stage     FirstStage    starts groups, owns their tokens, sends the next step when a token returns
    other stages    Follower      process what arrives; the last stage turns logits into tokens for the first

Every message answers an earlier one, except those that start a group. A group has one message in flight, so when one
arrives corrupted, no other message of the group is on any link: CORRUPTED is passed down the chain, and the first stage
sends its last message of the group again, as does every stage that it reaches, up to the one that missed it. Nothing is
computed twice, so caches are the same to the last bit. In the same way FAILED reports that a stage raised an error for
a group, which ends that group alone.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from orbitsplit._errors import TransportError
from orbitsplit.runtime._memory import is_out_of_memory
from orbitsplit.runtime._messages.groups import Group

# How often in a row the messages of a group are sent again after corruption, without a token in between. Working links
# corrupt rarely.
MAX_CORRUPTIONS = 8
# The length to which the text of an error is cut, in characters.
_REASON_LENGTH = 500


class Kind(IntEnum):
    """What a message says."""

    BEGIN = 0  # a group starts: its description, and `x` of step 0
    STEP = 1  # a further step
    END = 2  # the group has ended: drop its cache
    CORRUPTED = 3  # a message of the group arrived corrupted
    STOP = 4  # no more work
    FAILED = 5  # a stage raised an error for the group


class Message(NamedTuple):
    """One message. `x` is an activation [b, S, H], or the new tokens [b] that return to the first stage.

    `reason` is the error of a message FAILED.
    """

    kind: Kind
    group: int = 0
    step: int = 0
    x: Tensor | None = None
    begun: Group | None = None
    reason: str = ""


class Inlet(Protocol):
    """The source of a stage's messages, in the order in which they were sent."""

    def receive(self) -> Message:
        """Wait for the next message."""


class Outlet(Protocol):
    """The destination of a stage's results; no call waits for the receiver."""

    def begin(self, group: Group, x: Tensor) -> None:
        """Send the first result of a group, with the group's description."""

    def send(self, group: int, step: int, x: Tensor) -> None:
        """Send a further result."""

    def repeat(self, group: int) -> None:
        """Send the last result of a group once more: a later stage did not get what was made of it."""

    def notify(self, kind: Kind, group: int = 0, reason: str = "") -> None:
        """Send a message without a result on: END, CORRUPTED, FAILED or STOP."""


class Forward(Protocol):
    """What a stage computes, with one KV cache per group; `name` is the stage's in messages."""

    name: str

    def begin(self, group: Group) -> None:
        """Allocate the state of a group, replacing the state it may have."""

    def forward(self, group: int, step: int, x: Any) -> Tensor:
        """Return the stage's output activation [b, S, H], or on the last stage the new tokens [b].

        `x` is the activation of the previous stage; on the first stage the tokens [b, S], or for a group that generates
        nothing the inputs by name.
        """

    def drop(self, group: int) -> None:
        """Drop the state of a group."""


class Report(Protocol):
    """The receiver of the first stage's events."""

    def tokens(self, group: int, tokens: Tensor) -> None:
        """Report one more token [b] for each row of a group."""

    def end(self, group: int) -> None:
        """Report that a group has ended."""

    def retry(self, group: int, tokens: int, failures: int) -> None:
        """Report that a group restarts with `tokens` new tokens after `failures` corrupted messages in a row."""

    def fail(self, group: int, kind: str, reason: str) -> None:
        """Report that a group has failed: of kind "corruption" or "request", as of `TransportError`."""


@dataclass
class _Running:
    """A group in flight: `x` is its initial input, `got` the tokens since then, one [b] per step."""

    group: Group
    x: Any
    rows_running: Tensor
    got: list[Tensor] = field(default_factory=list)
    corruptions: int = 0
    is_cancelled: bool = False


class FirstStage:
    """The first stage. At most `most_groups` groups are in flight; others wait in order of arrival."""

    def __init__(self, stage: Forward, outlet: Outlet, report: Report, *, most_groups: int) -> None:
        self._stage = stage
        self._outlet = outlet
        self._report = report
        self._most_groups = most_groups
        self._waiting: deque[_Running] = deque()
        self._running: dict[int, _Running] = {}

    def begin(self, group: Group, x: Any) -> None:
        """Start a group, or queue it: `x` are its tokens [b, S], or the inputs of its forward."""
        rows_running = torch.ones(group.rows, dtype=torch.bool)
        rows_running[list(group.ended_rows)] = False
        self._waiting.append(_Running(group, x, rows_running))
        self._fill()

    def cancel(self, group: int) -> None:
        """End a group as soon as its message returns; a group that has ended is ignored."""
        for running in self._waiting:
            if running.group.id == group:
                self._waiting.remove(running)
                self._report.end(group)
                return
        if group in self._running:
            self._running[group].is_cancelled = True

    def returned(self, message: Message) -> None:
        """Process a message of the last stage: tokens, CORRUPTED or FAILED."""
        running = self._running[message.group]
        if running.is_cancelled:
            self._finish(running)
        elif message.kind is Kind.FAILED:
            self._fail(running, "request", message.reason)
        elif message.x is None:
            self._repeat(running)
        elif not running.group.generates:
            self._finish(running)
        elif self._add_tokens(running, message.x):
            self._continue(running, message.step + 1)
        else:
            self._finish(running)

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self._most_groups:
            running = self._waiting.popleft()
            self._running[running.group.id] = running
            if (reason := self._start(running)) is not None:
                self._report.fail(running.group.id, "request", reason)
                self._drop(running)  # not by `_fail`, which would fill again within this loop

    def _start(self, running: _Running) -> str | None:
        """Run the first step; return the error that the stage raised for the group, if any."""

        def work() -> None:
            self._stage.begin(running.group)
            self._outlet.begin(running.group, self._stage.forward(running.group.id, 0, running.x))

        return _error_of(self._stage, work)

    def _continue(self, running: _Running, step: int) -> None:
        def work() -> None:
            group = running.group.id
            self._outlet.send(group, step, self._stage.forward(group, step, running.got[-1][:, None]))

        if (reason := _error_of(self._stage, work)) is not None:
            self._fail(running, "request", reason)

    def _add_tokens(self, running: _Running, tokens: Tensor) -> bool:
        """Add one token to each row, the pad token to ended rows as transformers does; return whether to continue."""
        group = running.group
        tokens = torch.where(running.rows_running, tokens, group.pad_token_id)
        running.got.append(tokens)
        running.corruptions = 0
        running.rows_running &= ~torch.isin(tokens, torch.tensor(group.eos_token_ids, dtype=torch.int64))
        self._report.tokens(group.id, tokens)
        return bool(running.rows_running.any()) and len(running.got) < group.max_new_tokens

    def _repeat(self, running: _Running) -> None:
        running.corruptions += 1
        if running.corruptions > MAX_CORRUPTIONS:
            self._fail(running, "corruption", f"{running.corruptions} of its messages in a row arrived corrupted")
            return
        self._report.retry(running.group.id, len(running.got), running.corruptions)
        self._outlet.repeat(running.group.id)

    def _finish(self, running: _Running) -> None:
        self._report.end(running.group.id)
        self._drop(running)
        self._fill()

    def _fail(self, running: _Running, kind: str, reason: str) -> None:
        self._report.fail(running.group.id, kind, reason)
        self._drop(running)
        self._fill()

    def _drop(self, running: _Running) -> None:
        group = running.group.id
        del self._running[group]
        self._stage.drop(group)
        self._outlet.notify(Kind.END, group)


class Follower:
    """Any other stage: forwards what arrives, and what it has forwarded already, it sends again."""

    def __init__(self, stage: Forward, outlet: Outlet) -> None:
        self._stage = stage
        self._outlet = outlet
        self._steps: dict[int, int] = {}  # of each group the last one that arrived whole
        self._errors: dict[int, str] = {}  # of each group that failed here

    def take(self, message: Message) -> bool:
        """Take the next message; return whether there will be more."""
        kind, group = message.kind, message.group
        if kind not in (Kind.BEGIN, Kind.STEP):
            if kind is Kind.END:
                self._stage.drop(group)
                self._steps.pop(group, None)
                self._errors.pop(group, None)
            self._outlet.notify(kind, group, message.reason)
            return kind is not Kind.STOP
        is_new = self._steps.get(group) != message.step
        if is_new:
            self._steps[group] = message.step
            error = _error_of(self._stage, functools.partial(self._process, message))
            if error is not None:
                self._errors[group] = error
        if group in self._errors:
            self._outlet.notify(Kind.FAILED, group, self._errors[group])
        elif not is_new:
            self._outlet.repeat(group)
        return True

    def _process(self, message: Message) -> None:
        if message.begun is not None:
            self._stage.begin(message.begun)
            self._outlet.begin(message.begun, self._stage.forward(message.group, 0, message.x))
        else:
            x = self._stage.forward(message.group, message.step, message.x)
            self._outlet.send(message.group, message.step, x)


def run_follower(stage: Forward, inlet: Inlet, outlet: Outlet) -> None:
    """Run any other stage until it is told to stop."""
    follower = Follower(stage, outlet)
    while follower.take(inlet.receive()):
        pass


def _error_of(stage: Forward, work: Callable[[], None]) -> str | None:
    """Do the work of a group; return the error if it is of this group alone.

    Raises what concerns the stage as a whole: TransportError, and errors of memory.
    """
    try:
        work()
    except TransportError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return f"{stage.name}: {type(error).__name__}: {error}"[:_REASON_LENGTH]
    return None


class Loopback:
    """Outlet of a chain of one stage: it puts messages into the stage's own inbox."""

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

    def notify(self, kind: Kind, group: int = 0, reason: str = "") -> None:
        """Do nothing: there is no other stage."""
