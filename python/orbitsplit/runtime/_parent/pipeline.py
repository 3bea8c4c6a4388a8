"""Run a plan: one process per stage, tokens and outputs like transformers' own, and on it goes after a failure."""

from __future__ import annotations

import os
import queue
import random
import warnings
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer
from transformers.utils.generic import ModelOutput

from orbitsplit._codebook.codebook import Codebook
from orbitsplit._errors import TransportError
from orbitsplit._models.source import layer_count, open_model, read_config
from orbitsplit._network.link_conditions import LinkConditions
from orbitsplit._plans.plan import Plan
from orbitsplit.runtime._messages.control import SECRET_VARIABLE, StageRecord
from orbitsplit.runtime._messages.groups import Group, Sampling, described_inputs, packed_mask, rows_of

from .generation import Generation, GroupState, OnEnd, OnTokens
from .prompts import check_inputs, check_token, check_tokens, padding_mask
from .recovery import Recovery, Replan
from .run_report import Run, measure
from .session import Callbacks, Progress, Where
from .sessions import Sessions

# Temperature, top_k and top_p of transformers' generate where neither the caller nor the model says any.
_USUAL_SAMPLING = (1.0, 50, 1.0)


class Pipeline:
    """The processes of a plan: started on construction, ended by `close` or at the end of a `with` block.

    `model` is a directory, a hub id or a GGUF file; the plan's model by default. Each process loads the weights of
    its own stage only (and compares them with the `codebook`, which a plan with levels needs: itself or its file), in
    `dtype` (float32, bfloat16 or float16), and computes with `threads` threads; both are the plan's by default, and
    `plan` is the plan with what is in force. Links have the rates and latencies of the plan, or what `conditions` say
    of them over time, and nodes their slow-downs. At most `most_groups` groups of sequences are under way at once (by
    default the plan's micro-batches, or as many as there are stages); others wait their turn.

    Processes have `start_timeout_s` seconds to get ready. Later one that gives no sign of life for
    `heartbeat_timeout_s` seconds is lost, and so is a link whose message is `stall_timeout_s` seconds late. After a
    loss `replan(plan, nodes, links)` is asked for a plan without the nodes and links lost so far (see `replanner`);
    what was being generated goes on from the tokens there are, and `recoveries` says what happened. Their caches are
    made anew as they were made, token by token, so that the text is what it would have been; without `exact_resume` in
    one forward, which is sooner and rounds differently (figures: docs/guides/machines.md). Without `replan`, or if it
    finds no plan, all processes end and what was under way raises TransportError, as does all further use. A frame that
    arrives damaged is no loss: it is sent again.

    With a `secret`, messages between stages are authenticated. `progress` is called with a phase and a fraction.
    `last_run` holds the measurements of the last `generate` or `forward`, None if something was lost during it.

    Example:
        >>> with Pipeline(plan, "path-or-hub-id") as pipe:                     # doctest: +SKIP
        ...     tokens = pipe.generate(input_ids, attention_mask=mask, max_new_tokens=64)

    Raises:
        ValueError: The plan is for another number of layers, no model is given, the codebook is not the plan's, or the
            weights of a stage exceed the memory of its node.
        TransportError: A process failed to get ready; the message names its node.
    """

    def __init__(
        self,
        plan: Plan,
        model: str | Path | None = None,
        *,
        codebook: Codebook | str | Path | None = None,
        dtype: str | None = None,
        threads: int | None = None,
        conditions: LinkConditions | None = None,
        replan: Replan | None = None,
        exact_resume: bool = True,
        most_groups: int | None = None,
        secret: str | None = None,
        start_timeout_s: float = 600.0,
        heartbeat_timeout_s: float = 8.0,
        stall_timeout_s: float = 10.0,
        progress: Progress | None = None,
        where: Where | None = None,
    ) -> None:
        model = plan.model if model is None else model
        if model is None:
            raise ValueError("the plan names no model: pass one to Pipeline")
        if most_groups is not None and most_groups < 1:
            raise ValueError(f"most_groups is {most_groups}, it must be at least 1")
        plan = replace(plan, dtype=dtype or plan.dtype, threads=plan.threads if threads is None else threads)
        if conditions is not None:
            conditions.check(stage.node for stage in plan.stages)
        self.last_run: Run | None = None
        self._callbacks = Callbacks(progress or (lambda phase, fraction: None), replan)
        if secret == "" or os.environ.get(SECRET_VARIABLE) == "":
            raise ValueError(f"the secret is empty; give none, and unset {SECRET_VARIABLE}, for messages without one")
        path = open_model(model, progress=progress)
        _check_layers(plan, path)
        self._sessions = Sessions(
            plan,
            path,
            codebook=codebook,
            conditions=conditions,
            exact_resume=exact_resume,
            callbacks=self._callbacks,
            most_groups=most_groups,
            secret=secret,
            start_timeout_s=start_timeout_s,
            heartbeat_timeout_s=heartbeat_timeout_s,
            stall_timeout_s=stall_timeout_s,
            where=where or Where(),
        )
        self._finalizer = weakref.finalize(self, _abandon, self._sessions)

    @property
    def plan(self) -> Plan:
        """The plan that is running: after a loss, the one that was found for what is left."""
        return self._sessions.plan

    @property
    def pids(self) -> tuple[int, ...]:
        """The process id of each stage."""
        return self._sessions.pids

    @property
    def recoveries(self) -> tuple[Recovery, ...]:
        """What was lost so far, and how it went on."""
        return tuple(self._sessions.recoveries)

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        max_new_tokens: int,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        do_sample: bool = False,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        streamer: BaseStreamer | None = None,
        timeout_s: float | None = None,
    ) -> Tensor:
        """Generate and return prompts and new tokens [B, S + new], as transformers' generate does.

        `input_ids` [B, S] are int64, shorter prompts padded on the left and masked by `attention_mask` [B, S]; without
        a mask, padding is told from the pad token, unless that ends a sequence too. Stops at `max_new_tokens` or when
        every row has ended; ended rows are filled with the pad token. The tokens default to those of the model's
        generation config; an empty sequence for `eos_token_id` ends no row early. Greedy, or with `do_sample` drawn:
        the same tokens as transformers' after `torch.manual_seed(seed)`, with `temperature`, `top_k` and `top_p` of the
        generation config where they are not given. The batch runs in as many groups as the plan has micro-batches (at
        most B). Other settings of the generation config (penalties, forced tokens) are not applied. A `streamer` of
        transformers gets the prompts and then each step's tokens.

        Raises:
            ValueError: Shapes, types, counts, tokens or padding are wrong. The pipeline can be used again.
            TransportError: A node or a link failed and nothing could go on, or `timeout_s` seconds passed; `tokens` are
                those so far. The pipeline cannot be used again.
        """
        on_tokens: OnTokens | None = None
        if streamer is not None:
            on_tokens = streamer.put
        generation = self._prepare(
            input_ids,
            attention_mask,
            max_new_tokens=max_new_tokens,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            sampling=self._sampling(do_sample, temperature, top_k, top_p, seed),
            is_recorded=True,
            on_tokens=on_tokens,
            on_end=None,
        )
        if streamer is not None:
            streamer.put(input_ids)
        self._run(generation, max_new_tokens, timeout_s)
        if streamer is not None:
            streamer.end()
        return generation.tokens()

    def submit(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        max_new_tokens: int,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        do_sample: bool = False,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        on_tokens: OnTokens | None = None,
        on_end: OnEnd | None = None,
    ) -> Generation:
        """Start to generate and return at once; arguments as for `generate`. May be called from any thread.

        `on_tokens(tokens)` is called for each step with the new tokens [B], `on_end(error)` once at the end, both by a
        thread of the pipeline: they must return at once.

        Raises ValueError for wrong arguments, TransportError if the pipeline has ended.
        """
        generation = self._prepare(
            input_ids,
            attention_mask,
            max_new_tokens=max_new_tokens,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            sampling=self._sampling(do_sample, temperature, top_k, top_p, seed),
            is_recorded=False,
            on_tokens=on_tokens,
            on_end=on_end,
        )
        self._sessions.submit(generation)
        return generation

    def stream(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Iterator[Tensor]:
        """Yield the new tokens [B] of each step as they come; arguments as for `submit`, without its callbacks.

        What is not read to its end is cancelled. Raises as `generate`.
        """
        steps: queue.SimpleQueue[Tensor | BaseException | None] = queue.SimpleQueue()
        generation = self.submit(input_ids, attention_mask, on_tokens=steps.put, on_end=steps.put, **options)
        try:
            while isinstance(step := steps.get(), Tensor):
                yield step
        finally:
            generation.cancel()
        if step is not None:
            raise step

    def forward(self, *, timeout_s: float | None = None, **inputs: Tensor) -> ModelOutput:
        """Run one forward without a cache and return the model's output by name, as tensors [B, ...].

        `inputs` are the model's: input_ids and attention_mask [B, S], token_type_ids, pixel_values [B, C, H, W]. The
        batch runs in as many groups as the plan has micro-batches (at most B).

        Raises as `generate`.
        """
        rows, tokens = check_inputs(inputs, vocabulary=self._sessions.ready[0].vocabulary)
        mask = inputs.get("attention_mask")
        states = []
        for part in rows_of(rows, min(self.plan.workload.micro_batches, rows)):
            own = {name: value[part] for name, value in inputs.items()}
            group = Group(
                id=self._number(),
                rows=part.stop - part.start,
                tokens=tokens,
                mask=None if mask is None else packed_mask(mask[part]),
                max_new_tokens=0,
                inputs=described_inputs(own),
                is_recorded=True,
            )
            states.append(GroupState(group, own))
        generation = Generation(states)
        self._run(generation, 1, timeout_s)
        return ModelOutput(generation.outputs())

    def close(self) -> None:
        """End all processes. Closing twice is fine."""
        self._sessions.close()
        self._finalizer.detach()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        *,
        max_new_tokens: int,
        eos_token_id: int | Sequence[int] | None,
        pad_token_id: int | None,
        sampling: Sampling | None,
        is_recorded: bool,
        on_tokens: OnTokens | None,
        on_end: OnEnd | None,
    ) -> Generation:
        self._sessions.check_usable()
        model = self._sessions.ready[0]
        if not model.generates or model.vocabulary is None:
            raise ValueError("the model does not generate tokens: use forward")
        check_tokens(input_ids, vocabulary=model.vocabulary)
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}, it must be at least 1")
        if eos_token_id is None:
            eos_token_id = model.eos_token_ids
        eos = (eos_token_id,) if isinstance(eos_token_id, int) else tuple(eos_token_id)
        pad = model.pad_token_id if pad_token_id is None else pad_token_id
        mask = padding_mask(input_ids, attention_mask, pad_token_id=pad, eos_token_ids=eos)
        if pad is None:
            pad = eos[0] if eos else 0
        # Ended rows of a group go on with it through the model.
        check_token("pad_token_id is", pad, vocabulary=model.vocabulary)
        rows, tokens = input_ids.shape
        input_ids = input_ids.to("cpu", torch.int64)
        states = []
        for part in rows_of(rows, min(self.plan.workload.micro_batches, rows)):
            group = Group(
                id=self._number(),
                rows=part.stop - part.start,
                tokens=tokens,
                mask=packed_mask(mask[part].cpu()),
                max_new_tokens=max_new_tokens,
                eos_token_ids=eos,
                pad_token_id=pad,
                sampling=sampling and replace(sampling, rows=rows, first_row=part.start),
                is_recorded=is_recorded,
            )
            states.append(GroupState(group, input_ids[part]))
        return Generation(
            states, pad_token_id=pad, on_tokens=on_tokens, on_end=on_end, send_cancel=self._sessions.cancel
        )

    def _number(self) -> int:
        # Taken from any thread; one operation of the interpreter, so no two get the same.
        return next(self._sessions.group_numbers)

    def _sampling(
        self,
        do_sample: bool,
        temperature: float | None,
        top_k: int | None,
        top_p: float | None,
        seed: int | None,
    ) -> Sampling | None:
        if not do_sample:
            return None
        of_model = self._sessions.ready[0].sampling
        found = [_first(*values) for values in zip((temperature, top_k, top_p), of_model, _USUAL_SAMPLING, strict=True)]
        temperature, top_k, top_p = float(found[0]), int(found[1]), float(found[2])
        if not temperature > 0 or top_k < 0 or not 0 < top_p <= 1:
            raise ValueError(
                f"temperature {temperature} must be above 0, top_k {top_k} at least 0, top_p {top_p} from above 0 to 1"
            )
        return Sampling(random.getrandbits(63) if seed is None else seed, temperature, top_k, top_p)

    def _run(self, generation: Generation, steps: int, timeout_s: float | None) -> None:
        """Submit a batch, wait for it, and take the measurements."""

        def report() -> None:
            self._callbacks.progress("generating", min(1.0, generation.new_tokens / steps))

        self._sessions.submit(generation)
        try:
            generation.wait(timeout_s, on_poll=report)
            self.last_run = self._measure(generation)
        except BaseException as error:
            if isinstance(error, TransportError) and error.kind == "timeout" and not generation.is_over:
                error = self._sessions.late(error)
            # An error of the caller's own streamer is no reason to end what serves others.
            if isinstance(error, TransportError) or not generation.is_over:
                self._sessions.fail(error)
            raise error from None
        self._callbacks.progress("generating", 1.0)

    def _measure(self, generation: Generation) -> Run | None:
        """Return what stages recorded, None where they did not in one session."""
        states = list(generation.states.values())
        groups = [state.group for state in states]
        found = self._sessions.records(groups, {state.ended_in for state in states})
        if found is None:
            return None
        session, records = found
        parsed = [[StageRecord.from_json(data) for data in of_stage] for of_stage in records]
        return measure(session.plan, groups, generation.new_tokens, session.ready, parsed)


def _abandon(sessions: Sessions) -> None:
    if sessions.abandon():
        message = f"a pipeline of {len(sessions.plan.stages)} processes was dropped without close(): they are ended now"
        warnings.warn(message, ResourceWarning, stacklevel=2)


def _first(*values: float | None) -> float:
    """Return the first of the values that is one."""
    return next(value for value in values if value is not None)


def _check_layers(plan: Plan, model: str | Path) -> None:
    layers = layer_count(read_config(model))
    if plan.layers != layers + 2:
        raise ValueError(
            f"the plan has {plan.layers} layers, {model} has {layers + 2} "
            f"(embeddings, {layers} transformer layers, head)"
        )
