"""Channels between hosts: who has the credentials is let in, whoever has not is refused, and nothing can be read."""

from __future__ import annotations

import errno
import logging
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest

import orbitsplit as osp
from orbitsplit.runtime import Hosts
from orbitsplit.runtime._messages import tls_channel
from orbitsplit.runtime._messages.environment import SECRET_VARIABLE
from orbitsplit.runtime._messages.hosts import PROTOCOL
from orbitsplit.runtime._messages.tls_channel import (
    Credentials,
    RefusedError,
    TlsChannel,
    accepted,
    create_credentials,
    host_and_port,
)
from orbitsplit.runtime._node import agent as agent_module
from orbitsplit.runtime._node.agent import NodeAgent
from orbitsplit.runtime._parent import joined_host as joined_host_module
from orbitsplit.runtime._parent.joined_host import RemoteProcess
from orbitsplit.runtime._parent.launcher import Loss
from orbitsplit.runtime._parent.worker_process import WorkerProcess

WAIT_S = 60.0


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("credentials") / "fleet.pem"
    create_credentials(made)
    return made


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("foreign") / "fleet.pem"
    create_credentials(made)
    return made


@contextmanager
def pair(path: Path) -> Iterator[tuple[TlsChannel, TlsChannel]]:
    """Open a channel within this process; the first end is the client's."""
    credentials = Credentials(path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found: list[TlsChannel] = []

        def accept() -> None:
            found.append(TlsChannel(listener.accept()[0], credentials.server, is_server=True))

        thread = threading.Thread(target=accept)
        thread.start()
        client = TlsChannel.connect(f"127.0.0.1:{listener.getsockname()[1]}", credentials)
        thread.join(WAIT_S)
    yield client, found[0]
    client.release()
    found[0].release()


def wait_until(claim: Callable[[], Any]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not claim():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_messages_arrive_in_order_and_the_end_is_none(path: Path) -> None:
    with pair(path) as (client, server):
        long = {"text": "x" * 300_000}
        for message in ({"a": 1}, long, {}):
            client.send(message)
        assert [server.receive(WAIT_S) for _ in range(3)] == [{"a": 1}, long, {}]
        server.send({"b": None})
        assert client.receive(WAIT_S) == {"b": None}
        client.close()
        assert server.receive(WAIT_S) is None


def test_threads_may_send_while_another_receives(path: Path) -> None:
    with pair(path) as (client, server):
        threads = [
            threading.Thread(target=lambda k=k: [client.send({"from": k, "n": n}) for n in range(200)])
            for k in range(4)
        ]
        for thread in threads:
            thread.start()
        got = [server.receive(WAIT_S) or {} for _ in range(800)]
        for k in range(4):
            assert [one["n"] for one in got if one["from"] == k] == list(range(200))


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\xff\xff\xff\xff", "4,294,967,295 bytes is announced"),
        (b"\x02\0\0\0[]", "no JSON object"),
        (b"\x01\0\0\0{", "Expecting property name"),
    ],
)
def test_what_is_no_message_is_refused(path: Path, data: bytes, complaint: str) -> None:
    with pair(path) as (client, server):
        client._send_bytes(data)
        with pytest.raises(ValueError, match=complaint):
            server.receive(WAIT_S)


def test_silence_ends_a_wait_with_a_limit(path: Path) -> None:
    with pair(path) as (client, _server), pytest.raises(TimeoutError):
        client.receive(0.05)


def test_bytes_pass_both_ways_until_an_end_closes(path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, pair(path) as (client, server):
        near, near_end = socket.socketpair()
        threads = [threading.Thread(target=client.pass_through, args=(near_end,))]
        far = socket.create_connection(listener.getsockname())
        far_end, _ = listener.accept()
        threads.append(threading.Thread(target=server.pass_through, args=(far_end,)))
        for thread in threads:
            thread.start()
        sent = os.urandom(3_000_000)
        sender = threading.Thread(target=near.sendall, args=(sent,))
        sender.start()
        got = bytearray()
        while len(got) < len(sent):
            got += far.recv(1 << 16)
        assert bytes(got) == sent
        far.sendall(b"answer")
        assert near.recv(100) == b"answer"
        near.close()
        assert far.recv(100) == b""
        for thread in (sender, *threads):
            thread.join(WAIT_S)
            assert not thread.is_alive()
        far.close()


def test_credentials_are_for_their_owner_and_are_not_overwritten(path: Path, tmp_path: Path) -> None:
    assert path.stat().st_mode & 0o077 == 0
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        create_credentials(path)
    assert path.read_bytes() == before
    (tmp_path / "empty.pem").write_text("")
    with pytest.raises(ValueError, match=r"empty.pem has no private key and certificate"):
        Credentials(tmp_path / "empty.pem")
    (tmp_path / "odd.pem").write_bytes(before.replace(b"CERTIFICATE-----\nMII", b"CERTIFICATE-----\nXII"))
    with pytest.raises(ValueError, match=r"odd.pem has a private key and a certificate that cannot be used"):
        Credentials(tmp_path / "odd.pem")


def test_without_openssl_the_error_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(osp.OrbitsplitError, match="the program openssl, which makes credentials, is not installed"):
        create_credentials(tmp_path / "fleet.pem")
    assert not (tmp_path / "fleet.pem").exists()


@pytest.mark.parametrize("address", ["10.0.0.1", ":1", "host:", "host:x", "host:65536"])
def test_an_address_has_a_host_and_a_port(address: str) -> None:
    with pytest.raises(ValueError, match="expected HOST:PORT"):
        host_and_port(address)


def test_a_failed_accept_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Regression: one EMFILE or ECONNABORTED ended the thread, and no host could join any more."""
    near, far = socket.socketpair()
    results: list[Any] = [OSError(errno.EMFILE, "Too many open files"), OSError(errno.ECONNABORTED, "aborted")]
    results += [OSError(errno.ECONNABORTED, "aborted"), (near, ("10.0.0.7", 1)), OSError(errno.EBADF, "closed")]

    class Listener:
        def accept(self) -> Any:
            result = results.pop(0)
            if isinstance(result, OSError):
                raise result
            return result

    with near, far:
        assert list(accepted(Listener(), lambda: not results)) == [(near, "10.0.0.7")]  # type: ignore[arg-type]
    assert [record.message.rpartition(": ")[2] for record in caplog.records] == [
        f"[Errno {errno.EMFILE}] Too many open files",
        f"[Errno {errno.ECONNABORTED}] aborted",
    ]


# Hosts that are refused, while one that is there stays.


@contextmanager
def joined(path: Path) -> Iterator[Hosts]:
    """Return hosts with one that has joined as "sat-0"; it is there all the time."""
    with Hosts(credentials=path) as hosts:
        agent = NodeAgent(hosts.address, "sat-0", path)
        thread = threading.Thread(target=agent.run)
        thread.start()
        try:
            hosts.wait_for(["sat-0"], WAIT_S)
            before = hosts.host("sat-0")
            yield hosts
            assert hosts.host("sat-0") is before
        finally:
            agent.stop()
            thread.join(WAIT_S)
        assert not thread.is_alive()


def test_a_foreign_host_is_refused_and_logged(path: Path, foreign: Path, caplog: pytest.LogCaptureFixture) -> None:
    with joined(path) as hosts:
        with pytest.raises(RefusedError, match="other credentials"):
            NodeAgent(hosts.address, "sat-1", foreign).run()
        wait_until(lambda: "a connection from 127.0.0.1 is refused: the other end has other credentials" in caplog.text)
        assert [host.node for host in hosts.nodes] == ["sat-0"]


def test_a_host_does_not_follow_a_foreign_coordinator(path: Path, foreign: Path) -> None:
    with Hosts(credentials=foreign) as hosts, pytest.raises(RefusedError, match="other credentials"):
        NodeAgent(hosts.address, "sat-1", path).run()


def test_a_host_that_has_joined_is_not_ended_by_a_foreign_coordinator(
    path: Path, foreign: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Hosts(credentials=path) as hosts:
        agent = NodeAgent(hosts.address, "sat-1", path)
        running = threading.Thread(target=agent.run)
        running.start()
        hosts.wait_for(["sat-1"], WAIT_S)
        address = hosts.address
    with Hosts(address, credentials=foreign):
        wait_until(lambda: "node sat-1 does not reach the coordinator" in caplog.text)
        wait_until(lambda: "the other end has other credentials" in caplog.text)
    with Hosts(address, credentials=path) as hosts:
        hosts.wait_for(["sat-1"], WAIT_S)
        agent.stop()
        running.join(WAIT_S)
    assert not running.is_alive()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (10, "the credentials are not valid by this machine's clock: certificate has expired"),
        (18, "the other end has other credentials: self-signed certificate"),
    ],
)
def test_a_clock_that_is_wrong_is_not_called_other_credentials(code: int, expected: str) -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, expected.partition(": ")[2]
    assert tls_channel._refusal(error) == expected


def test_what_speaks_no_tls_is_refused(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with joined(path) as hosts:
        for said in (b"GET / HTTP/1.1\r\n\r\n", b'{"join": "sat-1"}', os.urandom(500)):
            with socket.create_connection(host_and_port(hosts.address)) as connection:
                connection.sendall(said)
                with suppress(ConnectionResetError):
                    while connection.recv(100):
                        pass
        wait_until(
            lambda: caplog.text.count("a connection from 127.0.0.1 is refused: TLS with the other end fails") == 3
        )
        assert "other credentials" not in caplog.text


def test_a_join_that_was_recorded_cannot_be_replayed(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with joined(path) as hosts, socket.create_server(("127.0.0.1", 0)) as proxy:
        recorded = bytearray()

        def record() -> None:
            near, _ = proxy.accept()
            with near, socket.create_connection(host_and_port(hosts.address)) as far:
                back = threading.Thread(
                    target=lambda: [near.sendall(data) for data in iter(lambda: far.recv(9999), b"")]
                )
                back.start()
                while data := near.recv(9999):
                    recorded.extend(data)
                    far.sendall(data)
                far.shutdown(socket.SHUT_WR)
                back.join(WAIT_S)

        recording = threading.Thread(target=record)
        recording.start()
        channel = TlsChannel.connect(f"127.0.0.1:{proxy.getsockname()[1]}", Credentials(path))
        join = {"join": "sat-1", "protocol": PROTOCOL, "clock": "", "cores": 1, "memory_bytes": 1}
        channel.send(join)
        assert "welcome" in (channel.receive(WAIT_S) or {})
        channel.release()
        recording.join(WAIT_S)
        wait_until(lambda: [host.node for host in hosts.nodes] == ["sat-0"])
        assert b"sat-1" not in recorded  # it is encrypted
        caplog.clear()
        with (
            socket.create_connection(host_and_port(hosts.address)) as connection,
            suppress(ConnectionResetError, BrokenPipeError),  # it may have refused the first of it
        ):
            connection.sendall(recorded)
            while connection.recv(9999):
                pass
        wait_until(lambda: "a connection from 127.0.0.1 is refused" in caplog.text)
        assert [host.node for host in hosts.nodes] == ["sat-0"]


def test_a_name_is_taken_once_and_another_version_is_refused(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with joined(path) as hosts:
        for join, is_final, reason in (
            ({"join": "sat-0", "protocol": PROTOCOL}, False, r"node 'sat-0' has a host, 127.0.0.1"),
            (
                {"join": "sat-1", "protocol": 0},
                True,
                f"it speaks protocol 0, this coordinator {PROTOCOL}: use one version",
            ),
        ):
            channel = TlsChannel.connect(hosts.address, Credentials(path))
            channel.send({**join, "clock": "", "cores": 1, "memory_bytes": 1})
            assert channel.receive(WAIT_S) == {"refused": reason, "is_final": is_final}
            channel.release()
            assert reason in caplog.text
        # A later version may say other things.
        channel = TlsChannel.connect(hosts.address, Credentials(path))
        channel.send({"join": "sat-1", "protocol": PROTOCOL + 1})
        assert (channel.receive(WAIT_S) or {}).get("is_final")
        channel.release()
        # And one that says nothing.
        TlsChannel.connect(hosts.address, Credentials(path)).release()
        wait_until(lambda: "is refused: it went away before it said what it is for" in caplog.text)
        assert "KeyError" not in caplog.text


@pytest.mark.parametrize("nonsense", [{"started": 7}, {"ended": 7}, {"ended": "x"}, {"started": 7, "pid": None}])
def test_a_host_that_reports_nonsense_is_dropped(
    path: Path, nonsense: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with joined(path) as hosts:
        channel = TlsChannel.connect(hosts.address, Credentials(path))
        channel.send({"join": "sat-1", "protocol": PROTOCOL, "clock": "", "cores": 1, "memory_bytes": 1})
        assert "welcome" in (channel.receive(WAIT_S) or {})
        channel.send(nonsense)
        wait_until(lambda: hosts.absent(["sat-1"]))
        wait_until(lambda: "its host broke the protocol" in caplog.text)
        channel.release()


def test_an_agent_that_is_stopped_while_it_connects_ends(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: `stop` found no channel to close, and the agent joined and stayed."""
    connect = TlsChannel.connect

    def stopped(address: str, credentials: Credentials) -> TlsChannel:
        channel = connect(address, credentials)
        agent.stop()
        return channel

    with Hosts(credentials=path) as hosts:
        agent = NodeAgent(hosts.address, "sat-1", path)
        monkeypatch.setattr(TlsChannel, "connect", stopped)
        running = threading.Thread(target=agent.run, daemon=True)
        running.start()
        running.join(WAIT_S / 4)
        assert not running.is_alive()


def test_a_coordinator_is_lost_that_takes_nothing_any_more(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Regression: while output of a process was sent, which can block for minutes, nobody counted the silence."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        agent = NodeAgent(f"127.0.0.1:{listener.getsockname()[1]}", "sat-1", path)
        running = threading.Thread(target=agent.run, daemon=True)
        running.start()
        server = TlsChannel(listener.accept()[0], Credentials(path).server, is_server=True)
        assert (server.receive(WAIT_S) or {})["join"] == "sat-1"
        server.send({"welcome": PROTOCOL, "silence_s": 1.0})
        wait_until(lambda: agent._has_joined)
        channel = agent._channel
        assert channel is not None
        with suppress(OSError):  # at the end of the channel
            while True:
                channel.send({"output": "x" * 1_000_000})
        wait_until(lambda: "node sat-1 has not heard of the coordinator for 1 s" in caplog.text)
        agent.stop()
        server.release()
    running.join(WAIT_S)
    assert not running.is_alive()


def test_the_ways_to_the_store_end_with_their_host(path: Path) -> None:
    """Regression: those of a host that was cut off stayed for ever."""
    with Hosts(credentials=path) as hosts, socket.create_server(("127.0.0.1", 0)) as store:
        host, port = store.getsockname()
        hosts.reserve(f"{host}:{port}")
        channel = TlsChannel.connect(hosts.address, Credentials(path))
        channel.send({"join": "sat-1", "protocol": PROTOCOL, "clock": "", "cores": 1, "memory_bytes": 1})
        assert "welcome" in (channel.receive(WAIT_S) or {})
        tunnel = TlsChannel.connect(hosts.address, Credentials(path))
        tunnel.send({"store": "sat-1"})
        at_store, _ = store.accept()
        at_store.settimeout(WAIT_S)
        tunnel._send_bytes(b"get")
        assert at_store.recv(9) == b"get"
        hosts.host("sat-1").drop(Loss("hangs", "nothing was heard of it"))
        assert at_store.recv(9) == b""
        wait_until(lambda: hosts.absent(["sat-1"]))
        late = TlsChannel.connect(hosts.address, Credentials(path))
        late.send({"store": "sat-1"})
        assert late._receive_bytes() == b""
        at_store.close()
        for one in (channel, tunnel, late):
            one.release()


def test_a_silence_shorter_than_two_signs_of_life_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match=r"silence_s is 0\.9.*1"):
        Hosts(credentials=path, silence_s=0.9)


@contextmanager
def commanded(path: Path) -> Iterator[RemoteProcess]:
    """Start a process on a host that is an agent of this process; the agent is there all the time."""
    with joined(path) as hosts, open(os.devnull, "wb") as log:
        yield hosts.host("sat-0").start(7, 3, threads=1, secret="s" * 64, log=log)


def test_a_host_that_cannot_start_a_process_says_so_and_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: without room for the output of a process, the agent left."""

    def full() -> IO[bytes]:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(agent_module, "new_log", full)
    with commanded(path) as process:
        assert process.wait(WAIT_S) == 1
        assert process.loss is None


def test_the_secret_is_no_argument_of_a_process(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[tuple[str, ...], Mapping[str, str]]] = []

    def start(*arguments: str, log: IO[bytes], environment: Mapping[str, str]) -> WorkerProcess:
        started.append((arguments, environment))
        raise OSError("enough")

    monkeypatch.setattr(agent_module.worker_process, "start", start)
    with commanded(path) as process:
        process.wait(WAIT_S)
    ((arguments, environment),) = started
    assert arguments[1:3] == ("7", "3")
    assert "s" * 64 not in " ".join(arguments)
    assert environment[SECRET_VARIABLE] == "s" * 64


@pytest.mark.parametrize("says_so", [True, False])
def test_once_an_agent_ends_with_its_first_coordinator(path: Path, says_so: bool) -> None:
    """Regression: it waited on where the coordinator was lost, and did not let the host go."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        agent = NodeAgent(f"127.0.0.1:{listener.getsockname()[1]}", "sat-1", path)
        running = threading.Thread(target=agent.run, kwargs={"once": True}, daemon=True)
        running.start()
        for answer in ({"refused": "not yet", "is_final": False}, {"welcome": PROTOCOL, "silence_s": 8.0}):
            server = TlsChannel(listener.accept()[0], Credentials(path).server, is_server=True)
            assert (server.receive(WAIT_S) or {})["join"] == "sat-1"
            server.send(answer)
            if says_so and "welcome" in answer:
                server.send({"leave": True})
            wait_until(lambda answer=answer: agent._has_joined or "refused" in answer)
            server.release()
        running.join(WAIT_S)
        assert not running.is_alive()


def test_the_time_to_end_a_process_begins_with_its_start(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: hosts that still imported libraries, so that they could not kill anything yet, were dropped."""
    monkeypatch.setattr(joined_host_module, "_KILL_S", 0.2)
    with Hosts(credentials=path) as hosts, open(os.devnull, "wb") as log:
        channel = TlsChannel.connect(hosts.address, Credentials(path))
        channel.send({"join": "sat-1", "protocol": PROTOCOL, "clock": "", "cores": 1, "memory_bytes": 1})
        assert "welcome" in (channel.receive(WAIT_S) or {})
        process = hosts.host("sat-1").start(7, 0, threads=1, secret="s", log=log)
        process.kill()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.6)
        assert not hosts.absent(["sat-1"])
        channel.send({"started": 7, "pid": 1})
        assert process.wait(WAIT_S) != 0
        assert process.loss is not None
        assert process.loss.reason == "its host did not end a process within 0.2 s"
        channel.release()


def test_hosts_that_say_nothing_are_lost_on_both_ends(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Hosts(credentials=path, silence_s=1.0) as hosts:
        channel = TlsChannel.connect(hosts.address, Credentials(path))
        channel.send({"join": "sat-1", "protocol": PROTOCOL, "clock": "", "cores": 1, "memory_bytes": 1})
        assert channel.receive(WAIT_S) == {"welcome": PROTOCOL, "silence_s": 1.0}
        wait_until(lambda: hosts.absent(["sat-1"]))
        wait_until(lambda: "nothing was heard of its host for 1 s" in caplog.text)
        channel.release()
    # And the other way round: a coordinator that is silent.
    credentials = Credentials(path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        agent = NodeAgent(f"127.0.0.1:{listener.getsockname()[1]}", "sat-1", path)
        running = threading.Thread(target=agent.run)
        running.start()
        server = TlsChannel(listener.accept()[0], credentials.server, is_server=True)
        assert (server.receive(WAIT_S) or {})["join"] == "sat-1"
        server.send({"welcome": PROTOCOL, "silence_s": 1.0})
        while server.receive(WAIT_S) is not None:
            pass
        assert "node sat-1 has not heard of the coordinator for 1 s" in caplog.text
        server.release()
        again = TlsChannel(listener.accept()[0], credentials.server, is_server=True)
        assert (again.receive(WAIT_S) or {})["join"] == "sat-1"
        again.send({"refused": "no more", "is_final": False})
        agent.stop()
        again.release()
        running.join(WAIT_S)
        assert not running.is_alive()
