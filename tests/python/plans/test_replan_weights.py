"""Replanning with weight levels: options against enumeration, weights that move, and plans after a loss."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from random import Random
from typing import Any

import pytest

import orbitsplit as osp
from orbitsplit import LayerProfile, Link, ModelProfile, Network, Node, Problem, Stage, WeightOption, Workload
from tests.judges import planner as judge
from tests.support.books_by_hand import book_by_hand
from tests.support.random_problems import random_problem, random_weight_levels

# Three nodes of 40 bytes; in 8 bits layers take half of the bytes and of the seconds, and lose 0.1 each.
PROBLEM = {
    "layers": ["a", "b", "c", "d"],
    "nodes": [{"name": f"n{n}", "memory_bytes": 40} for n in range(3)],
    "weight_levels": [{"name": "float32"}, {"name": "int8"}],
    "layer_memory_bytes": [[10, 20, 10, 20], [5, 10, 5, 10]],
    "layer_time_s": [[[2] * 4] * 3, [[1] * 4] * 3],
    "weight_loss": [[0] * 4, [0.1] * 4],
    "cut_bytes": [1] * 3,
    "bandwidth_bytes_per_s": [[0, 2, 2], [2, 0, 2], [2, 2, 0]],
    "latency_s": [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]],
    "levels": [{"name": "raw", "ratio": 1}],
    "loss": [[0]] * 3,
    "order": "free",
    "loss_budget": 0.2,
}
RUNNING = (Stage(0, 0, 2, 0, 0), Stage(1, 2, 4, None, 1))


def problem(**changes: Any) -> Problem:
    return Problem.from_dict({**PROBLEM, **changes})


def test_a_running_plan_is_kept_with_its_weights() -> None:
    answer = osp.replan(RUNNING, problem())
    assert answer.decision == "keep"
    assert answer.stages == RUNNING
    assert answer.chosen.moves == ()
    assert answer.chosen.objective_s == 2 * 2 + 1 / 2 + 0.5 + 2 * 1


def test_repair_leaves_weights_where_they_are_and_the_lost_ones_move() -> None:
    left = osp.without(problem(), nodes=["n1"])
    answer = osp.replan(RUNNING, left, stores=["n0"], runs=1e-6)
    keep, repair, _ = answer.options
    assert keep.breaks == "node n1 is lost"
    # Of what node 1 had, node 0 has room for c in its own float32, so that d alone travels; or all of it does.
    assert repair.stages[0][:2] == (0, 0)
    assert repair.stages[0].weight_level == 0
    (move,) = repair.moves
    assert move.path == (0, 2)
    assert move.weight_level == repair.stages[1].weight_level
    assert move.bytes == sum(PROBLEM["layer_memory_bytes"][move.weight_level][move.start : move.stop])  # type: ignore[index]


def test_weights_of_another_level_are_not_there() -> None:
    # In float32 node 1 would have to get c and d again, although it runs them in 8 bits.
    exact = problem(loss_budget=0.0)
    with pytest.raises(
        osp.InfeasiblePlanError, match=r'weights of layer 2 \("c"\) in "float32" are on no remaining node'
    ):
        osp.replan(RUNNING, exact)
    answer = osp.replan(RUNNING, exact, stores=["n2"], runs=1e-6)
    assert "loss" in answer.options[0].breaks
    assert all(stage.weight_level == 0 for stage in answer.stages)
    needed = {(stage.node, layer) for stage in answer.stages for layer in range(stage.start, stage.stop)}
    moved = {(move.path[-1], layer) for move in answer.chosen.moves for layer in range(move.start, move.stop)}
    assert moved == {pair for pair in needed if pair not in {(0, 0), (0, 1)} and pair[0] != 2}


def test_stores_have_every_level_and_sizes_are_of_each() -> None:
    left = osp.without(problem(), nodes=["n0"])
    everywhere = osp.replan(RUNNING, left, stores=["n1", "n2"])
    assert everywhere.chosen.moves == ()
    sizes = [[100, 200, 300, 400], [1, 2, 3, 4]]
    answer = osp.replan(RUNNING, left, stores=["n2"], layer_weight_bytes=sizes, runs=1e-6)
    for option in answer.options[1:]:
        for move in option.moves:
            assert move.weight_level is not None
            assert move.bytes == sum(sizes[move.weight_level][move.start : move.stop])
    with pytest.raises(ValueError, match=r"layer_weight_bytes has shape \(4,\), must be numbers of shape \(2, 4\)"):
        osp.replan(RUNNING, left, layer_weight_bytes=sizes[0])


def test_weights_that_the_problem_does_not_have() -> None:
    with pytest.raises(ValueError, match="a running stage has weight level 2, those of the problem are 0 to 1"):
        osp.replan((Stage(0, 0, 4, None, 2),), problem())
    with pytest.raises(ValueError, match="a running stage has weight level None, those of the problem are 0 to 1"):
        osp.replan((Stage(0, 0, 4),), problem())
    stages = (osp.PlanStage("n0", 0, 2), osp.PlanStage("n1", 2, 4, weights="int4"))
    plan = osp.Plan(stages, (osp.PlanLink(),), 4, weight_models={"int4": "models/int4"})
    answer = osp.replan(plan, problem(), stores=["n2"])
    assert answer.options[0].breaks == "the weight levels of the problem lack weights of the plan"
    # Its layers stay on their nodes, and get weights that there are.
    assert [stage.node for stage in answer.options[1].stages] == [0, 1]
    assert {move.path[-1] for move in answer.options[1].moves} == {1}
    plain = {**PROBLEM, "layer_memory_bytes": PROBLEM["layer_memory_bytes"][0]}  # type: ignore[index]
    plain["layer_time_s"] = PROBLEM["layer_time_s"][0]  # type: ignore[index]
    without_levels = Problem.from_dict({k: v for k, v in plain.items() if k not in ("weight_levels", "weight_loss")})
    answer = osp.replan(plan, without_levels, stores=["n2"])
    assert answer.options[0].breaks == "the weight levels of the problem lack weights of the plan"
    assert all(stage.weight_level is None for stage in answer.stages)


@pytest.mark.parametrize("levels", [("int8", "float32"), ("float32", "int8")])
def test_a_stage_without_weights_has_those_of_the_name_of_its_dtype(levels: tuple[str, str]) -> None:
    plan = osp.Plan((osp.PlanStage("n0", 0, 2), osp.PlanStage("n1", 2, 4)), (osp.PlanLink(),), 4)
    answer = osp.replan(plan, problem(weight_levels=[{"name": name} for name in levels], loss_budget=1.0))
    assert {stage.weight_level for stage in answer.options[1].stages} == {levels.index("float32")}


def test_a_record_names_weight_levels() -> None:
    answer = osp.replan(RUNNING, osp.without(problem(), nodes=["n1"]), stores=["n0"])
    record = json.loads(json.dumps(answer.to_dict(), allow_nan=False))
    assert record["options"][1]["stages"][0]["weight_level"] == 0
    assert all("weight_level" in move for option in record["options"] for move in option["moves"])


def infeasible_or(best: float) -> float | None:
    return None if math.isinf(best) else pytest.approx(best)


@pytest.mark.parametrize("seed", range(60))
def test_options_are_the_best_of_their_kind(seed: int) -> None:
    r = Random(seed)
    data = random_weight_levels(r, random_problem(r, most_layers=4, most_nodes=3), count=2)
    data.pop("pins", None)
    before = osp.solve(Problem.from_dict(data))
    if not before.stages:
        pytest.skip("no plan was running")
    changed = copy.deepcopy(data)
    lost = r.choice([stage.node for stage in before.stages]) if r.random() < 0.6 else None
    if lost is not None:
        changed["pins"] = {"forbidden": [lost]}
    for block in changed["layer_time_s"]:
        for row in block:
            row[:] = [seconds * r.choice([0.5, 1, 4]) for seconds in row]
    try:
        answer = osp.replan(before, Problem.from_dict(changed), stores=list(range(len(data["nodes"]))))
    except osp.InfeasiblePlanError:
        assert judge.best(changed) == math.inf
        return
    keep, repair, best = answer.options
    assert keep.objective_s == infeasible_or(judge.cost(changed, list(before.stages)))
    stay = {i: stage for stage in before.stages if stage.node != lost for i in range(stage.start, stage.stop)}
    staying = [
        judge.cost(changed, stages)
        for stages in judge.plans(changed)
        if all(
            i not in stay or (node, weights) == (stay[i].node, stay[i].weight_level)
            for node, start, stop, _, weights in stages
            for i in range(start, stop)
        )
    ]
    assert repair.objective_s == infeasible_or(min(staying, default=math.inf))
    assert best.objective_s == pytest.approx(judge.best(changed))
    assert answer.chosen.total_s == pytest.approx(best.objective_s)
    assert all(option.move_s in (0, None) for option in answer.options)


@pytest.mark.parametrize("seed", range(30))
def test_the_chosen_option_takes_least_and_moves_what_is_lacking(seed: int) -> None:
    r = Random(seed)
    data = random_weight_levels(r, random_problem(r, most_layers=4, most_nodes=3), count=2)
    data.pop("pins", None)
    before = osp.solve(Problem.from_dict(data))
    if not before.stages:
        pytest.skip("no plan was running")
    for block in data["layer_time_s"]:
        for row in block:
            row.reverse()
    answer = osp.replan(before, Problem.from_dict(data), runs=3, stores=[0])
    had = {(s.node, s.weight_level, layer) for s in before.stages for layer in range(s.start, s.stop)}
    levels = range(len(data["weight_levels"]))
    had |= {(0, w, layer) for w in levels for layer in range(len(data["layers"]))}
    for option in answer.options:
        if option.total_s is None:
            continue
        assert answer.chosen.total_s <= option.total_s
        needs = {(s.node, s.weight_level, layer) for s in option.stages for layer in range(s.start, s.stop)}
        moved = {(m.path[-1], m.weight_level, layer) for m in option.moves for layer in range(m.start, m.stop)}
        assert moved == needs - had
        for move in option.moves:
            assert move.bytes == sum(data["layer_memory_bytes"][move.weight_level][move.start : move.stop])
            assert all((move.path[0], move.weight_level, layer) in had for layer in range(move.start, move.stop))


# Plans.

LAYERS = ("embeddings", *(f"layer {k}" for k in range(4)), "head")
WORKLOAD = Workload(prompt_tokens=100)
BOOK = book_by_hand({cut: [("fine", 8, 0.001)] for cut in range(1, 4)}, layers=4, width=16)


def profile(name: str, size: int, seconds: float) -> ModelProfile:
    return ModelProfile(
        model=f"models/{name}",
        architecture="ToyForCausalLM",
        dtype="float32",
        prompt_tokens=100,
        batch_size=1,
        hidden_size=16,
        layers=tuple(LayerProfile(layer, size, 0, None, 10**9, 10**7, seconds, 0.01) for layer in LAYERS),
        cut_bytes_per_token=64,
        workspace_bytes=300,
        tied_bytes=size,
        threads=1,
        machine="test",
    )


FLOAT, INT8, INT4 = profile("float32", 1000, 1.0), profile("int8", 400, 0.6), profile("int4", 160, 0.5)
WEIGHTS = {
    "int8": WeightOption(profile=INT8, loss=(0.001,) * 6),
    "int4": WeightOption(profile=INT4, loss=(0.01,) * 6),
}


def network(memory: int) -> Network:
    nodes = tuple(Node(f"n{k}", memory, slowdown=1.0 + k / 10) for k in range(3))
    return Network("test", nodes, tuple(Link(a.name, b.name, 64_000.0) for a in nodes for b in nodes if a is not b))


@pytest.fixture(scope="module")
def running() -> osp.Plan:
    """Return a plan of three stages in 8 and 4 bits, where no two nodes have room for that."""
    plan = osp.plan(FLOAT, network(1300), WORKLOAD, weights=WEIGHTS, loss_budget=0.03)
    assert len(plan.stages) == 3
    assert {stage.weights for stage in plan.stages} == {"int8", "int4"}
    return plan


def loss_of(plan: osp.Plan) -> float:
    return sum(
        sum(WEIGHTS[stage.weights].loss[stage.start : stage.stop]) for stage in plan.stages if stage.weights is not None
    )


def by_layer(plan: osp.Plan) -> list[str | None]:
    return [stage.weights for stage in plan.stages for _ in range(stage.start, stage.stop)]


def test_stages_get_other_weights_after_a_loss(running: osp.Plan) -> None:
    lost = [running.stages[0].node]
    found = osp.replanner(FLOAT, network(1300), weights=WEIGHTS, loss_budget=0.06)(running, lost, ())
    assert lost[0] not in {stage.node for stage in found.stages}
    assert by_layer(found).count("int4") > by_layer(running).count("int4")
    assert found.weight_models == {name: f"models/{name}" for name in {stage.weights for stage in found.stages}}
    assert found.prediction is not None
    assert found.prediction.loss == pytest.approx(loss_of(found))
    # As a plan from nothing for the same nodes, all weights being everywhere.
    alone = osp.plan(FLOAT, network(1300).without(lost, ()), WORKLOAD, weights=WEIGHTS, loss_budget=0.06)
    assert alone.prediction is not None
    assert found.prediction.total_s == pytest.approx(alone.prediction.total_s)


def test_the_predicted_loss_is_the_limit_of_a_plan_without_one(running: osp.Plan) -> None:
    assert running.prediction is not None
    lost = [running.stages[0].node]
    found = osp.replanner(FLOAT, network(2000), weights=WEIGHTS)(running, lost, ())
    assert found.prediction is not None
    assert 0 < loss_of(found) <= running.prediction.loss * (1 + 1e-9)
    with pytest.raises(osp.InfeasiblePlanError):
        osp.replanner(FLOAT, network(2000), weights=WEIGHTS, loss_budget=0.0)(running, lost, ())


def test_without_a_prediction_the_limit_is_what_the_running_weights_lose(running: osp.Plan) -> None:
    lost = [running.stages[0].node]
    by_hand = replace(running, prediction=None)
    found = osp.replanner(FLOAT, network(2000), weights=WEIGHTS)(by_hand, lost, ())
    assert 0 < loss_of(found) <= loss_of(running) * (1 + 1e-9)


def test_the_limit_of_accuracy_of_a_plan_with_weights_holds_after_a_loss() -> None:
    nodes = network(1700)
    before = osp.plan(FLOAT, nodes, WORKLOAD, weights=WEIGHTS, codebook=BOOK, max_accuracy_drop=0.005)
    assert set(by_layer(before)) >= {"int8"}
    after = osp.replanner(FLOAT, nodes, weights=WEIGHTS, codebook=BOOK)(before, [before.stages[0].node], ())
    assert after.max_accuracy_drop == 0.005
    assert after.prediction is not None
    assert after.prediction.loss <= BOOK.accuracy.loss_budget(0.005)
    # Without the codebook nothing converts it, and the loss that was predicted is the limit.
    assert before.prediction is not None
    bare = osp.replanner(FLOAT, network(2500), weights=WEIGHTS)(before, [before.stages[0].node], ())
    assert bare.max_accuracy_drop == 0.005
    assert bare.prediction is not None
    assert bare.prediction.loss <= before.prediction.loss * (1 + 1e-9)


def test_models_of_the_running_plan_are_those_of_the_next(running: osp.Plan) -> None:
    moved = replace(running, weight_models={**running.weight_models, "int8": "elsewhere/int8"})
    found = osp.replanner(FLOAT, network(2000), weights=WEIGHTS)(moved, [running.stages[0].node], ())
    assert found.weight_models["int8"] == "elsewhere/int8"


def test_a_plan_with_weights_is_not_replanned_without_them(running: osp.Plan) -> None:
    with pytest.raises(ValueError, match="stages have weights of their own, int4, int8: give the replanner weights="):
        osp.replanner(FLOAT, network(2000))(running, [running.stages[0].node], ())
    # Unless that is what is asked for.
    found = osp.replanner(FLOAT, network(10_000), weights={})(running, [running.stages[0].node], ())
    assert {stage.weights for stage in found.stages} == {None}


def test_plan_decides_about_a_running_plan_with_weights(running: osp.Plan) -> None:
    kept = osp.plan(FLOAT, network(1300), WORKLOAD, weights=WEIGHTS, loss_budget=0.03, running=running, runs=1e-3)
    assert kept.stages == running.stages
    assert kept.weight_models == running.weight_models
    assert kept.prediction is not None
    assert running.prediction is not None
    assert kept.prediction.total_s == pytest.approx(running.prediction.total_s)
