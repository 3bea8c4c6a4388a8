"""Weight levels: the format, the evaluation of stages at one, and the search against enumeration, on both backends.

ORBITSPLIT_WEIGHT_LEVEL_INSTANCES is the number of random instances for each backend and order, 100 unless it is set:

    ORBITSPLIT_WEIGHT_LEVEL_INSTANCES=1000 pytest tests/python/planner/test_weight_levels.py -k enumeration
"""

from __future__ import annotations

import copy
import math
import os
import re
from random import Random

import numpy as np
import pytest

from orbitsplit import Problem, Stage, WeightLevel, evaluate, solve
from tests.judges import planner as judge
from tests.support.paths import DATA
from tests.support.random_problems import random_losses, random_problem, random_weight_levels
from tests.support.solving import BACKENDS, check_backends_alike, solved
from tests.support.weight_levels import with_weight_levels

INSTANCES = int(os.environ.get("ORBITSPLIT_WEIGHT_LEVEL_INSTANCES", "100"))
BLOCKS = 10


def random_case(seed: int, order: str | None = None, *, most_layers: int = 4, most_nodes: int = 3) -> tuple[dict, dict]:
    """Draw a problem with three weight levels and the options of a search."""
    r = Random(seed)
    data = random_weight_levels(r, random_problem(r, most_layers=most_layers, most_nodes=most_nodes, order=order))
    if r.random() < 0.2:
        data = random_losses(r, data)
    objectives = ["latency", "latency", "throughput", "time_to_first_token"]
    objectives += ["time_per_token"] if data.get("new_tokens", 0) >= 2 else []
    options = {
        "objective": r.choice(objectives),
        "max_nodes": r.choice([None, None, 1, 2, 3]),
        "max_ng_size": r.choice([16, 16, 1, 0]),
        "max_bitset_nodes": r.choice([64, 0]),
    }
    return data, options


def check_against_enumeration(data: dict, backend: str, options: dict) -> str:
    """Compare a search with every plan; returns its status."""
    limits = options["objective"], math.inf if options["max_nodes"] is None else options["max_nodes"]
    expected = judge.best(data, *limits)
    found = solved(backend, Problem.from_dict(data), **options)
    if math.isinf(expected):
        assert (found["status"], found["stages"]) == ("infeasible", [])
        assert found["reason"]
        return "infeasible"
    assert found["status"] == "optimal"
    assert found["objective_s"] == found["lower_bound_s"] == pytest.approx(expected, rel=1e-9)
    stages = [(node, start, stop, None if k < 0 else k, w) for node, start, stop, k, w in found["stages"]]
    assert judge.cost(data, stages, *limits) == pytest.approx(expected, rel=1e-9)
    return "optimal"


@pytest.mark.parametrize("order", ["fixed", "free"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("block", range(BLOCKS))
def test_equal_to_enumeration(block, backend, order):
    seeds = range(block * INSTANCES // BLOCKS, (block + 1) * INSTANCES // BLOCKS)
    found = [check_against_enumeration(*_for_backend(seed, order, backend)) for seed in seeds]
    assert "optimal" in found


def _for_backend(seed: int, order: str, backend: str) -> tuple[dict, str, dict]:
    data, options = random_case(seed, order)
    return data, backend, options


def test_instances_use_every_weight_level_and_mix_them():
    used, mixes = set(), 0
    for seed in range(100):
        data, options = random_case(seed, most_layers=6, most_nodes=4)
        levels = {stage[4] for stage in solved("native", Problem.from_dict(data), **options)["stages"]}
        used |= levels
        mixes += len(levels) > 1
    assert used == {0, 1, 2}
    assert mixes >= 5


@pytest.mark.parametrize("block", range(5))
def test_both_backends_plan_alike_to_the_last_bit(block):
    for seed in range(20 * block, 20 * block + 20):
        data, options = random_case(seed, most_layers=8, most_nodes=5)
        check_backends_alike(Problem.from_dict(data), **options)


@pytest.fixture(scope="module")
def large() -> Problem:
    """80 layers, 12 nodes, 8 levels and 3 weight levels in fixed order, for which the root is explored twice."""
    return with_weight_levels(Problem.load(DATA / "problems" / "example_80_fixed.json"))


def test_a_large_problem_is_solved_alike(large):
    native = check_backends_alike(large)
    assert native["status"] == "optimal"
    assert native["labels"] > 1000  # more than the first search may make
    assert {stage[4] for stage in native["stages"]} == {1, 2}


def test_limits_of_a_large_search_leave_a_true_bound(large, backend):
    optimum = solve(large).objective_s
    for limit in ({"max_labels": 300}, {"max_labels": 1200}, {"time_limit_s": 0}, {"gap": 0.02}):
        stopped = solve(large, **limit)
        assert stopped.status == "feasible"
        assert stopped.lower_bound_s <= optimum * (1 + 1e-9)
        assert stopped.objective_s >= optimum * (1 - 1e-9)
        assert evaluate(large, stopped).is_feasible
    assert solve(large, incumbent=solve(large)).objective_s == optimum


def chain(**changes: object) -> dict:
    """Three layers on two nodes, in float32 and in 8 bits: half the memory and time, and a loss."""
    return {
        "layers": ["a", "b", "c"],
        "nodes": [{"name": "left", "memory_bytes": 3}, {"name": "right", "memory_bytes": 3}],
        "weight_levels": [{"name": "float32"}, {"name": "int8"}],
        "layer_memory_bytes": [[2, 2, 2], [1, 1, 1]],
        "layer_time_s": [[[4, 4, 4], [4, 4, 4]], [[2, 2, 2], [3, 3, 3]]],
        "weight_loss": [[0, 0, 0], [0.125, 0.25, 0.5]],
        "cut_bytes": [2, 2],
        "bandwidth_bytes_per_s": [[0, 1], [0, 0]],
        "latency_s": [[0, 0], [0, 0]],
        "levels": [{"name": "raw", "ratio": 1}],
        "loss": [[0], [0.0625]],
        **changes,
    }


def test_a_stage_takes_and_loses_what_its_weight_level_does(backend):
    score = evaluate(Problem.from_dict(chain()), [Stage(0, 0, 2, 0, 1), Stage(1, 2, 3, None, 0)])
    assert score.stage_memory_bytes == (2, 2)
    assert score.stage_s == (4, 4)
    assert score.objective_s == 4 + 2 + 4
    assert (score.loss, score.weight_loss) == (0.375 + 0.0625, 0.375)
    assert score.is_feasible


def test_decode_times_are_those_of_the_weight_level(backend):
    decode = {"new_tokens": 3, "cut_decode_bytes": [1, 1], "bandwidth_bytes_per_s": [[0, 1], [1, 0]]}
    times = [[[1, 1, 1], [1, 1, 1]], [[0.5, 0.5, 0.5], [0.25, 0.25, 0.25]]]
    problem = Problem.from_dict(chain(**decode, layer_decode_time_s=times))
    score = evaluate(problem, [Stage(0, 0, 2, 0, 0), Stage(1, 2, 3, None, 1)])
    assert score.decode_stage_s == (2, 0.25)


LIMITS = [
    ([Stage(0, 0, 3, None, 0)], {}, 'stage 0 needs 6 B, node "left" has 3 B'),
    (
        [Stage(0, 0, 3, None, 1)],
        {"loss_budget": 0.75},
        "the loss is 0.875, the budget is 0.75",
    ),
    (
        [Stage(0, 0, 3, None, 1)],
        {"weight_loss": [[0, 0, 0], [0, None, 0]]},
        'layer 1 ("b") does not have weight level "int8" of stage 0',
    ),
]


@pytest.mark.parametrize(("stages", "changes", "message"), LIMITS)
def test_violated_limits_are_named(backend, stages, changes, message):
    assert evaluate(Problem.from_dict(chain(**changes)), stages).violations == (message,)


def test_stages_need_weight_levels_of_the_problem(backend):
    problem = Problem.from_dict(chain())
    with pytest.raises(ValueError, match=r"^stage 0 has no weight level, the problem has 2$"):
        evaluate(problem, [Stage(0, 0, 3)])
    with pytest.raises(ValueError, match=r"^stage 0 has weight level 2, the problem has 2 weight levels$"):
        evaluate(problem, [Stage(0, 0, 3, None, 2)])


BUDGETS = [
    (None, (Stage(0, 0, 3, None, 1),), 6),
    (0.875, (Stage(0, 0, 3, None, 1),), 6),
    # Two layers do not fit in float32: the stage that has them is in 8 bits, best the faster one.
    (0.8125, (Stage(0, 0, 2, 0, 1), Stage(1, 2, 3, None, 0)), 4 + 2 + 4),
    (0.4375, (Stage(0, 0, 2, 0, 1), Stage(1, 2, 3, None, 0)), 4 + 2 + 4),
]


@pytest.mark.parametrize(("budget", "stages", "seconds"), BUDGETS)
def test_the_budget_decides_which_stage_loses(backend, budget, stages, seconds):
    problem = Problem.from_dict(chain(loss_budget=budget))
    solution = solve(problem)
    assert solution.objective_s == judge.best(problem.to_dict()) == seconds
    assert solution.stages == stages
    assert evaluate(problem, solution).loss == solution.loss


REASONS = [
    ({"weight_loss": [[0, None, 0], [0, None, 0]]}, 'layer 1 ("b") does not have any weight level'),
    (
        {"layer_memory_bytes": [[2, 2, 2], [1, 4, 1]], "weight_loss": [[None] * 3, [0] * 3]},
        'layer 1 ("b") needs 4 B, the largest node has 3 B',
    ),
    ({"layer_memory_bytes": [[3, 3, 3], [2.5, 2.5, 2.5]]}, "the layers need 7.5 B together, the nodes hold 6 B"),
    (
        {"weight_loss": [[0] * 3, [0, None, None]]},
        "no plan that fits has a weight level for each of its stages: a layer does not have the weight levels whose "
        "loss is infinite there",
    ),
    (
        {"loss_budget": 0.25},
        "the smallest loss any plan that fits reaches is 0.4375, the budget is 0.25",
    ),
]


@pytest.mark.parametrize(("changes", "reason"), REASONS)
def test_why_there_is_no_plan(backend, changes, reason):
    data = chain(**changes)
    assert math.isinf(judge.best({**data}))
    solution = solve(Problem.from_dict(data))
    assert (solution.status, solution.reason) == ("infeasible", reason)


def test_round_trip_of_a_file(tmp_path):
    problem = Problem.from_dict(chain(weight_loss=[[0, 0, 0], [0.125, None, 0.5]]))
    assert problem.weight_levels == (WeightLevel(name="float32"), WeightLevel(name="int8"))
    assert problem.weight_loss is not None
    assert problem.weight_loss[1, 1] == math.inf
    problem.save(tmp_path / "problem.json")
    assert Problem.load(tmp_path / "problem.json") == problem
    assert problem.to_dict()["weight_loss"] == [[0, 0, 0], [0.125, None, 0.5]]


def test_without_weight_levels_a_file_has_no_key_of_them():
    plain = {key: value for key, value in chain().items() if not key.startswith("weight")}
    plain |= {"layer_memory_bytes": [1, 1, 1], "layer_time_s": [[2, 2, 2], [3, 3, 3]]}
    for absent in ({}, {"weight_levels": None}, {"weight_levels": []}):
        problem = Problem.from_dict({**plain, **absent})
        assert not {"weight_levels", "weight_loss"} & set(problem.to_dict())
        solution = solve(problem)
        assert solution.stages == (Stage(0, 0, 3),)
        assert repr(solution.stages[0]) == "Stage(node=0, start=0, stop=3, level=None)"
        assert evaluate(problem, solution).weight_loss == 0


def test_one_weight_level_plans_as_none_does(backend):
    for seed in range(40):
        data = random_problem(Random(seed), most_nodes=3)
        one = copy.deepcopy(data)
        one |= {"weight_levels": [{"name": "only"}], "weight_loss": [[0.0] * len(data["layers"])]}
        keys = ("layer_memory_bytes", "layer_time_s", "layer_earlier_time_s", "layer_decode_time_s")
        for key in (*keys, "stage_overhead_s", "stage_decode_overhead_s"):
            if key in one:
                one[key] = [one[key]]
        plain, leveled = (solve(Problem.from_dict(each)) for each in (data, one))
        assert (plain.status, plain.objective_s, plain.loss) == (leveled.status, leveled.objective_s, leveled.loss)
        assert [stage[:4] for stage in plain.stages] == [stage[:4] for stage in leveled.stages]


WRONG = [
    ({"weight_levels": {}}, TypeError, "weight_levels is dict, must be a list"),
    ({"weight_levels": [{"name": 1}, {"name": "b"}]}, TypeError, "weight_levels[0].name is 1, must be a string"),
    ({"weight_levels": [{"name": "a", "bits": 4}] * 2}, ValueError, 'weight_levels[0] has the unknown key "bits"'),
    ({"weight_levels": []}, ValueError, "weight_levels is missing, weight_loss is given"),
    (
        {"layer_memory_bytes": [1, 1, 1]},
        ValueError,
        "layer_memory_bytes has shape (3,), must be numbers of shape (2, 3)",
    ),
    ({"weight_loss": [[0, 0, 0]]}, ValueError, "weight_loss has shape (1, 3), must be numbers of shape (2, 3)"),
    ({"weight_loss": None}, ValueError, "weight_loss is missing, weight_levels is given"),
    ({"weight_loss": [[0, 0, 0], [0, -1, 0]]}, ValueError, "weight_loss[1][1] is -1, must be at least 0"),
    ({"weight_loss": [[0, 0, 0], [0, math.nan, 0]]}, ValueError, "weight_loss[1][1] is nan, must be finite"),
    ({"layer_memory_bytes": [[1, 1, 1], [1, -1, 1]]}, ValueError, "layer_memory_bytes[1][1] is -1, must be at least 0"),
    (
        {"layer_time_s": [[[1, 1, 1]] * 2, [[1, 1, 1], [1, 1, 1e101]]]},
        ValueError,
        "layer_time_s[1][1][2] is 1e+101, must be at most 1e+100",
    ),
]


@pytest.mark.parametrize(("changes", "error", "message"), WRONG)
def test_wrong_values_are_refused(backend, changes, error, message):
    with pytest.raises(error, match=re.escape(message)):
        Problem.from_dict(chain(**changes))


def test_losses_of_weights_need_weight_levels():
    plain = {key: value for key, value in chain().items() if key != "weight_levels"}
    plain |= {"layer_memory_bytes": [1, 1, 1], "layer_time_s": [[2, 2, 2], [3, 3, 3]]}
    with pytest.raises(ValueError, match="weight_levels is missing, weight_loss is given"):
        Problem.from_dict(plain)


def test_losses_of_very_different_size_are_not_lost(backend):
    """A difference of prefix sums would lose the small one beside the large one."""
    data = chain(weight_loss=[[0, 0, 0], [1e90, 0.25, 0.5]], loss_budget=1.0)
    solution = solve(Problem.from_dict(data))
    assert solution.objective_s == judge.best(data)
    assert solution.stages == (Stage(0, 0, 1, 0, 0), Stage(1, 1, 3, None, 1))
    assert solution.loss == 0.75


def test_a_joint_plan_is_faster_than_any_uniform_precision(backend):
    """The slow last layer is the one that loses: only a mix keeps the budget and compresses the rest."""
    layers = 8
    data = {
        "layers": [f"layer {i}" for i in range(layers)],
        "nodes": [{"name": "a", "memory_bytes": 5}, {"name": "b", "memory_bytes": 5}],
        "weight_levels": [{"name": "float32"}, {"name": "int4"}],
        "layer_memory_bytes": [[1] * layers, [0.25] * layers],
        "layer_time_s": [[[1.0] * layers] * 2, [[0.25] * layers] * 2],
        "weight_loss": [[0] * layers, [0.01] * (layers - 1) + [1.0]],
        "cut_bytes": [1] * (layers - 1),
        "bandwidth_bytes_per_s": [[0, 10], [10, 0]],
        "latency_s": [[0, 0], [0, 0]],
        "levels": [{"name": "raw", "ratio": 1}],
        "loss": [[0]] * (layers - 1),
        "loss_budget": 0.1,
        "micro_batches": 4,
    }
    uniform = []
    for w in range(2):
        only = {key: [data[key][w]] for key in ("weight_levels", "layer_memory_bytes", "layer_time_s", "weight_loss")}
        uniform.append(solve(Problem.from_dict({**data, **only})))
    assert [each.status for each in uniform] == ["optimal", "infeasible"]
    joint = solve(Problem.from_dict(data))
    assert joint.objective_s == pytest.approx(judge.best(data), rel=1e-9)
    assert joint.objective_s <= 0.7 * uniform[0].objective_s
    assert len({stage.weight_level for stage in joint.stages}) == 2
    np.testing.assert_allclose(joint.loss, 0.07)
