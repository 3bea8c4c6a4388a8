"""One choice of a response: the engine's thread delivers tokens, the event loop's thread takes text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._api_error import ApiError
from ._detokeniser import Detokeniser, TokenDecoder
from ._engine import Engine, Submitted
from ._scored_token import ScoredToken, TokenLogprobs, scored
from ._stop_strings import StopStrings


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What the engine generates for one choice: tokens after a prompt, until an end token, a stop string or a limit.

    With a limit of 0 the engine, which gives one token at least, is asked for one, which is dropped.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    eos_token_ids: tuple[int, ...]
    stop: tuple[str, ...]
    sampling: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that is new, and the new tokens if their log-probabilities are asked for; `prompt`: the prompt's, once."""

    text: str = ""
    tokens: tuple[ScoredToken, ...] = ()
    prompt: tuple[ScoredToken, ...] = ()


class Generation:
    """A sequence, from before it is submitted until both engine and response have finished with it: then `on_released`.

    All methods but `start` are for the event loop's thread. Tokens become text as they arrive, not when the response
    takes them, so that a stop string ends the engine's work however slow the client is; at most the text of
    `max_new_tokens` tokens is buffered. `on_change` is called when there is more to `take`, and at the end.
    """

    def __init__(self, on_change: Callable[[], None], on_released: Callable[[Generation], None]) -> None:
        self.tokens = 0
        self.finish_reason: str | None = None
        self.error: BaseException | None = None
        # On the monotonic clock; 0 for what has not happened, also where the engine refused.
        self.submitted_s = self.first_token_s = self.last_token_s = 0.0
        self._on_change = on_change
        self._on_released = on_released
        self._loop = asyncio.get_running_loop()
        self._pieces: list[str] = []
        self._scored: list[ScoredToken] = []
        self._scored_prompt: tuple[ScoredToken, ...] = ()
        self._logprobs: list[TokenLogprobs | None] = []  # of the tokens that come next
        self._submitted: Submitted | None = None
        self._is_with_engine = False
        self._is_cancelled = False
        self.is_closed = False

    @property
    def is_finished(self) -> bool:
        """Whether no more text comes."""
        return self.finish_reason is not None or self.error is not None

    def start(self, engine: Engine, decoder: TokenDecoder, request: EngineRequest) -> None:
        """Submit the sequence, in a worker thread because that may block.

        Raises ApiError 400 for arguments that the engine refuses, and whatever else `Engine.submit` raises.
        """
        self._decoder = decoder
        self._detokeniser = Detokeniser(decoder, request.prompt)
        self._stops = StopStrings(request.stop)
        self._eos_token_ids: Collection[int] = frozenset(request.eos_token_ids)
        self._max_new_tokens = request.max_new_tokens
        self._first_token = request.prompt[0]
        input_ids = torch.tensor([request.prompt], dtype=torch.int64)
        callbacks: dict[str, Any] = {}
        if "logprobs" in request.sampling:
            callbacks["on_logprobs"] = lambda step: self._post(self._keep_logprobs, step)
        if "prompt_logprobs" in request.sampling:
            callbacks["on_prompt_logprobs"] = lambda rows: self._post(self._keep_prompt, rows[0])
        self._is_with_engine = True
        self.submitted_s = time.monotonic()
        try:
            self._submitted = engine.submit(
                input_ids,
                max_new_tokens=max(1, request.max_new_tokens),
                eos_token_id=request.eos_token_ids,
                **request.sampling,
                **callbacks,
                on_tokens=self._on_tokens,
                on_end=self._on_end,
            )
        except BaseException as error:
            self._is_with_engine, self.submitted_s = False, 0.0
            if isinstance(error, ValueError):
                raise ApiError(400, f"the pipeline refuses the request: {error}") from error
            raise
        if self._is_cancelled:  # meanwhile, by the event loop, which had nothing to cancel then
            self._submitted.cancel()

    def take(self) -> Piece:
        """Return the text and tokens since the last call."""
        piece = Piece("".join(self._pieces), tuple(self._scored), self._scored_prompt)
        self._pieces.clear()
        self._scored.clear()
        self._scored_prompt = ()
        return piece

    def fail(self, error: BaseException) -> None:
        """End the sequence with an error, unless it is finished."""
        if not self.is_finished:
            self.error = error
            self._cancel()
            self._on_change()

    def close(self) -> None:
        """Note that the response needs no more: cancel what still runs."""
        self.is_closed = True
        if not self.is_finished:
            self._cancel()
        self._release()

    def _cancel(self) -> None:
        self._is_cancelled = True
        if self._submitted is not None:
            self._submitted.cancel()

    def _release(self) -> None:
        if self.is_closed and not self._is_with_engine:
            self._submitted = None  # it refers to this object: a cycle would outlive thousands of requests
            self._on_released(self)

    def _on_tokens(self, tokens: Tensor) -> None:
        self._post(self._feed, tokens.tolist())

    def _on_end(self, error: BaseException | None) -> None:
        self._post(self._end, error)

    def _post(self, call: Callable[[Any], None], argument: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, argument)
        except RuntimeError:  # the loop is closed: the server has ended and nobody listens
            if not self._loop.is_closed():
                raise

    def _keep_logprobs(self, step: Sequence[TokenLogprobs | None]) -> None:
        self._logprobs += step

    def _keep_prompt(self, row: Sequence[TokenLogprobs | None]) -> None:
        first = ScoredToken(self._decoder.text_of(self._first_token), None)
        self._scored_prompt = tuple(first if one is None else scored(self._decoder, one) for one in row)

    def _feed(self, tokens: list[int]) -> None:
        if self.is_finished or self.is_closed:
            return
        self.last_token_s = time.monotonic()
        self.first_token_s = self.first_token_s or self.last_token_s
        try:
            for token in tokens if self._max_new_tokens else ():
                self.tokens += 1
                is_end = token in self._eos_token_ids
                if self._logprobs:
                    of = self._logprobs.pop(0)
                    self._scored += [] if of is None else [scored(self._decoder, of, is_end=is_end)]
                if is_end:
                    self._finish("stop")
                elif self._append(self._detokeniser.feed(token)):
                    self.finish_reason = "stop"
                    self._cancel()
                if self.is_finished:
                    break
        except Exception as error:  # a tokenizer's: it must end this choice, not vanish in the loop's log
            self.fail(error)
        self._on_change()

    def _end(self, error: BaseException | None) -> None:
        self._is_with_engine = False
        if error is not None:
            self.fail(error)
        elif not self.is_finished and not self.is_closed:
            try:
                self._finish("length" if self.tokens >= self._max_new_tokens else "stop")
            except Exception as failure:  # as in _feed
                self.fail(failure)
            self._on_change()
        self._release()

    def _finish(self, reason: str) -> None:
        if self._append(self._detokeniser.flush()):
            reason = "stop"
        else:
            self._pieces.append(self._stops.flush())
        self.finish_reason = reason

    def _append(self, text: str) -> bool:
        """Add text up to a stop string; return whether there is one."""
        certain, is_stopped = self._stops.feed(text) if text else ("", False)
        if certain:
            self._pieces.append(certain)
        return is_stopped
