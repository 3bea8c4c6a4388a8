"""Figures of traces: timelines to zoom, predicted above measured, and how busy each node was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orbitsplit._io.units import format_seconds
from orbitsplit._plans.flight_log import FlightLog
from orbitsplit._plans.lanes import lane_labels, lanes
from orbitsplit._plans.trace import Trace, TraceEvent

from .style import BLUE, GREEN, ORANGE, PINK, VERMILION, add_hover, open_figure, plain_numbers, source_of, style_legend

_COLOURS = {"compute": BLUE, "encode": PINK, "decode": ORANGE, "send": GREEN, "receive": VERMILION}
# More would make the file large, and no screen shows them: neighbours are joined until there are fewer.
_MOST_EVENTS = 30_000


def timeline_figures(traces: Mapping[str, Trace]) -> list[Any]:
    """Draw traces below each other; zooming one zooms all."""
    figures: list[Any] = []
    for title, trace in traces.items():
        plot = _timeline(title, trace, len(traces))
        if figures:
            plot.x_range = figures[0].x_range
        figures.append(plot)
    return figures


def _timeline(title: str, trace: Trace, count: int) -> Any:
    labels = lane_labels(trace)
    names = list(labels.values())
    plot = open_figure(
        f"{title}: {format_seconds(trace.stop_s)}; % of the time in use",
        90 + 30 * len(names),
        y_range=names[::-1],
        zoom=True,
    )
    kinds = sorted({event.kind for event in trace.events} & _COLOURS.keys(), key=list(_COLOURS).index)
    events_of = lanes(trace)
    most = _MOST_EVENTS // count
    total = sum(event.kind in _COLOURS for event in trace.events)
    for kind in kinds:
        rows = [
            (labels[lane], event) for lane in events_of for event in _joined(events_of[lane], kind, trace, total > most)
        ]
        if not rows:
            continue
        source = source_of(
            y=[label for label, _ in rows],
            left=np.array([event.start_s for _, event in rows]),
            right=np.array([event.stop_s for _, event in rows]),
            ms=np.array([1e3 * event.duration_s for _, event in rows], np.float32),
            group=np.array([event.group for _, event in rows], np.int32),
            step=np.array([event.step for _, event in rows], np.int32),
            alpha=np.array([1.0 if event.step <= 0 else 0.5 for _, event in rows], np.float32),
        )
        bars = plot.hbar(
            y="y", left="left", right="right", height=0.72, source=source, fill_color=_COLOURS[kind],
            fill_alpha="alpha", line_color=_COLOURS[kind], line_width=0.5, legend_label=kind,
        )  # fmt: skip
        tips = [("what", kind), ("group, step", "@group, @step"), ("ms", "@ms{0.[000]}"), ("from, s", "@left{0.0000}")]
        add_hover(plot, [bars], tips)
    if trace.flight is not None:
        _add_flight(plot, trace.flight)
    plot.xaxis.axis_label = "seconds since the first prompt; prefill dark, generation light"
    plain_numbers(plot.xaxis)
    if plot.legend:
        style_legend(plot)
    return plot


def _add_flight(plot: Any, flight: FlightLog) -> None:
    """Draw passes as strips behind the bars, and hand-overs as lines."""
    passes = source_of(
        left=np.array([one.start_s for one in flight.passes]), right=np.array([one.stop_s for one in flight.passes])
    )
    plot.vstrip("left", "right", source=passes, fill_color=ORANGE, fill_alpha=0.08, line_alpha=0.0, legend_label="pass")
    switches = source_of(at=np.array([one.stop_s for one in flight.handovers]))
    plot.vspan("at", source=switches, line_color=VERMILION, line_dash="dashed", legend_label="hand-over")


def _joined(events: Sequence[TraceEvent], kind: str, trace: Trace, is_joined: bool) -> list[TraceEvent]:
    """Return the events of a kind; if `is_joined`, with those that no screen could tell apart as one."""
    mine = [event for event in events if event.kind == kind]
    if not is_joined:
        return mine
    gap_s = trace.stop_s / 4000
    found: list[TraceEvent] = []
    for event in mine:
        last = found[-1] if found else None
        if last is not None and event.start_s - last.stop_s < gap_s and (last.step > 0) == (event.step > 0):
            found[-1] = last._replace(stop_s=max(last.stop_s, event.stop_s))
        else:
            found.append(event)
    return found
