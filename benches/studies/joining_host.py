"""Let a fifth host join a running generation, a faster one and a slow one, each in a network namespace of its own.

    python -m benches.studies.joining_host [--new-tokens 400] [--slowdown 60]    some minutes; needs root

A small random Llama generates for three prompts over four hosts, joined by links of 100 Mbit/s. All nodes are emulated
as many times slower than this machine as `--slowdown` says, so that they wait more than they compute and two cores are
enough for all of them. When the text has begun, a fifth host joins: a node four times as fast as the others, or one
that is 25 times as slow. For comparison the plan of all five hosts runs from the start.

Prints a table: whether the text is that of one process, tokens per second before and after, those of the plan from the
start, the pause, and why the slow host is left alone. Exits with 1 if a token was lost, if the faster host was not
used, if the rate afterwards is more than 10 % below that of the plan from the start, or if the slow host was used.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import orbitsplit as osp
from orbitsplit.runtime import Hosts, Pipeline
from orbitsplit.runtime._emulation.namespaces import Namespaces, why_unavailable
from orbitsplit.runtime._messages.tls_channel import create_credentials
from tests.support import chaos
from tests.support.fleet import CREDENTIALS, Fleet, fleet

NAMES = ("sat-0", "sat-1", "sat-2", "sat-3", "sat-4")
_CLONE_NEWNET = 0x40000000
ASKED: dict[str, Any] = {"eos_token_id": (), "pad_token_id": 0}
FASTER, SLOWER = 0.25, 25.0
WAIT_S = 180.0
# The host joins when so many tokens have come.
JOINS_AFTER = 5
# At each end of a rate's interval: tokens around a switch are neither before nor after it.
MARGIN = 3


@dataclass(frozen=True)
class Outcome:
    """A run: whether its text is right, tokens per second of all rows up to the migration and from there on."""

    is_same: bool
    before: float
    after: float
    plan: osp.Plan
    migrations: int
    pause_s: float
    note: str


def network_of(slowdown: float, of_last: float) -> osp.Network:
    """Return all five nodes, with links of 100 Mbit/s between any two."""
    speeds = (*(slowdown,) * 4, slowdown * of_last)
    nodes = tuple(osp.Node(name, 10**9, slowdown=speed) for name, speed in zip(NAMES, speeds, strict=True))
    links = tuple(osp.Link(a, b, 100e6 / 8, 1e-3) for a in NAMES for b in NAMES if a != b)
    return osp.Network("five hosts", nodes, links)


def run(what: chaos.Subject, network: osp.Network, folder: Path, *, joins: bool) -> Outcome:
    """Generate on all five hosts from the start, or on four with the last one joining."""
    workload = osp.Workload(micro_batches=chaos.ROWS, prompt_tokens=chaos.PROMPT_TOKENS, new_tokens=what.new_tokens)
    plan = osp.plan(what.profile, network.without([NAMES[-1]]) if joins else network, workload)
    # Where a pipeline has conditions of links, it emulates them, and slowdowns with them.
    calm = osp.LinkConditions.from_toml(f'[[links]]\nfrom = "{NAMES[0]}"\nto = "{NAMES[1]}"\njitter = "1 us"\n')
    with Namespaces(network) as spaces, entered(spaces, NAMES[0]):
        address = f"{spaces.address(NAMES[0])}:29400"
        first = NAMES[:-1] if joins else NAMES
        with (
            Hosts(address, credentials=folder / CREDENTIALS) as hosts,
            fleet(folder, address, command=spaces.command) as there,
        ):
            for name in first:
                there.start(name)
            hosts.wait_for(first, WAIT_S)
            replan = osp.replanner(what.profile, network)
            with Pipeline(plan, what.model, hosts=hosts, conditions=calm, replan=replan, rebalance=joins) as pipe:
                return generated(pipe, what, hosts, there, joins=joins)


@contextmanager
def entered(spaces: Namespaces, name: str) -> Iterator[None]:
    """Put this thread, and those that it starts, on a host: the coordinator is there."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/ns/net", "rb") as home, open(f"/run/netns/{spaces.namespace(name)}", "rb") as there:
        if libc.setns(there.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace of {name}")
        try:
            yield
        finally:
            libc.setns(home.fileno(), _CLONE_NEWNET)


def generated(pipe: Pipeline, what: chaos.Subject, hosts: Hosts, there: Fleet, *, joins: bool) -> Outcome:
    """Generate, let the last host join meanwhile, and return how fast tokens came before and after the switch."""
    times: list[float] = []
    running = pipe.submit(
        what.prompts, max_new_tokens=what.new_tokens, on_tokens=lambda _: times.append(time.monotonic()), **ASKED
    )
    switched = 0  # tokens that had come when the plan was another one
    has_joined = not joins
    while not running.is_over:
        if not has_joined and len(times) >= JOINS_AFTER:
            there.start(NAMES[-1])
            has_joined = True
        if not switched and pipe.migrations:
            switched = len(times)
        time.sleep(0.005)
    tokens = running.result(WAIT_S)
    notes = {host.node: host.note for host in hosts.status().hosts}
    end = switched - MARGIN if switched else len(times)
    return Outcome(
        is_same=torch.equal(tokens, what.expected),
        before=rate(times[MARGIN:end]),
        after=rate(times[switched + MARGIN :]),
        plan=pipe.plan,
        migrations=len(pipe.migrations),
        pause_s=max((one.pause_s for one in pipe.migrations), default=0.0),
        note=notes.get(NAMES[-1], ""),
    )


def rate(times: list[float]) -> float:
    """Return the tokens per second of all rows, without the fastest and the slowest tenth of the steps."""
    gaps = [after - before for before, after in pairwise(times)]
    return chaos.ROWS / statistics.fmean(sorted(gaps)[len(gaps) // 10 : -len(gaps) // 10 or None])


def main() -> None:
    """Run the three cases and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--new-tokens", type=int, default=400)
    parser.add_argument(
        "--slowdown", type=float, default=60.0, help="of the four hosts; they wait more than they compute"
    )
    asked = parser.parse_args()
    if (reason := why_unavailable()) is not None:
        sys.exit(f"this study needs network namespaces: {reason}")
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("orbitsplit.runtime").setLevel(logging.INFO)
    with chaos.tiny_model() as model, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        create_credentials(folder / CREDENTIALS)
        what = chaos.subject("tiny", model, asked.new_tokens)
        fast, slow = network_of(asked.slowdown, FASTER), network_of(asked.slowdown, SLOWER)
        from_start = run(what, fast, folder, joins=False)
        joined = run(what, fast, folder, joins=True)
        alone = run(what, slow, folder, joins=True)
    print("| case | same text | tokens/s before | tokens/s after | pause | plan at the end |")
    print("| --- | --- | --- | --- | --- | --- |")
    for case, one in (("all five from the start", from_start), ("a faster one joins", joined), ("a slow one", alone)):
        plan = " -> ".join(f"{stage.node}[{stage.start}:{stage.stop}]" for stage in one.plan.stages)
        print(f"| {case} | {one.is_same} | {one.before:.1f} | {one.after:.1f} | {one.pause_s:.2f} s | {plan} |")
    print(f"the slow one is left alone: {alone.note}")
    claims = {
        "the text is the same": from_start.is_same and joined.is_same and alone.is_same,
        "the faster host is used": joined.migrations > 0 and NAMES[-1] in [one.node for one in joined.plan.stages],
        "afterwards within 10 % of the plan from the start": joined.after > 0.9 * from_start.after,
        "the slow host is left alone": alone.migrations == 0 and bool(alone.note),
    }
    if wrong := [claim for claim, holds in claims.items() if not holds]:
        sys.exit(f"not so: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
