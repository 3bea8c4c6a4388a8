"""Five hosts in network namespaces, two of which have a coordinator, that are broken at random while they generate."""

from __future__ import annotations

import json
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import torch

import orbitsplit as osp
from orbitsplit.runtime._emulation.namespaces import Namespaces
from orbitsplit.runtime._messages.tls_channel import create_credentials
from tests.support.chaos import PROMPT_TOKENS, Subject, begins_as
from tests.support.fleet import CREDENTIALS, Fleet, fleet
from tests.support.namespaced_hosts import cut, join, processes_of, take_power

NAMES = ("n0", "n1", "n2", "n3", "n4")
STAGES = 4
# In the order in which hosts look for them.
COORDINATORS = ("n0", "n1")
PORT = 29400
LINK = {"bytes_per_s": 2.5e6, "latency_s": 1e-3}
FAULTS = ("kill", "power", "stop", "cut", "partition", "flip", "coordinator", "join")
# A run that has not begun by then, or is not over so long after that, hangs.
START_S, LIMIT_S = 300.0, 120.0
RECOVERY_S = 15.0
# Hosts have this long to end what has been started on them for a run, and to join again what was lost.
TIDY_S, RETURN_S = 15.0, 60.0


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `text` is "same", "error" or "other"; `recovery_s` are seconds of recoveries beyond loading."""

    seed: int
    faults: tuple[str, ...]
    story: tuple[str, ...]
    text: str
    takeovers: int
    seconds: float
    recovery_s: tuple[float, ...]
    message: str
    left_behind: int
    may_fail: bool

    @property
    def is_fine(self) -> bool:
        """Whether it ended as it must."""
        is_right = self.text == "same" or (self.text == "error" and self.may_fail)
        return is_right and self.left_behind == 0 and max(self.recovery_s, default=0.0) < RECOVERY_S


class Coordinator:
    """The process of a coordinator, which lives as long as nothing ends it, and its events."""

    def __init__(self, spaces: Namespaces, node: str, folder: Path, events: queue.SimpleQueue[dict[str, Any]]) -> None:
        self.node = node
        command = spaces.command(node, [sys.executable, "-m", "tests.support.chaos_coordinator"])
        with (folder / f"coordinator-{node}.log").open("ab") as log:
            self.process = psutil.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1
            )
        self._events = events
        self.is_up = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def order(self, **order: Any) -> None:
        """Give an order, which one that has ended does not get."""
        with suppress(OSError):
            self.process.stdin.write(json.dumps(order) + "\n")

    def _read(self) -> None:
        for line in self.process.stdout:
            event = json.loads(line)
            if event["is"] == "up":
                self.is_up.set()
            self._events.put({**event, "from": self.node, "at_s": time.monotonic()})
        self._events.put({"run": None, "is": "ended", "from": self.node, "at_s": time.monotonic()})


@dataclass
class Machines:
    """The namespaces, the agents and coordinators in them, and the files that they need."""

    spaces: Namespaces
    fleet: Fleet
    folder: Path
    network: osp.Network
    subject: Subject
    events: queue.SimpleQueue[dict[str, Any]] = field(default_factory=queue.SimpleQueue)
    coordinators: dict[str, Coordinator] = field(default_factory=dict)
    partitions: list[tuple[Sequence[str], Sequence[str]]] = field(default_factory=list)
    stopped: list[psutil.Process] = field(default_factory=list)

    def make_whole(self, without: Sequence[str] = ()) -> None:
        """Undo all faults, and start what is not running, but no agents of the nodes `without`."""
        while self.partitions:
            join(self.spaces, *self.partitions.pop())
        while self.stopped:
            with suppress(psutil.NoSuchProcess):
                self.stopped.pop().send_signal(signal.SIGCONT)
        for node in NAMES:
            if node in without:
                self.fleet.kill(node)
            elif not self.fleet.is_running(node):
                self.fleet.start(node)
        for node in COORDINATORS:
            if node not in self.coordinators or not self.coordinators[node].is_running:
                self.coordinators[node] = Coordinator(self.spaces, node, self.folder, self.events)
        for one in self.coordinators.values():
            one.is_up.wait(START_S)

    def workers(self) -> list[psutil.Process]:
        """Return the processes of stages on all hosts, whoever has started them."""
        agents = {one.pid for node in NAMES for one in self.fleet.processes(node)[:2]}
        coordinators = {one.process.pid for one in self.coordinators.values()}
        found = [one for node in NAMES for one in processes_of(self.spaces, node)]
        return [one for one in found if one.pid not in agents | coordinators]

    def left_behind(self) -> int:
        """Return how many processes of stages are still there once hosts have had time to end them."""
        deadline_s = time.monotonic() + TIDY_S
        while (left := self.workers()) and time.monotonic() < deadline_s:
            time.sleep(0.1)
        return len(left)

    def end(self) -> None:
        """End the coordinators."""
        for one in self.coordinators.values():
            with suppress(psutil.NoSuchProcess):
                one.process.send_signal(signal.SIGCONT)
                one.process.kill()
            one.process.wait()


@contextmanager
def machines(folder: Path, subject: Subject) -> Iterator[Machines]:
    """Make the namespaces and all that is in them."""
    bytes_needed = 2 * subject.profile.weight_bytes + 10**9
    nodes = tuple(osp.Node(name=name, memory_bytes=bytes_needed, slowdown=1.0) for name in NAMES)
    links = tuple(osp.Link(a, b, **LINK) for a in NAMES for b in NAMES if a != b)
    network = osp.Network(name="chaos", nodes=nodes, links=links)
    network.save(folder / "network.toml")
    subject.profile.save(folder / "profile.json")
    create_credentials(folder / CREDENTIALS)
    with Namespaces(network) as spaces:
        where = ",".join(f"{spaces.address(node)}:{PORT}" for node in COORDINATORS)
        with fleet(folder, where, command=spaces.command) as there:
            made = Machines(spaces, there, folder, network, subject)
            try:
                yield made
            finally:
                made.make_whole()
                made.end()


def plan_of(subject: Subject, source: random.Random) -> osp.Plan:
    """Return a plan of four stages on four of the hosts, in any order."""
    layers = len(subject.profile.layers) - 2
    plan = osp.Plan.manual(cuts=sorted(source.sample(range(1, layers), STAGES - 1)), layers=layers)
    chosen = source.sample(NAMES, STAGES)
    stages = tuple(replace(stage, node=node) for stage, node in zip(plan.stages, chosen, strict=True))
    rows, new_tokens = len(subject.prompts), subject.new_tokens
    workload = osp.Workload(micro_batches=rows, prompt_tokens=PROMPT_TOKENS, new_tokens=new_tokens)
    return replace(plan, stages=stages, workload=workload)


class Run:
    """One run: what happens to it, and what becomes of it."""

    def __init__(self, made: Machines, number: int, seed: int) -> None:
        self._made = made
        self._number = number
        self._seed = seed
        self._source = random.Random(seed)
        self._faults = tuple(self._source.choice(FAULTS) for _ in range(self._source.choice((1, 1, 1, 2))))
        self._plan = plan_of(made.subject, self._source)
        used = {stage.node for stage in self._plan.stages}
        self._spare = next(name for name in NAMES if name not in used)
        self._story: list[str] = []
        self._ready: list[str] = []  # the coordinators that have worked, the last one last
        self._lock = threading.Lock()
        self._struck_s: float | None = None
        self._away: set[str] = set()

    def outcome(self) -> Outcome:
        """Do the run."""
        made = self._made
        made.make_whole(without=[self._spare] if "join" in self._faults else [])
        for node in COORDINATORS:
            made.coordinators[node].order(**self._order(node))
        began_s = time.monotonic()
        timers: list[threading.Timer] = []
        try:
            text, message, recovery_s, takeovers = self._follow(timers)
        finally:
            for timer in timers:
                timer.cancel()
            for timer in timers:
                timer.join()
        seconds = time.monotonic() - began_s
        may_fail = self._may_fail()
        # Standby coordinators first: else hosts that are let go would join them, and they would take over.
        for node in (*COORDINATORS[1:], COORDINATORS[0]):
            made.coordinators[node].order(close=self._number)
        made.make_whole()
        left = made.left_behind()
        return Outcome(
            self._seed, self._faults, tuple(self._story), text, takeovers, seconds, recovery_s, message, left, may_fail
        )

    def _order(self, node: str) -> dict[str, Any]:
        made = self._made
        return {
            "run": self._number,
            "address": f"{made.spaces.address(node)}:{PORT}",
            "credentials": str(made.folder / CREDENTIALS),
            "quorum": list(NAMES),
            "model": str(made.subject.model),
            "profile": str(made.folder / "profile.json"),
            "network": str(made.folder / "network.toml"),
            "plan": self._plan.to_dict(),
            "conditions": self._conditions(),
            "prompts": made.subject.prompts.tolist(),
            "new_tokens": made.subject.new_tokens,
        }

    def _conditions(self) -> str:
        """Return conditions of links, with which latency is emulated: the receiver's delay; one may flip bits."""
        source = random.Random(self._seed + 1)
        text = f"seed = {source.randrange(1 << 30)}\n"
        stages = self._plan.stages
        if "flip" not in self._faults:
            return f"{text}links = []\n"
        rank = source.randrange(len(stages) - 1)
        ends = f'from = "{stages[rank].node}"\nto = "{stages[rank + 1].node}"\n'
        return f"{text}[[links]]\n{ends}corrupt = {source.choice((0.002, 0.02, 0.1))}\n"

    def _follow(self, timers: list[threading.Timer]) -> tuple[str, str, tuple[float, ...], int]:
        """Follow the events of the coordinators to the end of the run."""
        deadline_s = time.monotonic() + START_S
        ready = self._ready
        recovery_s: list[float] = []
        first: tuple[str, str] | None = None
        while (rest_s := deadline_s - time.monotonic()) > 0:
            with suppress(queue.Empty):
                event = self._made.events.get(timeout=min(rest_s, 1.0))
                if event["is"] == "ready" and event["run"] == self._number:
                    ready.append(event["from"])
                    if len(ready) == 1:
                        deadline_s = time.monotonic() + LIMIT_S
                        timers += [self._timer(fault) for fault in self._faults if fault != "flip"]
                    elif self._struck_s is not None:
                        recovery_s.append(event["at_s"] - self._struck_s - event["loading_s"])
                elif event["is"] == "over" and event["run"] == self._number:
                    recovery_s += [one["seconds"] - one["loading_s"] for one in event.get("recoveries", [])]
                    text, message = self._judged(event)
                    self._story.append(f"{event['from']}: {text} {message}".rstrip())
                    if text != "error" or first is not None or not self._has_another(event["from"]):
                        return text, message, tuple(recovery_s), len(ready) - 1
                    first = text, message
                    # It has given up, and its hosts may join the other one.
                    self._made.coordinators[event["from"]].order(close=self._number)
        text, message = first or ("other", f"nothing came of it within {LIMIT_S:g} s")
        return text, message, tuple(recovery_s), max(0, len(ready) - 1)

    def _judged(self, event: dict[str, Any]) -> tuple[str, str]:
        expected = self._made.subject.expected
        if "tokens" in event:
            return ("same" if event["tokens"] == expected.tolist() else "other"), ""
        so_far = event["so_far"]
        has_right_tokens = so_far is None or begins_as(torch.tensor(so_far), expected)
        is_clear = event["kind"] not in ("timeout", "bug") and (event["names"] or event["kind"] == "host")
        message = event["error"] if event["kind"] == "bug" else event["error"].splitlines()[0]
        return ("error" if is_clear and has_right_tokens else "other"), message

    def _has_another(self, node: str) -> bool:
        """Return whether another coordinator may still end the run."""
        if not self._may_fail():
            return any(one.is_running for one in self._made.coordinators.values() if one.node != node)
        return False

    def _may_fail(self) -> bool:
        """Return whether no coordinator is among a majority of hosts that reach each other."""
        sides = [set(NAMES)]
        for some, others in self._made.partitions:
            sides = [side - set(apart) for side in sides for apart in (some, others) if side - set(apart)]
        running = {node for node, one in self._made.coordinators.items() if one.is_running}
        stopped = {one.pid for one in self._made.stopped}
        running = {node for node in running if self._made.coordinators[node].process.pid not in stopped}
        return not any(2 * len(side - self._away) > len(NAMES) and side & running for side in sides)

    def _timer(self, fault: str) -> threading.Timer:
        choose = random.Random(self._source.random())
        timer = threading.Timer(choose.uniform(0.0, 4.0), self._strike, (fault, choose))
        timer.start()
        return timer

    def _strike(self, fault: str, choose: random.Random) -> None:
        strikes: dict[str, Callable[[random.Random], str]] = {
            "kill": lambda source: self._signal(source, signal.SIGKILL),
            "stop": lambda source: self._signal(source, signal.SIGSTOP),
            "power": self._power,
            "cut": self._cut,
            "partition": self._partition,
            "coordinator": self._coordinator,
            "join": lambda _: self._join(),
        }
        with self._lock:
            self._struck_s = self._struck_s or time.monotonic()
            self._story.append(strikes[fault](choose))

    def _signal(self, choose: random.Random, number: signal.Signals) -> str:
        """Kill or suspend a process: of a stage, or an agent, or now and then the coordinator."""
        made = self._made
        node = choose.choice(NAMES)
        found = made.fleet.workers(node)[:1] or made.fleet.processes(node)[:1]
        if number == signal.SIGSTOP and choose.random() < 0.4:
            node = choose.choice((node, "coordinator"))
            is_agent = node != "coordinator"
            found = made.fleet.processes(node)[:1] if is_agent else [made.coordinators[self._ready[-1]].process]
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
                if number == signal.SIGSTOP:
                    made.stopped.append(process)
                return f"{number.name} to process {process.pid} of {node}"
        return "nothing to signal"

    def _power(self, choose: random.Random) -> str:
        node = choose.choice(NAMES)
        take_power(self._made.spaces, node)
        self._away.add(node)
        return f"power of {node} fails"

    def _cut(self, choose: random.Random) -> str:
        stages = self._plan.stages
        rank = choose.randrange(len(stages))
        ends = [stages[rank].node], [stages[(rank + 1) % len(stages)].node]
        cut(self._made.spaces, *ends)
        self._made.partitions.append(ends)
        return f"link {ends[0][0]} to {ends[1][0]} is cut"

    def _partition(self, choose: random.Random) -> str:
        some = choose.sample(NAMES, choose.choice((1, 2)))
        ends = some, [name for name in NAMES if name not in some]
        cut(self._made.spaces, *ends)
        self._made.partitions.append(ends)
        return f"{' and '.join(some)} cut off"

    def _coordinator(self, _choose: random.Random) -> str:
        with suppress(psutil.NoSuchProcess):
            self._made.coordinators[self._ready[-1]].process.kill()
        return f"the coordinator on {self._ready[-1]} is killed"

    def _join(self) -> str:
        if self._made.fleet.is_running(self._spare):
            return f"{self._spare} has joined already"
        self._made.fleet.start(self._spare)
        return f"{self._spare} joins"
