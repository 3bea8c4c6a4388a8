"""Pictures of the experiments; needs matplotlib (extra `report`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

try:
    from matplotlib import rc_context
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise ImportError('pictures need matplotlib: pip install "orbitsplit[report]"') from error

from orbitsplit._io.files import atomic_write

from .charts import Chart, Map, tick

FORMATS = (".png", ".svg")
# Okabe and Ito's palette, distinguishable with the common colour-vision deficiencies.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_MARKERS = "osv^Dx+*Ph<>"


def draw(shown: Chart | Map, folder: Path) -> tuple[Path, ...]:
    """Write the picture of a chart or a map in every format; the same numbers give the same files."""
    with rc_context({"svg.hashsalt": "orbitsplit"}):
        figure = _lines(shown) if isinstance(shown, Chart) else _map(shown)
        paths = tuple(folder / f"{shown.name}{ending}" for ending in FORMATS)
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
            with atomic_write(path) as unfinished:
                figure.savefig(unfinished, dpi=110, metadata=metadata)
    return paths


def _lines(chart: Chart) -> Any:
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    axis: Any = figure.subplots()
    are_names = any(isinstance(x, str) for x in chart.x)
    places: Sequence[Any] = range(len(chart.x)) if are_names else chart.x
    families = {"--": 0, "-": 0}
    for name, values in chart.series.items():
        known = [(x, y) for x, y in zip(places, values, strict=True) if y is not None]
        if known:
            style = "--" if name.startswith("ground") else "-"
            k = families[style]
            families[style] += 1
            drawn = style if chart.is_joined else ""
            line: dict[str, Any] = {"color": _COLOURS[k % len(_COLOURS)], "linestyle": drawn, "linewidth": 1.3}
            if len(known) <= 50:
                filled = style == "--" and not chart.is_joined  # the only difference that is left without lines
                line |= {
                    "marker": _MARKERS[k % len(_MARKERS)],
                    "markersize": 5,
                    "fillstyle": "full" if filled else "none",
                }
            axis.plot(*zip(*known, strict=True), label=name, **line)
    if chart.log_x:
        axis.set_xscale("log")
    if are_names or (chart.log_x and len(chart.x) <= 9):
        axis.set_xticks(list(places), list(map(tick, chart.x)))
        axis.minorticks_off()
    elif chart.log_x:
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("{x:g}")
    if chart.log_y:
        axis.set_yscale("log")
    axis.set_xlabel(chart.x_label)
    axis.set_ylabel(chart.y_label)
    axis.set_title(chart.title, loc="left", fontsize=10)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    if len(chart.series) > 1:
        figure.legend(loc="outside right center", frameon=False, fontsize=8)
    return figure


def _map(shown: Map) -> Any:
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axis: Any = figure.subplots()
    values = [[math.nan if value is None else value for value in row] for row in shown.values]
    known = [value for row in values for value in row if math.isfinite(value)]
    reach = max([max(value, 1 / value) for value in known if value > 0], default=2.0)
    # Blue: split; orange: do not. The same distance from 1 has the same strength of colour on both sides.
    image = axis.imshow(values, cmap="PuOr_r", norm=LogNorm(1 / reach, reach), aspect="auto", origin="lower")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            far = abs(math.log(value)) > 0.6 * math.log(reach) if value > 0 else False
            axis.text(x, y, f"{value:.2g}", ha="center", va="center", fontsize=8, color="white" if far else "black")
    axis.set_xticks(range(len(shown.x)), list(map(tick, shown.x)))
    axis.set_yticks(range(len(shown.y)), list(map(tick, shown.y)))
    axis.set_xlabel(shown.x_label)
    axis.set_ylabel(shown.y_label)
    axis.set_title(shown.title, loc="left", fontsize=10)
    bar = figure.colorbar(image, label="below 1: split; above 1: do not", format="{x:g}")
    bar.ax.yaxis.set_minor_formatter("{x:g}")  # of less than a decade all ticks are minor ones: not 6 x 10^0
    return figure
