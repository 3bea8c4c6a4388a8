"""Figures over time of a constellation: contact windows, satellites in view, and a plan in time with its handovers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from bokeh.models import Range1d, Span

from orbitsplit._io.units import format_bytes

from .style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PALETTE,
    PINK,
    VERMILION,
    add_hover,
    duration,
    open_figure,
    rows_height,
    source_of,
    style_legend,
)

if TYPE_CHECKING:
    from orbitsplit.leo import Contact, TimedPlan

_MOST_ROWS = 24
_TRANSFER_COLOURS = {"input": ORANGE, "activation": PINK, "result": GREEN}


def contacts_figure(contacts: Sequence[Contact], chain: Sequence[str], start: datetime, hours: float) -> Any:
    """Draw when which satellite is in contact with a station: those of the chain, then those with the most contact."""
    total_s: dict[str, float] = {}
    for contact in contacts:
        total_s[contact.satellite] = total_s.get(contact.satellite, 0.0) + contact.duration_s
    first = [name for name in chain if name in total_s]
    rows = [*first, *(name for name in sorted(total_s, key=lambda name: -total_s[name]) if name not in first)][
        :_MOST_ROWS
    ]
    left_out = len(total_s) - len(rows)
    beyond = f"; {left_out:,} more satellites have contacts" if left_out else ""
    plot = open_figure(
        f"Contact windows in {hours:g} h{beyond}", rows_height(len(rows), has_legend=True), y_range=rows[::-1],
        x_axis_type="datetime", zoom=True,
    )  # fmt: skip
    plot.x_range = Range1d(_ms(start), _ms(start + timedelta(hours=hours)))
    stations = sorted({contact.station for contact in contacts})
    for k, station in enumerate(stations):
        mine = [contact for contact in contacts if contact.station == station and contact.satellite in rows]
        source = source_of(
            y=[contact.satellite for contact in mine],
            station=[station] * len(mine),
            left=[_ms(contact.start) for contact in mine],
            right=[_ms(contact.stop) for contact in mine],
            seconds=[round(contact.duration_s) for contact in mine],
            highest=[round(contact.max_elevation_deg, 1) for contact in mine],
        )
        colour = PALETTE[k % len(PALETTE)]
        bars = plot.hbar(
            y="y", left="left", right="right", height=0.6, source=source, color=colour, legend_label=station
        )
        tips = [("satellite", "@y"), ("station", "@station"), ("seconds", "@seconds"), ("highest", "@highest deg")]
        add_hover(plot, [bars], tips)
    plot.xaxis.axis_label = "UTC"
    style_legend(plot)
    return plot


def in_view_figure(contacts: Sequence[Contact], start: datetime, hours: float) -> Any:
    """Draw how many satellites each station sees over time."""
    stop = start + timedelta(hours=hours)
    plot = open_figure("Satellites in view of each station", 240, x_axis_type="datetime", zoom=True)
    for k, station in enumerate(sorted({contact.station for contact in contacts})):
        edges = sorted(
            edge
            for contact in contacts
            if contact.station == station
            for edge in ((contact.start, 1), (contact.stop, -1))
            if edge[0] not in (start, stop)  # contacts are cut off there
        )
        times = [_ms(start)]
        counts = [sum(contact.start == start for contact in contacts if contact.station == station)]
        for at, change in edges:
            times.append(_ms(at))
            counts.append(counts[-1] + change)
        times.append(_ms(stop))
        counts.append(counts[-1])
        plot.step(times, counts, mode="after", line_color=PALETTE[k % len(PALETTE)], legend_label=station)
    plot.xaxis.axis_label = "UTC"
    plot.ygrid.grid_line_color = plot.xgrid.grid_line_color
    style_legend(plot)
    return plot


def timed_plan_figure(plan: TimedPlan) -> Any:
    """Draw a plan in time: its transfers with the contacts that they end in, the computation, and handovers."""
    parts = [plan] if plan.concurrent is None else [plan, plan.concurrent]
    bars: list[tuple[str, datetime, datetime, str, str]] = []
    for part in parts:
        for kind, transfers in (("input", part.input), ("activation", part.activation), ("result", part.result)):
            for transfer in transfers:
                row = f"{kind}: {_path(transfer.path)}"
                bars.append((row, transfer.start, transfer.stop, kind, format_bytes(transfer.bytes)))
        nodes = ", ".join(stage.node for stage in part.plan.stages)
        bars.append((f"compute: {nodes}", part.compute_start, part.compute_stop, "compute", str(part.plan)))
    bars.sort(key=lambda bar: bar[1])
    rows = list(dict.fromkeys(bar[0] for bar in bars))
    plot = open_figure(
        f"Plan in time ({plan.strategy}): complete {duration(plan.duration_s)} after the request; "
        f"diamonds are handovers",
        rows_height(len(rows), has_legend=True), y_range=rows[::-1], x_axis_type="datetime", zoom=True,
    )  # fmt: skip
    for kind in dict.fromkeys(bar[3] for bar in bars):
        mine = [bar for bar in bars if bar[3] == kind]
        source = source_of(
            y=[bar[0] for bar in mine],
            left=[_ms(bar[1]) for bar in mine],
            right=[_ms(bar[2]) for bar in mine],
            text=[bar[4] for bar in mine],
            seconds=[round((bar[2] - bar[1]).total_seconds(), 3) for bar in mine],
        )
        colour = _TRANSFER_COLOURS.get(kind, BLUE)
        drawn = plot.hbar(y="y", left="left", right="right", height=0.6, source=source, color=colour, legend_label=kind)
        add_hover(plot, [drawn], [("", "@y"), ("", "@text"), ("seconds", "@seconds")])
    _draw_handovers(plot, plan)
    for at, colour in ((plan.requested, INK), (plan.completion, VERMILION)):
        plot.add_layout(Span(location=_ms(at), dimension="height", line_dash="dashed", line_color=colour))
    plot.xaxis.axis_label = "UTC; dashed: request and completion"
    style_legend(plot)
    return plot


def _draw_handovers(plot: Any, plan: TimedPlan) -> None:
    kinds = {transfer.path: kind for kind in _TRANSFER_COLOURS for part in (plan, plan.concurrent) if part is not None
             for transfer in getattr(part, kind)}  # fmt: skip
    found = plan.handovers
    if not found:
        return
    source = source_of(
        x=[_ms(handover.at) for handover in found],
        y=[f"{kinds[handover.path]}: {_path(handover.path)}" for handover in found],
        left=[format_bytes(handover.bytes_left) for handover in found],
        next=[f"{_path(handover.next_path)} at {handover.next_start:%H:%M:%S}" for handover in found],
    )
    marks = plot.scatter(
        "x", "y", source=source, marker="diamond", size=16, color=INK, line_color="white", legend_label="handover"
    )
    add_hover(plot, [marks], [("left", "@left"), ("continues on", "@next")])


def _path(names: Sequence[str]) -> str:
    return " \N{RIGHTWARDS ARROW} ".join(names)


def _ms(at: datetime) -> float:
    """Return milliseconds since 1970, as bokeh's axes of time have them."""
    return at.timestamp() * 1e3
