"""Run a plan: one process per stage, with the tokens and outputs of transformers, and recovery after losses."""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers.generation.streamers import BaseStreamer
from transformers.utils.generic import ModelOutput

from orbitsplit._codebook.codebook import Codebook
from orbitsplit._io.deprecation import renamed_keywords
from orbitsplit._io.validation import check_callable, check_kind
from orbitsplit._network.link_conditions import LinkConditions
from orbitsplit._plans.plan import Plan
from orbitsplit._plans.replanner import Replanner

from . import log
from .arguments import boolean, integer, number
from .calls import Calls
from .fleet_view import describe
from .generation import Generation, OnEnd, OnTokens
from .generation_options import GenerationKeywords, GenerationOptions
from .hosts import Hosts
from .logprobs import OnLogprobs, OnPromptLogprobs
from .migration import Migration
from .options import Timeouts, rebalance_of, timeouts_of
from .prompts import TokenRows
from .rebalancing import Rebalancer
from .recovery import Recovery, Replan
from .run_report import Run
from .session import Callbacks, Deployment, Progress, Settings, on_hosts
from .sessions import Sessions
from .stage_models import open_models
from .status import PipelineStatus

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Pipeline:
    """The processes of a plan: started on construction, ended by `close` or at the end of a `with` block.

    A pipeline that is dropped without `close` ends its processes with a ResourceWarning.

    `model` is a directory, a hub id or a GGUF file; the plan's model by default. A stage with `weights` loads the model
    that the plan's `weight_models` names for them instead. Each process loads only the weights of its own stage in
    `dtype` (float32, bfloat16 or float16) and computes with `threads` threads; both are the plan's by default, and
    `plan` is the plan with the values in force. A plan with levels needs its `codebook` (itself or its file), with
    which the weights are compared. Links have the rates and latencies of the plan, or vary over time as `conditions`
    describe, and nodes have their slowdowns.

    `assistant_model`, named like `model`, is a small causal language model of the same vocabulary. The first stage's
    process loads all of it, in `dtype`, and it guesses the next tokens for calls with `num_assistant_tokens`. Its
    weights and its cache count as memory of that node, which the plan must have left free.

    Steps of different calls share forwards (continuous batching): single sequences whose tokens are ready run through
    the stages together, up to `max_batch_tokens` tokens at once (32 by default; 1: each alone), and join and leave at
    any token. They are spread evenly over as many messages in flight as the plan has micro-batches, or stages if those
    are more. At most `most_groups` groups of sequences are in flight at once, by default as many as the memory of the
    nodes has room for, up to 64; of models whose stages cannot share forwards, and of batches with several rows in a
    micro-batch, as many as messages. Others wait in order.

    With `prefix_cache_tokens`, stages keep the keys and values of up to so many tokens of single sequences of `submit`
    and `stream` that have ended, as far as memory has room, the least recently used go first: a prompt that begins like
    one of them starts behind what they share.

    `timeouts` are the limits after which a start has failed, or a node or a link is lost; the keywords
    `start_timeout_s`, `heartbeat_timeout_s` and `stall_timeout_s` may be given instead. After a loss,
    `replan(plan, nodes, links)` is called for a plan without the nodes and links lost so far (see `replanner`);
    generation resumes from the tokens so far, and `recoveries` reports it. The caches are rebuilt as they were built,
    one known token at a time, so that the text is what it would have been, unless the new plan has other codecs or
    weights that lose something; without `exact_resume` in one forward, which is sooner and rounds differently (figures:
    docs/guides/running.md). Without `replan`, or if it finds no plan, all
    processes end, and batches in flight and all further calls raise TransportError. A corrupted frame is not a loss: it
    is sent again.

    With `rebalance` a pipeline with the `replan` of `replanner` goes over to a better plan while it runs: when a host
    joins, or when stages or links take over 20 % longer or less than predicted, if the rest of the work is worth it
    (docs/guides/machines.md). By default it does so on `hosts`, whose speeds are their own, and not on one machine,
    where stages share processors and another plan does not make them more.

    A stage that used more memory than its node has is logged as a warning and marked in the table of a run; with
    `strict_memory` the call raises TransportError of kind "memory" instead, and the pipeline goes on.

    With `hosts`, each stage runs on the host of its node, and a host that is lost is a lost node. The pipeline waits
    until those of its plan have joined, and messages have a secret, a random one by default. Links and nodes have their
    real speed there; `conditions` emulate them, where all hosts have this machine's clock.

    With a `secret`, messages between stages are authenticated. `progress` is called with a phase and a fraction.
    `last_run` holds the measurements of the last `generate` or `forward`, None if a node or a link was lost, or the
    pipeline migrated, during it.

    Example:
        >>> with Pipeline(plan, "path-or-hub-id") as pipe:                     # doctest: +SKIP
        ...     tokens = pipe.generate(input_ids, attention_mask=mask, max_new_tokens=64)

    Raises:
        TypeError: An argument has the wrong type; the message names it.
        ValueError: An argument has a wrong value, the plan has another number of layers, no model is given, the
            codebook is not the plan's, weights of stages were converted from different models, or the weights of a
            stage exceed the memory of its node.
        TransportError: A process failed to get ready; the message names its node. So it does where stages have layers
            of another model than weights of other stages were converted from.
    """

    def __init__(
        self,
        plan: Plan,
        model: str | Path | None = None,
        *,
        assistant_model: str | Path | None = None,
        codebook: Codebook | str | Path | None = None,
        dtype: str | None = None,
        threads: int | None = None,
        conditions: LinkConditions | None = None,
        replan: Replan | None = None,
        exact_resume: bool = True,
        rebalance: bool | None = None,
        strict_memory: bool = False,
        most_groups: int | None = None,
        max_batch_tokens: int | None = None,
        prefix_cache_tokens: int = 0,
        secret: str | None = None,
        timeouts: Timeouts | None = None,
        progress: Progress | None = None,
        hosts: Hosts | None = None,
        deployment: Deployment | None = None,
        **keywords: Any,
    ) -> None:
        check_kind("plan", plan, Plan)
        timeouts = timeouts_of(timeouts, keywords)
        deployment = renamed_keywords("Pipeline", keywords, {"where": "deployment"}).get("deployment", deployment)
        model = plan.model if model is None else model
        if model is None:
            raise ValueError("the plan names no model: pass one to Pipeline")
        settings = Settings(
            model=model,
            codebook=codebook,
            conditions=conditions,
            exact_resume=exact_resume,
            most_groups=most_groups,
            max_batch_tokens=max_batch_tokens,
            prefix_cache_tokens=prefix_cache_tokens,
            secret=secret,
            timeouts=timeouts,
        )
        if threads is not None:
            threads = integer("threads", threads, least=1)
        rebalances = rebalance_of(rebalance, replan, has_hosts=hosts is not None)
        strict_memory = boolean("strict_memory", strict_memory)
        check_callable("replan", replan)
        check_callable("progress", progress)
        plan = replace(
            plan, dtype=plan.dtype if dtype is None else dtype, threads=plan.threads if threads is None else threads
        )
        if conditions is not None and (unused := conditions.nodes_left_out(stage.node for stage in plan.stages)):
            log.conditions_unused(unused)
        if hosts is not None:
            check_kind("hosts", hosts, Hosts)
            if deployment is not None:
                raise ValueError("hosts and deployment exclude each other: give one of them")
        self._callbacks = Callbacks(progress or (lambda phase, fraction: None), replan)
        path, assistant = open_models(plan, model, assistant_model, progress)
        if hosts is not None:
            deployment = on_hosts(hosts, plan, timeouts, conditions is not None, self._callbacks.progress)
        settings = replace(settings, model=path, assistant=assistant, deployment=deployment or Deployment())
        self._sessions = Sessions(plan, settings, self._callbacks)
        self._calls = Calls(self._sessions, settings, self._callbacks, strict_memory=strict_memory)
        self._finalizer = weakref.finalize(self, _abandon, self._sessions)
        rebalancer = None
        if rebalances and isinstance(replan, Replanner):
            rebalancer = Rebalancer(self._sessions, settings, self._callbacks, replan)
            rebalancer.start()
        if hosts is not None:
            hosts.describe_by(functools.partial(describe, self._sessions, rebalancer))

    @property
    def plan(self) -> Plan:
        """The running plan: after a loss, the plan that replaced the first one."""
        return self._sessions.plan

    @property
    def origin_s(self) -> float:
        """The instant of `time.monotonic` from which the times of `conditions` count: when the pipeline was ready."""
        return self._sessions.origin_s

    @property
    def last_run(self) -> Run | None:
        """The measurements of the last `generate` or `forward`; None if it changed its plan, or there was none."""
        return self._calls.last_run

    @property
    def pids(self) -> tuple[int, ...]:
        """The process id of each stage."""
        return self._sessions.pids

    @property
    def failure(self) -> str | None:
        """Why the pipeline has ended without `close`, in one line; None while it can be used."""
        return self._sessions.lifetime.failure

    @property
    def is_ready(self) -> bool:
        """Whether work that is submitted starts at once: False in a recovery or a switch, and after the end."""
        return self._sessions.is_ready

    @property
    def has_encoder(self) -> bool:
        """Whether the model has an encoder: `generate` returns the decoder's tokens alone, without the prompt."""
        return self._sessions.ready[0].encoder is not None

    def status(self) -> PipelineStatus:
        """Return the memory of each node and the bytes sent on each link, as they were up to a second ago."""
        return self._sessions.status()

    @property
    def recoveries(self) -> tuple[Recovery, ...]:
        """The recoveries from losses so far."""
        return tuple(self._sessions.recoveries.done)

    @property
    def migrations(self) -> tuple[Migration, ...]:
        """The migrations to other plans so far."""
        return tuple(self._sessions.migrations.done)

    def migrate(self, plan: Plan, *, not_before_s: float = 0.0) -> Migration:
        """Go over to another plan while generation goes on, and return what that took once work has resumed.

        The plan is of the same model; its stages may have other cuts, codecs, nodes and order. New and changed stages
        load ahead, each in a process of its own, while the plan that runs goes on, where the node's memory has room for
        both; else in the pause, and the result says so. Then steps under way end, and the next ones run on the new
        stages: no token is lost or made twice, and the text is the same. The switch is not before `not_before_s` of
        `time.monotonic`, such as when a link opens; stages that load ahead wait for it. Model, dtype and threads stay
        those of the pipeline. May be called from any thread, one call at a time. One that rebalancing has started is
        dropped if it still loads ahead, and else waited for. Requests meanwhile wait for the switch.

        Example:
            >>> print(pipe.migrate(osp.plan(profile, network_without_the_setting_link)))   # doctest: +SKIP

        Raises:
            TypeError: `plan` is no `Plan`.
            ValueError: The plan is of another model, needs another codebook, or uses a node or a link that was lost.
                Nothing was changed.
            TransportError: The pipeline has ended (kind "unusable"), another call is migrating ("busy"), or a node has
                no host ("host"); a stage could not be loaded, the message names its node: the old plan goes on. Kind
                "overtaken": a node or a link was lost meanwhile, from which the pipeline recovers as usual.
        """
        check_kind("plan", plan, Plan)
        return self._sessions.migrate(plan, number("not_before_s", not_before_s, least=0))

    def generate(
        self,
        input_ids: TokenRows | None = None,
        attention_mask: TokenRows | None = None,
        *,
        options: GenerationOptions | None = None,
        streamer: BaseStreamer | None = None,
        timeout_s: float | None = None,
        **keywords: Unpack[GenerationKeywords],
    ) -> Tensor:
        """Generate and return prompts and new tokens [B, S + new], as transformers' generate does.

        `options`, or keywords of the same names instead, are described at `GenerationOptions`: what they leave open is
        as the model's generation config says. `input_ids` [B, S] (a tensor, an array or lists) are padded on the left
        where prompts are shorter, and masked by `attention_mask` [B, S]; without a mask, padding is derived from the
        pad token, unless that ends sequences too. So `generate(**tokenizer(...))` works, and with
        a vision-language model `generate(**processor(...))`: images go to the first stage, and the first call with some
        tries a small model of its class. The batch runs in as many groups as the plan has micro-batches (at most B),
        with images in one. A `streamer` of transformers gets the prompts and then each
        step's tokens. With `return_dict_in_generate` the result is a `GenerateDecoderOnlyOutput` of transformers.

        A model with an encoder reads `input_ids` or `input_features`, and the result begins with `decoder_input_ids`,
        by default those of transformers. Whisper's own loop around generate runs as it is, with its keywords.

        Example:
            >>> pipe.generate(input_ids, max_new_tokens=64, do_sample=True, seed=1)   # doctest: +SKIP

        Raises:
            TypeError, ValueError: An argument is wrong, or exceeds what the model can do; the message names it. Nothing
                was started, and the pipeline can be used again.
            TransportError: A node or a link failed and the pipeline could not recover, or `timeout_s` seconds passed;
                `tokens` are those so far. The pipeline cannot be used again, except after an error of kind "request"
                or "corruption", which is of this batch alone.
        """
        if timeout_s is not None:
            timeout_s = number("timeout_s", timeout_s, least=0)
        # Any, as transformers' generate has two kinds of results.
        output: Any = self._calls.generate((input_ids, attention_mask), options, keywords, streamer, timeout_s)
        return output  # type: ignore[no-any-return]

    def submit(
        self,
        input_ids: TokenRows | None = None,
        attention_mask: TokenRows | None = None,
        *,
        options: GenerationOptions | None = None,
        on_tokens: OnTokens | None = None,
        on_end: OnEnd | None = None,
        on_logprobs: OnLogprobs | None = None,
        on_prompt_logprobs: OnPromptLogprobs | None = None,
        **keywords: Unpack[GenerationKeywords],
    ) -> Generation:
        """Start to generate and return immediately; arguments as for `generate`. May be called from any thread.

        `on_tokens(tokens)` is called for each step with the new tokens [B], `on_end(error)` once at the end; where
        options ask for log-probabilities, `on_prompt_logprobs(rows)` before the first step and `on_logprobs(rows)`
        before `on_tokens` of each step, with a `TokenLogprobs` for each row that has not ended, else None. All are
        called by a thread of the pipeline: they must return immediately.

        Raises TypeError or ValueError for wrong arguments, TransportError if the pipeline has ended.
        """
        generation = self._calls.generation(
            "submit",
            (input_ids, attention_mask),
            options,
            keywords,
            on_tokens=on_tokens,
            on_end=on_end,
            on_logprobs=on_logprobs,
            on_prompt_logprobs=on_prompt_logprobs,
        )
        self._sessions.submit(generation)
        return generation

    def stream(
        self,
        input_ids: TokenRows | None = None,
        attention_mask: TokenRows | None = None,
        *,
        options: GenerationOptions | None = None,
        **keywords: Unpack[GenerationKeywords],
    ) -> Iterator[Tensor]:
        """Yield the new tokens [B] of each step as they arrive; arguments as for `generate`.

        Generation starts with the first step, and is cancelled if the iterator is not read to its end. Raises as
        `generate`.
        """
        yield from self._calls.stream((input_ids, attention_mask), options, keywords)

    def forward(self, *, timeout_s: float | None = None, **inputs: Tensor) -> ModelOutput:
        """Run one forward without a cache and return the model's output by name, as tensors [B, ...].

        `inputs` are the model's: input_ids and attention_mask [B, S], token_type_ids, pixel_values [B, C, H, W]. The
        batch runs in as many groups as the plan has micro-batches (at most B).

        Raises as `generate`.
        """
        if timeout_s is not None:
            timeout_s = number("timeout_s", timeout_s, least=0)
        generation = self._calls.forward(inputs)
        self._calls.run(generation, timeout_s)
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


def _abandon(sessions: Sessions) -> None:
    if sessions.lifetime.drop():
        message = f"a pipeline of {len(sessions.plan.stages)} processes was dropped without close(): they are ended now"
        warnings.warn(message, ResourceWarning, stacklevel=2)
