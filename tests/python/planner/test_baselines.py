"""Splits by rule: the rule on examples worked by hand, the dynamic programme and the relays against enumeration."""

from __future__ import annotations

import itertools
import math
from random import Random

import pytest

import orbitsplit as osp
from orbitsplit import Problem
from tests.judges import planner as judge
from tests.support.random_problems import random_problem


def chain(memory: list[float], **changes) -> Problem:
    """Six equal layers of one byte on linked nodes."""
    nodes = len(memory)
    return Problem.from_dict(
        {
            "layers": [f"layer {i}" for i in range(6)],
            "nodes": [{"name": f"n{n}", "memory_bytes": room} for n, room in enumerate(memory)],
            "layer_memory_bytes": [1] * 6,
            "layer_time_s": [[1.0] * 6] * nodes,
            "cut_bytes": [1] * 5,
            "bandwidth_bytes_per_s": [[float(a != b) for a in range(nodes)] for b in range(nodes)],
            "latency_s": [[0] * nodes] * nodes,
            "levels": [{"name": "raw", "ratio": 1}, {"name": "half", "ratio": 2}],
            "loss": [[0, 0.1]] * 5,
            "loss_budget": 0.1,
            **changes,
        }
    )


def spans(stages) -> list[tuple[int, int, int]]:
    return [(stage.node, stage.start, stage.stop) for stage in stages]


def test_proportional_to_memory_ignores_speed() -> None:
    problem = chain([4, 2, 6], layer_time_s=[[1] * 6, [9] * 6, [2] * 6])
    assert spans(osp.proportional(problem, to="memory")) == [(0, 0, 2), (1, 2, 3), (2, 3, 6)]
    assert spans(osp.proportional(chain([0, 0, 0]), to="memory")) == spans(osp.uniform(problem))
    with pytest.raises(ValueError, match="to is 'weight', must be"):
        osp.proportional(problem, to="weight")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        ([3, 2, 9], [(0, 0, 3), (1, 3, 5), (2, 5, 6)]),
        ([6, 2, 9], [(0, 0, 6)]),
        ([0, 4, 9], [(1, 0, 4), (2, 4, 6)]),  # a node that cannot hold the next layer is skipped
        ([2, 2, 1], [(0, 0, 2), (1, 2, 4), (2, 4, 6)]),  # the remaining layers are on the last node
    ],
)
def test_fill_in_order(memory, expected) -> None:
    assert spans(osp.fill_in_order(chain(memory))) == expected


def test_a_rule_takes_the_best_single_level_within_the_budget() -> None:
    assert [stage.level for stage in osp.uniform(chain([9, 9]))] == [1, None]
    assert [stage.level for stage in osp.uniform(chain([9, 9, 9]))] == [0, 0, None]


def test_without_levels_nothing_is_cut() -> None:
    problem = chain([9, 9], levels=[], loss=[[]] * 5)
    for stages in (osp.uniform(problem), osp.fill_in_order(chain([2, 9], levels=[], loss=[[]] * 5))):
        assert len(stages) == 1


def test_single_node_is_the_fastest_that_fits() -> None:
    times = [[1] * 6, [2] * 6, [3] * 6]
    assert spans(osp.single_node(chain([5, 6, 7], layer_time_s=times))) == [(1, 0, 6)]
    assert spans(osp.single_node(chain([5, 5, 5], layer_time_s=times))) == [(0, 0, 6)]


def bottleneck(p: dict, stages) -> float:
    """Seconds of the busiest stage or link, computing and sending alone; infinite where a limit is broken."""
    busiest = 0.0
    for k, (node, start, stop, level, *_) in enumerate(stages):
        room = p["nodes"][node]["memory_bytes"] - p["nodes"][node]["headroom_bytes"]
        if sum(p["layer_memory_bytes"][start:stop]) > room:
            return math.inf
        beside = p.get("stage_overhead_s", [0.0] * len(p["nodes"]))[node]
        busiest = max(busiest, sum(judge.earlier_times(p)[node][start:stop]) + beside)
        if level is not None:
            bandwidth = p["bandwidth_bytes_per_s"][node][stages[k + 1][0]]
            size = p["cut_bytes"][stop - 1] / p["levels"][level]["ratio"]
            busiest = max(busiest, size / bandwidth if bandwidth > 0 else math.inf)
    return busiest


@pytest.mark.parametrize("seed", range(60))
def test_min_max_split_has_the_smallest_bottleneck(seed) -> None:
    data = random_problem(Random(seed), order="fixed")
    data["levels"], data["loss"] = data["levels"][:1], [row[:1] for row in data["loss"]]
    best = min(bottleneck(data, stages) for stages in judge.plans(data))
    found = osp.min_max_split(Problem.from_dict(data))
    if best < math.inf:
        assert bottleneck(data, found) == pytest.approx(best)
    else:
        assert found == osp.uniform(Problem.from_dict(data))


def fastest_relay(p: dict, node: int) -> float:
    """Every simple path of the raw input to the node, by the formula of a pipeline of hops and one stage."""
    nodes, ingress = range(len(p["nodes"])), p["ingress"]
    others = [n for n in nodes if n != node and n not in p.get("pins", {}).get("forbidden", [])]
    best = math.inf
    for count in range(len(others) + 1):
        for relays in itertools.permutations(others, count):
            path = [*relays, node]
            through = {**p, "ingress": None, "egress": None}
            through["nodes"] = [{**n, "half_duplex": False} for n in p["nodes"]]
            hops = [(ingress["bandwidth_bytes_per_s"][path[0]], ingress["latency_s"][path[0]])]
            hops += [(p["bandwidth_bytes_per_s"][a][b], p["latency_s"][a][b]) for a, b in itertools.pairwise(path)]
            if any(bandwidth == 0 for bandwidth, _ in hops):
                continue
            busy = [ingress["bytes"] / bandwidth for bandwidth, _ in hops]
            delay = sum(latency for _, latency in hops)
            if p["latency_occupies_link"]:
                busy = [b + latency for b, (_, latency) in zip(busy, hops, strict=True)]
                delay = 0
            stages = [(node, 0, len(p["layers"]), None)]
            last, delays = judge.occupancies({**p, "ingress": None}, stages, p["layer_time_s"], [], external=True)
            earlier, _ = judge.occupancies({**p, "ingress": None}, stages, judge.earlier_times(p), [], external=True)
            total = sum(busy) + delay + sum(last) + sum(delays) + (p["micro_batches"] - 1) * max(*busy, *earlier)
            if p.get("new_tokens", 0) >= 2:
                round_trip = sum(p["layer_decode_time_s"][node])
                round_trip += p.get("stage_decode_overhead_s", [0.0] * len(p["nodes"]))[node]
                total += (p["new_tokens"] - 1) * round_trip * max(1, p.get("groups", p["micro_batches"]))
            best = min(best, total)
    return best


@pytest.mark.parametrize("seed", range(80))
def test_the_raw_input_takes_the_best_way(seed) -> None:
    r = Random(seed)
    data = random_problem(r)
    data["ingress"] = {
        "bytes": float(r.randint(0, 6)),
        "bandwidth_bytes_per_s": [r.choice([0.0, 0.5, 3.0]) for _ in data["nodes"]],
        "latency_s": [float(r.randint(0, 3)) for _ in data["nodes"]],
    }
    problem = Problem.from_dict(data)
    for node in range(len(data["nodes"])):
        if node in data.get("pins", {}).get("forbidden", []):
            continue
        found = osp.unsplit(problem, node)
        assert found.path[-1] == node
        assert found.total_s == pytest.approx(fastest_relay(data, node))


def test_unsplit_counts_what_the_objective_counts() -> None:
    data = chain([9, 9]).to_dict()
    ingress = {"bytes": 40, "bandwidth_bytes_per_s": [20, 2], "latency_s": [1, 0]}
    decode = {"new_tokens": 3, "layer_decode_time_s": [[0.5] * 6] * 2, "cut_decode_bytes": [1] * 5}
    links = {"bandwidth_bytes_per_s": [[0, 5], [5, 0]]}
    problem = Problem.from_dict({**data, "ingress": ingress, **links, "micro_batches": 3})
    # Directly to n1 the input takes 20 s; over n0 2 and 8 s, then 6 s of computing.
    assert osp.unsplit(problem, 1, objective="throughput").total_s == 8
    assert osp.unsplit(problem, 1, objective="time_to_first_token").total_s == 2 + 1 + 8 + 6 + 2 * 8
    generating = Problem.from_dict({**problem.to_dict(), **decode})
    assert osp.unsplit(generating, 1).total_s == 2 + 1 + 8 + 6 + 2 * 8 + 2 * 9
    assert osp.unsplit(generating, 1, objective="time_per_token").total_s == 9
    assert osp.unsplit(generating, 1, objective="throughput").total_s == 3
    with pytest.raises(ValueError, match='objective is "speed"; valid are latency, throughput'):
        osp.unsplit(problem, 1, objective="speed")


def test_unsplit_names_a_node_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="node is 2, the nodes are 0 to 1"):
        osp.unsplit(chain([9, 9]), 2)


def test_alternatives_say_how_the_input_travels() -> None:
    ingress = {"bytes": 4, "bandwidth_bytes_per_s": [2, 0], "latency_s": [0, 0]}
    names = [other.name for other in osp.alternatives(chain([9, 9], ingress=ingress))]
    assert names[-2:] == ["all on n0", "all on n1, input relayed by n0"]
