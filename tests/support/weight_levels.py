"""Large problems with weight levels, for tests and benches."""

from __future__ import annotations

import numpy as np

from orbitsplit import Problem


def with_weight_levels(problem: Problem, seed: int = 1) -> Problem:
    """Return the problem with weights in float32, 8 and 4 bits: sizes, times and losses of the order of Gemma's."""
    r = np.random.default_rng(seed)
    layers = len(problem.layers)
    data = problem.to_dict()
    data["weight_levels"] = [{"name": name} for name in ("float32", "int8", "int4")]
    data["layer_memory_bytes"] = [(problem.layer_memory_bytes * part).tolist() for part in (1, 0.27, 0.15)]
    data["layer_time_s"] = [
        (problem.layer_time_s * part * r.uniform(0.9, 1.1, problem.layer_time_s.shape)).tolist()
        for part in (1, 0.45, 0.4)
    ]
    data["weight_loss"] = [(r.uniform(0.2, 1.8, layers) * loss).tolist() for loss in (0, 1e-4, 3e-3)]
    data.pop("expected", None)
    return Problem.from_dict(data)
