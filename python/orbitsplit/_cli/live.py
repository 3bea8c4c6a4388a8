"""The command that shows a server at work: top."""

from __future__ import annotations

import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from http.client import HTTPException
from itertools import repeat
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from orbitsplit._io.units import format_bytes, format_seconds

from .options import app, out, print_json

_TIMEOUT_S = 10.0
_BAR = 20
_START = "orbitsplit_start_time_seconds"

Samples = Mapping[tuple[str, ...], float]
"""Values of metrics by name, and by the values of their labels in the order of the labels' names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLoad:
    """A node between two looks: the fraction of the time in which it worked, its memory and the limit of that."""

    name: str
    busy: float
    resident_bytes: float
    memory_bytes: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkLoad:
    """A link between two looks: payload bytes per second, and the fraction that this is of its planned rate."""

    source: str
    destination: str
    bytes_per_s: float
    use: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A server between two looks: tokens per second, choices that wait and run, its nodes and links."""

    tokens_per_s: float
    prompt_tokens_per_s: float
    waiting: int
    running: int
    recoveries: int
    up_s: float
    nodes: tuple[NodeLoad, ...]
    links: tuple[LinkLoad, ...]


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """A look at which a server did not answer that had answered before, and why."""

    no_answer: str


@app.command()
def top(
    url: Annotated[str, typer.Argument(help="Address of the server.")] = "http://127.0.0.1:8000",
    api_key: Annotated[
        str | None, typer.Option(envvar="ORBITSPLIT_API_KEY", help="Key of the server. Default: none.")
    ] = None,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many looks. Default: at Ctrl-C.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a look instead of text.")] = False,
) -> None:
    """Show what the nodes and links of a server do: tokens per second, what waits, how busy each is.

    Without a terminal it prints a line a look. A server that answered once may be away for a while, as for a restart.

    Example: `orbitsplit top http://127.0.0.1:8000 --count 1`
    """
    looks = loads(url, api_key, interval_s=interval, count=count)
    try:
        if as_json:
            for load in looks:
                print_json(asdict(load))
        elif out.is_terminal:
            with Live(console=out, auto_refresh=False) as live:
                for load in looks:
                    live.update(screen(load), refresh=True)
        else:
            for load in looks:
                out.print(line(load), highlight=False, soft_wrap=True, markup=False)
                sys.stdout.flush()
    except KeyboardInterrupt:
        pass  # how it is meant to end


def loads(url: str, api_key: str | None, *, interval_s: float, count: int | None) -> Iterator[Load | NoAnswer]:
    """Yield the load of a server at intervals, forever without a `count`; behind a gap, since the last answer.

    Raises:
        ImportError: The extra `serve` is not installed.
        ValueError: At first already the address is none, or there is no server, or it wants another key.
    """
    before, before_s = samples(url, api_key), time.monotonic()
    for _ in repeat(None) if count is None else range(count):
        time.sleep(interval_s)
        try:
            now, now_s = samples(url, api_key), time.monotonic()
        except ValueError as error:
            yield NoAnswer(str(error))
            continue
        yield load_between(before, now, now_s - before_s, time.time())
        before, before_s = now, now_s


def samples(url: str, api_key: str | None) -> Samples:
    """Return the metrics of a server now. Raises as `loads`."""
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ModuleNotFoundError as error:
        raise ImportError('top needs the parser of the server\'s metrics: pip install "orbitsplit[serve]"') from error
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url} is no address of a server, it must start with http:// or https://")
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    request = urllib.request.Request(f"{url.rstrip('/')}/metrics", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            text = answer.read().decode()
        families = list(text_string_to_metric_families(text))
    except (OSError, HTTPException, ValueError) as error:
        raise ValueError(f"{url} shows no metrics of an orbitsplit server: {error}") from error
    found = {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }
    if (_START,) not in found:
        raise ValueError(f"{url} shows no metrics of an orbitsplit server: {_START} is missing")
    return found


def load_between(before: Samples, now: Samples, seconds: float, time_s: float) -> Load:
    """Return the load between two looks, `seconds` apart, the second at `time_s` of the clock."""

    def rate(*key: str) -> float:
        # Counters begin again with a new plan: then all of the count is new.
        more = now.get(key, 0.0) - before.get(key, 0.0)
        return (more if more >= 0 else now[key]) / seconds

    nodes = [name for metric, *name in now if metric == "orbitsplit_node_memory_bytes"]
    ends = [names for metric, *names in now if metric == "orbitsplit_link_bytes_total"]
    return Load(
        tokens_per_s=rate("orbitsplit_generation_tokens_total"),
        prompt_tokens_per_s=rate("orbitsplit_prompt_tokens_total"),
        waiting=int(now.get(("orbitsplit_live_choices", "waiting"), 0)),
        running=int(now.get(("orbitsplit_live_choices", "running"), 0)),
        recoveries=int(now.get(("orbitsplit_recoveries_total",), 0)),
        up_s=max(0.0, time_s - now[(_START,)]),
        nodes=tuple(
            NodeLoad(
                name=node,
                busy=min(1.0, rate("orbitsplit_node_busy_seconds_total", node)),
                resident_bytes=now["orbitsplit_node_memory_bytes", node],
                memory_bytes=now.get(("orbitsplit_node_memory_limit_bytes", node)),
            )
            for (node,) in nodes
        ),
        links=tuple(
            _link_load(source, destination, rate("orbitsplit_link_bytes_total", destination, source), now)
            for destination, source in ends  # in the order of the labels' names
        ),
    )


def _link_load(source: str, destination: str, bytes_per_s: float, now: Samples) -> LinkLoad:
    planned = now.get(("orbitsplit_link_rate_bytes_per_second", destination, source))
    use = None if planned is None else bytes_per_s / planned
    return LinkLoad(source=source, destination=destination, bytes_per_s=bytes_per_s, use=use)


def summary(load: Load) -> str:
    """Return tokens per second and what waits and runs."""
    recoveries = f", {load.recoveries} recoveries" if load.recoveries else ""
    return (
        f"{load.tokens_per_s:.1f} tokens/s, prompts {load.prompt_tokens_per_s:.1f} tokens/s; choices: {load.running} "
        f"running, {load.waiting} waiting{recoveries}; up {format_seconds(load.up_s)}"
    )


def line(load: Load | NoAnswer) -> str:
    """Return a load as one line: the summary, and the busiest node and link."""
    if isinstance(load, NoAnswer):
        return f"no answer, trying again: {load.no_answer}"
    parts = [summary(load)]
    if load.nodes:
        node = max(load.nodes, key=lambda one: one.busy)
        parts.append(f"busiest node {node.name} {node.busy:.0%}")
    known = [link for link in load.links if link.use is not None]
    if known:
        link = max(known, key=lambda one: one.use or 0.0)
        parts.append(f"busiest link {link.source} -> {link.destination} {link.use:.0%}")
    return "; ".join(parts)


def screen(load: Load | NoAnswer) -> RenderableType:
    """Return a load as tables of nodes and links below the summary."""
    if isinstance(load, NoAnswer):
        return Text(line(load))
    nodes = Table("node", "busy", "", "memory", "limit")
    for node in load.nodes:
        limit = "" if node.memory_bytes is None else format_bytes(node.memory_bytes)
        nodes.add_row(escape(node.name), f"{node.busy:.0%}", _bar(node.busy), format_bytes(node.resident_bytes), limit)
    links = Table("link", "use", "", "payload")
    for link in load.links:
        use = ("", "") if link.use is None else (f"{link.use:.0%}", _bar(link.use))
        links.add_row(escape(f"{link.source} -> {link.destination}"), *use, f"{format_bytes(link.bytes_per_s)}/s")
    return Group(Text(summary(load)), nodes, links)


def _bar(fraction: float) -> str:
    return "#" * round(_BAR * min(1.0, fraction))
