"""Problems as people have them: the right answer for each file, on both backends, and for more inputs of the kind."""

from __future__ import annotations

import json
import math
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings

from orbitsplit import Problem
from tests.judges import planner as judge
from tests.support.paths import DATA
from tests.support.random_problems import random_problem
from tests.support.solving import BACKENDS, QUICK, RANDOMS, solved

CASES = DATA / "cases"


def case(name: str, **changes: Any) -> dict[str, Any]:
    """Return the problem file of a case, with some keys changed."""
    return {**json.loads((CASES / f"problem_{name}.json").read_text()), **changes}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_slow_link_to_the_first_node_does_not_delay_tokens_that_return_along_the_chain(backend: str) -> None:
    # The return over a direct link was compulsory: 995.3 s.
    data = case("slow_return_link")
    without = case("slow_return_link")
    without["bandwidth_bytes_per_s"][2][0] = 0
    found, expected = (solved(backend, Problem.from_dict(one)) for one in (data, without))
    assert found["objective_s"] == expected["objective_s"] == pytest.approx(7.29, abs=0.01)
    assert found["stages"] == expected["stages"]


RETURNS = {
    "quick direct link": ([[0, 1, 0], [1, 0, 1], [1, 1, 0]], [[0, 1, 0], [4, 0, 1], [3, 4, 0]], 3),
    "slow direct link": ([[0, 1, 0], [1, 0, 1], [1, 1, 0]], [[0, 1, 0], [4, 0, 1], [30, 4, 0]], 8),
    "both as quick": ([[0, 1, 0], [1, 0, 1], [1, 1, 0]], [[0, 1, 0], [4, 0, 1], [8, 4, 0]], 8),
    "no direct link": ([[0, 1, 0], [1, 0, 1], [0, 1, 0]], [[0, 1, 0], [4, 0, 1], [3, 4, 0]], 8),
    "no way back along the chain": ([[0, 1, 0], [0, 0, 1], [1, 1, 0]], [[0, 1, 0], [4, 0, 1], [30, 4, 0]], 30),
    "no last hop back": ([[0, 1, 0], [1, 0, 1], [1, 0, 0]], [[0, 1, 0], [4, 0, 1], [30, 4, 0]], 30),
    "instant direct link": ([[0, 1, 0], [1, 0, 1], [1, 1, 0]], [[0, 1, 0], [4, 0, 1], [0, 4, 0]], 0),
    "instant chain": ([[0, 1, 0], [1, 0, 1], [1, 1, 0]], [[0, 1, 0], [0, 0, 1], [9, 0, 0]], 0),
    "slow hop of the chain": ([[0, 1, 0], [1, 0, 1], [1, 1, 0]], [[0, 1, 0], [40, 0, 1], [30, 4, 0]], 30),
    "thin direct link": ([[0, 1, 0], [1, 0, 1], [1e-9, 1, 0]], [[0, 1, 0], [4, 0, 1], [3, 4, 0]], 3),
}


@pytest.mark.parametrize("order", ["fixed", "free"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", RETURNS)
def test_a_token_returns_by_the_quicker_way(name: str, backend: str, order: str) -> None:
    bandwidth, latency, return_s = RETURNS[name]
    data = case("slow_return_link", bandwidth_bytes_per_s=bandwidth, latency_s=latency, order=order)
    data["pins"] = {"layers": {"a": 0, "b": 1, "c": 2}}
    data["layer_decode_time_s"] = [[0.0] * 3] * 3
    data["cut_decode_bytes"] = [0, 0]
    data["cut_bytes"] = [0, 0]
    found = solved(backend, Problem.from_dict(data))
    step_s = 1 + 1 + return_s
    assert found["objective_s"] == pytest.approx(0.3 + 2 + 99 * step_s)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(**QUICK, max_examples=60)
@given(r=RANDOMS)
def test_one_more_link_is_never_worse(backend: str, r: Random) -> None:
    data = random_problem(r, most_layers=5)
    if data.get("new_tokens", 0) < 2:
        nodes, layers = len(data["nodes"]), len(data["layers"])
        data["new_tokens"] = 3
        data["layer_decode_time_s"] = [[r.uniform(0, 1) for _ in range(layers)] for _ in range(nodes)]
        data["cut_decode_bytes"] = [0.5] * (layers - 1)
    nodes = range(len(data["nodes"]))
    absent = [(a, b) for a in nodes for b in nodes if a != b and data["bandwidth_bytes_per_s"][a][b] == 0]
    before = solved(backend, Problem.from_dict(data))
    assert before["objective_s"] == pytest.approx(judge.best(data), rel=1e-9)
    for a, b in r.sample(absent, min(3, len(absent))):
        data["bandwidth_bytes_per_s"][a][b] = r.choice([1e-3, 1.0, 1e6])
        data["latency_s"][a][b] = r.choice([0.0, 1.0, 1e3])
        after = solved(backend, Problem.from_dict(data))
        assert after["objective_s"] <= before["objective_s"] * (1 + 1e-9) or math.isinf(before["objective_s"])
        before = after
