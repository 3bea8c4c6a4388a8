"""Heuristic baselines without planning in time: the fastest plan started at once, or the next pass waited for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from orbitsplit._errors import InfeasiblePlanError
from orbitsplit._io.keyword_options import refuse_keywords, take_options
from orbitsplit._io.validation import quoted
from orbitsplit._network.network import Node
from orbitsplit._profiling.workload import Workload
from orbitsplit.leo._orbits.constellation import Constellation

from .contact_plan import Timetable
from .request import StrategyOptions, TimedRequest
from .strategies import Candidate, on_ground, on_satellite, split_at, timed_plan
from .task import Task, contact_plan_of, task_of
from .timed_plan import TimedPlan

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from orbitsplit._profiling.profile import ModelProfile

    from .request import RequestKeywords


def start_now(
    profile: ModelProfile,
    constellation: Constellation | Timetable,
    workload: Workload | None = None,
    request: TimedRequest | None = None,
    *,
    computers: Mapping[str, Node] | None = None,
    step_s: float = 10.0,
    **fields: Unpack[RequestKeywords],
) -> TimedPlan:
    """Return the heuristic baseline that starts the fastest plan at once, on the links that are up at the request.

    The node that has the result sends it down in its own next passes. Arguments are those of `plan_in_time`.

    Raises:
        InfeasiblePlanError: Nothing can start now, or complete in time.
        ValueError, TypeError: As `plan_in_time`, or `source` is a station.
    """
    request = _request("start_now", request, fields)
    task, begin_s = _task(profile, constellation, workload, request, computers, step_s)
    present = task.graph.earliest_delivery(task.source, task.source, task.input_bytes, begin_s)
    assert present is not None  # source and destination are the same
    outcomes = [on_satellite(task, task.source, begin_s), split_at(task, present, begin_s, looks_ahead=False)]
    found = [one for one in outcomes if isinstance(one, Candidate)]
    if not found:
        raise InfeasiblePlanError(f"nothing can start on {quoted(request.source)} now: {'; '.join(map(str, outcomes))}")
    best = min(found, key=lambda one: one.compute_s[1])
    return timed_plan(task, begin_s, best, "the fastest plan, started at once")


def wait_for_pass(
    profile: ModelProfile,
    constellation: Constellation | Timetable,
    workload: Workload | None = None,
    request: TimedRequest | None = None,
    *,
    computers: Mapping[str, Node] | None = None,
    step_s: float = 10.0,
    **fields: Unpack[RequestKeywords],
) -> TimedPlan:
    """Return the heuristic baseline that waits for the source's next pass and sends the input down then and later.

    If the fastest plan over satellites and station at the beginning of the pass completes earlier, it is returned.
    Arguments are those of `plan_in_time`.

    Raises:
        InfeasiblePlanError: There is no pass, no station can compute it, or not in time.
        ValueError, TypeError: As `plan_in_time`, or `source` is a station.
    """
    request = _request("wait_for_pass", request, fields)
    task, begin_s = _task(profile, constellation, workload, request, computers, step_s)
    first = task.contact_plan.cell(begin_s)
    down = task.graph.link_bytes_per_s[first:, task.source, task.ground]
    if not np.any(down):
        raise InfeasiblePlanError(
            f"no station is in contact with {quoted(request.source)} within {request.deadline_s:g} s"
        )
    pass_s = max(begin_s, float(task.contact_plan.edges_s[first + int(np.argmax(down > 0))]))
    present = task.graph.earliest_delivery(task.source, task.source, task.input_bytes, pass_s)
    assert present is not None  # source and destination are the same
    outcomes = [on_ground(task, server, pass_s) for server in task.servers]
    outcomes.append(split_at(task, present, pass_s, looks_ahead=False))
    found = [one for one in outcomes if isinstance(one, Candidate)]
    if not found:
        raise InfeasiblePlanError(
            f"waiting for a pass of {quoted(request.source)} fails: {'; '.join(map(str, outcomes))}"
        )
    best = min(found, key=lambda one: one.completion_s)
    return timed_plan(task, begin_s, best, "waited for the next pass")


def _request(function: str, request: TimedRequest | None, fields: Mapping[str, Any]) -> TimedRequest:
    keywords = dict(fields)
    request = take_options(function, "request", TimedRequest, request, keywords)
    refuse_keywords(function, keywords)
    return request


def _task(
    profile: ModelProfile,
    constellation: Constellation | Timetable,
    workload: Workload | None,
    request: TimedRequest,
    computers: Mapping[str, Node] | None,
    step_s: float,
) -> tuple[Task, float]:
    """Return the task without compression and without custody transfers between satellites, and its start."""
    contact_plan = contact_plan_of(constellation, request, step_s, None)
    task = task_of(profile, workload, contact_plan, request, computers, StrategyOptions(), uses_isl=False)
    if task.source == task.ground:
        raise ValueError(f"the source is the station {quoted(request.source)}, must be a satellite")
    return task, contact_plan.seconds(request.requested)
