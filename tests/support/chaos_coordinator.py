"""A coordinator that does one run after another, as lines of JSON on its standard input say, and prints how each ends.

    python -m tests.support.chaos_coordinator

An order is {"run": number, ...} with what `Order` has, and then {"close": number}, before the end of the run or after.
It prints {"is": "up"} once it reads them, and {"run": number, "is": "ready" | "begun" | "over", ...}; after "over" it
keeps its hosts until the order to close, so that they do not join another coordinator before that is told to wait no
more.
"""

from __future__ import annotations

import json
import logging
import queue
import sys
import threading
import traceback
from dataclasses import dataclass
from typing import Any

import torch

import orbitsplit as osp
from orbitsplit.runtime import Hosts, Pipeline
from tests.support import chaos


class ClosedError(Exception):
    """The run is not needed any more."""


@dataclass(frozen=True)
class Order:
    """One run: files, addresses, the plan, conditions of links (TOML) and what is generated."""

    run: int
    address: str
    credentials: str
    quorum: list[str] | None
    model: str
    profile: str
    network: str
    plan: dict[str, Any]
    conditions: str
    prompts: list[list[int]]
    new_tokens: int


class Orders:
    """The orders on standard input; a thread reads them, so that a run sees that it is not needed any more."""

    def __init__(self) -> None:
        self.runs: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._closed: set[int] = set()
        self._changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def is_closed(self, run: int) -> bool:
        """Return whether a run is not needed any more."""
        return run in self._closed

    def wait_for_close(self, run: int) -> None:
        """Wait until a run is not needed any more."""
        with self._changed:
            self._changed.wait_for(lambda: run in self._closed)

    def _read(self) -> None:
        for line in sys.stdin:
            order = json.loads(line)
            if "close" in order:
                with self._changed:
                    self._closed.add(order["close"])
                    self._changed.notify_all()
            else:
                self.runs.put(order)
        self.runs.put(None)


def say(run: int, what: str, **more: Any) -> None:
    """Print an event of a run."""
    print(json.dumps({"run": run, "is": what, **more}), flush=True)


def do(order: Order, orders: Orders) -> None:
    """Do one run, from the wait for its hosts on."""

    def check(_phase: str, _fraction: float) -> None:
        if orders.is_closed(order.run):
            raise ClosedError

    with Hosts(order.address, credentials=order.credentials, quorum=order.quorum) as hosts:
        try:
            outcome = generated(order, hosts, check)
        except ClosedError:
            return
        except osp.TransportError as error:
            tokens = None if error.tokens is None else error.tokens.tolist()
            outcome = {
                "error": str(error),
                "kind": error.kind,
                "names": bool(error.node or error.link),
                "so_far": tokens,
            }
        say(order.run, "over", **outcome)
        orders.wait_for_close(order.run)


def generated(order: Order, hosts: Hosts, check: Any) -> dict[str, Any]:
    """Generate, and return tokens and recoveries. Raises TransportError as a pipeline does, and `ClosedError`."""
    network = osp.Network.load(order.network)
    with Pipeline(
        osp.Plan.from_dict(order.plan),
        order.model,
        hosts=hosts,
        conditions=osp.LinkConditions.from_toml(order.conditions),
        replan=osp.replanner(osp.ModelProfile.load(order.profile), network),
        progress=check,
        heartbeat_timeout_s=chaos.HEARTBEAT_S,
        stall_timeout_s=chaos.STALL_S,
    ) as pipe:
        say(order.run, "ready", loading_s=max(stage.loading_s for stage in pipe._sessions.ready))
        steps = iter(range(order.new_tokens))

        def on_tokens(_tokens: torch.Tensor) -> None:
            if next(steps) == 0:
                say(order.run, "begun")

        running = pipe.submit(
            torch.tensor(order.prompts),
            max_new_tokens=order.new_tokens,
            do_sample=False,
            seed=order.run,  # without an effect, but no other run resumes this one
            eos_token_id=(),
            pad_token_id=0,
            on_tokens=on_tokens,
        )
        while not running.is_over:
            check("generating", 0.0)
            threading.Event().wait(0.05)
        tokens = running.result(1.0)
        recoveries = [recovery.to_dict() for recovery in pipe.recoveries]
    return {"tokens": tokens.tolist(), "recoveries": recoveries}


def main() -> None:
    """Do runs until the standard input ends."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    orders = Orders()
    print(json.dumps({"run": None, "is": "up"}), flush=True)
    while (order := orders.runs.get()) is not None:
        try:
            do(Order(**order), orders)
        except Exception:
            say(order["run"], "over", error=traceback.format_exc(), kind="bug", names=False, so_far=None)


if __name__ == "__main__":
    main()
