"""Equal nodes are recognised once: symmetric networks against exhaustive search, relabelled, and too large for it."""

from __future__ import annotations

import copy
import math
from random import Random

import pytest

from orbitsplit import Problem, evaluate, solve
from tests.judges import planner as judge
from tests.support.solving import BACKENDS, solved


def links(nodes: int, pairs: set[tuple[int, int]]) -> list[list[float]]:
    return [[1.0 if (a, b) in pairs or (b, a) in pairs else 0.0 for b in range(nodes)] for a in range(nodes)]


def ring(nodes: int) -> list[list[float]]:
    return links(nodes, {(n, (n + 1) % nodes) for n in range(nodes)})


def cube() -> list[list[float]]:
    return links(8, {(n, n ^ bit) for n in range(8) for bit in (1, 2, 4)})


def grid(planes: int, in_plane: int) -> list[list[float]]:
    at = lambda plane, position: plane % planes * in_plane + position % in_plane  # noqa: E731
    every = [(p, k) for p in range(planes) for k in range(in_plane)]
    return links(planes * in_plane, {(at(p, k), at(p + i, k + 1 - i)) for p, k in every for i in (0, 1)})


def complete(nodes: int) -> list[list[float]]:
    return links(nodes, {(a, b) for a in range(nodes) for b in range(nodes) if a != b})


# By name: bandwidths, and the speeds of the nodes. "pair" and "spokes" tempt a walk to go back and forth.
NETWORKS = {
    "ring of 6": (ring(6), [1.0] * 6),
    "cube": (cube(), [1.0] * 8),
    "grid of 3 x 3": (grid(3, 3), [1.0] * 9),
    "all linked": (complete(5), [1.0] * 5),
    "alternating ring": (ring(6), [1.0, 3.0] * 3),
    "pair": (complete(6), [3.0, 3.0, 1.0, 1.0, 1.0, 1.0]),
    "spokes": (links(7, {(0, n) for n in range(1, 7)}), [4.0] + [2.0] * 6),
}


def symmetric(name: str, *, seed: int = 1, layers: int = 5) -> dict:
    """Return a problem of equal nodes; memory for two layers each, so that a chain has three nodes or more."""
    bandwidth, speeds = NETWORKS[name]
    r, nodes = Random(seed), len(speeds)
    seconds = [r.choice([1.0, 2.0, 3.5]) for _ in range(layers)]
    return {
        "layers": [f"layer {i}" for i in range(layers)],
        "nodes": [{"name": f"node {n}", "memory_bytes": 2.0} for n in range(nodes)],
        "layer_memory_bytes": [1.0] * layers,
        "layer_time_s": [[s / speed for s in seconds] for speed in speeds],
        "cut_bytes": [r.choice([1.0, 2.0]) for _ in range(layers - 1)],
        "bandwidth_bytes_per_s": bandwidth,
        "latency_s": [[0.25] * nodes for _ in range(nodes)],
        "levels": [{"name": "raw", "ratio": 1.0}, {"name": "half", "ratio": 2.0, "encode_s_per_byte": 0.1}],
        "loss": [[0.0, r.choice([0.1, 0.2])] for _ in range(layers - 1)],
        "loss_budget": 0.35,
        "micro_batches": 4,
        "order": "free",
    }


def relabelled(data: dict, order: list[int]) -> dict:
    """Return the problem with its nodes in another order."""
    result = copy.deepcopy(data)
    for key in ("nodes", "layer_time_s"):
        result[key] = [data[key][n] for n in order]
    for key in ("bandwidth_bytes_per_s", "latency_s"):
        result[key] = [[data[key][a][b] for b in order] for a in order]
    return result


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("most_nodes", [None, 3])
@pytest.mark.parametrize("max_bitset_nodes", [64, 0], ids=["visited sets", "k-cycles"])
def test_equal_to_exhaustive_search(name: str, most_nodes: int | None, max_bitset_nodes: int) -> None:
    data = symmetric(name)
    found = [
        solved(backend, Problem.from_dict(data), max_nodes=most_nodes, max_bitset_nodes=max_bitset_nodes)
        for backend in BACKENDS
    ]
    assert found[0] == found[1]
    best = min(judge.cost(data, stages) for stages in judge.linked_plans(data, most_nodes or len(data["nodes"])))
    assert found[0]["status"] == ("infeasible" if math.isinf(best) else "optimal")
    if not math.isinf(best):
        assert found[0]["objective_s"] == found[0]["lower_bound_s"] == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_relabelling_changes_nothing(name: str) -> None:
    data, r = symmetric(name, seed=2), Random(3)
    first = solved("native", Problem.from_dict(data), max_bitset_nodes=0)
    for _ in range(3):
        order = r.sample(range(len(data["nodes"])), len(data["nodes"]))
        again = solved("native", Problem.from_dict(relabelled(data, order)), max_bitset_nodes=0)
        assert (again["status"], again["objective_s"]) == (first["status"], pytest.approx(first["objective_s"]))


def equal_satellites(planes: int, in_plane: int) -> dict:
    data = {**symmetric("all linked", layers=16), "bandwidth_bytes_per_s": grid(planes, in_plane)}
    nodes = planes * in_plane
    return {
        **data,
        "nodes": [{"name": f"node {n}", "memory_bytes": 2.0} for n in range(nodes)],
        "layer_time_s": [data["layer_time_s"][0]] * nodes,
        "latency_s": [[0.25] * nodes] * nodes,
        "loss_budget": 0.5,
    }


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_networks_of_equal_nodes_are_proven(backend: str) -> None:
    """A chain of 8 equal nodes in fixed order is the same problem as one in a grid of 80."""
    data = equal_satellites(8, 10)
    found = solved(backend, Problem.from_dict(data), max_nodes=8)
    chain = {**data, "order": "fixed", "nodes": data["nodes"][:8], "layer_time_s": data["layer_time_s"][:8]}
    for key, value in (("bandwidth_bytes_per_s", 1.0), ("latency_s", 0.25)):
        chain[key] = [[value if b == a + 1 else 0.0 for b in range(8)] for a in range(8)]
    assert found["status"] == "optimal"
    assert found["objective_s"] == solved(backend, Problem.from_dict(chain))["objective_s"]


def test_another_latency_or_a_slow_node_is_no_equal() -> None:
    """One better link or node among many equal ones must be found."""
    data = equal_satellites(8, 10)
    plain = solve(Problem.from_dict(data), max_nodes=8)
    latency = [row[:] for row in data["latency_s"]]
    latency[33][34] = latency[34][33] = 0.0
    faster = [[s / 2 for s in row] if n == 50 else row for n, row in enumerate(data["layer_time_s"])]
    for key, value, nodes in (("latency_s", latency, {33, 34}), ("layer_time_s", faster, {50})):
        problem = Problem.from_dict({**data, key: value})
        better = solve(problem, max_nodes=8)
        assert better.status == "optimal"
        assert better.objective_s is not None
        assert plain.objective_s is not None
        assert better.objective_s < plain.objective_s
        assert nodes <= {stage.node for stage in better.stages}
        assert evaluate(problem, better).objective_s == better.objective_s
