"""What an experiment returns: numbers to draw, with their names and the assumptions behind them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

Values = tuple[float | None, ...]
Places = tuple[float | str, ...]


@dataclass(frozen=True)
class Chart:
    """Lines over one axis: `series` has one value for each of `x`, None where a strategy is not possible.

    `x` are names or numbers. `log_x`, `log_y`: logarithmic axes. `is_joined`: whether lines join the values; there is
    nothing between two models.

    Raises:
        ValueError: A series has another length than `x`.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    x: Places
    series: dict[str, Values]
    notes: tuple[str, ...] = ()
    log_x: bool = False
    log_y: bool = False
    is_joined: bool = True

    def __post_init__(self) -> None:
        for name, values in self.series.items():
            if len(values) != len(self.x):
                raise ValueError(f"{name!r} of chart {self.name} has {len(values)} values, x has {len(self.x)}")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {"kind": "lines", **asdict(self)}


@dataclass(frozen=True)
class Map:
    """A ratio over two axes, `values[y][x]`: below 1 splitting is faster, above 1 it is slower.

    None: not possible.

    Raises:
        ValueError: The rows do not fit the axes.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    x: Places
    y: Places
    values: tuple[Values, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.values) != len(self.y) or any(len(row) != len(self.x) for row in self.values):
            raise ValueError(f"map {self.name} has {len(self.values)} rows for {len(self.y)} x {len(self.x)} places")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {"kind": "map", **asdict(self)}


def tick(x: float | str) -> str:
    """Return the label of a place on an axis."""
    return x if isinstance(x, str) else f"{x:g}"
