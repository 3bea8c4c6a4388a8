"""Messages between processes: headers, the control store, and a channel between two real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import orbitsplit
from orbitsplit import TransportError
from orbitsplit.runtime._transport import HEADER_BYTES, ControlStore, Header, channel_tags

HEADER = Header(
    job=2**40, group=3, step=70_000, rows=4, tokens=300, is_end=True, payload_bytes=1000, deliver_s=1234.5678
)


def test_a_header_has_64_bytes_and_a_round_trip() -> None:
    buffer = memoryview(bytearray(HEADER_BYTES + 1000))
    HEADER.pack_into(buffer)
    assert HEADER_BYTES == 64
    assert Header.unpack_from(buffer) == HEADER


def test_a_header_that_is_none_is_refused() -> None:
    with pytest.raises(TransportError, match="message starts with"):
        Header.unpack_from(memoryview(bytearray(HEADER_BYTES)))


def test_a_payload_beyond_the_buffer_is_refused() -> None:
    buffer = memoryview(bytearray(HEADER_BYTES + 1000))
    HEADER.pack_into(buffer)
    with pytest.raises(TransportError, match="announces 1000 bytes, its buffer holds 999"):
        Header.unpack_from(buffer[:-1])


def test_jobs_have_tags_of_their_own() -> None:
    tags = [tag for job in range(100) for tag in channel_tags(job)]
    assert len(set(tags)) == 200
    assert max(channel_tags(2**29 - 1)) < 2**31


@pytest.fixture(scope="module")
def store() -> ControlStore:
    return ControlStore.host()


@pytest.mark.parametrize("size", [0, 1, (4 << 20) - 1, 4 << 20, (9 << 20) + 3])
def test_the_store_keeps_values_of_any_size(store: ControlStore, size: int) -> None:
    data = (bytes(range(256)) * (size // 256 + 1))[:size]
    key = f"value {size}"
    assert not store.has(key)
    store.put(key, data)
    assert ControlStore.join(store.port).get(key) == data
    store.remove(key)
    assert not store.has(key)
    assert not store.has(f"{key}#0")


def test_removing_what_is_not_there_is_fine(store: ControlStore) -> None:
    store.remove("never put")


def test_the_store_listens_on_the_loopback_interface_only(store: ControlStore) -> None:
    listening = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        sockets = [line.split() for line in Path(table).read_text().splitlines()[1:]]
        listening += [address for _, address, _, state, *_ in sockets if state == "0A"]
    assert [address for address in listening if address.endswith(f":{store.port:04X}")] == [
        f"0100007F:{store.port:04X}"
    ]


# Both ranks of a channel; each prints what it saw. Rank 1 receives before and after rank 0 has sent.
_PEER = """
import json, os, sys, time
from orbitsplit import TransportError
from orbitsplit.runtime._emulation import LinkShaper
from orbitsplit.runtime._transport import ControlStore, PeerLostError, Receiver, Sender, Transport, channel_tags

rank, port = int(sys.argv[1]), int(sys.argv[2])
store = ControlStore.join(port)
transport = Transport(port, rank=rank, stages=2, timeout_s=60)
seen = {}
sizes = [0, 1, 1000, 4096, 7]
for job in (0, 1):
    tag = channel_tags(job)[0]
    if rank == 0:
        sender = Sender("link", 1, tag=tag, capacity=4096, shaper=LinkShaper())
        for k, size in enumerate(sizes):
            sender.send(bytes([k + 1]) * size, job=job, group=k % 2, step=k, rows=2, tokens=3)
        sender.end(job=job, group=1)
        sender.drain()
    else:
        receiver = Receiver("link", 0, tag=tag, capacity=4096)
        receiver.expect(len(sizes))
        got = []
        for k in range(len(sizes) + 1):
            if k == 3:
                receiver.expect(1)
            header, payload = receiver.receive()
            ok = bytes(payload) == bytes([k + 1]) * len(payload)
            got.append([header.job, header.group, header.step, len(payload), header.is_end, ok])
        seen[f"job {job}"] = got
tag = channel_tags(2)[0]
if rank == 0:
    sender = Sender("link", 1, tag=tag, capacity=10, shaper=LinkShaper(latency_s=0.05))
    try:
        sender.send(b"x" * 11, job=2, group=0, step=0)
    except TransportError as error:
        seen["too large"] = str(error)
    seen["sent_s"] = time.monotonic()
    sender.send(b"x" * 10, job=2, group=0, step=0)
    store.get("received")
    print(json.dumps(seen), flush=True)
    os._exit(1)
receiver = Receiver("link", 0, tag=tag, capacity=10)
receiver.expect(2)
receiver.receive()
seen["received_s"] = time.monotonic()
store.put("received", b"")
try:
    receiver.receive()
except PeerLostError as error:
    seen["lost"] = str(error)
print(json.dumps(seen), flush=True)
os._exit(0)
"""


@pytest.mark.timeout(120)
def test_a_channel_between_two_processes(store: ControlStore) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(orbitsplit.__file__).parents[1])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PEER, str(rank), str(store.port)],
            stdout=subprocess.PIPE,
            env=environment,
        )
        for rank in (0, 1)
    ]
    try:
        sender, receiver = (json.loads(process.communicate(timeout=60)[0]) for process in processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for job in (0, 1):
        expected = [[job, k % 2, k, size, False, True] for k, size in enumerate([0, 1, 1000, 4096, 7])]
        assert receiver[f"job {job}"] == [*expected, [job, 1, 0, 0, True, True]]
    assert sender["too large"] == "link: a frame of 11 bytes exceeds the receiver's 10"
    assert receiver["received_s"] - sender["sent_s"] >= 0.05
    assert receiver["lost"].startswith("link broke while receiving")
