"""How the search for a fixed order grows with layers, nodes and levels, as a Markdown table for docs/benchmarks.md.

    python -m benches.studies.growth

An edge is one choice of the search's graph: a stage (start, stop, node) that fits its node, or a transfer (boundary,
link, level).
"""

from __future__ import annotations

import statistics

import numpy as np

from orbitsplit import Problem, Solution, solve

ROUNDS = 7
SIZES = [
    (32, 8, 4),
    (64, 8, 4),
    (128, 8, 4),
    (32, 16, 4),
    (32, 32, 4),
    (32, 8, 8),
    (32, 8, 16),
    (64, 16, 8),
    (126, 24, 8),
]


def random_chain(layers: int, nodes: int, levels: int, seed: int = 1) -> Problem:
    """Return a problem of nodes of different speed and memory, all linked, with a loss budget that couples the cuts."""
    r = np.random.default_rng(seed)
    speed = r.uniform(0.5, 2, nodes)
    loss = np.outer(r.uniform(0.5, 1.5, layers - 1), 0.001 * 4.0 ** (np.arange(levels) * 8 / levels) - 0.001)
    return Problem.from_dict(
        {
            "layers": [f"layer {i}" for i in range(layers)],
            "nodes": [
                {"name": f"node {n}", "memory_bytes": float(r.uniform(2, 6) * layers / nodes)} for n in range(nodes)
            ],
            "layer_memory_bytes": r.uniform(0.9, 1.1, layers).tolist(),
            "layer_time_s": (np.outer(1 / speed, r.uniform(0.9, 1.1, layers)) * 0.01).tolist(),
            "cut_bytes": [2e6] * (layers - 1),
            "bandwidth_bytes_per_s": r.uniform(2e6, 25e6, (nodes, nodes)).tolist(),
            "latency_s": r.uniform(0.002, 0.02, (nodes, nodes)).tolist(),
            "levels": [{"name": str(k), "ratio": 2.0 ** (k * 8 / levels)} for k in range(levels)],
            "loss": loss.tolist(),
            "loss_budget": 0.3,
            "micro_batches": 16,
        }
    )


def count_edges(p: Problem) -> int:
    """Count the stages that fit and the transfers of fixed order."""
    layers, nodes = len(p.layers), len(p.nodes)
    before = np.concatenate([[0.0], np.cumsum(p.layer_memory_bytes)])
    stages = sum(
        int(np.searchsorted(before, before[start] + node.memory_bytes, side="right")) - 1 - start
        for node in p.nodes
        for start in range(layers)
    )
    return stages + (layers - 1) * (nodes * (nodes - 1) // 2) * len(p.levels)


def measure(p: Problem) -> tuple[float, Solution]:
    """Return the median seconds of a proven optimum."""
    solutions = [solve(p) for _ in range(ROUNDS)]
    assert all(s.status == "optimal" and s.objective_s == solutions[0].objective_s for s in solutions)
    return statistics.median(s.seconds for s in solutions), solutions[0]


def main() -> None:
    """Print the table."""
    print("| layers | nodes | levels | edges | labels | ms | ns per edge |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for size in SIZES:
        problem = random_chain(*size)
        seconds, solution = measure(problem)
        edges = count_edges(problem)
        layers, nodes, levels = size
        row = (layers, nodes, levels, edges, solution.labels, f"{1e3 * seconds:.2f}", f"{1e9 * seconds / edges:.0f}")
        print("| " + " | ".join(map(str, row)) + " |")


if __name__ == "__main__":
    main()
