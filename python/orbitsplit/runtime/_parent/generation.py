"""A batch in flight as its caller sees it: its tokens so far, its end, and its rest after a loss."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from orbitsplit._errors import TransportError
from orbitsplit.runtime._messages.groups import Group
from orbitsplit.runtime._messages.token_details import TokenDetails, unpack_details

from .logprobs import OnLogprobs, OnPromptLogprobs, TokenLogprobs, token_logprobs
from .stopping import Stopping

OnTokens = Callable[[Tensor], None]
OnEnd = Callable[[BaseException | None], None]


@dataclass
class GroupState:
    """The state of a group of a batch: its initial input, the tokens [b] since then, and the session it ended in.

    `images` are what the first stage takes beside tokens. `details` are those of each of the tokens, by row, if the
    group has any.
    """

    group: Group
    x: Any
    images: dict[str, Tensor] = field(default_factory=dict)
    got: list[Tensor] = field(default_factory=list)
    details: list[list[TokenDetails]] = field(default_factory=list)
    outputs: dict[str, Tensor] | None = None
    ended_in: int | None = None
    _ended: list[Tensor] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether the group has all its tokens, although its end was not reported."""
        count = len(self.got)
        return self.group.generates and (
            count >= self.group.max_new_tokens or bool(self.rows_ended_before(count).all())
        )

    def rows_ended_before(self, step: int) -> Tensor:
        """Return which rows [b] had an end token before a step, bool."""
        ends = torch.tensor(self.group.eos_token_ids, dtype=torch.int64)
        while len(self._ended) <= step:
            known = len(self._ended)
            before = torch.zeros(self.group.rows, dtype=torch.bool)
            self._ended.append(self._ended[-1] | torch.isin(self.got[known - 1], ends) if known else before)
        return self._ended[step]

    def remaining(self) -> tuple[Group, Any]:
        """Return the group and its input as it restarts, with the tokens so far in its prompts."""
        group, x = self.group, self.x
        if self.got:
            got = torch.stack(self.got, dim=1)
            group, x = group.continued(got), torch.cat([x, got], dim=1)
        return group, {**self.images, "input_ids": x} if self.images else x


class Generation:
    """A batch in flight, returned by `Pipeline.submit`.

    `on_tokens(tokens)` is called for each step with the new tokens [B] of all rows (the pad token in rows that have
    ended), `on_end(error)` once after the last step; both by a thread of the pipeline, so they must return immediately.
    So are `on_prompt_logprobs`, once before the first step, and `on_logprobs`, before `on_tokens` of each, if
    log-probabilities were asked for.
    """

    def __init__(
        self,
        states: Iterable[GroupState],
        *,
        pad_token_id: int = 0,
        on_tokens: OnTokens | None = None,
        on_end: OnEnd | None = None,
        send_cancel: Callable[[int], None] | None = None,
        stopping: Stopping | None = None,
        on_logprobs: OnLogprobs | None = None,
        on_prompt_logprobs: OnPromptLogprobs | None = None,
        returns_dict: bool = False,
    ) -> None:
        self.states = {state.group.id: state for state in states}
        self._pad_token_id = pad_token_id
        self._on_tokens = on_tokens
        self._on_end = on_end
        self._send_cancel = send_cancel or _ignore
        self._stopping = stopping
        self._on_logprobs = on_logprobs
        self._on_prompt_logprobs = on_prompt_logprobs
        self._scores: tuple[Tensor, ...] | None = None  # of the steps that criteria have seen
        self._emitted = 0
        self.returns_dict = returns_dict
        self.is_resumed = False
        self.key: str | None = None
        self._over = threading.Event()
        self._finishing = threading.Lock()
        self._error: BaseException | None = None
        self.is_cancelled = False

    @property
    def new_tokens(self) -> int:
        """The number of steps of the row with the most tokens."""
        if self._stopping is not None:
            return self._emitted
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
        if self._stopping is not None:
            return self._stopping.input_ids
        taken = [(state, list(state.got)) for state in self.states.values()]  # more may arrive meanwhile
        most = max(len(got) for _, got in taken)
        rows = []
        for state, got in taken:
            padding = torch.full((state.group.rows, most - len(got)), self._pad_token_id)
            rows.append(torch.cat([state.x, *(tokens[:, None] for tokens in got), padding], dim=1))
        return torch.cat(rows)

    def logprobs(self) -> list[list[TokenLogprobs]]:
        """Return the log-probabilities of the new tokens of each row up to its end, if they were asked for."""
        steps = [self._step_logprobs(step) for step in range(self.new_tokens)]
        return [[one for one in row if one is not None] for row in zip(*steps, strict=True)]

    def prompt_logprobs(self) -> list[list[TokenLogprobs | None]]:
        """Return those of the tokens of the prompts, if they were asked for; None for padding and the first token."""
        return [row for state in self.states.values() for row in _of_prompts(state)]

    def logits(self) -> tuple[Tensor, ...]:
        """Return the model's logits [B, V] of each step, if they were asked for."""
        return self._of_steps(lambda details: details.logits)

    def scores(self) -> tuple[Tensor, ...]:
        """Return what logits processors made of the logits [B, V] of each step, if they were asked for."""
        return self._of_steps(lambda details: details.scores)

    def outputs(self) -> dict[str, Tensor]:
        """Return the model's outputs by name, [B, ...]."""
        parts = [state.outputs or {} for state in self.states.values()]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    # The methods below are for the pipeline.

    @property
    def has_criteria(self) -> bool:
        """Whether criteria of the caller end rows."""
        return self._stopping is not None

    def resume(self, rows: Sequence[Sequence[int]], seed: int | None) -> None:
        """Begin with tokens that the rows [B] have got from another coordinator, which drew them with a seed.

        To be called before the batch is submitted.
        """
        self.is_resumed, first = True, 0
        for state in self.states.values():
            group = state.group
            own, first = rows[first : first + group.rows], first + group.rows
            if group.sampling is not None and seed is not None:
                state.group = replace(group, sampling=replace(group.sampling, seed=seed))
            # Groups are divided as this plan has it: what all rows of one have.
            state.got = [torch.tensor(step) for step in zip(*own, strict=False)][: group.max_new_tokens]
        self._emit()

    def take(self, group: int, tokens: Sequence[int], details: bytes | None = None) -> None:
        """Add a token to each row of a group, with the words of its details."""
        state = self.states[group]
        if details is not None and state.group.details is not None:
            words = torch.frombuffer(bytearray(details), dtype=torch.int64).reshape(len(tokens), -1)
            asked = state.group.details if not state.got else replace(state.group.details, prompt_logprobs=None)
            state.details.append([unpack_details(row, asked) for row in words])
        state.got.append(torch.tensor(tokens, dtype=torch.int64))
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
        """Call the caller's functions for steps that all groups have made, or ended before."""
        calls = (self._on_tokens, self._on_logprobs, self._on_prompt_logprobs, self._stopping)
        if all(call is None for call in calls) or (self._stopping is not None and self._stopping.is_over):
            return
        states = self.states.values()
        for step in itertools.count(self._emitted):
            if any(state.ended_in is None and len(state.got) <= step for state in states):
                return
            if all(len(state.got) <= step for state in states):
                return
            try:
                self._emit_step(step)
            except BaseException as error:
                # The error is the caller's own, and the thread that called it serves others too.
                self._forget_calls()
                self.cancel()
                self._finish(error)
                return
            if self._stopping is not None and self._stopping.is_over:
                self.cancel()
                return

    def _emit_step(self, step: int) -> None:
        tokens = self._step_tokens(step)
        if self._stopping is not None:
            details = next(iter(self.states.values())).group.details
            if details is not None and details.has_scores:
                self._scores = (*(self._scores or ()), *self._of_steps(lambda one: one.scores, first=step))
            tokens = self._stopping.add(tokens, self._scores)
        self._emitted = step + 1
        if step == 0 and self._on_prompt_logprobs is not None:
            self._on_prompt_logprobs(self.prompt_logprobs())
        if self._on_logprobs is not None:
            self._on_logprobs(self._step_logprobs(step))
        if self._on_tokens is not None:
            self._on_tokens(tokens)

    def _step_tokens(self, step: int) -> Tensor:
        """Return the tokens [B] of a step."""
        return torch.cat(
            [
                state.got[step] if len(state.got) > step else torch.full((state.group.rows,), self._pad_token_id)
                for state in self.states.values()
            ]
        )

    def _step_logprobs(self, step: int) -> list[TokenLogprobs | None]:
        """Return the log-probabilities of the tokens of a step, None in rows that had ended."""
        found: list[TokenLogprobs | None] = []
        for state in self.states.values():
            ended = state.rows_ended_before(min(step, len(state.got)))
            for row in range(state.group.rows):
                is_over = bool(ended[row]) or (
                    self._stopping is not None and self._stopping.has_ended(len(found), step)
                )
                own = state.details[step][row].logprobs if len(state.details) > step and not is_over else None
                found.append(None if own is None else token_logprobs([int(state.got[step][row])], own)[0])
        return found

    def _of_steps(self, choose: Callable[[TokenDetails], Tensor | None], *, first: int = 0) -> tuple[Tensor, ...]:
        """Return what details of all rows have, of each step from the `first` on; groups with it run as one."""
        state = next(iter(self.states.values()))
        last = len(state.details) if self._stopping is None else max(self._emitted, first + 1)
        steps = [[choose(details) for details in step] for step in state.details[first:last]]
        rows = [[one for one in step if one is not None] for step in steps]
        return tuple(torch.stack(step) for step in rows if step)

    def _forget_calls(self) -> None:
        self._on_tokens = self._on_logprobs = self._on_prompt_logprobs = self._stopping = None

    def _finish(self, error: BaseException | None) -> None:
        with self._finishing:  # exactly one thread ends the batch
            if self._over.is_set():
                return
            self._error = error
            self._over.set()
        self._on_tokens = self._on_logprobs = self._on_prompt_logprobs = None  # `on_end` is the last call
        self._send_cancel = _ignore  # a result that is kept must not keep the pipeline's sessions
        if self._on_end is not None:
            with suppress(Exception):  # as above, and nobody is left to report it to
                self._on_end(error)


def _of_prompts(state: GroupState) -> list[list[TokenLogprobs | None]]:
    """Return the log-probabilities of the prompts of a group."""
    mask = state.group.attention_mask()
    rows: list[list[TokenLogprobs | None]] = []
    for row, details in enumerate(state.details[0] if state.details else []):
        if details.prompt is None:
            continue
        found = token_logprobs(state.x[row, 1:].tolist(), details.prompt)
        # A token has a log-probability if one before it is no padding.
        known = mask[row].cumsum(dim=0).tolist()
        rows.append([None, *(one if known[place] > 1 else None for place, one in enumerate(found, start=1))])
    return rows


def _ignore(_group: int) -> None:
    pass
