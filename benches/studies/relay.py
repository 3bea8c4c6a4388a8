"""Links of limited rate and of some delay between network namespaces, for programs that know nothing of them.

Kernels without netem cannot delay packets. So between each two namespaces there is a pair of TUN devices, and a process
that takes the packets from one and gives them to the other when they would have arrived. Needs root and /dev/net/tun.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import itertools
import multiprocessing
import os
import select
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import orbitsplit as osp
from orbitsplit.runtime._emulation.namespaces import Namespaces

_TUNSETIFF, _IFF_TUN_NO_PI = 0x400454CA, 0x1001
_CLONE_NEWNET = 0x40000000
_PACKET_BYTES = 1 << 16
# What a link's queue holds before it drops packets.
_QUEUE_S = 0.5


@contextmanager
def relayed(names: list[str], *, bytes_per_s: float, delay_s: float) -> Iterator[Namespaces]:
    """Yield a namespace for each name, any two of which are joined by a link of this rate and delay each way."""
    nodes = tuple(osp.Node(name, 10**9, slowdown=1.0) for name in names)
    with Namespaces(osp.Network("relayed", nodes, ())) as spaces:
        ends: dict[int, int] = {}
        for one, other in itertools.combinations(names, 2):
            near, far = (_device(spaces, *pair) for pair in ((one, other), (other, one)))
            ends |= {near: far, far: near}
        context = multiprocessing.get_context("fork")
        relay = context.Process(target=_forward, args=(ends, bytes_per_s, delay_s), daemon=True)
        relay.start()
        try:
            yield spaces
        finally:
            relay.kill()
            relay.join()
            for end in ends:
                os.close(end)


def _device(spaces: Namespaces, node: str, peer: str) -> int:
    """Make the device of a node for what it sends to a peer, with the route; return its descriptor."""
    space, name = spaces.namespace(node), f"tun-{spaces.address(peer).rpartition('.')[2]}"
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/ns/net", "rb") as home, open(f"/run/netns/{space}", "rb") as there:
        if libc.setns(there.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {space}")
        try:
            device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH14x", name.encode(), _IFF_TUN_NO_PI))
        finally:
            libc.setns(home.fileno(), _CLONE_NEWNET)
    for command in (
        f"link set {name} up",
        f"route add {spaces.address(peer)}/32 dev {name} src {spaces.address(node)}",
    ):
        subprocess.run(["ip", "-n", space, *command.split()], check=True)
    return device


def _forward(ends: dict[int, int], bytes_per_s: float, delay_s: float) -> None:
    """Pass packets on for ever: after those before them, at the link's rate, and the delay."""
    free_s = dict.fromkeys(ends, 0.0)
    waiting: list[tuple[float, int, int, bytes]] = []
    numbers = itertools.count()
    while True:
        limit_s = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        readable, _, _ = select.select(list(ends), [], [], limit_s)
        for end in readable:
            packet = os.read(end, _PACKET_BYTES)
            now_s = time.monotonic()
            begin_s = max(now_s, free_s[end])
            if begin_s - now_s < _QUEUE_S:
                free_s[end] = begin_s + len(packet) / bytes_per_s
                heapq.heappush(waiting, (free_s[end] + delay_s, next(numbers), ends[end], packet))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, end, packet = heapq.heappop(waiting)
            os.write(end, packet)
