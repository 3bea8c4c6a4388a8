"""The attributes of a problem that the planner reads, and their validation with the messages of problem.cpp."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import Field
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from orbitsplit._numba.text import number

Floats = NDArray[np.float64]
_LARGEST_COUNT = 2**31 - 1
# Sums and products within these limits stay finite (problem.cpp). Memory of nodes and bandwidths are not added up.
_MOST_MAGNITUDE = 1e100
_MOST_BUDGET = 1e110  # may exceed the losses of all cuts together
_LEAST_BANDWIDTH = 1e-100
_ANY_FINITE = float(np.finfo(np.float64).max)


class Record(Protocol):
    """A dataclass, which `dataclasses.replace` takes."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


class ProblemNode(Protocol):
    """A node, as `orbitsplit::ProblemNode` in problem.hpp."""

    @property
    def name(self) -> str: ...
    @property
    def memory_bytes(self) -> float: ...
    @property
    def headroom_bytes(self) -> float: ...
    @property
    def half_duplex(self) -> bool: ...


class Level(Protocol):
    """A level, as `orbitsplit::Level` in problem.hpp."""

    @property
    def name(self) -> str: ...
    @property
    def ratio(self) -> float: ...
    @property
    def encode_s_per_byte(self) -> float: ...
    @property
    def decode_s_per_byte(self) -> float: ...


class WeightLevel(Protocol):
    """A weight level, as `orbitsplit::WeightLevel` in problem.hpp."""

    @property
    def name(self) -> str: ...


class ExternalLink(Record, Protocol):
    """Ingress or egress, as `orbitsplit::ExternalLink` in problem.hpp."""

    @property
    def bytes(self) -> float: ...
    @property
    def bandwidth_bytes_per_s(self) -> Floats: ...
    @property
    def latency_s(self) -> Floats: ...


class Pins(Record, Protocol):
    """Fixed choices, as `orbitsplit::Pins` in problem.hpp."""

    @property
    def layers(self) -> Mapping[int, int]: ...
    @property
    def required(self) -> tuple[int, ...]: ...
    @property
    def forbidden(self) -> tuple[int, ...]: ...


class Problem(Record, Protocol):
    """A problem, as `orbitsplit::Problem` in problem.hpp: what this backend reads of `orbitsplit.Problem`."""

    @property
    def layers(self) -> tuple[str, ...]: ...
    @property
    def nodes(self) -> Sequence[ProblemNode]: ...
    @property
    def layer_memory_bytes(self) -> Floats: ...
    @property
    def layer_time_s(self) -> Floats: ...
    @property
    def layer_earlier_time_s(self) -> Floats | None: ...
    @property
    def cut_bytes(self) -> Floats: ...
    @property
    def bandwidth_bytes_per_s(self) -> Floats: ...
    @property
    def latency_s(self) -> Floats: ...
    @property
    def levels(self) -> Sequence[Level]: ...
    @property
    def loss(self) -> Floats: ...
    @property
    def loss_budget(self) -> float | None: ...
    @property
    def weight_levels(self) -> Sequence[WeightLevel]: ...
    @property
    def weight_loss(self) -> Floats | None: ...
    @property
    def layer_decode_time_s(self) -> Floats | None: ...
    @property
    def stage_overhead_s(self) -> Floats | None: ...
    @property
    def stage_decode_overhead_s(self) -> Floats | None: ...
    @property
    def cut_decode_bytes(self) -> Floats | None: ...
    @property
    def micro_batches(self) -> int: ...
    @property
    def new_tokens(self) -> int: ...
    @property
    def groups(self) -> int | None: ...
    @property
    def tokens_per_step(self) -> float: ...
    @property
    def ingress(self) -> ExternalLink | None: ...
    @property
    def egress(self) -> ExternalLink | None: ...
    @property
    def order(self) -> str: ...
    @property
    def latency_occupies_link(self) -> bool: ...
    @property
    def pins(self) -> Pins: ...


# The axis of the nodes in each array of times.
_NODE_AXES = {
    "layer_time_s": -2,
    "layer_earlier_time_s": -2,
    "layer_decode_time_s": -2,
    "stage_overhead_s": -1,
    "stage_decode_overhead_s": -1,
}


def copy_times_of_nodes(problem: Problem, nodes: Sequence[int] | NDArray[np.intp]) -> dict[str, Floats | None]:
    """Return each array of times for these nodes, in this order, of which one may occur several times."""
    given = {key: getattr(problem, key) for key in _NODE_AXES}
    return {key: None if own is None else np.take(own, nodes, axis=_NODE_AXES[key]) for key, own in given.items()}


def prepare_problem(problem: Problem) -> Problem:
    """Validate a problem for many evaluations and searches, and return it: this backend makes no copy."""
    validate_problem(problem)
    return problem


def validate_problem(problem: Problem) -> None:
    """Check every value of a problem whose types and shapes are right. Raises ValueError naming the key."""
    if not problem.layers:
        raise ValueError("layers is empty, needs at least one layer")
    _check_nodes(problem.nodes)
    for key in ("layer_memory_bytes", "layer_time_s", "layer_earlier_time_s", "stage_overhead_s", "cut_bytes"):
        values = getattr(problem, key)
        if values is not None:
            _check_array(key, values)
    _check_bandwidths("bandwidth_bytes_per_s", problem.bandwidth_bytes_per_s)
    _check_array("latency_s", problem.latency_s)
    for k, level in enumerate(problem.levels):
        _check_number(f"levels[{k}].ratio", level.ratio, 1)
        _check_number(f"levels[{k}].encode_s_per_byte", level.encode_s_per_byte, 0)
        _check_number(f"levels[{k}].decode_s_per_byte", level.decode_s_per_byte, 0)
    _check_losses("loss", problem.loss)
    if problem.weight_loss is not None:
        _check_losses("weight_loss", problem.weight_loss)
    if problem.loss_budget is not None:
        _check_number("loss_budget", problem.loss_budget, 0, _MOST_BUDGET)
    _check_count("micro_batches", problem.micro_batches, 1)
    _check_count("new_tokens", problem.new_tokens, 0)
    if problem.groups is not None:
        _check_count("groups", problem.groups, 1)
    _check_number("tokens_per_step", problem.tokens_per_step, 1)
    _check_decode(problem)
    _check_external("ingress", problem.ingress)
    _check_external("egress", problem.egress)
    _check_pins(problem.pins, len(problem.layers), len(problem.nodes))


def _check_number(key: str, value: float, least: float, most: float = _MOST_MAGNITUDE) -> None:
    if not np.isfinite(value):
        raise ValueError(f"{key} is {number(value)}, must be finite")
    if value < least:
        raise ValueError(f"{key} is {number(value)}, must be at least {number(least)}")
    if value > most:
        raise ValueError(f"{key} is {number(value)}, must be at most {number(most)}")


def _check_array(key: str, values: Floats, most: float = _MOST_MAGNITUDE) -> None:
    wrong = np.argwhere(~((values >= 0) & (values <= most)))
    if len(wrong):
        index = tuple(wrong[0])
        _check_number(_indexed(key, index), float(values[index]), 0, most)


def _check_losses(key: str, values: Floats) -> None:
    """Check losses, of which an infinite one means that the cut or layer does not have the level."""
    _check_array(key, np.where(values == np.inf, 0.0, values))


def _check_bandwidths(key: str, values: Floats) -> None:
    wrong = np.argwhere(~((values == 0) | ((values >= _LEAST_BANDWIDTH) & (values <= _ANY_FINITE))))
    if len(wrong):
        index = tuple(wrong[0])
        value = float(values[index])
        _check_number(_indexed(key, index), value, 0, _ANY_FINITE)
        raise ValueError(f"{_indexed(key, index)} is {number(value)}, must be 0 or at least {number(_LEAST_BANDWIDTH)}")


def _indexed(key: str, index: Sequence[int]) -> str:
    return key + "".join(f"[{i}]" for i in index)


def _check_count(key: str, value: int, least: int) -> None:
    if not least <= value <= _LARGEST_COUNT:
        raise ValueError(f"{key} is {value}, must be {least} to {_LARGEST_COUNT}")


def _check_nodes(nodes: Sequence[Any]) -> None:
    if not nodes:
        raise ValueError("nodes is empty, needs at least one node")
    names = set()
    for n, node in enumerate(nodes):
        if node.name in names:
            raise ValueError(f'nodes[{n}].name is "{node.name}", which another node has')
        names.add(node.name)
        _check_number(f"nodes[{n}].memory_bytes", node.memory_bytes, 0, _ANY_FINITE)
        _check_number(f"nodes[{n}].headroom_bytes", node.headroom_bytes, 0, _ANY_FINITE)
        if node.headroom_bytes > node.memory_bytes:
            raise ValueError(
                f"nodes[{n}].headroom_bytes is {number(node.headroom_bytes)}, must be at most its memory_bytes "
                f"{number(node.memory_bytes)}"
            )


def _check_decode(problem: Problem) -> None:
    generates = problem.new_tokens >= 2
    needed = {
        "layer_decode_time_s": generates,
        "stage_decode_overhead_s": False,
        "cut_decode_bytes": generates and len(problem.layers) > 1,
    }
    for key, is_needed in needed.items():
        values = getattr(problem, key)
        if values is not None:
            _check_array(key, values)
        elif is_needed:
            raise ValueError(f"{key} is missing, new_tokens is {problem.new_tokens}")


def _check_external(key: str, link: ExternalLink | None) -> None:
    if link is None:
        return
    _check_number(f"{key}.bytes", link.bytes, 0)
    _check_bandwidths(f"{key}.bandwidth_bytes_per_s", link.bandwidth_bytes_per_s)
    _check_array(f"{key}.latency_s", link.latency_s)


def _check_index(key: str, noun: str, value: int, count: int) -> None:
    if not 0 <= value < count:
        raise ValueError(f"{key} is {value}, the {noun} are 0 to {count - 1}")


def _check_pins(pins: Pins, layers: int, nodes: int) -> None:
    for i, node in enumerate(pins.forbidden):
        _check_index(f"pins.forbidden[{i}]", "nodes", node, nodes)
    for i, node in enumerate(pins.required):
        _check_index(f"pins.required[{i}]", "nodes", node, nodes)
        if node in pins.forbidden:
            raise ValueError(f"pins.required[{i}] is node {node}, which pins.forbidden names too")
    for layer, node in pins.layers.items():
        _check_index("pins.layers: the layer", "layers", layer, layers)
        _check_index(f"pins.layers[{layer}]", "nodes", node, nodes)
        if node in pins.forbidden:
            raise ValueError(f"pins.layers[{layer}] is node {node}, which pins.forbidden names too")
