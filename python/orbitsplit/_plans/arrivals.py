"""Requests that arrive at a rate: how many are in flight in steady state, and the mean seconds of each.

The model of docs/cost_model.md: with k requests in flight, each takes W(k) seconds, and the plan is one server whose
speed depends on k (a flow-equivalent server, Chandy, Herzog and Woo 1975). For Poisson arrivals the probability of k is
in proportion to the product of rate W(i) / i over i = 1..k, and Little's law gives the mean time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Halvings of an interval of seconds, to a part in 10^12 of it.
_HALVINGS = 40


@dataclass(frozen=True, slots=True)
class Step:
    """A token step of some rows through an idle chain: its round trip, and the occupancy of each resource."""

    round_trip_s: float
    occupancies_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Demand:
    """What one request asks of the resources of a plan: its stages, and its links where these are resources.

    Attributes:
        prompt_s: Occupancy of each resource by all chunks of a prompt.
        chunks: Into how many of them a prompt is divided.
        alone_s: Seconds of a prompt through an idle chain.
        spacing_s: Seconds from one prompt to the next at least: the longest occupancy, or more where no more prompts
            may be under way.
        return_s: Propagation of a lap, return included.
        steps: Token steps of a request, on average.
        step: A token step by its number of rows; None without steps.
        messages: The most messages with steps in flight.
        rows: The most rows of each.
    """

    prompt_s: tuple[float, ...]
    chunks: int
    alone_s: float
    spacing_s: float
    return_s: float
    steps: float
    step: Callable[[int], Step] | None
    messages: int
    rows: int

    @property
    def most_in_flight(self) -> int:
        """How many requests may be in flight; further ones wait."""
        return self.messages * self.rows

    def step_of(self, in_flight: float) -> Step:
        """Return the step of the rows that each message has; between two numbers of them seconds are in proportion."""
        assert self.step is not None
        rows = min(float(self.rows), max(1.0, in_flight / self.messages))
        lower = math.floor(rows)
        one = self.step(lower)
        if rows == lower:
            return one
        more, part = self.step(lower + 1), rows - lower
        return Step(
            one.round_trip_s + part * (more.round_trip_s - one.round_trip_s),
            tuple(a + part * (b - a) for a, b in zip(one.occupancies_s, more.occupancies_s, strict=True)),
        )

    def step_s(self, in_flight: int) -> float:
        """Return the seconds from one step of a request to its next beside these others, no prompt being under way."""
        if not self.steps:
            return 0.0
        step = self.step_of(in_flight)
        return max(step.round_trip_s, min(in_flight, self.messages) * max(step.occupancies_s))

    def request_s(self, in_flight: int) -> float:
        """Return W(k): the seconds of a request if, whenever one ends, another one begins, so that k are in flight.

        The prompts of the k - 1 others run in that time too, and hold up its steps: each by its spacing, as in a batch,
        or for as long as the steps stay behind it on the whole chain, where stages are idle behind a prompt.
        """
        others = in_flight - 1
        step_s = self.step_s(in_flight)
        idle_s = self.alone_s + self._joining_s(in_flight, step_s)
        least_s = idle_s + others * self.spacing_s + self.steps * step_s
        held_s = max(self.spacing_s, self._behind_prompt_s(in_flight, step_s))
        low, high = least_s, least_s + others * (held_s - self.spacing_s)
        if high - low <= 1e-12 * high:
            return low
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (
                (middle, high)
                if self._overlapping_s(others / middle, idle_s, step_s, held_s) > middle
                else (low, middle)
            )
        return high

    @property
    def precedence(self) -> float:
        """By what share longer requests hold each other up than if all parts of them took turns alike.

        Prompts go first, so whoever arrives during another's prompt shares the chain with all steps of it. For two
        requests this is exact; the share is that of two.
        """
        if self.most_in_flight == 1:
            return 0.0
        one_s, two_s = self.request_s(1), self.request_s(2)
        shared_s = self.steps * (self.step_s(2) - self.step_s(1))
        behind_s = self.spacing_s**2 / (2 * self.alone_s) if self.alone_s > 0 else 0.0
        return self.alone_s / one_s * max(0.0, shared_s + behind_s) / (two_s - one_s) if two_s > one_s else 0.0

    def steps_s(self, requests_s: Sequence[float]) -> list[float]:
        """Return the seconds from the first token to the last for each W(k) from k = 1 on, `requests_s`.

        That is all but the prompt and what that waits for: the prompts of others, of which it finds as many as there
        are with k - 1 in flight (the arrival theorem, Reiser and Lavenberg 1980), and steps in service.
        """
        found, waits_s = [], 0.0
        for k, request_s in enumerate(requests_s, 1):
            step_s = self.step_s(k)
            prompt_s = self.alone_s + waits_s + self._in_service_s(k, step_s)
            found.append(max(self.steps * step_s, request_s - prompt_s))
            share = min(1.0, k / request_s * self.spacing_s)
            waits_s = share * (waits_s + self.spacing_s / 2)  # of the one in service, half is left
        return found

    def _overlapping_s(self, rate: float, idle_s: float, step_s: float, held_s: float) -> float:
        """Return the seconds of a request if prompts come at random, so that the times behind them overlap."""
        share = rate * self.spacing_s
        if share >= 1:
            return math.inf
        free = (1 - share) * math.exp(-rate * (held_s - self.spacing_s))
        steps_s = self.steps * step_s / free if free > 0 else math.inf
        return idle_s + queueing_s(rate, self.spacing_s) + steps_s

    def _behind_prompt_s(self, in_flight: int, step_s: float) -> float:
        """Return for how long the steps of a request stand still while a prompt passes the whole chain.

        They are soon right behind it, or between two of its chunks, and a lap takes what these take on each resource.
        """
        if not self.steps:
            return self.spacing_s
        occupancies = self.step_of(in_flight).occupancies_s
        lap_s = self.return_s + sum(
            max(prompt / self.chunks, step) for prompt, step in zip(self.prompt_s, occupancies, strict=True)
        )
        return (self.alone_s + self.return_s) * (1 - min(1.0, step_s / lap_s))

    def _joining_s(self, in_flight: int, step_s: float) -> float:
        """Return for how long a request waits for what is in service, with its prompt and with its first step."""
        if not self.steps or in_flight == 1:
            return 0.0
        first_step_s = step_s / (2 * self.messages) if in_flight > self.messages else 0.0
        return self._in_service_s(in_flight, step_s) + first_step_s

    def _in_service_s(self, in_flight: int, step_s: float) -> float:
        """Return for how long a prompt waits for steps of others that are in service."""
        if not self.steps or in_flight == 1:
            return 0.0
        occupancies = self.step_of(in_flight).occupancies_s
        return sum(one / 2 * min(1.0, (in_flight - 1) * one / step_s) for one in occupancies)


@dataclass(frozen=True, slots=True)
class SteadyState:
    """What becomes of requests that arrive at a rate, on average.

    Attributes:
        request_s: Seconds of a request, from its arrival to its last token.
        first_token_s: Seconds until its first token.
        in_flight: Requests in flight.
        waiting: Requests that wait because as many as may be are in flight.
        utilisation: The part of the time for which each resource is busy.
    """

    request_s: float
    first_token_s: float
    in_flight: float
    waiting: float
    utilisation: tuple[float, ...]


def queueing_s(per_s: float, service_s: float) -> float:
    """Return how long an arrival waits for one server of constant service: Pollaczek and Khinchine's formula."""
    share = per_s * service_s
    return math.inf if share >= 1 else share * service_s / (2 * (1 - share))


def mean_in_flight(per_s: float, request_s: Callable[[int], float], most: int) -> tuple[float, float]:
    """Return how many requests are in flight on average, and how many more wait; infinite where more and more do.

    `request_s(k)` are the seconds of one if k are in flight; those beyond `most` wait. The sum grows with each of them.
    Requests are alike, so half as many wait as if their seconds were exponentially distributed (Allen and Cunneen).
    """
    weight, total, moment = 1.0, 1.0, 0.0
    for k in range(1, most + 1):
        growth = per_s * request_s(k) / k
        weight *= growth
        if weight > 1e100:  # keep the sums within the range of numbers
            weight, total, moment = 1.0, total / weight, moment / weight
        total += weight
        moment += k * weight
    if growth >= 1:
        return math.inf, math.inf
    # Beyond `most` the weights are a geometric series.
    tail = weight * growth / (1 - growth)
    total += tail
    return (moment + most * tail) / total, tail / (1 - growth) / total / 2


def mean_over_arrivals(per_s: float, requests_s: Sequence[float], values: Sequence[float]) -> float:
    """Return the mean of `values` over arrivals, one for each k that may be in flight, where W(k) is in `requests_s`.

    The states are those of `mean_in_flight`, and finite. Poisson arrivals make it k as often as it is k - 1 (PASTA,
    Wolff 1982); those that wait have the last value.
    """
    weight, total, moment, growth = 1.0, 0.0, 0.0, 0.0
    for k, (request_s, value) in enumerate(zip(requests_s, values, strict=True), 1):
        total += weight
        moment += weight * value
        growth = per_s * request_s / k
        weight *= growth
        if weight > 1e100:
            weight, total, moment = 1.0, total / weight, moment / weight
    tail = weight / (1 - growth)
    return (moment + tail * values[-1]) / (total + tail)


def capacity_per_s(demand: Demand) -> float:
    """Return the rate at which more and more requests wait."""
    if not demand.steps:
        return 1 / demand.spacing_s if demand.spacing_s > 0 else math.inf
    return demand.most_in_flight / demand.request_s(demand.most_in_flight)


def steady_state(demand: Demand, per_s: float) -> SteadyState | None:
    """Return what becomes of requests at a rate; None if the plan does not sustain it.

    Without steps prompts are served one after the other, so they wait for the slowest resource alone, whatever the
    number of resources (Avi-Itzhak 1965).
    """
    if per_s * demand.spacing_s >= 1:
        return None
    prompt_s = demand.alone_s + queueing_s(per_s, demand.spacing_s)
    if not demand.steps:
        busy = _utilisation(demand, per_s, per_s * prompt_s)
        return SteadyState(prompt_s, prompt_s, per_s * prompt_s, 0.0, tuple(busy))
    requests_s = [demand.request_s(k) for k in range(1, demand.most_in_flight + 1)]
    in_flight, waiting = mean_in_flight(per_s, lambda k: requests_s[k - 1], demand.most_in_flight)
    if not math.isfinite(in_flight):
        return None
    alone = per_s * requests_s[0]
    shared = min(float(demand.most_in_flight), alone + (1 + demand.precedence) * max(0.0, in_flight - alone))
    # The precedence of prompts lengthens the steps of others alone.
    steps_s = mean_over_arrivals(per_s, requests_s, demand.steps_s(requests_s)) + max(0.0, shared - in_flight) / per_s
    there = shared + waiting
    busy = _utilisation(demand, per_s, shared)
    return SteadyState(there / per_s, there / per_s - steps_s, shared, waiting, tuple(busy))


def _utilisation(demand: Demand, per_s: float, in_flight: float) -> list[float]:
    """Return how busy each resource is; rows of a message are those of the mean number in flight."""
    if not demand.steps:
        return [per_s * one for one in demand.prompt_s]
    rows = min(float(demand.rows), max(1.0, in_flight / demand.messages))
    occupancies = demand.step_of(max(1.0, in_flight)).occupancies_s
    return [
        min(1.0, per_s * (prompt + demand.steps * one / rows))
        for prompt, one in zip(demand.prompt_s, occupancies, strict=True)
    ]


def bottleneck(demand: Demand) -> int:
    """Return the index of the resource that is busy longest for each request when as many as may be are in flight."""
    occupancies: Sequence[float] = [0.0] * len(demand.prompt_s)
    if demand.steps:
        occupancies = demand.step_of(demand.most_in_flight).occupancies_s
    loads = [p + demand.steps * s / demand.rows for p, s in zip(demand.prompt_s, occupancies, strict=True)]
    return max(range(len(loads)), key=loads.__getitem__)
