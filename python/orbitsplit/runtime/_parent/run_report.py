"""Measurements of a run: seconds, bytes and memory, per stage and per link."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from orbitsplit._plans.plan import Plan
from orbitsplit._plans.plan_parts import PlanStage
from orbitsplit._plans.simulate import simulate_delays
from orbitsplit._plans.trace import Trace, merge
from orbitsplit.runtime._messages.control import Ready, StageRecord
from orbitsplit.runtime._messages.groups import Group
from orbitsplit.runtime._messages.record import Traffic


@dataclass(frozen=True, slots=True)
class StageMetrics:
    """The measurements of one stage in a run.

    `slowdown` is the emulated one, 1 where nothing is emulated. `compute_s`, `encode_s` and `decode_s` are the node's
    times, emulated slowdown included; `cpu_s` is the processor time of all three (wall time for encoding and decoding
    tokens on a node that is not emulated). `baseline_bytes` were resident before the stage was loaded (interpreter and
    libraries), `peak_bytes` is the peak of resident memory; `memory_bytes` is the node's limit, None without one.
    """

    node: str
    start: int
    stop: int
    slowdown: float
    compute_s: float
    encode_s: float
    decode_s: float
    cpu_s: float
    weight_bytes: int
    baseline_bytes: int
    peak_bytes: int
    memory_bytes: int | None

    @property
    def used_bytes(self) -> int:
        """Peak memory without the interpreter and its libraries."""
        return self.peak_bytes - self.baseline_bytes

    @property
    def exceeds_memory(self) -> bool:
        """Whether the stage used more memory than its node has."""
        return self.memory_bytes is not None and self.used_bytes > self.memory_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkMetrics(Traffic):
    """The measurements of one link in a run: its traffic, its ends `source` and `destination`, its busy time."""

    source: str
    destination: str
    busy_s: float


@dataclass(frozen=True, slots=True)
class Run:
    """The measurements of one call of `Pipeline.generate` or `forward`.

    `prefill_s` lasts from the start of the first group on the first stage to the end of the last group's prefill on the
    last stage, `decode_s` from there to the arrival of the last token at the first stage. `new_tokens` is per sequence.
    `started_s` is the start on the monotonic clock of the first stage, from which the times of `trace` count.
    """

    sequences: int
    prompt_tokens: int
    new_tokens: int
    groups: int
    prefill_s: float
    decode_s: float
    stages: tuple[StageMetrics, ...]
    links: tuple[LinkMetrics, ...]
    trace: Trace
    started_s: float = 0.0

    @property
    def total_s(self) -> float:
        """Seconds from the start to the last token."""
        return self.prefill_s + self.decode_s

    @property
    def tokens_per_s(self) -> float:
        """New tokens of all sequences, padding included, per second of the whole run."""
        return self.sequences * self.new_tokens / self.total_s

    @property
    def token_step_s(self) -> float:
        """Mean seconds per token step after prefill, 0 for a single token."""
        return self.decode_s / (self.new_tokens - 1) if self.new_tokens > 1 else 0.0

    def against(self, plan: Plan) -> dict[str, tuple[float, float]] | None:
        """Return predicted and measured seconds of `prefill_s`, `decode_s` and `total_s`.

        For another number of groups or new tokens than the plan's, they are simulated with the plan's seconds of a
        stage and a link; after prompts of another length, `token_step_s` alone can be compared. None if the plan has no
        prediction, or nothing in it is about such a run: its micro-batches have other rows, or no tokens.
        """
        predicted = plan.prediction
        if predicted is None or self.sequences != self.groups * plan.workload.batch_size:
            return None
        is_planned = (self.groups, self.new_tokens) == (plan.workload.micro_batches, plan.workload.new_tokens)
        is_planned = is_planned and plan.workload.arrivals_per_s is None
        is_same_prompt = self.prompt_tokens == plan.workload.prompt_tokens
        if is_planned and is_same_prompt:
            return self._beside(predicted.prefill_s, predicted.decode_s)
        new_tokens = self.new_tokens if predicted.decode_stage_s else 0
        prefill_s, decode_s = simulate_delays(plan, micro_batches=self.groups, new_tokens=new_tokens)
        if not is_same_prompt:
            return {"token_step_s": (decode_s / (new_tokens - 1), self.token_step_s)} if new_tokens > 1 else None
        if self.new_tokens > 1 and new_tokens == 0:
            return {"prefill_s": (prefill_s, self.prefill_s)}
        return self._beside(prefill_s, decode_s)

    def _beside(self, prefill_s: float, decode_s: float) -> dict[str, tuple[float, float]]:
        return {
            "prefill_s": (prefill_s, self.prefill_s),
            "decode_s": (decode_s, self.decode_s),
            "total_s": (prefill_s + decode_s, self.total_s),
        }

    def memory_excess(self) -> str | None:
        """Return a sentence on the stages that used more memory than their nodes have, None if there are none."""
        excess = [
            f'node "{stage.node}" used {stage.used_bytes:,} bytes, its limit is {stage.memory_bytes:,}'
            for stage in self.stages
            if stage.exceeds_memory
        ]
        return "; ".join(excess) or None

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the trace as JSON-ready data, derived figures included."""
        plain = {name: getattr(self, name) for name in ("sequences", "prompt_tokens", "new_tokens", "groups")}
        seconds = {name: getattr(self, name) for name in ("prefill_s", "decode_s", "total_s", "token_step_s")}
        return {
            **plain,
            **seconds,
            "tokens_per_s": self.tokens_per_s,
            "stages": [{**asdict(stage), "used_bytes": stage.used_bytes} for stage in self.stages],
            "links": [{**asdict(link), "ratio": link.ratio} for link in self.links],
        }


def measure(
    plan: Plan,
    groups: Sequence[Group],
    new_tokens: int,
    ready: Sequence[Ready],
    records: Sequence[Sequence[StageRecord]],
    *,
    emulates: bool = True,
) -> Run:
    """Return the measurements of a run, given the record `records[k][g]` of each stage k and group g of the batch.

    `emulates` is that of the `Deployment`: without it no node had the slowdown of the plan.
    """
    if not emulates:
        plan = replace(plan, stages=tuple(replace(stage, slowdown=1.0) for stage in plan.stages))
    nodes = tuple(stage.node for stage in plan.stages)
    # Groups are numbered over the lifetime of a pipeline, in a run from 0.
    numbers = {group.id: number for number, group in enumerate(groups)}
    recorded = [
        [
            (kind, numbers[group], step, start_s + shift_s, stop_s + shift_s)
            for record in own
            for kind, group, step, start_s, stop_s in record.events
        ]
        for own, shift_s in zip(records, _clock_shifts(ready), strict=True)
    ]
    first, last = recorded[0], recorded[-1]
    origin_s = min(start_s for kind, _, _, start_s, _ in first if kind == "compute")
    prefill_stop_s = max(stop_s for kind, _, step, _, stop_s in last if kind == "compute" and step == 0)
    stop_s = max(stop_s for kind, _, _, _, stop_s in first if kind in ("compute", "wait", "receive"))
    trace = merge(nodes, recorded, origin_s=origin_s, slowdowns=tuple(stage.slowdown for stage in plan.stages))
    totals = trace.totals()
    joined = [_joined(own) for own in records]
    return Run(
        sequences=sum(group.rows for group in groups),
        prompt_tokens=groups[0].encoder_tokens or groups[0].tokens,
        new_tokens=new_tokens,
        groups=len(groups),
        prefill_s=prefill_stop_s - origin_s,
        decode_s=stop_s - prefill_stop_s if new_tokens else 0.0,
        stages=tuple(
            _stage_metrics(stage, totals[stage.node], loaded, record)
            for stage, loaded, record in zip(plan.stages, ready, joined, strict=True)
        ),
        links=tuple(_link_metrics(nodes[k], nodes[k + 1], totals[nodes[k]], joined[k]) for k in range(len(plan.links))),
        trace=trace,
        started_s=origin_s,
    )


def _clock_shifts(ready: Sequence[Ready]) -> list[float]:
    """Return the offsets that bring each stage's times to the clock of the first stage.

    Processes of one machine share a monotonic clock; those of different machines differ by hours, and are aligned by
    the time of day.
    """
    shifts = [stage.clock_offset_s - ready[0].clock_offset_s for stage in ready]
    return [0.0 if abs(shift_s) < 1.0 else shift_s for shift_s in shifts]


def _joined(records: Sequence[StageRecord]) -> StageRecord:
    return StageRecord(
        events=(),
        cpu_s=sum(record.cpu_s for record in records),
        traffic=functools.reduce(operator.add, (record.traffic for record in records)),
        peak_bytes=max(record.peak_bytes for record in records),
    )


def _stage_metrics(stage: PlanStage, seconds: dict[str, float], loaded: Ready, record: StageRecord) -> StageMetrics:
    return StageMetrics(
        node=stage.node,
        start=stage.start,
        stop=stage.stop,
        slowdown=stage.slowdown,
        compute_s=seconds["compute"],
        encode_s=seconds["encode"],
        decode_s=seconds["decode"],
        cpu_s=record.cpu_s,
        weight_bytes=loaded.weight_bytes,
        baseline_bytes=loaded.baseline_bytes,
        peak_bytes=record.peak_bytes,
        memory_bytes=stage.memory_bytes,
    )


def _link_metrics(source: str, destination: str, seconds: dict[str, float], record: StageRecord) -> LinkMetrics:
    return LinkMetrics(source=source, destination=destination, busy_s=seconds["send"], **asdict(record.traffic))
