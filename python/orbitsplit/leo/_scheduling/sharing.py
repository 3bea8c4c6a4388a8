"""Sharing: satellites compute some micro-batches; the input of the others goes down, and a station computes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from .strategies import Candidate, Outcome, on_ground, on_satellite, split_at
from .task import Task

# How many shares are evaluated before those between them.
_FIRST_SHARES = 24
# The on-board outcome of a part of the work: (part, earliest instant to send its result, limit of its completion).
_OnBoard = Callable[[Task, float, float], Outcome]


def shared(task: Task, server: str, from_s: float, before_s: float, is_powered: Callable[[Candidate], bool]) -> Outcome:
    """Return the split of micro-batches between board and ground that completes first, or why there is none.

    On board, either the satellite with the input computes alone, or several do; in the latter case the input goes down
    without inter-satellite links, which the stages use. The result of the board is sent when all of the input has been.
    Candidates for which the satellites have the energy come first: one that lacks energy is returned only if there is
    no other.
    """
    if task.source == task.ground or task.workload.new_tokens > 0 or task.workload.micro_batches < 2:
        return "only several micro-batches of prefill can be shared, and only where the input is on a satellite"
    name = task.contact_plan.satellites[task.source]
    node = task.computers.get(name)
    if node is None:
        return f"{name} has no computer"
    if node.half_duplex:
        return f"{name} cannot compute while it transmits"

    def on_source(part: Task, result_s: float, limit_s: float) -> Outcome:
        return on_satellite(part, part.source, from_s, limit_s, result_from_s=result_s)

    def on_several(part: Task, result_s: float, limit_s: float) -> Outcome:
        present = part.graph.earliest_delivery(part.source, part.source, part.input_bytes, from_s)
        assert present is not None  # source and destination are the same
        return split_at(part, present, from_s, limit_s, with_ground=False, result_from_s=result_s)

    search = _Search(task, server, from_s, before_s, is_powered)
    search.run(task, on_source)
    search.run(task.without_isl, on_several)
    return search.best or search.unpowered or "no share completes before the deadline or before another strategy"


@dataclass
class _Search:
    """The best share so far, of those with enough energy and of those without."""

    task: Task
    server: str
    from_s: float
    before_s: float
    is_powered: Callable[[Candidate], bool]
    best: Candidate | None = None
    unpowered: Candidate | None = None

    def run(self, downlink: Task, on_board: _OnBoard) -> None:
        """Evaluate shares over the whole range, then refine around the best of them.

        With more on board the ground completes earlier and the board computes longer. But the result of the board grows
        as well, and waits for a pass and for the input to be sent: there may be several local optima, which bisection
        would not tell apart.
        """
        count = self.task.workload.micro_batches
        step = max(1, count // _FIRST_SHARES)
        found = {share: self._completion_s(downlink, on_board, share) for share in range(step, count, step)}
        while step > 1:
            step = (step + 1) // 2
            middle = min(found, key=lambda share: found[share])
            for share in (middle - step, middle + step):
                if 0 < share < count and share not in found:
                    found[share] = self._completion_s(downlink, on_board, share)

    def _completion_s(self, downlink: Task, on_board: _OnBoard, share: int) -> float:
        """Return when both parts complete with `share` micro-batches on board, infinity if too late; keep the best."""
        limit_s = self.before_s if self.best is None else self.best.completion_s
        ground = on_ground(downlink.part(downlink.workload.micro_batches - share), self.server, self.from_s, limit_s)
        if isinstance(ground, str):
            return math.inf
        board = on_board(self.task.part(share), ground.input[-1].stop_s, limit_s)
        if isinstance(board, str):
            return math.inf
        both_s = max(ground.completion_s, board.completion_s)
        if both_s >= limit_s:
            return math.inf
        both = replace(ground, strategy="shared", completion_s=both_s, concurrent=board)
        if self.is_powered(both):
            self.best = both
            return both_s
        if self.unpowered is None or both_s < self.unpowered.completion_s:
            self.unpowered = both
        return math.inf
