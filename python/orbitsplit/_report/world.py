"""The world map of a report: land, stations and their view, ground tracks, satellites and links at a slider's time."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from bokeh.layouts import column
from bokeh.models import CDSView, FixedTicker, GroupFilter, Range1d, Slider

from orbitsplit.leo._orbits.earth import EARTH_RADIUS_KM, period_s

from .style import (
    BLUE,
    FONT,
    GLYPH_FONT,
    GREEN,
    GRID,
    INK,
    LAND,
    ORANGE,
    SEA,
    VERMILION,
    add_hover,
    open_figure,
    source_of,
)

if TYPE_CHECKING:
    from orbitsplit.leo import Constellation, Station

Array = npt.NDArray[np.float64]

# Of the eccentricity of the Earth's ellipsoid (WGS84), squared.
_E2 = 0.00669437999
_TRACK_POINTS = 181
_MOST_TRACKS = 24
# Ends of links in the file: four numbers of four bytes each, a third more as text.
_MOST_LINK_ROWS = 90_000
_MOST_STEPS, _LEAST_STEPS = 96, 8


@dataclass(frozen=True)
class Sky:
    """Satellites over one orbit: minutes after the epoch [T], longitudes and latitudes [N, T], stations in view."""

    minutes: npt.NDArray[np.uint16]
    longitude_deg: Array
    latitude_deg: Array
    pairs: list[npt.NDArray[np.int64]]
    in_view: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, fleet: Constellation) -> Sky:
        """Propagate a constellation over one orbit, at as many instants as a file can hold."""
        links = len(fleet.links(fleet.epoch)[0]) or 1
        steps = int(np.clip(_MOST_LINK_ROWS // links, _LEAST_STEPS, _MOST_STEPS))
        period_min = _period_min(fleet)
        minutes = np.arange(0, period_min, math.ceil(period_min / steps))
        times = [fleet.epoch + timedelta(minutes=float(minute)) for minute in minutes]
        longitude, latitude = _below(fleet.positions(times, frame="earth_fixed"))
        pairs = [fleet.links(at)[0] for at in times]
        in_view = np.zeros((0, len(fleet), len(times)), np.bool_)
        if fleet.stations:
            masks = np.array([station.mask_deg for station in fleet.stations])
            in_view = fleet.elevation_deg(times) >= masks[:, None, None]
        return cls(minutes.astype(np.uint16), longitude, latitude, pairs, in_view)


def world_figure(fleet: Constellation, chain: Sequence[str]) -> Any:
    """Draw the constellation on a map, with a slider for the time within one orbit."""
    sky = Sky.of(fleet)
    start = f"{fleet.epoch:%Y-%m-%d %H:%M}"
    plot = open_figure(
        f"{len(fleet):,} satellites over one orbit from {start} UTC", 600, tools="pan,wheel_zoom,box_zoom,reset,save"
    )
    plot.toolbar.active_scroll = None
    plot.x_range, plot.y_range = Range1d(-180, 180), Range1d(-90, 90)
    plot.background_fill_color = SEA
    plot.xaxis.ticker, plot.yaxis.ticker = (
        FixedTicker(ticks=list(range(-180, 181, 30))),
        FixedTicker(ticks=list(range(-90, 91, 30))),
    )
    plot.ygrid.grid_line_color = GRID
    _draw_land(plot)
    in_chain = [name for name in chain if len(chain) > 1 or len(fleet) > _MOST_TRACKS]
    _draw_tracks(plot, fleet, in_chain or fleet.names[:_MOST_TRACKS])
    _draw_stations(plot, fleet)
    filters = [_draw_links(plot, sky, fleet), *_draw_satellites(plot, fleet, sky, in_chain)]
    if plot.legend:
        plot.legend.click_policy = "hide"
        plot.legend.location = "bottom_left"
        plot.legend.background_fill_alpha = 0.8
        plot.legend.border_line_color = None
        plot.legend.label_text_font = FONT
    slider = Slider(
        start=0, end=int(sky.minutes[-1]), step=int(sky.minutes[1]), value=0, sizing_mode="stretch_width",
        title=f"Minutes after {start} UTC",
    )  # fmt: skip
    for chosen in filters:
        slider.js_link("value", chosen, "group")
    return column(slider, plot, sizing_mode="stretch_width")


def _period_min(fleet: Constellation) -> float:
    return float(period_s(fleet.satellites[0].apogee_km)) / 60


def _below(positions: Array) -> tuple[Array, Array]:
    """Return longitude and latitude below Earth-fixed positions, as good as a map needs (0.01 deg in low orbits)."""
    x, y, z = np.moveaxis(positions, -1, 0)
    return np.degrees(np.arctan2(y, x)), np.degrees(np.arctan2(z, (1 - _E2) * np.hypot(x, y)))


def _draw_land(plot: Any) -> None:
    file = resources.files("orbitsplit") / "_report" / "land.json"
    land = json.loads(file.read_text(encoding="utf-8"))
    xs = [[[[x for x, _ in ring] for ring in piece]] for piece in land]
    ys = [[[[y for _, y in ring] for ring in piece]] for piece in land]
    plot.multi_polygons(xs=xs, ys=ys, fill_color=LAND, line_color="#A9BBA2", line_width=0.6)


def split_at_date_line(longitude: Array, latitude: Array) -> tuple[Array, Array]:
    """Return a line with a gap (NaN) wherever it leaves the map on one side and returns on the other."""
    jumps = np.nonzero(np.abs(np.diff(longitude)) > 180)[0] + 1
    return np.insert(longitude, jumps, np.nan), np.insert(latitude, jumps, np.nan)


def _draw_tracks(plot: Any, fleet: Constellation, names: Sequence[str]) -> None:
    minutes = np.linspace(0.0, _period_min(fleet), _TRACK_POINTS)
    times = [fleet.epoch + timedelta(minutes=float(minute)) for minute in minutes]
    chosen = [fleet.index(name) for name in names]
    part = type(fleet)(fleet.name, tuple(fleet.satellites[k] for k in chosen))
    longitude, latitude = _below(part.positions(times, frame="earth_fixed"))
    lines = [split_at_date_line(longitude[k], latitude[k]) for k in range(len(chosen))]
    source = source_of(xs=[x.astype(np.float32) for x, _ in lines], ys=[y.astype(np.float32) for _, y in lines])
    plot.multi_line(
        "xs", "ys", source=source, line_color=ORANGE, line_alpha=0.5, line_width=1.2, legend_label="ground tracks"
    )


def _draw_stations(plot: Any, fleet: Constellation) -> None:
    if not fleet.stations:
        return
    altitude_km = fleet.satellites[0].apogee_km
    for station in fleet.stations:
        plot.line(
            *split_at_date_line(*view_of(station, altitude_km)), line_color=VERMILION, line_dash="dashed",
            legend_label="view of a station",
        )  # fmt: skip
    source = source_of(
        x=[station.longitude_deg for station in fleet.stations],
        y=[station.latitude_deg for station in fleet.stations],
        name=[station.name for station in fleet.stations],
        mask=[station.mask_deg for station in fleet.stations],
    )
    marks = plot.scatter(
        "x", "y", source=source, marker="triangle", size=13, color=VERMILION, line_color="white", legend_label="station"
    )
    plot.text("x", "y", "name", source=source, x_offset=9, y_offset=-6, text_font=GLYPH_FONT, text_font_size="12px")
    add_hover(plot, [marks], [("station", "@name"), ("sees from", "@mask deg")])


def view_of(station: Station, altitude_km: float) -> tuple[Array, Array]:
    """Return the circle on the ground within which a station sees satellites at this altitude."""
    mask = np.radians(station.mask_deg)
    radius = np.arccos(EARTH_RADIUS_KM * np.cos(mask) / (EARTH_RADIUS_KM + altitude_km)) - mask
    bearing = np.linspace(0, 2 * np.pi, 121)
    latitude, longitude = np.radians(station.latitude_deg), np.radians(station.longitude_deg)
    sine = np.sin(latitude) * np.cos(radius) + np.cos(latitude) * np.sin(radius) * np.cos(bearing)
    east = np.arctan2(np.sin(bearing) * np.sin(radius) * np.cos(latitude), np.cos(radius) - np.sin(latitude) * sine)
    return (np.degrees(longitude + east) + 180) % 360 - 180, np.degrees(np.arcsin(sine))


def _segments(sky: Sky, fleet: Constellation) -> tuple[Array, Array]:
    """Return ends (x0, y0, x1, y1) of all links at all instants, and the instant of each; two where one is cut."""
    ends, steps = [], []
    for step, pairs in enumerate(sky.pairs):
        a, b = pairs[:, 0], pairs[:, 1]
        rows = [np.stack([sky.longitude_deg[a, step], sky.latitude_deg[a, step],
                          sky.longitude_deg[b, step], sky.latitude_deg[b, step]], axis=1)]  # fmt: skip
        for k, station in enumerate(fleet.stations):
            seen = np.nonzero(sky.in_view[k, :, step])[0]
            ground = np.broadcast_to([station.longitude_deg, station.latitude_deg], (len(seen), 2))
            above = np.stack([sky.longitude_deg[seen, step], sky.latitude_deg[seen, step]], axis=1)
            rows.append(np.concatenate([ground, above], axis=1))
        found = _cut_at_date_line(np.concatenate(rows))
        ends.append(found)
        steps.append(np.full(len(found), sky.minutes[step]))
    return np.concatenate(ends), np.concatenate(steps)


def _cut_at_date_line(ends: Array) -> Array:
    """Return segments, of which those that cross the date line are two, one on each side of the map."""
    far = np.abs(ends[:, 2] - ends[:, 0]) > 180
    turn = 360 * np.sign(ends[far, 0])
    left, right = ends[far].copy(), ends[far].copy()
    left[:, 2] += turn
    right[:, 0] -= turn
    return np.concatenate([ends[~far], left, right])


def _draw_links(plot: Any, sky: Sky, fleet: Constellation) -> Any:
    ends, steps = _segments(sky, fleet)
    source = source_of(
        **{name: ends[:, k].astype(np.float32) for k, name in enumerate(("x0", "y0", "x1", "y1"))},
        minute=steps.astype(np.uint16),
    )
    chosen = GroupFilter(column_name="minute", group=0)
    is_large = len(fleet) > 200
    plot.segment(
        "x0", "y0", "x1", "y1", source=source, view=CDSView(filter=chosen), line_color=GREEN,
        line_alpha=0.35 if is_large else 0.8, line_width=0.7 if is_large else 1.6, legend_label="links",
    )  # fmt: skip
    return chosen


def _draw_satellites(plot: Any, fleet: Constellation, sky: Sky, chain: Sequence[str]) -> list[Any]:
    marked = {fleet.index(name) for name in chain}
    others = [k for k in range(len(fleet)) if k not in marked]
    filters = []
    for members, colour, size, label in (
        (others, BLUE, 3 if len(fleet) > 200 else 9, "satellites"),
        (sorted(marked), INK, 10, "satellites of the chain"),
    ):
        if not members:
            continue
        count, steps = len(members), len(sky.minutes)
        source = source_of(
            x=sky.longitude_deg[members].T.ravel().astype(np.float32),
            y=sky.latitude_deg[members].T.ravel().astype(np.float32),
            minute=np.repeat(sky.minutes, count),
            name=[fleet.names[k] for k in members] * steps,
        )
        chosen = GroupFilter(column_name="minute", group=0)
        view = CDSView(filter=chosen)
        dots = plot.scatter(
            "x", "y", source=source, view=view, size=size, color=colour, line_color=None, legend_label=label
        )
        if count <= 60:
            plot.text(
                "x", "y", "name", source=source, view=view, x_offset=7, y_offset=-5, text_font=GLYPH_FONT,
                text_font_size="11px", text_color=INK,
            )  # fmt: skip
        add_hover(plot, [dots], [("satellite", "@name"), ("longitude, latitude", "@x{0.0}, @y{0.0}")])
        filters.append(chosen)
    return filters
