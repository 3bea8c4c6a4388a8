"""Energy over time: the consumption of a node, the yield of its solar panels, the charge of its battery."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from orbitsplit._io.validation import check_kind, quoted
from orbitsplit._plans.plan import Plan
from orbitsplit._profiling.workload import Workload
from orbitsplit.leo._orbits.constellation import Constellation
from orbitsplit.leo._orbits.earth import Array
from orbitsplit.leo._orbits.times import Times
from orbitsplit.leo._orbits.validation import check_not_negative

# A satellite at 500 km crosses half of the penumbra in about this time.
_STEP_S = 10.0


@dataclass(frozen=True, slots=True)
class Power:
    """What a node consumes and what supplies it, in watts and joules.

    It consumes `busy_w` while it computes, else `idle_w`, and `transmit_w` more while it transmits: transmit_w / rate
    for each byte. `average_w` is what its panels yield on average over an orbit, all of it in sunlight, and therefore
    the limit of its own average over an orbit. In the Earth's shadow it runs from a battery with a capacity of
    `battery_j`, charged with `charge_j` at the time of the request (default: full).

    Raises:
        ValueError: A number is negative or not finite, idling alone consumes more than the panels yield, the battery
            has no capacity, or its charge exceeds it.
    """

    busy_w: float
    idle_w: float
    transmit_w: float
    average_w: float
    battery_j: float
    charge_j: float | None = None

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name == "charge_j" and value is None:
                continue
            check_not_negative(entry.name, value)
        if self.battery_j == 0:
            raise ValueError(f"battery_j is {self.battery_j}, must be > 0: without a battery nothing runs in shadow")
        if self.busy_w < self.idle_w:
            raise ValueError(f"busy_w is {self.busy_w}, must be at least idle_w, {self.idle_w}")
        if self.idle_w > self.average_w:
            raise ValueError(f"idle_w is {self.idle_w}, must be at most average_w, {self.average_w}")
        if self.charge_j is not None and self.charge_j > self.battery_j:
            raise ValueError(f"charge_j is {self.charge_j}, must be at most battery_j, {self.battery_j}")


@dataclass(frozen=True, slots=True)
class Load:
    """Work of a node: it computes for `busy_s` and transmits for `transmit_s`, both spread evenly over a span."""

    node: str
    start_s: float
    stop_s: float
    busy_s: float = 0.0
    transmit_s: float = 0.0

    def joules(self, power: Power) -> float:
        """Return what it consumes beyond idling."""
        return (power.busy_w - power.idle_w) * self.busy_s + power.transmit_w * self.transmit_s


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Why a node lacks power; if `can_wait`, charging the battery first may help."""

    text: str
    can_wait: bool


def loads_of(plan: Plan, start_s: float, stop_s: float | None = None) -> tuple[Load, ...]:
    """Return the load of each node of a plan, spread over its makespan from `start_s` on, or until `stop_s`.

    Raises:
        ValueError: The plan has no prediction, and so no seconds.
    """
    if plan.prediction is None:
        raise ValueError("the plan has no prediction and so no seconds; plans from orbitsplit.plan have one")
    prediction, workload = plan.prediction, plan.workload
    until_s = start_s + prediction.total_s if stop_s is None else stop_s
    busy = _totals(prediction.stage_s, prediction.decode_stage_s, workload)
    transmit = [*_totals(prediction.link_s, prediction.decode_link_s, workload), 0.0]
    loads = []
    for stage, busy_s, transmit_s in zip(plan.stages, busy, transmit, strict=True):
        # The predicted occupancy of a half-duplex stage contains its transmission.
        compute_s = busy_s - transmit_s if stage.half_duplex else busy_s
        loads.append(Load(stage.node, start_s, until_s, compute_s, transmit_s))
    return tuple(loads)


def powers_of(power: Power | Mapping[str, Power] | None, satellites: Sequence[str]) -> dict[str, Power]:
    """Return the power limits by satellite. Raises TypeError for another type, ValueError for an unknown satellite."""
    if power is None:
        return {}
    powers = _powers_by_name(power, satellites)
    for name in powers:
        if name not in satellites:
            raise ValueError(f"power names {quoted(name)}, which is no satellite that takes part")
    return powers


def _powers_by_name(power: Power | Mapping[str, Power], names: Iterable[str]) -> dict[str, Power]:
    """Return the powers by node: one for all `names`, or those given. Raises TypeError for another type."""
    if isinstance(power, Power):
        return dict.fromkeys(names, power)
    if not isinstance(power, Mapping):
        raise TypeError(f"power is {quoted(power)}, must be a Power or a Power for each name")
    for name, one in power.items():
        if not isinstance(one, Power):
            raise TypeError(f"the power of {quoted(name)} is {quoted(one)}, must be a Power")
    return dict(power)


def energy_j(plan: Plan, power: Power | Mapping[str, Power]) -> dict[str, float]:
    """Return the joules beyond idling that each node with a `Power` consumes per sequence of the plan's workload.

    A single `Power` is that of all nodes of the plan.

    Raises:
        ValueError: The plan has no prediction.
        TypeError: `power` is neither a `Power` nor powers by name.
    """
    check_kind("plan", plan, Plan)
    powers = _powers_by_name(power, (stage.node for stage in plan.stages))
    return {
        load.node: load.joules(powers[load.node]) / plan.workload.sequences
        for load in loads_of(plan, 0.0)
        if load.node in powers
    }


class Ledger:
    """The energy supply of satellites with a power limit, from the request to two orbits after `end_s`.

    `begin_s` (the request) and `end_s` are seconds since `start`.
    """

    def __init__(
        self, constellation: Constellation, start: Times, begin_s: float, end_s: float, power: Mapping[str, Power]
    ) -> None:
        for name in power:
            constellation.index(name)
        self.power = dict(power)
        self._orbit_s = {n: constellation.satellites[constellation.index(n)].period_s for n in power}
        longest = max(self._orbit_s.values(), default=0.0)
        self._times_s: Array = np.arange(begin_s, end_s + 2 * longest + 2 * _STEP_S, _STEP_S)
        lit = constellation.sunlit(start.shifted(self._times_s)) if power else np.empty((0, 0), dtype=np.bool_)
        self._yield_w = {
            name: _yield_w(lit[constellation.index(name)], power[name], self._orbit_s[name]) for name in power
        }

    @property
    def longest_orbit_s(self) -> float:
        """Return the longest orbital period of the satellites that have a power limit, 0 if none has."""
        return max(self._orbit_s.values(), default=0.0)

    def shortfall(self, loads: Iterable[Load]) -> Shortfall | None:
        """Return why the first node cannot power its loads; None if all nodes can."""
        by_node: dict[str, list[Load]] = {}
        for load in loads:
            if load.node in self.power:
                by_node.setdefault(load.node, []).append(load)
        for name, own in by_node.items():
            found = self._average(name, own) or self._battery(name, own)
            if found is not None:
                return found
        return None

    def joules(self, loads: Iterable[Load]) -> dict[str, float]:
        """Return what each node consumes beyond idling."""
        total: dict[str, float] = {}
        for load in loads:
            if load.node in self.power:
                total[load.node] = total.get(load.node, 0.0) + load.joules(self.power[load.node])
        return total

    def _average(self, name: str, loads: Sequence[Load]) -> Shortfall | None:
        """Compare the orbit of highest consumption with the limit: it begins with a load, or ends with one."""
        power, orbit_s = self.power[name], self._orbit_s[name]
        starts = [load.start_s for load in loads] + [load.stop_s - orbit_s for load in loads]
        most_j = max(sum(_within_j(load, power, begin, begin + orbit_s) for load in loads) for begin in starts)
        average_w = power.idle_w + most_j / orbit_s
        if average_w <= power.average_w * (1 + 1e-9):
            return None
        return Shortfall(
            f"{name} would consume {average_w:.3g} W on average over an orbit of {orbit_s:,.0f} s, its limit is "
            f"{power.average_w:g} W: the work needs {most_j / 1e3:.3g} kJ beyond idling, there are "
            f"{(power.average_w - power.idle_w) * orbit_s / 1e3:.3g} kJ",
            can_wait=False,
        )

    def _battery(self, name: str, loads: Sequence[Load]) -> Shortfall | None:
        """Integrate the charge until an orbit after the last load: it must last through the Earth's shadow."""
        power, edges = self.power[name], self._times_s
        end_s = max(load.stop_s for load in loads) + self._orbit_s[name]
        consumed_j = np.full(len(edges) - 1, power.idle_w * _STEP_S)
        for load in loads:
            length_s = load.stop_s - load.start_s
            if length_s > 0:
                shares = np.clip((edges - load.start_s) / length_s, 0.0, 1.0)
                consumed_j += np.diff(shares) * load.joules(power)
        total = np.cumsum(self._yield_w[name][:-1] * _STEP_S - consumed_j)
        charge = power.battery_j if power.charge_j is None else power.charge_j
        # What the panels yield when the battery is full is lost: the charge is the sum less its largest excess so far.
        level = total + np.minimum(charge, power.battery_j - np.maximum.accumulate(np.maximum(total, 0.0)))
        level = level[edges[1:] <= end_s + _STEP_S]
        worst = int(np.argmin(level))
        if level[worst] >= -1e-6:
            return None
        dark = "in the Earth's shadow" if self._yield_w[name][worst] == 0 else "in sunlight"
        return Shortfall(
            f"{name} would lack {-level[worst] / 1e3:.3g} kJ {edges[worst + 1] - edges[0]:,.0f} s after the request, "
            f"{dark}: its battery holds {power.battery_j / 1e3:.3g} kJ and had {charge / 1e3:.3g} kJ at the request",
            can_wait=True,
        )


def _totals(prefill: Sequence[float], decode: Sequence[float], workload: Workload) -> list[float]:
    """Return the seconds of all prefills and of all token steps after the first token."""
    steps = max(workload.new_tokens - 1, 0)
    later = decode if len(decode) == len(prefill) else [0.0] * len(prefill)
    return [workload.micro_batches * (a + steps * b) for a, b in zip(prefill, later, strict=True)]


def _within_j(load: Load, power: Power, begin_s: float, end_s: float) -> float:
    length_s = load.stop_s - load.start_s
    overlap_s = min(load.stop_s, end_s) - max(load.start_s, begin_s)
    if overlap_s < 0:
        return 0.0
    return load.joules(power) * (overlap_s / length_s if length_s > 0 else 1.0)


def _yield_w(lit: npt.NDArray[np.bool_], power: Power, orbit_s: float) -> Array:
    """Return what the panels yield in each step: `average_w` on average over an orbit, nothing in shadow."""
    count = max(round(orbit_s / _STEP_S), 1)
    fraction = float(np.mean(lit[:count]))
    return np.where(lit, power.average_w / fraction if fraction > 0 else 0.0, 0.0)
