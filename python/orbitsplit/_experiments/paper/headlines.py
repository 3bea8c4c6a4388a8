"""The paper's figures and ours, the settings in which they agree, and those in which splitting loses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from . import break_even, strategies
from .published import (
    DOWNLINKS,
    OUR_CODEC,
    OUR_CUTS,
    PAPER_CODEC,
    PAPER_COMMUNICATION,
    PAPER_CUTS,
    PAPER_DELAY_AT_1080P,
    PAPER_DELAY_AT_DOWNLINK,
    PAPER_PROPORTIONAL,
    PAPER_UNIFORM,
    RESOLUTIONS,
    TOP_K,
)
from .setup import RESOLUTION, Setup

_GROUNDS = (strategies.GROUND, strategies.GROUND_PIPELINED, strategies.GROUND_FAIR, strategies.GROUND_RESIZED)


@dataclass(frozen=True, slots=True)
class Headline:
    """One figure of the paper and our results, `ours`, by what the split is compared with."""

    name: str
    paper: str
    ours: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One setting: the delays of the best split on satellites and of ground-only, in seconds."""

    setting: str
    split_s: float
    ground_s: float

    @property
    def loses(self) -> bool:
        """Whether splitting is slower than ground-only."""
        return self.split_s > self.ground_s


@dataclass(frozen=True, slots=True)
class Agreement:
    """A setting in which both delay figures are near the paper's, as relative delays against `ground`.

    All computers are `faster` than in float32; the first figure is at 0.8 Gbit/s and `resolution`, the second at 1080p
    and `downlink_gbit`.
    """

    faster: float
    batches: int
    hops: int
    ground: str
    resolution: str
    delay_at_downlink: float
    downlink_gbit: float
    delay_at_1080p: float

    @property
    def error(self) -> float:
        """The larger distance from the paper's two figures, as a share of the delay."""
        apart = (self.delay_at_downlink - PAPER_DELAY_AT_DOWNLINK, self.delay_at_1080p - PAPER_DELAY_AT_1080P)
        return max(abs(difference) for difference in apart)


def headlines(setup: Setup) -> tuple[Headline, ...]:
    """Return the paper's figures and ours: relative delays and bytes, or multiples of the best plan's delay."""
    many = setup.varied(batches=256)
    return (
        Headline(
            f"delay at a downlink of 0.8 Gbit/s, {RESOLUTION}",
            f"{100 * PAPER_DELAY_AT_DOWNLINK:.0f} %",
            _against_ground(setup.varied(downlink_gbit=0.8)),
        ),
        Headline(
            "delay at 1080p",
            f"{100 * PAPER_DELAY_AT_1080P:.0f} %",
            _against_ground(setup.varied(image=RESOLUTIONS["1080p"])),
        ),
        Headline(
            f"bytes over links, {RESOLUTION}",
            f"{100 * PAPER_COMMUNICATION:.1f} %",
            _bytes_against_ground(setup),
        ),
        Headline("uniform split / best plan", f"{PAPER_UNIFORM}", _over_best(strategies.UNIFORM, setup, many)),
        Headline(
            "proportional split / best plan", f"{PAPER_PROPORTIONAL}", _over_best(strategies.PROPORTIONAL, setup, many)
        ),
        Headline(
            f"points lost at {PAPER_CODEC.levels[-1].name}",
            f"{PAPER_CODEC.points[-1] * PAPER_CUTS:.2f}",
            {
                f"a small ViT, {codec.name} at {codec.levels[-1].name}": codec.points[-1] * OUR_CUTS
                for codec in (OUR_CODEC, TOP_K)
            },
        ),
    )


def verdicts(setup: Setup) -> tuple[Verdict, ...]:
    """Return settings in which the split wins and in which it loses to the ground."""
    full = setup.varied(image=RESOLUTIONS["1080p"])
    relay, down = {"isl_gbit": 100.0}, {"downlink_gbit": 6.0}
    settings = (
        (f"{RESOLUTION}, as the paper: raw images relayed, batch after batch", setup, strategies.GROUND),
        (f"{RESOLUTION}, relayed, pipelined", setup, strategies.GROUND_PIPELINED),
        (f"{RESOLUTION}, no relay hops, pipelined", setup, strategies.GROUND_FAIR),
        (f"{RESOLUTION}, 100 Gbit/s ISLs to ground relays", setup.varied(**relay), strategies.GROUND_PIPELINED),
        (
            f"{RESOLUTION}, 100 Gbit/s ISLs, downlink 6 Gbit/s",
            setup.varied(**relay, **down),
            strategies.GROUND_PIPELINED,
        ),
        (f"{RESOLUTION}, resized on board", setup, strategies.GROUND_RESIZED),
        ("1080p, as the paper", full, strategies.GROUND),
        ("1080p, relayed, pipelined", full, strategies.GROUND_PIPELINED),
        ("1080p, no relay hops, pipelined", full, strategies.GROUND_FAIR),
        ("1080p, 100 Gbit/s ISLs to ground relays", full.varied(**relay), strategies.GROUND_PIPELINED),
        ("1080p, 100 Gbit/s ISLs, downlink 6 Gbit/s", full.varied(**relay, **down), strategies.GROUND_PIPELINED),
        ("1080p, no relay hops, downlink 6 Gbit/s", full.varied(**down), strategies.GROUND_FAIR),
        ("1080p, resized on board", full, strategies.GROUND_RESIZED),
        ("1080p, one batch, as the paper", full.varied(batches=1), strategies.GROUND),
        ("1080p, one batch, no relay hops", full.varied(batches=1), strategies.GROUND_FAIR),
        ("1080p, all compute 4 times faster, no relay hops", full.faster(4.0), strategies.GROUND_FAIR),
    )
    found = []
    for name, at, ground in settings:
        split, alone = strategies.planned(at).delay_s, strategies.STRATEGIES[ground](at).delay_s
        if split is not None and alone is not None:
            found.append(Verdict(name, split, alone))
    return tuple(found)


def agreements(
    setup: Setup,
    *,
    faster: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0),
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 64),
    tolerance: float = 0.05,
) -> tuple[Agreement, ...]:
    """Return the settings of a grid in which both delay figures are within `tolerance` of the paper's, best first.

    Varied is what the digests do not say: the speed of all computers (tensor cores instead of float32), batches, hops,
    whether ground-only is pipelined, the resolution of the figure at 0.8 Gbit/s, the downlink of the one at 1080p.
    """
    found: list[Agreement] = []
    for factor, count, hops in itertools.product(faster, batches, range(len(setup.satellites))):
        found += _agreements_at(setup.faster(factor).varied(batches=count, hops=hops), factor)
    near = [agreement for agreement in found if agreement.error <= tolerance]
    return tuple(sorted(near, key=lambda agreement: agreement.error))


def _agreements_at(setup: Setup, faster: float) -> list[Agreement]:
    split = strategies.planned(setup).delay_s  # of neither resolution nor, within microseconds, downlink
    if split is None:
        return []
    compute_s, count = break_even.on_server_s(setup), setup.batches

    def relative(at: Setup) -> tuple[float, float]:
        """Return the relative delay against batch after batch, and against pipelined."""
        line = break_even.ground_line(at, compute_s)
        return split / (count * line.delay_s(1, 0.0)) - 1, split / line.delay_s(count, 0.0) - 1

    full = setup.varied(image=RESOLUTIONS["1080p"])
    low = {name: relative(setup.varied(image=image, downlink_gbit=0.8)) for name, image in RESOLUTIONS.items()}
    high = {rate: relative(full.varied(downlink_gbit=rate)) for rate in DOWNLINKS if rate <= 0.8}
    grounds = (strategies.GROUND, strategies.GROUND_PIPELINED)[: 2 if count > 1 else 1]  # one batch: the same
    return [
        Agreement(faster, count, setup.hops, ground, name, low[name][k], rate, high[rate][k])
        for k, ground in enumerate(grounds)
        for name, rate in itertools.product(low, high)
    ]


def _against_ground(setup: Setup) -> dict[str, float]:
    """Return the relative delay of the best split against each kind of ground-only."""
    split = strategies.planned(setup).delay_s
    found = strategies.results(setup, _GROUNDS)
    return {name: split / at.delay_s - 1 for name, at in found.items() if split is not None and at.delay_s is not None}


def _bytes_against_ground(setup: Setup) -> dict[str, float]:
    split = strategies.planned(setup).link_bytes
    found = strategies.results(setup, _GROUNDS)
    return {
        name: split / at.link_bytes - 1 for name, at in found.items() if split is not None and at.link_bytes is not None
    }


def _over_best(baseline: str, *settings: Setup) -> dict[str, float]:
    """Return a baseline's delay relative to the best plan's, for the last setting also with other power modes.

    Settings in which the baseline does not fit are left out.
    """
    found = {f"{setup.batches} batches": _ratio(baseline, setup) for setup in settings}
    last = settings[-1]
    modes = list({node.flop_per_s: node for node in last.satellites}.values())
    others = []
    for mix in itertools.combinations_with_replacement(modes, len(last.satellites)):
        nodes = tuple(replace(mode, name=f"sat-{k}") for k, mode in enumerate(mix))
        others.append(_ratio(baseline, last.varied(satellites=nodes)))
    fitting = [ratio for ratio in others if math.isfinite(ratio)]
    found[f"{last.batches} batches, least of all mixes of power modes"] = min(fitting, default=math.inf)
    found[f"{last.batches} batches, most of all mixes of power modes"] = max(fitting, default=math.inf)
    return {name: ratio for name, ratio in found.items() if math.isfinite(ratio)}  # JSON knows no infinity


def _ratio(baseline: str, setup: Setup) -> float:
    delay, best = strategies.STRATEGIES[baseline](setup).delay_s, strategies.planned(setup).delay_s
    return math.inf if delay is None or best is None else delay / best
