"""What stands on top of the search, for problems with weight levels: fronts, certificates, baselines, refusals."""

from __future__ import annotations

import copy
import math
import re
from random import Random

import pytest

import orbitsplit as osp
from orbitsplit import Problem
from tests.judges import planner as judge
from tests.support.random_problems import random_problem, random_weight_levels

KEYS = (
    "layer_memory_bytes",
    "layer_time_s",
    "layer_earlier_time_s",
    "layer_decode_time_s",
    "stage_overhead_s",
    "stage_decode_overhead_s",
)
BASELINES = [osp.uniform, osp.proportional, osp.fill_in_order, osp.min_max_split, osp.single_node]


def random_case(seed: int, **options: object) -> dict:
    r = Random(seed)
    return random_weight_levels(r, random_problem(r, most_layers=4, most_nodes=3, **options))


def at_weight_level(data: dict, w: int) -> dict | None:
    """The problem in which all stages have one weight level, without weight levels; None where a layer lacks it."""
    losses = data["weight_loss"][w]
    if None in losses:
        return None
    plain = {key: data[key][w] if key in KEYS else value for key, value in data.items() if "weight" not in key}
    if "loss_budget" in plain:
        plain["loss_budget"] -= sum(losses)
    return plain if plain.get("loss_budget", 0.0) >= 0 else None


def plain_rows(stages) -> list[tuple]:
    return [tuple(stage) for stage in stages]


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_baseline_is_the_best_of_the_uniform_precisions(baseline):
    compared = 0
    for seed in range(150):
        data = random_case(seed)
        uniform = [plain for w in range(3) if (plain := at_weight_level(data, w)) is not None]
        expected = min((judge.cost(one, plain_rows(baseline(Problem.from_dict(one)))) for one in uniform), default=1e99)
        stages = baseline(Problem.from_dict(data))
        assert len({stage.weight_level for stage in stages}) == 1
        if math.isfinite(expected) and expected < 1e99:
            compared += 1
            assert judge.cost(data, plain_rows(stages)) == pytest.approx(expected, rel=1e-9)
    assert compared > 20


def test_unsplit_takes_the_best_weight_level():
    feasible = 0
    for seed in range(150):
        data = random_case(seed)
        for key in ("ingress", "egress"):
            data.pop(key, None)
        for node in range(len(data["nodes"])):
            costs = [judge.cost(data, [(node, 0, len(data["layers"]), None, w)]) for w in range(3)]
            found = osp.unsplit(Problem.from_dict(data), node)
            assert bool(found.violations) == math.isinf(min(costs))
            if not found.violations:
                feasible += 1
                assert found.total_s == pytest.approx(min(costs), rel=1e-9)
                assert costs[found.weight_level] == pytest.approx(min(costs), rel=1e-9)
    assert feasible > 20


def test_the_input_is_relayed_to_the_one_node_at_its_weight_level():
    data = small(
        ingress={"bytes": 4, "bandwidth_bytes_per_s": [4, 0], "latency_s": [0, 0]},
        bandwidth_bytes_per_s=[[0, 2], [0, 0]],
    )
    found = osp.unsplit(Problem.from_dict(data), 1)
    assert (found.path, found.weight_level, found.violations) == ((0, 1), 1, ())
    assert found.total_s == 1 + 2 + 3


@pytest.mark.parametrize("over", ["loss_budget", "memory"])
def test_points_of_a_front_are_optimal_within_their_limits(over):
    points = 0
    for seed in range(40):
        data = random_case(seed, order="fixed")

        def limited(limit: float, data: dict = data) -> dict:
            if over == "loss_budget":
                return {**data, "loss_budget": limit}
            nodes = [{**node, "memory_bytes": node["memory_bytes"] * limit} for node in data["nodes"]]
            nodes = [{**node, "headroom_bytes": min(node["headroom_bytes"], node["memory_bytes"])} for node in nodes]
            return {**data, "nodes": nodes}

        front = osp.pareto(Problem.from_dict(data), over)
        assert front.is_complete
        for point in front.points:
            points += 1
            best = judge.best(limited(point.limit * (1 + 1e-12)))
            assert point.solution.objective_s == pytest.approx(best, rel=1e-9)
            if point.limit > 1e-6:
                assert judge.best(limited(point.limit * (1 - 1e-6))) > best * (1 + 1e-9)
    assert points > 50


def small(**changes: object) -> dict:
    """Two layers, of which a node holds one in float32 and both in 8 bits."""
    return {
        "layers": ["a", "b"],
        "nodes": [{"name": "sat-0", "memory_bytes": 2e9}, {"name": "sat-1", "memory_bytes": 2e9}],
        "weight_levels": [{"name": "float32"}, {"name": "int8"}],
        "layer_memory_bytes": [[2e9, 2e9], [0.5e9, 0.5e9]],
        "layer_time_s": [[[2, 2], [2, 2]], [[1.5, 1.5], [1.5, 1.5]]],
        "weight_loss": [[0, 0], [0.25, 0.125]],
        "cut_bytes": [4],
        "bandwidth_bytes_per_s": [[0, 1], [0, 0]],
        "latency_s": [[0, 0], [0, 0]],
        "levels": [{"name": "raw", "ratio": 1}],
        "loss": [[0]],
        **changes,
    }


def test_a_certificate_says_what_a_lighter_weight_level_would_save():
    certificate = osp.certificate(Problem.from_dict(small(loss_budget=0.2)))
    # Both layers on one node in 8 bits lose 0.375; within 0.2 the model is split, and only the second one is in 8 bits.
    assert certificate.total_s == 1.5 + 4 + 2
    binding = {found.constraint: found for found in certificate.binding}
    assert binding["loss budget"].total_s == 3
    assert binding["memory of sat-0"].total_s == 4
    assert binding["memory of sat-0"].relaxed == "lifted; int8 there would save 1.5 GB and add 0.25 to the loss"
    assert binding["memory of sat-1"].relaxed == "lifted"
    assert "int8 there would save 1.5 GB" in str(certificate)


def test_binding_constraints_are_those_whose_relaxation_helps():
    for seed in range(25):
        data = random_case(seed, order="fixed")
        best = judge.best(data)
        if math.isinf(best):
            continue
        certificate = osp.certificate(Problem.from_dict(data))
        for n, node in enumerate(data["nodes"]):
            lifted = copy.deepcopy(data)
            lifted["nodes"][n]["memory_bytes"] = 1e6
            found = [each for each in certificate.binding if each.constraint == f"memory of {node['name']}"]
            relaxed = judge.best(lifted)
            if relaxed < best * (1 - 1e-6):
                assert found[0].total_s == pytest.approx(relaxed, rel=1e-9)
            else:
                assert not found


def test_the_least_memory_that_makes_a_plan_possible():
    tried = 0
    for seed in range(150):
        data = random_case(seed, order="fixed")
        if math.isfinite(judge.best(data)):
            continue
        certificate = osp.certificate(Problem.from_dict(data))
        amount = next(found.amount for found in certificate.relaxations if found.kind == "memory")
        if amount is None:
            continue
        tried += 1
        for more, is_enough in ((amount, True), (amount - 1, False)):
            nodes = [{**node, "memory_bytes": node["memory_bytes"] + more} for node in data["nodes"]]
            assert math.isfinite(judge.best({**data, "nodes": nodes})) == is_enough
    assert tried > 10


TIED = [
    (1.0, TypeError, "tied_bytes is 1.0, must be a sequence"),
    ([1e9], ValueError, "tied_bytes has 1 numbers, must have one for each of the 2 weight levels"),
    ([1e9, 1e9], ValueError, "tied_bytes[1] is 1000000000.0, must be at most 5e+08, the bytes of the last layer"),
    ([-1, 0], ValueError, "tied_bytes[0] is -1, must be at least 0"),
    (["1", 0], TypeError, "tied_bytes[0] is '1', must be a number"),
]


@pytest.mark.parametrize(("tied", "error", "message"), TIED)
def test_tied_bytes_are_given_for_each_weight_level(tied, error, message):
    for function in (osp.certificate, osp.pareto, osp.alternatives):
        with pytest.raises(error, match=re.escape(message)):
            function(Problem.from_dict(small()), tied_bytes=tied)


def test_one_node_holds_tied_weights_once_at_its_weight_level():
    # Both layers in float32 are 4 GB, 2 GB of which they share: they fit one node, which is faster than two.
    problem = Problem.from_dict(small(loss_budget=0.0))
    assert osp.certificate(problem).total_s == 2 + 4 + 2
    assert osp.certificate(problem, tied_bytes=[2e9, 0]).total_s == 4
    assert osp.certificate(problem, tied_bytes=[1e9, 0.5e9]).total_s == 2 + 4 + 2
    found = {each.name: each for each in osp.alternatives(problem, tied_bytes=[2e9, 0])}
    assert (found["all on sat-0"].total_s, found["all on sat-0"].breaks) == (4, "")
    front = osp.pareto(problem, tied_bytes=[2e9, 0.5e9])
    assert [(point.limit, point.solution.objective_s) for point in front.points] == [(0, 4), (0.375, 3)]


def test_alternatives_know_weight_levels():
    found = {each.name: each for each in osp.alternatives(Problem.from_dict(small()))}
    assert found["all on sat-0"].total_s == 3
    assert found["best without compression"].total_s == 3
    assert found["uniform"].total_s == 1.5 + 4 + 1.5
    assert not any(each.breaks for each in found.values())
