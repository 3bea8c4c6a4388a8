"""Figures that compare plans: the certificate, alternatives, and Pareto fronts to click on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bokeh.layouts import column
from bokeh.models import DataTable, NumberFormatter, Range1d, Span, TableColumn

from orbitsplit._io.units import format_seconds
from orbitsplit._planner.certificate import Alternative, Certificate
from orbitsplit._planner.pareto import ParetoFront
from orbitsplit._planner.problem import Problem
from orbitsplit._plans.fronts import LatencyFront

from .style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    VERMILION,
    add_hover,
    open_figure,
    plain_numbers,
    rows_height,
    source_of,
    write_beside,
)


def alternatives_figure(total_s: float, lower_bound_s: float | None, others: Sequence[Alternative]) -> Any | None:
    """Draw the delay of a plan beside that of others; None if no other has one."""
    rows = [("this plan", total_s, "", True)]
    rows += [(other.name, other.total_s, other.breaks, False) for other in others if other.total_s is not None]
    if len(rows) == 1:
        return None
    rows.sort(key=lambda row: (row[1], not row[3]), reverse=True)  # the first is at the bottom
    names = [row[0] for row in rows]
    seconds = [row[1] for row in rows]
    colours = [BLUE if mine else VERMILION if breaks else GREY for _, _, breaks, mine in rows]
    texts = [
        format_seconds(value)
        + ("" if mine else f", {100 * (value / total_s - 1):+.0f} %")
        + (f"; {breaks}" if breaks else "")
        for _, value, breaks, mine in rows
    ]
    title = "This plan and others: blue is this one, red would violate a limit"
    plot = open_figure(title, rows_height(len(rows)), y_range=names)
    # One alternative that takes a hundred times as long would make all others invisible.
    longest = min(max(seconds), 6 * total_s)
    source = source_of(y=names, right=[min(value, longest) for value in seconds], text=texts, colour=colours)
    bars = plot.hbar(y="y", right="right", height=0.56, source=source, color="colour", fill_alpha=0.8)
    write_beside(plot, source)
    plot.x_range = Range1d(0, longest * 1.02)
    if lower_bound_s:
        plot.add_layout(Span(location=lower_bound_s, dimension="height", line_dash="dashed", line_color=INK))
        plot.xaxis.axis_label = "seconds; dashed: no plan takes less"
    else:
        plot.xaxis.axis_label = "seconds"
    plain_numbers(plot.xaxis)
    add_hover(plot, [bars], [("@y", "@text")])
    return plot


def binding_figure(certificate: Certificate) -> Any | None:
    """Draw what each binding constraint costs; None if none binds."""
    if not certificate.binding or not certificate.total_s:
        return None
    rows = [
        (binding.constraint, 100 * (1 - binding.total_s / certificate.total_s), binding.relaxed)
        for binding in reversed(certificate.binding)
    ]
    names = [row[0] for row in rows]
    plot = open_figure("What holds the plan back: the gain if it were relaxed", rows_height(len(rows)), y_range=names)
    texts = [f"{gain:.1f} % less if {relaxed}" for _, gain, relaxed in rows]
    source = source_of(y=names, right=[row[1] for row in rows], text=texts)
    bars = plot.hbar(y="y", right="right", height=0.56, source=source, color=ORANGE, fill_alpha=0.85)
    write_beside(plot, source)
    plot.x_range = Range1d(0, max(max(row[1] for row in rows), 1e-6) * 1.02)
    plot.xaxis.axis_label = "% of the delay"
    plain_numbers(plot.xaxis)
    add_hover(plot, [bars], [("@y", "@text")])
    return plot


def problem_front(front: ParetoFront, problem: Problem) -> Any:
    """Draw the front of delay against a limit, with a table of its plans: a click on either selects in both."""
    points = front.points
    stages = [
        "  ".join(
            f"{problem.nodes[stage.node].name} {stage.start}-{stage.stop - 1}"
            + ("" if stage.level is None else f" \N{RIGHTWARDS ARROW} {problem.levels[stage.level].name}")
            for stage in point.solution.stages
        )
        for point in points
    ]
    label, column_title = (
        ("total loss of the plan", "loss") if front.over == "loss_budget" else ("factor on all memory", "memory")
    )
    columns: dict[str, Sequence[Any]] = {
        "x": [point.limit for point in points],
        "y": [point.solution.objective_s or 0.0 for point in points],
        "count": [len(point.solution.stages) for point in points],
        "plan": stages,
    }
    return _front(columns, (label, "seconds"), (column_title, "seconds"))


def latency_front(front: LatencyFront) -> Any:
    """Draw the front of the time per token against the throughput, as `problem_front`."""
    columns: dict[str, Sequence[Any]] = {
        "x": [point.tokens_per_s for point in front.points],
        "y": [point.time_per_token_s for point in front.points],
        "count": [len(point.plan.stages) for point in front.points],
        "plan": [
            f"{point.plan.workload.micro_batches} x {point.plan.workload.batch_size}: {point.plan}"
            for point in front.points
        ],
    }
    return _front(columns, ("tokens per second of all sequences", "seconds per token"), ("tokens/s", "s per token"))


def _front(columns: dict[str, Sequence[Any]], labels: tuple[str, str], titles: tuple[str, str]) -> Any:
    source = source_of(**columns)
    # What is first is shown as selected, so that nobody has to guess that points can be clicked.
    source.selected.indices = [len(columns["x"]) - 1]
    plot = open_figure(
        "Pareto front: click a point, or a line of the table below", 340, tools="tap,pan,box_zoom,wheel_zoom,reset,save"
    )
    plot.toolbar.active_scroll = None
    # Of its own data: what is selected fades the rest.
    plot.step(list(columns["x"]), list(columns["y"]), mode="after", line_color=GREY, line_dash="dotted")
    dots = plot.scatter(
        "x", "y", source=source, size=14, color=BLUE, line_color="white", selection_color=VERMILION,
        nonselection_fill_alpha=0.6, nonselection_line_alpha=1.0,
    )  # fmt: skip
    plot.ygrid.grid_line_color = plot.xgrid.grid_line_color
    plot.xaxis.axis_label, plot.yaxis.axis_label = labels
    plain_numbers(plot.xaxis)
    plain_numbers(plot.yaxis)
    add_hover(plot, [dots], [(titles[0], "@x{0.[000000]}"), (titles[1], "@y{0.[0000]}"), ("stages", "@count")])
    number = NumberFormatter(format="0.[00000]")
    table = DataTable(
        source=source,
        columns=[
            TableColumn(field="x", title=titles[0], formatter=number, width=90),
            TableColumn(field="y", title=titles[1], formatter=number, width=90),
            TableColumn(field="count", title="stages", width=60),
            TableColumn(field="plan", title="plan: node, layers, codec of the cut after them", width=800),
        ],
        index_position=None,
        reorderable=False,
        sizing_mode="stretch_width",
        height=min(60 + 26 * len(columns["x"]), 300),
    )
    return column(plot, table, sizing_mode="stretch_width")
