"""Micro-batches before the last one with seconds of their own, as chunks of a prompt have them."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from orbitsplit import Problem, Stage, evaluate, min_max_split, proportional, solve, unsplit
from orbitsplit._planner.certify import _faster
from orbitsplit._planner.relaxations import _counting_missing_links
from orbitsplit._planner.uniform_weights import at_weight_level
from orbitsplit._planner.unsplit import best_unsplit
from tests.judges import planner as judge
from tests.support.random_problems import problem_with_earlier_times, random_problem, random_stages
from tests.support.weight_levels import with_weight_levels

SEEDS = range(60)


def chain(**changes: object) -> dict:
    """Three layers on three nodes; later micro-batches take longer, and only the last runs layer c."""
    return {
        "layers": ["a", "b", "c"],
        "nodes": [{"name": name, "memory_bytes": 3} for name in "xyz"],
        "layer_memory_bytes": [1, 1, 1],
        "layer_time_s": [[2, 4, 3], [2, 5, 3], [2, 4, 3]],
        "layer_earlier_time_s": [[1, 2, 0], [2, 3, 0], [1, 2, 0]],
        "cut_bytes": [8, 4],
        "bandwidth_bytes_per_s": [[0, 8, 8], [8, 0, 8], [8, 8, 0]],
        "latency_s": [[0, 0.5, 1], [0.5, 0, 0.5], [1, 0.5, 0]],
        "levels": [{"name": "raw", "ratio": 1, "encode_s_per_byte": 0.25, "decode_s_per_byte": 0.125}],
        "loss": [[0], [0]],
        "micro_batches": 4,
        **changes,
    }


STAGES = [Stage(0, 0, 1, 0), Stage(1, 1, 2, 0), Stage(2, 2, 3)]


def of_earlier(data: dict) -> dict:
    """The problem whose micro-batches all take what those before the last one take."""
    return {**{k: v for k, v in data.items() if k != "layer_earlier_time_s"}, "layer_time_s": judge.earlier_times(data)}


@pytest.mark.usefixtures("backend")
def test_the_last_micro_batch_has_the_sum_and_those_before_it_the_maximum():
    result = evaluate(Problem.from_dict(chain()), STAGES)
    assert result.stage_s == (2 + 2, 1 + 5 + 1, 0.5 + 3)
    assert result.earlier_stage_s == (1 + 2, 1 + 3 + 1, 0.5)
    assert result.link_s == (1, 0.5)
    assert result.prefill_s == result.objective_s == (4 + 1 + 7 + 0.5 + 3.5) + (0.5 + 0.5) + 3 * 5
    assert result.bottleneck_s == 5


@pytest.mark.usefixtures("backend")
def test_a_half_duplex_stage_holds_its_link_for_every_micro_batch():
    nodes = [{"name": name, "memory_bytes": 3, "half_duplex": True} for name in "xyz"]
    egress = {"bytes": 6, "bandwidth_bytes_per_s": [1, 1, 1], "latency_s": [0, 0, 0]}
    result = evaluate(Problem.from_dict(chain(nodes=nodes, egress=egress)), STAGES)
    assert result.stage_s == (4 + 1, 7 + 0.5, 3.5 + 6)
    assert result.earlier_stage_s == (3 + 1, 5 + 0.5, 0.5 + 6)
    assert result.prefill_s == 5 + 7.5 + 9.5 + 1 + 3 * 6.5


@pytest.mark.usefixtures("backend")
def test_one_micro_batch_takes_what_the_last_one_takes():
    one = Problem.from_dict(chain(micro_batches=1))
    alone = replace(one, layer_earlier_time_s=None)
    assert evaluate(one, STAGES).objective_s == evaluate(alone, STAGES).objective_s
    assert solve(one).stages == solve(alone).stages


def simulated_s(data: dict, stages: list) -> float:
    """When the last micro-batch ends, if each passes all resources in turn and each resource serves them in turn."""
    last, delays = judge.occupancies(data, stages, data["layer_time_s"], data["cut_bytes"], external=True)
    earlier, _ = judge.occupancies(data, stages, judge.earlier_times(data), data["cut_bytes"], external=True)
    free_s = [0.0] * len(last)
    for m in range(data["micro_batches"]):
        now_s = 0.0
        for i, occupancy in enumerate(last if m + 1 == data["micro_batches"] else earlier):
            now_s = free_s[i] = max(now_s, free_s[i]) + occupancy
    # Propagation delays every micro-batch alike, so that it can be added at the end.
    return now_s + sum(delays)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_simulated_micro_batch_ends_later_if_the_last_one_takes_longest(seed):
    r = Random(seed)
    data = problem_with_earlier_times(seed)
    data["layer_earlier_time_s"] = [[r.random() * seconds for seconds in row] for row in data["layer_time_s"]]
    data.pop("new_tokens", None)
    stages = random_stages(r, data)
    result = evaluate(Problem.from_dict(data), stages)
    if result.prefill_s < float("inf"):
        last, earlier = result.stage_s, result.earlier_stage_s
        later_s = sum(a - b for a, b in zip(last, earlier, strict=True)) if data["micro_batches"] > 1 else 0.0
        assert result.prefill_s - later_s - 1e-9 <= simulated_s(data, stages) <= result.prefill_s + 1e-9


@pytest.mark.parametrize("seed", SEEDS)
def test_the_simulation_ends_just_then_if_only_the_last_stage_differs(seed):
    r = Random(seed)
    data = problem_with_earlier_times(seed)
    data.pop("egress", None)
    stages = random_stages(r, data)
    data["layer_earlier_time_s"] = [row.copy() for row in data["layer_time_s"]]
    node, layer = stages[-1][0], len(data["layers"]) - 1
    data["layer_time_s"][node][layer] += 3.0  # the head, which only the last micro-batch runs
    result = evaluate(Problem.from_dict(data), stages)
    if result.prefill_s < float("inf"):
        assert simulated_s(data, stages) == pytest.approx(result.prefill_s, rel=1e-12)


@pytest.mark.usefixtures("backend")
def test_times_that_are_equal_change_nothing():
    for seed in range(20):
        data = random_problem(Random(seed))
        data.pop("layer_earlier_time_s", None)
        plain = Problem.from_dict(data)
        equal = replace(plain, layer_earlier_time_s=plain.layer_time_s)
        assert replace(solve(plain), seconds=0) == replace(solve(equal), seconds=0)
        assert unsplit(plain, 0) == unsplit(equal, 0)
        assert proportional(plain) == proportional(equal)
        assert min_max_split(plain) == min_max_split(equal)


def test_the_maximum_decides_the_plan_of_throughput():
    # By the last micro-batch both nodes are alike; the others are run by x alone in half the time of y.
    data = chain(layer_earlier_time_s=[[1, 1, 1], [9, 9, 9], [9, 9, 9]], layer_time_s=[[1, 1, 1]] * 3)
    found = solve(Problem.from_dict(data), objective="throughput")
    assert found.stages == (Stage(0, 0, 3),)
    assert found.objective_s == 3
    assert min_max_split(Problem.from_dict(data)) == (Stage(0, 0, 3),)


def test_a_speed_is_the_mean_over_all_micro_batches():
    # In the mean of four micro-batches a layer takes 1 s on x and on y, 4 s on z.
    data = chain(layer_time_s=[[4, 4, 4], [1, 1, 1], [7, 7, 7]], layer_earlier_time_s=[[0] * 3, [1] * 3, [3] * 3])
    data["layers"] = list("abcdefghi")
    for key in ("layer_time_s", "layer_earlier_time_s"):
        data[key] = [row[:1] * 9 for row in data[key]]
    data |= {"layer_memory_bytes": [0] * 9, "cut_bytes": [0] * 8, "loss": [[0]] * 8}
    shares = [stage.stop - stage.start for stage in proportional(Problem.from_dict(data))]
    assert shares == [4, 4, 1]


@pytest.mark.parametrize("seed", SEEDS)
def test_an_unsplit_plan_takes_the_best_path_of_its_input(seed):
    r = Random(seed)
    nodes = 4
    data = chain(
        nodes=[{"name": str(n), "memory_bytes": 3, "half_duplex": r.random() < 0.2} for n in range(nodes)],
        layer_time_s=[[r.uniform(0, 9)] * 3 for _ in range(nodes)],
        layer_earlier_time_s=[[r.uniform(0, 2)] * 3 for _ in range(nodes)],
        bandwidth_bytes_per_s=[[r.choice([0.0, 1.0, 2.0, 4.0]) for _ in range(nodes)] for _ in range(nodes)],
        latency_s=[[r.uniform(0, 3) for _ in range(nodes)] for _ in range(nodes)],
        ingress={"bytes": 8, "bandwidth_bytes_per_s": [r.choice([1.0, 4.0]) for _ in range(nodes)],
                 "latency_s": [r.uniform(0, 3) for _ in range(nodes)]},
    )  # fmt: skip
    problem = Problem.from_dict(data)
    found = unsplit(problem, 0)
    paths = [(*relays, 0) for count in range(nodes) for relays in itertools.permutations(range(1, nodes), count)]
    assert found.total_s == pytest.approx(min(path_s(data, path) for path in paths), rel=1e-9)
    assert best_unsplit(problem).total_s == min(unsplit(problem, n).total_s for n in range(nodes))


def path_s(data: dict, path: tuple[int, ...]) -> float:
    """Seconds of all micro-batches whose input takes a path: relays, each a stage of no seconds, and one stage."""
    size, bandwidth, latency = data["ingress"]["bytes"], data["bandwidth_bytes_per_s"], data["latency_s"]
    hops = [(data["ingress"]["bandwidth_bytes_per_s"][path[0]], data["ingress"]["latency_s"][path[0]])]
    hops += [(bandwidth[a][b], latency[a][b]) for a, b in itertools.pairwise(path)]
    if any(speed == 0 for speed, _ in hops):
        return float("inf")
    occupancies = [size / speed for speed, _ in hops]
    most = max([*occupancies, sum(data["layer_earlier_time_s"][path[-1]])])
    total = sum(occupancies) + sum(data["layer_time_s"][path[-1]]) + sum(delay for _, delay in hops)
    return total + (data["micro_batches"] - 1) * most


def test_derived_problems_keep_both_times():
    problem = Problem.from_dict(chain())
    _, faster = next(iter(_faster(problem, [1])))
    for key in ("layer_time_s", "layer_earlier_time_s"):
        before, after = getattr(problem, key), getattr(faster, key)
        assert (after[1] == before[1] / 2).all()
        assert (after[[0, 2]] == before[[0, 2]]).all()
    weighted = with_weight_levels(Problem.from_dict({**of_earlier(chain()), "name": "weighted"}))
    weighted = replace(weighted, layer_earlier_time_s=weighted.layer_time_s + 1)
    level = at_weight_level(weighted, 1)
    assert (level.layer_earlier_time_s == weighted.layer_time_s[1] + 1).all()
    counting = _counting_missing_links(problem)
    assert counting.layer_earlier_time_s is None
    assert not counting.layer_time_s.any()


def test_a_file_keeps_the_times_and_null_is_none_of_them(tmp_path):
    problem = Problem.from_dict(chain())
    problem.save(tmp_path / "problem.json")
    assert Problem.load(tmp_path / "problem.json") == problem
    assert np.array_equal(json.loads((tmp_path / "problem.json").read_text())["layer_earlier_time_s"],
                          chain()["layer_earlier_time_s"])  # fmt: skip
    alike = Problem.from_dict(chain(layer_earlier_time_s=None))
    assert alike.layer_earlier_time_s is None
    assert "layer_earlier_time_s" not in alike.to_dict()
    assert evaluate(alike, STAGES).earlier_stage_s == ()


@pytest.mark.usefixtures("backend")
def test_times_at_weight_levels_are_named_with_their_level():
    data = with_weight_levels(Problem.from_dict(of_earlier(chain()))).to_dict()
    data["layer_earlier_time_s"] = (np.array(data["layer_time_s"]) / 2).tolist()
    data["layer_earlier_time_s"][2][1][0] = -1.0
    with pytest.raises(ValueError, match=r"^layer_earlier_time_s\[2\]\[1\]\[0\] is -1, must be at least 0$"):
        Problem.from_dict(data)
