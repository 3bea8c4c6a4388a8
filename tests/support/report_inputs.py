"""Small plans, runs and constellations to be reported."""

from __future__ import annotations

from datetime import timedelta

import orbitsplit as osp
from orbitsplit import leo


def reported_network(nodes: int = 6) -> osp.Network:
    """Return a ring of satellites, each of which holds a part of `reported_profile` alone."""
    ring = tuple(osp.Node(f"sat-{k}", 250_000_000, slowdown=1.0 + k % 3) for k in range(nodes))
    links = tuple(
        osp.Link(f"sat-{k}", f"sat-{other}", 1.25e6 * (1 + k % 3), 0.005)
        for k in range(nodes)
        for other in ((k + 1) % nodes, (k - 1) % nodes)
    )
    return osp.Network("ring of cubesats", ring, links)


def reported_profile() -> osp.ModelProfile:
    """Return a profile of 10 layers with measured seconds."""
    ends = osp.LayerProfile("embeddings", 40_000_000, 0, None, 10**6, 10**4, 0.001, 0.0001)
    middle = [osp.LayerProfile(f"layer {k}", 30_000_000, 1000, None, 10**9, 10**7, 0.02, 0.004) for k in range(10)]
    head = osp.LayerProfile("head", 40_000_000, 0, None, 10**8, 10**6, 0.01, 0.004)
    return osp.ModelProfile("a/small-model", "Small", "float32", 128, 1, 640, (ends, *middle, head), 2560, 10**6, 0)


def reported_plan(**options: object) -> osp.Plan:
    """Return a plan with prediction and certificate."""
    workload = osp.Workload(micro_batches=4, prompt_tokens=128, new_tokens=8)
    return osp.plan(reported_profile(), reported_network(), workload, explain=True, loss_budget=0.1, **options)  # type: ignore[arg-type]


def measured_like(plan: osp.Plan) -> osp.Trace:
    """Return a trace such as a run of the plan gives: all a twentieth later and longer, with a wait and an encoding."""
    trace = osp.simulate(plan)
    events = [event._replace(start_s=1.05 * event.start_s, stop_s=1.05 * event.stop_s) for event in trace.events]
    first = events[0]
    extra = [
        first._replace(kind=kind, start_s=first.stop_s, stop_s=first.stop_s + 0.001) for kind in ("encode", "wait")
    ]
    return osp.Trace(trace.nodes, tuple(sorted([*events, *extra], key=lambda event: event.start_s)))


def timed_plan() -> leo.TimedPlan:
    """Return a plan in time whose result needs two passes."""
    scenario = leo.Scenario.load("cubesat")
    start = scenario.constellation.epoch
    plan = osp.Plan.manual([2], 4, nodes=["sat-3", "sat-2"])
    paths = (("sat-3", "sat-0", "munich"), ("sat-3", "munich"))
    hours = (1, 3)
    passes = tuple(
        leo.Transfer(path, start + timedelta(hours=hour), start + timedelta(hours=hour, minutes=5),
                     start + timedelta(hours=hour, minutes=6), 3e6)
        for path, hour in zip(paths, hours, strict=True)
    )  # fmt: skip
    return leo.TimedPlan(
        strategy="split",
        reason="two satellites compute, the result waits for two passes",
        requested=start,
        start=start,
        compute_start=start,
        compute_stop=start + timedelta(minutes=20),
        completion=passes[-1].stop,
        valid_until=start + timedelta(minutes=30),
        plan=plan,
        result=passes,
        alternatives=(leo.Alternative("ground", None, "no pass is long enough"),),
    )
