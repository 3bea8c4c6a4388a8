"""The control store, and channels between two real processes, session after session."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import orbitsplit
from orbitsplit.runtime._messages.control_store import ControlStore
from orbitsplit.runtime._messages.transport import Transport


@pytest.fixture(scope="module")
def store() -> ControlStore:
    return ControlStore.host()


@pytest.mark.parametrize("size", [0, 1, (4 << 20) - 1, 4 << 20, (9 << 20) + 3])
def test_the_store_keeps_values_of_any_size(store: ControlStore, size: int) -> None:
    data = (bytes(range(256)) * (size // 256 + 1))[:size]
    key = f"value {size}"
    assert not store.has(key)
    store.put(key, data)
    assert ControlStore.join(store.address).get(key) == data
    store.remove(key)
    assert not store.has(key)
    assert not store.has(f"{key}#0")


def test_removing_what_is_not_there_is_fine(store: ControlStore) -> None:
    store.remove("never put")


def test_the_store_listens_on_the_loopback_interface_only(store: ControlStore) -> None:
    port = int(store.address.rpartition(":")[2])
    listening = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        sockets = [line.split() for line in Path(table).read_text().splitlines()[1:]]
        listening += [address for _, address, _, state, *_ in sockets if state == "0A"]
    assert [address for address in listening if address.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]


# Both ends of a channel; each prints what it saw.
_PEER = """
import json, os, sys, threading, time
from orbitsplit._network.link_conditions import LinkShape
from orbitsplit.runtime._emulation.link_shaper import LinkShaper
from orbitsplit.runtime._messages.control_store import ControlStore
from orbitsplit.runtime._messages.transport import PeerLostError, Receiver, Sender, Transport
from orbitsplit.runtime._messages.framing import Header

rank, address = int(sys.argv[1]), sys.argv[2]
store = ControlStore.join(address)
seen = {}

def join(session):
    return Transport(address, session, rank=rank, stages=2, timeout_s=60)

# Messages of all sizes, with and without a key, intact and corrupted.
sizes = [0, 1, 1000, (4 << 20) - 96, (4 << 20) - 95, 9 << 20, 7]
KEY = b"k" * 32
for name, key, corrupt in (("plain", None, 0.0), ("secret", KEY, 0.0), ("corrupt", None, 1.0), ("both", KEY, 1.0)):
    transport = join(name)
    sender = receiver = None
    if rank == 0:
        shaper = LinkShaper(conditions=LinkShape("a", "b", corrupt=corrupt)) if corrupt else None
        sender = Sender(transport, "link", 1, shaper=shaper, key=key)
        for k, size in enumerate(sizes):
            header = Header(1, k % 3, k, rows=2, tokens=3, description_bytes=k % 2, payload_bytes=size)
            sender.send(header, bytes([k + 1]) * size, description=b"d" * (k % 2))
            sender.send(Header(2, group=k % 3), is_answered=False)
        sender.drain()
        seen[name] = sender.sent
    else:
        receiver = Receiver(transport, "link", 0, key=key)
        got = []
        for k in range(2 * len(sizes)):
            header, description, payload = receiver.receive()
            whole = payload is not None and bytes(payload) == bytes([k // 2 + 1]) * len(payload)
            size = None if payload is None else len(payload)
            got.append([header.kind, header.group, header.step, len(description), size, whole])
        seen[name] = got
    transport.close()

# What arrives damaged is sent again, until it arrives whole; what else is sent meanwhile does not get in between.
transport = join("repeat")
if rank == 0:
    sender = Sender(transport, "link", 1, shaper=LinkShaper(conditions=LinkShape("a", "b", corrupt=0.3)), key=KEY)
    for k, size in enumerate(sizes):
        header = Header(1, k, k, rows=2, tokens=3, description_bytes=k % 2, payload_bytes=size)
        sender.send(header, bytes([k + 1]) * size, description=b"d" * (k % 2))
        for _ in range(6):
            sender.send(Header(3, group=k), is_answered=False)
            sender.repeat(k, k)
        assert sender.repeat(k, k + 1) is None  # it never left
        sender.forget(k)
    sender.drain()
    seen["repeat"] = sender.sent
else:
    receiver = Receiver(transport, "link", 0, key=KEY)
    got = []
    for k, size in enumerate(sizes):
        for number in range(7):
            if number:
                assert receiver.receive()[0].kind == 3
            header, description, payload = receiver.receive()
            assert header[:7] == (1, k, k, 2, 3, k % 2, size) and len(description) == k % 2
            got.append(None if payload is None else bytes(payload) == bytes([k + 1]) * size)
    seen["repeat"] = got
transport.close()

# An emulated link delivers later.
transport = join("slow")
if rank == 0:
    shaper = LinkShaper(latency_s=0.05)
    sender = Sender(transport, "link", 1, shaper=shaper)
    seen["sent_s"] = time.monotonic()
    sender.send(Header(1, payload_bytes=1), b"x")
    sender.drain()
else:
    Receiver(transport, "link", 0).receive()
    seen["received_s"] = time.monotonic()
transport.close()

# Who waits can be freed, and joins the next session.
transport = join("interrupted")
receiver = Receiver(transport, "link", 1 - rank)
threading.Timer(0.2, transport.interrupt).start()
try:
    receiver.receive()
except PeerLostError as error:
    seen["interrupted"] = str(error)
transport.close()

# The loss of the other is detected.
transport = join("lost")
if rank == 0:
    sender = Sender(transport, "link", 1, shaper=None)
    sender.send(Header(1, payload_bytes=1), b"x")
    store.get("received")
    print(json.dumps(seen), flush=True)
    os._exit(1)
receiver = Receiver(transport, "link", 0)
receiver.receive()
store.put("received", b"")
try:
    receiver.receive()
except PeerLostError as error:
    seen["lost"] = str(error)
print(json.dumps(seen), flush=True)
os._exit(0)
"""

SIZES = [0, 1, 1000, (4 << 20) - 96, (4 << 20) - 95, 9 << 20, 7]


@pytest.fixture(scope="module")
def seen(store: ControlStore) -> list[dict[str, Any]]:
    """What two processes saw of channels between them."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(orbitsplit.__file__).parents[1]),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PEER, str(rank), store.address], stdout=subprocess.PIPE, env=environment
        )
        for rank in (0, 1)
    ]
    try:
        return [json.loads(process.communicate(timeout=100)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def expected(*, arrives: bool) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for k, size in enumerate(SIZES):
        is_whole = arrives or size == 0
        rows.append([1, k % 3, k, k % 2, size if is_whole else None, is_whole])
        rows.append([2, k % 3, 0, 0, 0, True])
    return rows


@pytest.mark.parametrize("name", ["plain", "secret"])
def test_messages_of_any_size_arrive_in_order(seen: list[dict[str, Any]], name: str) -> None:
    assert seen[0][name] == 2 * len(SIZES)
    assert seen[1][name] == expected(arrives=True)


@pytest.mark.parametrize("name", ["corrupt", "both"])
def test_flipped_bits_are_detected_and_what_follows_arrives(seen: list[dict[str, Any]], name: str) -> None:
    assert seen[1][name] == expected(arrives=False)


def test_what_arrives_damaged_is_sent_again_as_it_was(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["repeat"] == (1 + 2 * 6) * len(SIZES)
    # A third of those that have a payload; the damage of one does not stay for the next time.
    assert seen[1]["repeat"][:7] == [True] * 7
    assert set(seen[1]["repeat"]) == {True, None}
    for k in range(1, len(SIZES)):
        assert True in seen[1]["repeat"][7 * k : 7 * (k + 1)]


def test_an_emulated_link_delivers_when_it_says(seen: list[dict[str, Any]]) -> None:
    assert seen[1]["received_s"] - seen[0]["sent_s"] >= 0.05


def test_a_wait_can_be_interrupted(seen: list[dict[str, Any]]) -> None:
    assert all(side["interrupted"].startswith("link broke: ") for side in seen)


def test_the_loss_of_the_other_is_detected(seen: list[dict[str, Any]]) -> None:
    assert seen[1]["lost"].startswith("link broke: ")


def test_an_interruption_that_comes_late_leaves_other_connections_alone(
    store: ControlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It ended whatever connection had the number of a descriptor by then, such as one of the next session.
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    transport = Transport(store.address, "late", rank=0, stages=1, timeout_s=30.0)
    one, other = socket.socketpair()
    with one, other:
        transport._connections.add(one.fileno())
        transport.close()
        transport.interrupt()
        one.sendall(b"alive")
        assert other.recv(5) == b"alive"
