"""Planning problems as plain arrays in SI units, and the evaluation of plans."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from orbitsplit._backend import backend
from orbitsplit._io.deprecation import renamed_attribute
from orbitsplit._io.files import write_text
from orbitsplit._io.json_document import load_document
from orbitsplit._io.validation import (
    Array,
    array_of,
    check_boolean,
    check_choice,
    check_fields,
    check_integer,
    check_keys,
    check_kind,
    check_number,
    check_string,
    index_of,
    list_of,
    mapping_of,
    quoted,
    record_of,
    records_of,
    tuple_of,
)

from .losses import absent_as_infinity, infinity_as_absent
from .problem_parts import NO_LEVEL, ExternalLink, HasStages, Level, Pins, ProblemNode, Stage, WeightLevel

# Arrays of losses, in which None or infinite is a level that is not there.
_LOSSES = ("loss", "weight_loss")
# Arrays that may be None.
_OPTIONAL = (
    "layer_earlier_time_s",
    "layer_decode_time_s",
    "stage_overhead_s",
    "stage_decode_overhead_s",
    "cut_decode_bytes",
    "weight_loss",
)
_PREPARED = "_prepared"  # the attribute of a problem with the backend that it is prepared for, and what that made of it


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """The planner's input: L layers, N nodes, K levels and W weight levels as arrays in SI units.

    Keys and shapes are those of a problem file:

    - `layers` L names, `nodes`, `levels`; `layer_memory_bytes` (L,)
    - `layer_time_s` (N, L) seconds per micro-batch
    - `layer_earlier_time_s` (N, L) where micro-batches are not alike: the mean seconds of those before the last one;
      `layer_time_s` is then that of the last. Absent or null (None): all take `layer_time_s`
    - `stage_overhead_s` (N,) seconds per micro-batch that a stage on the node takes in addition to its layers,
      whichever they are, in micro-batches before the last one too; `stage_decode_overhead_s` (N,) the same per token
      step. Absent or null (None): nothing
    - `cut_bytes` (L-1,) uncompressed bytes that cross the cut after layer i, per micro-batch
    - `loss` (L-1, K) additive loss of a level at the cut after layer i; null (None) or infinite: the cut does not have
      the level
    - `bandwidth_bytes_per_s`, `latency_s` (N, N) directed; bandwidth 0 means no link
    - `loss_budget`: absent, null (None) or infinite means no limit
    - `micro_batches` (default 1), `new_tokens` (default 0: prefill only), `groups` (default `micro_batches`);
      `new_tokens` of 2 or more needs `layer_decode_time_s` (N, L) and `cut_decode_bytes` (L-1,)
    - `tokens_per_step` (default 1): tokens that a step gives each sequence on average, more than 1 with guesses
    - `ingress`, `egress`: absent or null means that the input is on the first node, and the result stays on the last
    - `weight_levels`: W precisions of the weights, of which each stage has one. `layer_memory_bytes` is then (W, L),
      `layer_time_s`, `layer_earlier_time_s` and `layer_decode_time_s` are (W, N, L), those of stages (W, N), and
      `weight_loss` (W, L) is the loss of each layer, which adds to that of the cuts; null (None) or infinite: the layer
      does not have the weight level. Absent or empty: there is one precision, which loses nothing
    - `order`: "fixed" (default; nodes in increasing index, any may be skipped) or "free" (any subset, any order)
    - `latency_occupies_link` (default false): latency is part of the occupancy of a link
    - `pins`: `{"layers": {"3": "node name"}, "required": ["node name"], "forbidden": [2]}`, every part
      optional; a layer is given by index (digits) or name, a node by index or name
    - `name` and `expected` are kept and ignored

    Arrays are kept as read-only float64.

    Raises:
        ValueError: A value or a shape is wrong; the message names the key, the index, the value and the limit.
        TypeError: A value has another type.
    """

    layers: tuple[str, ...]
    nodes: tuple[ProblemNode, ...]
    layer_memory_bytes: Array
    layer_time_s: Array
    cut_bytes: Array
    bandwidth_bytes_per_s: Array
    latency_s: Array
    levels: tuple[Level, ...]
    loss: Array
    loss_budget: float | None = None
    layer_earlier_time_s: Array | None = None
    layer_decode_time_s: Array | None = None
    stage_overhead_s: Array | None = None
    stage_decode_overhead_s: Array | None = None
    cut_decode_bytes: Array | None = None
    micro_batches: int = 1
    new_tokens: int = 0
    groups: int | None = None
    ingress: ExternalLink | None = None
    egress: ExternalLink | None = None
    order: Literal["fixed", "free"] = "fixed"
    latency_occupies_link: bool = False
    pins: Pins = field(default_factory=Pins)
    name: str | None = None
    expected: Any = None
    weight_levels: tuple[WeightLevel, ...] = ()
    weight_loss: Array | None = None
    tokens_per_step: float = 1.0

    def __post_init__(self) -> None:
        """Convert every attribute to its type and shape, and let the backend check the values."""
        for key, value in _normalised(self).items():
            object.__setattr__(self, key, value)
        prepared(self)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is derived from the attributes."""
        return {key: value for key, value in self.__dict__.items() if key != _PREPARED}

    def __eq__(self, other: object) -> bool:
        """Compare everything, `name` and `expected` included."""
        return self.to_dict() == other.to_dict() if isinstance(other, Problem) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Problem:
        """Make a problem from the keys of a problem file. Raises ValueError or TypeError naming the key."""
        values = dict(mapping_of("the problem", data))
        check_keys("the problem", values, cls)
        for key in ("layers", "nodes", "levels"):
            values[key] = list_of(key, values[key])
        values["nodes"] = records_of("nodes", values["nodes"], ProblemNode)
        values["levels"] = records_of("levels", values["levels"], Level)
        if values.get("weight_levels") is not None:
            given = list_of("weight_levels", values["weight_levels"])
            values["weight_levels"] = records_of("weight_levels", given, WeightLevel)
        for key in ("ingress", "egress"):
            if values.get(key) is not None:
                values[key] = record_of(key, values[key], ExternalLink)
        values["pins"] = _pins(values.get("pins"), values["layers"], [node.name for node in values["nodes"]])
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the keys of a problem file as plain lists and numbers; absent options are left out."""
        return {
            key: infinity_as_absent(_plain(value)) if key in _LOSSES else _plain(value)
            for key, value in ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
            if value is not None
            and not (isinstance(value, Pins) and value == Pins())
            and not (key == "weight_levels" and value == ())
            and not (key == "tokens_per_step" and value == 1)
        }

    @classmethod
    def load(cls, path: str | Path) -> Problem:
        """Read a problem file (JSON). Raises ValueError naming the file and the key, OSError."""
        return load_document(path, cls.from_dict)

    def save(self, path: str | Path) -> None:
        """Write a problem file (JSON)."""
        write_text(path, json.dumps(self.to_dict(), indent=1) + "\n")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What the cost model (cost.hpp) predicts for a plan, and which limits the plan violates.

    Attributes:
        objective_s: Seconds of all micro-batches and all tokens; infinite if a link is missing.
        prefill_s: Seconds of the prefill of all micro-batches (the makespan).
        token_step_s: Seconds from one step of a sequence group to its next, in steady state; 0 without generation.
        round_trip_s: Seconds of one step through all stages, its return included; 0 without generation.
        bottleneck_s: The longest occupancy of a stage or link by a micro-batch (one before the last where they are not
            alike), or by a token step if the problem generates tokens.
        return_s: Latency from the last node back to the first; 0 without generation.
        loss: The sum of the losses at the cuts, and of the weights if there are weight levels; infinite if a cut or a
            layer does not have the level of the plan.
        latency_s: Propagation of the prefill, which is added once; 0 if latency occupies links.
        ingress_s: Occupancy of the ingress per micro-batch.
        egress_s: Occupancy of the egress per micro-batch.
        stage_s: Occupancies of the stages per micro-batch, of the last one where they are not alike; that of a
            half-duplex stage includes the link after it.
        link_s: Occupancies of the links per micro-batch; link k joins stage k to stage k + 1.
        decode_stage_s: `stage_s` per token step; empty without generation.
        decode_link_s: `link_s` per token step; empty without generation.
        stage_memory_bytes: Memory of the layers of each stage.
        is_feasible: Whether no limit is violated.
        violations: One sentence for each violated limit.
        weight_loss: The part of `loss` that is of the weights; 0 without weight levels.
        earlier_stage_s: `stage_s` of the micro-batches before the last one, their mean; empty if the problem has no
            `layer_earlier_time_s`.
        tokens_per_step: Those of the problem; 1 without generation.
    """

    objective_s: float
    prefill_s: float
    token_step_s: float
    round_trip_s: float
    bottleneck_s: float
    return_s: float
    loss: float
    latency_s: float
    ingress_s: float
    egress_s: float
    stage_s: tuple[float, ...]
    link_s: tuple[float, ...]
    decode_stage_s: tuple[float, ...]
    decode_link_s: tuple[float, ...]
    stage_memory_bytes: tuple[float, ...]
    is_feasible: bool
    violations: tuple[str, ...]
    weight_loss: float = 0.0
    earlier_stage_s: tuple[float, ...] = ()
    tokens_per_step: float = 1.0

    lap_s = renamed_attribute("Evaluation.lap_s", "round_trip_s")


def earlier_time_s(problem: Problem) -> Array:
    """Return the seconds of a layer in the micro-batches before the last one: `layer_time_s` where all are alike."""
    return problem.layer_time_s if problem.layer_earlier_time_s is None else problem.layer_earlier_time_s


def stage_overhead_s(problem: Problem) -> Array | float:
    """Return the seconds of a stage on each node beside its layers, 0 without any."""
    return 0.0 if problem.stage_overhead_s is None else problem.stage_overhead_s


def evaluate(problem: Problem, stages: Sequence[Stage] | HasStages) -> Evaluation:
    """Score a plan by the cost model, whether or not it respects the limits.

    Args:
        problem: The problem.
        stages: A sequence of `Stage`, or anything that has one as `.stages`, such as a `Solution`.

    Raises:
        ValueError: The stages are not a plan: gaps, a node twice, wrong order, a level or a weight level that does not
            exist.

    >>> evaluate(problem, solution).objective_s                # doctest: +SKIP
    """
    check_kind("problem", problem, Problem)
    sequence: Any = stages if isinstance(stages, Sequence) else getattr(stages, "stages", stages)
    return Evaluation(**backend().evaluate(prepared(problem), stage_rows(sequence)))


def prepared(problem: Problem) -> Any:
    """Return what the backend takes for a problem: validated and copied once, whatever the number of calls.

    Raises ValueError naming the key of an invalid value.
    """
    module = backend()
    made_for, made = problem.__dict__.get(_PREPARED, (None, None))
    if made_for is not module:
        made = module.prepare_problem(problem)
        made = None if made is problem else made  # no cycle, which would keep the arrays
        object.__setattr__(problem, _PREPARED, (module, made))
    return problem if made is None else made


def stage_rows(stages: Sequence[Stage]) -> NDArray[np.int32]:
    """Return stages as the rows (node, start, stop, level, weight level) of a backend.

    Raises ValueError for what is not a stage.
    """
    rows = []
    for k, stage in enumerate(tuple_of("stages", stages)):
        try:
            whole = Stage(*stage)
        except TypeError as error:
            raise ValueError(f"stage {k} is {quoted(stage)}, must be (node, start, stop, level)") from error
        row = tuple(NO_LEVEL if value is None else value for value in whole)
        for key, value in zip(Stage._fields, row, strict=True):
            check_integer(f"{key} of stage {k}", value)
        for key in ("level", "weight_level"):
            if getattr(whole, key) == NO_LEVEL:
                name = key.replace("_", " ")
                raise ValueError(f"stage {k} has {name} {NO_LEVEL}, must be a {name} of the problem or None")
        rows.append(row)
    return np.array(rows, dtype=np.int32).reshape(len(rows), len(Stage._fields))


def _normalised(problem: Problem) -> dict[str, Any]:
    """Return every attribute in its type and shape. Raises ValueError or TypeError naming the key."""
    values: dict[str, Any] = {
        "layers": tuple_of("layers", problem.layers),
        "nodes": tuple_of("nodes", problem.nodes, ProblemNode),
        "levels": tuple_of("levels", problem.levels, Level),
        "weight_levels": tuple_of("weight_levels", problem.weight_levels or (), WeightLevel),
    }
    layers, nodes, levels, weight_levels = (len(part) for part in values.values())
    if (problem.weight_loss is not None) != (weight_levels > 0):
        is_there, is_missing = ("weight_levels", "weight_loss") if weight_levels else ("weight_loss", "weight_levels")
        raise ValueError(f"{is_missing} is missing, {is_there} is given")
    cuts = max(layers - 1, 0)
    blocks = (weight_levels,) if weight_levels else ()
    shapes = {
        "layer_memory_bytes": (*blocks, layers),
        "layer_time_s": (*blocks, nodes, layers),
        "layer_earlier_time_s": (*blocks, nodes, layers),
        "layer_decode_time_s": (*blocks, nodes, layers),
        "stage_overhead_s": (*blocks, nodes),
        "stage_decode_overhead_s": (*blocks, nodes),
        "cut_bytes": (cuts,),
        "cut_decode_bytes": (cuts,),
        "bandwidth_bytes_per_s": (nodes, nodes),
        "latency_s": (nodes, nodes),
        "loss": (cuts, levels),
        "weight_loss": (weight_levels, layers),
    }
    for key, shape in shapes.items():
        value = getattr(problem, key)
        if value is not None or key not in _OPTIONAL:
            values[key] = array_of(key, absent_as_infinity(value) if key in _LOSSES else value, shape)
    for key in ("micro_batches", "new_tokens", "groups"):
        if getattr(problem, key) is not None or key != "groups":
            check_integer(key, getattr(problem, key))
    for key in ("ingress", "egress"):
        if getattr(problem, key) is not None:
            values[key] = _external_link(key, getattr(problem, key), nodes)
    _check_scalars(problem)
    if problem.loss_budget == math.inf:
        values["loss_budget"] = None
    return values


def _check_scalars(problem: Problem) -> None:
    for i, layer in enumerate(problem.layers):
        check_string(f"layers[{i}]", layer)
    for n, node in enumerate(problem.nodes):
        check_fields(f"nodes[{n}]", node, strings=("name",), booleans=("half_duplex",))
    for k, level in enumerate(problem.levels):
        check_fields(f"levels[{k}]", level, strings=("name",))
    for w, weight_level in enumerate(problem.weight_levels or ()):
        check_string(f"weight_levels[{w}].name", weight_level.name)
    if problem.loss_budget is not None:
        check_number("loss_budget", problem.loss_budget)
    check_number("tokens_per_step", problem.tokens_per_step)
    check_choice("order", problem.order, ("fixed", "free"))
    check_boolean("latency_occupies_link", problem.latency_occupies_link)
    if problem.name is not None:
        check_string("name", problem.name)
    check_kind("pins", problem.pins, Pins)
    for key, members in (("required", problem.pins.required), ("forbidden", problem.pins.forbidden)):
        for i, member in enumerate(tuple_of(f"pins.{key}", members)):
            check_integer(f"pins.{key}[{i}]", member)
    for pinned, host in mapping_of("pins.layers", problem.pins.layers).items():
        check_integer("pins.layers: the layer", pinned)
        check_integer(f"pins.layers[{pinned}]", host)


def _external_link(key: str, link: ExternalLink, nodes: int) -> ExternalLink:
    check_kind(key, link, ExternalLink)
    check_number(f"{key}.bytes", link.bytes)
    return ExternalLink(
        bytes=link.bytes,
        bandwidth_bytes_per_s=array_of(f"{key}.bandwidth_bytes_per_s", link.bandwidth_bytes_per_s, (nodes,)),
        latency_s=array_of(f"{key}.latency_s", link.latency_s, (nodes,)),
    )


def _pins(value: Any, layers: Sequence[str], nodes: Sequence[str]) -> Pins:
    if value is None:
        return Pins()
    values = mapping_of("pins", value)
    check_keys("pins", values, Pins)
    pinned: dict[int, int] = {}
    for layer, node in mapping_of("pins.layers", values.get("layers", {})).items():
        index = int(layer) if layer.isdecimal() else index_of("pins.layers: the layer", layer, layers)
        if index in pinned:
            raise ValueError(f"pins.layers[{index}] is given twice")
        pinned[index] = index_of(f"pins.layers[{index}]", node, nodes)
    node_lists = {
        part: tuple(index_of(f"pins.{part}[{i}]", node, nodes) for i, node in enumerate(list_of(f"pins.{part}", given)))
        for part, given in values.items()
        if part != "layers"
    }
    return Pins(layers=pinned, **node_lists)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Pins):
        layers = {str(layer): node for layer, node in value.layers.items()}
        return {"layers": layers, "required": list(value.required), "forbidden": list(value.forbidden)}
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
