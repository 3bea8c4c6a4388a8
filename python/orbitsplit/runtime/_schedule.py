"""The schedule: which stage sends what, and when. It knows neither processes nor sockets.

The rows of a batch run through the chain of stages in groups (micro-batches). Each group has its own KV cache and runs
independently, so that one group is computed while another is on a link: prefill keeps the chain full, and a group
starts to decode as soon as its first token has returned, without a barrier. Groups may start and end at any time. A
group of one row may send guesses of the next tokens with a token, of which those are kept that turn out to be right.
Prompts may run in chunks, one behind the other: the steps of a group are numbered as `Group` says.

    first stage     FirstStage    starts groups, owns their tokens, sends the next step when a token returns
    other stages    Follower      process what arrives; the last stage turns logits into tokens for the first

Every message answers an earlier one, except those of a prompt. A group has the chunks of its prompt in flight,
or one further step, and every stage keeps what it has sent of them. When one arrives corrupted, the stage passes
CORRUPTED down the chain and ignores the steps behind the missing one, until the first stage has sent all of them again,
and so has every stage that they reach, up to the one that missed it. Nothing is computed twice, so caches are the same
to the last bit. In the same way FAILED reports that a stage raised an error for a group, which ends that group alone.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from orbitsplit._errors import TransportError
from orbitsplit.runtime._drafts import Guessing
from orbitsplit.runtime._memory import is_out_of_memory
from orbitsplit.runtime._messages.groups import Group

# How often in a row the messages of a group are sent again after corruption, without a token in between: so often for
# each message that may be sent again, of which a prompt in chunks has several. Working links corrupt rarely.
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

    A BEGIN or STEP without `x` has arrived corrupted. `reason` is the error of a message FAILED.
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

    def repeat(self, group: int, step: int) -> None:
        """Send a result once more: a later stage did not get what was made of it. Steps without a result are ignored.

        These are the steps of the prompt, or the last one after it.
        """

    def notify(self, kind: Kind, group: int = 0, reason: str = "") -> None:
        """Send a message without a result on: END, CORRUPTED, FAILED or STOP."""


class Forward(Protocol):
    """What a stage computes, with one KV cache per group; `name` is the stage's in messages."""

    name: str

    def begin(self, group: Group) -> None:
        """Allocate the state of a group, replacing the state it may have."""

    def forward(self, group: int, step: int, x: Any) -> Tensor | None:
        """Return the stage's output activation [b, S, H], or on the last stage the new tokens [b].

        `x` is the activation of the previous stage; on the first stage the tokens [b, S], or for a group that generates
        nothing the inputs by name. None on the last stage for a chunk (step < 0) behind which the prompt goes on.
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
    """A group in flight: `x` is its initial input, `got` the tokens since then, one [b] per step.

    `step` is the last one that was sent, 1 below the first step before that.
    """

    group: Group
    x: Any
    rows_running: Tensor
    step: int
    guessing: Guessing | None = None
    got: list[Tensor] = field(default_factory=list)
    corruptions: int = 0
    is_cancelled: bool = False


class FirstStage:
    """The first stage. At most `most_groups` groups are in flight; others wait in order of arrival.

    `advance` runs the prompts, a chunk at a time and in order of arrival, so that others' tokens go on meanwhile.
    """

    def __init__(self, stage: Forward, outlet: Outlet, report: Report, *, most_groups: int) -> None:
        self._stage = stage
        self._outlet = outlet
        self._report = report
        self._most_groups = most_groups
        self._waiting: deque[_Running] = deque()
        self._running: dict[int, _Running] = {}

    @property
    def has_prompts(self) -> bool:
        """Whether `advance` has work: there are prompts of which not every chunk was sent."""
        return (bool(self._waiting) and len(self._running) < self._most_groups) or self._next_prompt() is not None

    def begin(self, group: Group, x: Any) -> None:
        """Queue a group: `x` are its tokens [b, S], or the inputs of its forward."""
        rows_running = torch.ones(group.rows, dtype=torch.bool)
        rows_running[list(group.ended_rows)] = False
        guessing = Guessing(x[0].tolist(), group.draft_tokens) if group.draft_tokens else None
        self._waiting.append(_Running(group, x, rows_running, group.first_step - 1, guessing))

    def advance(self) -> None:
        """Run the next chunk of the prompt that has waited longest, if there is one."""
        running = self._next_prompt()
        if running is None and self._waiting and len(self._running) < self._most_groups:
            running = self._waiting.popleft()
            self._running[running.group.id] = running
        if running is not None:
            self._send(running)

    def cancel(self, group: int) -> None:
        """End a group as soon as nothing of it is awaited; a group that has ended is ignored."""
        for running in self._waiting:
            if running.group.id == group:
                self._waiting.remove(running)
                self._report.end(group)
                return
        if group in self._running:
            running = self._running[group]
            running.is_cancelled = True
            if running.step < 0:
                self._finish(running)

    def returned(self, message: Message) -> None:
        """Process a message of the last stage: tokens, CORRUPTED or FAILED.

        What is repeated may return twice: tokens that are there already, and messages of a group that has ended, are
        ignored.
        """
        running = self._running.get(message.group)
        if running is None:
            return
        if running.is_cancelled:
            self._finish(running)
        elif message.kind is Kind.FAILED:
            self._fail(running, "request", message.reason)
        elif message.kind is Kind.CORRUPTED:
            self._repeat(running)
        elif message.step != len(running.got):
            return
        elif not running.group.generates:
            self._finish(running)
        else:
            assert message.x is not None, "tokens arrive whole, or as CORRUPTED"
            if all(self._add_tokens(running, tokens) for tokens in _accepted(running, message.x)):
                self._send(running)
            else:
                self._finish(running)

    def _next_prompt(self) -> _Running | None:
        return next((running for running in self._running.values() if running.step < 0), None)

    def _send(self, running: _Running) -> None:
        """Run the next step of a group, and send what the stage makes of it."""
        step = running.step + 1 if running.step < 0 else len(running.got)
        reason = _error_of(self._stage, functools.partial(self._run_step, running, step))
        if reason is not None:
            self._fail(running, "request", reason)

    def _run_step(self, running: _Running, step: int) -> None:
        group = running.group
        if step == group.first_step:
            self._stage.begin(group)
        if step > 0:
            x = running.got[-1][:, None]
            if running.guessing is not None:
                guesses = running.guessing.start(most=group.max_new_tokens - step - 1)
                x = torch.cat([x, torch.tensor([guesses], dtype=torch.int64)], dim=1)
        elif group.first_step < 0:
            positions = group.positions(step)
            x = running.x[:, positions.start : positions.stop]
        else:
            x = running.x
        output = self._stage.forward(group.id, step, x)
        running.step = step
        if output is None:
            return
        if step == group.first_step:
            self._outlet.begin(group, output)
        else:
            self._outlet.send(group.id, step, output)

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
        steps = _kept_steps(running.group.first_step, running.step)
        if running.corruptions > MAX_CORRUPTIONS * len(steps):
            self._fail(running, "corruption", f"{running.corruptions} of its messages in a row arrived corrupted")
            return
        self._report.retry(running.group.id, len(running.got), running.corruptions)
        for step in steps:
            self._outlet.repeat(running.group.id, step)

    def _finish(self, running: _Running) -> None:
        self._report.end(running.group.id)
        self._drop(running)

    def _fail(self, running: _Running, kind: str, reason: str) -> None:
        self._report.fail(running.group.id, kind, reason)
        self._drop(running)

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
        if kind in (Kind.BEGIN, Kind.STEP):
            self._take_step(message)
            return True
        if kind is Kind.END:
            self._stage.drop(group)
            self._steps.pop(group, None)
            self._errors.pop(group, None)
        self._outlet.notify(kind, group, message.reason)
        return kind is not Kind.STOP

    def _take_step(self, message: Message) -> None:
        group, step = message.group, message.step
        last = self._steps.get(group)
        if last is not None and step <= last:
            if group in self._errors:
                self._outlet.notify(Kind.FAILED, group, self._errors[group])
            else:
                self._outlet.repeat(group, step)
        elif group in self._errors or not _is_next(message, last):
            return  # the group has failed, or a step before this one is missing, which is on its way again
        elif message.x is None:
            self._outlet.notify(Kind.CORRUPTED, group)
        else:
            self._steps[group] = step
            error = _error_of(self._stage, functools.partial(self._process, message))
            if error is not None:
                self._errors[group] = error
                self._outlet.notify(Kind.FAILED, group, error)

    def _process(self, message: Message) -> None:
        if message.begun is not None:
            self._stage.begin(message.begun)
        x = self._stage.forward(message.group, message.step, message.x)
        if x is None:
            return
        if message.begun is not None:
            self._outlet.begin(message.begun, x)
        else:
            self._outlet.send(message.group, message.step, x)


def run_follower(stage: Forward, inlet: Inlet, outlet: Outlet) -> None:
    """Run any other stage until it is told to stop."""
    follower = Follower(stage, outlet)
    while follower.take(inlet.receive()):
        pass


def _is_next(message: Message, last: int | None) -> bool:
    """Whether no step is missing between the last one that arrived of a group and a later one.

    Steps after the prompt are sent one at a time, each by as many further as tokens came of the one before.
    """
    if last is None:
        return message.begun is not None
    return message.step == last + 1 or (message.step > 0 and last >= 0)


def _accepted(running: _Running, tokens: Tensor) -> Iterator[Tensor]:
    """Yield the new tokens [b] of a message: with guesses, one after each that was right."""
    if running.guessing is None:
        yield tokens
    else:
        yield from running.guessing.finish(tokens.tolist())


def _kept_steps(first_step: int, last_step: int) -> range:
    """Return the steps that may have to be sent again: those of the prompt, or the last one after it."""
    return range(last_step if last_step > 0 else first_step, last_step + 1)


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

    def repeat(self, group: int, step: int) -> None:
        """Fail: what never leaves the process is not damaged."""
        raise AssertionError(f"step {step} of group {group} was lost within a process")

    def notify(self, kind: Kind, group: int = 0, reason: str = "") -> None:
        """Do nothing: there is no other stage."""
