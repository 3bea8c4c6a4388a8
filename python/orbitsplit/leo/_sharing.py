"""Some micro-batches are computed on board, now; the rest of the input goes down, and a station computes it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from ._ways import Asked, Candidate, on_ground, on_satellite, split_at

# Two plans at once are not worth fewer seconds than this.
_LEAST_GAIN_S = 1.0
# What is done on board with a part of the work, its result sent no earlier than an instant: (part, instant, limit).
_Board = Callable[[Asked, float, float], Candidate | str]


def shared(asked: Asked, server: str, from_s: float, before_s: float = math.inf) -> Candidate | str:
    """Return the share of micro-batches on board with which both parts are complete soonest.

    On board, the satellite with the input computes alone, or several do; then the input goes down without a detour
    over other satellites, whose links are taken. A result is sent when all of the input has been.
    """
    if asked.source == asked.ground or asked.workload.new_tokens > 0 or asked.workload.micro_batches < 2:
        return "only several micro-batches of prefill can be shared, and only where the input is on a satellite"
    name = asked.table.satellites[asked.source]
    node = asked.computers.get(name)
    if node is None:
        return f"{name} has no computer"
    if node.half_duplex:
        return f"{name} cannot compute while it transmits"

    def alone(part: Asked, result_s: float, limit_s: float) -> Candidate | str:
        return on_satellite(part, part.source, from_s, limit_s, result_from_s=result_s)

    def together(part: Asked, result_s: float, limit_s: float) -> Candidate | str:
        here = part.carrier.carry(part.source, part.source, part.input_bytes, from_s)
        assert here is not None  # it is there
        return split_at(part, here, from_s, limit_s, with_ground=False, result_from_s=result_s)

    best: Candidate | str = f"no share is complete {_LEAST_GAIN_S:g} s before another way"
    before_s -= _LEAST_GAIN_S
    for down, board in ((asked, alone), (replace(asked, carrier=asked.direct_carrier), together)):
        found = _best_share(asked, down, server, board, from_s, before_s)
        if found is not None:
            best, before_s = found, found.completion_s
    return best


def _best_share(
    asked: Asked, down: Asked, server: str, board: _Board, from_s: float, before_s: float
) -> Candidate | None:
    """Look for the share at which the board becomes later than the ground: less there, or more, is no sooner."""
    count = asked.workload.micro_batches
    best: Candidate | None = None
    low, high = 1, count - 1
    while low <= high:
        share = (low + high) // 2
        limit_s = before_s if best is None else best.completion_s
        on_earth = on_ground(_part(down, count - share), server, from_s, limit_s)
        sent_s = on_earth.input[-1].stop_s if isinstance(on_earth, Candidate) else from_s
        in_space = board(_part(asked, share), sent_s, limit_s)
        if isinstance(on_earth, Candidate) and isinstance(in_space, Candidate):
            both_s = max(on_earth.completion_s, in_space.completion_s)
            if both_s < limit_s:
                best = replace(on_earth, way="shared", completion_s=both_s, beside=in_space)
        earth_s, space_s = (c.completion_s if isinstance(c, Candidate) else math.inf for c in (on_earth, in_space))
        if earth_s == space_s == math.inf:
            break  # with less on board the ground is later still, with more the board
        if earth_s > space_s:
            low = share + 1
        else:
            high = share - 1
    return best


def _part(asked: Asked, micro_batches: int) -> Asked:
    """Return what is asked with some of the micro-batches."""
    fraction = micro_batches / asked.workload.micro_batches
    return replace(
        asked,
        workload=replace(asked.workload, micro_batches=micro_batches),
        input_bytes=asked.input_bytes * fraction,
        output_bytes=asked.output_bytes * fraction,
        alone={},
    )
