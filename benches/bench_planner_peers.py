"""How long do general solvers take for the same proof of optimality?

    pytest benches/bench_planner_peers.py -s                     # with timings; minutes, for the larger problems
    pytest benches/bench_planner_peers.py --benchmark-disable    # answers alone, small problems

The peers are HiGHS (through SciPy) and CP-SAT (OR-Tools) on the usual mixed-integer formulation: a flow through
(boundary, node) with one binary for every stage (at every weight level) and one for every transfer, and the maximum as
a variable. A peer that does not finish in time must at least bracket our optimum.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest

from orbitsplit import Problem, solve
from tests.support.paths import DATA
from tests.support.weight_levels import with_weight_levels

PROBLEMS = DATA / "problems"
SMALL = ["example_16_free", "example_32_fixed_a", "example_32_fixed_b"]
ALL = [*SMALL, "example_32_free", "example_80_fixed"]
# The weights of these in float32, 8 or 4 bits, decided with the rest.
WEIGHTED = ["example_32_fixed_a", "example_80_fixed"]
# With micro-batches before the last one that take less than the last.
EARLIER = ["example_32_fixed_a"]
TIME_LIMIT_S = 120
# CP-SAT counts in integers: seconds and losses in these parts.
TICKS = 1e9


@dataclass(frozen=True)
class Answer:
    """The result of a peer and its seconds; `bound_s` is its lower bound, equal to the objective if it finished."""

    objective_s: float
    bound_s: float
    seconds: float


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("peer", ["highs", "cp_sat"])
def test_peer(benchmark, peer, name, capsys):
    compare(benchmark, peer, name, Problem.load(PROBLEMS / f"{name}.json"), capsys)


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize("peer", ["highs", "cp_sat"])
def test_peer_with_weight_levels(benchmark, peer, name, capsys):
    compare(benchmark, peer, name, with_weight_levels(Problem.load(PROBLEMS / f"{name}.json")), capsys)


@pytest.mark.parametrize("name", EARLIER)
@pytest.mark.parametrize("peer", ["highs", "cp_sat"])
def test_peer_with_earlier_times(benchmark, peer, name, capsys):
    compare(benchmark, peer, name, with_earlier_times(Problem.load(PROBLEMS / f"{name}.json")), capsys)


def with_earlier_times(problem: Problem) -> Problem:
    """Return the problem with a last micro-batch that takes longer, by another part of each layer on each node."""
    part = np.random.default_rng(1).uniform(0.4, 1, problem.layer_time_s.shape)
    return replace(problem, layer_earlier_time_s=problem.layer_time_s * part)


def compare(benchmark, peer: str, name: str, problem: Problem, capsys) -> None:
    pytest.importorskip("scipy")
    if peer == "cp_sat":
        pytest.importorskip("ortools")
    if benchmark.disabled and name not in SMALL:
        pytest.skip("a large problem, for timed runs")
    program = mixed_integer_program(problem)
    benchmark.group = f"prove {name}"
    answer = benchmark.pedantic({"highs": highs, "cp_sat": cp_sat}[peer], (program,), rounds=1)
    ours = min((solve(problem) for _ in range(5)), key=lambda solution: solution.seconds)
    assert answer.bound_s * (1 - 2e-6) <= ours.objective_s <= answer.objective_s * (1 + 2e-6)
    if is_proven := answer.bound_s >= answer.objective_s * (1 - 2e-6):
        assert ours.objective_s == pytest.approx(answer.objective_s, rel=2e-6)
    benchmark.extra_info["times_ours"] = answer.seconds / ours.seconds
    with capsys.disabled():
        proof = "" if is_proven else f", gap {100 * (1 - answer.bound_s / answer.objective_s):.2g} % left"
        print(
            f"\n{name}: {peer} {answer.seconds:.3g} s{proof}, orbitsplit {1000 * ours.seconds:.3g} ms, "
            f"{answer.seconds / ours.seconds:.0f} times"
        )


@pytest.mark.parametrize("name", ALL)
def test_ours(benchmark, name):
    problem = Problem.load(PROBLEMS / f"{name}.json")
    benchmark.group = f"prove {name}"
    assert benchmark(solve, problem).objective_s == pytest.approx(problem.expected["objective_s"], rel=2e-6)


def highs(program: dict) -> Answer:
    from scipy.optimize import Bounds, LinearConstraint, milp

    start = time.perf_counter()
    result = milp(
        program["cost"],
        constraints=LinearConstraint(program["matrix"], program["low"], program["high"]),
        integrality=program["integrality"],
        bounds=Bounds(0, program["upper"]),
        options={"mip_rel_gap": 1e-7, "time_limit": TIME_LIMIT_S},
    )
    objective = np.inf if result.x is None else result.fun
    return Answer(objective, result.mip_dual_bound, time.perf_counter() - start)


def cp_sat(program: dict) -> Answer:
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    cost, rows = program["cost"], program["matrix"].tocsr()
    largest = int(TICKS * 2 * cost[1:].sum())
    columns = [model.new_int_var(0, largest, "maximum"), *(model.new_bool_var("") for _ in cost[1:])]
    for row, (low, high) in enumerate(zip(program["low"], program["high"], strict=True)):
        entries = range(rows.indptr[row], rows.indptr[row + 1])
        # The maximum is a number of ticks already; rows of counts are left as they are.
        scale = 1.0 if all(abs(rows.data[k]) == 1 for k in entries) else TICKS
        terms = [
            columns[rows.indices[k]] * round(rows.data[k] * (1 if rows.indices[k] == 0 else scale)) for k in entries
        ]
        if np.isfinite(low):
            model.add(sum(terms) >= round(low * scale))
        if np.isfinite(high):
            model.add(sum(terms) <= round(high * scale))
    once = sum(round(seconds * TICKS) * x for seconds, x in zip(cost[1:], columns[1:], strict=True))
    model.minimize(round(cost[0]) * columns[0] + once)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = TIME_LIMIT_S
    start = time.perf_counter()
    status = solver.solve(model)
    objective = solver.objective_value / TICKS if status in (cp_model.OPTIMAL, cp_model.FEASIBLE) else np.inf
    return Answer(objective, solver.best_objective_bound / TICKS, time.perf_counter() - start)


def mixed_integer_program(p: Problem) -> dict:
    """Return the program of a problem without generation, codec seconds or external links.

    Minimise cost @ x subject to low <= matrix @ x <= high; x[0] is the maximum in seconds, the others are binary.
    """
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
    weight_levels = range(max(1, len(p.weight_levels)))
    memory, times = p.layer_memory_bytes.reshape(-1, layers), p.layer_time_s.reshape(-1, nodes, layers)
    earlier = times if p.layer_earlier_time_s is None else p.layer_earlier_time_s.reshape(-1, nodes, layers)
    for n, a, w in itertools.product(range(nodes), range(layers), weight_levels):
        for b in range(a + 1, layers + 1):
            if memory[w, a:b].sum() <= p.nodes[n].memory_bytes:
                column, seconds = len(cost), float(times[w, n, a:b].sum())
                cost.append(seconds)
                if p.weight_loss is not None:
                    entries.append((loss, column, float(p.weight_loss[w, a:b].sum())))
                entries += [(balance["arrive", a, n], column, -1.0), (balance["depart", b, n], column, 1.0)]
                entries += [(used + n, column, 1.0), (stage_time + n, column, float(earlier[w, n, a:b].sum()))]
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
        "cost": np.array(cost),
        "matrix": matrix,
        "low": low,
        "high": high,
        "integrality": integrality,
        "upper": upper,
    }
