"""Plans after a loss: what the user asked of the running plan still holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import orbitsplit as osp
from orbitsplit import Link, Network, Node, Workload
from tests.support import toy_plan
from tests.support.books_by_hand import book_by_hand

PROMPT = 100
LEVELS = {cut: [("fine", 8, 0.001), ("coarse", 2, 0.08)] for cut in range(1, 4)}
BOOK = book_by_hand(LEVELS, layers=4, width=16)
PROFILE = replace(toy_plan.PROFILE, prompt_tokens=PROMPT)
WORKLOAD = Workload(micro_batches=3, prompt_tokens=PROMPT)


def network(memory: int = 3500) -> Network:
    """Return four nodes that each hold three layers, with links so slow that compression pays."""
    nodes = tuple(Node(f"n{k}", memory, slowdown=1.0 + k / 10) for k in range(4))
    return Network("test", nodes, tuple(Link(a.name, b.name, 640.0) for a in nodes for b in nodes if a is not b))


def planned(**options: Any) -> osp.Plan:
    return osp.plan(PROFILE, network(), WORKLOAD, codebook=BOOK, **options)


def after_loss(running: osp.Plan, **options: Any) -> osp.Plan:
    lost = running.stages[0].node
    found = osp.replanner(PROFILE, network(), **options)(running, (lost,), ())
    assert lost not in {stage.node for stage in found.stages}
    return found


def test_the_limit_of_accuracy_holds_after_a_loss() -> None:
    """Regression: the plan after a loss lost nothing, so it compressed nothing, and had no limit for the next one."""
    running = planned(max_accuracy_drop=0.05)
    assert {stage.codec for stage in running.stages[:-1]} == {"coarse"}
    found = after_loss(running, codebook=BOOK)
    assert found.max_accuracy_drop == 0.05
    assert {stage.codec for stage in found.stages[:-1]} == {"coarse"}
    assert found.codebook == BOOK.hex_id


def test_a_limit_of_the_replanner_comes_first() -> None:
    running = planned(max_accuracy_drop=0.05)
    tighter = after_loss(running, codebook=BOOK, max_accuracy_drop=0.001)
    assert tighter.max_accuracy_drop == 0.001
    assert {stage.codec for stage in tighter.stages[:-1]} == {"fine"}
    assert {stage.codec for stage in after_loss(running, codebook=BOOK, loss_budget=0.0).stages[:-1]} == {None}


def test_a_limit_is_kept_where_nothing_is_compressed() -> None:
    found = after_loss(planned(max_accuracy_drop=0.05))
    assert found.max_accuracy_drop == 0.05
    assert {stage.codec for stage in found.stages} == {None}


def test_the_objective_of_the_running_plan_is_that_of_the_next() -> None:
    """Regression: it was latency, whatever the running plan was made for."""
    running = planned(objective="throughput")
    found = after_loss(running)
    assert found.prediction is not None
    assert found.prediction.objective == "throughput"
    for options in ({"objective": "latency"}, {"options": osp.SolveOptions(objective="latency")}):
        other = after_loss(running, **options)
        assert other.prediction is not None
        assert other.prediction.objective == "latency"


def test_what_the_user_set_of_the_plan_is_kept() -> None:
    running = replace(planned(), model="/models/toy", dtype="bfloat16", threads=3)
    found = after_loss(running)
    assert (found.model, found.dtype, found.threads) == ("/models/toy", "bfloat16", 3)
    unnamed = after_loss(replace(running, model=None))
    assert unnamed.model == "toy"


@pytest.mark.parametrize("cuts", [[], [2]])
def test_a_plan_by_hand_has_no_objective(cuts: list[int]) -> None:
    names = ["n0", "n1"][: len(cuts) + 1]
    running = replace(osp.Plan.manual(cuts=cuts, layers=4, nodes=names), workload=WORKLOAD)
    found = after_loss(running)
    assert found.prediction is not None
    assert found.prediction.objective == "latency"
