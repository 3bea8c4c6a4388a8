"""Run a plan: one process per stage, with the tokens and outputs of transformers, and recovery after losses."""

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
from orbitsplit._io.deprecation import renamed_keywords
from orbitsplit._models.source import layer_count, open_model, read_config
from orbitsplit._network.link_conditions import LinkConditions
from orbitsplit._plans.plan import Plan
from orbitsplit.runtime._messages.control import SECRET_VARIABLE, StageRecord
from orbitsplit.runtime._messages.groups import Group, Sampling, described_inputs, packed_mask, rows_of

from .generation import Generation, GroupState, OnEnd, OnTokens
from .prompts import check_inputs, check_token, check_tokens, padding_mask
from .recovery import Recovery, Replan
from .run_report import Run, measure
from .session import Callbacks, Deployment, Progress
from .sessions import Sessions
from .unapplied import check_generation

# Temperature, top_k and top_p of transformers' generate where neither the caller nor the model says any.
_USUAL_SAMPLING = (1.0, 50, 1.0)


class Pipeline:
    """The processes of a plan: started on construction, ended by `close` or at the end of a `with` block.

    A pipeline that is dropped without `close` ends its processes with a ResourceWarning.

    `model` is a directory, a hub id or a GGUF file; the plan's model by default. Each process loads only the weights of
    its own stage in `dtype` (float32, bfloat16 or float16) and computes with `threads` threads; both are the plan's by
    default, and `plan` is the plan with the values in force. A plan with levels needs its `codebook` (itself or its
    file), with which the weights are compared. Links have the rates and latencies of the plan, or vary over time as
    `conditions` describe, and nodes have their slow-downs. At most `most_groups` groups of sequences are in flight at
    once (by default the plan's micro-batches, or the number of stages if that is larger); others wait in order.

    Processes have `start_timeout_s` seconds to get ready. Later, a process that sends no heartbeat for
    `heartbeat_timeout_s` seconds is lost, and so is a link whose message is `stall_timeout_s` seconds late. After a
    loss, `replan(plan, nodes, links)` is called for a plan without the nodes and links lost so far (see `replanner`);
    generation resumes from the tokens so far, and `recoveries` reports it. The caches are rebuilt as they were built,
    one known token at a time, so that the text is what it would have been; without `exact_resume` in one forward, which
    is sooner and rounds differently (figures: docs/guides/machines.md). Without `replan`, or if it finds no plan, all
    processes end, and batches in flight and all further calls raise TransportError. A corrupted frame is not a loss: it
    is sent again.

    With a `secret`, messages between stages are authenticated. `progress` is called with a phase and a fraction.
    `last_run` holds the measurements of the last `generate` or `forward`, None if a node or a link was lost during it.

    Example:
        >>> with Pipeline(plan, "path-or-hub-id") as pipe:                     # doctest: +SKIP
        ...     tokens = pipe.generate(input_ids, attention_mask=mask, max_new_tokens=64)

    Raises:
        ValueError: The plan has another number of layers, no model is given, the codebook is not the plan's, or the
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
        deployment: Deployment | None = None,
        **renamed: Any,
    ) -> None:
        deployment = renamed_keywords("Pipeline", renamed, {"where": "deployment"}).get("deployment", deployment)
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
            deployment=deployment or Deployment(),
        )
        self._finalizer = weakref.finalize(self, _abandon, self._sessions)

    @property
    def plan(self) -> Plan:
        """The running plan: after a loss, the plan that replaced the first one."""
        return self._sessions.plan

    @property
    def pids(self) -> tuple[int, ...]:
        """The process id of each stage."""
        return self._sessions.pids

    @property
    def recoveries(self) -> tuple[Recovery, ...]:
        """The recoveries from losses so far."""
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
        a mask, padding is derived from the pad token, unless that ends sequences too. Generation stops at
        `max_new_tokens` or when every row has ended; ended rows are filled with the pad token. Both tokens default to
        those of the model's generation config; an empty sequence for `eos_token_id` ends no row early. Decoding is
        greedy, or with `do_sample` sampled: the tokens of transformers after `torch.manual_seed(seed)`, with
        `temperature`, `top_k` and `top_p` defaulting to the generation config. The batch runs in as many groups as the
        plan has micro-batches (at most B). Other settings of the generation config (penalties, min_p, forced
        tokens) are not applied; a warning names them. A `streamer` of transformers gets the prompts and then each
        step's tokens.

        Raises:
            ValueError: Shapes, types, counts, tokens or padding are wrong, or a text grows beyond the tokens at which
                the model encodes positions differently (longrope). The pipeline can be used again.
            TransportError: A node or a link failed and the pipeline could not recover, or `timeout_s` seconds passed;
                `tokens` are those so far. The pipeline cannot be used again.
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
        """Start to generate and return immediately; arguments as for `generate`. May be called from any thread.

        `on_tokens(tokens)` is called for each step with the new tokens [B], `on_end(error)` once at the end, both by a
        thread of the pipeline: they must return immediately.

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
        """Yield the new tokens [B] of each step as they arrive; arguments as for `submit`, without its callbacks.

        Generation is cancelled if the iterator is not read to its end. Raises as `generate`.
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
        """End all processes and return when they have ended. May be called twice."""
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
        check_generation(
            model,
            mask,
            max_new_tokens=max_new_tokens,
            micro_batches=self.plan.workload.micro_batches,
            is_sampled=sampling is not None,
        )
        if pad is None:
            pad = eos[0] if eos else 0
        # Ended rows of a group still run through the model.
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
        # Called from any thread; one operation of the interpreter, so that no two threads get the same number.
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
        """Submit a batch, wait for it, and measure it."""

        def report() -> None:
            self._callbacks.progress("generating", min(1.0, generation.new_tokens / steps))

        self._sessions.submit(generation)
        try:
            generation.wait(timeout_s, on_poll=report)
            self.last_run = self._measure(generation)
        except BaseException as error:
            if isinstance(error, TransportError) and error.kind == "timeout" and not generation.is_over:
                error = self._sessions.timed_out(error)
            # An error of the caller's own streamer must not end a pipeline that serves others.
            if isinstance(error, TransportError) or not generation.is_over:
                self._sessions.fail(error)
            raise error from None
        self._callbacks.progress("generating", 1.0)

    def _measure(self, generation: Generation) -> Run | None:
        """Return the measurements of a batch, None if it ran in several sessions."""
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
    """Return the first value that is not None."""
    return next(value for value in values if value is not None)


def _check_layers(plan: Plan, model: str | Path) -> None:
    layers = layer_count(read_config(model))
    if plan.layers != layers + 2:
        raise ValueError(
            f"the plan has {plan.layers} layers, {model} has {layers + 2} "
            f"(embeddings, {layers} transformer layers, head)"
        )
