"""What satellites consumed in a flight, held against their supply."""

from __future__ import annotations

from collections.abc import Mapping

from orbitsplit._plans.trace import Trace
from orbitsplit.leo import Power, Timetable
from orbitsplit.leo._orbits.times import Times
from orbitsplit.leo._scheduling.energy import Ledger, Load, powers_of

_BUSY = ("compute", "encode", "decode")


def energy_of(
    trace: Trace, contact_plan: Timetable, power: Power | Mapping[str, Power] | None
) -> tuple[dict[str, float], str | None]:
    """Return what each satellite with a power limit consumed beyond idling, and why its supply would not suffice."""
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
    ledger = Ledger(contact_plan.constellation, Times.of(contact_plan.start), 0.0, contact_plan.stop_s, powers)
    shortfall = ledger.shortfall(loads)
    return ledger.joules(loads), None if shortfall is None else shortfall.text
