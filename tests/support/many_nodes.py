"""A problem whose single steps take long: 200 layers on 64 nodes at 3 levels, in free order."""

from __future__ import annotations

import numpy as np

from orbitsplit import Problem


def many_nodes_problem() -> Problem:
    """Return the problem, the same each time."""
    draw = np.random.default_rng(1)
    layers, nodes = 200, 64
    return Problem.from_dict(
        {
            "layers": [f"layer {i}" for i in range(layers)],
            "nodes": [{"name": f"n{n}", "memory_bytes": float(draw.integers(20, 60))} for n in range(nodes)],
            "layer_memory_bytes": [1.0] * layers,
            "layer_time_s": draw.uniform(0.5, 2, (nodes, layers)).tolist(),
            "cut_bytes": draw.uniform(1, 3, layers - 1).tolist(),
            "bandwidth_bytes_per_s": (draw.uniform(1, 4, (nodes, nodes)) * (1 - np.eye(nodes))).tolist(),
            "latency_s": draw.uniform(0, 0.2, (nodes, nodes)).tolist(),
            "levels": [{"name": "a", "ratio": 1}, {"name": "b", "ratio": 2}, {"name": "c", "ratio": 4}],
            "loss": [[0, 0.1, 0.5]] * (layers - 1),
            "loss_budget": 0.6,
            "micro_batches": 4,
            "order": "free",
        }
    )
