"""The event simulation against the formulas of the cost model: two independent computations of the same seconds."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbitsplit import Plan, PlanLink, PlanStage, Prediction, Workload, simulate

seconds = st.integers(0, 64).map(lambda ticks: ticks / 64)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """A chain with random occupancies; what the formulas say of it is left out, the simulation must find it."""
    stages = draw(st.integers(1, 4))
    some = st.lists(seconds, min_size=stages, max_size=stages).map(tuple)
    fewer = st.lists(seconds, min_size=stages - 1, max_size=stages - 1).map(tuple)
    prediction = Prediction(
        total_s=0, prefill_s=0, token_step_s=0, loss=0,
        stage_s=draw(some), link_s=draw(fewer), decode_stage_s=draw(some), decode_link_s=draw(fewer),
        stage_memory_bytes=(0,) * stages, status="optimal", lower_bound_s=0, gap=0,
    )  # fmt: skip
    return Plan(
        stages=tuple(PlanStage(f"n{k}", k, k + 1) for k in range(stages)),
        links=tuple(PlanLink(1.0, draw(seconds)) for _ in range(stages - 1)),
        layers=stages,
        workload=Workload(micro_batches=draw(st.integers(1, 5)), new_tokens=draw(st.sampled_from([0, 1, 9]))),
        return_latency_s=draw(seconds) if stages > 1 else 0.0,
        prediction=prediction,
    )


@given(plans())
@settings(max_examples=300, deadline=None)
def test_prefill_is_the_makespan_formula(plan: Plan) -> None:
    assert plan.prediction is not None
    occupancies = (*plan.prediction.stage_s, *plan.prediction.link_s)
    latencies = sum(link.latency_s for link in plan.links)
    makespan = sum(occupancies) + latencies + (plan.workload.micro_batches - 1) * max(occupancies)
    last = plan.stages[-1].node
    prefill = max(e.stop_s for e in simulate(plan).events if e.node == last and e.step == 0)
    assert prefill == pytest.approx(makespan, abs=1e-9)


@given(plans())
@settings(max_examples=300, deadline=None)
def test_a_token_step_takes_the_longer_of_lap_and_bottleneck(plan: Plan) -> None:
    assert plan.prediction is not None
    plan = replace(plan, workload=replace(plan.workload, new_tokens=40))
    occupancies = (*plan.prediction.decode_stage_s, *plan.prediction.decode_link_s)
    round_trip = sum(occupancies) + sum(link.latency_s for link in plan.links) + plan.return_latency_s
    step = max(round_trip, plan.workload.micro_batches * max(occupancies))
    last = plan.stages[-1].node
    ends = [max(e.stop_s for e in simulate(plan).events if e.node == last and e.step == s) for s in (19, 39)]
    # Groups keep their distance once the pipeline is in its stride; 20 steps show the slope.
    assert (ends[1] - ends[0]) / 20 == pytest.approx(step, abs=max(occupancies) / 20 + 1e-9)


@given(plans())
@settings(max_examples=100, deadline=None)
def test_nothing_overlaps_on_a_node_or_a_link(plan: Plan) -> None:
    trace = simulate(plan)
    for node in trace.nodes:
        for kind in ("compute", "send"):
            events = sorted(trace.of(node, kind), key=lambda e: (e.start_s, e.stop_s))
            assert all(a.stop_s <= b.start_s + 1e-9 for a, b in pairwise(events))


def test_half_duplex_waits_for_its_own_transmission() -> None:
    prediction = Prediction(
        total_s=0, prefill_s=0, token_step_s=0, loss=0, stage_s=(3.0, 0.5), link_s=(2.0,), decode_stage_s=(),
        decode_link_s=(), stage_memory_bytes=(0, 0), status="optimal", lower_bound_s=0, gap=0,
    )  # fmt: skip
    plan = Plan(
        stages=(PlanStage("a", 0, 1, half_duplex=True), PlanStage("b", 1, 2)),
        links=(PlanLink(1.0, 0.0),),
        layers=2,
        workload=Workload(micro_batches=3),
        prediction=prediction,
    )
    assert [(e.start_s, e.stop_s) for e in simulate(plan).of("a", "compute")] == [(0, 1), (3, 4), (6, 7)]
    assert simulate(plan).stop_s == 9.5


def test_a_plan_without_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="no prediction"):
        simulate(Plan.manual(cuts=[1], layers=2))
