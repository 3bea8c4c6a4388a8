"""Calls of a pipeline: the batch of each, made of its arguments, waited for, and measured."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from orbitsplit._errors import TransportError
from orbitsplit._models.source import read_config
from orbitsplit._plans.plan import Plan
from orbitsplit.runtime._messages.control import StageRecord, stage_name

from . import log
from .generation import Generation
from .generation_options import GenerationOptions
from .generation_output import output_of
from .images import ImagePrompts
from .own_loop import generate_in_loop
from .replicas import key_of, model_of
from .request import forward_of, generation_of, request_of
from .run_report import Run, measure
from .session import Callbacks, Settings
from .sessions import Sessions


class Calls:
    """The calls of one pipeline, whose batches its sessions run; `last_run` is what the last one measured.

    With `strict_memory`, stages that used more memory than their nodes have are an error. Where several coordinators
    share hosts, another one may resume a batch, which it finds by its key.
    """

    def __init__(self, sessions: Sessions, settings: Settings, callbacks: Callbacks, *, strict_memory: bool) -> None:
        self.last_run: Run | None = None
        self._sessions = sessions
        self._callbacks = callbacks
        self._strict_memory = strict_memory
        self._images = ImagePrompts(settings.model)
        self._path = settings.model
        self._emulates = settings.deployment.emulates
        self._is_replicated = settings.deployment.is_replicated

    def generation(
        self,
        function: str,
        prompts: tuple[Any, Any],
        options: GenerationOptions | None,
        keywords: Mapping[str, Any],
        **how: Any,
    ) -> Generation:
        """Return the batch of a call. Raises for wrong arguments, and TransportError if the pipeline has ended."""
        sessions = self._sessions
        sessions.lifetime.check_usable()
        request = request_of(function, *prompts, options, keywords, sessions.ready[0], self._images, **how)
        generation = generation_of(
            request,
            sessions.ready[0],
            micro_batches=sessions.plan.workload.micro_batches,
            chunk_tokens=sessions.current.chunk_tokens,
            draft_tokens=sessions.plan.draft_tokens,
            runs_chunks=sessions.current.runs_chunks,
            runs_packs=sessions.current.runs_packs,
            # Called from any thread; one operation of the interpreter, so that no two threads get the same number.
            next_number=sessions.group_numbers.__next__,
            send_cancel=sessions.cancel,
        )
        if self._is_replicated:
            model = model_of(sessions.current.plan, sessions.current.ready)
            generation.key = key_of(generation, seed=request.options.seed, model=model)
        return generation

    def loop(self, prompts: tuple[Any, Any], keywords: Mapping[str, Any], timeout_s: float | None) -> Any:
        """Generate as a model does that has a loop around generate of its own, and return what that returns.

        None for other models, and for a call that says with which tokens the decoder starts. `timeout_s` is that of
        each time that the loop generates.
        """
        self._sessions.lifetime.check_usable()
        encoder = self._sessions.ready[0].encoder
        if encoder is None or not encoder.has_own_loop or keywords.get("decoder_input_ids") is not None:
            return None
        input_ids, attention_mask = prompts
        given = dict(keywords)
        features = given.pop("inputs", None) if input_ids is None else input_ids
        if features is not None:
            given[encoder.name] = features
        if attention_mask is not None:
            given["attention_mask"] = attention_mask

        def generate(inner: dict[str, Any]) -> Any:
            mask = inner.pop("attention_mask", None)
            generation = self.generation("generate", (None, mask), None, inner, is_recorded=True)
            self.run(generation, timeout_s)
            return _result(generation)

        config = read_config(self._path)
        return generate_in_loop(config, self._sessions.ready[0].generation_config, generate, given)

    def generate(
        self,
        prompts: tuple[Any, Any],
        options: GenerationOptions | None,
        keywords: Mapping[str, Any],
        streamer: BaseStreamer | None,
        timeout_s: float | None,
    ) -> Any:
        """Generate and return what transformers' generate does, a tensor or its object; see `Pipeline.generate`."""
        looped = self.loop(prompts, keywords, timeout_s) if options is None and streamer is None else None
        if looped is not None:
            return looped
        on_tokens = None if streamer is None else streamer.put
        generation = self.generation("generate", prompts, options, keywords, is_recorded=True, on_tokens=on_tokens)
        if streamer is not None:
            streamer.put(generation.tokens())
        self.run(generation, timeout_s)
        if streamer is not None:
            streamer.end()
        return _result(generation)

    def stream(
        self, prompts: tuple[Any, Any], options: GenerationOptions | None, keywords: Mapping[str, Any]
    ) -> Iterator[Tensor]:
        """Submit a batch with the first step that is read, and yield the new tokens of each; see `Pipeline.stream`."""
        steps: queue.SimpleQueue[Tensor | BaseException | None] = queue.SimpleQueue()
        generation = self.generation("stream", prompts, options, keywords, on_tokens=steps.put, on_end=steps.put)
        self._sessions.submit(generation)
        try:
            while isinstance(step := steps.get(), Tensor):
                yield step
        finally:
            generation.cancel()
        if step is not None:
            raise step

    def forward(self, inputs: dict[str, Tensor]) -> Generation:
        """Return the batch of one forward without a cache. Raises as `generation`."""
        sessions = self._sessions
        sessions.lifetime.check_usable()
        micro_batches = sessions.plan.workload.micro_batches
        return forward_of(
            inputs, sessions.ready[0], micro_batches=micro_batches, next_number=sessions.group_numbers.__next__
        )

    def run(self, generation: Generation, timeout_s: float | None) -> None:
        """Submit a batch, wait for it, and measure it."""
        steps = max(1, *(state.group.max_new_tokens for state in generation.states.values()))

        def report() -> None:
            self._callbacks.progress("generating", min(1.0, generation.new_tokens / steps))

        self._sessions.submit(generation)
        try:
            generation.wait(timeout_s, on_poll=report)
            self.last_run = self._measure(generation)
            self._check_memory(generation)
        except BaseException as error:
            if isinstance(error, TransportError) and error.kind == "timeout" and not generation.is_over:
                error = _timed_out(self._sessions.plan, error)
            # An error of this batch alone, or of the caller's own streamer, must not end what serves others.
            if not generation.is_over:
                self._sessions.fail(error)
            raise error from None
        self._callbacks.progress("generating", 1.0)

    def _check_memory(self, generation: Generation) -> None:
        """Warn of stages that used more memory than their nodes have; with `strict_memory` raise TransportError."""
        excess = None if self.last_run is None else self.last_run.memory_excess()
        if excess is None:
            return
        if self._strict_memory:
            generates = all(state.group.generates for state in generation.states.values())
            raise TransportError(excess, kind="memory", tokens=generation.tokens() if generates else None)
        log.memory_exceeded(excess)

    def _measure(self, generation: Generation) -> Run | None:
        """Return the measurements of a batch, None if it ran in several sessions, or began with another coordinator."""
        if generation.is_resumed:
            return None
        states = list(generation.states.values())
        groups = [state.group for state in states]
        found = self._sessions.records(groups, {state.ended_in for state in states})
        if found is None:
            return None
        session, records = found
        parsed = [[StageRecord.from_json(data) for data in of_stage] for of_stage in records]
        return measure(session.plan, groups, generation.new_tokens, session.ready, parsed, emulates=self._emulates)


def _result(generation: Generation) -> Any:
    """Return what a call generated in the form that it asked for."""
    return output_of(generation) if generation.returns_dict else generation.tokens()


def _timed_out(plan: Plan, error: TransportError) -> TransportError:
    """Return the error of a batch that took too long, with the name of the first stage."""
    return TransportError(
        f"{stage_name(plan, 0)} {error}", kind="timeout", node=plan.stages[0].node, tokens=error.tokens
    )
