"""The report: our results and the paper's, who wins where, the numbers of every chart, and what is not known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .charts import Chart, Map, tick
from .headlines import Agreement, Headline, Verdict
from .published import BATCH, UNKNOWN
from .results import PaperBench


def markdown(bench: PaperBench) -> str:
    """Return the whole report."""
    parts = [
        "# The experiments of arXiv 2604.04654, on the cost model of orbitsplit",
        f"Model {bench.model}, batches of {BATCH}, {bench.setting}. Written by `orbitsplit bench paper`.",
        "## Our results and the paper's",
        _headlines(bench.headlines),
        "Delays and bytes of the best split on satellites, relative to each kind of ground-only; a plus means that"
        " splitting takes more. The figures depend on the baseline far more than on the method.",
        "## All strategies, images of 720p and 1080p",
        *(_standings(bench, resolution) for resolution in ("720p", "1080p")),
        "## Who wins",
        _verdicts(bench.verdicts),
        "## Where both delay figures of the paper are reproduced",
        _agreements(bench.agreements),
        "## What is not known",
        "\n".join(f"- {line}" for line in UNKNOWN),
        "## Figures",
        *(_chart(shown) for shown in bench.charts),
    ]
    return "\n\n".join(parts) + "\n"


def _headlines(found: Sequence[Headline]) -> str:
    """Return a table of the figures relative to ground-only, and one of the rest."""
    relative = [headline for headline in found if headline.paper.endswith("%")]
    against = list(relative[0].ours)
    rows = [
        (headline.name, headline.paper, *(f"{100 * headline.ours[name]:+.0f} %" for name in against))
        for headline in relative
    ]
    others = [
        (headline.name, headline.paper, "; ".join(f"{name}: {value:.2f}" for name, value in headline.ours.items()))
        for headline in found
        if headline not in relative
    ]
    first = _table(("figure", "paper", *(f"ours, against {name}" for name in against)), rows)
    return f"{first}\n\n{_table(('figure', 'paper', 'ours'), others)}"


def _standings(bench: PaperBench, resolution: str) -> str:
    """Return the delay of every strategy at a resolution, and relative to each kind of ground-only."""
    chart = bench.chart("delay_resolution")
    assert isinstance(chart, Chart)
    at = [str(x) for x in chart.x].index(resolution)
    delays = {name: values[at] for name, values in chart.series.items()}
    grounds = {name: value for name, value in delays.items() if name.startswith("ground") and value is not None}
    rows = []
    for name, value in delays.items():
        changes = ["-" if value is None else f"{100 * (value / other - 1):+.0f} %" for other in grounds.values()]
        rows.append((name, "-" if value is None else f"{value:.2f}", *changes))
    return _table((f"strategy, {resolution}", "delay, s", *(f"against {name}" for name in grounds)), rows)


def _verdicts(found: Sequence[Verdict]) -> str:
    rows = [
        (verdict.setting, f"{verdict.split_s:.2f} s", f"{verdict.ground_s:.2f} s", _verdict(verdict))
        for verdict in found
    ]
    return _table(("setting of ground-only", "best split on satellites", "ground-only", "answer"), rows)


def _verdict(verdict: Verdict) -> str:
    change = f"{100 * (verdict.split_s / verdict.ground_s - 1):+.0f} %"
    return f"do not split ({change})" if verdict.loses else f"split ({change})"


def _agreements(found: Sequence[Agreement], most: int = 8) -> str:
    if not found:
        return "In no setting of the grid are both within 5 points."
    rows = [
        (
            f"{at.faster:g}x",
            at.batches,
            at.hops,
            at.ground,
            f"{at.resolution}: {100 * at.delay_at_downlink:+.0f} %",
            f"{at.downlink_gbit:g} Gbit/s: {100 * at.delay_at_1080p:+.0f} %",
        )
        for at in found[:most]
    ]
    head = ("computers", "batches", "relay hops", "against", "at 0.8 Gbit/s (paper -42 %)", "at 1080p (paper -58 %)")
    return f"Settings of the grid within 5 points of both: {len(found)}. The nearest:\n\n{_table(head, rows)}"


def _chart(shown: Chart | Map) -> str:
    parts = [f"### {shown.title}", f"![{shown.title}]({shown.name}.png)", _numbers(shown)]
    if shown.notes:
        parts.append("\n".join(f"- {note}" for note in shown.notes))
    return "\n\n".join(parts)


def _numbers(shown: Chart | Map) -> str:
    if isinstance(shown, Map):
        rows = [(tick(y), *map(_cell, row)) for y, row in zip(shown.y, shown.values, strict=True)]
        return _table((f"{shown.y_label} \\ {shown.x_label}", *map(tick, shown.x)), rows)
    places = range(len(shown.x))
    if len(places) > 21:  # sorted values: some of them suffice
        places = range(len(places) // 20 - 1, len(places), len(places) // 20)
    rows = [(name, *(_cell(values[k]) for k in places)) for name, values in shown.series.items()]
    return _table((f"{shown.y_label} \\ {shown.x_label}", *(tick(shown.x[k]) for k in places)), rows)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
