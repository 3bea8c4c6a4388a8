"""How fast is a proven optimum, and what does a general solver need for the same proof?

    pytest benches/bench_planner.py                        # with timings
    pytest benches/bench_planner.py --benchmark-disable    # answers alone

The peer is HiGHS (through SciPy) on the usual mixed-integer formulation: a flow through (boundary, node) with one
binary for every stage and one for every transfer, and the maximum as a variable.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from orbitsplit import Problem, evaluate, solve
from orbitsplit._backend import load_backend

PROBLEMS = Path(__file__).parents[1] / "tests" / "data" / "problems"
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
def test_solve_numba(benchmark, name, monkeypatch):
    monkeypatch.setattr("orbitsplit._problem.backend", lambda: load_backend("numba"))
    problem = load(name)
    solve(problem)  # compiles
    benchmark.group = f"solve {name}"
    solution = benchmark.pedantic(solve, (problem,), rounds=3)
    check(problem, solution.objective_s)


@pytest.mark.parametrize("name", SMALL)
def test_highs(benchmark, name):
    optimize = pytest.importorskip("scipy.optimize")
    problem = load(name)
    program = mixed_integer_program(problem)
    benchmark.group = f"solve {name}"
    result = benchmark.pedantic(optimize.milp, kwargs={**program, "options": {"mip_rel_gap": 1e-7}}, rounds=1)
    assert result.status == 0
    check(problem, result.fun)


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
    """Every layer cut into equal parts: the optimum cannot get worse, because the old cuts are still there."""
    original = load("example_32_fixed_a")
    benchmark.group = "growth with layers (32 x copies, 5 nodes, 6 levels, fixed)"
    solution = benchmark(solve, cut_finer(original, copies))
    assert solution.status == "optimal"
    assert solution.objective_s <= original.expected["objective_s"] * (1 + 1e-9)


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


def mixed_integer_program(p: Problem) -> dict:
    """Return SciPy's arguments for a problem without generation, codec seconds or external links."""
    from scipy.optimize import Bounds, LinearConstraint
    from scipy.sparse import coo_array

    layers, nodes, levels = len(p.layers), len(p.nodes), len(p.levels)
    # Rows: a stage's end and start balance at (boundary, node), then each node's use, stage and link time, the loss.
    balance = {
        (side, i, n): row
        for row, (side, i, n) in enumerate(itertools.product(("arrive", "depart"), range(layers + 1), range(nodes)))
    }
    first = len(balance)
    used, stage_time, link_time, loss, start = (
        first,
        first + nodes,
        first + 2 * nodes,
        first + 3 * nodes,
        first + 3 * nodes + 1,
    )
    entries: list[tuple[int, int, float]] = []
    cost = [float(p.micro_batches - 1)]  # column 0: the maximum
    for n in range(nodes):
        entries += [(stage_time + n, 0, -1.0), (link_time + n, 0, -1.0)]
    for n, a in itertools.product(range(nodes), range(layers)):
        for b in range(a + 1, layers + 1):
            if p.layer_memory_bytes[a:b].sum() <= p.nodes[n].memory_bytes:
                column, seconds = len(cost), float(p.layer_time_s[n, a:b].sum())
                cost.append(seconds)
                entries += [(balance["arrive", a, n], column, -1.0), (balance["depart", b, n], column, 1.0)]
                entries += [(used + n, column, 1.0), (stage_time + n, column, seconds)]
                if a == 0:
                    entries += [(balance["arrive", 0, n], column, 1.0), (start, column, 1.0)]
                if b == layers:
                    entries.append((balance["depart", layers, n], column, -1.0))
    for i, n, m, k in itertools.product(range(1, layers), range(nodes), range(nodes), range(levels)):
        if p.bandwidth_bytes_per_s[n, m] > 0 and (p.order == "free" or n < m):
            column = len(cost)
            seconds = float(p.cut_bytes[i - 1] / p.levels[k].ratio / p.bandwidth_bytes_per_s[n, m])
            cost.append(seconds + float(p.latency_s[n, m]))
            entries += [(balance["depart", i, n], column, -1.0), (balance["arrive", i, m], column, 1.0)]
            entries += [(link_time + n, column, seconds), (loss, column, float(p.loss[i - 1, k]))]
    rows, columns, values = zip(*entries, strict=True)
    high = np.zeros(start + 1)
    low = np.full(start + 1, -np.inf)
    low[:first] = 0
    high[used : used + nodes] = 1
    high[loss] = p.loss_budget
    low[start] = high[start] = 1
    integrality = np.ones(len(cost))
    integrality[0] = 0
    upper = np.ones(len(cost))
    upper[0] = np.inf
    matrix = coo_array((values, (rows, columns)), shape=(start + 1, len(cost))).tocsr()
    return {
        "c": np.array(cost),
        "constraints": LinearConstraint(matrix, low, high),
        "integrality": integrality,
        "bounds": Bounds(0, upper),
    }
