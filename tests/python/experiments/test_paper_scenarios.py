"""Scenarios that the paper's experiments cannot use: what they lack is said; what does not fit in one leaves gaps."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from importlib import resources
from pathlib import Path

import pytest

import orbitsplit as osp
from orbitsplit import leo
from orbitsplit._cli.main import run
from orbitsplit._experiments.paper import experiments, published
from orbitsplit._experiments.paper.setup import Setup


@pytest.fixture(scope="module")
def setup() -> Setup:
    return Setup.of(leo.Scenario.load("paper"), published.profiled("ViT-L"))


def changed(name: str, *changes: tuple[str, str]) -> str:
    """Return the text of a scenario that ships, with parts of it (regular expressions) replaced."""
    text = (resources.files("orbitsplit.leo") / "scenarios" / f"{name}.toml").read_text(encoding="utf-8")
    for old, new in changes:
        assert re.search(old, text)
        text = re.sub(old, new, text)
    return text


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("cubesat", ("", ""), "a slowdown (sat-0 4, sat-1 3, sat-2 5, sat-3 4.5, munich 1), and nothing is measured"),
        ("paper", (r"satellites = .*", 'satellites = ["sat-1"]'), "its chain is sat-1 alone."),
        ("paper", (r"\[chain\]\nsatellites = .*", ""), "its chain is sat-0 alone."),
        ("paper", (r'"sat-1", ', ""), "there is no link from sat-0 to sat-2."),
        ("paper", (r"isl = .*", ""), "there is no link from sat-0 to sat-1, from sat-1 to sat-2, from sat-2 to sat-3,"),
        ("paper", (r"downlink = .*", ""), "there is no link from sat-4 to a station."),
        ("paper", (r"(?s)\[\[stations\]\].*", ""), "of its 0 stations none has a device."),
        ("paper", (r"device = .*", ""), "of its 1 stations none has a device."),
        (
            "paper",
            (r"latitude_deg = { value = 30.0", "latitude_deg = { value = 89.0"),
            "no station with a node sees satellite 'sat-4' within 48 h of the epoch.",
        ),
    ],
)
def test_a_scenario_that_cannot_be_used_says_what_it_lacks(
    setup: Setup, name: str, change: tuple[str, str], message: str
) -> None:
    scenario = leo.Scenario.from_toml(changed(name, change), source="mine")
    with pytest.raises(ValueError, match="They need a chain of two satellites or more, each linked") as found:
        Setup.of(scenario, setup.profile)
    assert str(found.value).startswith("scenario 'mine' cannot be used for the paper's experiments: ")
    assert message in str(found.value)


COMPUTE = ("slowdown = { value = [0-9.]+", 'compute = { value = "1 TFLOP/s"')


def test_a_model_that_no_split_fits_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(changed("cubesat", COMPUTE), encoding="utf-8")
    fact = r"ViT-L does not fit: the layers need 1\.213\d* GB together, the nodes hold 333\.\d* MB\. They need a chain"
    with pytest.raises(ValueError, match=fact):
        osp.bench_paper(scenario=path, models=["ViT-L"], model="ViT-L")


def test_splits_that_do_not_fit_leave_gaps(tmp_path: Path) -> None:
    """No uniform and no random split fits: that was an infinity, which JSON refused, and a chart without a point."""
    path, folder = tmp_path / "mine.toml", tmp_path / "out"
    path.write_text(changed("cubesat", COMPUTE), encoding="utf-8")
    found = osp.bench_paper(folder, scenario=path, models=["ViT-B"], model="ViT-B", plans=5)
    written = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    ours = {headline["name"]: headline["ours"] for headline in written["headlines"]}
    # All compute alike, so that there is one mix of modes: all as the last satellite, whose memory is enough.
    mixes = {f"256 batches, {end} of all mixes of power modes" for end in ("least", "most")}
    assert set(ours["uniform split / best plan"]) == mixes
    assert ours["delay at 1080p"]
    assert written["charts"]["robustness"]["x"] == []
    assert "Do not fit into a satellite's memory: 5 of 5." in written["charts"]["robustness"]["notes"]
    assert len(found.files) == len(list(folder.iterdir())) == 28


def test_the_command_refuses_a_scenario_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["orbitsplit", "bench", "paper", "-o", str(tmp_path), "--scenario", "cubesat"])
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(
        "error: scenario 'cubesat' cannot be used for the paper's experiments: computers have a slow"
    )
    assert "compute in FLOP/s of every computer" in last


def test_random_splits_have_no_more_stages_than_layers(setup: Setup) -> None:
    layers = len(setup.profile.layers)
    nodes = tuple(dataclasses.replace(setup.satellites[0], name=f"sat-{k}") for k in range(layers + 10))
    found = experiments.random_plans(setup.varied(satellites=nodes), count=20)
    assert len(found.ratios) + found.too_large == 20
