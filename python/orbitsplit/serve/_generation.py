"""One choice of an answer: the engine's thread brings tokens, the event loop's takes text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._detokeniser import Detokeniser
from ._engine import Engine, Submitted
from ._stop_strings import StopStrings


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to generate: the tokens of a prompt continued, until one of the ends."""

    prompt: Sequence[int]
    max_new_tokens: int
    eos_token_ids: tuple[int, ...]
    stops: tuple[str, ...]
    sampling: dict[str, Any]


class Generation:
    """A sequence from before it is submitted until engine and answer are both done with it; then `on_left` is called.

    All methods but `start` are for the event loop's thread. Tokens become text as they arrive, not when somebody reads,
    so that a stop string ends the engine's work however slow the client is; what waits is the text of at most
    `max_new_tokens` tokens. `on_change` is called when there is more to `take`, or an end.
    """

    def __init__(self, on_change: Callable[[], None], on_left: Callable[[Generation], None]) -> None:
        self.tokens = 0
        self.finish_reason: str | None = None
        self.error: BaseException | None = None
        self._on_change = on_change
        self._on_left = on_left
        self._loop = asyncio.get_running_loop()
        self._text = ""
        self._submitted: Submitted | None = None
        self._is_with_engine = False
        self._is_cancelled = False
        self._is_closed = False

    @property
    def is_over(self) -> bool:
        """Whether no more text comes."""
        return self.finish_reason is not None or self.error is not None

    def start(self, engine: Engine, tokenizer: Any, wanted: Wanted) -> None:
        """Submit it, in a thread of its own because that may wait. Raises what `Engine.submit` raises."""
        self._detokeniser = Detokeniser(tokenizer, wanted.prompt)
        self._stops = StopStrings(wanted.stops)
        self._eos_token_ids: Collection[int] = frozenset(wanted.eos_token_ids)
        self._max_new_tokens = wanted.max_new_tokens
        self._is_with_engine = True
        try:
            self._submitted = engine.submit(
                torch.tensor([wanted.prompt], dtype=torch.int64),
                max_new_tokens=wanted.max_new_tokens,
                eos_token_id=wanted.eos_token_ids,
                **wanted.sampling,
                on_tokens=self._tokens_came,
                on_end=self._end_came,
            )
        except BaseException:
            self._is_with_engine = False
            raise
        if self._is_cancelled:  # meanwhile, by the event loop, which had nothing to cancel then
            self._submitted.cancel()

    def take(self) -> str:
        """Return the text that came since the last call."""
        text, self._text = self._text, ""
        return text

    def fail(self, error: BaseException) -> None:
        """End it with an error, unless it is over."""
        if not self.is_over:
            self.error = error
            self._cancel()
            self._on_change()

    def close(self) -> None:
        """The answer needs no more: cancel what still runs."""
        self._is_closed = True
        if not self.is_over:
            self._cancel()
        self._leave()

    def _cancel(self) -> None:
        self._is_cancelled = True
        if self._submitted is not None:
            self._submitted.cancel()

    def _leave(self) -> None:
        if self._is_closed and not self._is_with_engine:
            self._submitted = None  # it knows this one: a cycle would outlive thousands of requests
            self._on_left(self)

    def _tokens_came(self, tokens: Tensor) -> None:
        self._post(self._feed, tokens.tolist())

    def _end_came(self, error: BaseException | None) -> None:
        self._post(self._end, error)

    def _post(self, call: Callable[[Any], None], argument: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, argument)
        except RuntimeError:  # the loop is closed: the server has ended, nobody listens
            if not self._loop.is_closed():
                raise

    def _feed(self, tokens: list[int]) -> None:
        if self.is_over or self._is_closed:
            return
        try:
            for token in tokens:
                self.tokens += 1
                if token in self._eos_token_ids:
                    self._finish("stop")
                elif self._pass_on(self._detokeniser.feed(token)):
                    self.finish_reason = "stop"
                    self._cancel()
                if self.is_over:
                    break
        except Exception as error:  # a tokenizer's: it must end this answer, not vanish in the loop's log
            self.fail(error)
        self._on_change()

    def _end(self, error: BaseException | None) -> None:
        self._is_with_engine = False
        if error is not None:
            self.fail(error)
        elif not self.is_over and not self._is_closed:
            self._finish("length" if self.tokens >= self._max_new_tokens else "stop")
            self._on_change()
        self._leave()

    def _finish(self, reason: str) -> None:
        if self._pass_on(self._detokeniser.flush()):
            reason = "stop"
        else:
            self._text += self._stops.flush()
        self.finish_reason = reason

    def _pass_on(self, text: str) -> bool:
        """Add text up to a stop string; return whether there is one."""
        certain, is_stopped = self._stops.feed(text) if text else ("", False)
        self._text += certain
        return is_stopped
