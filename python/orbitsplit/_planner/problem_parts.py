"""What a problem and its plans consist of: nodes, levels, external links, pins and stages. Plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from orbitsplit._io.validation import Array

NO_LEVEL = -1


@dataclass(frozen=True, kw_only=True)
class ProblemNode:
    """A node of a problem.

    Attributes:
        name: Unique name.
        memory_bytes: Memory; the layers of its stage may use `memory_bytes - headroom_bytes`.
        headroom_bytes: Memory that is kept free.
        half_duplex: Whether the node cannot compute and transmit at once.
    """

    name: str
    memory_bytes: float
    headroom_bytes: float = 0.0
    half_duplex: bool = False


@dataclass(frozen=True, kw_only=True)
class Level:
    """One rate-distortion point of a codec.

    Attributes:
        name: Name of the codec.
        ratio: Original bytes / compressed bytes, at least 1.
        encode_s_per_byte: Seconds of the sender per original byte.
        decode_s_per_byte: Seconds of the receiver per original byte.
    """

    name: str
    ratio: float
    encode_s_per_byte: float = 0.0
    decode_s_per_byte: float = 0.0


@dataclass(frozen=True, kw_only=True)
class WeightLevel:
    """One precision of the weights; what it takes and loses is in the arrays of the problem.

    Attributes:
        name: Name of the precision, such as "int8".
    """

    name: str


@dataclass(frozen=True, kw_only=True, eq=False)
class ExternalLink:
    """The links over which the input of each micro-batch arrives (ingress) or its result leaves (egress).

    Attributes:
        bytes: Size of the input or result of one micro-batch.
        bandwidth_bytes_per_s: (N,), by node; 0 means that the node cannot be first (ingress) or last (egress).
        latency_s: (N,), by node.
    """

    bytes: float
    bandwidth_bytes_per_s: Array
    latency_s: Array


@dataclass(frozen=True, kw_only=True)
class Pins:
    """Fixed choices, by index.

    Attributes:
        layers: The node on which a layer must run, by layer.
        required: Nodes that must have a stage.
        forbidden: Nodes that must not have a stage.
    """

    layers: Mapping[int, int] = field(default_factory=dict)
    required: tuple[int, ...] = ()
    forbidden: tuple[int, ...] = ()


class Stage(NamedTuple):
    """Consecutive layers on one node.

    Attributes:
        node: Index of the node.
        start: Index of the first layer.
        stop: Index after the last layer.
        level: Index of the level at the cut after the stage, None on the last stage.
        weight_level: Index of the weight level of its layers, None if the problem has no weight levels.
    """

    node: int
    start: int
    stop: int
    level: int | None = None
    weight_level: int | None = None

    def __repr__(self) -> str:
        """Return the stage as it is written, without a weight level that it does not have."""
        return f"Stage({', '.join(f'{key}={value!r}' for key, value in self.to_dict().items())})"

    def to_dict(self) -> dict[str, int | None]:
        """Return the fields by name as JSON-ready data, without a weight level that it does not have."""
        fields = self._asdict()
        if self.weight_level is None:
            del fields["weight_level"]
        return fields


class HasStages(Protocol):
    """Anything that has stages, such as a `Solution`."""

    @property
    def stages(self) -> Sequence[Stage]: ...
