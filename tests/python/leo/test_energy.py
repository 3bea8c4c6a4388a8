"""Energy as a limit: the charge followed second by second, eclipses, orbits, what starts later and what is refused."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

import orbitsplit as osp
from orbitsplit import leo
from orbitsplit.leo._scheduling.energy import Ledger, Load, loads_of
from tests.support.satellite_train import SVALBARD, first_contact, judged, profile, train, workload

POWER = leo.Power(busy_w=20.0, idle_w=3.0, transmit_w=8.0, average_w=9.0, battery_j=40_000.0)


def ledger(power: leo.Power = POWER, hours: float = 6.0) -> Ledger:
    fleet = train()
    return Ledger(fleet, leo.Times.of(fleet.epoch), 0.0, hours * 3600, {"sat-0": power})


def lowest(power: leo.Power, loads: list[Load], seconds: int) -> float:
    """Return the lowest charge from the request on, second by second."""
    fleet = train()
    lit = fleet.sunlit(leo.Times.span(fleet.epoch, fleet.epoch + timedelta(seconds=seconds), 1.0))[0]
    orbit = round(fleet.satellites[0].period_s)
    panels = power.average_w / float(np.mean(lit[:orbit]))
    charge = power.battery_j if power.charge_j is None else power.charge_j
    least = charge
    for second in range(seconds):
        taken = power.idle_w
        for load in loads:
            shared = max(0.0, min(second + 1, load.stop_s) - max(second, load.start_s)) / (load.stop_s - load.start_s)
            taken += shared * ((power.busy_w - power.idle_w) * load.busy_s + power.transmit_w * load.transmit_s)
        charge = min(power.battery_j, charge + (panels if lit[second] else 0.0) - taken)
        least = min(least, charge)
    return least


@pytest.mark.parametrize("start_s", [0.0, 1500.0, 3000.0, 4500.0, 6000.0])
def test_the_charge_is_what_a_walk_in_seconds_finds(start_s: float) -> None:
    length = 1500.0
    for battery in (10_000.0, 20_000.0, 30_000.0, 40_000.0):
        power = replace(POWER, battery_j=battery, charge_j=battery / 2)
        load = Load("sat-0", start_s, start_s + length, busy_s=length, transmit_s=100.0)
        orbit = train().satellites[0].period_s
        least = lowest(power, [load], int(start_s + length + orbit))
        short = ledger(power).shortfall([load])
        if abs(least) > 500.0:  # ten seconds of everything, and the edges of the eclipse
            assert (short is not None) == (least < 0), (battery, least, short)
        if short is not None:
            assert short.can_wait
            lacks = float(short.text.split("lack ")[1].split(" kJ")[0]) * 1e3
            assert lacks == pytest.approx(-least, abs=500.0)


def test_an_orbit_has_an_average() -> None:
    orbit = train().satellites[0].period_s
    most = (9.0 - 3.0) * orbit / 17.0
    books = ledger(replace(POWER, battery_j=1e9))
    assert books.shortfall([Load("sat-0", 0, 2000, busy_s=most * 0.999)]) is None
    short = books.shortfall([Load("sat-0", 0, 1000, busy_s=most / 2), Load("sat-0", 3000, 4000, busy_s=most * 0.51)])
    assert short is not None
    assert not short.can_wait
    assert "on average over an orbit of 5,6" in short.text
    assert "its limit is 9 W" in short.text
    # An orbit apart they are two orbits' work.
    apart = [Load("sat-0", 0, 1000, busy_s=most / 2), Load("sat-0", 1500 + orbit, 2500 + orbit, busy_s=most * 0.51)]
    assert books.shortfall(apart) is None
    assert books.shortfall([Load("sat-1", 0, 5000, busy_s=5000)]) is None  # no limit


def test_energy_of_a_plan_is_what_each_node_computes_and_sends() -> None:
    nodes = tuple(osp.Node(name, 500_000_000, slowdown=2.0) for name in ("sat-0", "sat-1"))
    network = osp.Network("two", nodes, (osp.Link("sat-0", "sat-1", 1e5, 0.1),))
    plan = osp.plan(profile(1.0, 100_000_000), network, workload(4))
    first, last = plan.stages
    spent = leo.energy_j(plan, {"sat-0": POWER, "sat-1": replace(POWER, busy_w=10.0)})
    # Of one sequence: layers at 2 s each, and 100 kB at 100 kB/s.
    assert spent == pytest.approx({"sat-0": 17 * 2 * first.stop + 8 * 1.0, "sat-1": 7 * 2 * (last.stop - last.start)})
    assert sum(load.busy_s for load in loads_of(plan, 0.0)) == pytest.approx(4 * 12)
    with pytest.raises(ValueError, match="no prediction"):
        leo.energy_j(osp.Plan.manual(cuts=[1], layers=4), {})
    assert leo.energy_j(plan, POWER) == leo.energy_j(plan, {stage.node: POWER for stage in plan.stages}) != {}
    for power, message in (("9 W", "power is '9 W', must be a Power"), ({"sat-0": 9}, "the power of 'sat-0' is 9")):
        with pytest.raises(TypeError, match=message):
            leo.energy_j(plan, power)  # type: ignore[arg-type]


def request(fleet: leo.Constellation, before_s: float = 4000.0) -> dict[str, Any]:
    at = first_contact(fleet, "sat-0").start - timedelta(seconds=before_s)
    return {"requested": at, "source": "sat-0", "input_bytes": 2e9, "output_bytes": 1e4, "deadline_s": 40_000.0}


def test_an_empty_battery_makes_work_start_later() -> None:
    fleet = train(count=1).served_by(replace(SVALBARD, node=None))
    given, model = request(fleet), profile(0.5)
    free = leo.plan_in_time(model, fleet, workload(60), **given)
    low = replace(POWER, battery_j=20_000.0, charge_j=3_000.0)
    later = leo.plan_in_time(model, fleet, workload(60), power=low, **given)
    assert free.waits_s == 0
    assert later.waits_s > 0
    assert judged(fleet, later, given, model) == pytest.approx(later.duration_s, abs=10)
    # 60 times 12 s at 17 W beyond idling, and the result at 8 W.
    assert later.energy_j["sat-0"] == pytest.approx(720 * 17 + 8 * 1e4 / 1.25e6, rel=1e-6)
    assert later.energy_per_inference_j == pytest.approx(later.energy_j["sat-0"] / 60)
    # As late as it is, a walk in seconds finds the charge above zero, and at the request itself below.
    begin = (later.compute_start - given["requested"]).total_seconds()
    for start, fits in ((begin, True), (0.0, False)):
        assert (_walk(fleet, low, given["requested"], start, 720.0) > -500) is fits


def _walk(fleet: leo.Constellation, power: leo.Power, begin: Any, start_s: float, busy_s: float) -> float:
    seconds = int(start_s + busy_s + fleet.satellites[0].period_s)
    lit = fleet.sunlit(leo.Times.span(begin, begin + timedelta(seconds=seconds), 1.0))[0]
    panels = power.average_w / float(np.mean(lit[: round(fleet.satellites[0].period_s)]))
    charge = least = power.charge_j or 0.0
    for second in range(seconds):
        taken = power.busy_w if start_s <= second < start_s + busy_s else power.idle_w
        charge = min(power.battery_j, charge + (panels if lit[second] else 0.0) - taken)
        least = min(least, charge)
    return least


def test_what_exceeds_the_average_is_refused_with_numbers() -> None:
    fleet = train(count=1).served_by(replace(SVALBARD, node=None))
    with pytest.raises(
        osp.InfeasiblePlanError, match=r"sat-0 would consume .* W on average over an orbit .* limit is 9 W"
    ):
        leo.plan_in_time(profile(1.0), fleet, workload(200), power=POWER, **request(fleet))


def test_a_satellite_without_energy_leaves_the_work_to_others() -> None:
    fleet = train(count=2)
    given = request(fleet) | {"input_bytes": 1e9}
    weak = {"sat-0": replace(POWER, average_w=6.0)}
    timed = leo.plan_in_time(profile(3.0), fleet, workload(20), power=weak, **given, satellites=["sat-0", "sat-1"])
    assert "sat-0" not in [stage.node for stage in timed.plan.stages]
    assert any("sat-0 would consume" in str(other.reason) for other in timed.alternatives)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"idle_w": 10.0}, "idle_w is 10.0, must be at most average_w, 9.0"),
        ({"busy_w": 1.0}, "busy_w is 1.0, must be at least idle_w, 3.0"),
        ({"charge_j": 5e4}, "charge_j is 50000.0, must be at most battery_j, 40000.0"),
        ({"battery_j": 0}, "battery_j is 0, must be > 0"),
        ({"transmit_w": float("nan")}, "transmit_w is nan, must be finite and at least 0"),
    ],
)
def test_nonsense_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(POWER, **changes)


@pytest.mark.parametrize("changes", [{"busy_w": "20"}, {"battery_j": None}, {"charge_j": "full"}, {"idle_w": True}])
def test_power_of_other_types_is_refused(changes: dict[str, Any]) -> None:
    ((name, value),) = changes.items()
    with pytest.raises(TypeError, match=f"{name} is {value!r}, must be a number"):
        replace(POWER, **changes)
