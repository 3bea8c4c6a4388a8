"""Figures of a chain of stages: the chain itself, and the memory and time of each stage and link."""

from __future__ import annotations

import math
from typing import Any

from bokeh.models import Arrow, Range1d, VeeHead

from orbitsplit._io.units import format_bytes, format_seconds

from .chain import Chain, Link
from .style import (
    BLUE,
    GLYPH_FONT,
    GREEN,
    GREY,
    INK,
    PALETTE,
    VERMILION,
    add_hover,
    hidden_axes,
    open_figure,
    plain_numbers,
    rows_height,
    source_of,
    write_beside,
)

# Stages of a row of the drawing; longer chains continue below.
_PER_ROW = 4
_BOX, _GAP, _LINE = 1.0, 0.72, 1.5


def chain_figure(chain: Chain) -> Any:
    """Draw the stages as boxes joined by links, four in a row."""
    rows = math.ceil(len(chain.nodes) / _PER_ROW)
    plot = open_figure("", 40 + 130 * rows, tools="save")
    hidden_axes(plot)
    places = [((k % _PER_ROW) * (_BOX + _GAP), -(k // _PER_ROW) * _LINE) for k in range(len(chain.nodes))]
    columns = min(len(places), _PER_ROW)
    plot.x_range = Range1d(-0.6, max(columns, 3) * (_BOX + _GAP) - _GAP / 2 - 0.4)
    plot.y_range = Range1d(-(rows - 1) * _LINE - 0.65, 0.65)
    for k, link in enumerate(chain.links):
        _draw_link(plot, places[k], places[k + 1], link)
    xs, ys = zip(*places, strict=True)
    memory = [format_bytes(count) for count in chain.memory_bytes] or [""] * len(places)
    source = source_of(x=xs, y=ys, node=chain.nodes, layers=chain.layers, memory=memory, colour=_colours(len(places)))
    boxes = plot.rect(
        "x", "y", _BOX, 0.74, source=source, fill_color="colour", fill_alpha=0.14, line_color="colour", line_width=2,
        border_radius=8,
    )  # fmt: skip
    centred = {"text_align": "center", "text_baseline": "middle", "text_font": GLYPH_FONT, "source": source}
    plot.text("x", "y", "node", y_offset=-22, text_font_size="14px", text_font_style="bold", **centred)
    plot.text("x", "y", "layers", text_font_size="12px", text_color="#52606D", **centred)
    plot.text("x", "y", "memory", y_offset=21, text_font_size="12px", text_color="#52606D", **centred)
    add_hover(plot, [boxes], [("node", "@node"), ("runs", "@layers"), ("memory", "@memory")])
    return plot


def _colours(count: int) -> list[str]:
    return [PALETTE[k % len(PALETTE)] for k in range(count)]


def _draw_link(plot: Any, start: tuple[float, float], end: tuple[float, float], link: Link) -> None:
    rate = "no limit" if link.bytes_per_s is None else f"{format_bits(link.bytes_per_s)}"
    if start[1] == end[1]:
        ends = (start[0] + _BOX / 2 + 0.03, start[1], end[0] - _BOX / 2 - 0.03, end[1])
        place = ((start[0] + end[0]) / 2, start[1])
    else:  # to the next row
        ends = (start[0], start[1] - 0.42, end[0], end[1] + 0.42)
        place = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
    head = VeeHead(size=10, fill_color=INK, line_color=INK)
    plot.add_layout(
        Arrow(
            end=head,
            x_start=ends[0],
            y_start=ends[1],
            x_end=ends[2],
            y_end=ends[3],
            line_color=INK,
            line_width=1.5,
        )
    )
    style = {"text_align": "center", "text_font": GLYPH_FONT, "text_font_size": "12px"}
    plot.text([place[0]], [place[1]], [rate], y_offset=-24, text_color=INK, **style)
    plot.text([place[0]], [place[1]], [format_seconds(link.latency_s)], y_offset=-8, text_color="#52606D", **style)
    plot.text([place[0]], [place[1]], [link.codec], y_offset=20, text_color=GREEN, text_font_style="bold", **style)


def format_bits(bytes_per_s: float) -> str:
    """Return a rate in bits per second with the prefix a person would choose."""
    return format_bytes(bytes_per_s * 8).replace("B", "bit/s").replace("  ", " ")


def memory_figure(chain: Chain) -> Any:
    """Draw the memory of each stage, and the limit of its node as a mark."""
    names = list(reversed(chain.nodes))
    used = list(reversed(chain.memory_bytes))
    limits = list(reversed(chain.memory_limit_bytes))
    plot = open_figure("Memory of each stage, and the limit of its node", rows_height(len(names)), y_range=names)
    unit, factor = _byte_unit(max([*used, *(limit for limit in limits if limit is not None)]))
    texts = [
        format_bytes(count) + ("" if not limit else f" of {format_bytes(limit)} ({100 * count / limit:.0f} %)")
        for count, limit in zip(used, limits, strict=True)
    ]
    source = source_of(y=names, right=[count / factor for count in used], text=texts)
    bars = plot.hbar(y="y", right="right", height=0.56, source=source, color=BLUE, fill_alpha=0.85)
    known = [(name, limit / factor) for name, limit in zip(names, limits, strict=True) if limit is not None]
    if known:
        marked, at = zip(*known, strict=True)
        plot.scatter(list(at), list(marked), marker="dash", angle=math.pi / 2, size=24, line_width=3, color=VERMILION)
    write_beside(plot, source)
    plot.x_range = Range1d(0, max([*used, *(limit or 0 for limit in limits)]) / factor * 1.02)
    plot.xaxis.axis_label = unit
    plain_numbers(plot.xaxis)
    add_hover(plot, [bars], [("@y", "@text")])
    return plot


def time_figures(chain: Chain) -> list[Any]:
    """Draw how long each stage and link is occupied, in prefill and for a token; the longest stands out."""
    figures = [_time_figure("Prefill: occupancy per micro-batch or chunk", chain, chain.stage_s, chain.link_s)]
    if chain.decode_stage_s:
        title = "Generation: occupancy per token step"
        figures.append(_time_figure(title, chain, chain.decode_stage_s, chain.decode_link_s))
    return figures


def _time_figure(title: str, chain: Chain, stages: tuple[float, ...], links: tuple[float, ...]) -> Any:
    names, seconds, colours = [], [], []
    for k, node in enumerate(chain.nodes):
        names.append(node)
        seconds.append(stages[k])
        colours.append(BLUE)
        if k < len(links):
            names.append(chain.link_names[k])
            seconds.append(links[k])
            colours.append(GREY)
    longest = max(range(len(seconds)), key=seconds.__getitem__)
    colours[longest] = VERMILION
    plot = open_figure(f"{title}; bottleneck: {names[longest]}", rows_height(len(names)), y_range=names[::-1])
    factor, unit = (1.0, "seconds") if max(seconds) >= 1 else (1e3, "milliseconds")
    texts = [format_seconds(value) for value in seconds]
    source = source_of(y=names, right=[value * factor for value in seconds], text=texts, colour=colours)
    bars = plot.hbar(y="y", right="right", height=0.56, source=source, color="colour", fill_alpha=0.85)
    write_beside(plot, source)
    plot.x_range = Range1d(0, max(max(seconds) * factor, 1e-9) * 1.02)
    plot.xaxis.axis_label = unit
    plain_numbers(plot.xaxis)
    add_hover(plot, [bars], [("@y", "@text")])
    return plot


def _byte_unit(largest: float) -> tuple[str, float]:
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if largest >= factor:
            return unit, factor
    return "B", 1.0
