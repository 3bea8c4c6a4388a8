"""Steps that give more than one token on average, as laps with guesses do."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from orbitsplit import Problem, evaluate, pareto, solve, unsplit
from orbitsplit._planner.relaxations import _counting_missing_links
from tests.support.random_problems import random_problem, random_stages, random_weight_levels
from tests.support.solving import check_backends_alike, check_by_enumeration

SEEDS = range(60)
OBJECTIVES = ("latency", "throughput", "time_to_first_token", "time_per_token")


def random_case(seed: int, **options: object) -> dict:
    """Draw a problem that generates, with steps of several tokens."""
    r = Random(seed)
    data = random_problem(r, **options)
    while data.get("new_tokens", 0) < 2:
        data = random_problem(r, **options)
    return {**data, "tokens_per_step": r.choice([1.25, 2, r.uniform(1, 9)])}


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_plans_are_scored_as_the_judge_does(objective):
    for seed in SEEDS:
        data = random_case(seed)
        stages = random_stages(Random(seed), data)
        result = evaluate(Problem.from_dict(data), stages)
        assert result.tokens_per_step == data["tokens_per_step"]
        if result.is_feasible:
            plain = evaluate(Problem.from_dict({**data, "tokens_per_step": 1}), stages)
            assert (result.token_step_s, result.prefill_s) == (plain.token_step_s, plain.prefill_s)
            laps = (data["new_tokens"] - 1) / data["tokens_per_step"]
            assert result.objective_s == pytest.approx(plain.prefill_s + laps * plain.token_step_s)


@pytest.mark.parametrize("max_bitset_nodes", [64, 0])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_equal_to_enumeration(objective, max_bitset_nodes):
    for seed in SEEDS:
        data = random_case(seed, most_layers=5, most_nodes=4)
        check_by_enumeration(data, objective, max_bitset_nodes=max_bitset_nodes)


@pytest.mark.parametrize("has_weight_levels", [False, True])
def test_both_backends_plan_and_score_alike_to_the_last_bit(has_weight_levels):
    for seed in range(5 if has_weight_levels else 40):
        data = random_case(seed, most_layers=8, most_nodes=5)
        if has_weight_levels:
            data = random_weight_levels(Random(seed), data)
        problem, objective = Problem.from_dict(data), OBJECTIVES[seed % 4]
        check_backends_alike(problem, objective=objective, max_ng_size=seed % 3)


def test_what_asks_further_questions_counts_the_tokens_too():
    for seed in range(20):
        problem = Problem.from_dict(random_case(seed, most_nodes=3))
        found = solve(problem)
        assert _counting_missing_links(problem).tokens_per_step == 1
        if found.objective_s is None:
            continue
        assert evaluate(problem, found).objective_s == found.objective_s
        assert pareto(replace(problem, loss_budget=None)).points[-1].solution.objective_s <= found.objective_s
        alone = unsplit(replace(problem, ingress=None), 0)
        if alone.total_s < float("inf"):
            plain = unsplit(replace(problem, ingress=None, tokens_per_step=1.0), 0)
            score = evaluate(replace(problem, ingress=None), [(0, 0, len(problem.layers), None, None)])
            assert alone.total_s == pytest.approx(score.objective_s)
            assert alone.total_s <= plain.total_s


def test_a_problem_comes_back_with_its_tokens():
    data = random_case(3)
    problem = Problem.from_dict(data)
    assert Problem.from_dict(problem.to_dict()) == problem
    assert problem.to_dict()["tokens_per_step"] == data["tokens_per_step"]
    assert "tokens_per_step" not in replace(problem, tokens_per_step=1.0).to_dict()


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        (0.5, ValueError, "tokens_per_step is 0.5, must be at least 1"),
        (float("inf"), ValueError, "tokens_per_step is inf, must be finite"),
        ("2", TypeError, "tokens_per_step is '2', must be a number"),
    ],
)
def test_fewer_tokens_than_one_are_refused(tokens, error, message):
    with pytest.raises(error, match=message):
        Problem.from_dict({**random_case(0), "tokens_per_step": tokens})
