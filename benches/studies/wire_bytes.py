"""How many bytes does a frame take on a link, with our header, Gloo's messages and TCP/IP?

    python -m benches.studies.wire_bytes [--count 100] [--gap-ms 5]

Two namespaces are joined by a link of 10 Mbit/s. One sends frames to the other, one after the other as the steps of a
generation do, through the `Sender` of a stage; the counters of its network interfaces say what went over the link, each
way. Bytes on the link have the 14 bytes of each Ethernet header, as the kernel counts them. Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import orbitsplit as osp
from orbitsplit.runtime._emulation.namespaces import Namespaces
from orbitsplit.runtime._messages.control_store import ControlStore
from orbitsplit.runtime._messages.framing import Header
from orbitsplit.runtime._messages.transport import Receiver, Sender, Transport, bytes_of
from orbitsplit.runtime._schedule.protocol import Kind

SIZES = (64, 390, 1_400, 2_624, 20_480, 174_080)
NODES, PORT = ("sat-0", "sat-1"), 29510


class Counters(NamedTuple):
    """Bytes and packets that left and arrived at the interfaces of a namespace."""

    sent_bytes: int
    sent_packets: int
    received_bytes: int
    received_packets: int

    @classmethod
    def now(cls) -> Counters:
        """Read the counters of all interfaces but the loopback."""
        lines = (line.split(":") for line in Path("/proc/self/net/dev").read_text().splitlines()[2:])
        rows = [[int(value) for value in values.split()] for name, values in lines if name.strip() != "lo"]
        return cls(*(sum(row[column] for row in rows) for column in (8, 9, 0, 1)))


def play(rank: int, address: str, count: int, gap_s: float) -> None:
    """Send, or receive, all messages; rank 0 prints what its counters say of each size."""
    store = ControlStore.host(address, PORT) if rank == 0 else None
    transport = Transport(f"{address}:{PORT}", "wire", rank=rank, stages=2, timeout_s=60.0)
    if rank == 1:
        receiver = Receiver(transport, "link", 0)
        for _ in range(len(SIZES) * count):
            receiver.receive()
        time.sleep(1.0)  # the counters of the other are read with the connection open
        return
    sender = Sender(transport, "link", 1, shaper=None)
    found = []
    for size in SIZES:
        header = Header(Kind.STEP, 1, 1, 1, 1, 0, size, True)
        time.sleep(0.3)
        before = Counters.now()
        for _ in range(count):
            sender.send(header, os.urandom(size))
            time.sleep(gap_s + 1.2 * size / 1.25e6)  # the next step begins when this frame has arrived
        time.sleep(0.3)
        after = Counters.now()
        found.append([size, bytes_of(header), *((b - a) / count for a, b in zip(before, after, strict=True))])
    print(json.dumps(found))
    del store  # it had to live until now


def main() -> None:
    """Run the two processes in their namespaces and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--gap-ms", type=float, default=5.0)
    parser.add_argument("--play", nargs=2, metavar=("RANK", "ADDRESS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.play:
        play(int(options.play[0]), options.play[1], options.count, options.gap_ms / 1e3)
        return
    nodes = tuple(osp.Node(name, 10**9, slowdown=1.0) for name in NODES)
    links = tuple(osp.Link(*ends, bytes_per_s=1.25e6, latency_s=0.0) for ends in (NODES, NODES[::-1]))
    with Namespaces(osp.Network("two", nodes, links)) as spaces:
        settings = [f"--count={options.count}", f"--gap-ms={options.gap_ms}"]
        players = []
        for rank, node in enumerate(NODES):
            command = [sys.executable, "-m", "benches.studies.wire_bytes", *settings]
            command += ["--play", str(rank), spaces.address(NODES[0])]
            environment = {**os.environ, "GLOO_SOCKET_IFNAME": "eth0"}
            there = spaces.command(node, command)
            players.append(subprocess.Popen(there, env=environment, stdout=subprocess.PIPE, text=True))
        answer, _ = players[0].communicate(timeout=300)
        assert [player.wait() for player in players] == [0, 0]
    print("| frame | message | on the link | packets | the other way | packets |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size, message, sent, sent_packets, received, received_packets in json.loads(answer):
        row = (size, message, f"{sent:,.0f}", f"{sent_packets:.1f}", f"{received:,.0f}", f"{received_packets:.1f}")
        print("|", " | ".join(f"{value:,}" if isinstance(value, int) else value for value in row), "|")


if __name__ == "__main__":
    main()
