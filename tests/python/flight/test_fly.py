"""A flight of a few minutes on the runtime: texts, hand-overs, links and the trace; and what is refused before it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import orbitsplit as osp
from orbitsplit import leo
from orbitsplit.__main__ import main
from orbitsplit.flight import Flight, FlightRequest, fly, requests_over
from tests.judges.flight import misuses, unseen
from tests.support.tiny_models import load_unsplit, save_tiny_model

# Computers 2,000 times slower than this machine, by a clock 60 times faster: a token takes some 30 ms of this machine
# on the ground, and 100 to 150 ms on a satellite. With half of that, half a generation on the ground takes no longer
# than the switch, and whether it pays to relay one depends on how busy the machine is that measures the profile.
SPEED, SLOWER = 60.0, 2000.0
PROMPT, TOKENS = 8, 24
RATES = {"up": 1e6 / 8, "other": 1e7 / 8}


def rate(source: str, destination: str) -> float:
    """The rates of the scenario, by hand."""
    return RATES["up" if source == "munich" else "other"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    save_tiny_model(path, "llama")
    return path


@pytest.fixture(scope="module")
def scenario() -> leo.Scenario:
    return leo.Scenario.load("cubesat")


@pytest.fixture(scope="module")
def profile(directory: Path) -> osp.ModelProfile:
    """Return about what this machine measures when it is idle, so that plans do not depend on what else it does."""
    counted = osp.profile(directory, prompt_tokens=PROMPT)
    layers = tuple(replace(layer, prefill_s=2e-4, decode_s=1.5e-4) for layer in counted.layers)
    return replace(counted, layers=layers, threads=1, machine="by hand")


def asked(at: datetime, source: str, seed: int = 0) -> FlightRequest:
    tokens = np.random.default_rng(seed).integers(3, 90, PROMPT).tolist()
    request = leo.TimedRequest(requested=at, source=source, input_bytes=200_000, output_bytes=50_000)
    return FlightRequest(request, tuple(tokens))


@pytest.fixture(scope="module")
def flight(directory: Path, scenario: leo.Scenario, profile: osp.ModelProfile) -> Flight:
    """A request some minutes before a pass, one just before it, and one in it."""
    epoch = scenario.constellation.epoch
    contacts = scenario.constellation.contacts(epoch, epoch + timedelta(hours=6))
    opening = next(contact.start for contact in contacts if contact.duration_s > 400)
    token_s = 3 * SLOWER * sum(layer.decode_s or 0.0 for layer in profile.layers)
    times = [
        opening - timedelta(seconds=480),
        opening - timedelta(seconds=token_s * TOKENS / 2),
        opening + timedelta(seconds=300),
    ]
    requests = [asked(at, f"sat-{k}", k) for k, at in enumerate(times)]
    return fly(scenario, directory, requests, new_tokens=TOKENS, speed=SPEED, slower=SLOWER, profile=profile)


def test_every_text_is_the_undisturbed_one(flight: Flight, directory: Path) -> None:
    model = load_unsplit(directory)
    for flown in flight.requests:
        ids = torch.tensor([flown.requested.input_ids])
        text = model.generate(ids, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)[0, PROMPT:].tolist()
        assert list(flown.tokens) == text


def test_the_pipeline_is_handed_over_between_requests_and_within_one(flight: Flight) -> None:
    log = flight.trace.flight
    assert log is not None
    strategies = [flown.timed.strategy for flown in flight.requests]
    assert strategies == ["satellite", "relayed", "ground"]
    within = [handover for handover in log.handovers if handover.request == 1]
    assert len(within) == 1
    assert within[0].after == ("munich",)
    relay = flight.requests[1].timed.relay
    assert relay is not None
    late_s = within[0].stop_s - (relay.at - datetime.fromisoformat(log.epoch)).total_seconds()
    assert late_s >= 0  # the satellites do not see the station before
    # Where this machine loads the station's stage too late, the generation ends on board.
    assert 0 < within[0].tokens < TOKENS or late_s > SPEED
    if 0 < within[0].tokens < TOKENS:
        # What moved did so in the pause, at times of the senders, which know nothing of the planned opening.
        moved = [sent for sent in log.transmissions if sent.carried == "context"]
        assert {(sent.request, sent.destination) for sent in moved} == {(1, "munich")}
        assert all(within[0].start_s < sent.start_s < sent.stop_s <= within[0].stop_s for sent in moved)
    assert flight.handovers == len(log.handovers) >= 1
    for k in range(3):
        times = [token.at_s for token in log.tokens if token.request == k]
        assert len(times) == TOKENS
        assert times == sorted(times)


def test_no_link_is_used_while_it_is_closed(flight: Flight, scenario: leo.Scenario) -> None:
    trace = json.loads(json.dumps(flight.trace.to_dict()))
    carried = {sent[2] for sent in trace["flight"]["transmissions"]}
    assert {"input", "result"} <= carried
    assert misuses(trace, scenario.constellation, rate) == []
    assert trace["flight"]["passes"]
    assert unseen(trace, scenario.constellation) == []
    # The judge finds what is wrong: a transmission an hour before the pass, and one of too many bytes.
    one = next(sent for sent in trace["flight"]["transmissions"] if sent[1] == "munich")
    pass_s = one[4]
    trace["flight"]["transmissions"] = [
        [*one[:4], 0.0, one[5] - pass_s, 1], [*one[:4], pass_s, pass_s + 1, 2_000_000],
    ]  # fmt: skip
    assert [sentence.split(": ")[1] for sentence in misuses(trace, scenario.constellation, rate)] == [
        "the link is closed", "2000000 bytes are more than the link carries",
    ]  # fmt: skip


def test_the_result_waits_for_its_pass(flight: Flight) -> None:
    first = flight.requests[0]
    assert first.timed.result[0].start - first.timed.compute_stop > timedelta(seconds=60)
    assert first.completion > first.timed.result[0].start
    for flown in flight.requests:
        assert flown.compute_start >= flown.timed.requested
        assert flown.completion >= flown.compute_stop


def test_the_trace_is_a_document(flight: Flight, tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    document = flight.trace.to_dict()
    jsonschema.validate(json.loads(json.dumps(document)), osp.schema("trace"))
    flight.trace.save(tmp_path / "flight.json")
    assert osp.Trace.load(tmp_path / "flight.json") == flight.trace
    rows = json.loads(json.dumps(flight.to_dict()))["requests"]
    assert [row["strategy"] for row in rows] == ["satellite", "relayed", "ground"]
    assert rows[1]["relayed_to"] == ["munich"]


def test_the_report_shows_passes_and_handovers(flight: Flight, tmp_path: Path) -> None:
    pytest.importorskip("bokeh")
    osp.report(flight.trace, path=tmp_path / "flight.html")
    page = (tmp_path / "flight.html").read_text(encoding="utf-8")
    assert "hand-over" in page
    assert "munich" in page


def test_the_command_prints_a_row_for_each_request(
    flight: Flight, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {}

    def flown(_scenario: leo.Scenario, model: Path, requests: Sequence[FlightRequest], **options: Any) -> Flight:
        given.update(options, model=model, requests=requests)
        return flight

    monkeypatch.setattr("orbitsplit.flight.fly", flown)
    monkeypatch.setattr("orbitsplit._cli.flights.out", Console(width=200))
    words = ["fly", "cubesat", "--model", str(directory), "--requests", "3", "--hours", "5", "--slower", "100"]
    monkeypatch.setattr(sys, "argv", ["orbitsplit", *words, "-o", str(tmp_path / "flight.json")])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr().out
    assert not ended.value.code
    assert (given["speed"], given["slower"], given["model"], len(given["requests"])) == (60.0, 100.0, directory, 3)
    for word in ("satellite", "relayed", "ground", "hand-overs"):
        assert word in printed
    assert osp.Trace.load(tmp_path / "flight.json") == flight.trace


# What is refused


def test_a_speed_that_this_machine_cannot_emulate_is_named(
    directory: Path, scenario: leo.Scenario, profile: osp.ModelProfile
) -> None:
    at = scenario.constellation.epoch
    with pytest.raises(
        ValueError, match=r"'sat-\d' is [34.5]* times slower than this machine, so at a speed of 60 .*allow_lag"
    ):
        fly(scenario, directory, [asked(at, "sat-3")], new_tokens=4, profile=profile)


def test_measuring_the_profile_is_reported(directory: Path, scenario: leo.Scenario) -> None:
    steps: list[str] = []
    with pytest.raises(ValueError, match="allow_lag"):
        fly(
            scenario,
            directory,
            [asked(scenario.constellation.epoch, "sat-3")],
            new_tokens=4,
            progress=lambda step, _: steps.append(step),
        )
    assert steps.index("profiled") < steps.index("planning")


def test_wrong_arguments_are_named(directory: Path, scenario: leo.Scenario, profile: osp.ModelProfile) -> None:
    one = asked(scenario.constellation.epoch, "sat-0")
    with pytest.raises(ValueError, match="requests is empty"):
        fly(scenario, directory, [])
    with pytest.raises(ValueError, match=r"speed is 0\.5, must be finite and at least 1"):
        fly(scenario, directory, [one], speed=0.5)
    with pytest.raises(ValueError, match="slower is inf"):
        fly(scenario, directory, [one], slower=float("inf"))
    with pytest.raises(ValueError, match="prompts have 7 to 8 tokens"):
        fly(scenario, directory, [one, replace(one, input_ids=one.input_ids[1:])])
    with pytest.raises(ValueError, match=r"input_ids\[0\] is -1"):
        replace(one, input_ids=(-1,))
    with pytest.raises(TypeError, match="request"):
        FlightRequest("tomorrow", (1,))  # type: ignore[arg-type]


def test_requests_over_a_span_are_seeded(directory: Path, scenario: leo.Scenario) -> None:
    found = requests_over(scenario, directory, 20, hours=10, prompt_tokens=5, new_tokens=7, seed=3)
    assert found == requests_over("cubesat", directory, 20, hours=10, prompt_tokens=5, new_tokens=7, seed=3)
    assert found != requests_over(scenario, directory, 20, hours=10, prompt_tokens=5, new_tokens=7, seed=4)
    epoch = scenario.constellation.epoch
    times = [one.request.requested for one in found]
    assert times == sorted(times)
    assert epoch <= times[0] <= times[-1] <= epoch + timedelta(hours=10)
    assert {one.request.source for one in found} == {"sat-0", "sat-1", "sat-2", "sat-3"}
    assert {(len(one.input_ids), one.request.input_bytes, one.request.output_bytes) for one in found} == {(5, 20, 28)}
    assert max(max(one.input_ids) for one in found) < 97
    with pytest.raises(ValueError, match="hours is 0"):
        requests_over(scenario, directory, 1, hours=0)
    with pytest.raises(ValueError, match="count"):
        requests_over(scenario, directory, 0, hours=1)
