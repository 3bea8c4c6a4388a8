"""How long does a proven optimum take? For general solvers see bench_planner_peers.py.

pytest benches/bench_planner.py                        # with timings
pytest benches/bench_planner.py --benchmark-disable    # answers alone
"""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest

from benches.bench_constellation import MAX_NODES, grid
from benches.studies.growth import random_chain
from orbitsplit import Problem, Solution, evaluate, solve
from orbitsplit._backend import use_backend
from tests.support.paths import DATA
from tests.support.weight_levels import with_weight_levels

PROBLEMS = DATA / "problems"
SMALL = ["example_16_free", "example_32_fixed_a", "example_32_fixed_b"]
ALL = [*SMALL, "example_32_free", "example_80_fixed"]


def load(name: str) -> Problem:
    return Problem.load(PROBLEMS / f"{name}.json")


def check(problem: Problem, objective_s: float) -> None:
    assert objective_s == pytest.approx(problem.expected["objective_s"], rel=2e-6)


@pytest.mark.parametrize("name", ALL)
def test_solve(benchmark, name):
    problem = load(name)
    benchmark.group = f"solve {name}"
    solution = benchmark(solve, problem)
    assert solution.status == "optimal"
    check(problem, solution.objective_s)


@pytest.mark.parametrize("name", ALL)
def test_solve_numba(benchmark, name):
    problem = load(name)
    benchmark.group = f"solve {name}"
    with use_backend("numba"):
        solve(problem)  # compiles
        solution = benchmark.pedantic(solve, (problem,), rounds=3)
    check(problem, solution.objective_s)


@pytest.mark.parametrize("name", ALL)
def test_evaluate(benchmark, name):
    problem = load(name)
    stages = solve(problem).stages
    benchmark.group = "evaluate"
    check(problem, benchmark(evaluate, problem, stages).objective_s)


@pytest.mark.parametrize("name", ALL)
def test_load(benchmark, name):
    text = (PROBLEMS / f"{name}.json").read_text(encoding="utf-8")
    benchmark.group = "read and validate a problem"
    problem = benchmark(lambda: Problem.from_dict(json.loads(text)))
    assert len(problem.layers) == int(name.split("_")[1])


@pytest.mark.parametrize("copies", [1, 2, 4])
def test_growth_with_layers(benchmark, copies):
    """Divide every layer into equal parts: the optimum cannot get worse, because all old cuts remain."""
    original = load("example_32_fixed_a")
    benchmark.group = "growth with layers (32 x copies, 5 nodes, 6 levels, fixed)"
    solution = benchmark(solve, cut_finer(original, copies))
    assert solution.status == "optimal"
    assert solution.objective_s <= original.expected["objective_s"] * (1 + 1e-9)


@pytest.mark.parametrize("size", [(32, 8, 4), (126, 24, 8)], ids=str)
def test_random_chain(benchmark, size):
    problem = random_chain(*size)
    benchmark.group = "fixed order, random nodes (layers, nodes, levels)"
    solution = benchmark(solve, problem)
    assert solution.status == "optimal"
    assert evaluate(problem, solution).objective_s == solution.objective_s


@pytest.mark.parametrize("name", ["example_32_fixed_a", "example_80_fixed"])
def test_weight_levels(benchmark, name):
    """Decide the precision of each stage too: no slower than the best plan of one precision for all stages."""
    problem = with_weight_levels(load(name))
    benchmark.group = f"solve {name} with 3 weight levels"
    solution = benchmark(solve, problem)
    assert solution.status == "optimal"
    assert evaluate(problem, solution).objective_s == solution.objective_s
    arrays = ("weight_levels", "layer_memory_bytes", "layer_time_s", "weight_loss")
    for w in range(3):
        only = {key: problem.to_dict()[key][w : w + 1] for key in arrays}
        uniform = solve(Problem.from_dict({**problem.to_dict(), **only}))
        assert uniform.objective_s is None or solution.objective_s <= uniform.objective_s * (1 + 1e-9)


def test_free_order_to_one_percent(benchmark):
    problem = Problem.from_dict({**load("example_80_fixed").to_dict(), "order": "free"})
    benchmark.group = "free order, 80 layers on 12 nodes at 8 levels, gap 1 %"
    solution = benchmark.pedantic(solve, (problem,), {"gap": 0.01}, rounds=1)
    assert solution.gap <= 0.01 * (1 + 1e-9)
    assert solution.objective_s < problem.expected["objective_s"]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["80 layers, 12 nodes, 8 levels", "1,584 satellites"])
def test_threads(benchmark, name, threads):
    """Do threads pay in free order? They share the bounds, and the answer is that of one."""
    problem, options = free_problem(name)
    benchmark.group = f"free order, {name}, proven optimal on 1 or 2 threads"
    solution = benchmark.pedantic(solve, (problem,), {**options, "threads": threads}, rounds=3)
    alone = solved_alone(name)
    assert solution.status == "optimal"
    assert (solution.stages, solution.objective_s) == (alone.stages, alone.objective_s)


@functools.cache
def free_problem(name: str) -> tuple[Problem, dict[str, int]]:
    if name == "1,584 satellites":
        return grid(72, 22, 0.5, 0.0), {"max_nodes": MAX_NODES}
    return Problem.from_dict({**load("example_80_fixed").to_dict(), "order": "free"}), {}


@functools.cache
def solved_alone(name: str) -> Solution:
    problem, options = free_problem(name)
    return solve(problem, **options)


def cut_finer(problem: Problem, copies: int) -> Problem:
    data = problem.to_dict()
    data["layers"] = [f"{layer}.{part}" for layer in data["layers"] for part in range(copies)]
    data["layer_memory_bytes"] = np.repeat(problem.layer_memory_bytes / copies, copies).tolist()
    data["layer_time_s"] = np.repeat(problem.layer_time_s / copies, copies, axis=1).tolist()
    # A cut inside an old layer costs what the cut after that layer does, or before it for the last one.
    after = np.minimum(np.arange(len(data["layers"]) - 1) // copies, len(problem.cut_bytes) - 1)
    data["cut_bytes"] = problem.cut_bytes[after].tolist()
    data["loss"] = problem.loss[after].tolist()
    return Problem.from_dict(data)
