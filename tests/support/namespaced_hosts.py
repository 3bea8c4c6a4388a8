"""Hosts in network namespaces: power and links that fail, partitions. Needs root."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Collection
from contextlib import suppress
from itertools import product

import psutil

from orbitsplit.runtime._emulation.namespaces import Namespaces


def processes_of(spaces: Namespaces, node: str) -> list[psutil.Process]:
    """Return all processes in the namespace of a node."""
    listed = subprocess.run(["ip", "netns", "pids", spaces.namespace(node)], capture_output=True, text=True, check=True)
    found = []
    for pid in map(int, listed.stdout.split()):
        with suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return found


def take_power(spaces: Namespaces, node: str) -> None:
    """Kill all processes of a node, its coordinator included."""
    for process in processes_of(spaces, node):
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def cut(spaces: Namespaces, some: Collection[str], others: Collection[str]) -> None:
    """Let nothing pass any more between any of `some` nodes and any of `others`."""
    for one, other in product(some, others):
        for near, far in ((one, other), (other, one)):
            _route(spaces, near, f"blackhole {spaces.address(far)}/32")


def join(spaces: Namespaces, some: Collection[str], others: Collection[str]) -> None:
    """Undo `cut`: packets take the links between the nodes again."""
    for one, other in product(some, others):
        for near, far in ((one, other), (other, one)):
            _route(spaces, near, f"{spaces.address(far)}/32 dev {spaces.interface(far)} src {spaces.address(near)}")


def _route(spaces: Namespaces, node: str, route: str) -> None:
    subprocess.run(["ip", "-n", spaces.namespace(node), "route", "replace", *route.split()], check=True)
