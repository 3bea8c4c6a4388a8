"""Reports as files: what they are made of and what they hold. tests/browser opens them in a browser."""

from __future__ import annotations

import json
import re
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

import orbitsplit as osp
from orbitsplit import leo
from orbitsplit._plans.lanes import utilisation
from orbitsplit._report.documents import open_document
from orbitsplit._report.page import LARGEST_BYTES, Page, Section
from orbitsplit._report.world import split_at_date_line, view_of
from tests.support.paths import DATA
from tests.support.report_inputs import measured_like, reported_network, reported_plan, reported_profile, timed_plan
from tests.support.small_inputs import NETWORK


def text_of(path: Path) -> str:
    """Return a page without its scripts."""
    return re.sub(r"<script.*?</script>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_a_plan_and_its_run_are_one_page(tmp_path: Path) -> None:
    plan = reported_plan()
    path = osp.report(plan, measured_like(plan), reported_network(), path=tmp_path / "report.html")
    text = text_of(path)
    assert "Plan of a/small-model on" in text
    assert [title for title in ("Stages", "Network", "How good it is", "Timeline") if f"<h2>{title}" not in text] == []
    assert "predicted: compute" in text
    assert path.stat().st_size < LARGEST_BYTES


def test_a_page_loads_nothing(tmp_path: Path) -> None:
    path = osp.report(reported_plan(), path=tmp_path / "report.html")
    assert "Bokeh" in path.read_text(encoding="utf-8").partition("<body>")[0]  # the library itself is in the page
    assert not re.search(r"<(?:link|img|iframe)|src=|https?:", text_of(path))


def test_names_of_a_document_are_text_not_markup(tmp_path: Path) -> None:
    network = osp.Network("<script>alert(1)</script>", (osp.Node("a", 1000, slowdown=1.0),))
    page = osp.report(network, path=tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_a_problem_is_solved_and_its_front_drawn(tmp_path: Path) -> None:
    path = osp.report(DATA / "problems" / "example_16_free.json", path=tmp_path / "report.html")
    text = text_of(path)
    assert "optimal" in text
    assert "<h2>Trade-off" in text
    assert "min-max split" in path.read_text(encoding="utf-8")


def test_a_problem_without_a_plan_says_why(tmp_path: Path) -> None:
    problem = osp.Problem.load(DATA / "problems" / "example_16_free.json")
    data = problem.to_dict()
    for node in data["nodes"]:
        node["memory_bytes"] = node["headroom_bytes"] = 1.0
    text = text_of(osp.report(osp.Problem.from_dict(data), path=tmp_path / "report.html"))
    assert "infeasible" in text
    assert "no plan" in text


def test_a_front_of_latency_is_drawn(tmp_path: Path) -> None:
    front = osp.pareto(
        reported_profile(), "latency", network=reported_network(3), workload=osp.Workload(4, 128, 8), loss_budget=0.1
    )
    assert len(front.points) > 1
    path = osp.report(front, path=tmp_path / "report.html")
    assert "seconds per token" in path.read_text(encoding="utf-8")
    problem = osp.Problem.load(DATA / "problems" / "example_16_free.json")
    with pytest.raises(ValueError, match="has indices of nodes: give its Problem too"):
        osp.report(osp.pareto(problem), path=tmp_path / "report.html")


def test_a_constellation_and_a_plan_in_time_are_one_page(tmp_path: Path) -> None:
    path = osp.report(leo.Scenario.load("cubesat"), timed_plan(), path=tmp_path / "report.html", hours=4)
    text = text_of(path)
    for title in ("Plan in time", "Map", "Contacts", "Numbers"):
        assert f"<h2>{title}" in text
    assert "no pass is long enough" in text
    assert re.search(r"sat-3 \S+ sat-0 \S+ munich", path.read_text(encoding="utf-8"))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib")
def test_documents_are_recognised_by_what_they_hold(tmp_path: Path) -> None:
    plan = reported_plan()
    timed = timed_plan()
    plan.save(tmp_path / "plan.json")
    osp.simulate(plan).save(tmp_path / "trace.json")
    timed.save(tmp_path / "timed.json")
    (tmp_path / "network.toml").write_text(NETWORK)
    source = Path(leo.__file__).parent / "scenarios" / "paper.toml"
    (tmp_path / "scenario.toml").write_text(source.read_text(encoding="utf-8"))
    assert open_document(tmp_path / "plan.json") == plan
    assert open_document(tmp_path / "trace.json") == osp.simulate(plan)
    assert open_document(tmp_path / "timed.json") == timed
    assert isinstance(open_document(DATA / "problems" / "example_16_free.json"), osp.Problem)
    assert isinstance(open_document(tmp_path / "network.toml"), osp.Network)
    assert open_document(tmp_path / "scenario.toml").title == open_document("paper").title


def test_what_is_no_document_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    reported_profile().save(tmp_path / "profile.json")
    with pytest.raises(ValueError, match=r"profile\.json: a report is made of .*, format is 'orbitsplit-profile'"):
        osp.report(tmp_path / "profile.json", path=out)
    with pytest.raises(ValueError, match="at least one document"):
        osp.report(path=out)
    with pytest.raises(ValueError, match="two documents are of kind Plan"):
        osp.report(reported_plan(), reported_plan(), path=out)
    with pytest.raises(TypeError, match="a document is 3, must be one of Plan, Trace"):
        osp.report(3, path=out)
    with pytest.raises(ValueError, match="hours is 0, must be over 0 and at most 720"):
        osp.report(reported_plan(), path=out, hours=0)
    with pytest.raises(ValueError, match="no scenario 'mars'"):
        osp.report("mars", path=out)
    assert not out.exists()


def test_a_page_that_is_too_large_is_refused(tmp_path: Path) -> None:
    page = Page(title="large", sections=[Section(title="text", text="x" * LARGEST_BYTES)])
    with pytest.raises(ValueError, match=r"would have 6,\d{3},\d{3} bytes, a report has at most 6,000,000"):
        page.write(tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_utilisation_counts_time_once() -> None:
    events = (
        osp.TraceEvent("a", "compute", 0, 0, 0.0, 1.0),
        osp.TraceEvent("a", "encode", 1, 0, 0.5, 2.0),  # overlaps
        osp.TraceEvent("a", "wait", 0, 1, 2.0, 4.0),
        osp.TraceEvent("a", "send", 0, 0, 1.0, 2.0),
        osp.TraceEvent("b", "compute", 0, 0, 2.0, 4.0),
    )
    busy = utilisation(osp.Trace(("a", "b"), events))
    assert busy == {("a", False): 0.5, ("a", True): 0.25, ("b", False): 0.5}


def test_commands_write_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from orbitsplit.__main__ import main

    problem = str(DATA / "problems" / "example_16_free.json")
    for name, words in (
        ("front.html", ["pareto", problem]),
        ("front.json", ["pareto", problem]),
        ("map.html", ["leo", "cubesat", "--hours", "2"]),
        ("both.html", ["report", problem, "cubesat", "--hours", "2"]),
    ):
        monkeypatch.setattr(sys, "argv", ["orbitsplit", *words, "-o", str(tmp_path / name)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, capsys.readouterr().err
    assert "<h2>Trade-off" in text_of(tmp_path / "front.html")
    assert json.loads((tmp_path / "front.json").read_text())["is_complete"]
    assert "<h2>Map" in text_of(tmp_path / "map.html")
    assert text_of(tmp_path / "both.html").count("<h2>") > 4
    for command, file, message in (
        ("pareto", "front.png", "ends in '.png', a front ends in .html or .json"),
        ("report", "report.pdf", "ends in '.pdf', a report ends in .html"),
    ):
        monkeypatch.setattr(sys, "argv", ["orbitsplit", command, problem, "-o", str(tmp_path / file)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code
        assert message in capsys.readouterr().err
        assert not (tmp_path / file).exists()


def test_lines_are_cut_at_the_date_line() -> None:
    longitude, latitude = split_at_date_line(np.array([170.0, 179.0, -179.0, -170.0]), np.zeros(4))
    assert np.array_equal(np.isnan(longitude), [False, False, True, False, False])
    assert len(latitude) == 5


def test_the_view_of_a_station_is_where_it_sees_satellites_at_its_mask() -> None:
    station = leo.Station("s", 48.0, 11.0, mask_deg=20.0)
    longitude, latitude = view_of(station, 550.0)
    for x, y in zip(longitude[:-1:30], latitude[:-1:30], strict=True):
        place = leo.Station("p", float(y), float(x)).position_km()
        above = place / np.linalg.norm(place) * (6378.137 + 550.0)
        towards = above - station.position_km()
        elevation = np.degrees(np.arcsin(towards @ station.up() / np.linalg.norm(towards)))
        assert elevation == pytest.approx(20.0, abs=1.0)  # the map's Earth is a sphere


def test_contacts_over_the_limit_of_rows_are_counted(tmp_path: Path) -> None:
    fleet = leo.Scenario.load("sda_mesh").constellation
    contacts = fleet.contacts(fleet.epoch, fleet.epoch + timedelta(hours=3))
    seen = {contact.satellite for contact in contacts}
    assert len(seen) > 24
    page = osp.report("sda_mesh", path=tmp_path / "report.html", hours=3).read_text(encoding="utf-8")
    assert f"{len(seen) - 24:,} more satellites have contacts" in page
