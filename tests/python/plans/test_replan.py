"""Keep, repair or replace: each option against enumeration, moves computed by hand, and lost weights."""

from __future__ import annotations

import copy
import json
import math
from random import Random

import pytest

import orbitsplit as osp
from orbitsplit import Problem, Stage
from tests.judges import planner as judge
from tests.support.random_problems import random_problem

PROBLEM = {
    "layers": ["a", "b", "c", "d"],
    "nodes": [{"name": f"n{n}", "memory_bytes": 40} for n in range(3)],
    "layer_memory_bytes": [10, 20, 10, 20],
    "layer_time_s": [[1] * 4, [1] * 4, [3] * 4],
    "cut_bytes": [1] * 3,
    "bandwidth_bytes_per_s": [[0, 2, 2], [2, 0, 2], [2, 2, 0]],
    "latency_s": [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]],
    "levels": [{"name": "raw", "ratio": 1}],
    "loss": [[0]] * 3,
    "order": "free",
}
RUNNING = (Stage(0, 0, 2, 0), Stage(1, 2, 4))


def problem(**changes) -> Problem:
    return Problem.from_dict({**PROBLEM, **changes})


def test_nothing_changed_keeps() -> None:
    answer = osp.replan(RUNNING, problem())
    assert (answer.decision, answer.stages) == ("keep", RUNNING)
    assert answer.chosen.moves == ()
    assert answer.chosen.total_s == answer.chosen.objective_s == answer.lower_bound_s == 5.0
    assert osp.replan(osp.solve(problem()), problem()).decision == "keep"


def test_a_lost_node_is_repaired_from_a_store() -> None:
    left = osp.without(problem(), nodes=["n1"])
    answer = osp.replan(RUNNING, left, stores=["n2"])
    keep, repair, _ = answer.options
    assert keep.breaks == "node n1 is lost"
    # Node 2 has the weights of c and d already, and all others in store: nothing moves.
    assert (answer.decision, repair.stages) == ("repair", (Stage(0, 0, 2, 0), Stage(2, 2, 4)))
    assert repair.total_s == 2 + 1 + 6
    # With the store on node 0, c stays there and d travels: 20 bytes at 2 per second and half a second of delay.
    repair = osp.replan(RUNNING, left, stores=["n0"]).options[1]
    assert [(move.start, move.stop, move.path, move.bytes) for move in repair.moves] == [(3, 4, (0, 2), 20)]
    assert repair.move_s == 10.5


def test_weights_that_nobody_has_are_an_error_that_names_the_layer() -> None:
    left = osp.without(problem(), nodes=["n1"])
    with pytest.raises(
        osp.InfeasiblePlanError, match=r'keep: node n1 is lost; repair: .*layer 2 \("c"\) are on no remaining node'
    ):
        osp.replan(RUNNING, left)


def test_moving_pays_only_if_the_situation_lasts() -> None:
    slower = problem(layer_time_s=[[1] * 4, [9] * 4, [1] * 4])
    few, many = (osp.replan(RUNNING, slower, runs=runs) for runs in (0.5, 100))
    assert few.decision == "keep"
    assert many.decision == "replace"
    assert {stage.node for stage in many.stages} == {0, 2}
    assert many.chosen.moves
    assert many.chosen.total_s == pytest.approx(many.chosen.move_s + 100 * many.chosen.objective_s)


def test_moves_share_links_and_relays_forward_while_they_receive() -> None:
    chain = [[0, 4, 0], [4, 0, 2], [0, 2, 0]]
    left = problem(bandwidth_bytes_per_s=chain, layer_time_s=[[9] * 4, [9] * 4, [0] * 4])
    (move,) = osp.replan(RUNNING, left, runs=1e6, layer_weight_bytes=[8, 8, 0, 0]).chosen.moves[:1]
    assert move.path == (0, 1, 2)
    answer = osp.replan(RUNNING, left, runs=1e6, layer_weight_bytes=[8, 8, 0, 0])
    # Node 2 takes over everything it can hold, 40 bytes of layers; what it takes comes over the slower link.
    moved = sum(move.bytes for move in answer.chosen.moves if move.path[-1] == 2)
    assert answer.chosen.move_s == pytest.approx(moved / 2 + 1.0)


def test_a_plan_is_matched_by_names() -> None:
    plan = osp.Plan(stages=(osp.PlanStage("n0", 0, 2), osp.PlanStage("gone", 2, 4)), links=(osp.PlanLink(),), layers=4)
    answer = osp.replan(plan, problem(), stores=["n1"])
    assert answer.options[0].breaks == "node gone is lost"
    assert answer.stages == RUNNING
    compressed = osp.Plan(
        stages=(osp.PlanStage("n0", 0, 2, "int8"), osp.PlanStage("n1", 2, 4)), links=(osp.PlanLink(),), layers=4
    )
    answer = osp.replan(compressed, problem())
    assert "codec" in answer.options[0].breaks
    assert (answer.decision, answer.chosen.moves) == ("repair", ())


def infeasible_or(best: float) -> float | None:
    return None if math.isinf(best) else pytest.approx(best)


@pytest.mark.parametrize("seed", range(80))
def test_options_are_the_best_of_their_kind(seed) -> None:
    r = Random(seed)
    data = random_problem(r, most_layers=5, most_nodes=3)
    before = osp.solve(Problem.from_dict(data))
    if not before.stages:
        pytest.skip("no plan was running")
    changed = copy.deepcopy(data)
    lost = r.choice([stage.node for stage in before.stages]) if r.random() < 0.5 else None
    changed.pop("pins", None)
    if lost is not None:
        changed["pins"] = {"forbidden": [lost]}
    for row in changed["layer_time_s"]:
        row[:] = [seconds * r.choice([0.5, 1, 4]) for seconds in row]
    everywhere = list(range(len(data["nodes"])))
    try:
        answer = osp.replan(before, Problem.from_dict(changed), stores=everywhere)
    except osp.InfeasiblePlanError:
        assert judge.best(changed) == math.inf
        return
    keep, repair, best = answer.options
    kept = judge.cost(changed, list(before.stages))
    assert keep.objective_s == infeasible_or(kept)
    pinned = copy.deepcopy(changed)
    stay = {str(i): s.node for s in before.stages if s.node != lost for i in range(s.start, s.stop)}
    pinned.setdefault("pins", {})["layers"] = stay
    assert repair.objective_s == infeasible_or(judge.best(pinned))
    assert best.objective_s == pytest.approx(judge.best(changed))
    # All weights everywhere: nothing moves, and the best plan is at least as good as any.
    assert answer.chosen.total_s == pytest.approx(best.objective_s)
    assert answer.lower_bound_s <= answer.chosen.total_s * (1 + 1e-9)
    assert all(option.move_s in (0, None) for option in answer.options)


@pytest.mark.parametrize("seed", range(40))
def test_the_chosen_option_takes_least_and_moves_what_is_lacking(seed) -> None:
    data = random_problem(Random(seed), most_layers=5, most_nodes=3)
    data.pop("pins", None)
    before = osp.solve(Problem.from_dict(data))
    if not before.stages:
        pytest.skip("no plan was running")
    for row in data["layer_time_s"]:
        row.reverse()
    answer = osp.replan(before, Problem.from_dict(data), runs=3)
    had = {(stage.node, layer) for stage in before.stages for layer in range(stage.start, stage.stop)}
    for option in answer.options:
        if option.total_s is None:
            continue
        assert answer.chosen.total_s <= option.total_s
        assert answer.lower_bound_s <= option.total_s * (1 + 1e-9)
        needs = {(stage.node, layer) for stage in option.stages for layer in range(stage.start, stage.stop)}
        moved = {(move.path[-1], layer) for move in option.moves for layer in range(move.start, move.stop)}
        assert moved == needs - had
        for move in option.moves:
            assert move.bytes == sum(data["layer_memory_bytes"][move.start : move.stop])
            assert all((move.path[0], layer) in had for layer in range(move.start, move.stop))


def test_moves_are_charged_to_every_micro_batch_alike() -> None:
    moving = 0
    # The answers to the last three differ if moves are charged to the last micro-batch alone.
    for seed in (*range(60), 826, 1791, 1878):
        data = random_problem(Random(seed), most_layers=5, most_nodes=3)
        data.pop("pins", None)
        data.pop("layer_earlier_time_s", None)
        before = osp.solve(Problem.from_dict(data))
        if not before.stages:
            continue
        for row in data["layer_time_s"]:
            row.reverse()
        equal = {**data, "layer_earlier_time_s": data["layer_time_s"]}
        answers = [osp.replan(before, Problem.from_dict(one), runs=3) for one in (data, equal)]
        assert answers[0] == answers[1]
        moving += any(option.moves for option in answers[0].options)
    assert moving > 5


def test_text_and_json() -> None:
    answer = osp.replan(RUNNING, osp.without(problem(), nodes=["n1"]), stores=["n2"], runs=2)
    assert str(answer).splitlines()[:2] == ["repair: 18 s for 2 runs", "  keep: node n1 is lost"]
    record = json.loads(json.dumps(answer.to_dict(), allow_nan=False))
    assert record["decision"] == "repair"
    assert record["options"][1]["stages"][0] == {"node": 0, "start": 0, "stop": 2, "level": 0}
    assert record["options"][0]["total_s"] is None


def test_without_drops_nodes_links_and_pins() -> None:
    pinned = problem(pins={"layers": {"a": "n1", "b": "n0"}, "required": ["n1"]})
    left = osp.without(pinned, nodes=["n1"], links=[("n0", "n2")])
    assert left.pins == osp.without(left, nodes=[1]).pins
    assert (dict(left.pins.layers), left.pins.required, left.pins.forbidden) == ({1: 0}, (), (1,))
    assert left.bandwidth_bytes_per_s.tolist() == [[0, 2, 0], [2, 0, 2], [2, 2, 0]]
    with pytest.raises(ValueError, match=r'nodes\[0\] is "n9"'):
        osp.without(pinned, nodes=["n9"])
    with pytest.raises(ValueError, match="the source is 7, the nodes are 0 to 2"):
        osp.without(pinned, links=[(7, 0)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"runs": 0}, "runs is 0, must be finite and above 0"),
        ({"stores": ["n9"]}, r'stores\[0\] is "n9"'),
        ({"stores": [5]}, r"stores\[0\] is 5, the nodes are 0 to 2"),
        ({"layer_weight_bytes": [1]}, "layer_weight_bytes has shape"),
    ],
)
def test_nonsense(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        osp.replan(RUNNING, problem(), **arguments)


def test_other_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="the running plan has 2 layers, the problem 4"):
        osp.replan((Stage(0, 0, 2),), problem())
    with pytest.raises(ValueError, match="a running stage is on node 4"):
        osp.replan((Stage(4, 0, 4),), problem())
