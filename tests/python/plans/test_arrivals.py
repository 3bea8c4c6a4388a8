"""Plans for requests that arrive at a rate, beside an event simulation of arrivals and the best of every split."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

import orbitsplit as osp
from orbitsplit._plans.arrivals import Demand, Step, capacity_per_s, mean_in_flight, steady_state
from orbitsplit._plans.problem_building import build_problem, decode_arrays
from orbitsplit._plans.rate_problems import RateProblems
from orbitsplit._plans.settings import Setting
from tests.judges.settings import every_split
from tests.support.arriving_cases import chain_of
from tests.support.arriving_requests import Chain, mean_seconds
from tests.support.setting_cases import LAYERS, NODES, PROMPT, Case, make_case

NEW = 40
# Per objective, what a prediction has of it.
SECONDS = {"latency": "total_s", "time_to_first_token": "prefill_s", "time_per_token": "token_step_s"}


def roomy(seed: int) -> Case:
    """Return a case whose nodes have room for many requests."""
    case = make_case(seed)
    nodes = tuple(replace(node, memory_bytes=50) for node in case.network.nodes)
    return replace(case, network=replace(case.network, nodes=nodes))


def workload(per_s: float, new_tokens: int = NEW, **fields: float) -> osp.Workload:
    whole: dict[str, float] = {"micro_batches": 8, **fields}
    return osp.Workload(prompt_tokens=PROMPT, new_tokens=new_tokens, arrivals_per_s=per_s, **whole)  # type: ignore[arg-type]


def prediction_of(plan: osp.Plan) -> osp.Prediction:
    assert plan.prediction is not None
    assert plan.prediction.in_flight is not None
    return plan.prediction


def server(service_s: float, step_s: float = 0.0, steps: int = 0, *, most: int = 50) -> Demand:
    """Return what a chain of one stage is asked for."""
    return Demand(
        prompt_s=(service_s,),
        chunks=1,
        alone_s=service_s,
        spacing_s=service_s,
        return_s=0.0,
        steps=steps,
        step=(lambda _rows: Step(step_s, (step_s,))) if steps else None,
        messages=most,
        rows=1,
    )


def test_requests_share_one_server_as_queueing_theory_says() -> None:
    # Processor sharing (M/G/1): load / (1 - load) are there. Nobody holds up others (M/G/infinity): the load is.
    in_flight, waiting = mean_in_flight(0.3, lambda k: 2.0 * k, 200)
    assert (in_flight, waiting) == (pytest.approx(0.6 / 0.4), pytest.approx(0.0, abs=1e-12))
    assert mean_in_flight(3.0, lambda _k: 2.0, 200)[0] == pytest.approx(6.0)
    # One at a time, M/M/1, of which half as many wait: load / (1 - load) = the load in service + load^2 / (1 - load).
    assert mean_in_flight(0.3, lambda _k: 2.0, 1) == pytest.approx((0.6, 0.36 / 0.4 / 2))
    assert mean_in_flight(0.5, lambda k: 2.0 * k, 8) == (math.inf, math.inf)


def test_prompts_alone_wait_for_one_server_in_order() -> None:
    state = steady_state(server(2.0), 0.3)
    assert state is not None
    assert state.request_s == pytest.approx(2.0 + 0.6 * 2.0 / (2 * 0.4))  # Pollaczek and Khinchine, M/D/1
    assert state.request_s == state.first_token_s
    assert state.in_flight == pytest.approx(0.3 * state.request_s)  # Little
    assert state.utilisation == (pytest.approx(0.6),)
    assert steady_state(server(2.0), 0.5) is None
    chain = Chain([[2.0]], lambda _k, _rows: 0.0, [0.0], 0.0, laps=0, most_messages=50, most_in_flight=50)
    simulated = [mean_seconds(chain, 0.3, count=2000, seed=seed)[0] for seed in range(3)]
    assert sum(simulated) / 3 == pytest.approx(state.request_s, rel=0.06)


def test_a_batch_on_one_stage_takes_what_all_its_work_does() -> None:
    demand = server(2.0, step_s=0.1, steps=20)
    assert demand.request_s(1) == pytest.approx(2.0 + 20 * 0.1)
    joining_s = 4 / 5 * 0.1 / 2  # its prompt arrives during a step of the four others
    assert demand.request_s(5) == pytest.approx(5 * (2.0 + 20 * 0.1) + joining_s)
    assert capacity_per_s(demand) == pytest.approx(1 / 4.0, rel=1e-3)


def capacity(case: Case, rows: int | None) -> float:
    """Return the rate that the best plan found sustains, as the error says."""
    with pytest.raises(osp.InfeasiblePlanError) as error:
        osp.plan(case.profile, case.network, workload(100.0), rows=rows)
    return float(str(error.value).partition("sustains ")[2].split()[0])


@pytest.mark.parametrize(("load", "tolerance"), [(0.1, 0.05), (0.3, 0.1), (0.5, 0.12), (0.8, 0.2)])
@pytest.mark.parametrize(("seed", "rows"), [(0, None), (1, 4), (2, None), (3, 4)])
def test_mean_seconds_are_those_of_a_simulation(seed: int, rows: int | None, load: float, tolerance: float) -> None:
    case = roomy(seed)
    per_s = load * capacity(case, rows)
    plan = osp.plan(case.profile, case.network, workload(per_s), rows=rows)
    runs = [mean_seconds(chain_of(case, plan), per_s, count=250, seed=seed) for seed in range(2)]
    whole_s, first_s = (sum(times) / len(runs) for times in zip(*runs, strict=True))
    found = prediction_of(plan)
    assert found.total_s == pytest.approx(whole_s, rel=tolerance)
    if load <= 0.3:  # beyond, requests wait for admission, of which the model has the order of magnitude
        assert found.prefill_s == pytest.approx(first_s, rel=0.12)
    assert found.in_flight == pytest.approx(per_s * found.total_s - found.waiting, rel=1e-6)  # Little


def test_one_request_at_a_time_waits_before_its_prompt_alone() -> None:
    # M/D/1 of whole requests. Their wait once counted for prompts too, which left the steps less time at a higher rate.
    demand = server(2.0, step_s=0.1, steps=20, most=1)
    state = steady_state(demand, 0.15)
    assert state is not None
    waiting_s = 0.6 * 4.0 / (2 * 0.4)
    assert (state.request_s, state.first_token_s) == (pytest.approx(waiting_s + 4.0), pytest.approx(waiting_s + 2.0))
    case = roomy(2)
    batch = replace(workload(1.0, 4, micro_batches=1), arrivals_per_s=None)
    alone = osp.plan(case.profile, case.network, batch, objective="time_per_token").prediction
    assert alone is not None
    for per_s in (1e-6, 0.02, 0.04, 0.2):
        given = workload(per_s, 4, micro_batches=1)
        found = prediction_of(osp.plan(case.profile, case.network, given, objective="time_per_token"))
        assert found.token_step_s == pytest.approx(found.lower_bound_s, rel=1e-9)
        assert found.lower_bound_s == pytest.approx(alone.token_step_s, rel=1e-9)
        assert found.status == "optimal"


def test_steps_beside_prompts_are_those_of_a_simulation() -> None:
    case = roomy(2)
    for messages, load, tolerance in [(1, 0.8, 0.001), (2, 0.1, 0.05)]:
        with pytest.raises(osp.InfeasiblePlanError) as error:
            osp.plan(case.profile, case.network, workload(100.0, micro_batches=messages))
        per_s = load * float(str(error.value).partition("sustains ")[2].split()[0])
        plan = osp.plan(case.profile, case.network, workload(per_s, micro_batches=messages))
        runs = [mean_seconds(chain_of(case, plan), per_s, count=250, seed=seed) for seed in range(2)]
        steps_s = sum(whole_s - first_s for whole_s, first_s in runs) / len(runs)
        assert prediction_of(plan).decode_s == pytest.approx(steps_s, rel=tolerance), (messages, load)


def test_steps_that_take_less_with_more_rows_leave_no_bound() -> None:
    case = roomy(2)
    times = tuple(
        replace(one, decode_s=tuple(seconds / 50 for seconds in one.decode_s)) if one.rows > 1 else one
        for one in case.profile.rows
    )
    given = workload(0.05, 400, batch_size=4, micro_batches=1)
    plan = osp.plan(replace(case.profile, rows=times), case.network, given, objective="time_per_token")
    found = prediction_of(plan)
    assert (found.status, found.lower_bound_s, found.gap) == ("feasible", 0.0, 1.0)


def problems_of(case: Case, rows: int, chunk_tokens: int | None, new_tokens: int, messages: int) -> RateProblems:
    batch = osp.Workload(prompt_tokens=PROMPT, new_tokens=new_tokens)

    def build(setting: Setting) -> osp.Problem:
        return build_problem(
            case.profile,
            case.network,
            replace(batch, micro_batches=setting.micro_batches),
            chunk_tokens=setting.chunk_tokens,
            prompts_under_way=setting.prompts_under_way,
        )

    setting = Setting(messages, rows, chunk_tokens)
    return RateProblems(setting, build, lambda n: decode_arrays((case.profile,), case.network, n), 0)


@pytest.mark.parametrize(
    ("rows", "chunk_tokens", "new_tokens", "messages", "objective"),
    [
        *((1, 16, 20, 8, objective) for objective in SECONDS),
        *((4, None, 20, 8, objective) for objective in SECONDS),
        (1, None, 20, 1, "time_per_token"),
        (1, None, 20, 2, "time_per_token"),
        (1, None, 0, 8, "latency"),
        (1, None, 0, 8, "time_to_first_token"),
    ],
)
def test_no_split_is_below_the_bound_and_few_are_better(
    rows: int, chunk_tokens: int | None, new_tokens: int, messages: int, objective: str
) -> None:
    excess = []
    for seed in range(4):
        case = roomy(seed)
        problems = problems_of(case, rows, chunk_tokens, new_tokens, messages)
        splits = [
            [osp.Stage(node, one.start, one.stop, None if one.stop == LAYERS else 0) for node, one in split]
            for split in every_split(NODES, LAYERS)
        ]
        demands = [found[0] for found in map(problems.demand, splits) if found is not None]
        per_s = 0.5 * max(map(capacity_per_s, demands))
        states = [state for state in (steady_state(demand, per_s) for demand in demands) if state is not None]
        best_s = min(
            {
                "latency": state.request_s,
                "time_to_first_token": state.first_token_s,
                "time_per_token": (state.request_s - state.first_token_s) / max(1, new_tokens - 1),
            }[objective]
            for state in states
        )
        given = workload(per_s, new_tokens, batch_size=rows, micro_batches=messages)
        plan = osp.plan(case.profile, case.network, given, chunk_tokens=chunk_tokens, objective=objective)
        found = prediction_of(plan)
        seconds = getattr(found, SECONDS[objective])
        assert 0 < found.lower_bound_s <= best_s * (1 + 1e-9)
        assert best_s <= seconds * (1 + 1e-9)
        assert found.gap == pytest.approx(1 - found.lower_bound_s / seconds, abs=1e-8)
        assert (found.status == "optimal") == (found.gap == 0)
        excess.append(seconds / best_s - 1)
    assert max(excess) <= 0.1
    assert sorted(excess)[1] <= 1e-9  # half of them are the best


def test_a_rare_request_takes_what_it_takes_alone() -> None:
    case = roomy(2)
    alone = osp.plan(case.profile, case.network, replace(workload(1.0), micro_batches=1, arrivals_per_s=None))
    rare = osp.plan(case.profile, case.network, workload(1e-9))
    assert alone.prediction is not None
    assert prediction_of(rare).total_s == pytest.approx(alone.prediction.total_s, rel=1e-6)
    assert prediction_of(rare).in_flight == pytest.approx(0.0, abs=1e-6)
    assert rare.stages == alone.stages


def test_more_requests_never_take_less() -> None:
    case = roomy(3)
    most = capacity(case, None)
    plans = [osp.plan(case.profile, case.network, workload(part * most)) for part in (0.1, 0.3, 0.5, 0.7, 0.9)]
    lower = [prediction_of(plan).lower_bound_s for plan in plans]
    seconds = [prediction_of(plan).total_s for plan in plans]
    assert lower == sorted(lower)
    assert seconds == sorted(seconds)
    assert len({len(plan.stages) for plan in plans}) > 1  # at a low rate one node, at a high one several


def test_rows_chunks_and_guesses_are_chosen_for_the_rate() -> None:
    case = make_case(1, fixed=20.0)  # steps of several rows cost little more than those of one
    network = replace(case.network, nodes=tuple(replace(n, memory_bytes=50) for n in case.network.nodes))
    plan = osp.plan(case.profile, network, workload(0.04, acceptance=0.8), rows="auto")
    found = prediction_of(plan)
    assert {setting[:2] for setting in found.row_options} == {(8, 1), (4, 2), (3, 3), (2, 4), (1, 8)}
    assert min(seconds for *_, seconds in found.row_options) == pytest.approx(found.total_s)
    assert min(seconds for _, seconds in found.chunk_options) == pytest.approx(found.total_s)
    assert dict(found.draft_options)[plan.draft_tokens or 0] == pytest.approx(found.total_s)


def test_a_rate_beyond_capacity_names_rate_capacity_and_bottleneck() -> None:
    case = roomy(0)
    with pytest.raises(
        osp.InfeasiblePlanError, match=r"arrive at 5 per second, the best plan found sustains 0\.0"
    ) as error:
        osp.plan(case.profile, case.network, workload(5.0))
    assert "its bottleneck is" in str(error.value)
    other = roomy(1)
    with pytest.raises(osp.InfeasiblePlanError, match=r"the limit is that at most 16 are in flight \(micro_batches\)"):
        osp.plan(other.profile, other.network, workload(5.0, micro_batches=16))
    small = replace(case.network, nodes=tuple(replace(node, memory_bytes=9) for node in case.network.nodes))
    with pytest.raises(osp.InfeasiblePlanError, match="needs 10 B, the largest node has 9 B"):
        osp.plan(case.profile, small, workload(0.01))


def test_what_a_rate_does_not_go_with_is_refused() -> None:
    case = roomy(1)
    given = workload(0.05)
    plan = osp.plan(case.profile, case.network, given)
    with pytest.raises(ValueError, match="objective is throughput, and the workload has arrivals_per_s"):
        osp.plan(case.profile, case.network, given, objective="throughput")
    with pytest.raises(ValueError, match="has 0 new tokens, must have 2 or more"):
        osp.plan(case.profile, case.network, workload(0.05, 0), objective="time_per_token")
    with pytest.raises(ValueError, match="running is given, and the workload has arrivals_per_s"):
        osp.plan(case.profile, case.network, given, running=plan)
    with pytest.raises(ValueError, match=r"arrivals_per_s 0.05, and the prompts of a problem are all there at once"):
        osp.build_problem(case.profile, case.network, given)
    with pytest.raises(ValueError, match=r"arrivals_per_s 0.05, and this front is over"):
        osp.pareto(case.profile, over="latency", network=case.network, workload=given)


@pytest.mark.parametrize(
    ("rate", "error"),
    [(0.0, ValueError), (-1.0, ValueError), (math.inf, ValueError), ("1", TypeError), (True, TypeError)],
)
def test_other_rates_are_refused_by_name(rate: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"Workload.arrivals_per_s"):
        osp.Workload(arrivals_per_s=rate)  # type: ignore[arg-type]


def test_a_plan_comes_back_from_its_file_and_says_what_to_expect(tmp_path: Path) -> None:
    case = roomy(1)
    plan = osp.plan(case.profile, case.network, workload(0.1), explain=True)
    assert osp.Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    found = prediction_of(plan)
    text = plan.explain()
    assert f"{found.in_flight:.3g} are in flight" in text
    assert f"{100 * max(found.stage_utilisation + found.link_utilisation):.0f} % of the time" in text
    assert plan.certificate is not None
    assert plan.certificate.unanswered == ("binding constraints", "alternatives")
    plan.save(tmp_path / "plan.json")
    assert osp.Plan.load(tmp_path / "plan.json").workload.arrivals_per_s == 0.1
    before = osp.plan(case.profile, case.network, replace(workload(1.0), arrivals_per_s=None)).to_dict()
    assert "arrivals_per_s" not in before["workload"]
    assert not {"in_flight", "waiting", "stage_utilisation", "link_utilisation"} & before["prediction"].keys()
    assert osp.simulate(plan).stop_s > 0
    page = osp.report(plan, path=tmp_path / "report.html").read_text(encoding="utf-8")
    assert "0.1 requests per second, at most 8 in flight" in page
    assert f"{found.in_flight:.3g}" in page
    assert plan.export("llama.cpp").nodes == tuple(stage.node for stage in plan.stages)


def test_a_plan_after_a_loss_has_the_rate_of_the_one_before() -> None:
    case = roomy(3)
    running = osp.plan(case.profile, case.network, workload(0.1))
    after = osp.replanner(case.profile, case.network)(running, [running.stages[-1].node], [])
    assert after.workload.arrivals_per_s == 0.1
    assert prediction_of(after).total_s >= prediction_of(running).total_s


def test_memory_holds_all_requests_that_may_be_in_flight() -> None:
    case = roomy(1)
    layers = tuple(replace(one, kv_bytes_per_token=1) for one in case.profile.layers)
    profile = replace(case.profile, layers=layers)
    nodes = tuple(replace(node, memory_bytes=2000) for node in case.network.nodes)
    network = replace(case.network, nodes=nodes)
    few = osp.plan(profile, network, workload(0.01, micro_batches=2))
    held = prediction_of(few).stage_memory_bytes
    assert sum(held) == LAYERS * (10 + 2 * (PROMPT + NEW))
    with pytest.raises(osp.InfeasiblePlanError):
        osp.plan(profile, network, workload(0.01, micro_batches=200))
