"""Reports: plans, traces, problems and constellations as one page for a browser. Needs the extra `report` (bokeh)."""
