"""What a run of a pipeline took: seconds, bytes and memory, by stage and by link."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orbitsplit._plan import Plan, PlanStage
from orbitsplit._trace import Trace, merge

from ._control import Ready, StageRecord
from ._record import Traffic
from ._schedule import Job


@dataclass(frozen=True, slots=True)
class StageRun:
    """One stage of a run, in seconds and bytes.

    `compute_s`, `encode_s` and `decode_s` are what the node spent, its slow-down included; `cpu_s` is the processor
    time behind all three. `baseline_bytes` were resident before the stage was loaded (interpreter and libraries),
    `peak_bytes` at most; `memory_bytes` is the node's limit, None where there is none.
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
        """Return the peak memory without the interpreter and its libraries."""
        return self.peak_bytes - self.baseline_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRun(Traffic):
    """One link of a run: its traffic, from node `source` to node `destination`, and the seconds it was occupied."""

    source: str
    destination: str
    busy_s: float


@dataclass(frozen=True, slots=True)
class Run:
    """One call of `Pipeline.generate`, measured.

    `prefill_s` lasts from the first stage's start on the first group to the last stage's end of prefill on the last
    one, `decode_s` from there to the arrival of the last token at the first stage. `new_tokens` is per sequence.
    """

    sequences: int
    prompt_tokens: int
    new_tokens: int
    groups: int
    prefill_s: float
    decode_s: float
    stages: tuple[StageRun, ...]
    links: tuple[LinkRun, ...]
    trace: Trace

    @property
    def total_s(self) -> float:
        """Return the seconds from the start to the last token."""
        return self.prefill_s + self.decode_s

    @property
    def tokens_per_s(self) -> float:
        """Return new tokens of all sequences (padding included) per second of the whole run."""
        return self.sequences * self.new_tokens / self.total_s

    @property
    def token_step_s(self) -> float:
        """Return the mean seconds per token step after prefill, 0 for a single token."""
        return self.decode_s / (self.new_tokens - 1) if self.new_tokens > 1 else 0.0

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


def measure(plan: Plan, job: Job, columns: int, ready: Sequence[Ready], records: Sequence[StageRecord]) -> Run:
    """Make a run's figures from what its stages recorded; `columns` is the length of the result's rows."""
    nodes = tuple(stage.node for stage in plan.stages)
    first, last = records[0].events, records[-1].events
    origin_s = min(start_s for kind, _, _, start_s, _ in first if kind == "compute")
    prefill_stop_s = max(stop_s for kind, _, step, _, stop_s in last if kind == "compute" and step == 0)
    stop_s = max(stop_s for kind, _, _, _, stop_s in first if kind in ("compute", "receive"))
    trace = merge(
        nodes,
        [record.events for record in records],
        origin_s=origin_s,
        slowdowns=tuple(stage.slowdown for stage in plan.stages),
    )
    totals = trace.totals()
    return Run(
        sequences=job.rows,
        prompt_tokens=job.prompt_tokens,
        new_tokens=columns - job.prompt_tokens,
        groups=job.groups,
        prefill_s=prefill_stop_s - origin_s,
        decode_s=stop_s - prefill_stop_s,
        stages=tuple(
            _stage_run(stage, totals[stage.node], loaded, record)
            for stage, loaded, record in zip(plan.stages, ready, records, strict=True)
        ),
        links=tuple(_link_run(nodes[k], nodes[k + 1], totals[nodes[k]], records[k]) for k in range(len(plan.links))),
        trace=trace,
    )


def _stage_run(stage: PlanStage, seconds: dict[str, float], loaded: Ready, record: StageRecord) -> StageRun:
    return StageRun(
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


def _link_run(source: str, destination: str, seconds: dict[str, float], record: StageRecord) -> LinkRun:
    return LinkRun(source=source, destination=destination, busy_s=seconds["send"], **asdict(record.traffic))
