"""Plans on networks as they were measured, and whether going over to one pays, against sums by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

import orbitsplit as osp
from orbitsplit import Link, Node
from orbitsplit._plans.rebalance import Gain, Measured, MeasuredLink, MeasuredNode, as_measured, token_s
from tests.support.toy_plan import NETWORK, PROFILE, WORKLOAD, planned

COUNTED = replace(
    PROFILE,
    layers=tuple(replace(layer, prefill_s=None, decode_s=None) for layer in PROFILE.layers),
    threads=None,
    machine=None,
)
FAST = MeasuredNode(1, (0.5, 0.5), (0.005, 0.005), 10**6)


def test_a_node_that_the_network_did_not_have_gets_the_links_that_were_measured() -> None:
    links = {("c", "a"): MeasuredLink(5e5, 0.002), ("a", "c"): MeasuredLink(4e5, 0.003), ("c", "d"): MeasuredLink(1, 0)}
    found = as_measured(NETWORK, PROFILE, Measured(nodes={"c": FAST}, links=links))
    assert found.nodes == (*NETWORK.nodes, Node("c", 10**6, slowdown=0.5))
    assert found.links == (*NETWORK.links, Link("c", "a", 5e5, 0.002), Link("a", "c", 4e5, 0.003))


def test_a_node_of_the_network_keeps_what_was_not_measured() -> None:
    network = replace(NETWORK, nodes=(NETWORK.nodes[0], replace(NETWORK.nodes[1], headroom_bytes=100)))
    small = replace(FAST, memory_bytes=5000)
    measured = Measured(nodes={"b": small}, links={("b", "a"): MeasuredLink(3e5, 0.004)})
    found = as_measured(network, PROFILE, measured)
    assert found.nodes == (NETWORK.nodes[0], Node("b", 5000, slowdown=0.5, headroom_bytes=100))
    assert found.links == (NETWORK.links[0], Link("b", "a", 3e5, 0.004))


def test_a_profile_without_seconds_gives_rates_of_computing() -> None:
    rates = (Node("a", 10**6, flop_per_s=1e9, memory_bytes_per_s=1e6), Node("b", 10**6, flop_per_s=1e9))
    measured = Measured(nodes={"c": FAST}, factors={"a": 2.0})
    found = as_measured(replace(NETWORK, nodes=rates), COUNTED, measured)
    assert found.nodes[0] == Node("a", 10**6, flop_per_s=5e8, memory_bytes_per_s=5e5)
    assert found.nodes[2] == Node("c", 10**6, flop_per_s=2e9)  # 2e7 FLOP in 0.01 s


def test_a_node_that_drifts_has_as_much_less_speed() -> None:
    found = as_measured(NETWORK, PROFILE, Measured(factors={"b": 1.5}))
    assert [node.slowdown for node in found.nodes] == [2.0, 3.0]


def test_seconds_of_a_token_are_those_of_the_cost_model_and_follow_what_drifts() -> None:
    plan = planned()
    assert plan.prediction is not None
    assert len(plan.stages) == 2
    assert token_s(plan) == pytest.approx(plan.prediction.token_step_s)
    for drift in (
        Measured(factors={plan.stages[1].node: 3.0}),
        Measured(links={("a", "b"): MeasuredLink(1e3, 0.001), ("b", "a"): MeasuredLink(1e3, 0.001)}),
    ):
        network = as_measured(NETWORK, PROFILE, drift)
        names = [node.name for node in network.nodes]
        problem = osp.build_problem(PROFILE, network, WORKLOAD)
        levels = (*(0 for _ in plan.links), None)
        stages = [
            osp.Stage(names.index(one.node), one.start, one.stop, level)
            for one, level in zip(plan.stages, levels, strict=True)
        ]
        assert token_s(plan, drift) == pytest.approx(osp.evaluate(problem, stages).token_step_s)
        assert token_s(plan, drift) > 1.2 * token_s(plan)
    assert token_s(osp.Plan.manual(cuts=[2], layers=4)) == float("inf")


def test_at_a_rate_as_many_messages_count_as_requests_are_in_flight() -> None:
    plan = planned()
    assert plan.prediction is not None
    busy = replace(plan, workload=replace(plan.workload, micro_batches=100))
    occupied = max(*plan.prediction.decode_stage_s, *plan.prediction.decode_link_s) / plan.prediction.tokens_per_step
    for in_flight, messages in ((None, 100), (40.0, 40), (400.0, 100)):
        at_rate = replace(busy, prediction=replace(plan.prediction, in_flight=in_flight))
        assert token_s(at_rate) == pytest.approx(messages * occupied)
    alone = replace(busy, prediction=replace(plan.prediction, in_flight=0.1))
    assert token_s(alone) < 3 * sum((*plan.prediction.decode_stage_s, *plan.prediction.decode_link_s))


@pytest.mark.parametrize(
    ("gain", "gain_s", "pays"),
    [
        # 100 tokens of 0.2 s; 10 s of loading are 50 of them; the others take half as long.
        (Gain(100, 0.2, 0.1, 10.0, 1.0), 50 * 0.1 - 1.0, True),
        # The pause takes what is gained.
        (Gain(100, 0.2, 0.1, 10.0, 6.0), -1.0, False),
        # Over before it is loaded.
        (Gain(100, 0.2, 0.1, 30.0, 0.0), 0.0, False),
        # A gain of 5 % may be an error of the prediction.
        (Gain(100, 0.2, 0.19, 0.0, 0.0), 1.0, False),
        (Gain(100, 0.2, 0.17, 0.0, 0.0), 3.0, True),
        # Nothing to do.
        (Gain(0, 0.2, 0.1, 0.0, 0.0), 0.0, False),
        # The running plan predicts nothing, or that a token takes no time.
        (Gain(100, float("inf"), 0.1, 0.0, 0.0), 0.0, False),
        (Gain(100, 0.0, 0.0, 0.0, 0.0), 0.0, False),
    ],
)
def test_a_move_pays_if_it_gains_more_over_the_rest_than_it_costs(gain: Gain, gain_s: float, pays: bool) -> None:
    assert gain.gain_s == pytest.approx(gain_s)
    assert gain.pays is pays


def test_what_is_emulated_is_the_first_network_also_after_it_was_measured() -> None:
    """Else a node that was found twice as slow would be emulated twice as slow once more."""
    drift = Measured(factors={"b": 4.0}, nodes={"c": FAST}, links={("c", "a"): MeasuredLink(1e6, 0.001)})
    replanner = osp.replanner(PROFILE, NETWORK)
    found = replanner.on(as_measured(NETWORK, PROFILE, drift)).on(as_measured(NETWORK, PROFILE, drift))(planned())
    assert found.prediction is not None
    slowdowns = {"a": 2.0, "b": 2.0, "c": 1.0}
    assert [stage.slowdown for stage in found.stages] == [slowdowns[stage.node] for stage in found.stages]
    assert "c" in [stage.node for stage in found.stages]
