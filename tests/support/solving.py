"""Searches on either backend, with the options that the public function hides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck
from hypothesis import strategies as st

from orbitsplit import Problem
from orbitsplit._backend import load_backend
from tests.judges import planner as judge

NO_LEVEL = -1
BACKENDS = ["native", "numba"]


class EdgeRandom(Random):
    """A random source one of whose floats in sixteen lies at an edge: the ends of a range, and what rounds away."""

    getrandbits = Random.getrandbits  # else whole numbers would come from these floats
    _EDGES = (0.0, 2.0**-1074, 2.0**-53, 1e-9, 0.5, 1 - 2.0**-53)

    def random(self) -> float:
        """Return a float in [0, 1)."""
        value = super().random()
        return self._EDGES[int(value * 16 * len(self._EDGES))] if value < 1 / 16 else value


# Not Hypothesis's own random source: drawing a problem number by number takes it ten times as long as solving it.
RANDOMS = st.integers(0, 2**64 - 1).map(EdgeRandom)
QUICK = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}


def solved(
    backend: str,
    problem: Problem,
    *,
    objective: str = "latency",
    max_nodes: int | None = None,
    gap: float = 0.0,
    max_labels: int = 1_000_000,
    max_bytes: int = 10**9,
    threads: int = 1,
    incumbent: Sequence[tuple] = (),
    max_ng_size: int = 16,
    max_bitset_nodes: int = 64,
) -> dict:
    """Solve without the public function, which hides `max_ng_size` and `max_bitset_nodes`.

    Stages are (node, start, stop, level), and with weight levels also the weight level.
    """
    given = [(*stage, *[NO_LEVEL] * (5 - len(stage))) for stage in incumbent]
    rows = np.array(given, dtype=np.int32).reshape(-1, 5)
    options = objective, max_nodes, gap, math.inf, max_labels, max_bytes, threads, rows, max_ng_size, max_bitset_nodes
    found = load_backend(backend).solve(problem, *options)
    columns = 5 if problem.weight_levels else 4
    return {**found, "seconds": 0, "stages": [tuple(stage)[:columns] for stage in found["stages"]]}


def check_by_enumeration(data: dict, objective: str = "latency", **options: Any) -> None:
    """Check that the core finds the value of the best of all plans of a problem."""
    found = solved("native", Problem.from_dict(data), objective=objective, **options)
    assert found["objective_s"] == pytest.approx(judge.best(data, objective), rel=1e-9)


def check_backends_alike(problem: Problem, **options: Any) -> dict:
    """Check that both backends answer alike to the last bit, and return what they do."""
    native, numba = (solved(backend, problem, **options) for backend in BACKENDS)
    assert native == numba
    return native
