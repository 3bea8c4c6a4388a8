"""A problem is validated and copied once, whatever the number of calls, and that shows nowhere."""

from __future__ import annotations

import copy
import dataclasses
import pickle

from orbitsplit import Problem, evaluate, solve
from orbitsplit._backend import backend, use_backend
from orbitsplit._planner.problem import prepared
from tests.support.paths import DATA

PATH = DATA / "problems" / "example_32_fixed_a.json"


def test_one_copy_for_all_calls() -> None:
    problem = Problem.load(PATH)
    made = prepared(problem)
    assert isinstance(made, backend().PreparedProblem)
    solution = solve(problem)
    assert evaluate(problem, solution).objective_s == solution.objective_s
    assert prepared(problem) is made


def test_another_backend_prepares_it_again() -> None:
    problem = Problem.load(PATH)
    solution = solve(problem)
    with use_backend("numba"):
        assert prepared(problem) is problem
        assert evaluate(problem, solution).objective_s == solution.objective_s
    assert evaluate(problem, solution).objective_s == solution.objective_s


def test_copies_start_anew() -> None:
    problem = Problem.load(PATH)
    solution = solve(problem)
    for other in (pickle.loads(pickle.dumps(problem)), copy.copy(problem), copy.deepcopy(problem)):
        assert other == problem
        assert solve(other).stages == solution.stages
        assert prepared(other) is not prepared(problem)


def test_a_changed_problem_is_another() -> None:
    problem = Problem.load(PATH)
    before = solve(problem)
    slower = dataclasses.replace(problem, layer_time_s=problem.layer_time_s * 2)
    assert evaluate(slower, before).objective_s > evaluate(problem, before).objective_s
