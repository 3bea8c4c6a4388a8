"""Timelines of traces as pictures; needs matplotlib (extra `report`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orbitsplit._io.validation import quoted

try:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
except ModuleNotFoundError as error:
    raise ImportError('pictures need matplotlib: pip install "orbitsplit[report]"') from error

from orbitsplit._io.files import atomic_write

from .lanes import lane_labels
from .trace import Trace

# Distinguishable with the common colour-vision deficiencies (Okabe and Ito's palette).
_COLOURS = {
    "compute": "#0072B2",
    "encode": "#CC79A7",
    "decode": "#E69F00",
    "send": "#009E73",
    "receive": "#D55E00",
}


# Vector formats, and the raster format that every viewer supports.
_FORMATS = (".pdf", ".png", ".svg")


def check_format(path: str | Path) -> None:
    """Raise ValueError unless pictures can be written with the suffix of `path`."""
    if Path(path).suffix not in _FORMATS:
        raise ValueError(f"{path} ends in {quoted(Path(path).suffix)}, pictures end in one of {', '.join(_FORMATS)}")


def timeline(traces: Mapping[str, Trace], path: str | Path) -> None:
    """Draw traces below each other on one time axis, a row per node and per link, and write the picture to `path`.

    The suffix of the file chooses the format (`.pdf`, `.png`, `.svg`). Waiting is white; prefill has the full colour,
    generation a lighter one. Beside each row is the part of the time for which it is busy.

    Raises:
        ValueError: There is no trace, or the suffix is another one.
    """
    check_format(path)
    if not traces:
        raise ValueError("no trace to draw")
    rows = max(len(trace.nodes) for trace in traces.values())
    figure = Figure(figsize=(12, len(traces) * (1.2 + 0.45 * rows)), layout="constrained")
    axes = figure.subplots(len(traces), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (title, trace) in zip(axes, traces.items(), strict=True):
        _draw(axis, title, trace)
    axes[-1].set_xlabel("seconds since the first prompt; prefill dark, generation light")
    kinds = {event.kind for trace in traces.values() for event in trace.events}
    handles = [Patch(color=colour, label=kind) for kind, colour in _COLOURS.items() if kind in kinds]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, dpi=120)


def _draw(axis: Any, title: str, trace: Trace) -> None:
    labels = lane_labels(trace)
    position = {lane: k for k, lane in enumerate(labels)}
    for event in trace.events:
        lane = (event.node, event.kind == "send")
        if event.kind in _COLOURS and lane in position:
            axis.broken_barh(
                [(event.start_s, event.duration_s)],
                (position[lane] - 0.4, 0.8),
                facecolors=_COLOURS[event.kind],
                alpha=1.0 if event.step <= 0 else 0.55,
                # Short events have a minimum width: otherwise some of many equal ones would be invisible.
                edgecolor=_COLOURS[event.kind],
                linewidth=0.5,
            )
    axis.set_yticks(range(len(labels)), list(labels.values()))
    axis.invert_yaxis()
    axis.set_title(f"{title}: {trace.stop_s:.2f} s", loc="left", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
