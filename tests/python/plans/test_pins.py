"""Pins by names: layers on nodes, from the network file and from the caller, kept by the best plan that keeps them."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, permutations
from typing import Any

import pytest

import orbitsplit as osp
from orbitsplit import InfeasiblePlanError, LayerProfile, Link, ModelProfile, Network, Node, Workload, evaluate

NAMES = ("embeddings", "layer 0", "layer 1", "layer 2", "head")
WORKLOAD = Workload(micro_batches=3, prompt_tokens=10)


def profile() -> ModelProfile:
    layers = tuple(
        LayerProfile(name, 100, 0, None, prefill_flop=flop, decode_flop=1)
        for name, flop in zip(NAMES, (1, 4, 4, 4, 3), strict=True)
    )
    return ModelProfile(
        model="toy",
        architecture="ToyForCausalLM",
        dtype="float32",
        prompt_tokens=10,
        batch_size=1,
        hidden_size=4,
        layers=layers,
        cut_bytes_per_token=16,
        workspace_bytes=0,
        tied_bytes=0,
        threads=1,
        machine="test",
    )


def network(pins: Any = (), *, memory: int = 10_000) -> Network:
    nodes = tuple(Node(f"sat-{k}", memory, flop_per_s=rate) for k, rate in enumerate((1.0, 2.0, 0.5)))
    links = tuple(Link(a.name, b.name, 1e3, 0.01) for a in nodes for b in nodes if a is not b)
    return Network("toy", nodes, links, pins)


def node_of(plan: osp.Plan, layer: int) -> str:
    return next(stage.node for stage in plan.stages if stage.start <= layer < stage.stop)


def best_by_enumeration(pinned: dict[int, int], required: tuple[int, ...] = ()) -> float:
    """Return the least seconds of all plans that keep the pins, by trying every plan."""
    problem = osp.build_problem(profile(), network(), WORKLOAD)
    found = []
    for count in range(1, 4):
        for order in permutations(range(3), count):
            for cuts in combinations(range(1, len(NAMES)), count - 1):
                edges = [0, *cuts, len(NAMES)]
                stages = [
                    osp.Stage(node=node, start=edges[k], stop=edges[k + 1], level=0 if k < count - 1 else None)
                    for k, node in enumerate(order)
                ]
                holds = {layer: stage.node for stage in stages for layer in range(stage.start, stage.stop)}
                if all(holds[layer] == node for layer, node in pinned.items()) and set(required) <= set(order):
                    found.append(evaluate(problem, stages).objective_s)
    return min(found)


@pytest.mark.parametrize(
    ("pins", "by_index", "required"),
    [
        ({"sat-0": ["layer 1"]}, {2: 0}, ()),
        ({"sat-0": [2]}, {2: 0}, ()),
        ({"sat-2": ["head"], "sat-0": ["embeddings"]}, {4: 2, 0: 0}, ()),
        ({"sat-2": []}, {}, (2,)),
        ({"sat-2": (), "sat-1": ["layer 2", 1]}, {3: 1, 1: 1}, (2,)),
        ({"sat-0": ["layer 1", "layer 1"]}, {2: 0}, ()),
        ({}, {}, ()),
    ],
)
@pytest.mark.parametrize("where", ["argument", "network"])
def test_the_plan_is_the_best_that_keeps_the_pins(
    pins: dict[str, list[Any]], by_index: dict[int, int], required: tuple[int, ...], where: str
) -> None:
    if where == "argument":
        plan = osp.plan(profile(), network(), WORKLOAD, pins=pins)
    else:
        plan = osp.plan(profile(), network(tuple((node, tuple(layers)) for node, layers in pins.items())), WORKLOAD)
    assert plan.prediction is not None
    assert plan.prediction.status == "optimal"
    assert plan.prediction.total_s == pytest.approx(best_by_enumeration(by_index, required), rel=1e-9)
    for layer, node in by_index.items():
        assert node_of(plan, layer) == f"sat-{node}"
    assert {f"sat-{node}" for node in required} <= {stage.node for stage in plan.stages}


def test_pins_of_the_caller_replace_those_of_the_network_for_their_nodes() -> None:
    pinned = network((("sat-0", ("layer 1",)), ("sat-2", ("head",))))
    plan = osp.plan(profile(), pinned, WORKLOAD, pins={"sat-0": ["embeddings"]})
    assert (node_of(plan, 0), node_of(plan, 4)) == ("sat-0", "sat-2")
    problem = osp.build_problem(profile(), pinned, WORKLOAD, pins={"sat-0": ["embeddings"]})
    assert problem.pins.layers == {0: 0, 4: 2}


@pytest.mark.parametrize(
    ("pins", "kind", "message"),
    [
        ({"sat-9": ["head"]}, ValueError, "pins name node 'sat-9'; the nodes are sat-0, sat-1, sat-2"),
        ({"sat-0": ["layer 7"]}, ValueError, "node 'sat-0' is pinned to layer 'layer 7'; the layers are embeddings"),
        ({"sat-0": [5]}, ValueError, "node 'sat-0' is pinned to layer 5, must be from 0 to 4"),
        ({"sat-0": [-1]}, ValueError, "node 'sat-0' is pinned to layer -1, must be from 0 to 4"),
        ({"sat-0": [1.0]}, TypeError, r"a layer pinned to node 'sat-0' is 1\.0, must be an integer"),
        ({"sat-0": [True]}, TypeError, "a layer pinned to node 'sat-0' is True, must be an integer"),
        ({"sat-0": "head"}, TypeError, "pins of node 'sat-0' are 'head', must be a list of layers"),
        ({"sat-0": 3}, TypeError, "pins of node 'sat-0' are 3, must be a list of layers"),
        ([("sat-0", "head")], TypeError, "pins is list, must be a mapping"),
        ({"sat-0": ["head"], "sat-1": [4]}, ValueError, "layer 'head' is pinned to two nodes, 'sat-0' and 'sat-1'"),
    ],
)
def test_wrong_pins_are_named(pins: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        osp.plan(profile(), network(), WORKLOAD, pins=pins)


def test_an_infeasible_plan_names_its_pins() -> None:
    # All five layers would have to be on sat-0, which has room for four.
    pins = {"sat-0": ["embeddings", "head"], "sat-1": []}
    with pytest.raises(InfeasiblePlanError, match="the pins ask for 'embeddings' on 'sat-0', 'head' on 'sat-0'"):
        osp.plan(profile(), network(memory=450), WORKLOAD, pins=pins)


def test_pins_of_lost_nodes_no_longer_hold() -> None:
    running = osp.plan(profile(), network(), WORKLOAD, pins={"sat-2": ["head"]})
    kept = osp.replanner(profile(), network(), pins={"sat-2": ["head"], "sat-0": ["embeddings"]})
    plan = kept(running, ("sat-2",), ())
    assert node_of(plan, 0) == "sat-0"
    assert "sat-2" not in {stage.node for stage in plan.stages}
    of_network = osp.replanner(profile(), network((("sat-2", ("head",)),)))
    assert "sat-2" not in {stage.node for stage in of_network(running, ("sat-2",), ()).stages}
    with pytest.raises(ValueError, match="pins name node 'sat-7'"):
        osp.replanner(profile(), network(), pins={"sat-7": ["head"]})


def test_pins_of_a_network_file_come_back() -> None:
    pinned = network((("sat-1", ("layer 1", 3)), ("sat-0", ())))
    text = pinned.to_toml()
    assert Network.from_toml(text) == pinned
    assert replace(pinned, pins=()) == Network.from_toml(replace(pinned, pins=()).to_toml())
    assert pinned.without(["sat-1"]).pins == (("sat-0", ()),)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('node = "sat-9"\nlayers = ["head"]', "a pin names node 'sat-9'; the nodes are sat-0, sat-1, sat-2"),
        ('node = "sat-0"\nlayers = "head"', r"pins\[0\]\.layers is 'head', expected a list of layers"),
        ('node = "sat-0"\nlayers = [1.5]', r"pins\[0\]\.layers\[0\] is 1\.5, expected a name or an index"),
        ('node = "sat-0"\nlayers = [true]', r"pins\[0\]\.layers\[0\] is True, expected a name or an index"),
        ('node = "sat-0"', "layers"),
        ('node = "sat-0"\nlayers = []\ncolour = 1', "colour"),
    ],
)
def test_wrong_pins_of_a_network_file_are_named(table: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Network.from_toml(f"{network().to_toml()}\n[[pins]]\n{table}\n")


def test_two_lists_of_one_node_are_refused() -> None:
    with pytest.raises(ValueError, match="node 'sat-0' has 2 lists of pins, expected one"):
        network((("sat-0", ("head",)), ("sat-0", ())))


def test_a_manual_plan_has_the_nodes_that_are_given() -> None:
    plan = osp.Plan.manual(cuts=[2, 4], layers=6, codecs=["int8", None], nodes=["sat-0", "sat-1", "ground"])
    assert str(plan) == "sat-0[0:3] -int8-> sat-1[3:5] -raw-> ground[5:8]"
    with pytest.raises(ValueError, match="2 cuts make 3 stages, got 2 nodes"):
        osp.Plan.manual(cuts=[2, 4], layers=6, nodes=["a", "b"])
    with pytest.raises(ValueError, match="a"):
        osp.Plan.manual(cuts=[2], layers=6, nodes=["a", "a"])
