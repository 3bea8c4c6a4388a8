"""Plans that divide sequences into rows that share a forward: the best division by enumeration, and by a simulation."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import orbitsplit as osp
from orbitsplit._plans.rows import divisions_to_try
from tests.judges.settings import Setting, every_split, seconds
from tests.support.setting_cases import LAYERS, NODES, PROMPT, Case, make_case

NEW = 6
SPLITS = list(every_split(NODES, LAYERS))


def best_s(case: Case, setting: Setting, objective: str = "latency", new: int = NEW) -> float:
    return min(seconds(split, case.model, case.machines, setting, new)[objective] for split in SPLITS)


def workload(sequences: int, new_tokens: int = NEW) -> osp.Workload:
    return osp.Workload(micro_batches=sequences, prompt_tokens=PROMPT, new_tokens=new_tokens)


def prediction_of(plan: osp.Plan) -> osp.Prediction:
    assert plan.prediction is not None
    return plan.prediction


def test_division_and_chunks_are_the_best_of_all_by_enumeration(backend: str) -> None:
    chosen = set()
    for seed in range(12) if backend == "native" else (0, 1):
        case = make_case(seed)
        every = {
            (groups, rows, PROMPT // chunks): best_s(case, Setting(groups, rows, chunks))
            for groups, rows in ((4, 1), (2, 2), (1, 4))
            for chunks in (1, 2, 4)
        }
        plan = osp.plan(case.profile, case.network, workload(4), rows="auto")
        found = prediction_of(plan)
        assert (found.status, found.lower_bound_s) == ("optimal", pytest.approx(found.total_s))
        assert found.total_s == pytest.approx(min(every.values()), rel=1e-9)
        division = (plan.workload.micro_batches, plan.workload.batch_size)
        assert every[(*division, plan.chunk_tokens or PROMPT)] == min(every.values())
        assert {(groups, rows): s for groups, rows, s in found.row_options} == pytest.approx(
            {(g, r): min(every[g, r, length] for length in (16, 32, 64)) for g, r in ((4, 1), (2, 2), (1, 4))}
        )
        assert dict(found.chunk_options) == pytest.approx(
            {length: min(every[g, r, length] for g, r in ((4, 1), (2, 2), (1, 4))) for length in (16, 32, 64)}
        )
        chosen.add((*division, plan.chunk_tokens))
    if backend == "native":
        assert {rows for _, rows, _ in chosen} >= {1, 4}
        assert {length for _, _, length in chosen} >= {None, 16}


@pytest.mark.parametrize("objective", ["time_to_first_token", "time_per_token", "throughput"])
def test_other_objectives_are_the_best_of_all_divisions(objective: str) -> None:
    for seed in range(8):
        case = make_case(seed)
        every = {
            (groups, rows): best_s(case, Setting(groups, rows), objective) for groups, rows in ((4, 1), (2, 2), (1, 4))
        }
        plan = osp.plan(case.profile, case.network, workload(4), rows="auto", chunk_tokens=None, objective=objective)
        assert {(g, r): s for g, r, s in prediction_of(plan).row_options} == pytest.approx(every)
        assert every[plan.workload.micro_batches, plan.workload.batch_size] == min(every.values())
        assert prediction_of(plan).status == "optimal"


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_number_of_rows_is_taken_as_it_is(rows: int) -> None:
    case = make_case(3)
    plan = osp.plan(case.profile, case.network, workload(4), rows=rows, chunk_tokens=None)
    assert (plan.workload.micro_batches, plan.workload.batch_size) == (4 // rows, rows)
    assert prediction_of(plan).total_s == pytest.approx(best_s(case, Setting(4 // rows, rows)))
    assert prediction_of(plan).row_options == ()
    given = replace(workload(4), micro_batches=4 // rows, batch_size=rows)
    assert osp.plan(case.profile, case.network, given, chunk_tokens=None) == plan


@pytest.mark.parametrize("rows", [2, 4])
def test_a_simulation_takes_what_is_predicted(rows: int) -> None:
    # The step of a plan is in steady state, which groups that enter back to back reach after their prefill.
    for seed in range(6):
        case = make_case(seed, fixed=5.0)
        plan = osp.plan(case.profile, case.network, workload(4, new_tokens=40), rows=rows, chunk_tokens=None)
        stop_s = max(event.stop_s for event in osp.simulate(plan).events)
        assert stop_s == pytest.approx(prediction_of(plan).total_s, rel=0.03)
        events = [e for e in osp.simulate(plan).events if e.node == plan.stages[-1].node and e.kind == "compute"]
        prefill_s = max(event.stop_s for event in events if event.step == 0)
        if len(plan.stages) == 1:
            assert prefill_s == pytest.approx(prediction_of(plan).prefill_s)
        assert {event.group for event in events} == set(range(4 // rows))


def test_as_given_is_the_default() -> None:
    case = make_case(1, fixed=20.0)
    before = osp.plan(replace(case.profile, rows=()), case.network, workload(4))
    assert osp.plan(case.profile, case.network, workload(4)) == before
    assert before.workload == workload(4)
    assert osp.plan(case.profile, case.network, workload(4), rows="auto").workload.batch_size > 1


@pytest.mark.parametrize(
    ("sequences", "divisions"),
    [
        (1, [(1, 1)]),
        (4, [(4, 1), (2, 2), (1, 4)]),
        (5, [(5, 1), (3, 2), (2, 3), (1, 5)]),
        (20, [(20, 1), (10, 2), (7, 3), (5, 4), (4, 5), (3, 7)]),  # the profile has times of up to 8 rows
    ],
)
def test_sequences_are_divided_as_evenly_as_possible(sequences: int, divisions: list[tuple[int, int]]) -> None:
    parts = divisions_to_try([make_case(0).profile], workload(sequences), "auto")
    assert [(part.micro_batches, part.batch_size) for part in parts] == divisions
    assert all((part.prompt_tokens, part.new_tokens) == (PROMPT, NEW) for part in parts)


def test_a_division_that_does_not_fit_is_left_out() -> None:
    # A forward of four rows has four times the workspace, which no node has room for.
    case = make_case(1, fixed=20.0)
    nodes = tuple(replace(node, memory_bytes=85) for node in case.network.nodes)
    network, profile = replace(case.network, nodes=nodes), replace(case.profile, workspace_bytes=20)
    plan = osp.plan(profile, network, workload(4), rows="auto", chunk_tokens=None)
    assert [(groups, rows) for groups, rows, _ in prediction_of(plan).row_options] == [(4, 1), (2, 2)]
    assert plan.workload.batch_size == 2
    with pytest.raises(osp.InfeasiblePlanError, match="needs 10 B, the largest node has 5 B"):
        osp.plan(profile, network, workload(4), rows=4)


def test_other_weights_have_times_of_their_own_rows() -> None:
    case = make_case(2)
    quick = replace(
        case.profile,
        layers=tuple(replace(one, decode_s=(one.decode_s or 0) / 2) for one in case.profile.layers),
        rows=tuple(osp.RowTimes(one.rows, tuple(s / 10 for s in one.decode_s)) for one in case.profile.rows),
    )
    option = osp.WeightOption(profile=quick, loss=(0.0,) * LAYERS, model="int8")
    given = replace(workload(4), micro_batches=1, batch_size=4)
    problem = osp.build_problem(case.profile, case.network, given, weights={"int8": option})
    assert problem.layer_decode_time_s is not None
    assert problem.layer_decode_time_s[1] == pytest.approx(problem.layer_decode_time_s[0] / 10)
    plan = osp.plan(case.profile, case.network, workload(4), weights={"int8": option}, rows=4)
    assert plan.workload.batch_size == 4
    assert {stage.weights for stage in plan.stages} == {"int8"}


def test_profiles_without_times_of_rows_are_refused() -> None:
    case = make_case(0)
    with pytest.raises(ValueError, match='rows is "auto", and the profile of m has no times of several rows'):
        osp.plan(replace(case.profile, rows=()), case.network, workload(4), rows="auto")
    with pytest.raises(ValueError, match="made for batch_size=1, the workload has 2: profile the model again"):
        osp.plan(replace(case.profile, rows=()), case.network, workload(4), rows=2)


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ("many", ValueError, "rows is 'many', must be a number of rows, \"auto\" or None"),
        (0, ValueError, "rows is 0, must be at least 1"),
        (2.5, TypeError, "rows"),
        (True, TypeError, "rows"),
    ],
)
def test_other_numbers_of_rows_are_refused_by_name(rows: object, error: type[Exception], message: str) -> None:
    case = make_case(0)
    with pytest.raises(error, match=message):
        osp.plan(case.profile, case.network, workload(4), rows=rows)  # type: ignore[arg-type]


def test_a_plan_comes_back_from_its_file_and_says_why() -> None:
    case = make_case(1, fixed=20.0)
    plan = osp.plan(case.profile, case.network, workload(4), rows="auto")
    assert osp.Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    (line,) = (line for line in plan.explain().splitlines() if line.startswith("sequences run in"))
    assert f"{plan.workload.micro_batches} micro-batches of {plan.workload.batch_size} rows" in line
    assert "best plans by micro-batches x rows: 4 x 1 " in line
    for groups, rows, found_s in prediction_of(plan).row_options:
        assert f"{groups} x {rows} {found_s:.3g} s" in line
    assert "row_options" not in osp.plan(case.profile, case.network, workload(4)).to_dict()["prediction"]


def test_a_plan_after_a_loss_has_the_rows_of_the_one_before() -> None:
    case = make_case(1, fixed=20.0)
    nodes = tuple(replace(node, memory_bytes=50) for node in case.network.nodes)
    network = replace(case.network, nodes=nodes)
    running = osp.plan(case.profile, network, workload(4), rows=2)
    after = osp.replanner(case.profile, network)(running, [running.stages[-1].node], [])
    assert after.workload == running.workload == replace(workload(4), micro_batches=2, batch_size=2)
