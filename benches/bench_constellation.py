"""How small is the proven gap for a whole constellation after ten seconds?

python -m benches.bench_constellation        # the table of docs/benchmarks.md, half a minute
pytest benches/bench_constellation.py
"""

from __future__ import annotations

import os
import statistics

import numpy as np
import pytest

from orbitsplit import Problem, Solution, evaluate, solve

TIME_LIMIT_S = float(os.environ.get("TIME_LIMIT_S", "10"))
MAX_NODES = 8
# By name: the relative spread of the nodes' speeds, and the share of links at a tenth of the rate.
NETWORKS = {
    "identical nodes": (0.0, 0.0),
    "speeds +-10 %": (0.1, 0.0),
    "speeds +-50 %": (0.5, 0.0),
    "identical nodes, 30 % of the links slow": (0.0, 0.3),
    "speeds +-50 %, 30 % of the links slow": (0.5, 0.3),
}


def grid(planes: int, in_plane: int, spread: float, slow: float, *, layers: int = 32, levels: int = 6) -> Problem:
    """Return a +grid: satellites linked to both neighbours in their plane and to one in each adjacent plane.

    The model needs at least four nodes; 16 micro-batches; links of 0.2 Gbit/s and 5 ms.
    """
    r = np.random.default_rng(1)
    nodes = planes * in_plane
    bandwidth, latency = np.zeros((nodes, nodes)), np.zeros((nodes, nodes))
    speed = r.uniform(1 - spread, 1 + spread, nodes)
    for a in range(nodes):
        plane, position = divmod(a, in_plane)
        for b in ((plane + 1) % planes * in_plane + position, plane * in_plane + (position + 1) % in_plane):
            bandwidth[a, b] = bandwidth[b, a] = 2.5e6 if r.random() < slow else 25e6
            latency[a, b] = latency[b, a] = 0.005
    loss = np.outer(r.uniform(0.5, 1.5, layers - 1), 0.001 * 4.0 ** (np.arange(levels) * 8 / levels) - 0.001)
    return Problem.from_dict(
        {
            "layers": [f"layer {i}" for i in range(layers)],
            "nodes": [{"name": f"node {n}", "memory_bytes": 8.4} for n in range(nodes)],
            "layer_memory_bytes": [1.0] * layers,
            "layer_time_s": np.outer(1 / speed, r.uniform(0.9, 1.1, layers) * 0.01),
            "cut_bytes": [2e6] * (layers - 1),
            "bandwidth_bytes_per_s": bandwidth,
            "latency_s": latency,
            "levels": [{"name": str(k), "ratio": 2.0 ** (k * 8 / levels)} for k in range(levels)],
            "loss": loss,
            "loss_budget": 0.3,
            "micro_batches": 16,
            "order": "free",
        }
    )


def checked(problem: Problem, solution: Solution) -> Solution:
    """Return the solution after checking that it is a plan and keeps its own promise."""
    score = evaluate(problem, solution)
    assert score.is_feasible
    assert score.objective_s == solution.objective_s
    assert len(solution.stages) <= MAX_NODES
    assert solution.lower_bound_s is not None
    assert solution.lower_bound_s <= solution.objective_s
    return solution


@pytest.mark.benchmark(group="a +grid of 7 planes x 12, chains of up to 4 nodes: how fast is the proof?")
@pytest.mark.parametrize("name", NETWORKS)
def test_small_grid(benchmark, name):
    problem = grid(7, 12, *NETWORKS[name], layers=12, levels=3)
    solution = checked(problem, benchmark(lambda: solve(problem, max_nodes=4, gap=0.01)))
    assert solution.gap <= 0.01 * (1 + 1e-9)


def main() -> None:
    """Print the table."""
    print("| 1,584 nodes | status | objective | lower bound | gap | s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, (spread, slow) in NETWORKS.items():
        problem = grid(72, 22, spread, slow)
        runs = [checked(problem, solve(problem, max_nodes=MAX_NODES, time_limit_s=TIME_LIMIT_S)) for _ in range(3)]
        gap = statistics.median(run.gap for run in runs if run.gap is not None)
        best = min(runs, key=lambda run: (run.status != "optimal", run.seconds))
        seconds = statistics.median(run.seconds for run in runs)
        row = (name, best.status, f"{best.objective_s:.5f} s", f"{best.lower_bound_s:.5f} s", f"{100 * gap:.2f} %")
        print("| " + " | ".join((*row, f"{seconds:.1f}")) + " |", flush=True)


if __name__ == "__main__":
    main()
