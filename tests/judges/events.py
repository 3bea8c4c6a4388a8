"""Executes a plan in time second by second: what is in view, at which rate, what has arrived and been computed.

Written to be obviously right, and shares no code with the planner: it takes positions of satellites from the
constellation and nothing else; what a station sees, which satellites see each other, ranges, rates, delays, transfers
and computation are derived here. A plan is a list of orders ("from then on, send what you have along this path, until
it closes or you get another order") and of stages; the judge follows them and returns when the result is on the ground.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise

import numpy as np

from orbitsplit import ModelProfile, leo

LIGHT_KM_PER_S = 299792.458
EARTH_KM = 6378.137
# A transfer is over when less than a byte is left; sums of a million floats are off by less.
LEFT = 1.0

Rate = Callable[[float], float]


@dataclass(frozen=True)
class Task:
    """The request of the planner, and the rates of links by range in km."""

    profile: ModelProfile
    source: str
    input_bytes: float
    output_bytes: float
    isl: Rate
    down: Rate
    up: Rate
    ratios: Mapping[str, float]


class Sky:
    """Positions each half second after a whole one, and what follows from them."""

    def __init__(self, constellation: leo.Constellation, start: datetime, seconds: int) -> None:
        self.constellation, self.start = constellation, start
        middles = leo.Times.span(start + timedelta(seconds=0.5), start + timedelta(seconds=seconds + 0.5), 1.0)
        fixed = constellation.positions(middles, frame="earth_fixed")
        self.places: dict[str, np.ndarray] = dict(zip(constellation.names, fixed, strict=True))
        self.stations = {station.name: station for station in constellation.stations}
        self.seconds = seconds

    def km(self, a: str, b: str, second: int) -> float:
        """Return the distance of two satellites or stations."""
        return float(np.linalg.norm(self._place(a, second) - self._place(b, second)))

    def is_seen(self, a: str, b: str, second: int) -> bool:
        """Return whether a station sees a satellite above its mask, or satellites each other above the air."""
        if a in self.stations or b in self.stations:
            station, satellite = (a, b) if a in self.stations else (b, a)
            return self._elevation_deg(station, satellite, second) >= self.stations[station].mask_deg
        start, end = self._place(a, second), self._place(b, second)
        lowest = min(float(np.linalg.norm(start + (end - start) * part)) for part in np.linspace(0, 1, 101))
        return lowest >= EARTH_KM + 80

    def _place(self, name: str, second: int) -> np.ndarray:
        if name in self.stations:
            return self._ellipsoid(name)[0]
        return self.places[name][second]

    def _ellipsoid(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return a station's position on WGS84 and its zenith."""
        station = self.stations[name]
        latitude, longitude = math.radians(station.latitude_deg), math.radians(station.longitude_deg)
        a, b = EARTH_KM, EARTH_KM * (1 - 1 / 298.257223563)
        curvature = a**2 / math.hypot(a * math.cos(latitude), b * math.sin(latitude))
        zenith = np.array(
            [
                math.cos(latitude) * math.cos(longitude),
                math.cos(latitude) * math.sin(longitude),
                math.sin(latitude),
            ]
        )
        surface = curvature * zenith * np.array([1, 1, (b / a) ** 2])
        return surface + station.altitude_km * zenith, zenith

    def _elevation_deg(self, station: str, satellite: str, second: int) -> float:
        place, zenith = self._ellipsoid(station)
        beam = self.places[satellite][second] - place
        return 90 - math.degrees(math.acos(float(beam @ zenith) / float(np.linalg.norm(beam))))


class Judge:
    """One execution; times are seconds after the request."""

    def __init__(self, sky: Sky, task: Task, timed: leo.TimedPlan) -> None:
        self.sky, self.task, self.timed = sky, task, timed

    def completion(self) -> datetime:
        """Return when the result is on the ground; fail if it never is.

        Two concurrent plans may not need the same link or antenna at once.
        """
        timed, task, concurrent = self.timed, self.task, self.timed.concurrent
        if concurrent is not None:
            own, other = (part.plan.workload.micro_batches for part in (timed, concurrent))
            if len(concurrent.plan.stages) > 1:
                assert all(len(order.path) == 2 for order in timed.input), "links between satellites are taken"
            assert all(order.start >= timed.input[-1].stop for order in concurrent.result), "the link down is taken"
            return max(
                self.of_part(replace(timed, concurrent=None), own / (own + other)),
                self.of_part(concurrent, other / (own + other)),
            )
        count = timed.plan.workload.micro_batches
        arrivals = self.arrivals(timed.input, task.source, task.input_bytes, 0.0, count)
        if timed.strategy in ("ground", "shared"):
            assert len(timed.plan.stages) == 1
            done = self.served(self.stage_s(0), arrivals)
        elif timed.strategy == "deferred":
            first, rest = self.stage_s(0), self.stage_s(1)
            made = max(arrivals[-1], self.after(timed.compute_start)) + count * first
            size = count * self.cut_bytes(0)
            custodian = timed.plan.stages[0].node
            done = self.served(rest, self.arrivals(timed.activation, custodian, size, made, count))
        elif timed.relay is not None:
            done = self.relayed(timed.relay, max(arrivals[-1], self.after(timed.compute_start)))
        else:
            begin = max(arrivals[-1], self.after(timed.compute_start))
            done = self.chained([begin] * count)
        last = timed.plan.stages[-1].node
        result = self.arrivals(timed.result, last, task.output_bytes, done, 1)
        return timed.requested + timedelta(seconds=result[-1])

    def relayed(self, relay: leo.Relay, begin: float) -> float:
        """Return when the last token is there that satellites leave to a station.

        They make a token after the other until all of them see the station, which then gets the keys and values of all
        tokens so far, prompt included.
        """
        workload, (ground,) = self.timed.plan.workload, relay.plan.stages
        satellites = [stage.node for stage in self.timed.plan.stages]
        at, tokens = self.chained([begin]), 1
        second = int(at)
        while not all(self.rate((name, ground.node), second) > 0 for name in satellites):
            second += 1
            assert second < self.sky.seconds, f"{ground.node} never sees {satellites}"
        opening = max(at, float(second))
        while (after := self.token(at)) <= opening:
            at, tokens = after, tokens + 1
        assert tokens < workload.new_tokens, "the satellites make all tokens"
        length = workload.prompt_tokens + tokens
        size = sum(layer.kv_bytes_per_token * length for layer in self.task.profile.layers)
        (there,) = self.arrivals(self.timed.activation, satellites[-1], size, opening, 1)
        whole = ground.slowdown * sum(layer.decode_s or 0.0 for layer in self.task.profile.layers)
        return there + (workload.new_tokens - tokens) * whole

    def token(self, at: float) -> float:
        """Return when the satellites have made a further token: it passes all of them, and goes back to the first."""
        stages, profile = self.timed.plan.stages, self.task.profile
        for k, stage in enumerate(stages):
            at += stage.slowdown * sum(layer.decode_s or 0.0 for layer in profile.layers[stage.start : stage.stop])
            if k + 1 < len(stages):
                after = stages[k + 1].node
                at = self.sent(stage.node, after, self.cut_bytes(k) / profile.prompt_tokens, at)
                at += self.sky.km(stage.node, after, int(at)) / LIGHT_KM_PER_S
        return at + self.sky.km(stages[-1].node, stages[0].node, int(at)) / LIGHT_KM_PER_S

    def of_part(self, timed: leo.TimedPlan, fraction: float) -> datetime:
        """Execute a plan for a part of the micro-batches."""
        task = self.task
        sizes = {"input_bytes": fraction * task.input_bytes, "output_bytes": fraction * task.output_bytes}
        return Judge(self.sky, replace(task, **sizes), timed).completion()

    def after(self, when: datetime) -> float:
        return (when - self.timed.requested).total_seconds()

    def stage_s(self, k: int) -> float:
        """Return the seconds of a stage for one micro-batch."""
        stage = self.timed.plan.stages[k]
        layers = self.task.profile.layers[stage.start : stage.stop]
        return stage.slowdown * sum(layer.prefill_s or 0.0 for layer in layers)

    def cut_bytes(self, k: int) -> float:
        """Return the bytes after a stage, of one micro-batch, encoded."""
        profile, codec = self.task.profile, self.timed.plan.stages[k].codec
        raw = profile.cut_bytes_per_token * profile.prompt_tokens * profile.batch_size
        return raw / (1.0 if codec is None else self.task.ratios[codec])

    @staticmethod
    def served(each_s: float, arrivals: Sequence[float]) -> float:
        free = 0.0
        for arrival in arrivals:
            free = max(free, arrival) + each_s
        return free

    def chained(self, begins: Sequence[float]) -> float:
        """Return when the last micro-batch leaves the last stage: nodes and links serve one after the other."""
        stages, ready = self.timed.plan.stages, list(begins)
        for k, stage in enumerate(stages):
            free, link_free, later = 0.0, 0.0, []
            for arrival in ready:
                free = max(free, arrival) + self.stage_s(k)
                if k == len(stages) - 1:
                    later.append(free)
                    continue
                link_free = self.sent(stage.node, stages[k + 1].node, self.cut_bytes(k), max(free, link_free))
                km = self.sky.km(stage.node, stages[k + 1].node, int(link_free))
                later.append(link_free + km / LIGHT_KM_PER_S)
            ready = later
        return ready[-1]

    def sent(self, a: str, b: str, size: float, at: float) -> float:
        """Return when a link has sent this many bytes."""
        while True:
            second = int(at + 1e-9)
            assert second < self.sky.seconds, f"{a} never sends to {b} what it should"
            rate, room = self.rate((a, b), second), second + 1 - at
            if rate * room >= size > 0:
                return at + size / rate
            size, at = size - rate * room, float(second + 1)

    def rate(self, path: Sequence[str], second: int) -> float:
        """Return bytes per second along a path, 0 if a hop is not in view."""
        rates = []
        for a, b in pairwise(path):
            if not self.sky.is_seen(a, b, second):
                return 0.0
            stations = self.sky.stations
            by_range = self.task.down if b in stations else self.task.up if a in stations else self.task.isl
            rates.append(by_range(self.sky.km(a, b, second)))
        return min(rates)

    def arrivals(
        self, orders: Sequence[leo.Transfer], origin: str, size: float, available: float, parts: int
    ) -> list[float]:
        """Follow the orders; return when each of equal parts of a file is at the end of the last one's path."""
        if not orders:
            return [available] * parts
        size = max(size, 1.0)
        end = self.place(orders[-1].path[-1])
        held = {self.place(origin): size}
        curve = [(available, 0.0)]
        second = int(min(self.after(order.start) for order in orders))
        while size - held.get(end, 0.0) >= LEFT:
            assert second < self.sky.seconds, f"{size - held.get(end, 0.0):.0f} bytes never arrive"
            for k, order in enumerate(orders):
                self.follow(order, self.stops(orders, k), second, held, available, end, curve)
            second += 1
        path = orders[-1].path
        km = sum(self.sky.km(a, b, second - 1) for a, b in pairwise(path))
        times, counts = (list(side) for side in zip(*curve, strict=True))
        counts[-1] = size
        return [float(np.interp(size * (k + 1) / parts, counts, times)) + km / LIGHT_KM_PER_S for k in range(parts)]

    def stops(self, orders: Sequence[leo.Transfer], k: int) -> float:
        """Return when an order ends: its path closes, or the same place gets another order."""
        later = [self.after(other.start) for other in orders[k + 1 :] if other.path[0] == orders[k].path[0]]
        return min([self.after(orders[k].closes), *later])

    def follow(
        self,
        order: leo.Transfer,
        stop: float,
        second: int,
        held: dict[str, float],
        available: float,
        end: str,
        curve: list[tuple[float, float]],
    ) -> None:
        """Send what the order's source has, within one second."""
        begin, until = max(float(second), self.after(order.start), available), min(second + 1.0, stop)
        source, destination = self.place(order.path[0]), self.place(order.path[-1])
        have, rate = held.get(source, 0.0), self.rate(order.path, second) if until > begin else 0.0
        size = min(have, rate * max(until - begin, 0.0))
        if size <= 0:
            return
        held[source], held[destination] = have - size, held.get(destination, 0.0) + size
        if destination == end:
            curve += [(begin, curve[-1][1]), (begin + size / rate, curve[-1][1] + size)]

    def place(self, name: str) -> str:
        """Return the place of a name: stations forward files among themselves, so they are one."""
        return "the ground" if name in self.sky.stations else name
