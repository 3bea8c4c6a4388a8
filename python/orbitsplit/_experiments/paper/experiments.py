"""The paper's experiments: delay against resolution, downlink and model, bytes, compression, robustness, algorithms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orbitsplit._planner.problem import Problem, evaluate
from orbitsplit._planner.problem_parts import Stage
from orbitsplit._profiling.profile import ModelProfile

from . import strategies
from .charts import Chart
from .published import (
    DOWNLINKS,
    OUR_CODEC,
    PAPER_CODEC,
    PAPER_MEMORY_GB,
    PAPER_PROPORTIONAL,
    PAPER_ROBUST,
    PAPER_UNIFORM,
    RANDOM_PLANS,
    RESOLUTIONS,
    TOP_K,
)
from .setup import RESOLUTION, Setup

# The lines of the charts of delay; those left out differ little from one of these.
COMPARED = (
    strategies.GROUND,
    strategies.GROUND_PIPELINED,
    strategies.GROUND_FAIR,
    strategies.GROUND_RESIZED,
    strategies.SINGLE,
    strategies.UNIFORM,
    strategies.PROPORTIONAL,
    strategies.TOP,
    strategies.SPLIT,
    strategies.ANY,
)
_SECONDS = "delay of all batches, s"


def over_resolution(setup: Setup) -> Chart:
    """Return delay against the resolution of the images."""
    settings = [setup.varied(image=image) for image in RESOLUTIONS.values()]
    return Chart(
        "delay_resolution",
        f"{setup.profile.model}: delay against input resolution, downlink {_gbit(setup.downlink_bytes_per_s)}",
        "resolution of the images",
        _SECONDS,
        tuple(RESOLUTIONS),
        _delays(settings, COMPARED),
        (
            "The first satellite resizes images to the model's input: splits do not depend on the resolution.",
            f"{strategies.SPLIT_OURS}: {strategies.planned(setup.varied(codec=OUR_CODEC)).delay_s or 0:.2f} s.",
        ),
        log_y=True,
    )


def over_downlink(setup: Setup) -> Chart:
    """Return delay against the rate from satellite to ground."""
    return Chart(
        "delay_downlink",
        f"{setup.profile.model}: delay against the downlink, {RESOLUTION} images",
        "downlink, Gbit/s",
        _SECONDS,
        DOWNLINKS,
        _delays([setup.varied(downlink_gbit=rate) for rate in DOWNLINKS], COMPARED),
        log_x=True,
        log_y=True,
    )


def over_models(setup: Setup, profiles: Mapping[str, ModelProfile]) -> Chart:
    """Return delay against the size of the model."""
    notes = []
    for name, found in profiles.items():
        alone = strategies.STRATEGIES[strategies.SINGLE](setup.varied(profile=found))
        needed = (found.weight_bytes + found.workspace_bytes) / 1e9
        paper = f"{PAPER_MEMORY_GB[name]:g} GB in the paper" if name in PAPER_MEMORY_GB else "not in the paper"
        fit = "" if alone.delay_s is not None else f"; on one satellite: {alone.reason}"
        notes.append(f"{name} needs {needed:.2f} GB (weights and workspace of batch 64; {paper}){fit}")
    return Chart(
        "delay_models",
        f"Delay against the model, {RESOLUTION} images, downlink {_gbit(setup.downlink_bytes_per_s)}",
        "model",
        _SECONDS,
        tuple(profiles),
        _delays([setup.varied(profile=found) for found in profiles.values()], COMPARED),
        tuple(notes),
        log_y=True,
        is_joined=False,
    )


def communication(setup: Setup) -> Chart:
    """Return bytes over all links against the resolution."""
    found = [strategies.results(setup.varied(image=image), COMPARED) for image in RESOLUTIONS.values()]
    series = {
        name: tuple(None if at[name].link_bytes is None else (at[name].link_bytes or 0) / 1e6 for at in found)
        for name in COMPARED
    }
    return Chart(
        "communication",
        f"{setup.profile.model}: bytes over links, each counted once for every link it crosses",
        "resolution of the images",
        "MB for a batch of 64",
        tuple(RESOLUTIONS),
        series,
        log_y=True,
    )


def compression(setup: Setup, *, faster: float = 1.0) -> Chart:
    """Return delay against the compression at every cut: the paper's stages, our codec and top-k.

    With `faster`, all computers are faster by this factor, so that links weigh more.
    """
    setup = setup.faster(faster)
    codecs = {"the paper's stages": PAPER_CODEC, "our codec (klt)": OUR_CODEC, "top-k": TOP_K}
    ratios = sorted({level.ratio for codec in codecs.values() for level in codec.levels})
    notes = []
    series: dict[str, tuple[float | None, ...]] = {}
    for name, codec in codecs.items():
        at = {level.ratio: strategies.planned(setup.varied(codec=codec.at(k))) for k, level in enumerate(codec.levels)}
        series[name] = tuple(at[ratio].delay_s if ratio in at else None for ratio in ratios)
        lost = ", ".join(f"{ratio:g}x {points:.3f}" for ratio, points in zip(at, codec.points, strict=True))
        notes.append(f"{name}, points lost at a cut: {lost}")
        whole = ", ".join(f"{ratio:g}x" for ratio, found in at.items() if len(found.stages) == 1)
        if whole:
            notes.append(
                f"{name}: one satellite runs everything, as cuts would take too long or lose too much, at {whole}"
            )
    return Chart(
        "compression" if faster == 1 else "compression_fast",
        f"{setup.profile.model}: best plan with one level at every cut, ISL {_gbit(setup.isl_bytes_per_s)}"
        + ("" if faster == 1 else f", computers {faster:g} times faster"),
        "times smaller than float32",
        _SECONDS,
        tuple(ratios),
        series,
        tuple(notes),
        log_x=True,
    )


@dataclass(frozen=True, slots=True)
class RandomPlans:
    """Random splits: predicted points lost and delay over the best one's, of those that fit; how many do not."""

    points: tuple[float, ...]
    ratios: tuple[float, ...]
    too_large: int


def random_plans(setup: Setup, *, count: int = RANDOM_PLANS, seed: int = 0) -> RandomPlans:
    """Score random splits on the satellites in their order, every cut at the paper's strongest level."""
    random = np.random.default_rng(seed)
    setup = setup.varied(codec=PAPER_CODEC.at(len(PAPER_CODEC.levels) - 1))
    problem, best = setup.problem(), strategies.planned(setup)
    layers, nodes = len(problem.layers), len(problem.nodes)
    points, ratios, too_large = [], [], 0
    for _ in range(count):
        parts = int(random.integers(2, min(nodes, layers) + 1))
        chosen = np.sort(random.choice(nodes, parts, replace=False)).tolist()
        cuts = [0, *np.sort(random.choice(np.arange(1, layers), parts - 1, replace=False)).tolist(), layers]
        stages = [Stage(node, cuts[k], cuts[k + 1], 0) for k, node in enumerate(chosen)]
        stages[-1] = stages[-1]._replace(level=None)
        result = evaluate(problem, stages)
        points.append(result.loss)
        if any(
            used > _room(problem, stage.node) for used, stage in zip(result.stage_memory_bytes, stages, strict=True)
        ):
            too_large += 1
        elif best.delay_s is not None:
            ratios.append(result.objective_s / best.delay_s)
    return RandomPlans(tuple(points), tuple(sorted(ratios)), too_large)


def robustness(setup: Setup, *, count: int = RANDOM_PLANS, seed: int = 0) -> Chart:
    """Return the delays of random splits over the best plan's, and how many lose less than a point."""
    found = random_plans(setup, count=count, seed=seed)
    kept = sum(points < 1 for points in found.points)
    share = tuple(100 * (k + 1) / len(found.ratios) for k in range(len(found.ratios)))
    return Chart(
        "robustness",
        f"{setup.profile.model}: {count} random splits into 2 to {len(setup.satellites)} stages, in order of delay",
        "share of the splits that fit, %",
        "delay / delay of the best plan",
        share,
        {"random splits": found.ratios},
        (
            f"Predicted to lose less than a point: {kept} of {count}, with the same loss at every cut, as more is not"
            f" known. The paper measured {PAPER_ROBUST} of {RANDOM_PLANS}.",
            f"Do not fit into a satellite's memory: {found.too_large} of {count}.",
        ),
    )


_BASELINES = (strategies.UNIFORM, strategies.PROPORTIONAL, strategies.MIN_MAX, strategies.SINGLE, strategies.TOP)


def algorithms(setup: Setup, profiles: Mapping[str, ModelProfile]) -> Chart:
    """Return the delays of heuristic baselines over the best plan's, by model."""
    return Chart(
        "algorithms",
        f"Heuristic baselines against the best plan, {setup.batches} batches",
        "model",
        "delay / delay of the best plan",
        tuple(profiles),
        _over_best([setup.varied(profile=found) for found in profiles.values()]),
        (f"The paper: uniform {PAPER_UNIFORM}, proportional {PAPER_PROPORTIONAL}.",),
        is_joined=False,
    )


def algorithms_over_batches(setup: Setup, batches: Sequence[int] = (1, 2, 4, 8, 16, 64, 256)) -> Chart:
    """Return the same against the number of batches in one request."""
    return Chart(
        "algorithms_batches",
        f"{setup.profile.model}: heuristic baselines against the best plan",
        "batches in one request",
        "delay / delay of the best plan",
        tuple(float(count) for count in batches),
        _over_best([setup.varied(batches=count) for count in batches]),
        (
            f"The paper's {PAPER_UNIFORM} (uniform) and {PAPER_PROPORTIONAL} (proportional) need many batches: with"
            " one, the fastest satellite alone is nearly optimal, and a proportional split far from it.",
        ),
        log_x=True,
    )


def _over_best(settings: Sequence[Setup]) -> dict[str, tuple[float | None, ...]]:
    delays = _delays(settings, (*_BASELINES, strategies.SPLIT))
    best = delays.pop(strategies.SPLIT)
    return {
        name: tuple(None if a is None or b is None else a / b for a, b in zip(values, best, strict=True))
        for name, values in delays.items()
    }


def _delays(settings: Sequence[Setup], names: Sequence[str]) -> dict[str, tuple[float | None, ...]]:
    found = [strategies.results(setup, names) for setup in settings]
    return {name: tuple(at[name].delay_s for at in found) for name in names}


def _room(problem: Problem, node: int) -> float:
    return problem.nodes[node].memory_bytes - problem.nodes[node].headroom_bytes


def _gbit(bytes_per_s: float) -> str:
    rate = bytes_per_s * 8 / 1e9
    return f"{rate:g} Gbit/s" if math.isfinite(rate) else "without limit"
