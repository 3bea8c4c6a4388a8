"""Scenario files: what ships loads and is what it says, every number has an origin, bad files say what is wrong."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import orbitsplit as osp
from orbitsplit import leo
from orbitsplit._cli.main import app
from tests.support.doc_pages import DOCS, blocks_of

GOOD = """
title = "two in a row"
[constellation]
kind = "train"
total = { value = 2, origin = "assumed" }
spacing_km = { value = 100, origin = "assumed" }
altitude_km = { value = 500, origin = "paper", source = "section 5" }
inclination_deg = { value = 53, origin = "paper" }
[links]
isl = { value = "0.5 Gbit/s", origin = "paper" }
downlink = { value = "ka_band", origin = "datasheet" }
[satellites]
devices = ["small", "jetson-agx-orin-30w"]
[[devices]]
name = "small"
memory = { value = "1 GB", origin = "measured" }
compute = { value = "2 GFLOP/s", origin = "measured" }
[chain]
satellites = ["sat-0", "sat-1"]
[[stations]]
name = "here"
device = "rtx-4070-ti"
latitude_deg = { value = 40, origin = "assumed" }
longitude_deg = { value = 10, origin = "assumed" }
"""
TAGGED = 'value = 53, origin = "paper"'
SLOW = 'slowdown = { value = 2, origin = "measured" }\n'


@pytest.mark.parametrize(
    ("name", "satellites", "links_between"),
    [("paper", 12, 12), ("cubesat", 4, 6), ("sda_mesh", 126, None), ("starlink", 1584, 3168)],
)
def test_shipped_scenarios_load(name: str, satellites: int, links_between: int | None) -> None:
    scenario = leo.Scenario.load(name)
    assert name in leo.Scenario.names()
    assert len(scenario.constellation) == satellites
    network = scenario.network()
    assert len(network.nodes) == satellites + 1
    assert {number.origin for number in scenario.numbers.values()} <= set(leo.ORIGINS)
    between = [link for link in network.links if network.nodes[-1].name not in (link.source, link.destination)]
    if links_between is not None:
        assert len(between) == 2 * links_between
    for a, b in zip(scenario.chain[:-1], scenario.chain[1:], strict=True):
        assert any((link.source, link.destination) == (a, b) for link in between)
    assert scenario.lint(hours=12.0 if satellites < 1000 else 1.0) == ()


def test_the_paper_scenario_is_the_paper_s() -> None:
    scenario = leo.Scenario.load("paper")
    numbers = scenario.numbers
    assert numbers["constellation.altitude_km"] == leo.Sourced(500.0, "paper")
    assert numbers["constellation.inclination_deg"].value == 53
    assert numbers["links.isl"].value == 0.5e9 / 8
    assert numbers["links.downlink"].value == 0.8e9 / 8
    assert len(scenario.chain) == 5
    assert scenario.constellation.pattern is not None
    assert scenario.constellation.pattern.planes == 1
    # Twelve satellites in one plane: neighbours are a chord of 30 deg apart.
    network = scenario.network()
    chord_km = 2 * (6378.137 + 500) * np.sin(np.radians(15))
    assert network.links[0].latency_s == pytest.approx(chord_km / 299792.458, rel=2e-3)
    modes = [node.flop_per_s for node in network.nodes[:5]]
    assert modes == [leo.device(f"jetson-agx-orin-{w}w").node().flop_per_s for w in (15, 30, 50, 30, 15)]
    assert network.nodes[5].flop_per_s == modes[0]  # repeated along the constellation


def test_the_cubesats_are_those_of_the_sample_network() -> None:
    scenario, sample = leo.Scenario.load("cubesat"), osp.Network.sample("cubesat_chain")
    network = scenario.network()
    for node, expected in zip(network.nodes[:4], sample.nodes, strict=True):
        assert node == expected
    positions = scenario.constellation.positions(scenario.constellation.epoch)[:, 0]
    assert np.linalg.norm(np.diff(positions, axis=0), axis=1) == pytest.approx([50.0] * 3, rel=5e-3)


def test_links_of_the_mesh_and_the_shell() -> None:
    assert leo.Scenario.load("sda_mesh").network().links[0].bytes_per_s == 2.5e9 / 8
    shell = leo.Scenario.load("starlink").constellation
    assert shell.pattern is not None
    assert (shell.pattern.planes, shell.pattern.per_plane) == (72, 22)


def test_a_satellite_in_contact_is_above_the_mask() -> None:
    scenario = leo.Scenario.load("paper")
    when = scenario.in_contact("sat-4")
    fleet = scenario.constellation
    assert fleet.elevation_deg(when)[0, fleet.index("sat-4"), 0] > 10
    links = scenario.network(when).links
    assert any((link.source, link.destination) == ("sat-4", "ground") for link in links)
    with pytest.raises(ValueError, match="no satellite 'sat-99'"):
        scenario.in_contact("sat-99")
    with pytest.raises(ValueError, match="no station with a node sees satellite 'sat-4' within 1 h of the epoch"):
        scenario.in_contact("sat-4", hours=1)


def test_a_file_of_one_s_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD, encoding="utf-8")
    scenario = leo.Scenario.load(path)
    assert scenario.name == "mine"
    assert [node.name for node in scenario.devices] == ["small", "jetson-agx-orin-30w"]
    assert scenario.numbers["constellation.altitude_km"] == leo.Sourced(500.0, "paper", "section 5")
    assert scenario.numbers["devices[0].memory"].value == 1e9
    assert scenario.constellation.equipment is not None
    assert isinstance(scenario.constellation.equipment.downlink, leo.KaBand)
    later = leo.Scenario.from_toml(GOOD.replace('kind = "train"', 'kind = "train"\nepoch = 2027-03-01T00:00:00Z'))
    assert later.constellation.epoch == datetime(2027, 3, 1, tzinfo=timezone.utc)
    near = leo.Scenario.from_toml(
        GOOD.replace("[links]", '[links]\ntopology = "nearest"\nterminals = { value = 2, origin = "assumed" }')
    )
    assert near.constellation.topology == leo.Nearest(2)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{ " + TAGGED + " }", "53", "mine: constellation.inclination_deg is 53 without an origin"),
        ('value = 100, origin = "assumed"', "value = 100", "mine: constellation.spacing_km has no origin"),
        (TAGGED, 'origin = "paper"', "mine: constellation.inclination_deg has no value"),
        (TAGGED, 'value = 53, origin = "hearsay"', "the origin is 'hearsay', must be one of paper, datasheet"),
        (TAGGED, TAGGED + ', why = "so"', "has the unknown key 'why'; known: value, origin, source"),
        (TAGGED, TAGGED + ", source = 1", "the source is 1, must be a string"),
        ("value = 53,", 'value = "53 deg",', "constellation.inclination_deg is '53 deg', must be a finite number"),
        ("value = 53,", "value = nan,", "inclination_deg is nan, must be a finite number"),
        ("value = 2,", "value = 2.5,", "mine: constellation.total is 2.5, must be a whole number"),
        ("value = 2,", "value = 2000,", "2000 satellites 100 km apart do not fit into an orbit 43,217 km around"),
        ('kind = "train"', 'kind = "swarm"', "constellation.kind is 'swarm', must be one of walker_delta"),
        ('kind = "train"', 'kind = "walker_delta"', "mine: constellation lacks 'planes'"),
        (
            'kind = "train"',
            'kind = "train"\nepoch = 2027-03-01',
            "constellation.epoch is 2027-03-01, must be a time with a",
        ),
        ("[links]", "[links]\nrate = 3", "mine: links has the unknown key 'rate'; known: isl"),
        (
            '{ value = "ka_band", origin = "datasheet" }',
            '"ka_band"',
            "mine: links.downlink is 'ka_band' without an origin; "
            'write downlink = { value = "ka_band", origin = "paper|datasheet|measured|assumed" }',
        ),
        ("{ " + TAGGED + " }", "53", 'write inclination_deg = { value = 53, origin = "paper|'),
        ("0.5 Gbit/s", "0.5 Gbps", "mine: links.isl is '0.5 Gbps', expected a number with one of"),
        ("0.5 Gbit/s", "0 Gbit/s", "mine: links: the rate of a link is 0"),
        ("[links]", '[links]\nterminals = { value = 2, origin = "assumed" }', "mine: links.terminals needs topology"),
        ("[links]", '[links]\ntopology = "star"', "mine: links.topology is 'star', must be grid or nearest"),
        ('["small", "jetson-agx-orin-30w"]', '["large"]', "mine: satellites.devices names 'large'; there are: jetson"),
        ('["small", "jetson-agx-orin-30w"]', "[]", "mine: satellites.devices is [], must be one or more strings"),
        ("compute =", SLOW + "compute =", "mine: devices[0]: node 'small' needs a speed"),
        ('name = "small"', 'name = "rtx-4070-ti"', "mine: devices[0]: there is another device called 'rtx-4070-ti'"),
        ('["sat-0", "sat-1"]', '["sat-0", "sat-2"]', "mine: chain: no satellite 'sat-2'"),
        ('["sat-0", "sat-1"]', '["sat-0", "sat-0"]', "mine: chain names a satellite twice"),
        (
            "value = 40,",
            "value = 140,",
            "mine: stations[0]: latitude of station 'here' is 140.0, must be from -90 to 90",
        ),
        ('device = "rtx-4070-ti"', 'device = "abacus"', "mine: stations[0].device names 'abacus'"),
        ('title = "two in a row"', "", "mine lacks 'title'"),
        ("[chain]", "chain = [", "mine is not TOML"),
    ],
)
def test_bad_files_say_what_is_wrong(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(ValueError, match=re.escape(message)):
        leo.Scenario.from_toml(GOOD.replace(old, new, 1), source="mine")


def test_a_budget_without_its_origin_is_not_offered_again() -> None:
    bare = GOOD.replace('{ value = "ka_band", origin = "datasheet" }', '"ka_band"')
    with pytest.raises(ValueError, match=r"assumed\" }$"):
        leo.Scenario.from_toml(bare, source="mine")
    unknown = GOOD.replace('"ka_band"', '"x_band"')
    with pytest.raises(ValueError, match=r"links.downlink is 'x_band', .*; or one of optical, ka_band"):
        leo.Scenario.from_toml(unknown, source="mine")


def test_a_scenario_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"no scenario 'mars'; there are: cubesat, paper, sda_mesh, starlink"):
        leo.Scenario.load("mars")


def test_the_command_shows_a_scenario() -> None:
    done = CliRunner().invoke(app, ["leo", "paper", "--hours", "12", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [satellite["name"] for satellite in found["satellites"]] == [f"sat-{k}" for k in range(12)]
    assert found["findings"] == []
    assert found["numbers"]["links.isl"] == {"value": 62500000.0, "origin": "paper", "source": "optical"}
    first = found["contacts"][0]
    assert {"source": first["satellite"], "destination": "ground"}.items() <= {
        **next(link for link in found["network"]["links"] if link["destination"] == "ground")
    }.items()
    text = CliRunner().invoke(app, ["leo", "cubesat", "--at", "2026-01-01T00:00:00Z", "--transfer", "1e9"]).stdout
    assert "network at 2026-01-01 00:00:00 UTC: 5 nodes, 12 links" in text
    assert "do not fit into a contact of station 'munich'" in text


def test_the_examples_of_the_documentation_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Planning in time once was shown with a profile that nobody had, and for more than its satellites' memory.
    guides = DOCS / "guides"
    constellations, (planned, *_) = blocks_of(guides / "constellations.md"), blocks_of(guides / "planning_in_time.md")
    monkeypatch.chdir(tmp_path)
    exec(compile(constellations[0].code, "constellations.md", "exec"), {})
    assert osp.Network.load("network.toml").nodes[-1].name == "munich"
    # A smaller model is measured within a second; it also waits for the pass.
    size = "hidden_size=192, num_attention_heads=3, intermediate_size=768"
    assert size in planned.code
    smaller = planned.code.replace(
        size, "hidden_size=12, num_attention_heads=3, intermediate_size=24, num_hidden_layers=2"
    )
    capsys.readouterr()
    exec(compile(smaller, "planning_in_time.md", "exec"), {})
    printed, shown = capsys.readouterr().out.splitlines(), planned.printed.splitlines()
    assert [printed[k] for k in (0, -2, -1)] == [shown[k] for k in (0, -2, -1)]


def test_plans_are_made_for_the_network_that_the_command_writes(tmp_path: Path) -> None:
    network, profile, plan = (tmp_path / name for name in ("network.toml", "profile.json", "plan.json"))
    layers = tuple(osp.LayerProfile(f"layer {k}", 1_000, 0, None, 10**9, 0) for k in range(4))
    osp.ModelProfile(
        model="toy",
        architecture="Toy",
        dtype="float32",
        prompt_tokens=10,
        batch_size=1,
        hidden_size=5,
        layers=layers,
        cut_bytes_per_token=20,
        workspace_bytes=0,
        tied_bytes=0,
    ).save(profile)
    at = datetime(2026, 1, 1, 6, tzinfo=timezone.utc)
    for command in (
        ["leo", "paper", "--hours", "1", "--at", "2026-01-01T06:00:00Z", "-o", network, "--json"],
        ["plan", profile, "--network", network, "--max-nodes", "2", "-o", plan],
    ):
        done = CliRunner().invoke(app, [str(word) for word in command])
        assert done.exit_code == 0, done.output
    assert osp.Network.load(network) == leo.Scenario.load("paper").network(at)
    assert {stage.node for stage in osp.Plan.load(plan).stages} <= {
        node.name for node in osp.Network.load(network).nodes
    }
    missing = CliRunner().invoke(app, ["plan", str(profile), "--network", "paper"])
    assert "`orbitsplit leo paper -o FILE` writes the network" in str(missing.exception)
    unknown = CliRunner().invoke(app, ["plan", str(profile), "--network", "mars"])
    assert isinstance(unknown.exception, FileNotFoundError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["paper", "-o", "no/such/folder/network.toml"], "cannot be written"),
        (["paper", "--hours", "0"], "hours is 0, must be over 0 and at most 720"),
        (["paper", "--at", "noon"], "the time is 'noon', expected one like 2026-01-01T12:00:00Z"),
        (["mars"], "no scenario 'mars'"),
    ],
)
def test_the_command_refuses(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["leo", *arguments])
    assert isinstance(done.exception, ValueError)
    assert message in str(done.exception)
