"""An event simulation of a plan with its predicted occupancies.

The cost model gives sums and maxima; the simulation gives the start and end of every event, to be compared with the
trace of a measured run. It shares no code with the cost model, so each checks the other.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import replace

from orbitsplit._io.validation import check_kind

from .plan import Plan
from .prediction import Prediction
from .trace import Trace, TraceEvent

# Of the number of steps, which is a quotient.
_ROUNDING = 1e-9


def simulate(plan: Plan) -> Trace:
    """Return the predicted trace of a plan: when each node and link is occupied, by the seconds of `plan.prediction`.

    Micro-batches, or the chunks of their prompts, enter back to back, as many as may be under way, another one when the
    first stage has heard of the end of a prompt; nodes and links serve them in order of arrival; a
    group starts its next step as soon as its token has returned to the first stage. With guesses there are as many
    steps as give the tokens on average, rounded up. `compute` events include encoding
    and decoding, as the predicted occupancy of a stage does. Of a workload with a rate, as many micro-batches as it has
    enter back to back all the same.

    Raises:
        ValueError: The plan has no prediction (`Plan.manual` makes none).
    """
    check_kind("plan", plan, Plan)
    if plan.prediction is None:
        raise ValueError("the plan has no prediction to simulate; plans from orbitsplit.plan have one")
    events = _Chain(plan, plan.prediction).run()
    return Trace(
        nodes=tuple(stage.node for stage in plan.stages),
        events=tuple(sorted(events, key=lambda event: event.start_s)),
        slowdowns=tuple(stage.slowdown for stage in plan.stages),
    )


def simulate_delays(plan: Plan, *, micro_batches: int, new_tokens: int) -> tuple[float, float]:
    """Return the seconds of prefill, and from there to the last token, of another workload than the plan's.

    Prompts and rows of a micro-batch are those of the plan, whose prediction must have token steps if there are any.
    """
    workload = replace(plan.workload, micro_batches=micro_batches, new_tokens=new_tokens)
    last = [event for event in simulate(replace(plan, workload=workload)).events if event.node == plan.stages[-1].node]
    prefill_s = max(event.stop_s for event in last if event.kind == "compute" and event.step == 0)
    return prefill_s, max(event.stop_s for event in last) - prefill_s


class _Chain:
    """Serial resources, with the times at which they become free."""

    def __init__(self, plan: Plan, prediction: Prediction) -> None:
        self.plan = plan
        self.stage_s = (prediction.stage_s, prediction.decode_stage_s)
        self.earlier_stage_s = prediction.earlier_stage_s or prediction.stage_s
        self.link_s = (prediction.link_s, prediction.decode_link_s)
        self.tokens_per_step = prediction.tokens_per_step
        # Without new tokens the plan has no return.
        self.acknowledged_s = plan.return_latency_s or sum(link.latency_s for link in plan.links)
        self.node_free_s = [0.0] * len(plan.stages)
        self.link_free_s = [0.0] * len(plan.links)
        self.events: list[TraceEvent] = []

    def run(self) -> list[TraceEvent]:
        """Serve all messages in order of arrival; ties by the order in which they were sent."""
        workload = self.plan.workload
        steps = 1 + max(0, math.ceil((workload.new_tokens - 1) / self.tokens_per_step - _ROUNDING))
        chunks = 1 if self.plan.chunk_tokens is None else -(-workload.prompt_tokens // self.plan.chunk_tokens)
        entering = [(group, step) for group in range(workload.micro_batches) for step in range(1 - chunks, 1)]
        arrivals = [(0.0, number, 0, group, step) for number, (group, step) in enumerate(entering)]
        most = (self.plan.prompts_under_way or workload.micro_batches) * chunks
        arrivals, waiting = arrivals[:most], deque(entering[most:])
        sent = len(entering)
        while arrivals:
            arrival_s, _, stage, group, step = heapq.heappop(arrivals)
            ready_s = self._serve(stage, group, step, arrival_s)
            if stage < len(self.plan.links):
                heapq.heappush(arrivals, (ready_s, sent, stage + 1, group, step))
            elif 0 <= step < steps - 1:
                heapq.heappush(arrivals, (ready_s + self.plan.return_latency_s, sent, 0, group, step + 1))
            if stage == len(self.plan.links) and step == 0:
                for group, chunk in [waiting.popleft() for _ in range(min(chunks, len(waiting)))]:
                    heapq.heappush(arrivals, (ready_s + self.acknowledged_s, sent, 0, group, chunk))
                    sent += 1
            sent += 1
        return self.events

    def _serve(self, k: int, group: int, step: int, arrival_s: float) -> float:
        """Compute and send one message; return when it arrives at the next stage (or leaves the last)."""
        stage, phase = self.plan.stages[k], int(step > 0)
        start_s = max(arrival_s, self.node_free_s[k])
        sends = k < len(self.plan.links)
        tau_s = self.link_s[phase][k] if sends else 0.0
        # The predicted occupancy of a half-duplex stage contains its transmission.
        is_last = step > 0 or (step == 0 and group == self.plan.workload.micro_batches - 1)
        occupied_s = self.stage_s[phase][k] if is_last else self.earlier_stage_s[k]
        stop_s = start_s + occupied_s - (tau_s if stage.half_duplex else 0.0)
        self.node_free_s[k] = stop_s
        self.events.append(TraceEvent(stage.node, "compute", group, step, start_s, stop_s))
        if not sends:
            return stop_s
        begin_s = max(stop_s, self.link_free_s[k])
        end_s = begin_s + tau_s
        self.link_free_s[k] = end_s
        if stage.half_duplex:
            self.node_free_s[k] = end_s
        self.events.append(TraceEvent(stage.node, "send", group, step, begin_s, end_s))
        return end_s + self.plan.links[k].latency_s
