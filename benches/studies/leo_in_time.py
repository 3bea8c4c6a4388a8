"""When to start, and where: planning over a day of CubeSats against "start now" and "wait for the next pass".

python -m benches.studies.leo_in_time        # the table of docs/benchmarks.md
pytest benches/studies/leo_in_time.py        # two of its request times

The scenario `cubesat` (four CubeSats 50 km apart in one plane, 10 Mbit/s, a desktop computer at Munich), with a second
station on Svalbard. At each of 20 seeded times the last satellite of the chain has taken 550 MB of images, 440 s of
downlink: more than most passes, less than the longest; the classes of the images are 100 kB. The model has ViT-B's
sizes: it fits two of the satellites, which take 4 and 4.5 times the desktop's 42 minutes. Each plan is executed by the
event simulation of the tests, second by second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np

from orbitsplit import LayerProfile, ModelProfile, Node, Workload, leo
from tests.judges.events import Judge, Sky, Task

REQUESTS, SEED, STEP_S = 20, 0, 10.0
INPUT_BYTES, OUTPUT_BYTES = 550e6, 100e3
WORKLOAD = Workload(micro_batches=700, prompt_tokens=197, batch_size=16)
SVALBARD = leo.Station("svalbard", 78.23, 15.39, 0.5, mask_deg=10, antennas=1)
RATE = 1.25e6  # 10 Mbit/s


def profile() -> ModelProfile:
    """Return ViT-B/16 in float32 at batch 16: sizes of its configuration, seconds of a desktop computer [assumed]."""
    layers = (
        LayerProfile("embeddings", 3_000_000, 0, None, 10**9, 0, 0.02, None),
        *(LayerProfile(f"layer {k}", 28_351_488, 0, None, 45 * 10**9, 0, 0.3, None) for k in range(12)),
        LayerProfile("head", 3_100_000, 0, None, 10**7, 0, 0.01, None),
    )
    return ModelProfile(
        model="ViT-B/16",
        architecture="ViTForImageClassification",
        dtype="float32",
        prompt_tokens=197,
        batch_size=16,
        hidden_size=768,
        layers=layers,
        cut_bytes_per_token=768 * 4,
        workspace_bytes=40_000_000,
        tied_bytes=0,
        threads=1,
        machine="assumed",
    )


def fleet() -> tuple[leo.Constellation, dict[str, Node]]:
    """Return the scenario with its second station, and the computer of each satellite."""
    scenario = leo.Scenario.load("cubesat")
    constellation = scenario.constellation
    # The ground's memory is no limit here.
    stations = tuple(
        replace(station, node=None if station.node is None else replace(station.node, memory_bytes=2_000_000_000))
        for station in (*constellation.stations, SVALBARD)
    )
    return constellation.served_by(*stations), dict(zip(constellation.names, scenario.devices, strict=True))


@dataclass(frozen=True)
class Row:
    """A request, three plans and when their executions were complete."""

    requested: datetime
    plans: Mapping[str, leo.TimedPlan]
    judged: Mapping[str, datetime]

    def seconds(self, name: str) -> float:
        """Return from request to completion, as executed."""
        return (self.judged[name] - self.requested).total_seconds()


METHODS: Mapping[str, Callable[..., leo.TimedPlan]] = {
    "planned": leo.plan_in_time,
    "start now": leo.start_now,
    "wait": leo.wait_for_pass,
}


def requests(epoch: datetime, count: int) -> list[datetime]:
    """Return seeded request times over a day."""
    r = np.random.default_rng(SEED)
    return [epoch + timedelta(seconds=float(at)) for at in np.sort(r.uniform(0, 86_400, count))]


def rows(count: int = REQUESTS, only: Sequence[int] | None = None) -> list[Row]:
    """Return the rows of the table, or some of them."""
    constellation, computers = fleet()
    epoch, model = constellation.epoch, profile()
    table = leo.Timetable.of(constellation, epoch, epoch + timedelta(days=2), step_s=STEP_S)
    task = Task(
        profile=model,
        source="sat-3",
        input_bytes=INPUT_BYTES,
        output_bytes=OUTPUT_BYTES,
        isl=lambda _km: RATE,
        down=lambda _km: RATE,
        up=lambda _km: RATE / 10,
        ratios={},
    )
    request = {"source": "sat-3", "input_bytes": INPUT_BYTES, "output_bytes": OUTPUT_BYTES, "computers": computers}
    made = []
    for k, at in enumerate(requests(epoch, count)):
        if only is not None and k not in only:
            continue
        plans = {name: method(model, table, WORKLOAD, requested=at, **request) for name, method in METHODS.items()}
        last = max(plan.completion for plan in plans.values())
        sky = Sky(constellation, at, int((last - at).total_seconds()) + 600)
        made.append(Row(at, plans, {name: Judge(sky, task, plan).completion() for name, plan in plans.items()}))
    return made


def check(found: Sequence[Row]) -> None:
    """Fail unless every plan does what it predicts, and planning in time is earlier than either baseline."""
    for row in found:
        for name, plan in row.plans.items():
            assert abs((row.judged[name] - plan.completion).total_seconds()) <= STEP_S, (row.requested, name)
        for baseline in ("start now", "wait"):
            # The simulation looks once a second.
            assert row.seconds("planned") < row.seconds(baseline) - 1.0, (row.requested, baseline)


def test_two_requests() -> None:
    check(rows(only=[4, 6]))


def main() -> None:
    """Print the table."""
    found = rows()
    check(found)
    print("| requested | planned s | start now s | wait s | earlier by s | strategy | handovers | why |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in found:
        plan = row.plans["planned"]
        gain = min(row.seconds("start now"), row.seconds("wait")) - row.seconds("planned")
        print(
            f"| {row.requested:%H:%M:%S} | {row.seconds('planned'):,.1f} | {row.seconds('start now'):,.1f} "
            f"| {row.seconds('wait'):,.1f} | {gain:,.1f} | {plan.strategy} | {len(plan.handovers)} | {plan.reason} |"
        )
    gains = {
        baseline: [row.seconds(baseline) - row.seconds("planned") for row in found]
        for baseline in ("start now", "wait")
    }
    for baseline, own in gains.items():
        earlier = sum(gain > 0.5 for gain in own)
        middle, least = np.median(own), min(own)
        print(f"{baseline}: later at {earlier} of {len(own)}, by {middle:,.0f} s in the middle, {least:,.1f} at least")
    off = max(abs((row.judged[n] - p.completion).total_seconds()) for row in found for n, p in row.plans.items())
    print(f"event simulation and prediction differ by {off:.2f} s at most")


if __name__ == "__main__":
    main()
