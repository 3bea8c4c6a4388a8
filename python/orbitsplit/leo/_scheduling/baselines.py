"""What one gets without planning in time: the quickest plan begun at once, or the next pass waited for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

from orbitsplit._errors import InfeasiblePlanError
from orbitsplit._network.network import Node
from orbitsplit._profiling.workload import Workload
from orbitsplit.leo._orbits.constellation import Constellation

from .contact_plan import Timetable
from .request import asked_of, table_of
from .strategies import Asked, Candidate, on_ground, on_satellite, split_at, timed_plan
from .timed_plan import TimedPlan

if TYPE_CHECKING:
    from orbitsplit._profiling.profile import ModelProfile


def start_now(
    profile: ModelProfile,
    constellation: Constellation | Timetable,
    workload: Workload | None = None,
    *,
    requested: datetime,
    source: str,
    input_bytes: float,
    output_bytes: float,
    destination: Sequence[str] | None = None,
    deadline_s: float = 86_400.0,
    step_s: float = 10.0,
    computers: Mapping[str, Node] | None = None,
) -> TimedPlan:
    """Return what one gets without planning in time: the quickest plan on the links there are, begun at once.

    Whatever node has the result then sends it down in its own next passes. Arguments as for `plan_in_time`.

    Raises:
        InfeasiblePlanError: Nothing can start now, or not be complete in time.
        ValueError, TypeError: As `plan_in_time`, or `source` is a station.
    """
    asked, begin_s = _plain(profile, constellation, workload, requested, source, destination, deadline_s, step_s,
                            (input_bytes, output_bytes), computers)  # fmt: skip
    carriage = asked.carrier.carry(asked.source, asked.source, asked.input_bytes, begin_s)
    assert carriage is not None  # it is there
    made = [on_satellite(asked, asked.source, begin_s), split_at(asked, carriage, begin_s, looks_ahead=False)]
    found = [one for one in made if isinstance(one, Candidate)]
    if not found:
        raise InfeasiblePlanError(f"nothing can start on {source!r} now: {'; '.join(str(one) for one in made)}")
    return timed_plan(asked, begin_s, min(found, key=lambda one: one.compute_s[1]), "the quickest plan, begun at once")


def wait_for_pass(
    profile: ModelProfile,
    constellation: Constellation | Timetable,
    workload: Workload | None = None,
    *,
    requested: datetime,
    source: str,
    input_bytes: float,
    output_bytes: float,
    destination: Sequence[str] | None = None,
    deadline_s: float = 86_400.0,
    step_s: float = 10.0,
    computers: Mapping[str, Node] | None = None,
) -> TimedPlan:
    """Return what one gets by waiting for the source's next pass: the input goes down then, and in its later passes.

    Where the quickest plan over satellites and station at the beginning of the pass is complete sooner, it is taken.
    Arguments as for `plan_in_time`.

    Raises:
        InfeasiblePlanError: There is no pass, no station can compute it, or not in time.
        ValueError, TypeError: As `plan_in_time`, or `source` is a station.
    """
    asked, begin_s = _plain(profile, constellation, workload, requested, source, destination, deadline_s, step_s,
                            (input_bytes, output_bytes), computers)  # fmt: skip
    down = asked.carrier.direct[asked.table.cell(begin_s) :, asked.source, asked.ground]
    if not np.any(down):
        raise InfeasiblePlanError(f"no station is in contact with {source!r} within {deadline_s:g} s")
    first = asked.table.cell(begin_s) + int(np.argmax(down > 0))
    pass_s = max(begin_s, float(asked.table.edges_s[first]))
    carriage = asked.carrier.carry(asked.source, asked.source, asked.input_bytes, pass_s)
    assert carriage is not None  # it is there
    made = [on_ground(asked, server, pass_s) for server in asked.servers]
    made.append(split_at(asked, carriage, pass_s, looks_ahead=False))
    found = [one for one in made if isinstance(one, Candidate)]
    if not found:
        raise InfeasiblePlanError(f"waiting for a pass of {source!r} does not help: {'; '.join(map(str, made))}")
    return timed_plan(asked, begin_s, min(found, key=lambda one: one.completion_s), "the next pass, waited for")


def _plain(
    profile: ModelProfile,
    constellation: Constellation | Timetable,
    workload: Workload | None,
    requested: datetime,
    source: str,
    destination: Sequence[str] | None,
    deadline_s: float,
    step_s: float,
    sizes: tuple[float, float],
    computers: Mapping[str, Node] | None,
) -> tuple[Asked, float]:
    """Return what is asked, without hand-overs from satellite to satellite, and when in seconds."""
    workload = Workload(prompt_tokens=profile.prompt_tokens) if workload is None else workload
    table = table_of(constellation, requested, deadline_s, step_s, None)
    asked = asked_of(profile, workload, table, (source, destination), sizes, computers, relays=False)
    if asked.source == asked.ground:
        raise ValueError(f"the source is the station {source!r}, must be a satellite")
    return asked, table.seconds(requested)
