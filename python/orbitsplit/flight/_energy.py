"""What satellites consumed in a flight, held against their supply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orbitsplit._plans.trace import Trace
from orbitsplit.leo import Power, TimedPlan, Timetable
from orbitsplit.leo._orbits.times import Times
from orbitsplit.leo._scheduling.energy import Ledger, Load, powers_of
from orbitsplit.leo._scheduling.relayed import loads_until

_BUSY = ("compute", "encode", "decode")


def energy_of(
    trace: Trace,
    contact_plan: Timetable,
    plans: Sequence[TimedPlan],
    computed_s: Sequence[tuple[float, float]],
    power: Power | Mapping[str, Power] | None,
) -> tuple[dict[str, float], str | None]:
    """Return what each satellite with a power limit consumed beyond idling, and why its supply would not suffice.

    A generation that was relayed has no events in the trace: satellites count as busy as its plan says, from when it
    began (`computed_s`) to its hand-over.
    """
    powers = powers_of(power, contact_plan.satellites)
    if not powers:
        return {}, None
    loads = [
        Load(event.node, event.start_s, event.stop_s, busy_s=event.duration_s)
        for event in trace.events
        if event.kind in _BUSY
    ]
    assert trace.flight is not None  # that of a flight
    loads += [
        Load(sent.source, sent.start_s, sent.stop_s, transmit_s=sent.stop_s - sent.start_s)
        for sent in trace.flight.transmissions
    ]
    for k, (timed, (start_s, stop_s)) in enumerate(zip(plans, computed_s, strict=True)):
        if timed.relay is not None:
            switched_s = min([one.stop_s for one in trace.flight.handovers if one.request == k], default=stop_s)
            loads += loads_until(timed.plan, start_s, switched_s)
    ledger = Ledger(contact_plan.constellation, Times.of(contact_plan.start), 0.0, contact_plan.stop_s, powers)
    shortfall = ledger.shortfall(loads)
    return ledger.joules(loads), None if shortfall is None else shortfall.text
