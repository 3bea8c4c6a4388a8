"""What a flight adds to a trace: passes, hand-overs, what each link carried, and tokens, in seconds of its clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from orbitsplit._io.validation import (
    check_integer,
    check_keys,
    check_number,
    check_string,
    list_of,
    mapping_of,
    quoted,
    tuple_of,
)

# input, result: files of a request. activation: what a stage sends to the next. context: keys and values, or the tokens
# so far, that a hand-over moves.
CARRIED = ("input", "activation", "context", "result")


class FlightPass(NamedTuple):
    """A contact of a satellite with a station."""

    satellite: str
    station: str
    start_s: float
    stop_s: float


class FlightHandover(NamedTuple):
    """A change of the running plan: from its begin, when new stages start to load, to the switch.

    `request` is the one that was being generated, with `tokens` new tokens at the switch; -1 between requests.
    """

    start_s: float
    stop_s: float
    before: tuple[str, ...]
    after: tuple[str, ...]
    request: int
    tokens: int


class FlightTransmission(NamedTuple):
    """Bytes on one link: `carried` is "input", "activation", "context" or "result"."""

    source: str
    destination: str
    carried: str
    request: int
    start_s: float
    stop_s: float
    bytes: int


class FlightToken(NamedTuple):
    """The instant at which a request had its next token."""

    request: int
    at_s: float


@dataclass(frozen=True, slots=True)
class FlightLog:
    """What happened in a flight beside the computations of nodes.

    Attributes:
        epoch: The instant at which the clock was 0, in UTC as ISO 8601.
        speed: How many times faster than real time the clock ran.
        passes: Contacts with stations.
        handovers: Changes of the running plan.
        transmissions: What links carried.
        tokens: When tokens were generated.

    Raises:
        ValueError: The speed is not positive, or something was carried that is not known.
    """

    epoch: str
    speed: float
    passes: tuple[FlightPass, ...] = ()
    handovers: tuple[FlightHandover, ...] = ()
    transmissions: tuple[FlightTransmission, ...] = ()
    tokens: tuple[FlightToken, ...] = ()

    def __post_init__(self) -> None:
        check_string("flight.epoch", self.epoch)
        check_number("flight.speed", self.speed)
        if not self.speed > 0:
            raise ValueError(f"flight.speed is {self.speed}, must be > 0")
        for name, kind in _RECORDS.items():
            object.__setattr__(self, name, tuple_of(f"flight.{name}", getattr(self, name), kind))
        for sent in self.transmissions:
            if sent.carried not in CARRIED:
                raise ValueError(f"flight.transmissions carry {quoted(sent.carried)}, known are {', '.join(CARRIED)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the log as JSON-ready data: lists in the order of the fields."""
        data: dict[str, Any] = {"epoch": self.epoch, "speed": self.speed}
        for name in _RECORDS:
            data[name] = [_plain(row) for row in getattr(self, name)]
        return data

    @classmethod
    def from_dict(cls, value: Any) -> FlightLog:
        """Make a log from what `to_dict` returned. Raises ValueError or TypeError, naming the place."""
        values = dict(mapping_of("flight", value))
        check_keys("flight", values, cls)
        for name, kind in _RECORDS.items():
            rows = list_of(f"flight.{name}", values.get(name, []))
            values[name] = tuple(_record(f"flight.{name}[{k}]", row, kind) for k, row in enumerate(rows))
        return cls(**values)


_RECORDS: Mapping[str, Any] = {
    "passes": FlightPass,
    "handovers": FlightHandover,
    "transmissions": FlightTransmission,
    "tokens": FlightToken,
}
assert set(_RECORDS) == {field.name for field in fields(FlightLog)} - {"epoch", "speed"}
_INTEGERS = ("request", "tokens", "bytes")
_LISTS = ("before", "after")


def _plain(row: Sequence[Any]) -> list[Any]:
    return [list(value) if isinstance(value, tuple) else value for value in row]


def _record(key: str, row: Any, kind: Any) -> Any:
    values = list_of(key, row)
    names = kind._fields
    if len(values) != len(names):
        raise ValueError(f"{key} has {len(values)} values, must be {', '.join(names)}")
    return kind(*(_value(f"{key}: {name}", name, value) for name, value in zip(names, values, strict=True)))


def _value(key: str, name: str, value: Any) -> Any:
    if name in _LISTS:
        nodes = tuple(list_of(key, value))
        for node in nodes:
            check_string(key, node)
        return nodes
    if name in _INTEGERS:
        check_integer(key, value)
    elif name.endswith("_s"):
        check_number(key, value)
    else:
        check_string(key, value)
    return value
