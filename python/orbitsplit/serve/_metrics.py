"""Metrics of the server and its pipeline in the text format of Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from ._admission import Admission
from ._generation import Generation

_FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_CHOICE_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """Counts what ended, and reads at each scrape what runs: nothing is counted for each token."""

    def __init__(self, engine: Any, admission: Admission) -> None:
        self._registry = CollectorRegistry()
        self._prompt_tokens = Counter("orbitsplit_prompt_tokens", "Tokens of prompts.", registry=self._registry)
        self._choices = Counter(
            "orbitsplit_choices", "Choices that ended, by reason.", ("finish_reason",), registry=self._registry
        )
        self._first_token_s = self._histogram(
            "orbitsplit_time_to_first_token_seconds",
            "From the submission of a choice to its first token.",
            _FIRST_TOKEN_S,
        )
        self._token_s = self._histogram(
            "orbitsplit_time_per_output_token_seconds", "Mean time between the tokens of a choice.", _TOKEN_S
        )
        self._choice_s = self._histogram(
            "orbitsplit_choice_seconds", "From the submission of a choice to its last token.", _CHOICE_S
        )
        self._live = _Live(engine, admission)
        self._registry.register(self._live)

    def observe(self, generations: Sequence[Generation], *, prompt_tokens: int) -> None:
        """Count the choices of a request that has ended."""
        self._prompt_tokens.inc(prompt_tokens)
        for generation in generations:
            reason = generation.finish_reason or ("cancelled" if generation.error is None else "error")
            self._choices.labels(reason).inc()
            self._live.ended_tokens += generation.tokens
            if not generation.first_token_s:
                continue
            self._first_token_s.observe(generation.first_token_s - generation.submitted_s)
            self._choice_s.observe(generation.last_token_s - generation.submitted_s)
            if generation.tokens > 1:
                between_s = generation.last_token_s - generation.first_token_s
                self._token_s.observe(between_s / (generation.tokens - 1))

    def text(self) -> bytes:
        """Return all metrics now, in the text format of Prometheus."""
        text: bytes = generate_latest(self._registry)
        return text

    def _histogram(self, name: str, help_: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(name, help_, buckets=buckets, registry=self._registry)


class _Live:
    """What is known at the moment of a scrape: choices and tokens of the server, nodes and links of the engine."""

    def __init__(self, engine: Any, admission: Admission) -> None:
        self.ended_tokens = 0
        self._engine = engine
        self._admission = admission
        self._started_s = time.time()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        # Those that the response has closed are counted; here, tokens that come later count with the next scrape.
        live = self._admission.open_generations()
        waiting = sum(not generation.first_token_s for generation in live)
        choices = GaugeMetricFamily(
            "orbitsplit_live_choices", "Choices now: waiting for their first token, or running.", labels=["state"]
        )
        choices.add_metric(["waiting"], waiting)
        choices.add_metric(["running"], len(live) - waiting)
        yield choices
        tokens = self.ended_tokens + sum(generation.tokens for generation in live)
        yield CounterMetricFamily("orbitsplit_generation_tokens", "Tokens generated; their rate is tokens/s.", tokens)
        recoveries = len(getattr(self._engine, "recoveries", ()))
        yield CounterMetricFamily("orbitsplit_recoveries", "Losses that the pipeline recovered from.", recoveries)
        yield GaugeMetricFamily("orbitsplit_start_time_seconds", "When the server was started.", self._started_s)
        status = getattr(self._engine, "status", None)
        if status is not None:
            yield from _of_pipeline(status())


def _of_pipeline(status: Any) -> Iterator[Metric]:
    """Yield the metrics of an `orbitsplit.PipelineStatus`."""
    memory = GaugeMetricFamily("orbitsplit_node_memory_bytes", "Resident memory of a node's process.", labels=["node"])
    limits = GaugeMetricFamily("orbitsplit_node_memory_limit_bytes", "Memory of a node as planned.", labels=["node"])
    busy = CounterMetricFamily(
        "orbitsplit_node_busy_seconds", "Seconds that a node has worked since the plan runs.", labels=["node"]
    )
    for node in status.nodes:
        memory.add_metric([node.name], node.resident_bytes)
        busy.add_metric([node.name], node.busy_s)
        if node.memory_bytes is not None:
            limits.add_metric([node.name], node.memory_bytes)
    sent = CounterMetricFamily(
        "orbitsplit_link_bytes", "Payload bytes sent on a link since the plan runs.", labels=["source", "destination"]
    )
    rates = GaugeMetricFamily(
        "orbitsplit_link_rate_bytes_per_second", "Planned rate of a link.", labels=["source", "destination"]
    )
    for link in status.links:
        sent.add_metric([link.source, link.destination], link.sent_bytes)
        if link.bytes_per_s is not None:
            rates.add_metric([link.source, link.destination], link.bytes_per_s)
    yield from (memory, limits, busy, sent, rates)
