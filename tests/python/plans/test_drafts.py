"""Plans with guessed tokens: the best number of guesses by enumeration, the tokens of a lap by drawing them."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Literal

import pytest

import orbitsplit as osp
from orbitsplit._plans.drafts import tokens_per_lap
from tests.judges.settings import Setting, every_split, seconds
from tests.support.setting_cases import LAYERS, NODES, PROMPT, Case, make_case

NEW = 20
SPLITS = list(every_split(NODES, LAYERS))
# With times of 1, 2, 4 and 8 rows.
GUESSES = range(8)


def workload(acceptance: float, sequences: int = 1, **changes: object) -> osp.Workload:
    plain = osp.Workload(micro_batches=sequences, prompt_tokens=PROMPT, new_tokens=NEW, acceptance=acceptance)
    return replace(plain, **changes)  # type: ignore[arg-type]


def best_s(case: Case, setting: Setting, acceptance: float, objective: str = "latency") -> float:
    return min(seconds(split, case.model, case.machines, setting, NEW, acceptance)[objective] for split in SPLITS)


def prediction_of(plan: osp.Plan) -> osp.Prediction:
    assert plan.prediction is not None
    return plan.prediction


def test_guesses_chunks_and_rows_are_the_best_of_all_by_enumeration(backend: str) -> None:
    chosen = set()
    divisions = (1, 2, 4) if backend == "native" else (1,)
    for seed in range(6) if backend == "native" else (1,):
        case, acceptance = make_case(seed), random.Random(seed).choice([0.1, 0.5, 0.9])
        every = {
            (groups, rows, PROMPT // chunks, guesses): best_s(case, Setting(groups, rows, chunks, guesses), acceptance)
            for groups, rows in ((2, 1), (1, 2))
            for chunks in divisions
            for guesses in (GUESSES if rows == 1 else (0,))
        }
        lengths: Literal["auto"] | None = "auto" if len(divisions) > 1 else None
        plan = osp.plan(case.profile, case.network, workload(acceptance, 2), rows="auto", chunk_tokens=lengths)
        found = prediction_of(plan)
        assert (found.status, found.lower_bound_s) == ("optimal", pytest.approx(found.total_s))
        assert found.total_s == pytest.approx(min(every.values()), rel=1e-9)
        setting = (plan.workload.micro_batches, plan.workload.batch_size, plan.chunk_tokens, plan.draft_tokens)
        assert every[setting[0], setting[1], setting[2] or PROMPT, setting[3] or 0] == min(every.values())
        assert dict(found.draft_options) == pytest.approx(
            {k: min(s for (*_, guesses), s in every.items() if guesses == k) for k in GUESSES}
        )
        chosen.add(plan.draft_tokens)
    if backend == "native":
        assert None in chosen
        assert max(guesses or 0 for guesses in chosen) >= 3


@pytest.mark.parametrize("objective", ["time_per_token", "throughput"])
def test_other_objectives_are_the_best_of_all_numbers(objective: str) -> None:
    for seed in range(5):
        case = make_case(seed)
        every = {k: best_s(case, Setting(2, guesses=k), 0.8, objective) for k in GUESSES}
        plan = osp.plan(case.profile, case.network, workload(0.8, 2), chunk_tokens=None, objective=objective)
        assert dict(prediction_of(plan).draft_options) == pytest.approx(every)
        assert every[plan.draft_tokens or 0] == min(every.values())
        assert prediction_of(plan).status == "optimal"


@pytest.mark.parametrize("guesses", [1, 4, 7])
def test_a_number_of_guesses_is_taken_as_it_is(guesses: int) -> None:
    case = make_case(3)
    plan = osp.plan(case.profile, case.network, workload(0.5), draft_tokens=guesses, chunk_tokens=None)
    assert plan.draft_tokens == guesses
    assert prediction_of(plan).total_s == pytest.approx(best_s(case, Setting(guesses=guesses), 0.5))
    assert prediction_of(plan).draft_options == ()


@pytest.mark.parametrize(("acceptance", "guesses"), [(0.0, 3), (0.3, 1), (0.7, 5), (1.0, 4)])
def test_a_lap_gives_the_guesses_that_are_right_until_one_is_not(acceptance: float, guesses: int) -> None:
    source, laps, tokens = random.Random(7), 40_000, 0
    for _ in range(laps):
        tokens += 1
        for _ in range(guesses):
            if source.random() >= acceptance:
                break
            tokens += 1
    assert tokens / laps == pytest.approx(tokens_per_lap(acceptance, guesses), rel=0.02)


def test_a_simulation_takes_what_is_predicted() -> None:
    # One and a half tokens a lap: 60 tokens behind the first one take 40 laps.
    for seed in range(6):
        case = make_case(seed)
        given = workload(0.5, new_tokens=1 + 3 * 20)
        plan = osp.plan(case.profile, case.network, given, draft_tokens=1, chunk_tokens=None)
        assert prediction_of(plan).tokens_per_step == 1.5
        trace = osp.simulate(plan)
        assert max(event.step for event in trace.events) == 40
        assert trace.stop_s == pytest.approx(prediction_of(plan).total_s, rel=1e-9)


def test_links_carry_the_guesses() -> None:
    case = make_case(2)
    plain, guessing = (
        osp.build_problem(case.profile, case.network, workload(0.5), draft_tokens=guesses) for guesses in (None, 3)
    )
    assert plain.cut_decode_bytes is not None
    assert guessing.cut_decode_bytes is not None
    assert guessing.cut_decode_bytes.tolist() == (4 * plain.cut_decode_bytes).tolist()
    assert (plain.tokens_per_step, guessing.tokens_per_step) == (1.0, 1 + 0.5 + 0.25 + 0.125)
    assert guessing.layer_time_s.tolist() == plain.layer_time_s.tolist()


@pytest.mark.parametrize(
    "changes", [{"acceptance": 0.0}, {"new_tokens": 0}, {"new_tokens": 1}, {"micro_batches": 1, "batch_size": 2}]
)
def test_without_something_to_gain_there_are_no_guesses(changes: dict[str, float]) -> None:
    case = make_case(1, fixed=20.0)
    assert osp.plan(case.profile, case.network, workload(0.9)).draft_tokens is not None
    plan = osp.plan(case.profile, case.network, replace(workload(0.9), **changes))
    assert (plan.draft_tokens, prediction_of(plan).draft_options) == (None, ())
    first = osp.plan(case.profile, case.network, workload(0.9), objective="time_to_first_token")
    assert first.draft_tokens is None
    assert osp.plan(case.profile, case.network, workload(0.9), draft_tokens=None).draft_tokens is None
    assert osp.plan(replace(case.profile, rows=()), case.network, workload(0.9)).draft_tokens is None


@pytest.mark.parametrize(
    ("guesses", "given", "error", "message"),
    [
        ("few", {}, ValueError, "draft_tokens is 'few', must be a number of guesses, "),
        (0, {}, ValueError, "draft_tokens is 0, must be at least 1"),
        (1.5, {}, TypeError, "draft_tokens"),
        (2, {"acceptance": 0.0}, ValueError, "draft_tokens is 2, and the acceptance of the workload is 0"),
        (2, {"batch_size": 2}, ValueError, "draft_tokens is 2, and micro-batches have 2 rows, must have one"),
        (8, {}, ValueError, "batch_size=1, the workload has 9: it has times of up to 8 rows"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(
    guesses: object, given: dict[str, float], error: type[Exception], message: str
) -> None:
    case = make_case(0)
    with pytest.raises(error, match=message):
        osp.plan(case.profile, case.network, replace(workload(0.5), **given), draft_tokens=guesses)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("acceptance", "error"), [(-0.1, ValueError), (1.1, ValueError), (float("nan"), ValueError), ("0.5", TypeError)]
)
def test_an_acceptance_is_a_probability(acceptance: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"Workload.acceptance is"):
        osp.Workload(acceptance=acceptance)  # type: ignore[arg-type]


def test_a_plan_comes_back_from_its_file_and_says_why() -> None:
    case = make_case(1, fixed=20.0)
    plan = osp.plan(case.profile, case.network, workload(0.9))
    assert osp.Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert plan.draft_tokens is not None
    (line,) = (line for line in plan.explain().splitlines() if line.startswith("tokens go with"))
    assert line.startswith(f"tokens go with {plan.draft_tokens} guesses of the next ones; best plans by number of gue")
    for guesses, found_s in prediction_of(plan).draft_options:
        assert f"{guesses} {found_s:.3g} s" in line
    assert f"per token step of {prediction_of(plan).tokens_per_step:.3g} tokens" in plan.explain()


def test_files_of_plans_without_guesses_are_those_of_before() -> None:
    document = osp.plan(make_case(0).profile, make_case(0).network, workload(0.0)).to_dict()
    assert "draft_tokens" not in document
    assert "acceptance" not in document["workload"]
    assert {"draft_options", "row_options", "tokens_per_step"}.isdisjoint(document["prediction"])
    assert osp.Plan.from_dict(document).draft_tokens is None


def test_a_plan_of_several_rows_has_no_guesses() -> None:
    plan = osp.Plan.manual([1], 3)
    assert replace(plan, draft_tokens=4).draft_tokens == 4
    with pytest.raises(ValueError, match="draft_tokens is 4, and micro-batches have 2 rows, must have one"):
        replace(plan, draft_tokens=4, workload=osp.Workload(batch_size=2))
    with pytest.raises(ValueError, match="draft_tokens is 0, must be at least 1"):
        replace(plan, draft_tokens=0)


def test_a_plan_after_a_loss_has_the_guesses_of_the_one_before() -> None:
    case = make_case(1, fixed=20.0)
    nodes = tuple(replace(node, memory_bytes=50) for node in case.network.nodes)
    network = replace(case.network, nodes=nodes)
    for guesses in (None, 2):
        running = osp.plan(case.profile, network, workload(0.9), draft_tokens=guesses)
        lost = [running.stages[-1].node]
        after = osp.replanner(case.profile, network)(running, lost, [])
        assert after.draft_tokens == guesses
        assert prediction_of(after).tokens_per_step == pytest.approx(1.0 if guesses is None else 1 + 0.9 + 0.81)
        # Where nothing says what guesses cost, they go on as they did.
        assert osp.replanner(replace(case.profile, rows=()), network)(running, lost, []).draft_tokens == guesses
