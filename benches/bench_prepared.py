"""What does it save to validate and copy a problem to the core once, not in every call?

    pytest benches/bench_prepared.py                        # with timings
    pytest benches/bench_prepared.py --benchmark-disable    # answers only

"anew" is what a call costs that gets a problem which is not prepared.
"""

from __future__ import annotations

import numpy as np
import pytest

from benches.bench_constellation import grid
from orbitsplit import Problem, solve
from orbitsplit._backend import load_backend
from orbitsplit._planner.problem import prepared, stage_rows
from tests.support.paths import DATA

PROBLEMS = {
    "32 layers, 5 nodes": lambda: Problem.load(DATA / "problems" / "example_32_fixed_a.json"),
    "80 layers, 12 nodes": lambda: Problem.load(DATA / "problems" / "example_80_fixed.json"),
    "32 layers, 396 nodes": lambda: grid(18, 22, 0.0, 0.0),
}
OPTIONS = "latency", None, 0.0, float("inf"), 1_000_000, 10**9, 1, np.empty((0, 5), np.int32), 16, 64


@pytest.mark.parametrize("is_prepared", [True, False], ids=["prepared", "anew"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_evaluate(benchmark, name, is_prepared):
    core, problem = load_backend("native"), PROBLEMS[name]()
    solution = solve(problem, max_nodes=8)
    rows = stage_rows(solution.stages)
    benchmark.group = f"evaluate, {name}"
    score = benchmark(core.evaluate, prepared(problem) if is_prepared else problem, rows)
    assert score["objective_s"] == solution.objective_s


@pytest.mark.parametrize("is_prepared", [True, False], ids=["prepared", "anew"])
@pytest.mark.parametrize("name", list(PROBLEMS)[:2])
def test_solve(benchmark, name, is_prepared):
    core, problem = load_backend("native"), PROBLEMS[name]()
    benchmark.group = f"solve, {name}"
    found = benchmark(core.solve, prepared(problem) if is_prepared else problem, *OPTIONS)
    assert found["status"] == "optimal"
    assert found["objective_s"] == pytest.approx(problem.expected["objective_s"], rel=2e-6)
