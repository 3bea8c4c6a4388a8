"""What a stage takes in addition to its layers: once for each stage, whichever layers it has."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from orbitsplit import Problem, Stage, evaluate, min_max_split, replan, solve, unsplit
from orbitsplit._planner.certify import _faster
from orbitsplit._planner.relaxations import _counting_missing_links
from orbitsplit._planner.uniform_weights import at_weight_level
from orbitsplit._planner.unsplit import best_unsplit, fastest_first
from tests.judges import planner as judge
from tests.support.random_problems import problem_with_overheads, random_problem, random_stages, random_weight_levels
from tests.support.solving import BACKENDS, solved

KEYS = ("stage_overhead_s", "stage_decode_overhead_s")


def chain(**changes: object) -> dict:
    """Three layers on two nodes, with generation."""
    return {
        "layers": ["a", "b", "c"],
        "nodes": [{"name": name, "memory_bytes": 3} for name in "xy"],
        "layer_memory_bytes": [1, 1, 1],
        "layer_time_s": [[2, 4, 3], [2, 5, 3]],
        "layer_decode_time_s": [[0.5, 0.5, 0.5], [0.25, 0.25, 0.25]],
        "stage_overhead_s": [0.25, 8],
        "stage_decode_overhead_s": [0.125, 1],
        "cut_bytes": [8, 4],
        "cut_decode_bytes": [4, 4],
        "bandwidth_bytes_per_s": [[0, 8], [8, 0]],
        "latency_s": [[0, 0.5], [0.5, 0]],
        "levels": [{"name": "raw", "ratio": 1, "encode_s_per_byte": 0.25, "decode_s_per_byte": 0.125}],
        "loss": [[0], [0]],
        "micro_batches": 4,
        "new_tokens": 3,
        **changes,
    }


STAGES = [Stage(0, 0, 1, 0), Stage(1, 1, 3)]


@pytest.mark.usefixtures("backend")
def test_every_stage_takes_its_seconds_once():
    result = evaluate(Problem.from_dict(chain()), STAGES)
    assert result.stage_s == (2 + 0.25 + 2, 5 + 3 + 8 + 1)
    assert result.decode_stage_s == (0.5 + 0.125 + 1, 0.5 + 1 + 0.5)
    assert result.prefill_s == 4.25 + 1 + 17 + 0.5 + 3 * 17
    assert result.round_trip_s == 1.625 + 0.5 + 2 + 0.5 + 0.5
    alone = evaluate(Problem.from_dict(chain()), [Stage(0, 0, 3)])
    assert alone.stage_s == (9.25,)
    assert alone.decode_stage_s == (1.625,)


@pytest.mark.usefixtures("backend")
def test_micro_batches_before_the_last_one_take_them_too():
    problem = Problem.from_dict(chain(layer_earlier_time_s=[[1, 2, 0], [2, 3, 0]]))
    result = evaluate(problem, STAGES)
    assert result.earlier_stage_s == (1 + 0.25 + 2, 3 + 8 + 1)
    assert result.bottleneck_s == max(result.decode_stage_s)


@pytest.mark.usefixtures("backend")
def test_fewer_stages_are_better_where_each_one_costs():
    data = chain(stage_overhead_s=None, stage_decode_overhead_s=None, cut_bytes=[0, 0], latency_s=[[0, 0], [0, 0]])
    data["layer_time_s"] = [[2, 2, 2], [2, 2, 2]]
    assert len(solve(Problem.from_dict(data), objective="time_to_first_token").stages) == 2
    costly = solve(Problem.from_dict({**data, "stage_overhead_s": [8, 9]}), objective="time_to_first_token")
    assert costly.stages == (Stage(0, 0, 3),)
    assert costly.objective_s == 4 * (6 + 8)


def test_nodes_are_equal_only_if_their_stages_are():
    # A complete network of equal nodes, of which one has cheaper stages: every best chain has it.
    nodes = 6
    data = chain(
        nodes=[{"name": str(n), "memory_bytes": 1} for n in range(nodes)],
        layer_time_s=[[1, 2, 3]] * nodes,
        stage_overhead_s=[1.0] * 4 + [0.25, 1.0],
        bandwidth_bytes_per_s=(8 * (1 - np.eye(nodes))).tolist(),
        latency_s=np.zeros((nodes, nodes)).tolist(),
        order="free",
    )
    for key in ("layer_decode_time_s", "stage_decode_overhead_s", "cut_decode_bytes", "new_tokens"):
        del data[key]
    expected = judge.best(data)
    for max_bitset_nodes in (64, 0):
        for backend in BACKENDS:
            found = solved(backend, Problem.from_dict(data), max_bitset_nodes=max_bitset_nodes)
            assert found["status"] == "optimal"
            assert found["objective_s"] == pytest.approx(expected, rel=1e-12)
            assert 4 in [stage[0] for stage in found["stages"]]


@pytest.mark.usefixtures("backend")
def test_zeros_change_nothing():
    for seed in range(20):
        data = random_problem(Random(seed))
        data = {key: value for key, value in data.items() if key not in KEYS}
        plain = Problem.from_dict(data)
        zero = replace(
            plain, stage_overhead_s=np.zeros(len(plain.nodes)), stage_decode_overhead_s=np.zeros(len(plain.nodes))
        )
        assert replace(solve(plain), seconds=0) == replace(solve(zero), seconds=0)
        assert unsplit(plain, 0) == unsplit(zero, 0)
        assert min_max_split(plain) == min_max_split(zero)


@pytest.mark.parametrize("seed", range(20))
def test_a_stage_takes_as_long_as_with_one_layer_that_lasts_longer(seed):
    r = Random(seed)
    data = problem_with_overheads(seed)
    stages = random_stages(r, data)
    moved = {key: value for key, value in data.items() if key != "stage_overhead_s"}
    for key in ("layer_time_s", "layer_earlier_time_s"):
        if key in data:
            moved[key] = [row.copy() for row in data[key]]
            for node, start, *_ in stages:
                moved[key][node][start] += data["stage_overhead_s"][node]
    before, after = (evaluate(Problem.from_dict(one), stages) for one in (data, moved))
    assert before.prefill_s == pytest.approx(after.prefill_s)
    assert before.stage_s == pytest.approx(after.stage_s)


def test_relays_of_the_input_have_no_stage():
    ingress = {"bytes": 8, "bandwidth_bytes_per_s": [8, 0], "latency_s": [0, 0]}
    problem = Problem.from_dict(chain(ingress=ingress, new_tokens=0, micro_batches=1))
    found = unsplit(problem, 1)
    assert found.path == (0, 1)
    assert found.total_s == 1 + 1 + 0.5 + (10 + 8)
    assert best_unsplit(problem).node == 0


def test_the_fastest_node_and_the_shortest_bottleneck_count_stages():
    problem = Problem.from_dict(chain(layer_time_s=[[2, 2, 2], [1, 1, 1]], cut_bytes=[0, 0]))
    assert fastest_first(problem) == [(0, 4 * 6.25), (1, 4 * 11.0)]
    assert min_max_split(problem) == (Stage(0, 0, 3),)


def test_derived_problems_keep_them():
    problem = Problem.from_dict(chain())
    _, faster = next(iter(_faster(problem, [1])))
    assert faster.stage_overhead_s.tolist() == [0.25, 4]
    assert faster.stage_decode_overhead_s.tolist() == [0.125, 0.5]
    counting = _counting_missing_links(problem)
    assert (counting.stage_overhead_s, counting.stage_decode_overhead_s) == (None, None)
    assert replan(STAGES, problem).options[0].objective_s == evaluate(problem, STAGES).objective_s
    leveled = Problem.from_dict(random_weight_levels(Random(1), problem_with_overheads(3)))
    level = at_weight_level(leveled, 2)
    assert level.stage_overhead_s.tolist() == leveled.stage_overhead_s[2].tolist()
    assert level.weight_levels == ()


def test_a_file_keeps_them_and_null_is_none(tmp_path):
    problem = Problem.from_dict(chain())
    problem.save(tmp_path / "problem.json")
    assert Problem.load(tmp_path / "problem.json") == problem
    assert json.loads((tmp_path / "problem.json").read_text())["stage_overhead_s"] == [0.25, 8]
    without = Problem.from_dict(chain(stage_overhead_s=None, stage_decode_overhead_s=None))
    assert (without.stage_overhead_s, without.stage_decode_overhead_s) == (None, None)
    assert not {*KEYS} & set(without.to_dict())


@pytest.mark.usefixtures("backend")
def test_those_at_weight_levels_are_named_with_their_level():
    data = random_weight_levels(Random(1), problem_with_overheads(3))
    data["stage_overhead_s"][2][0] = -1.0
    with pytest.raises(ValueError, match=r"^stage_overhead_s\[2\]\[0\] is -1, must be at least 0$"):
        Problem.from_dict(data)
