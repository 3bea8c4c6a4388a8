"""Messages of the schedule, and what its stages need of channels, models and reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from orbitsplit._errors import TransportError
from orbitsplit.runtime._memory import is_out_of_memory
from orbitsplit.runtime._messages.groups import Group
from orbitsplit.runtime._messages.packs import Part

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
    PACK = 6  # further steps of several groups
    KEEP = 7  # the group has ended: keep the cache of its first `step` tokens
    FORGET = 8  # drop a cache that was kept
    CACHE = 9  # keys and values of a layer, which another process runs from now on


class Message(NamedTuple):
    """One message. `x` is an activation [b, S, H], or the new tokens [b] that return to the first stage.

    Tokens of a group with details are [b, 1 + w]: the token, then the words of its details.

    A BEGIN, STEP or PACK without `x` has arrived corrupted. `reason` is the error of a message FAILED. The `group` of a
    PACK is its number, its `x` has the tokens of all `parts` in their order: [1, S, H], or [S] that return.
    """

    kind: Kind
    group: int = 0
    step: int = 0
    x: Tensor | None = None
    begun: Group | None = None
    reason: str = ""
    parts: tuple[Part, ...] = ()


class PackResult(NamedTuple):
    """What a stage has made of a pack: `x` of the `parts` that are left, and the `errors` of other groups by group."""

    x: Tensor
    parts: tuple[Part, ...]
    errors: dict[int, str]


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

        These are the steps of the prompt, or the last one after it; of a pack, by its number, the step is 0.
        """

    def send_pack(self, number: int, parts: Sequence[Part], x: Tensor) -> None:
        """Send the results of steps of several groups in one message."""

    def forget(self, number: int) -> None:
        """Keep a pack no longer: it is not sent again."""

    def notify(self, kind: Kind, group: int = 0, reason: str = "", step: int = 0) -> None:
        """Send a message without a result on: END, KEEP, FORGET, CORRUPTED, FAILED or STOP."""


class Forward(Protocol):
    """What a stage computes, with one KV cache per group; `name` is the stage's in messages."""

    name: str

    def begin(self, group: Group) -> None:
        """Allocate the state of a group, replacing the state it may have."""

    def forward(self, group: int, step: int, x: Any) -> Tensor | None:
        """Return the stage's output activation [b, S, H], or on the last stage the new tokens [b] or [b, 1 + w].

        `x` is the activation of the previous stage; on the first stage the tokens [b, S], or for a group that generates
        nothing the inputs by name. None on the last stage for a chunk (step < 0) behind which the prompt goes on.
        """

    def forward_pack(self, parts: Sequence[Part], x: Tensor) -> PackResult:
        """Run steps of several groups in one forward: `x` has their tokens, or activations, side by side."""

    def drop(self, group: int) -> None:
        """Drop the state of a group."""

    def keep(self, group: int, tokens: int) -> None:
        """Drop the state of a group, but keep the cache of its first tokens, for `begin` of others."""

    def has_kept(self, group: int, tokens: int) -> bool:
        """Whether the kept cache of a group has what its first tokens need."""

    def forget(self, group: int) -> None:
        """Drop the kept cache of a group."""


class Report(Protocol):
    """The receiver of the first stage's events."""

    def tokens(self, group: int, tokens: Tensor, details: Tensor | None = None) -> None:
        """Report one more token [b] for each row of a group, with the words [b, w] of its details."""

    def end(self, group: int) -> None:
        """Report that a group has ended."""

    def retry(self, group: int, tokens: int, failures: int) -> None:
        """Report that a group restarts with `tokens` new tokens after `failures` corrupted messages in a row."""

    def drained(self, groups: Sequence[int]) -> None:
        """Report that nothing is under way any more, with the groups whose next step is held back."""

    def fail(self, group: int, kind: str, reason: str) -> None:
        """Report that a group has failed: of kind "corruption" or "request", as of `TransportError`."""


def error_of(stage: Forward, work: Callable[[], None]) -> str | None:
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

    def send_pack(self, number: int, parts: Sequence[Part], x: Tensor) -> None:
        """Return the tokens of several groups."""
        self._put(Message(Kind.PACK, number, 0, x, parts=tuple(parts)))

    def forget(self, number: int) -> None:
        """Do nothing: nothing is kept."""

    def repeat(self, group: int, step: int) -> None:
        """Fail: what never leaves the process is not damaged."""
        raise AssertionError(f"step {step} of group {group} was lost within a process")

    def notify(self, kind: Kind, group: int = 0, reason: str = "", step: int = 0) -> None:
        """Do nothing: there is no other stage."""
