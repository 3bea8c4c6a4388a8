"""Traces: order, totals, JSON, and the export for trace viewers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orbitsplit._plans.trace import KINDS, Recorder, Trace, TraceEvent, merge

EVENTS = (
    TraceEvent("a", "compute", 0, 0, 0.0, 1.0),
    TraceEvent("a", "send", 0, 0, 1.0, 3.0),
    TraceEvent("b", "wait", 0, 0, 0.0, 3.5),
    TraceEvent("b", "compute", 0, 0, 3.5, 4.0),
)
TRACE = Trace(nodes=("a", "b"), events=EVENTS, slowdowns=(1.0, 2.5))


def test_merge_orders_events_and_counts_seconds_from_the_origin() -> None:
    recorders = [Recorder(), Recorder()]
    for recorder in recorders:
        recorder.begin(0)
        recorder.begin(1)
    recorders[0].add("compute", 0, 0, 100.0, 101.0)
    recorders[0].add("compute", 1, 0, 102.0, 103.0)
    recorders[1].add("wait", 0, 0, 90.0, 101.5)
    recorders[1].add("compute", 0, 0, 101.5, 102.5)
    recorded = [[*r.take(0)[0], *r.take(1)[0]] for r in recorders]
    trace = merge(("a", "b"), recorded, origin_s=100.0, slowdowns=(1.0, 1.0))
    assert [(e.node, e.kind, e.start_s, e.stop_s) for e in trace.events] == [
        ("a", "compute", 0.0, 1.0),
        ("b", "wait", 0.0, 1.5),  # began before the run did
        ("b", "compute", 1.5, 2.5),
        ("a", "compute", 2.0, 3.0),
    ]


def test_a_recorder_keeps_only_selected_groups_and_drops_what_was_taken() -> None:
    recorder = Recorder()
    recorder.begin(5)
    recorder.add("compute", 5, 0, 1.0, 2.0, cpu_s=0.75)
    recorder.add("compute", 6, 0, 1.0, 2.0, cpu_s=0.75)
    recorder.begin(5)  # a group that begins again continues
    recorder.add("encode", 5, 1, 2.0, 2.5, cpu_s=0.25)
    assert recorder.take(5) == ((("compute", 5, 0, 1.0, 2.0), ("encode", 5, 1, 2.0, 2.5)), 1.0)
    assert recorder.take(5) == recorder.take(6) == ((), 0.0)
    recorder.add("compute", 5, 2, 3.0, 4.0)
    assert recorder.take(5) == ((), 0.0)


def test_totals_are_seconds_per_node_and_kind() -> None:
    totals = TRACE.totals()
    assert totals["a"] == {**dict.fromkeys(KINDS, 0.0), "compute": 1.0, "send": 2.0}
    assert totals["b"] == {**dict.fromkeys(KINDS, 0.0), "compute": 0.5, "wait": 3.5}
    assert TRACE.stop_s == 4.0
    assert TRACE.of("b", "compute") == (EVENTS[3],)


def test_an_empty_trace_ends_at_zero() -> None:
    assert Trace(nodes=("a",), events=()).stop_s == 0.0


def test_json_round_trip(tmp_path: Path) -> None:
    TRACE.save(tmp_path / "trace.json")
    assert Trace.load(tmp_path / "trace.json") == TRACE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "something"}, "expected format .*'something'"),
        ({"version": 7}, "version 7"),
        ({"events": [[0, "sleep", 0, 0, 0.0, 1.0]]}, r"events\[0\] has kind 'sleep'"),
        ({"events": [[0, "send"]]}, r"events\[0\] has 2 values"),
        ({"slowdowns": [1.0]}, "slowdowns are 1, must be 0 or 2"),
        ({"colour": 1}, "colour"),
        ({"events": [[2, "send", 0, 0, 0.0, 1.0]]}, "node 2, the trace has 2 nodes"),
    ],
)
def test_what_is_no_trace_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trace.from_dict({**TRACE.to_dict(), **change})


def test_an_event_of_a_wrong_type_is_named() -> None:
    with pytest.raises(TypeError, match=r"events\[0\]: node is 'a'"):
        Trace.from_dict({**TRACE.to_dict(), "events": [["a", "send", 0, 0, 0.0, 1.0]]})


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[]", "is list, must be an object")])
def test_what_is_no_json_object_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Trace.load(path)


def test_chrome_export_has_a_process_per_node_and_its_link_as_a_thread() -> None:
    exported = json.loads(json.dumps(TRACE.to_chrome()))
    records = exported["traceEvents"]
    names = [r["args"]["name"] for r in records if r["name"] == "process_name"]
    assert names == ["a", "b (2.5x slower than this machine)"]
    spans = [r for r in records if r["ph"] == "X"]
    assert [(r["pid"], r["tid"], r["cat"], r["ts"], r["dur"]) for r in spans] == [
        (0, 0, "compute", 0.0, 1e6),
        (0, 1, "send", 1e6, 2e6),
        (1, 0, "wait", 0.0, 3.5e6),
        (1, 0, "compute", 3.5e6, 0.5e6),
    ]
