"""Threads of a search change its time, not what it returns."""

from __future__ import annotations

import numpy as np
import pytest

from orbitsplit import Problem
from tests.support.solving import BACKENDS, solved


def free_problem(nodes: int = 9, layers: int = 24, levels: int = 3) -> Problem:
    """Return a problem in free order that a first search does not solve, so that large relaxations are made."""
    draw = np.random.default_rng(5)
    return Problem.from_dict(
        {
            "layers": [f"layer {i}" for i in range(layers)],
            "nodes": [{"name": f"node {n}", "memory_bytes": 4.0} for n in range(nodes)],
            "layer_memory_bytes": [1.0] * layers,
            "layer_time_s": np.outer(draw.uniform(0.7, 1.4, nodes), draw.uniform(0.8, 1.2, layers)),
            "cut_bytes": draw.uniform(1, 2, layers - 1),
            "bandwidth_bytes_per_s": draw.uniform(1, 4, (nodes, nodes)),
            "latency_s": draw.uniform(0, 0.2, (nodes, nodes)),
            "levels": [{"name": str(k), "ratio": 2.0**k} for k in range(levels)],
            "loss": np.outer(draw.uniform(0.5, 1.5, layers - 1), [0.0, 0.02, 0.1]),
            "loss_budget": 0.2,
            "micro_batches": 6,
            "order": "free",
        }
    )


@pytest.mark.parametrize("options", [{}, {"max_nodes": 7}, {"max_labels": 25_000, "max_ng_size": 4}], ids=str)
def test_the_same_with_any_number_of_threads(options: dict) -> None:
    problem = free_problem()
    alone = solved("native", problem, **options)
    assert alone["stages"]
    for threads in (2, 3, 8):
        assert solved("native", problem, threads=threads, **options) == alone


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("threads", [0, 257])
def test_other_numbers_are_refused(backend: str, threads: int) -> None:
    with pytest.raises(ValueError, match=f"^threads is {threads}, it must be from 1 to 256$"):
        solved(backend, free_problem(2, 4), threads=threads)
