"""Where "do not split" is the answer: over the links, the hops, the resolution, and the wait for a contact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from orbitsplit._planner.problem import evaluate

from . import strategies
from .charts import Chart, Map, Values
from .published import DOWNLINKS, RESOLUTIONS
from .setup import Setup

ISL_GBIT = (0.01, 0.03, 0.1, 0.2, 0.5, 1.0, 2.5, 10.0, 100.0)
WAITS_S = tuple(float(wait) for wait in range(0, 301, 15))
# A contact further away than this is another day's.
_LONGEST_WAIT_S = 1e5


def over_isl_and_hops(setup: Setup, resolution: str) -> Map:
    """Return the planned split's delay over pipelined ground-only's, by rate between satellites and hops to contact."""
    hops = tuple(range(len(setup.satellites)))
    setup = setup.varied(image=RESOLUTIONS[resolution])
    return Map(
        f"break_even_isl_hops_{resolution}",
        f"{setup.profile.model}, {resolution}: planned split / pipelined ground-only",
        "rate between satellites, Gbit/s",
        "hops from the camera to the satellite in contact",
        ISL_GBIT,
        tuple(str(count) for count in hops),
        tuple(
            tuple(_ratio(setup.varied(hops=count, isl_gbit=rate), strategies.GROUND_PIPELINED) for rate in ISL_GBIT)
            for count in hops
        ),
        (f"Downlink {setup.downlink_bytes_per_s * 8e-9:g} Gbit/s. Without hops the rate matters to the split alone.",),
    )


def over_resolution_and_downlink(setup: Setup) -> Map:
    """Return the planned split's delay over the fair ground-only's, by resolution and downlink."""
    return Map(
        "break_even_resolution_downlink",
        f"{setup.profile.model}: planned split / pipelined ground-only without relay hops",
        "downlink, Gbit/s",
        "resolution of the images",
        DOWNLINKS,
        tuple(RESOLUTIONS),
        tuple(
            tuple(_ratio(setup.varied(image=image, downlink_gbit=rate), strategies.GROUND_FAIR) for rate in DOWNLINKS)
            for image in RESOLUTIONS.values()
        ),
    )


@dataclass(frozen=True, slots=True)
class Line:
    """The resources that every batch passes in turn: occupancy and then latency of each; which one is the downlink."""

    occupancy_s: tuple[float, ...]
    latency_s: tuple[float, ...]
    downlink: int

    def delay_s(self, batches: int, wait_s: float) -> float:
        """Return when the last batch has passed all resources if the downlink opens after `wait_s`."""
        return flow_s(self.occupancy_s, self.latency_s, batches, gate=self.downlink, opens_s=wait_s)


def over_waiting(setup: Setup) -> Chart:
    """Return delay against the wait until the satellite in contact sees the ground."""
    split = split_line(setup)
    lines = {name: ground_line(setup.varied(image=image)) for name, image in RESOLUTIONS.items()}
    series: dict[str, Values] = {
        f"ground-only, {name}": tuple(line.delay_s(setup.batches, wait) for wait in WAITS_S)
        for name, line in lines.items()
    }
    series["planned split, any resolution"] = tuple(split.delay_s(setup.batches, wait) for wait in WAITS_S)
    notes = []
    for name, line in lines.items():
        wait = break_even_wait_s(split, line, setup.batches)
        notes.append(
            f"{name}: the split is faster " + ("without a wait" if wait == 0 else f"from a wait of {wait:.1f} s")
        )
    return Chart(
        "break_even_waiting",
        f"{setup.profile.model}: while the ground is out of sight, satellites can compute",
        "wait for the contact, s",
        "delay of all batches, s",
        WAITS_S,
        series,
        (*notes, "Ground-only is pipelined, and relayed to the satellite in contact before it is in contact."),
    )


def on_server_s(setup: Setup) -> float:
    """Return the seconds of a batch on the server."""
    return float(setup.problem_with_server().layer_time_s[setup.server_index].sum())


def ground_line(setup: Setup, compute_s: float | None = None) -> Line:
    """Return pipelined ground-only: relays, the downlink, the server; `compute_s` is `on_server_s` if known."""
    compute_s = on_server_s(setup) if compute_s is None else compute_s
    isl_s = (setup.raw_bytes / setup.isl_bytes_per_s,) * setup.hops
    occupancy = (*isl_s, setup.raw_bytes / setup.downlink_bytes_per_s, compute_s)
    return Line(occupancy, (*(setup.isl_latency_s,) * setup.hops, setup.downlink_latency_s, 0.0), setup.hops)


def split_line(setup: Setup) -> Line:
    """Return the planned split: input, stages and the links between them, the result."""
    problem, stages = setup.problem(), strategies.planned(setup).stages
    result = evaluate(problem, stages)
    assert problem.egress is not None
    down_s = float(problem.egress.latency_s[stages[-1].node])
    occupancy = [result.ingress_s, result.stage_s[0]]
    for link_s, stage_s in zip(result.link_s, result.stage_s[1:], strict=True):
        occupancy += [link_s, stage_s]
    # All propagation is counted before the result goes down: the end does not depend on which link has it.
    latency = (*(0.0,) * (len(occupancy) - 1), result.latency_s - down_s, down_s)
    return Line((*occupancy, result.egress_s), latency, len(occupancy))


def flow_s(occupancy: Sequence[float], latency: Sequence[float], jobs: int, *, gate: int, opens_s: float) -> float:
    """Return when the last job has passed all resources in turn, of which `gate` opens at `opens_s`."""
    free = [0.0] * len(occupancy)
    free[gate] = opens_s
    at = 0.0
    for _ in range(jobs):
        at = 0.0
        for k, busy in enumerate(occupancy):
            free[k] = max(at, free[k]) + busy
            at = free[k] + latency[k]
    return at


def break_even_wait_s(split: Line, ground: Line, batches: int) -> float:
    """Return the shortest wait from which the split is no later than ground-only, within a ms; infinite if never."""

    def is_faster(wait_s: float) -> bool:
        return split.delay_s(batches, wait_s) <= ground.delay_s(batches, wait_s)

    if is_faster(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while not is_faster(high):
        low, high = high, 2 * high
        if high > _LONGEST_WAIT_S:
            return math.inf
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if is_faster(middle) else (middle, high)
    return high


def _ratio(setup: Setup, ground: str) -> float | None:
    split, alone = strategies.STRATEGIES[strategies.SPLIT](setup).delay_s, strategies.STRATEGIES[ground](setup).delay_s
    return None if split is None or alone is None else split / alone
