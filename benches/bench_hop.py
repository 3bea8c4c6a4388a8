"""What does a hop of a decode step cost beside Gloo alone, which carries it?

    python -m benches.bench_hop                       # the table
    pytest benches/bench_hop.py -s                    # the same, a case at a time
    pytest benches/bench_hop.py --benchmark-disable   # answers alone

Two processes play ping-pong with an activation of one token, [1, 1, 640]: once as so many bytes by
torch.distributed.send and recv, once through what a stage has: encoded, recorded, sealed, sent by an ActivationOutlet,
received by an ActivationInlet, checked and decoded. Both by turns, in short blocks, since processes and cores find
themselves in another state every few seconds, which makes either twice as slow: what counts is the ratio of the medians
of two blocks that follow each other, of which the table has the median of all turns and the quartiles.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist

import orbitsplit as osp
from orbitsplit._plans.trace import Recorder
from orbitsplit.runtime._emulation.pace import Pace
from orbitsplit.runtime._messages.control_store import ControlStore
from orbitsplit.runtime._messages.framing import channel_key
from orbitsplit.runtime._messages.groups import Group
from orbitsplit.runtime._messages.transport import Receiver, Sender, Transport
from orbitsplit.runtime._schedule.protocol import Kind
from orbitsplit.runtime._worker.channels import ActivationInlet, ActivationOutlet

SHAPE = (1, 1, 640)
TURNS, BLOCK = 100, 50
LINK = "the link"


class Case(NamedTuple):
    """What is sent, and how."""

    dtype: str
    codec: str
    has_secret: bool

    def __str__(self) -> str:
        return f"{self.dtype}, {self.codec}{', a secret' if self.has_secret else ''}"


CASES = [
    Case(dtype, codec, has_secret)
    for has_secret in (False, True)
    for dtype in ("float32", "bfloat16")
    for codec in ("raw", "int8")
]


class Hop(NamedTuple):
    """Seconds one way of each turn, the medians of its blocks, and the bytes of a frame."""

    gloo_s: list[float]
    ours_s: list[float]
    frame_bytes: int

    @property
    def ratios(self) -> list[float]:
        """Return the quartiles of ours over Gloo's."""
        return statistics.quantiles([b / a for a, b in zip(self.gloo_s, self.ours_s, strict=True)], n=4)


def hop(case: Case, *, turns: int = TURNS, block: int = BLOCK) -> Hop:
    """Run two processes that play, and return what they measured and checked."""
    store = ControlStore.host()
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    settings = json.dumps([store.address, case, turns, block])
    players = [
        subprocess.Popen(
            [sys.executable, __file__, "--player", str(rank), settings], env=environment, stdout=subprocess.PIPE
        )
        for rank in range(2)
    ]
    try:
        answers = [player.communicate(timeout=120)[0] for player in players]
    finally:
        for player in players:
            player.kill()
    assert [player.returncode for player in players] == [0, 0]
    del store  # it had to live until now
    return Hop(*json.loads(answers[0]))


class Player:
    """One of the two; rank 0 begins each round trip."""

    def __init__(self, rank: int, address: str, case: Case) -> None:
        self._rank, self._other = rank, 1 - rank
        transport = Transport(address, "hop", rank=rank, stages=2, timeout_s=60.0)
        keys = [channel_key(b"secret", "hop", *ends) if case.has_secret else None for ends in ((0, 1), (1, 0))]
        sender = Sender(transport, LINK, self._other, shaper=None, key=keys[rank])
        receiver = Receiver(transport, LINK, self._other, key=keys[self._other])
        pace = Pace(Recorder())
        dtype: torch.dtype = getattr(torch, case.dtype)
        self._outlet = ActivationOutlet(sender, pace, codec=case.codec, half_duplex=False)
        self._inlet = ActivationInlet(
            receiver, pace, hidden_size=SHAPE[-1], dtype=dtype, link=LINK, planned_tokens=math.prod(SHAPE[:-1])
        )
        self._steps = 0
        self._group = Group(id=1, rows=1, tokens=1, mask=None, max_new_tokens=1 << 30, is_recorded=True)
        self._x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(dtype)
        frame = osp.compress(self._x, codec=case.codec)
        self._expected = osp.decompress(frame, framework="torch")
        self.frame_bytes = len(frame)
        self._out = torch.zeros(self.frame_bytes, dtype=torch.uint8)
        self._in = torch.zeros(self.frame_bytes, dtype=torch.uint8)
        pace.recorder.begin(self._group.id)
        self._outlet.begin(self._group, self._x)
        assert self._inlet.receive().kind is Kind.BEGIN

    def play(self, turns: int, block: int) -> tuple[list[float], list[float]]:
        """Play both by turns; return the seconds one way of each, turn by turn."""
        times: tuple[list[float], list[float]] = ([], [])
        for turn in range(turns + 1):
            for own, (there, back) in zip(times, (self._by_gloo(), self._by_ours()), strict=True):
                trips = self._block(block, there, back)
                if turn > 0:  # the first is to warm up
                    own.append(statistics.median(trips) / 2)
        return times

    def _block(self, count: int, there: Callable[[], None], back: Callable[[], None]) -> list[float]:
        trips = []
        for _ in range(count):
            start_s = time.perf_counter()
            if self._rank == 0:
                there()
                back()
            else:
                back()
                there()
            trips.append(time.perf_counter() - start_s)
        return trips

    def _by_gloo(self) -> tuple[Callable[[], None], Callable[[], None]]:
        def back() -> None:
            dist.recv(self._in, self._other, tag=7)

        return lambda: dist.send(self._out, self._other, tag=7), back

    def _by_ours(self) -> tuple[Callable[[], None], Callable[[], None]]:
        def there() -> None:
            self._steps += 1
            self._outlet.send(self._group.id, self._steps, self._x)

        return there, self._receive

    def _receive(self) -> None:
        message = self._inlet.receive()
        assert message.kind is Kind.STEP
        assert message.x is not None
        self._arrived = message.x

    def check(self) -> None:
        """Check what arrived last."""
        assert torch.equal(self._arrived, self._expected)


def main_of_player(rank: int, settings: str) -> None:
    """Play as one of the two processes; rank 0 prints what it measured."""
    torch.set_num_threads(1)
    address, case, turns, block = json.loads(settings)
    player = Player(rank, address, Case(*case))
    gloo_s, ours_s = player.play(turns, block)
    player.check()
    if rank == 0:
        print(json.dumps([gloo_s, ours_s, player.frame_bytes]), flush=True)
    dist.barrier()
    os._exit(0)  # receives are posted that nothing will answer


def row(case: Case, found: Hop) -> str:
    """Return a row of the table."""
    low, middle, high = found.ratios
    gloo_us, ours_us = (1e6 * statistics.median(seconds) for seconds in (found.gloo_s, found.ours_s))
    return f"| {case} | {found.frame_bytes} | {gloo_us:.0f} | {ours_us:.0f} | {middle:.2f} | {low:.2f} to {high:.2f} |"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_hop(benchmark, case):
    benchmark.group = "a hop of a decode step beside Gloo alone"
    shorter = {"turns": 2, "block": 5} if benchmark.disabled else {}
    found = benchmark.pedantic(hop, args=(case,), kwargs=shorter, rounds=1)
    assert found.frame_bytes > 0
    benchmark.extra_info.update(frame_bytes=found.frame_bytes, ratio=found.ratios[1])
    print(f"\n{row(case, found)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--player", nargs=2)
    players = parser.parse_args().player
    if players is not None:
        main_of_player(int(players[0]), players[1])
    else:
        print("| one way, us | bytes of a frame | Gloo | ours | ratio | its quartiles |")
        print("| --- | --- | --- | --- | --- | --- |")
        for case in CASES:
            print(row(case, hop(case)), flush=True)
        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
