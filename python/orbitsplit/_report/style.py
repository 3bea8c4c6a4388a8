"""How all figures of a report look: palette, sizes, axes. The one module that imports bokeh's plotting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orbitsplit._io.units import format_seconds

try:
    from bokeh.models import ColumnDataSource, HoverTool, NumeralTickFormatter
    from bokeh.plotting import figure
except ModuleNotFoundError as error:
    raise ImportError('reports need bokeh: pip install "orbitsplit[report]"') from error

# Distinguishable with the common colour-vision deficiencies: Okabe and Ito's palette.
BLUE, GREEN, ORANGE, PINK = "#0072B2", "#009E73", "#E69F00", "#CC79A7"
VERMILION, SKY, GREY, INK = "#D55E00", "#56B4E9", "#9AA5B1", "#1F2933"
PALETTE = (BLUE, ORANGE, GREEN, PINK, SKY, VERMILION)
GRID, LAND, SEA = "#E4E7EB", "#D9E2D5", "#F3F7FA"
FONT = "Inter, Segoe UI, Helvetica, Arial, sans-serif"
# The same for what bokeh draws of data, where a text is the name of a column.
GLYPH_FONT = {"value": FONT}

WIDTH = 1120
_ROW = 34
_FRAME = 66  # title, axis and margins
_LEGEND = 44  # and the date below an axis of time


def rows_height(rows: int, *, has_legend: bool = False) -> int:
    """Return the height in pixels of a figure with so many rows of bars."""
    return _FRAME + _ROW * max(rows, 1) + _LEGEND * has_legend


def duration(seconds: float) -> str:
    """Return seconds as a person would say them: 38 s, 12 min, 3 h 5 min."""
    if seconds < 120:
        return format_seconds(seconds)
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def open_figure(title: str, height: int, **options: Any) -> Any:
    """Return an empty figure as wide as the page, with wheel zoom along x where `zoom` says so."""
    zoom = options.pop("zoom", False)
    tools = "xpan,xwheel_zoom,xbox_zoom,reset,save" if zoom else options.pop("tools", "save")
    plot = figure(title=title, height=height, sizing_mode="stretch_width", tools=tools, **options)
    if zoom:
        # A page is scrolled by the wheel: zooming has to be chosen, by a click on its symbol.
        plot.toolbar.active_scroll = None
    plot.toolbar.logo = None
    plot.toolbar.autohide = True
    plot.outline_line_color = None
    plot.title.text_font = FONT
    plot.title.text_font_size = "13px"
    plot.title.text_color = INK
    for axis in plot.axis:
        axis.axis_line_color = GRID
        axis.major_tick_line_color = GRID
        axis.minor_tick_line_color = None
        axis.major_label_text_font = axis.axis_label_text_font = FONT
        axis.major_label_text_font_size = axis.axis_label_text_font_size = "12px"
        axis.major_label_text_color = axis.axis_label_text_color = "#52606D"
        axis.axis_label_text_font_style = "normal"
    plot.grid.grid_line_color = GRID
    plot.ygrid.grid_line_color = None
    return plot


def hidden_axes(plot: Any) -> None:
    """Leave out axes and grid, of drawings that have none."""
    plot.axis.visible = False
    plot.grid.visible = False


def source_of(**columns: Any) -> Any:
    """Return columns, sequences or arrays of one length, as a data source."""
    return ColumnDataSource(data=dict(columns))


def add_hover(plot: Any, renderers: Sequence[Any], tooltips: Sequence[tuple[str, str]]) -> None:
    """Show these lines where the pointer is over what the renderers draw."""
    plot.add_tools(HoverTool(renderers=list(renderers), tooltips=list(tooltips)))


def plain_numbers(axis: Any) -> None:
    """Write the numbers of an axis as 0.05, not as 5 x 10^-2."""
    axis.formatter = NumeralTickFormatter(format="0,0.[000000]")


def write_beside(plot: Any, source: Any) -> None:
    """Write the text of each bar at its foot, where there is always room."""
    plot.text(
        x=0, y="y", text="text", source=source, x_offset=8, text_baseline="middle", text_font=GLYPH_FONT,
        text_font_size="12px", text_color=INK, background_fill_color="white", background_fill_alpha=0.72, padding=2,
    )  # fmt: skip


def style_legend(plot: Any) -> None:
    """Put the legend above the figure; a click on an entry hides what it names."""
    legend = plot.legend[0]
    plot.add_layout(legend, "above")
    legend.orientation = "horizontal"
    legend.click_policy = "hide"
    legend.border_line_color = None
    legend.label_text_font = FONT
    legend.label_text_font_size = "12px"
    legend.padding = 2
    legend.glyph_height = legend.glyph_width = 14
