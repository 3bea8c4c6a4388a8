"""The command that runs a day of a constellation: fly."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

import orbitsplit as osp
from orbitsplit._io.units import format_seconds
from orbitsplit._models.model_path import find_model

from .inputs import load_optional
from .logs import log
from .options import Json, Output, app, out, print_json, progress_bars
from .outputs import check_trace, save_trace

if TYPE_CHECKING:
    from orbitsplit.flight import Flight, FlownRequest


@app.command()
def fly(
    scenario: Annotated[str, typer.Argument(help="Scenario file (TOML), or paper, cubesat, sda_mesh, starlink.")],
    model: Annotated[str, typer.Option("--model", help="Model directory, GGUF file or hub id.")],
    requests: Annotated[int, typer.Option(help="Number of requests, at random times.")] = 20,
    hours: Annotated[float, typer.Option(help="Requests come in this time, from the scenario's epoch on.")] = 24.0,
    prompt_tokens: Annotated[int, typer.Option(help="Random tokens of each prompt.")] = 32,
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate per request.")] = 32,
    speed: Annotated[float, typer.Option(help="Seconds of the flight per second of this machine.")] = 60.0,
    slower: Annotated[
        float,
        typer.Option(help="How many times slower than in the scenario the computers are; at least about --speed."),
    ] = 1.0,
    profile: Annotated[
        Path | None, typer.Option(help="Measured profile for prompts of this length. Default: it is measured.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of times, sources and prompts.")] = 0,
    allow_lag: Annotated[
        bool, typer.Option("--allow-lag", help="Fly even if this machine is too slow for the speed.")
    ] = False,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Run a day of a constellation: links open and close, stages are handed over, results wait for passes.

    Each request is planned as `leo.plan_in_time` does, all of them with the fewest hand-overs, and the plans run on
    processes of this machine by a clock that is faster than real time; -o writes the trace (.json, .chrome.json) or a
    picture (.png, .svg).

    Example: `orbitsplit fly cubesat --model my-model --requests 20 --speed 60 --slower 300 -o flight.json`
    """
    check_trace(output)
    known = load_optional(osp.ModelProfile, profile)
    found = find_model(model)
    from orbitsplit.leo import Scenario

    loaded = Scenario.load(scenario)
    log.info("read %s", scenario)
    asked = osp.flight.requests_over(
        loaded, found, requests, hours=hours, prompt_tokens=prompt_tokens, new_tokens=new_tokens, seed=seed
    )
    with progress_bars() as progress:
        flight = osp.flight.fly(
            loaded,
            found,
            asked,
            new_tokens=new_tokens,
            speed=speed,
            slower=slower,
            profile=known,
            allow_lag=allow_lag,
            progress=progress,
        )
    save_trace(flight.trace, output)
    if as_json:
        print_json(flight.to_dict())
        return
    _show(flight)


def _show(flight: Flight) -> None:
    table = Table("request", "source", "strategy", "nodes", "planned", "flown", "lag", "computing lag")
    for flown in flight.requests:
        table.add_row(*map(escape, _row(flown)))
    out.print(table)
    out.print(
        f"{flight.handovers} hand-overs in {format_seconds(flight.flown.total_seconds())} at {flight.speed:g} times "
        f"real time; completions differ from the plan by at most {100 * flight.largest_deviation:.1f} % of their time",
        highlight=False,
    )
    for problem in filter(None, (flight.too_fast, flight.energy_shortfall)):
        out.print(f"[yellow]{escape(problem)}[/]", highlight=False, soft_wrap=True)


def _row(flown: FlownRequest) -> tuple[str, ...]:
    timed = flown.timed
    nodes = " ".join(stage.node for stage in timed.plan.stages)
    if timed.relay is not None:
        nodes += " > " + " ".join(stage.node for stage in timed.relay.plan.stages)
    return (
        f"{timed.requested:%m-%d %H:%M:%S}",
        flown.requested.request.source,
        timed.strategy,
        nodes,
        format_seconds(timed.duration_s),
        format_seconds(flown.duration_s),
        f"{flown.lag_s:+.1f} s",
        f"{flown.compute_lag_s:+.1f} s",
    )
