"""A batch in flight as its caller sees it: its tokens so far, its end, and its rest after a loss."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from orbitsplit._errors import TransportError
from orbitsplit.runtime._messages.groups import Group

OnTokens = Callable[[Tensor], None]
OnEnd = Callable[[BaseException | None], None]


@dataclass
class GroupState:
    """The state of a group of a batch: its initial input, the tokens [b] since then, and the session it ended in."""

    group: Group
    x: Any
    got: list[Tensor] = field(default_factory=list)
    outputs: dict[str, Tensor] | None = None
    ended_in: int | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the group has all its tokens, although its end was not reported."""
        group = self.remaining()[0]
        return self.group.generates and (group.max_new_tokens == 0 or len(group.ended_rows) == group.rows)

    def remaining(self) -> tuple[Group, Any]:
        """Return the group and its input as it restarts, with the tokens so far in its prompts."""
        if not self.got:
            return self.group, self.x
        got = torch.stack(self.got, dim=1)
        return self.group.continued(got), torch.cat([self.x, got], dim=1)


class Generation:
    """A batch in flight, returned by `Pipeline.submit`.

    `on_tokens(tokens)` is called for each step with the new tokens [B] of all rows (the pad token in rows that have
    ended), `on_end(error)` once after the last step; both by a thread of the pipeline, so they must return immediately.
    """

    def __init__(
        self,
        states: Iterable[GroupState],
        *,
        pad_token_id: int = 0,
        on_tokens: OnTokens | None = None,
        on_end: OnEnd | None = None,
        send_cancel: Callable[[int], None] | None = None,
    ) -> None:
        self.states = {state.group.id: state for state in states}
        self._pad_token_id = pad_token_id
        self._on_tokens = on_tokens
        self._on_end = on_end
        self._send_cancel = send_cancel or _ignore
        self._emitted = 0
        self._over = threading.Event()
        self._finishing = threading.Lock()
        self._error: BaseException | None = None
        self.is_cancelled = False

    @property
    def new_tokens(self) -> int:
        """The number of steps of the row with the most tokens."""
        return max(len(state.got) for state in self.states.values())

    @property
    def is_over(self) -> bool:
        """Whether the last token has arrived, or an error."""
        return self._over.is_set()

    def cancel(self) -> None:
        """End soon, with the tokens so far. Cancelling twice, or after the end, has no effect."""
        self.is_cancelled = True
        for group, state in self.states.items():
            if state.ended_in is None and not self.is_over:
                self._send_cancel(group)

    def result(self, timeout_s: float | None = None) -> Tensor:
        """Wait for the end and return prompts and new tokens [B, S + new]. Raises as `wait`."""
        self.wait(timeout_s)
        return self.tokens()

    def wait(self, timeout_s: float | None = None, *, on_poll: Callable[[], None] = lambda: None) -> None:
        """Wait for the end.

        Raises:
            TransportError: A node or a link failed and the pipeline could not recover, or `timeout_s` seconds passed;
                its `tokens` are those so far.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._over.wait(0.02):
            on_poll()
            if deadline_s is not None and time.monotonic() > deadline_s:
                raise TransportError(
                    f"did not finish generating within {timeout_s:g} s", kind="timeout", tokens=self._so_far()
                )
        if self._error is not None:
            raise self._error

    def tokens(self) -> Tensor:
        """Return prompts and the new tokens so far [B, S + new], rows that have fewer filled with the pad token."""
        taken = [(state, list(state.got)) for state in self.states.values()]  # more may arrive meanwhile
        most = max(len(got) for _, got in taken)
        rows = []
        for state, got in taken:
            padding = torch.full((state.group.rows, most - len(got)), self._pad_token_id)
            rows.append(torch.cat([state.x, *(tokens[:, None] for tokens in got), padding], dim=1))
        return torch.cat(rows)

    def outputs(self) -> dict[str, Tensor]:
        """Return the model's outputs by name, [B, ...]."""
        parts = [state.outputs or {} for state in self.states.values()]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    # The methods below are for the pipeline.

    def take(self, group: int, tokens: Sequence[int]) -> None:
        """Add a token to each row of a group."""
        self.states[group].got.append(torch.tensor(tokens, dtype=torch.int64))
        self._emit()

    def end(self, group: int, session: int, outputs: dict[str, Tensor] | None = None) -> None:
        """End a group; the batch ends with its last group."""
        state = self.states[group]
        state.outputs, state.ended_in = outputs, session
        self._emit()
        if all(state.ended_in is not None for state in self.states.values()):
            self._finish(None)

    def fail(self, error: TransportError) -> None:
        """End the batch with an error."""
        if self.is_over:
            return
        self._finish(
            TransportError(str(error), kind=error.kind, node=error.node, link=error.link, tokens=self._so_far())
        )

    def unfinished(self) -> list[GroupState]:
        """Return the groups that have not ended."""
        return [state for state in self.states.values() if state.ended_in is None]

    def _so_far(self) -> Tensor | None:
        generates = all(state.group.generates for state in self.states.values())
        return self.tokens() if generates else None

    def _emit(self) -> None:
        """Call `on_tokens` for steps that all groups have made, or ended before."""
        if self._on_tokens is None:
            return
        states = self.states.values()
        for step in itertools.count(self._emitted):
            if any(state.ended_in is None and len(state.got) <= step for state in states):
                return
            if all(len(state.got) <= step for state in states):
                return
            rows = [
                state.got[step] if len(state.got) > step else torch.full((state.group.rows,), self._pad_token_id)
                for state in states
            ]
            self._emitted = step + 1
            try:
                self._on_tokens(torch.cat(rows))
            except BaseException as error:
                # The error is the caller's own, and the thread that called it serves others too.
                self._on_tokens = None
                self.cancel()
                self._finish(error)
                return

    def _finish(self, error: BaseException | None) -> None:
        with self._finishing:  # exactly one thread ends the batch
            if self._over.is_set():
                return
            self._error = error
            self._over.set()
        self._on_tokens = None  # `on_end` is the last call
        self._send_cancel = _ignore  # a result that is kept must not keep the pipeline's sessions
        if self._on_end is not None:
            with suppress(Exception):  # as above, and nobody is left to report it to
                self._on_end(error)


def _ignore(_group: int) -> None:
    pass
