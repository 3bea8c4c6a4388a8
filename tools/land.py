"""Write python/orbitsplit/_report/land.json, the outlines of land that reports draw, from Natural Earth's countries.

Natural Earth 1:110m is in the public domain. geopandas was its packager on PyPI up to 0.14.4, with the shapefile in the
wheel:

    pip download --no-deps geopandas==0.14.4 && unzip geopandas-0.14.4-*.whl 'geopandas/datasets/*'
    pip install pyshp shapely
    python tools/land.py geopandas/datasets/naturalearth_lowres/naturalearth_lowres.shp

Countries are joined, so that no border is drawn, and coordinates rounded to a hundredth of a degree (1 km).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import shapefile
from shapely.geometry import shape
from shapely.ops import unary_union

OUTPUT = Path(__file__).parents[1] / "python/orbitsplit/_report/land.json"
# What is left of borders that do not meet exactly, in degrees.
_SLIVER_DEG = 0.02


def main(path: str) -> None:
    """Write the outer and inner rings of every piece of land, as lists of [longitude, latitude]."""
    countries = [shape(record.__geo_interface__) for record in shapefile.Reader(path).shapes()]
    land = unary_union([country.buffer(_SLIVER_DEG) for country in countries]).buffer(-_SLIVER_DEG)
    polygons = [[_ring(piece.exterior), *map(_ring, piece.interiors)] for piece in land.geoms]
    OUTPUT.write_text(json.dumps(polygons, separators=(",", ":")) + "\n", encoding="utf-8")


def _ring(ring: Any) -> list[list[float]]:
    return [[round(x, 2), round(y, 2)] for x, y, *_ in ring.simplify(_SLIVER_DEG).coords]


if __name__ == "__main__":
    main(*sys.argv[1:])
