"""Worker processes: forked from one server or started, with the same exit codes, output and ways to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest

from orbitsplit.runtime._parent import worker_process
from orbitsplit.runtime._parent.worker_process import ForkServer, WorkerProcess

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are not forked")
NOWHERE = "127.0.0.1:1"
END_S = 60.0  # the import of torch and transformers included, on a busy machine

# In the place of the worker's main: says what it finds, then does what its first argument asks for.
PROBE = """
import json, os, signal, sys, threading
def main(task, *arguments, imported_bytes):
    assert imported_bytes > 1_000_000
    print(json.dumps([os.getcwd(), os.environ.get("PROBE"), os.getsid(0) == os.getpid(), threading.active_count(),
                      list(arguments)]), flush=True)
    if task == "wait":
        signal.pause()
    if task == "raise":
        raise RuntimeError("a fault")
    os._exit(int(task))
"""
SERVER = """
import sys, types
sys.modules["orbitsplit.runtime._worker.process"] = probe = types.ModuleType("probe")
exec({probe!r}, probe.__dict__)
import orbitsplit.runtime._worker as package
package.process = probe
from orbitsplit.runtime._worker import fork_server
fork_server.IDLE_S = {idle}
main = fork_server.main
"""


@pytest.fixture
def log() -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as file:
        yield file


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """A fork server whose workers are probes, for the tests that leave it as it is: to start one takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        made = make_server(tmp_path_factory.mktemp("server"), patch)
    yield made
    assert psutil.Process(made.pid).is_running()


def make_server(folder: Path, monkeypatch: pytest.MonkeyPatch, *, idle_s: float = 3600.0) -> ForkServer:
    (folder / "probing_server.py").write_text(SERVER.format(probe=PROBE, idle=idle_s))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(worker_process, "_SERVER", "probing_server")
    return ForkServer()


def output(log: IO[bytes]) -> str:
    # Without a seek: the worker writes at the place that it has in common with this process.
    return os.pread(log.fileno(), os.fstat(log.fileno()).st_size, 0).decode()


def wait_for_output(process: WorkerProcess, log: IO[bytes]) -> None:
    while not output(log).endswith("]\n"):
        assert process.poll() is None


def test_a_worker_has_its_arguments_environment_directory_and_log(
    server: ForkServer, log: IO[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "a place"
    place.mkdir()
    monkeypatch.chdir(place)
    process = server.start(("0", "one", "two"), log, {"PROBE": "here"})
    assert process.wait(END_S) == 0
    # A session of its own, and the thread that watches the parent besides the main one.
    assert output(log) == f'["{place}", "here", true, 2, ["one", "two"]]\n'
    assert process.pid not in (os.getpid(), server.pid)


@pytest.mark.parametrize(("task", "code"), [("0", 0), ("3", 3), ("raise", 1)])
def test_the_exit_code_is_the_workers(server: ForkServer, log: IO[bytes], task: str, code: int) -> None:
    process = server.start((task,), log, {})
    assert process.wait(END_S) == process.returncode == process.poll() == code
    assert ("RuntimeError: a fault" in output(log)) == (task == "raise")


def test_a_kill_and_a_signal_are_reported(server: ForkServer, log: IO[bytes]) -> None:
    killed, struck = server.start(("wait",), log, {}), server.start(("wait",), log, {})
    killed.kill()
    os.kill(struck.pid, signal.SIGTERM)
    assert (killed.wait(END_S), struck.wait(END_S)) == (-signal.SIGKILL, -signal.SIGTERM)
    killed.kill()  # no effect after the end
    running = server.start(("wait",), log, {})
    with running.stdin, pytest.raises(subprocess.TimeoutExpired):
        running.wait(0.1)


def test_a_worker_ends_when_its_standard_input_closes(server: ForkServer, log: IO[bytes]) -> None:
    process = server.start(("wait",), log, {})
    wait_for_output(process, log)
    process.stdin.close()
    assert process.wait(END_S) == 1


def test_workers_end_with_their_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: IO[bytes]) -> None:
    server = make_server(tmp_path, monkeypatch)
    processes = [server.start(("wait",), log, {}) for _ in range(2)]
    found = [psutil.Process(process.pid) for process in processes]
    os.kill(server.pid, signal.SIGKILL)
    assert [process.wait(END_S) for process in processes] == [-signal.SIGKILL] * 2
    assert psutil.wait_procs(found, timeout=END_S)[1] == []
    assert not server.is_usable()


def test_a_server_that_cannot_start_is_the_end_of_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: IO[bytes]
) -> None:
    (tmp_path / "broken_server.py").write_text("raise ImportError('a broken installation')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(worker_process, "_SERVER", "broken_server")
    process = ForkServer().start(("0",), log, {})
    assert process.wait(60) == 1
    assert process.pid == 0
    assert "a broken installation" in output(log)


def test_an_idle_server_ends_and_takes_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: IO[bytes]
) -> None:
    server = make_server(tmp_path, monkeypatch, idle_s=1.0)
    assert server.start(("0",), log, {}).wait(END_S) == 0
    assert psutil.wait_procs([psutil.Process(server.pid)], timeout=END_S)[1] == []
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        server.start(("0",), log, {})
    assert not server.is_usable()


def test_a_server_is_kept_for_the_next_worker_in_the_same_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: IO[bytes]
) -> None:
    make_server(tmp_path, monkeypatch)
    monkeypatch.setattr(worker_process, "_servers", worker_process._Servers())
    pids, lines = [], []
    for probe, threads in (("1", "1"), ("2", "1"), (None, "1"), (None, "2")):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        monkeypatch.delenv("PROBE", raising=False)
        if probe is not None:
            monkeypatch.setenv("PROBE", probe)
        if probe == "2":  # regression: torch sets it itself, and a second server was started, 8 seconds later
            monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/somewhere")
        assert worker_process.start("0", log=log, environment={}).wait(END_S) == 0
        pids.append(worker_process.server_pid())
        lines.append(json.loads(output(log).splitlines()[-1])[1])
    # What libraries read when they are imported needs another server, other variables do not.
    assert pids[0] == pids[1] == pids[2] != pids[3]
    assert lines == ["1", "2", None, None]


def test_a_server_ends_with_its_interpreter(tmp_path: Path) -> None:
    program = (
        "import tempfile; from orbitsplit.runtime._parent import worker_process\n"
        f"worker_process.start({NOWHERE!r}, '0', '0', log=tempfile.TemporaryFile(), environment={{}})\n"
        "print(worker_process.server_pid(), flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True)
    assert not psutil.pid_exists(int(done.stdout))
    assert done.stderr == ""


def test_where_workers_cannot_be_forked_they_are_started(log: IO[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    process = worker_process.start(NOWHERE, "0", "0", log=log, environment={})
    assert isinstance(process, subprocess.Popen)
    with process:
        process.kill()


def test_a_worker_with_more_variables_than_a_packet_holds_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: IO[bytes]
) -> None:
    """Regression: "Message too long", or a packet that the server read a part of."""
    make_server(tmp_path, monkeypatch)
    monkeypatch.setattr(worker_process, "_servers", worker_process._Servers())
    assert worker_process.start("0", log=log, environment={}).wait(END_S) == 0
    pid = worker_process.server_pid()
    for count in (25, 40):
        large = {f"LARGE_{k}": "x" * 10_000 for k in range(count)}
        process = worker_process.start(NOWHERE, "0", "0", log=log, environment=large)
        assert isinstance(process, subprocess.Popen)
        with process:
            process.kill()
        assert worker_process.start("0", log=log, environment={}).wait(END_S) == 0
        assert worker_process.server_pid() == pid
