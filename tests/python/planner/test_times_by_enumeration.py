"""Searches with times that few problems have, beside all plans and beside the other backend."""

from __future__ import annotations

from random import Random

import pytest

from orbitsplit import Problem
from tests.support.random_problems import problem_with_earlier_times, problem_with_overheads, random_weight_levels
from tests.support.solving import check_backends_alike, check_by_enumeration

SEEDS = range(60)
# How a problem is drawn.
pytestmark = pytest.mark.parametrize("drawn", [problem_with_earlier_times, problem_with_overheads])


@pytest.mark.parametrize("max_bitset_nodes", [64, 0])
@pytest.mark.parametrize("objective", ["latency", "throughput", "time_to_first_token"])
def test_equal_to_enumeration(objective, max_bitset_nodes, drawn):
    for seed in SEEDS:
        data = drawn(seed, most_layers=5, most_nodes=4)
        check_by_enumeration(data, objective, max_bitset_nodes=max_bitset_nodes)


def test_equal_to_enumeration_with_weight_levels(drawn):
    for seed in SEEDS:
        data = random_weight_levels(Random(seed), drawn(seed, most_layers=4, most_nodes=3))
        check_by_enumeration(data)


@pytest.mark.parametrize("has_weight_levels", [False, True])
def test_both_backends_plan_and_score_alike_to_the_last_bit(has_weight_levels, drawn):
    for seed in range(15 if has_weight_levels else 60):
        data = drawn(seed, most_layers=8, most_nodes=5)
        if has_weight_levels:
            data = random_weight_levels(Random(seed), data)
        check_backends_alike(Problem.from_dict(data), max_ng_size=seed % 3)
