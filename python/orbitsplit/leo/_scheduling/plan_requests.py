"""Planning many requests in time, over days: each as early as alone, with the fewest hand-overs in total."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from orbitsplit._errors import InfeasiblePlanError
from orbitsplit._io.keyword_options import refuse_keywords, take_options
from orbitsplit._io.validation import tuple_of
from orbitsplit._network.network import Node
from orbitsplit._profiling.workload import Workload
from orbitsplit.leo._orbits.constellation import Constellation
from orbitsplit.leo._orbits.times import Times
from orbitsplit.leo._orbits.validation import check_not_negative

from .contact_plan import Timetable
from .energy import Ledger, Load, Power, powers_of
from .handovers import fewest_handovers
from .plan_in_time import Search, options_of
from .request import StrategyOptions, TimedRequest
from .strategies import Candidate
from .task import Task, contact_plan_of, task_of
from .timed_plan import TimedPlan

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from orbitsplit._profiling.profile import ModelProfile

    from .request import OptionKeywords


def plan_requests(
    profile: ModelProfile,
    constellation: Constellation | Timetable,
    workload: Workload | None = None,
    requests: Sequence[TimedRequest] = (),
    *,
    slack_s: float = 1.0,
    options: StrategyOptions | None = None,
    satellites: Sequence[str] | None = None,
    computers: Mapping[str, Node] | None = None,
    power: Power | Mapping[str, Power] | None = None,
    step_s: float = 10.0,
    **fields: Unpack[OptionKeywords],
) -> tuple[TimedPlan, ...]:
    """Plan several requests of one model, in the order of `requests`, so that a pipeline needs the fewest hand-overs.

    Each completes as early as `plan_in_time` finds for it alone, or at most `slack_s` later. Of all such choices, one
    is taken in which the fewest runs overlap (the pipeline runs one plan at a time: the later one waits), of those one
    with the fewest hand-overs from stages to other stages, and of those one with the earliest completions on average.

    Satellites have the energy of `power` for all requests together: what it does not suffice for starts later.

    Args:
        requests: When and where inputs are, in any order; all have the same workload.
        slack_s: Completions that differ by no more seconds are equally good.

    The other arguments are those of `plan_in_time`.

    Raises:
        InfeasiblePlanError: A request cannot be completed in time; the message names it.
        TypeError, ValueError: As `plan_in_time`, or there is no request.
    """
    requests = tuple_of("requests", requests, TimedRequest)
    if not requests:
        raise ValueError("requests is empty, at least one is needed")
    check_not_negative("slack_s", slack_s)
    keywords: dict[str, Any] = {**fields}
    options = options_of(profile, take_options("plan_requests", "options", StrategyOptions, options, keywords))
    refuse_keywords("plan_requests", keywords)
    contact_plan = _contact_plan(constellation, requests, step_s, satellites)
    tasks = [task_of(profile, workload, contact_plan, request, computers, options) for request in requests]
    # One ledger from the first request on: what an early request consumes, a later one lacks.
    first_s = min(contact_plan.seconds(request.requested) for request in requests)
    powers = powers_of(power, contact_plan.satellites)
    ledger = Ledger(contact_plan.constellation, Times.of(contact_plan.start), first_s, contact_plan.stop_s, powers)
    searches = [_search(task, request, ledger) for task, request in zip(tasks, requests, strict=True)]
    order = sorted(range(len(requests)), key=lambda k: searches[k].begin_s)
    chosen = _chosen([searches[k] for k in order], [f"request {k}" for k in order], slack_s)
    plans = {k: searches[k].timed(candidate) for k, candidate in zip(order, chosen, strict=True)}
    return tuple(plans[k] for k in range(len(requests)))


def _contact_plan(
    constellation: Constellation | Timetable,
    requests: Sequence[TimedRequest],
    step_s: float,
    satellites: Sequence[str] | None,
) -> Timetable:
    """Return the links from the first request to the last deadline, or the timetable that is given."""
    first = min(requests, key=lambda request: request.requested)
    stop = max(request.requested + timedelta(seconds=request.deadline_s) for request in requests)
    whole = replace(first, deadline_s=(stop - first.requested).total_seconds())
    contact_plan = contact_plan_of(constellation, whole, step_s, satellites)
    for request in requests:
        contact_plan_of(contact_plan, request, step_s, satellites)  # refuses what is outside of it
    return contact_plan


def _search(task: Task, request: TimedRequest, ledger: Ledger) -> Search:
    begin_s = task.contact_plan.seconds(request.requested)
    return Search(task, ledger, begin_s, min(begin_s + request.deadline_s, task.contact_plan.stop_s))


def _chosen(searches: Sequence[Search], names: Sequence[str], slack_s: float) -> list[Candidate]:
    """Return the candidate of each request, in order of time.

    Energy is shared: where what was chosen exceeds it, the candidates of the first request for which it does not
    suffice are found anew, beside what those before it consume.
    """
    options = [_equally_good(search, name, slack_s) for search, name in zip(searches, names, strict=True)]
    begins_s = [search.begin_s for search in searches]
    for _ in range(len(searches) + 1):
        picked = fewest_handovers(begins_s, options)
        chosen = [candidates[k] for candidates, k in zip(options, picked, strict=True)]
        short = _first_short(searches, chosen)
        if short is None:
            return chosen
        # Those before it are kept: their energy is spent.
        options[:short] = [[candidate] for candidate in chosen[:short]]
        spent = tuple(load for candidate in chosen[:short] for load in candidate.all_loads())
        later = replace(searches[short], spent=spent)
        options[short] = _equally_good(later, names[short], slack_s)
    raise InfeasiblePlanError(f"the satellites lack the energy for {len(searches)} requests together")


def _equally_good(search: Search, name: str, slack_s: float) -> list[Candidate]:
    try:
        found = search.candidates()
    except InfeasiblePlanError as error:
        raise InfeasiblePlanError(f"{name}: {error}") from None
    best_s = min(candidate.completion_s for candidate in found)
    return [candidate for candidate in found if candidate.completion_s <= best_s + slack_s]


def _first_short(searches: Sequence[Search], chosen: Sequence[Candidate]) -> int | None:
    """Return the first request for which the energy does not suffice beside those before it."""
    spent: tuple[Load, ...] = ()
    for k, candidate in enumerate(chosen):
        spent += candidate.all_loads()
        if searches[0].ledger.shortfall(spent) is not None:
            return k
    return None
