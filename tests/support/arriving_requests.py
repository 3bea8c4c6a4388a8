"""An event simulation of requests that arrive at random times and run through a chain of stages.

It follows the schedule of the runtime: the first stage takes turns between the steps that are ready, which it divides
evenly over the messages that may be in flight, and the next chunk of the oldest prompt. Stages and links serve one
message after the other. It shares no code with the package: a chain is seconds of each stage and link.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Chain:
    """Seconds of each stage and, behind it, of its link; the last entry has no link.

    A prompt is a list of chunks, each with seconds of every resource. `step_s(k, rows)` are those of resource k for a
    step of so many rows. `latency_s[k]` is added behind resource k, for links; `return_s` behind the last stage.
    """

    chunks: Sequence[Sequence[float]]
    step_s: Callable[[int, int], float]
    latency_s: Sequence[float]
    return_s: float
    laps: int
    most_messages: int
    most_in_flight: int
    most_prompts: int | None = None


@dataclass
class Request:
    arrived_s: float
    chunks_sent: int = 0
    laps: int = 0
    first_token_s: float = 0.0
    ended_s: float = 0.0
    has_returned: bool = False
    message: Message | None = None


@dataclass(eq=False)
class Message:
    """The next steps of some requests, or a chunk of the prompt of one."""

    requests: list[Request]
    chunk: int | None = None
    awaited: int = 0


@dataclass
class Simulation:
    """All that happens to some requests on a chain."""

    chain: Chain
    now_s: float = 0.0
    waiting: deque[Request] = field(default_factory=deque)
    running: list[Request] = field(default_factory=list)
    ready: deque[Request] = field(default_factory=deque)
    in_flight: int = 0
    was_step: bool = False

    def run(self, arrivals_s: Sequence[float]) -> list[Request]:
        self.busy_s = [0.0] * len(self.chain.latency_s)
        self.queues: list[deque[Message]] = [deque() for _ in self.busy_s]
        self.is_busy = [False] * len(self.busy_s)
        self.events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self.count = 0
        requests = [Request(at_s) for at_s in arrivals_s]
        for request in requests:
            self.at(request.arrived_s, self.arrive, request)
        while self.events:
            self.now_s, _, work, arguments = heapq.heappop(self.events)
            work(*arguments)
        return requests

    def at(self, when_s: float, work: Callable[..., None], *arguments: object) -> None:
        self.count += 1
        heapq.heappush(self.events, (when_s, self.count, work, arguments))

    def arrive(self, request: Request) -> None:
        self.waiting.append(request)
        self.advance()

    def advance(self) -> None:
        """Let the first stage run what is next, if it is free."""
        if self.is_busy[0]:
            return
        has_steps = bool(self.ready) and self.in_flight < self.chain.most_messages
        prompt = self.next_prompt()
        if has_steps and not (self.was_step and prompt is not None):
            self.was_step = True
            self.start(0, self.next_steps())
        elif prompt is not None:
            self.was_step = False
            prompt.chunks_sent += 1
            self.start(0, Message([prompt], prompt.chunks_sent - 1))

    def next_prompt(self) -> Request | None:
        """Return the oldest request of which not every chunk was sent; a new one if it may start."""
        for request in self.running:
            if request.chunks_sent < len(self.chain.chunks):
                return request
        most, prompts = self.chain.most_prompts, sum(not request.has_returned for request in self.running)
        may_start = len(self.running) < self.chain.most_in_flight and (most is None or prompts < most)
        if not self.waiting or not may_start:
            return None
        self.running.append(self.waiting.popleft())
        return self.running[-1]

    def next_steps(self) -> Message:
        sharing = sum(request.chunks_sent == len(self.chain.chunks) for request in self.running)
        share = min(-(-sharing // self.chain.most_messages), len(self.ready))
        message = Message([self.ready.popleft() for _ in range(share)], awaited=share)
        self.in_flight += 1
        for request in message.requests:
            request.message = message
        return message

    def start(self, k: int, message: Message) -> None:
        self.is_busy[k] = True
        rows = len(message.requests)
        seconds = self.chain.step_s(k, rows) if message.chunk is None else self.chain.chunks[message.chunk][k]
        self.busy_s[k] += seconds
        self.at(self.now_s + seconds, self.served, k, message)

    def served(self, k: int, message: Message) -> None:
        self.is_busy[k] = False
        last = len(self.is_busy) - 1
        behind_s = self.chain.return_s if k == last else self.chain.latency_s[k]
        self.at(self.now_s + behind_s, *((self.returned, message) if k == last else (self.reach, k + 1, message)))
        if k == 0:
            self.advance()
        elif self.queues[k]:
            self.start(k, self.queues[k].popleft())

    def reach(self, k: int, message: Message) -> None:
        if self.is_busy[k]:
            self.queues[k].append(message)
        else:
            self.start(k, message)

    def returned(self, message: Message) -> None:
        if message.chunk is not None and message.chunk < len(self.chain.chunks) - 1:
            return
        if message.chunk is None:
            self.in_flight -= 1
        for request in message.requests:
            if message.chunk is None:
                request.laps += 1
            else:
                request.has_returned, request.first_token_s = True, self.now_s - self.chain.return_s
            if request.laps == self.chain.laps:
                request.ended_s = self.now_s - self.chain.return_s
                self.running.remove(request)
            else:
                self.ready.append(request)
        self.advance()


def mean_seconds(chain: Chain, per_s: float, *, count: int, seed: int) -> tuple[float, float]:
    """Return the mean seconds of a request, and until its first token, without the first tenth of them."""
    source = random.Random(seed)
    arrivals_s, now_s = [], 0.0
    for _ in range(count):
        now_s += source.expovariate(per_s)
        arrivals_s.append(now_s)
    requests = Simulation(chain).run(arrivals_s)[count // 10 :]
    whole = sum(request.ended_s - request.arrived_s for request in requests)
    first = sum(request.first_token_s - request.arrived_s for request in requests)
    return whole / len(requests), first / len(requests)
