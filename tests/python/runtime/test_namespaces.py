"""Network namespaces with limited links: measured rates, and nothing left behind, whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orbitsplit import Link, Network, Node, OrbitsplitError
from orbitsplit.runtime._emulation import namespaces
from orbitsplit.runtime._emulation.namespaces import Namespaces, is_available, why_unavailable

MBIT = 1e6 / 8
NETWORK = Network(
    "chain",
    tuple(Node(name, 1, slowdown=1.0) for name in ("sat 0", "sat/1", "ground")),
    (Link("sat 0", "sat/1", 20 * MBIT), Link("sat/1", "sat 0", 40 * MBIT), Link("sat/1", "ground", 100 * MBIT)),
)

WHY_NOT = why_unavailable()
needs_namespaces = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

RECEIVE = """
import socket, time
listener = socket.create_server(("", 5000))
print("ready", flush=True)
connection, _ = listener.accept()
total, start_s = len(connection.recv(1 << 16)), time.monotonic()
while data := connection.recv(1 << 16):
    total += len(data)
print(total / (time.monotonic() - start_s))
"""
SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], 5000)) as connection:
    connection.sendall(bytes(int(sys.argv[2])))
"""


def left_behind() -> set[str]:
    listing = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in listing.splitlines() if f"-{os.getpid()}-" in line}


def measured_bytes_per_s(spaces: Namespaces, source: str, target: str, size: int) -> float:
    receive = spaces.command(target, [sys.executable, "-c", RECEIVE])
    with subprocess.Popen(receive, stdout=subprocess.PIPE, text=True) as receiver:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "ready\n"
        send = spaces.command(source, [sys.executable, "-c", SEND, spaces.address(target), str(size)])
        subprocess.run(send, check=True, timeout=60)
        return float(receiver.communicate(timeout=60)[0])


def most_bytes_per_s(spaces: Namespaces, source: str, target: str, size: int, *, above: float) -> float:
    """Return the highest rate of five measurements, or the first above a limit: a busy machine only lowers them."""
    most = 0.0
    for _ in range(5):
        most = max(most, measured_bytes_per_s(spaces, source, target, size))
        if most > above:
            break
    return most


@needs_namespaces
def test_each_direction_has_its_links_rate_and_what_has_no_link_is_not_limited() -> None:
    with Namespaces(NETWORK) as spaces:
        for link in NETWORK.links:
            # Half a second each, so that what the bucket lets through at once counts for little.
            size, least = int(link.bytes_per_s / 2), 0.8 * link.bytes_per_s
            rate = most_bytes_per_s(spaces, link.source, link.destination, size, above=least)
            assert least < rate < 1.2 * link.bytes_per_s, link
        for source, target in (("ground", "sat/1"), ("sat 0", "ground")):
            least = 2 * 100 * MBIT
            assert most_bytes_per_s(spaces, source, target, 20_000_000, above=least) > least
    assert left_behind() == set()


@needs_namespaces
def test_a_node_sees_itself_the_others_and_gloos_interface() -> None:
    with Namespaces(NETWORK, ["ground", "sat 0"]) as spaces:
        assert len(left_behind()) == 3  # two nodes and their bridge
        code = "import os, socket; print(os.environ['GLOO_SOCKET_IFNAME'], [name for _, name in socket.if_nameindex()])"
        output = subprocess.check_output(spaces.command("ground", [sys.executable, "-c", code]), text=True)
        assert output == "eth0 ['lo', 'eth0']\n"
        assert measured_bytes_per_s(spaces, "ground", "ground", 1000) > 0
        assert spaces.address("ground") != spaces.address("sat 0")


@needs_namespaces
def test_two_networks_at_once_do_not_collide() -> None:
    with Namespaces(NETWORK) as one, Namespaces(NETWORK) as other:
        assert one.namespace("ground") != other.namespace("ground")
        assert one.address("ground") == other.address("ground")
        assert measured_bytes_per_s(one, "sat/1", "ground", 1000) > 0
    assert left_behind() == set()


@needs_namespaces
def test_an_error_inside_leaves_neither_namespace_nor_process() -> None:
    endless = [sys.executable, "-c", "import signal; print('up', flush=True); signal.pause()"]

    def fail() -> subprocess.Popen[str]:
        with Namespaces(NETWORK) as spaces:
            started.append(subprocess.Popen(spaces.command("ground", endless), stdout=subprocess.PIPE, text=True))
            assert started[0].stdout is not None
            assert started[0].stdout.readline() == "up\n"
            raise ZeroDivisionError

    started: list[subprocess.Popen[str]] = []
    with pytest.raises(ZeroDivisionError):
        fail()
    with started[0] as process:
        assert process.wait(timeout=30) == -signal.SIGKILL
    assert left_behind() == set()


@needs_namespaces
def test_ctrl_c_leaves_nothing() -> None:
    code = """
import os, signal
from orbitsplit import Network, Node
from orbitsplit.runtime._emulation.namespaces import Namespaces
signal.signal(signal.SIGINT, signal.default_int_handler)
with Namespaces(Network("one", (Node("a", 1, slowdown=1.0),))) as spaces:
    print(spaces.namespace("a"), os.path.exists(f"/run/netns/{spaces.namespace('a')}"), flush=True)
    signal.pause()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        name, existed = run.stdout.readline().split()
        run.send_signal(signal.SIGINT)
        _, complaint = run.communicate(timeout=30)
    assert existed == "True"
    assert "KeyboardInterrupt" in complaint
    assert not (Path("/run/netns") / name).exists()


@needs_namespaces
def test_a_failure_on_the_way_undoes_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    run: Callable[[str], str] = namespaces._run

    def run_until_the_limit(command: str) -> str:
        if " qdisc " in command:
            assert left_behind() != set()
            return run(command.replace("tbf", "no_such_qdisc"))
        return run(command)

    monkeypatch.setattr(namespaces, "_run", run_until_the_limit)
    with pytest.raises(OrbitsplitError, match=r"'tc -n .* failed: .*no_such_qdisc"), Namespaces(NETWORK):
        pass
    assert left_behind() == set()
    assert "no_such_qdisc" in str(why_unavailable())
    assert not is_available()


def test_wrong_nodes_are_named() -> None:
    with pytest.raises(ValueError, match="no node 'mars'; the nodes are sat 0, sat/1, ground"):
        Namespaces(NETWORK, ["mars"])
    with pytest.raises(ValueError, match="node 'ground' appears 2 times"):
        Namespaces(NETWORK, ["ground", "ground"])
    with pytest.raises(ValueError, match="no node 'ground'; the nodes are sat 0"):
        Namespaces(NETWORK, ["sat 0"]).address("ground")


def test_many_nodes_have_different_addresses() -> None:
    network = Network("many", tuple(Node(f"n{k}", 1, slowdown=1.0) for k in range(600)))
    spaces = Namespaces(network)
    addresses = [spaces.address(f"n{k}") for k in range(600)]
    assert len(set(addresses)) == 600
    assert addresses[0] == "10.77.0.1"
    assert addresses[599] == "10.77.2.92"


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert why_unavailable() == "the program ip is not installed (package iproute2)"
    with pytest.raises(OrbitsplitError, match=r"'ip netns add .*' failed: ip is not installed"), Namespaces(NETWORK):
        pass
    for name in ("ip", "tc"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert why_unavailable() == "creating network namespaces needs root, this is user 1000"
