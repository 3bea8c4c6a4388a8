"""Reports in a browser: nothing in the console, figures drawn, a slider and a table that work without a network."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

import orbitsplit as osp
from orbitsplit import leo
from tests.support.browser import Seen, is_there, see
from tests.support.paths import DATA
from tests.support.report_inputs import measured_like, reported_network, reported_plan, timed_plan

# A figure has axes, bars, words: more colours and more ink than an empty frame.
_LEAST_COLOURS, _LEAST_INK = 12, 0.01
_LARGEST_BYTES = 6_000_000


@pytest.fixture(autouse=True)
def chromium() -> None:
    assert is_there(), "this test opens a browser: apt-get install chromium"


def checked(path: Path, words: list[str], script: str = "return null") -> Seen:
    """Open a report, check what every report must have, and return what the browser shows."""
    assert path.stat().st_size < _LARGEST_BYTES
    seen = see(path, script)
    if folder := os.environ.get("ORBITSPLIT_SCREENSHOTS"):  # to be looked at
        shutil.copy(path, folder)
        matplotlib.image.imsave(Path(folder) / f"{path.stem}.png", seen.picture)
    assert seen.complaints == []
    assert [word for word in words if word not in seen.text] == []
    assert seen.places
    for left, top, width, height in seen.places:
        assert width > 500, f"a figure at {top} is {width} pixels wide"
        part = seen.picture[top : top + height, left : left + width].reshape(-1, 3)
        colours = np.unique(part // 16, axis=0)
        ink = np.mean(np.any(part < 200, axis=1))
        assert len(colours) >= _LEAST_COLOURS, f"a figure at {top} has {len(colours)} colours"
        assert ink > _LEAST_INK, f"a figure at {top} is blank"
    return seen


def test_a_plan_with_its_run(tmp_path: Path) -> None:
    plan = reported_plan()
    path = osp.report(plan, measured_like(plan), reported_network(), path=tmp_path / "plan.html")
    # Both timelines have one range: who zooms one sees the same time in the other.
    script = """
        const plots = models('Figure').filter(plot => plot.title.text.includes('% of the time in use'))
        plots[0].x_range.start = 0.1
        return plots.map(plot => plot.x_range.start)
    """
    seen = checked(path, ["Stages", "Network", "How good it is", "Timeline", "measured", plan.stages[0].node], script)
    assert seen.result == [0.1, 0.1]


def test_a_click_on_a_line_of_the_front_selects_its_point(tmp_path: Path) -> None:
    path = osp.report(DATA / "problems" / "example_16_free.json", path=tmp_path / "problem.html")
    script = """
        const cells = root => [...root.querySelectorAll('*')].flatMap(element => element.shadowRoot
            ? [...element.shadowRoot.querySelectorAll('.slick-cell'), ...cells(element.shadowRoot)] : [])
        const source = models('DataTable')[0].source
        const before = [...source.selected.indices]
        cells(document)[0].click()
        await until(() => source.selected.indices[0] !== before[0])
        return [before, source.selected.indices, models('Scatter').length > 0]
    """
    seen = checked(path, ["Trade-off", "optimal", "Stages"], script)
    before, after, has_points = seen.result
    assert len(before) == len(after) == 1
    assert before != after
    assert has_points


def test_a_constellation_with_a_plan_in_time(tmp_path: Path) -> None:
    path = osp.report(leo.Scenario.load("cubesat"), timed_plan(), path=tmp_path / "cubesat.html", hours=6)
    checked(path, ["Map", "Contacts", "Plan in time", "handovers", "altitude_km"])


def test_the_slider_moves_1584_satellites(tmp_path: Path) -> None:
    path = osp.report("starlink", path=tmp_path / "starlink.html", hours=0.25)
    script = """
        const canvases = root => [...root.querySelectorAll('*')].flatMap(element => element.shadowRoot
            ? [...element.shadowRoot.querySelectorAll('canvas'), ...canvases(element.shadowRoot)] : [])
        const picture = () => canvases(document).map(canvas => canvas.toDataURL()).join()
        const slider = models('Slider')[0]
        const views = models('CDSView').filter(view => view.filter.type == 'GroupFilter')
        const shown = () => views.map(view => [view.filter.group, view.indices.count])
        const [before, first] = [shown(), picture()]
        slider.value = slider.step
        await until(() => picture() !== first)
        return [slider.step, before, shown(), picture() !== first]
    """
    step, before, after, has_moved = checked(path, ["1,584", "3,168", "Map"], script).result
    assert step > 0
    assert has_moved
    for views, minute in ((before, 0), (after, step)):
        assert {group for group, _ in views} == {minute}
        # Each satellite once at one instant; those of the chain are drawn apart, and names are of them alone.
        assert {1584 - 4, 4} <= {count for _, count in views}
