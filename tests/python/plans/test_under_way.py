"""Prompts under way at once: enough that none waits, and no more memory for more micro-batches."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from orbitsplit import (
    InfeasiblePlanError,
    LayerProfile,
    Link,
    ModelProfile,
    Network,
    Node,
    Plan,
    Workload,
    plan,
    simulate,
)
from orbitsplit._planner.problem import Evaluation
from orbitsplit._plans.under_way import enough_prompts_under_way, first_prompts_under_way

from .test_simulate import plans

MICRO_BATCHES = 14


def evaluation_of(made: Plan) -> Evaluation:
    """What the cost model says of a plan whose seconds are drawn, as far as it matters here."""
    assert made.prediction is not None
    values: dict[str, Any] = dict.fromkeys(Evaluation.__dataclass_fields__, 0.0)
    values |= {
        "stage_s": made.prediction.stage_s,
        "link_s": made.prediction.link_s,
        "earlier_stage_s": (),
        "latency_s": sum(link.latency_s for link in made.links),
        "return_s": made.return_latency_s,
    }
    return Evaluation(**values)


def end_s(made: Plan, prompts_under_way: int | None) -> float:
    """When the last prompt has left the last node, by the event simulation, which shares no code with the number."""
    return max(event.stop_s for event in simulate(replace(made, prompts_under_way=prompts_under_way)).events)


@given(plans())
@settings(max_examples=300, deadline=None)
def test_with_enough_prompts_under_way_none_waits(drawn: Plan) -> None:
    made = replace(drawn, workload=Workload(micro_batches=MICRO_BATCHES))
    enough = enough_prompts_under_way(evaluation_of(made), MICRO_BATCHES, chunks=1)
    assert end_s(made, enough) == pytest.approx(end_s(made, None), abs=1e-9)


def test_fewer_prompts_under_way_let_nodes_wait() -> None:
    made = planned(prompts=MICRO_BATCHES, link_s=1.0)
    assert made.prompts_under_way == 6  # of three stages and two links
    assert end_s(made, 4) > end_s(made, None) + 1.0


def planned(*, prompts: int, link_s: float, memory_bytes: int = 10**9, latency_s: float = 0.0) -> Plan:
    """A plan of three layers that take a second each, on three nodes that hold one each."""
    layers = tuple(
        LayerProfile(name, 1000, 0, None, 10, 0, prefill_s=1.0, decode_s=None)
        for name in ("embeddings", "layer 0", "head")
    )
    profile = ModelProfile(
        model="m", architecture="A", dtype="float32", prompt_tokens=10, batch_size=1, hidden_size=25, layers=layers,
        cut_bytes_per_token=100, workspace_bytes=0, tied_bytes=0, threads=1, library_bytes=0,
    )  # fmt: skip
    network = Network(
        name="chain",
        nodes=tuple(Node(name, memory_bytes=memory_bytes, slowdown=1.0) for name in "abc"),
        links=tuple(Link(a, b, 1000 / link_s, latency_s) for a in "abc" for b in "abc" if a != b),
    )
    return plan(
        profile,
        network,
        Workload(micro_batches=prompts, prompt_tokens=10),
        order="fixed",
        pins=dict.fromkeys("abc", ()),
    )


def test_memory_does_not_grow_with_the_micro_batches() -> None:
    few, many = (planned(prompts=prompts, link_s=1.0) for prompts in (20, 500))
    assert few.prompts_under_way == many.prompts_under_way == 6
    assert few.prediction is not None
    assert many.prediction is not None
    # Of those that wait at the beginning or have ended, a token each is counted twice.
    assert [
        b - a for a, b in zip(few.prediction.stage_memory_bytes, many.prediction.stage_memory_bytes, strict=True)
    ] == [2 * 480 * 100] * 3
    small = planned(prompts=500, link_s=1.0, memory_bytes=1000 + 2 * 506 * 100 + 10**5)
    assert small.prediction is not None
    # Two activations of a prompt for each micro-batch would need ten times as much.
    assert max(small.prediction.stage_memory_bytes) < 2 * 500 * 1000 / 5


def test_far_nodes_have_more_prompts_under_way() -> None:
    near, far = (planned(prompts=40, link_s=0.1, latency_s=latency_s) for latency_s in (0.0, 2.0))
    # A round trip takes 3 x 1 + 2 x 0.1 seconds of nodes and links, then 2 x 2 there and as much back.
    assert (near.prompts_under_way, far.prompts_under_way) == (6, 13)
    assert end_s(far, far.prompts_under_way) == pytest.approx(end_s(far, None))


@pytest.mark.parametrize(
    ("micro_batches", "nodes", "layers", "expected"), [(6, 3, 9, None), (7, 3, 9, 6), (500, 1584, 4, 8), (9, 1, 9, 2)]
)
def test_the_search_begins_with_what_keeps_a_chain_busy(
    micro_batches: int, nodes: int, layers: int, expected: int | None
) -> None:
    assert first_prompts_under_way(micro_batches, nodes, layers) == expected


@pytest.mark.parametrize("seed", range(20))
def test_prompts_that_wait_for_memory_are_predicted(seed: int) -> None:
    source = random.Random(seed)
    latency_s, link_s = source.uniform(2, 6), source.uniform(0.1, 1.0)
    roomy = planned(prompts=40, link_s=link_s, latency_s=latency_s)
    assert roomy.prediction is not None
    assert roomy.prompts_under_way is not None
    # What three stages without latency have under way has room, and no more.
    bytes_of_prompt, tokens_bytes = 2 * 1000, 2 * (40 - 6) * 100
    tight_bytes = 1000 + (6 + 1) * bytes_of_prompt + 4 * 1000 + tokens_bytes
    tight = planned(prompts=40, link_s=link_s, latency_s=latency_s, memory_bytes=tight_bytes)
    assert tight.prediction is not None
    assert tight.prompts_under_way == 6 < roomy.prompts_under_way
    assert tight.prediction.total_s == pytest.approx(end_s(tight, 6), rel=1e-9)
    assert tight.prediction.total_s > roomy.prediction.total_s
    assert (tight.prediction.status, tight.prediction.lower_bound_s) == (
        "feasible",
        pytest.approx(roomy.prediction.total_s),
    )
    with pytest.raises(InfeasiblePlanError):
        planned(prompts=40, link_s=link_s, latency_s=latency_s, memory_bytes=tight_bytes - 1)
