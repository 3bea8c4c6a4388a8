"""Decide when and where the images of a satellite are classified over a day: on board, on the ground, or on both.

Four satellites of a ring with Jetson computers pass a station that has a GPU. At several times of the day one of them
has taken 3,200 images. `plan_in_time` decides where they are classified and in which passes files are transferred, so
that the classes reach the ground first. Two heuristic baselines are printed for comparison: start at once, and wait for
the next pass. Positions are SGP4's, layers are counted from the configuration of a vision transformer. Needs the extras
`leo` and `models`.

    python examples/day_in_orbit.py
"""

from __future__ import annotations

from datetime import timedelta

from transformers import ViTConfig

import orbitsplit as osp
from orbitsplit import leo

MICRO_BATCHES, BATCH = 200, 16
INPUT_BYTES, OUTPUT_BYTES = MICRO_BATCHES * BATCH * 1e6, 100e3
SATELLITES = ("sat-0", "sat-1", "sat-2", "sat-3")
# Minutes after the epoch: shortly before a pass, within it, and hours before the next.
REQUESTS_MIN = (10, 25, 6 * 60)


def fleet_and_station() -> leo.Constellation:
    """Return twelve satellites in one plane at 500 km, with 100 Mbit/s down to a server in Munich."""
    equipment = leo.Equipment(
        leo.device("jetson-agx-orin-15w").node("jetson"),
        isl=leo.FixedRate("0.5 Gbit/s"),
        downlink=leo.FixedRate("100 Mbit/s"),
    )
    ring = leo.walker_delta(12, 1, 0, altitude_km=500, inclination_deg=53, equipment=equipment)
    server = leo.device("rtx-4070-ti").node("server")
    return ring.served_by(leo.Station("munich", 48.15, 11.57, 0.5, mask_deg=10, node=server))


def main() -> None:
    """Print the passes of the day, and for each request when three strategies have its result on the ground."""
    fleet = fleet_and_station()
    for contact in fleet.contacts(fleet.epoch, fleet.epoch + timedelta(days=1)):
        if contact.satellite == SATELLITES[0]:
            print(f"{contact.satellite} passes munich at {contact.start:%H:%M} for {contact.duration_s:.0f} s")

    profile = osp.profile(ViTConfig(), batch_size=BATCH)
    workload = osp.Workload(micro_batches=MICRO_BATCHES, prompt_tokens=profile.prompt_tokens, batch_size=BATCH)
    # Links of two days, so that a request late on the first day still has passes before it.
    table = leo.Timetable.of(fleet, fleet.epoch, fleet.epoch + timedelta(days=2), step_s=30, satellites=SATELLITES)
    for minutes in REQUESTS_MIN:
        requested = fleet.epoch + timedelta(minutes=minutes)
        request = leo.TimedRequest(
            requested=requested, source=SATELLITES[0], input_bytes=INPUT_BYTES, output_bytes=OUTPUT_BYTES
        )
        print(f"requested at {requested:%H:%M}:")
        for plan in (leo.plan_in_time, leo.start_now, leo.wait_for_pass):
            timed = plan(profile, table, workload, request)
            print(f"  {plan.__name__}: {timed.reason}; complete after {timed.duration_s / 60:.1f} min")


if __name__ == "__main__":
    main()
