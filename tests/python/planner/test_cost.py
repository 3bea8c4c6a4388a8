"""The cost model: worked examples, the judge's formulas, violated limits and stages that are not a plan."""

from __future__ import annotations

import math
import re
from random import Random

import pytest

from orbitsplit import Problem, Stage, evaluate, solve
from orbitsplit._backend import use_backend
from tests.judges import planner as judge
from tests.support.random_problems import random_problem, random_stages

pytestmark = pytest.mark.usefixtures("backend")


def chain(**changes: object) -> dict:
    """Three layers on two nodes, one lossless level and one that halves the bytes."""
    return {
        "layers": ["a", "b", "c"],
        "nodes": [{"name": "left", "memory_bytes": 3}, {"name": "right", "memory_bytes": 3}],
        "layer_memory_bytes": [1, 1, 1],
        "layer_time_s": [[1, 2, 4], [2, 1, 3]],
        "cut_bytes": [8, 12],
        "bandwidth_bytes_per_s": [[0, 4], [0, 0]],
        "latency_s": [[0, 0.5], [0.25, 0]],
        "levels": [
            {"name": "raw", "ratio": 1},
            {"name": "half", "ratio": 2, "encode_s_per_byte": 0.25, "decode_s_per_byte": 0.125},
        ],
        "loss": [[0, 0.1], [0, 0.2]],
        "micro_batches": 3,
        **changes,
    }


RAW = [Stage(0, 0, 2, 0), Stage(1, 2, 3, None)]
HALF = [Stage(0, 0, 2, 1), Stage(1, 2, 3, None)]


def score(stages, **changes):
    return evaluate(Problem.from_dict(chain(**changes)), stages)


def test_prefill_of_an_uncompressed_plan():
    result = score(RAW)
    assert (result.stage_s, result.link_s, result.latency_s) == ((3, 3), (3,), 0.5)
    assert result.prefill_s == result.objective_s == 3 + 3 + 3 + 0.5 + 2 * 3
    assert (result.loss, result.stage_memory_bytes) == (0, (2, 1))
    assert (result.token_step_s, result.decode_stage_s) == (0, ())
    assert (result.is_feasible, result.violations) == (True, ())


def test_codec_seconds_are_charged_to_the_nodes_per_original_byte():
    result = score(HALF)
    assert (result.stage_s, result.link_s) == ((3 + 3, 3 + 1.5), (1.5,))
    assert result.objective_s == 6 + 1.5 + 4.5 + 0.5 + 2 * 6
    assert result.loss == 0.2


def test_latency_may_occupy_the_link():
    result = score(RAW, latency_occupies_link=True)
    assert (result.link_s, result.latency_s) == ((3.5,), 0)
    assert result.objective_s == 3 + 3.5 + 3 + 2 * 3.5


def test_a_half_duplex_node_is_busy_while_it_transmits():
    nodes = [{"name": "left", "memory_bytes": 3, "half_duplex": True}, {"name": "right", "memory_bytes": 3}]
    result = score(RAW, nodes=nodes)
    assert (result.stage_s, result.link_s) == ((6, 3), (3,))
    assert result.objective_s == 6 + 3 + 0.5 + 2 * 6


def test_ingress_and_egress_are_resources_of_the_prefill():
    ingress = {"bytes": 8, "bandwidth_bytes_per_s": [2, 0], "latency_s": [1, 0]}
    egress = {"bytes": 3, "bandwidth_bytes_per_s": [0, 6], "latency_s": [0, 2]}
    result = score(RAW, ingress=ingress, egress=egress)
    assert (result.ingress_s, result.egress_s, result.latency_s) == (4, 0.5, 3.5)
    assert result.objective_s == 4 + 3 + 3 + 3 + 0.5 + 3.5 + 2 * 4


GENERATION = {
    "new_tokens": 5,
    "layer_decode_time_s": [[0.5, 0.5, 1], [1, 1, 0.25]],
    "cut_decode_bytes": [4, 4],
}


def test_generation_by_the_round_trip_returns_along_the_chain():
    links = {"bandwidth_bytes_per_s": [[0, 4], [1, 0]], "groups": 1}
    result = score(RAW, **GENERATION, **links)
    assert (result.decode_stage_s, result.decode_link_s) == ((1, 0.25), (1,))
    assert (result.return_s, result.round_trip_s) == (0.25, 1 + 1 + 0.25 + 0.5 + 0.25)
    assert result.token_step_s == 3
    assert result.objective_s == result.prefill_s + 4 * 3


def test_the_old_name_of_the_round_trip_still_works_and_warns():
    result = score(RAW, **GENERATION, bandwidth_bytes_per_s=[[0, 4], [1, 0]])
    with pytest.warns(DeprecationWarning, match="Evaluation.lap_s is now Evaluation.round_trip_s"):
        assert result.lap_s == result.round_trip_s > 0


def test_generation_by_the_busiest_resource():
    result = score(RAW, **GENERATION, bandwidth_bytes_per_s=[[0, 4], [1, 0]])
    assert result.token_step_s == 3 * 1  # as many groups as micro-batches
    assert score(RAW, **GENERATION, groups=7, bandwidth_bytes_per_s=[[0, 4], [1, 0]]).token_step_s == 7


def test_return_over_the_direct_link_or_back_along_the_chain():
    three = {
        "nodes": [{"name": name, "memory_bytes": 3} for name in "xyz"],
        "layer_time_s": [[1, 1, 1]] * 3,
        "latency_s": [[0, 1, 9], [2, 0, 1], [5, 4, 0]],
        **GENERATION,
        "layer_decode_time_s": [[1, 1, 1]] * 3,
    }
    stages = [Stage(0, 0, 1, 0), Stage(1, 1, 2, 0), Stage(2, 2, 3, None)]
    direct = score(stages, **three, bandwidth_bytes_per_s=[[0, 1, 1], [1, 0, 1], [1, 1, 0]])
    back = score(stages, **three, bandwidth_bytes_per_s=[[0, 1, 1], [1, 0, 1], [0, 1, 0]])
    only = score(stages, **three, bandwidth_bytes_per_s=[[0, 1, 1], [0, 0, 1], [1, 1, 0]])
    none = score(stages, **three, bandwidth_bytes_per_s=[[0, 1, 1], [0, 0, 1], [0, 1, 0]])
    assert (direct.return_s, back.return_s, only.return_s, none.return_s) == (5, 4 + 2, 5, math.inf)
    three["latency_s"] = [[0, 1, 9], [2, 0, 1], [64, 4, 0]]
    slow = score(stages, **three, bandwidth_bytes_per_s=[[0, 1, 1], [1, 0, 1], [1, 1, 0]])
    assert slow.return_s == 4 + 2
    assert none.violations == (
        'tokens cannot return from node "z" to node "x": no link joins them, and none joins node "y" to node "x"',
    )
    assert none.objective_s == math.inf
    assert none.prefill_s < math.inf


def test_one_new_token_comes_out_of_the_prefill():
    assert score(RAW, new_tokens=1).objective_s == score(RAW).objective_s


@pytest.mark.parametrize(
    ("stages", "changes", "violation"),
    [
        ([Stage(0, 0, 3, None)], {"layer_memory_bytes": [1, 2, 1]}, 'stage 0 needs 4 B, node "left" has 3 B'),
        (HALF, {"loss_budget": 0.15}, "the loss is 0.2, the budget is 0.15"),
        (
            [Stage(0, 0, 1, 0), Stage(1, 1, 3, None)],
            {"bandwidth_bytes_per_s": [[0, 0], [0, 0]]},
            'no link joins node "left" to node "right"',
        ),
        (
            RAW,
            {"ingress": {"bytes": 1, "bandwidth_bytes_per_s": [0, 1], "latency_s": [0, 0]}},
            'no link over which the input reaches node "left"',
        ),
        (
            RAW,
            {"egress": {"bytes": 1, "bandwidth_bytes_per_s": [1, 0], "latency_s": [0, 0]}},
            'no link over which the result leaves node "right"',
        ),
        (RAW, {"pins": {"layers": {"a": "right"}}}, 'layer 0 ("a") is on node "left", pinned to node "right"'),
        ([Stage(0, 0, 3, None)], {"pins": {"required": [1]}}, 'node "right" is required and has no stage'),
        (RAW, {"pins": {"forbidden": [1]}}, 'node "right" is forbidden and has a stage'),
    ],
)
def test_violated_limits_are_reported(stages, changes, violation):
    result = score(stages, **changes)
    assert result.violations == (violation,)
    assert not result.is_feasible


def test_a_budget_forgives_the_rounding_of_its_sum():
    tenths = {"loss": [[0.1, 0], [0.2, 0]], "nodes": [{"name": n, "memory_bytes": 1} for n in "xyz"]}
    three = {
        "layer_time_s": [[1, 1, 1]] * 3,
        "bandwidth_bytes_per_s": [[0, 1, 1], [1, 0, 1], [1, 1, 0]],
        "latency_s": [[0] * 3] * 3,
    }
    stages = [Stage(0, 0, 1, 0), Stage(1, 1, 2, 0), Stage(2, 2, 3, None)]
    result = score(stages, **tenths, **three, loss_budget=0.3)
    assert result.loss > 0.3
    assert result.is_feasible


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "the plan has no stage"),
        ([Stage(0, 1, 3, None)], "stage 0 starts at layer 1, must start at 0"),
        ([Stage(0, 0, 1, 0), Stage(1, 2, 3, None)], "stage 1 starts at layer 2, must start at 1"),
        ([Stage(0, 0, 0, 0), Stage(1, 0, 3, None)], "stage 0 stops at layer 0, must stop at 1 to 3"),
        ([Stage(0, 0, 4, None)], "stage 0 stops at layer 4, must stop at 1 to 3"),
        ([Stage(0, 0, 2, None)], "the plan stops at layer 2, the problem has 3"),
        ([Stage(2, 0, 3, None)], "stage 0 is on node 2, the nodes are 0 to 1"),
        ([Stage(-1, 0, 3, None)], "stage 0 is on node -1, the nodes are 0 to 1"),
        ([Stage(0, 0, 1, 0), Stage(0, 1, 3, None)], 'stage 1 is on node "left", which has a stage'),
        (
            [Stage(1, 0, 1, 0), Stage(0, 1, 3, None)],
            "stage 1 is on node 0 after node 1, the order is fixed",
        ),
        ([Stage(0, 0, 1, None), Stage(1, 1, 3, None)], "stage 0 has no level for the cut after it"),
        ([Stage(0, 0, 1, 2), Stage(1, 1, 3, None)], "stage 0 has level 2, the problem has 2 levels"),
        ([Stage(0, 0, 1, -2), Stage(1, 1, 3, None)], "stage 0 has level -2, the problem has 2 levels"),
        ([Stage(0, 0, 1, -1), Stage(1, 1, 3, None)], "stage 0 has level -1"),
        ([Stage(0, 0, 3, 0)], "stage 0 is the last, no cut follows it, but it has a level"),
        ([(0, 0, 3, None, 5)], "stage 0 has weight level 5, the problem has 0 weight levels"),
        ([Stage(0, 0, 3, None, -1)], "stage 0 has weight level -1"),
        ([(0, 0, 3, None, None, 5)], "stage 0 is (0, 0, 3, None, None, 5), must be (node, start, stop, level)"),
    ],
)
def test_stages_that_are_no_plan_are_refused(stages, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        score(stages)


def test_a_stage_of_a_wrong_type_is_refused():
    with pytest.raises(TypeError, match=r"stop of stage 0 is 2\.0, must be an integer"):
        score([Stage(0, 0, 2.0, 0), Stage(1, 2, 3, None)])


def test_anything_with_stages_can_be_scored():
    problem = Problem.from_dict(chain())
    solution = solve(problem)
    assert evaluate(problem, solution).objective_s == solution.objective_s


@pytest.mark.parametrize("seed", range(300))
def test_random_plans_cost_what_the_judge_says(seed):
    r = Random(seed)
    data = random_problem(r)
    stages = random_stages(r, data)
    result = evaluate(Problem.from_dict(data), stages)
    expected = judge.cost(data, stages)
    assert result.is_feasible == math.isfinite(expected)
    if result.is_feasible:
        assert result.objective_s == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(100))
def test_both_backends_score_alike_to_the_last_bit(seed):
    r = Random(seed)
    problem = Problem.from_dict(data := random_problem(r))
    stages = random_stages(r, data)
    results = []
    for name in ("native", "numba"):
        with use_backend(name):
            results.append(evaluate(problem, stages))
    assert results[0] == results[1]
