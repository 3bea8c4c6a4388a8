"""Requests of a day: relayed generations by hand, the fewest hand-overs against all choices, energy for all of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

import orbitsplit as osp
from orbitsplit import LayerProfile, ModelProfile, PlanStage, Workload, leo
from orbitsplit._plans.plan import Plan
from orbitsplit.leo._scheduling.handovers import fewest_handovers
from orbitsplit.leo._scheduling.strategies import Candidate, Resumption
from tests.support.satellite_train import RATE, first_contact, judged, profile, train

TOKENS = 40
GENERATION = Workload(prompt_tokens=100, new_tokens=TOKENS)


def generating(token_s: float = 0.1, kv_bytes: int = 1000, weight_bytes: int = 20_000_000) -> ModelProfile:
    """Return a profile whose prompt takes 0.6 s and each token 6 * `token_s`, on a computer with slowdown 1."""
    toy = profile(seconds=0.1, weight_bytes=weight_bytes)
    layers = tuple(
        LayerProfile(layer.name, weight_bytes, kv_bytes, None, 10**9, 10**7, 0.1, token_s) for layer in toy.layers
    )
    return replace(toy, layers=layers)


def request(fleet: leo.Constellation, at: Any, **changes: Any) -> leo.TimedRequest:
    values = {"requested": at, "source": "sat-1", "input_bytes": 1e3, "output_bytes": 1e3, **changes}
    return leo.TimedRequest(**values)


# A generation that goes on on the ground


def test_a_generation_that_a_pass_interrupts_goes_on_on_the_ground() -> None:
    fleet, model = train(), generating()
    contact = first_contact(fleet, "sat-0")  # the first of the train to see the station
    asked = contact.start - timedelta(seconds=30)
    timed = leo.plan_in_time(model, fleet, GENERATION, request(fleet, asked))
    assert timed.strategy == "relayed"
    relay = timed.relay
    assert relay is not None
    assert [stage.node for stage in relay.plan.stages] == ["svalbard"]
    assert abs(relay.at - contact.start) < timedelta(seconds=1)
    # By hand: the prompt takes 2.4 s on board and a token as long, from then until the pass; then 0.6 s each.
    assert relay.tokens == 1 + int((30 - 2.4) / 2.4)
    moved = sum(transfer.bytes for transfer in timed.activation)
    assert moved == 6 * 1000 * (100 + relay.tokens)
    end_s = 30 + moved / RATE + (TOKENS - relay.tokens) * 0.6
    assert timed.duration_s == pytest.approx(end_s, abs=0.1)
    # The ground alone would begin with the prompt, and the satellite would compute until after that.
    others = {other.strategy: other.completion for other in timed.alternatives}
    assert others["ground, svalbard"] - timed.completion > timedelta(seconds=3)
    assert others["satellite, sat-1"] - timed.completion > timedelta(seconds=20)
    assert leo.TimedPlan.from_dict(timed.to_dict()) == timed
    # The satellite's part ends at the switch, not with the text, and has no link of its own that could close.
    table = leo.Timetable.of(fleet, asked, asked + timedelta(days=1))
    assert timed.valid_until == table.datetime(table.stop_s)
    assert timed.latest_start == timed.compute_start
    rows = str(timed).splitlines()
    assert any("sat-0[0:6]" in row and row.endswith(f"until {relay.at:%Y-%m-%d %H:%M:%S}") for row in rows)
    handed = f"handed over to svalbard[0:6] after {relay.tokens} tokens"
    assert any(handed in row and row.endswith(f"until {timed.compute_stop:%Y-%m-%d %H:%M:%S}") for row in rows)


@pytest.mark.parametrize("weight_bytes", [20_000_000, 120_000_000], ids=["one satellite", "two satellites"])
def test_a_relayed_generation_is_what_the_event_simulation_finds(weight_bytes: int) -> None:
    fleet, model = train(), generating(weight_bytes=weight_bytes)
    asked = first_contact(fleet, "sat-0").start - timedelta(seconds=40)
    one = request(fleet, asked)
    timed = leo.plan_in_time(model, fleet, GENERATION, one)
    assert timed.strategy == "relayed"
    assert len(timed.plan.stages) == (1 if weight_bytes == 20_000_000 else 2)
    fields = {"source": one.source, "input_bytes": one.input_bytes, "output_bytes": one.output_bytes}
    # The judge sees the station at whole seconds, so that a token more or less may be left to it.
    assert judged(fleet, timed, fields, model) == pytest.approx(timed.duration_s, abs=1.0 + 0.6)


def test_a_generation_whose_keys_and_values_are_too_large_begins_on_the_ground() -> None:
    fleet = train()
    asked = first_contact(fleet, "sat-0").start - timedelta(seconds=30)
    timed = leo.plan_in_time(generating(kv_bytes=300_000), fleet, GENERATION, request(fleet, asked))
    assert timed.strategy == "ground"
    assert timed.relay is None
    reasons = {other.strategy: other.reason for other in timed.alternatives}
    assert "keys and values are not on the ground" in str(reasons["relayed from sat-1 to svalbard"])


def test_a_handover_takes_its_time_within_the_pass() -> None:
    fleet, model = train(), generating()
    contact = first_contact(fleet, "sat-0")
    one = request(fleet, contact.start - timedelta(seconds=30))
    at_once, later = (leo.plan_in_time(model, fleet, GENERATION, one, handover_s=seconds) for seconds in (0.0, 2.0))
    assert later.strategy == "relayed"
    assert (later.completion - at_once.completion).total_seconds() == pytest.approx(2.0, abs=1e-3)
    # Longer than the pass: the station has lost sight of the satellite by then.
    never = leo.plan_in_time(model, fleet, GENERATION, one, handover_s=contact.duration_s + 60)
    assert never.strategy != "relayed"
    assert "a link closes" in str({other.strategy: other.reason for other in never.alternatives})
    with pytest.raises(ValueError, match="handover_s is -1"):
        leo.plan_in_time(model, fleet, GENERATION, one, handover_s=-1)


def test_a_generation_that_ends_before_a_pass_is_not_relayed() -> None:
    fleet = train()
    asked = first_contact(fleet, "sat-0").start - timedelta(minutes=30)
    timed = leo.plan_in_time(generating(), fleet, GENERATION, request(fleet, asked))
    assert timed.strategy == "satellite"
    reasons = {other.strategy: other.reason for other in timed.alternatives}
    assert reasons["relayed from sat-1 to svalbard"] == "sat-1 has generated all before a pass begins"


# The fewest hand-overs


def candidate(
    nodes: str, start_s: float, stop_s: float, completion_s: float, then: tuple[str, float] | None
) -> Candidate:
    plans = [Plan((PlanStage(name, 0, 4),), (), 4, Workload()) for name in (nodes, then[0] if then else nodes)]
    resumed = None if then is None else Resumption(plans[1], then[1], then[1], 1)
    return Candidate("satellite", plans[0], (start_s, stop_s), completion_s, stop_s, resumption=resumed)


def cost(options: Sequence[Sequence[Candidate]], chosen: Sequence[int]) -> tuple[int, int, float]:
    """Return waiting runs, hand-overs and the sum of completions of a choice, counted on the sorted runs."""
    picked = [candidates[k] for candidates, k in zip(options, chosen, strict=True)]
    runs = []
    for one in picked:
        node, then = one.plan.stages[0].node, one.resumption
        middle = one.compute_s[1] if then is None else then.at_s
        runs.append((one.compute_s[0], middle, node))
        if then is not None:
            runs.append((then.at_s, one.compute_s[1], then.plan.stages[0].node))
    runs.sort()
    waiting = sum(max(stop for _, stop, _ in runs[:k]) > runs[k][0] for k in range(1, len(runs)))
    handovers = sum(a[2] != b[2] for a, b in itertools.pairwise(runs))
    return waiting, handovers, sum(one.completion_s for one in picked)


def test_no_other_choice_has_fewer_handovers() -> None:
    r = np.random.default_rng(0)
    saved = waiting = 0
    for _ in range(300):
        begins = np.sort(r.uniform(0, 100, 5)).tolist()
        options = []
        for begin_s in begins:
            candidates = []
            for _ in range(int(r.integers(1, 5))):
                start_s = begin_s + float(r.choice([0.0, r.uniform(0, 60)]))  # now, or in a later pass
                stop_s = start_s + float(r.uniform(1, 10))
                then = (f"sat-{r.integers(3)}", float(r.uniform(start_s, stop_s))) if r.random() < 0.2 else None
                candidates.append(
                    candidate(f"sat-{r.integers(3)}", start_s, stop_s, stop_s + float(r.integers(3)), then)
                )
            options.append(candidates)
        found = cost(options, fewest_handovers(begins, options))
        every = [cost(options, chosen) for chosen in itertools.product(*(range(len(one)) for one in options))]
        assert found[:2] == min(every)[:2]
        assert found[2] == pytest.approx(min(every)[2])
        saved += found[1] < cost(options, [0] * 5)[1]
        waiting += found[0] > 0
    assert saved > 100
    assert waiting > 10


def test_requests_that_wait_for_the_same_pass_stay_on_one_satellite() -> None:
    fleet, model = train(), generating()
    contact = first_contact(fleet, "sat-0")
    asked = [request(fleet, contact.start - timedelta(minutes=m), source=f"sat-{m % 3}") for m in (51, 40, 32, 22)]
    table = leo.Timetable.of(fleet, asked[0].requested, contact.stop + timedelta(hours=1))
    alone = [leo.plan_in_time(model, table, GENERATION, one) for one in asked]
    assert len({timed.plan.stages[0].node for timed in alone}) == 3  # each on its source
    together = leo.plan_requests(model, table, GENERATION, asked)
    assert len({timed.plan.stages[0].node for timed in together}) == 1
    for one, other in zip(together, alone, strict=True):
        assert one.completion - other.completion < timedelta(seconds=1)
        assert one.requested == other.requested
    # Without slack every request keeps the plan that is the first by some milliseconds.
    exact = leo.plan_requests(model, table, GENERATION, asked, slack_s=0.0)
    assert all(one.completion <= other.completion for one, other in zip(exact, alone, strict=True))


def test_requests_are_returned_in_their_own_order() -> None:
    fleet, model = train(), generating()
    start = first_contact(fleet, "sat-0").start
    asked = [request(fleet, start - timedelta(minutes=m)) for m in (10, 40, 20)]
    plans = leo.plan_requests(model, fleet, GENERATION, asked)
    assert [timed.requested for timed in plans] == [one.requested for one in asked]


def test_satellites_have_the_energy_for_all_requests_together() -> None:
    fleet, model = train(), generating()
    contact = first_contact(fleet, "sat-0")
    asked = [request(fleet, contact.start - timedelta(minutes=m)) for m in (50, 45, 40)]
    table = leo.Timetable.of(fleet, asked[0].requested, contact.stop + timedelta(hours=14))
    # An orbit's energy beyond idling: enough for one generation of 96 s at 10 W more than idle, not for two.
    orbit_s = fleet.satellites[0].period_s
    power = leo.Power(busy_w=12, idle_w=2, transmit_w=0, average_w=2 + 1500 / orbit_s, battery_j=50_000)
    free = leo.plan_requests(model, table, GENERATION, asked)
    assert len({timed.plan.stages[0].node for timed in free}) == 1
    limited = leo.plan_requests(model, table, GENERATION, asked, power=power)
    spent = dict.fromkeys(fleet.names, 0.0)
    for timed in limited:
        for name, joules in timed.energy_j.items():
            spent[name] += joules
    assert max(spent.values()) < 1500  # 980 J each: one for each satellite
    assert sum(joules > 0 for joules in spent.values()) > 1
    nothing = replace(power, average_w=2.001)
    unserved = fleet.stations[0]
    grounded = leo.Timetable.of(
        replace(fleet, stations=(replace(unserved, node=None),)), asked[0].requested, contact.stop
    )
    with pytest.raises(osp.InfeasiblePlanError, match=r"request 0: .*W on average"):
        leo.plan_requests(model, grounded, GENERATION, asked, power=nothing)


def test_what_is_refused() -> None:
    fleet, model = train(), generating()
    one = request(fleet, fleet.epoch)
    with pytest.raises(ValueError, match="requests is empty"):
        leo.plan_requests(model, fleet, GENERATION, [])
    with pytest.raises(TypeError, match="requests"):
        leo.plan_requests(model, fleet, GENERATION, [one, "another"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="slack_s is -1"):
        leo.plan_requests(model, fleet, GENERATION, [one], slack_s=-1)
    short = replace(one, deadline_s=60.0)
    with pytest.raises(osp.InfeasiblePlanError, match="request 1: no result in 60 s"):
        leo.plan_requests(model, fleet, GENERATION, [one, replace(short, requested=one.requested + timedelta(hours=1))])
