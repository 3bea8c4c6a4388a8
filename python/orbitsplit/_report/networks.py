"""The figure of a network: nodes in a circle, links between them, and the stages of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from bokeh.models import Range1d

from orbitsplit._io.units import format_bytes, format_seconds
from orbitsplit._network.network import Network, Node

from .stages import format_bits
from .style import BLUE, GLYPH_FONT, GREY, INK, VERMILION, add_hover, hidden_axes, open_figure, source_of

# More names would cover each other.
_MOST_NAMES = 60


def network_figure(network: Network, stages: Sequence[str] = ()) -> Any:
    """Draw a network; `stages` are the nodes of a plan, in order."""
    plot = open_figure("", 480, tools="pan,wheel_zoom,box_zoom,reset,save", match_aspect=True)
    plot.toolbar.active_scroll = None
    hidden_axes(plot)
    plot.x_range, plot.y_range = Range1d(-3.2, 3.2), Range1d(-1.35, 1.35)
    angle = np.pi / 2 - 2 * np.pi * np.arange(len(network.nodes)) / len(network.nodes)
    # An ellipse: the page is wider than high.
    x, y = 2.2 * np.cos(angle), np.sin(angle)
    place = {node.name: k for k, node in enumerate(network.nodes)}
    a = np.array([place[link.source] for link in network.links], np.int64)
    b = np.array([place[link.destination] for link in network.links], np.int64)
    links = source_of(
        x0=x[a], y0=y[a], x1=x[b], y1=y[b],
        name=[f"{link.source} \N{RIGHTWARDS ARROW} {link.destination}" for link in network.links],
        rate=[format_bits(link.bytes_per_s) for link in network.links],
        latency=[format_seconds(link.latency_s) for link in network.links],
    )  # fmt: skip
    is_large = len(network.nodes) > _MOST_NAMES
    lines = plot.segment(
        "x0", "y0", "x1", "y1", source=links, color=GREY, alpha=0.25 if is_large else 0.7, line_width=1.5
    )
    for source, destination in pairwise(name for name in stages if name in place):
        i, j = place[source], place[destination]
        plot.segment([x[i]], [y[i]], [x[j]], [y[j]], color=VERMILION, line_width=3.5)
    colours = [VERMILION if node.name in stages else BLUE for node in network.nodes]
    nodes = source_of(
        x=x, y=y, colour=colours,
        name=[node.name for node in network.nodes],
        memory=[format_bytes(node.memory_bytes) for node in network.nodes],
        speed=[_speed(node) for node in network.nodes],
    )  # fmt: skip
    dots = plot.scatter("x", "y", source=nodes, size=6 if is_large else 20, color="colour", line_color="white")
    if not is_large:
        _write_names(plot, network, x, y)
    add_hover(plot, [lines], [("link", "@name"), ("rate", "@rate"), ("latency", "@latency")])
    add_hover(plot, [dots], [("node", "@name"), ("memory", "@memory"), ("speed", "@speed")])
    return plot


def _write_names(plot: Any, network: Network, x: Any, y: Any) -> None:
    for side, align in ((x >= -1e-9, "left"), (x < -1e-9, "right")):
        chosen = np.nonzero(side)[0]
        plot.text(
            x[chosen],
            y[chosen],
            [f"{network.nodes[k].name}, {format_bytes(network.nodes[k].memory_bytes)}" for k in chosen],
            x_offset=15 if align == "left" else -15,
            text_align=align,
            text_baseline="middle",
            text_font=GLYPH_FONT,
            text_font_size="12px",
            text_color=INK,
        )


def _speed(node: Node) -> str:
    return f"{node.flop_per_s / 1e12:.3g} TFLOP/s" if node.flop_per_s else f"slowdown {node.slowdown:g}"
