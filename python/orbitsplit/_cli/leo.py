"""Commands about constellations and the paper's experiments: leo, bench paper."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

import orbitsplit as osp
from orbitsplit._io.units import format_bytes, format_seconds
from orbitsplit._io.validation import quoted

from .logs import log
from .options import Json, OutputFolder, app, out, print_json, progress_bars
from .outputs import check_folder, check_writable, save

if TYPE_CHECKING:
    from orbitsplit._network.network import Network
    from orbitsplit.leo import Contact, Scenario

_MOST_ROWS = 20

bench = typer.Typer(no_args_is_help=True, help="Reproduce published experiments.")
app.add_typer(bench, name="bench")


@app.command()
def leo(
    scenario: Annotated[str, typer.Argument(help="Scenario file (TOML), or paper, cubesat, sda_mesh, starlink.")],
    at: Annotated[
        str | None, typer.Option(help="Time of the network, such as 2026-01-01T12:00:00Z. Default: the first contact.")
    ] = None,
    hours: Annotated[float, typer.Option(help="Hours of contacts to compute, from the epoch.")] = 24.0,
    transfer: Annotated[
        float | None, typer.Option(help="Bytes to send down in one contact; a finding if they do not fit.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Also write the network (TOML), for `orbitsplit plan`, or a page with a map (.html).",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a constellation: its satellites, contacts, geometric conflicts, and its network at one time.

    Example: `orbitsplit leo paper --at 2026-01-01T00:00:00Z -o network.toml`
    """
    from orbitsplit.leo import Scenario

    check_writable(output)
    loaded = Scenario.load(scenario)
    log.info("read %s", scenario)
    fleet = loaded.constellation
    if not 0 < hours <= 24 * 30:
        raise ValueError(f"hours is {hours:g}, must be over 0 and at most 720")
    with progress_bars() as progress:
        progress("computing contacts", None)
        contacts = fleet.contacts(fleet.epoch, fleet.epoch + timedelta(hours=hours)) if fleet.stations else ()
    when = fleet.epoch if at is None else _instant(at)
    if at is None and contacts:
        when = contacts[0].highest
    network = loaded.network(when)
    if output is not None and output.suffix == ".html":
        with progress_bars() as progress:
            progress("drawing the page", None)
            osp.report(loaded, path=output, hours=hours)
    else:
        save(network, output)
    if as_json:
        print_json(_record(loaded, contacts, when, network, hours, transfer))
        return
    out.print(f"[bold]{escape(loaded.name)}[/]: {escape(loaded.title)}; {escape(fleet.name)}", highlight=False)
    _show_satellites(loaded)
    _show_contacts(contacts, hours)
    _show_network(network, when)
    with progress_bars() as progress:
        progress("looking for conflicts", None)
        findings = loaded.lint(hours=hours, transfer_bytes=transfer)
    for finding in findings[:_MOST_ROWS]:
        out.print(escape(str(finding)), highlight=False, soft_wrap=True)
    _show_rest(len(findings), "findings")
    if not findings:
        out.print("no findings: links of the chain always available, no satellites collide, every station has contacts")


@bench.command()
def paper(
    output: OutputFolder,
    scenario: Annotated[str, typer.Option(help="Scenario file (TOML), or the name of one.")] = "paper",
    model: Annotated[str, typer.Option(help="ViT-B, ViT-L, ViT-H or ViT-G.")] = "ViT-L",
    plans: Annotated[int, typer.Option(help="Number of random splits.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the random splits.")] = 0,
    as_json: Json = False,
) -> None:
    """Reproduce the experiments of arXiv 2604.04654, and find where splitting does not pay.

    Example: `orbitsplit bench paper -o paper`
    """
    check_folder(output)
    with progress_bars() as progress:
        found = osp.bench_paper(output, scenario=scenario, model=model, plans=plans, seed=seed, progress=progress)
    if as_json:
        print_json({**found.to_dict(), "files": [str(path) for path in found.files], "seconds": found.seconds})
        return
    table = Table("ground-only setting", "best split", "ground-only", "verdict")
    for verdict in found.verdicts:
        seconds = (format_seconds(value) for value in (verdict.split_s, verdict.ground_s))
        table.add_row(escape(verdict.setting), *seconds, "do not split" if verdict.loses else "split")
    out.print(table)
    out.print(
        f"wrote {len(found.files)} files to {escape(str(output))} in {format_seconds(found.seconds)}", highlight=False
    )


def _show_satellites(scenario: Scenario) -> None:
    table = Table("satellite", "altitude, km", "inclination, deg", "memory", "speed", "in the chain")
    network = scenario.network()
    for satellite, node in list(zip(scenario.constellation.satellites, network.nodes, strict=False))[:_MOST_ROWS]:
        speed = f"slowdown {node.slowdown:g}" if node.flop_per_s is None else f"{node.flop_per_s / 1e12:.3g} TFLOP/s"
        table.add_row(
            escape(satellite.name),
            f"{satellite.apogee_km:,.0f}",
            f"{satellite.inclination_deg:.1f}",
            format_bytes(node.memory_bytes),
            speed,
            "yes" if satellite.name in scenario.chain else "",
        )
    out.print(table)
    _show_rest(len(scenario.constellation), "satellites")


def _show_contacts(contacts: tuple[Contact, ...], hours: float) -> None:
    table = Table("station", "satellite", "from", "seconds", "highest, deg")
    for contact in contacts[:_MOST_ROWS]:
        start = f"{contact.start:%Y-%m-%d %H:%M:%S}"
        row = (
            contact.station,
            contact.satellite,
            start,
            f"{contact.duration_s:.0f}",
            f"{contact.max_elevation_deg:.1f}",
        )
        table.add_row(*map(escape, row))
    out.print(table)
    total = sum(contact.duration_s for contact in contacts)
    out.print(f"{len(contacts)} contacts in {hours:g} h, {total / 3600:.1f} h in total", highlight=False)


def _show_network(network: Network, when: datetime) -> None:
    out.print(
        f"network at {when:%Y-%m-%d %H:%M:%S} UTC: {len(network.nodes)} nodes, {len(network.links)} links",
        highlight=False,
    )
    table = Table("from", "to", "Mbit/s", "latency")
    for link in network.links[-_MOST_ROWS:]:  # those to the ground are last
        rate = f"{link.bytes_per_s * 8e-6:,.0f}"
        table.add_row(escape(link.source), escape(link.destination), rate, format_seconds(link.latency_s))
    out.print(table)
    _show_rest(len(network.links), "links")


def _show_rest(count: int, what: str) -> None:
    if count > _MOST_ROWS:
        out.print(f"... of {count:,} {what}; --json lists all", highlight=False)


def _record(
    scenario: Scenario,
    contacts: tuple[Contact, ...],
    when: datetime,
    network: Network,
    hours: float,
    transfer: float | None,
) -> dict[str, Any]:
    return {
        "scenario": scenario.name,
        "title": scenario.title,
        "chain": list(scenario.chain),
        "satellites": [
            {"name": satellite.name, "apogee_km": satellite.apogee_km, "inclination_deg": satellite.inclination_deg}
            for satellite in scenario.constellation.satellites
        ],
        "contacts": [
            {
                "station": contact.station,
                "satellite": contact.satellite,
                "start": contact.start.isoformat(),
                "stop": contact.stop.isoformat(),
                "max_elevation_deg": contact.max_elevation_deg,
            }
            for contact in contacts
        ],
        "findings": [
            {"kind": finding.kind, "is_error": finding.is_error, "message": finding.message}
            for finding in scenario.lint(hours=hours, transfer_bytes=transfer)
        ],
        "network": _network_record(network, when),
        "numbers": {
            name: {"value": number.value, "origin": number.origin, "source": number.source}
            for name, number in scenario.numbers.items()
        },
    }


def _network_record(network: Network, when: datetime) -> dict[str, Any]:
    return {
        "at": when.isoformat(),
        "nodes": [
            {"name": n.name, "memory_bytes": n.memory_bytes, "flop_per_s": n.flop_per_s, "slowdown": n.slowdown}
            for n in network.nodes
        ],
        "links": [
            {"source": n.source, "destination": n.destination, "bytes_per_s": n.bytes_per_s, "latency_s": n.latency_s}
            for n in network.links
        ],
    }


def _instant(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise ValueError(f"the time is {quoted(text)}, expected one like 2026-01-01T12:00:00Z") from None
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)
