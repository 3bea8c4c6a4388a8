"""Timelines as pictures: the lanes and what stands beside them."""

from __future__ import annotations

from pathlib import Path

import orbitsplit as osp
from orbitsplit._plans.timeline import timeline


def test_a_timeline_names_what_occurs_and_how_busy_each_lane_is(tmp_path: Path) -> None:
    events = (
        osp.TraceEvent("a", "compute", 0, 0, 0.0, 1.0),
        osp.TraceEvent("a", "send", 0, 0, 1.0, 2.0),
        osp.TraceEvent("b", "compute", 0, 0, 2.0, 4.0),
    )
    timeline({"measured": osp.Trace(("a", "b"), events)}, tmp_path / "timeline.svg")
    picture = (tmp_path / "timeline.svg").read_text(encoding="utf-8")
    words = [line.strip(" <!->") for line in picture.splitlines() if line.strip().startswith("<!--")]
    assert {"a  25 %", "a link  25 %", "b  50 %", "compute", "send"} <= set(words)
    assert {"encode", "decode", "receive", "b link  0 %"} & set(words) == set()
