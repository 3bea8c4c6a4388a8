"""The parts of a plan: its stages, and the links between them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from orbitsplit._codec.codecs import Codec
from orbitsplit._io.deprecation import renamed_attribute, takes_renamed
from orbitsplit._io.device_names import CPU, check_device_name
from orbitsplit._io.validation import (
    LARGEST_BYTES,
    check_boolean,
    check_count,
    check_number,
    check_string,
    list_of,
    mapping_of,
    quoted,
)


@takes_renamed(level="codebook_level")
@dataclass(frozen=True, slots=True)
class PlanStage:
    """Layers [start, stop) on one node; `codec` encodes the activation that leaves the stage.

    `codec` is None on the last stage, and where the activation is sent uncompressed. `codebook_level` is the index of a
    level that the plan's codebook has at this cut; `codec` is then that level's name. `weights` is the name of one of
    the plan's `weight_models`, None for the plan's own model. `device` runs the stage, as torch names it. `slowdown` s
    makes the runtime emulate a node s times slower than this machine (1 or less: run at full speed). `memory_bytes` is
    the node's limit in bytes, None without a limit.

    Raises:
        ValueError: A field is out of range, an unknown codec, or a codebook level without its name as `codec`.
        TypeError: A field has another type.
    """

    node: str
    start: int
    stop: int
    codec: str | None = None
    slowdown: float = 1.0
    memory_bytes: int | None = None
    half_duplex: bool = False
    codebook_level: int | None = None
    weights: str | None = None
    device: str = CPU

    level = renamed_attribute("PlanStage.level", "codebook_level")

    @property
    def cut(self) -> int:
        """The cut after the stage: the number of transformer layers before it."""
        return self.stop - 1

    def __post_init__(self) -> None:
        check_string("the node of a stage", self.node)
        check_count(f"start of the stage on {quoted(self.node)}", self.start, 0)
        check_count(f"stop of the stage on {quoted(self.node)}", self.stop, self.start + 1)
        if self.codec is not None:
            check_string(f"codec of the stage on {quoted(self.node)}", self.codec)
            if self.codebook_level is None:
                Codec.parse(self.codec)
        if self.codebook_level is not None:
            check_count(f"codebook_level of the stage on {quoted(self.node)}", self.codebook_level, 0)
            if self.codec is None:
                fact = f"the stage on {quoted(self.node)} has codebook_level {self.codebook_level}"
                raise ValueError(f"{fact} and no codec, which must be the level's name")
        check_not_negative(f"slowdown of node {quoted(self.node)}", self.slowdown)
        if self.slowdown == 0:
            raise ValueError(f"slowdown of node {quoted(self.node)} is 0, must be above 0")
        if self.memory_bytes is not None:
            check_count(f"memory_bytes of node {quoted(self.node)}", self.memory_bytes, 1, most=LARGEST_BYTES)
        check_boolean(f"half_duplex of node {quoted(self.node)}", self.half_duplex)
        check_device_name(f"device of node {quoted(self.node)}", self.device)
        if self.weights is not None:
            check_string(f"weights of the stage on {quoted(self.node)}", self.weights)


@dataclass(frozen=True, slots=True)
class PlanLink:
    """The link from one stage to the next.

    Attributes:
        bytes_per_s: Rate; None: not limited.
        latency_s: Delay of each message, which does not occupy the link.

    Raises:
        ValueError: A number is out of range.
    """

    bytes_per_s: float | None = None
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        if self.bytes_per_s is not None:
            check_not_negative("bytes_per_s of a link", self.bytes_per_s)
            if self.bytes_per_s == 0:
                raise ValueError("bytes_per_s of a link is 0, must be positive")
        check_not_negative("latency_s of a link", self.latency_s)


def layer_range(stage: PlanStage, layers: int) -> str:
    """Return the first and the last layer of a stage, as "0-6 (0: embeddings)", of a model of so many `layers`."""
    ends = ["0: embeddings"] * (stage.start == 0) + [f"{layers - 1}: head"] * (stage.stop == layers)
    return f"{stage.start}-{stage.stop - 1}" + (f" ({', '.join(ends)})" if ends else "")


def stage_records(stages: Any) -> list[Mapping[str, Any]]:
    """Return the stages of a document; `codebook_level` is called `level` in those of version 0.1."""
    records = [mapping_of(f"stages[{k}]", stage) for k, stage in enumerate(list_of("stages", stages))]
    return [{"codebook_level" if key == "level" else key: value for key, value in stage.items()} for stage in records]


def check_not_negative(name: str, value: object) -> None:
    """Raise TypeError or ValueError unless a field is a finite number of at least 0."""
    check_number(name, value)
    if not (math.isfinite(cast("float", value)) and cast("float", value) >= 0):
        raise ValueError(f"{name} is {value}, must be finite and at least 0")
