"""Some micro-batches are computed on board, now; the rest of the input goes down, and a station computes it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from .strategies import Asked, Candidate, on_ground, on_satellite, split_at

# So many shares are looked at before those between them.
_FIRST_SHARES = 24
# What is done on board with a part of the work, its result sent no earlier than an instant: (part, instant, limit).
_Board = Callable[[Asked, float, float], Candidate | str]


def shared(
    asked: Asked, server: str, from_s: float, before_s: float, is_powered: Callable[[Candidate], bool]
) -> Candidate | str:
    """Return the share of micro-batches on board with which both parts are complete soonest, or why there is none.

    On board, the satellite with the input computes alone, or several do; then the input goes down without a detour
    over other satellites, whose links are taken. A result is sent when all of the input has been. Shares for which the
    satellites have the energy come first: one for which they lack it is returned where there is no other.
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

    search = _Search(asked, server, from_s, before_s, is_powered)
    search.look(asked, alone)
    search.look(replace(asked, carrier=asked.direct_carrier), together)
    return search.best or search.unpowered or "no share is complete before the deadline or before another way"


@dataclass
class _Search:
    """The best share so far: of those that can be powered, and of those that cannot."""

    asked: Asked
    server: str
    from_s: float
    before_s: float
    is_powered: Callable[[Candidate], bool]
    best: Candidate | None = None
    unpowered: Candidate | None = None

    def look(self, down: Asked, board: _Board) -> None:
        """Look at some shares over the whole range, then ever closer around the best of them.

        With more on board the ground is sooner and the board computes longer; but the board's result grows as well, and
        waits for a pass and for the input to be sent, so that several shares may be better than those beside them, and
        no bisection finds the best.
        """
        count = self.asked.workload.micro_batches
        step = max(1, count // _FIRST_SHARES)
        found = {share: self._completion_s(down, board, share) for share in range(step, count, step)}
        while step > 1:
            step = (step + 1) // 2 if step > 2 else 1
            middle = min(found, key=lambda share: found[share])
            for share in (middle - step, middle + step):
                if 0 < share < count and share not in found:
                    found[share] = self._completion_s(down, board, share)

    def _completion_s(self, down: Asked, board: _Board, share: int) -> float:
        """Return when both parts are complete with a share on board, infinity where that is too late; keep the best."""
        limit_s = self.before_s if self.best is None else self.best.completion_s
        on_earth = on_ground(_part(down, down.workload.micro_batches - share), self.server, self.from_s, limit_s)
        if isinstance(on_earth, str):
            return math.inf
        in_space = board(_part(self.asked, share), on_earth.input[-1].stop_s, limit_s)
        if isinstance(in_space, str):
            return math.inf
        both_s = max(on_earth.completion_s, in_space.completion_s)
        both = replace(on_earth, way="shared", completion_s=both_s, beside=in_space)
        if both_s >= limit_s:
            return math.inf
        if self.is_powered(both):
            self.best = both
            return both_s
        if self.unpowered is None or both_s < self.unpowered.completion_s:
            self.unpowered = both
        return math.inf


def _part(asked: Asked, micro_batches: int) -> Asked:
    """Return what is asked with some of the micro-batches; plans of single nodes depend on how many they are."""
    fraction = micro_batches / asked.workload.micro_batches
    return replace(
        asked,
        workload=replace(asked.workload, micro_batches=micro_batches),
        input_bytes=asked.input_bytes * fraction,
        output_bytes=asked.output_bytes * fraction,
        alone={},
    )
