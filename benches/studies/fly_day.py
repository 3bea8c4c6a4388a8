"""A day of four CubeSats on the runtime: 20 requests, hand-overs before and in passes, held against the plan in time.

python -m benches.studies.fly_day                 # 24 minutes and a half
python -m benches.studies.fly_day --hours 0       # until the last request is complete: two thirds of it
pytest benches/studies/fly_day.py                 # one pass of it

The scenario `cubesat`, with computers 1,200 times slower than it says (the station's: 1,200 times slower than this
machine) by a clock 60 times faster than real time. A small random Llama generates 64 tokens after 32. Each satellite
holds 0.6 of its weights, so that two have to compute together. Requests come at seeded times between the passes, a
minute's generation before each of the four passes, and in the two long ones.

What must hold is asserted: every text is that of the undisturbed model, at least 6 hand-overs, completions and
computations within 10 % of the plans in time, and, by a judge that derives contacts anew, no link that is used while it
is closed or beyond its rate.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import torch
import transformers

import orbitsplit as osp
from orbitsplit import leo
from orbitsplit.flight import Flight, FlightRequest, fly
from tests.judges.flight import misuses, unseen

SPEED, SLOWER, SEED = 60.0, 1200.0, 0
PROMPT, TOKENS, VOCABULARY = 32, 64, 2048
HELD = 0.6  # of the weights, by each satellite
# Between the passes, in hours; they come within a few minutes of it.
QUIET_HOURS = (0.2, 1.0, 1.8, 2.6, 4.3, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 15.0)
JITTER_S = 240.0


def small_model(folder: Path) -> Path:
    """Write a Llama of six layers with random weights."""
    torch.manual_seed(SEED)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def computers(scenario: leo.Scenario, profile: osp.ModelProfile) -> dict[str, osp.Node]:
    """Return the satellites' computers, with memory for `HELD` of the weights."""
    workload = osp.Workload(prompt_tokens=PROMPT, new_tokens=TOKENS)
    alone = osp.plan(profile, osp.Network("one", (osp.Node("one", 10**10, slowdown=1.0),)), workload)
    assert alone.prediction is not None
    weights = sum(layer.weight_bytes for layer in profile.layers)
    memory = alone.prediction.stage_memory_bytes[0] - round((1 - HELD) * weights)
    nodes = zip(scenario.chain, scenario.devices, strict=True)
    return {name: replace(node, memory_bytes=memory, headroom_bytes=0) for name, node in nodes}


def clusters(scenario: leo.Scenario) -> list[tuple[datetime, datetime]]:
    """Return when the first satellite is in view and when the last is no more, pass by pass, in the first 20 hours."""
    epoch = scenario.constellation.epoch
    found: list[tuple[datetime, datetime]] = []
    for contact in scenario.constellation.contacts(epoch, epoch + timedelta(hours=20)):
        if found and contact.start < found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], contact.stop)
        else:
            found.append((contact.start, contact.stop))
    return found


def times(scenario: leo.Scenario, board_s: float) -> list[datetime]:
    """Return when requests come; `board_s` is how long a generation takes on board."""
    r, epoch = np.random.default_rng(SEED), scenario.constellation.epoch
    found = [epoch + timedelta(hours=hours, seconds=float(r.uniform(0, JITTER_S))) for hours in QUIET_HOURS]
    for opening, closing in clusters(scenario):
        found.append(opening - timedelta(seconds=board_s / 2))
        if closing - opening > timedelta(minutes=6):
            found.append(closing - timedelta(seconds=60))
    return sorted(found)


def requests(scenario: leo.Scenario, board_s: float, only: Sequence[int] | None = None) -> list[FlightRequest]:
    """Return the requests, with images of 200 kB for satellites in turn, and random prompts."""
    r = np.random.default_rng(SEED)
    found = []
    for k, at in enumerate(times(scenario, board_s)):
        tokens = tuple(r.integers(0, VOCABULARY, PROMPT).tolist())
        source = scenario.chain[k % len(scenario.chain)]
        asked = leo.TimedRequest(requested=at, source=source, input_bytes=200_000, output_bytes=50_000)
        if only is None or k in only:
            found.append(FlightRequest(asked, tokens))
    return found


def rate(source: str, _destination: str) -> float:
    """The rates of the scenario in bytes per second: 10 Mbit/s, and 1 Mbit/s up."""
    return 1e6 / 8 if source == "munich" else 1e7 / 8


def failures(flight: Flight, scenario: leo.Scenario, model: Path) -> Iterator[str]:
    """Yield what does not hold."""
    torch.set_num_threads(1)
    unsplit = transformers.AutoModelForCausalLM.from_pretrained(model)
    for k, flown in enumerate(flight.requests):
        ids = torch.tensor([flown.requested.input_ids])
        text = unsplit.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, min_new_tokens=TOKENS,
                                do_sample=False)[0, PROMPT:].tolist()  # fmt: skip
        if list(flown.tokens) != text:
            yield f"request {k} has another text than the model in one process"
        if abs(flown.deviation) > 0.1:
            yield f"request {k} deviates by {100 * flown.deviation:.1f} % from its plan"
        # The time from request to completion is mostly that until a pass.
        if abs(flown.compute_deviation) > 0.1:
            yield f"the computation of request {k} deviates by {100 * flown.compute_deviation:.1f} % from its plan"
    trace = json.loads(json.dumps(flight.trace.to_dict()))
    yield from misuses(trace, scenario.constellation, rate)
    yield from unseen(trace, scenario.constellation)


def fly_day(model: Path, hours: float, speed: float = SPEED, only: Sequence[int] | None = None) -> Flight:
    """Return the flight of a model that `small_model` wrote."""
    scenario = leo.Scenario.load("cubesat")
    profile = osp.profile(model, prompt_tokens=PROMPT, measure=True)
    board_s = 4 * SLOWER * TOKENS * sum(layer.decode_s or 0.0 for layer in profile.layers)
    return fly(
        scenario,
        model,
        requests(scenario, board_s, only),
        new_tokens=TOKENS,
        hours=hours,
        speed=speed,
        slower=SLOWER,
        profile=profile,
        computers=computers(scenario, profile),
    )


def print_table(flight: Flight) -> None:
    """Print a row for each request, and the totals."""
    print("| requested | strategy | nodes | planned, s | flown, s | deviation | computing lag, s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for flown in flight.requests:
        timed = flown.timed
        nodes = [stage.node for stage in timed.plan.stages]
        nodes += [] if timed.relay is None else [">", *(stage.node for stage in timed.relay.plan.stages)]
        print(
            f"| {timed.requested:%H:%M:%S} | {timed.strategy} | {' '.join(nodes)} | {timed.duration_s:,.0f} |"
            f" {flown.duration_s:,.0f} | {100 * flown.deviation:+.2f} % | {flown.compute_lag_s:+.1f} |"
        )
    print(
        f"\n{flight.handovers} hand-overs, {flight.flown / timedelta(hours=1):.1f} h flown in {flight.seconds:,.0f} s, "
        f"largest deviation {100 * flight.largest_deviation:.2f} %"
    )


def test_a_pass_of_the_day(tmp_path: Path) -> None:
    scenario = leo.Scenario.load("cubesat")
    opening = clusters(scenario)[1][0]
    first = next(k for k, at in enumerate(times(scenario, 600.0)) if at > opening - timedelta(minutes=30))
    model = small_model(tmp_path)
    flight = fly_day(model, 0.0, only=(first, first + 1))
    assert [flown.timed.strategy for flown in flight.requests] == ["relayed", "ground"]
    assert flight.handovers >= 1
    # Timings of a machine that runs other tests too are no criterion.
    assert [fact for fact in failures(flight, scenario, model) if "deviates" not in fact] == []


def main() -> None:
    parser = argparse.ArgumentParser(description="A day of CubeSats on the runtime.")
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--speed", type=float, default=SPEED)
    parser.add_argument("-o", "--output", type=Path, help="The trace (.json).")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = small_model(Path(folder))
        flight = fly_day(model, arguments.hours, arguments.speed)
        if arguments.output is not None:
            flight.trace.save(arguments.output)
        print_table(flight)
        wrong = list(failures(flight, leo.Scenario.load("cubesat"), model))
    assert not wrong, "\n".join(wrong)
    assert len(flight.requests) == 20
    assert flight.handovers >= 6
    assert flight.flown >= timedelta(hours=arguments.hours)


if __name__ == "__main__":
    main()
