"""Conditions of links over time, usually read from a TOML file: rates, delay, jitter, outages, corruption.

All times count from the moment the pipeline is ready. Rates and delays replace those of the plan. This module has the
data and draws the random times; `runtime/_emulation/link_shaper.py` computes delivery times from them.
"""

from __future__ import annotations

import heapq
import json
import math
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from orbitsplit._io.deprecation import renamed_attribute, takes_renamed
from orbitsplit._io.files import read_text
from orbitsplit._io.json_document import data_of, document_of
from orbitsplit._io.toml import check_table_keys, parse_toml, quantity_of, tables_of
from orbitsplit._io.validation import (
    check_integer,
    check_keys,
    check_number,
    check_string,
    list_of,
    listed,
    mapping_of,
    quoted,
    record_of,
    tuple_of,
)

from .link_ends import end_keys, ends_of

FORMAT = "orbitsplit-link-conditions"
VERSION = 1

# Bursts are drawn in sequence from time 0: a shorter mean would make drawing them expensive.
_SHORTEST_GAP_S = 1e-3


@dataclass(frozen=True, slots=True)
class LossBursts:
    """Random outages with exponentially distributed gaps and durations (the Gilbert-Elliott model in continuous time).

    Attributes:
        every_s: Mean seconds from the end of a burst to the next one, at least 0.001.
        lasting_s: Mean seconds of a burst, above 0.

    Raises:
        ValueError: A mean is out of range.
    """

    every_s: float
    lasting_s: float

    def __post_init__(self) -> None:
        _check_in("every of bursts", self.every_s, _SHORTEST_GAP_S, math.inf)
        _check_in("lasting of bursts", self.lasting_s, 0.0, math.inf)
        if self.lasting_s == 0:
            raise ValueError("lasting of bursts is 0, must be > 0")


@dataclass(frozen=True, slots=True)
class LinkShape:
    """The conditions of one directed link.

    Attributes:
        source: Name of the sending node.
        destination: Name of the receiving node.
        bytes_per_s: Rate; None: that of the plan.
        latency_s: Delay; None: that of the plan.
        jitter_s: The largest random delay that is added to a message.
        rates: Pairs of a time in seconds, the first 0, and the bytes per second from then on.
        down: Pairs of the start and the end of an outage in seconds; the last end may be infinite.
        bursts: Random outages.
        corrupt: Probability that one bit of a message is flipped.
        seed: Seed of all random numbers of the link.

    Raises:
        ValueError: A number out of range, times out of order, or two rates for one time.
    """

    source: str
    destination: str
    bytes_per_s: float | None = None
    latency_s: float | None = None
    jitter_s: float = 0.0
    rates: tuple[tuple[float, float], ...] = ()
    down: tuple[tuple[float, float], ...] = ()
    bursts: LossBursts | None = None
    corrupt: float = 0.0
    seed: int = 0

    target = renamed_attribute("LinkShape.target", "destination")

    def __post_init__(self) -> None:
        check_string("source of a link", self.source)
        check_string("destination of a link", self.destination)
        if self.source == self.destination:
            raise ValueError(f"link from node {quoted(self.source)} to itself")
        check_integer("seed", self.seed)
        link = f"{quoted(self.source)} -> {quoted(self.destination)}"
        if self.bytes_per_s is not None:
            _check_positive(f"bandwidth of {link}", self.bytes_per_s)
        for key, value, largest in (
            ("latency", self.latency_s, math.inf),
            ("jitter", self.jitter_s, math.inf),
            ("corrupt", self.corrupt, 1.0),
        ):
            if value is not None:
                _check_in(f"{key} of {link}", value, 0.0, largest)
        object.__setattr__(self, "rates", _pairs(f"rates of {link}", self.rates))
        object.__setattr__(self, "down", _pairs(f"down of {link}", self.down))
        if self.rates and self.bytes_per_s is not None:
            raise ValueError(f"{link} has both bandwidth and rates, expected one of them")
        _check_rates(f"rates of {link}", self.rates)
        _check_down(f"down of {link}", self.down)

    def outages(self) -> Iterator[tuple[float, float]]:
        """Yield start and end of each outage in seconds, in order and disjoint; without end if there are bursts."""
        found: tuple[float, float] | None = None
        for start_s, stop_s in heapq.merge(self.down, self._burst_times()):
            if found is None:
                found = start_s, stop_s
            elif start_s <= found[1]:
                found = found[0], max(found[1], stop_s)
            else:
                yield found
                found = start_s, stop_s
            if found[1] == math.inf:
                break
        if found is not None:
            yield found

    def generator(self, purpose: str) -> random.Random:
        """Return a generator that depends only on the seed, the names of both nodes and the purpose."""
        return random.Random(json.dumps([self.seed, self.source, self.destination, purpose]))

    def _burst_times(self) -> Iterator[tuple[float, float]]:
        if self.bursts is None:
            return
        draw = self.generator("bursts")
        stop_s = 0.0
        while True:
            start_s = stop_s + draw.expovariate(1 / self.bursts.every_s)
            stop_s = start_s + draw.expovariate(1 / self.bursts.lasting_s)
            yield start_s, stop_s


@dataclass(frozen=True, slots=True)
class LinkConditions:
    """The conditions of links over time.

    Attributes:
        links: The links with conditions; all others are as the plan has them.
        seed: Seed of all random numbers.

    Example:
        >>> text = '[[links]]\\nbetween = ["a", "b"]\\nbandwidth = "8 Mbit/s"\\ndown = [["10 s", "12 s"]]'
        >>> LinkConditions.from_toml(text).of("a", "b").down
        ((10.0, 12.0),)

    Raises:
        ValueError: A link appears twice, or the seed is no integer.
    """

    links: tuple[LinkShape, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("seed", self.seed)
        found: set[tuple[str, str]] = set()
        for link in tuple_of("links", self.links, LinkShape):
            if (link.source, link.destination) in found:
                raise ValueError(f"the link {quoted(link.source)} -> {quoted(link.destination)} appears twice")
            found.add((link.source, link.destination))
        object.__setattr__(self, "links", tuple(replace(link, seed=self.seed) for link in self.links))

    @classmethod
    def load(cls, path: str | Path) -> LinkConditions:
        """Read the conditions from a TOML file; quantities may carry a unit. `docs/guides/links.md` describes the keys.

        Version 0.1 named the ends of a link `from` and `to`, which are still read.

        Raises:
            ValueError: The file is not TOML, or a key is missing, unknown or has a wrong value.
        """
        return cls.from_toml(read_text(path), source=str(path))

    @classmethod
    def from_toml(cls, text: str, *, source: str = "conditions") -> LinkConditions:
        """Make conditions from TOML text; `source` is named in errors.

        Raises:
            ValueError: As `load`.
        """
        data = parse_toml(text, source)
        check_table_keys(data, required=("links",), optional=("seed",), where=source)
        links = [
            link
            for k, table in enumerate(tables_of(data, "links", source))
            for link in _links(table, f"{source}: links[{k}]")
        ]
        try:
            return cls(tuple(links), seed=data.get("seed", 0))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source}: {error}") from None

    @takes_renamed(target="destination")
    def of(self, source: str, destination: str) -> LinkShape | None:
        """Return the conditions of the link from `source` to `destination`, None if there are none."""
        return next((link for link in self.links if (link.source, link.destination) == (source, destination)), None)

    def check(self, nodes: Iterable[str]) -> None:
        """Raise ValueError if a link names a node that is not among `nodes`."""
        known = list(nodes)
        for end in self._nodes_beyond(known):
            raise ValueError(f"the conditions name node {quoted(end)}; the nodes are {listed(known)}")

    def nodes_left_out(self, nodes: Iterable[str]) -> tuple[str, ...]:
        """Return the nodes that links name and a plan over `nodes` leaves out, each once.

        Raises:
            ValueError: No link joins two of the nodes, or has the only one as its end: these are conditions for
                something else.
        """
        known = list(nodes)
        least = min(len(known), 2)
        if self.links and not any((link.source in known) + (link.destination in known) >= least for link in self.links):
            self.check(known)
        return self._nodes_beyond(known)

    def _nodes_beyond(self, nodes: Collection[str]) -> tuple[str, ...]:
        ends = (end for link in self.links for end in (link.source, link.destination))
        return tuple(dict.fromkeys(end for end in ends if end not in nodes))

    def to_dict(self) -> dict[str, Any]:
        """Return the conditions as JSON-ready data in SI units; `from_dict` takes it back."""
        links = []
        for link in self.links:
            values = asdict(link)
            del values["seed"]
            values["rates"] = [list(pair) for pair in link.rates]
            values["down"] = [[start, "forever" if stop == math.inf else stop] for start, stop in link.down]
            links.append(values)
        return document_of(FORMAT, VERSION, {"seed": self.seed, "links": links})

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> LinkConditions:
        """Make conditions from what `to_dict` returned.

        Raises:
            ValueError: A key is missing, unknown or has a wrong value; the message names it.
        """
        values = data_of(FORMAT, VERSION, document)
        check_keys("the conditions", values, cls)
        links = list_of("links", values.get("links", []))
        values["links"] = tuple(_link(f"links[{k}]", link) for k, link in enumerate(links))
        return cls(**values)


def _link(key: str, value: Any) -> LinkShape:
    values = dict(mapping_of(key, value))
    if "target" in values and "destination" not in values:
        values["destination"] = values.pop("target")  # the name in documents of version 0.1
    if values.get("bursts") is not None:
        values["bursts"] = record_of(f"{key}.bursts", values["bursts"], LossBursts)
    if isinstance(values.get("down"), list):
        values["down"] = [
            [pair[0], math.inf] if isinstance(pair, list) and pair[1:] == ["forever"] else pair
            for pair in values["down"]
        ]
    link: LinkShape = record_of(key, values, LinkShape)
    return link


def _links(table: Mapping[str, Any], where: str) -> list[LinkShape]:
    """Return the one or two directed links of a table."""
    keys = end_keys(table)
    optional = ("bandwidth", "latency", "jitter", "rates", "down", "bursts", "corrupt")
    check_table_keys(table, required=keys, optional=optional, where=where)
    ends = ends_of(table, where)
    if not all(isinstance(name, str) for name in ends):
        raise ValueError(f"{where}: {' and '.join(keys)} is {quoted(list(ends))}, expected two node names")
    values = _shape(table, where)
    try:
        forth = LinkShape(*ends, **values)
        return [forth, LinkShape(*reversed(ends), **values)] if "between" in table else [forth]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def _shape(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the fields of a link that its table gives."""
    read: dict[str, tuple[str, Callable[[Any, str], Any]]] = {
        "bandwidth": ("bytes_per_s", _rate),
        "latency": ("latency_s", _seconds),
        "jitter": ("jitter_s", _seconds),
        "rates": ("rates", lambda value, key: _read_pairs(value, key, _seconds, _rate)),
        "down": ("down", lambda value, key: _read_pairs(value, key, _seconds, _end)),
        "bursts": ("bursts", _bursts),
        "corrupt": ("corrupt", lambda value, key: value),
    }
    return {field: make(table[key], f"{where}.{key}") for key, (field, make) in read.items() if key in table}


def _rate(value: Any, key: str) -> float:
    return quantity_of(value, "bytes_per_s", key)


def _seconds(value: Any, key: str) -> float:
    return quantity_of(value, "seconds", key)


def _end(value: Any, key: str) -> float:
    return math.inf if value == "forever" else _seconds(value, key)


def _bursts(value: Any, key: str) -> LossBursts:
    if not isinstance(value, Mapping):
        raise ValueError(f"{key} is {quoted(value)}, expected {{ every = ..., lasting = ... }}")
    check_table_keys(value, required=("every", "lasting"), optional=(), where=key)
    try:
        return LossBursts(_seconds(value["every"], f"{key}.every"), _seconds(value["lasting"], f"{key}.lasting"))
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(key) else f"{key}: {error}") from None


def _read_pairs(
    value: Any, key: str, first: Callable[[Any, str], float], second: Callable[[Any, str], float]
) -> tuple[tuple[float, float], ...]:
    if not isinstance(value, list):
        raise ValueError(f"{key} is {quoted(value)}, expected a list of pairs")
    for k, pair in enumerate(value):
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"{key}[{k}] is {quoted(pair)}, expected a pair")
    return tuple((first(a, f"{key}[{k}]"), second(b, f"{key}[{k}]")) for k, (a, b) in enumerate(value))


def _pairs(key: str, value: Any) -> tuple[tuple[float, float], ...]:
    for k, pair in enumerate(list_of(key, value)):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError(f"{key}[{k}] is {quoted(pair)}, expected a pair")
        for number in pair:
            check_number(f"{key}[{k}]", number)
    return tuple((float(a), float(b)) for a, b in value)


def _check_in(key: str, value: Any, smallest: float, largest: float) -> None:
    check_number(key, value)
    if not (math.isfinite(value) and smallest <= value <= largest):
        limit = f"at least {smallest:g}" if largest == math.inf else f"from {smallest:g} to {largest:g}"
        raise ValueError(f"{key} is {value}, must be finite and {limit}")


def _check_positive(key: str, value: Any) -> None:
    check_number(key, value)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{key} is {value}, must be finite and > 0; a link that is down has its times in down")


def _check_rates(key: str, rates: tuple[tuple[float, float], ...]) -> None:
    if rates and rates[0][0] != 0:
        raise ValueError(f"{key} start at {rates[0][0]:g} s, must start at 0 s")
    for k, (start_s, bytes_per_s) in enumerate(rates):
        _check_positive(f"{key} from {start_s:g} s", bytes_per_s)
        if k and not (math.isfinite(start_s) and start_s > rates[k - 1][0]):
            raise ValueError(f"{key} change at {rates[k - 1][0]:g} s and then at {start_s:g} s, times must increase")


def _check_down(key: str, down: tuple[tuple[float, float], ...]) -> None:
    for k, (start_s, stop_s) in enumerate(down):
        if not (math.isfinite(start_s) and 0 <= start_s < stop_s):
            raise ValueError(f"{key} is from {start_s:g} s to {stop_s:g} s, must be from 0 s or later to a later time")
        if k and start_s < down[k - 1][1]:
            raise ValueError(
                f"{key} is to {down[k - 1][1]:g} s and then from {start_s:g} s, must be in order and apart"
            )
