"""Plans in time on a pipeline: files travel at their times, runs compute in order, hand-overs lie between them.

One thread computes, and one for each file waits for its transmissions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from orbitsplit._errors import OrbitsplitError
from orbitsplit._plans.flight_log import FlightHandover, FlightToken, FlightTransmission
from orbitsplit._plans.plan import Plan
from orbitsplit._plans.trace import Trace, TraceEvent
from orbitsplit.leo import TimedPlan, Timetable, Transfer
from orbitsplit.runtime import LinkMetrics, Pipeline, Run

from ._clock import FlightClock, scaled_plan
from ._file_links import FileLinks
from ._flight import FlightRequest


@dataclass
class Record:
    """What happened so far, in seconds of the clock; `threads` append to the lists."""

    handovers: list[FlightHandover] = field(default_factory=list)
    transmissions: list[FlightTransmission] = field(default_factory=list)
    tokens: list[FlightToken] = field(default_factory=list)
    events: list[TraceEvent] = field(default_factory=list)


@dataclass
class Progress:
    """The state of one request."""

    arrived: Future[float]
    new_tokens: list[int] = field(default_factory=list)
    compute_s: tuple[float, float] = (0.0, 0.0)
    result: Future[float] | None = None


class Execution:
    """The execution of the plans in time of some requests, from the beginning of a clock on."""

    def __init__(
        self,
        pipe: Pipeline,
        clock: FlightClock,
        links: FileLinks,
        contact_plan: Timetable,
        requests: Sequence[FlightRequest],
        plans: Sequence[TimedPlan],
    ) -> None:
        self._pipe, self._clock, self._links, self._contact_plan = pipe, clock, links, contact_plan
        self._requests, self._plans = requests, plans
        self._stopped = threading.Event()
        self.record = Record()

    def run(self, report: Callable[[str, float], None]) -> list[Progress]:
        """Execute all plans; return what became of each request. Raises what stopped the pipeline."""
        order = sorted(range(len(self._plans)), key=lambda k: self._plans[k].compute_start)
        with ThreadPoolExecutor(2 * len(self._plans)) as pool:
            try:
                found = [Progress(pool.submit(self._deliver, k, "input")) for k in range(len(self._plans))]
                for done, k in enumerate(order):
                    report("flying", done / len(order))
                    self._compute(k, found[k])
                    found[k].result = pool.submit(self._deliver, k, "result")
                for one in found:
                    assert one.result is not None  # all were computed
                    one.result.result()
            except BaseException:
                self._stopped.set()  # what waits for a pass hours away ends now
                raise
        report("flying", 1.0)
        return found

    def wait_until(self, at_s: float) -> None:
        """Return at a time of the clock. Raises if the execution was stopped meanwhile."""
        if self._stopped.wait(max(0.0, (at_s - self._clock.now_s()) / self._clock.speed)):
            raise OrbitsplitError("the flight was stopped")

    def _deliver(self, k: int, carried: str) -> float:
        """Send a file as planned; return when all of it is there, as it is at once where it was made."""
        transfers: Sequence[Transfer] = self._plans[k].input if carried == "input" else self._plans[k].result
        there_s = self._seconds(self._plans[k].requested) if carried == "input" else self._clock.now_s()
        for transfer in transfers:
            self.wait_until(self._seconds(transfer.start))
            at_s = max(self._clock.now_s(), there_s) if transfer is not transfers[0] else self._clock.now_s()
            arrival_s, sent = self._links.send(transfer.path, transfer.bytes, at_s, carried=carried, request=k)
            self.record.transmissions.extend(sent)
            self.wait_until(arrival_s)
            there_s = arrival_s
        return there_s

    def _compute(self, k: int, progress: Progress) -> None:
        """Hand over to the plan of a request as early as possible, and generate when its input is there.

        A plan that resumes the generation is loaded ahead too, which takes real seconds: the switch waits for its time.
        """
        timed = self._plans[k]
        self._hand_over(timed.plan, -1, 0.0)
        with ThreadPoolExecutor(1) as pool:
            relay = timed.relay
            resuming = None
            if relay is not None:
                resuming = pool.submit(self._hand_over, relay.plan, k, self._seconds(relay.at))
            try:
                progress.arrived.result()
                self.wait_until(self._seconds(timed.compute_start))
                started_s = self._clock.now_s()
                self._generate(k, progress)
                progress.compute_s = started_s, self._clock.now_s()
            except BaseException:
                self._pipe.close()  # ends a hand-over that would wait for its time
                raise
            if resuming is not None:
                resuming.result()

    def _generate(self, k: int, progress: Progress) -> None:
        prompt, new_tokens = self._requests[k].input_ids, self._plans[k].plan.workload.new_tokens
        streamer = _Tokens(k, self._clock, self.record.tokens)
        found = self._pipe.generate(
            [list(prompt)], max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, streamer=streamer
        )
        progress.new_tokens = found[0, len(prompt) :].tolist()
        run = self._pipe.last_run
        if run is not None:
            self._take_trace(k, run)

    def _hand_over(self, plan: Plan, request: int, not_before_s: float) -> None:
        """Let another plan run, if its stages are others, at a time of the clock at the earliest."""
        before, scaled = self._pipe.plan, scaled_plan(plan, self._clock.speed)
        if scaled.stages == before.stages:
            return
        start_s = self._clock.now_s()
        migration = self._pipe.migrate(scaled, not_before_s=self._clock.monotonic_s(not_before_s))
        stop_s = self._clock.now_s()
        nodes = tuple(stage.node for stage in before.stages), tuple(stage.node for stage in scaled.stages)
        tokens = sum(token.request == request and token.at_s < stop_s for token in self.record.tokens)
        self.record.handovers.append(FlightHandover(start_s, stop_s, *nodes, request, tokens))
        for source, destination, from_s, until_s, size in migration.transfers:
            span_s = self._clock.of_s(from_s), self._clock.of_s(until_s)
            self.record.transmissions.append(FlightTransmission(source, destination, "context", request, *span_s, size))

    def _take_trace(self, k: int, run: Run) -> None:
        """Add the events of a run, whose times begin at its start on the monotonic clock."""
        for event in run.trace.events:
            self.record.events.append(TraceEvent(event.node, event.kind, k, event.step, *self._span(run, event)))
        for link in run.links:
            for event, size in frames_of(run.trace, link):
                sent = link.source, link.destination, "activation", k, *self._span(run, event), size
                self.record.transmissions.append(FlightTransmission(*sent))

    def _span(self, run: Run, event: TraceEvent) -> tuple[float, float]:
        return self._clock.of_s(run.started_s + event.start_s), self._clock.of_s(run.started_s + event.stop_s)

    def _seconds(self, when: Any) -> float:
        return self._contact_plan.seconds(when)


def frames_of(trace: Trace, link: LinkMetrics) -> Iterator[tuple[TraceEvent, int]]:
    """Yield when each frame of activations occupied a link, and its bytes.

    The bytes of all prompts and of all token steps were counted; each frame has its share of them by its time.
    """
    sent = [event for event in trace.events if event.kind == "send" and event.node == link.source]
    prompts = [event for event in sent if event.step <= 0]
    steps = [event for event in sent if event.step > 0]
    for events, size in ((prompts, link.prefill_bytes), (steps, link.decode_bytes)):
        whole_s = sum(event.duration_s for event in events)
        for event in events:
            yield event, round(size * (event.duration_s / whole_s if whole_s else 1 / len(events)))


class _Tokens:
    """Notes when tokens come, as a streamer of transformers."""

    def __init__(self, request: int, clock: FlightClock, tokens: list[FlightToken]) -> None:
        self._request, self._clock, self._tokens = request, clock, tokens
        self._is_prompt = True

    def put(self, value: Any) -> None:
        """Note the instant, unless these are the prompts."""
        if not self._is_prompt:
            self._tokens.append(FlightToken(self._request, self._clock.now_s()))
        self._is_prompt = False

    def end(self) -> None:
        """Do nothing: the last token was noted."""
