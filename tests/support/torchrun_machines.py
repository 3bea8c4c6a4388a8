"""torchrun on one or several "machines", everything that it starts, and what listens where. Linux."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

# Far more than anything here takes.
WAIT_S = 240.0
_POLL_S = 0.05
_LISTENS = "0A"
# Each process of a run has it in its environment, however it was started.
_MARK = "ORBITSPLIT_TEST_RUN"


@dataclass
class Machine:
    """A machine's torchrun: its command and environment, its process and output."""

    command: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, folder: Path, mark: str) -> None:
        """Start it; what it prints goes to files, so that no machine waits for a reader."""
        self._files = folder / "out", folder / "err"
        for file in self._files:
            file.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **self.environment, _MARK: mark}
        with self._files[0].open("wb") as out, self._files[1].open("wb") as err:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, start_new_session=True
            )

    @property
    def out(self) -> str:
        return self._files[0].read_text()

    @property
    def err(self) -> str:
        return self._files[1].read_text()


@dataclass
class Machines:
    """Machines that run one plan together."""

    machines: list[Machine]
    mark: str

    def __getitem__(self, number: int) -> Machine:
        return self.machines[number]

    def wait(self) -> list[int]:
        """Wait until all have ended, and every process with them; return torchrun's exit codes."""
        codes = [machine.process.wait(WAIT_S) for machine in self.machines]
        left = psutil.wait_procs(self.processes(), timeout=60)[1]
        assert left == [], [process.cmdline() for process in left]
        return codes

    def wait_until(self, claim: Callable[[], object]) -> None:
        """Wait until a claim holds, as long as all machines are running."""
        deadline_s = time.monotonic() + WAIT_S
        while not claim():
            for machine in self.machines:
                with suppress(subprocess.TimeoutExpired):
                    raise AssertionError(f"ended with {machine.process.wait(_POLL_S)}: {machine.out}{machine.err}")
            assert time.monotonic() < deadline_s

    def processes(self) -> list[psutil.Process]:
        """Return all processes of the run."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.environ().get(_MARK) == self.mark:
                    found.append(process)
        return found

    def ranks(self, rank: int | None = None) -> list[psutil.Process]:
        """Return the processes of a rank, or of all, with those that they started: not torchrun's own."""
        found = []
        for process in self.processes():
            with suppress(psutil.Error, OSError):
                its = process.environ().get("RANK")
                if its is not None and rank in (None, int(its)):
                    found.append(process)
        return found


@contextmanager
def running(folder: Path, machines: Sequence[Machine]) -> Iterator[Machines]:
    """Start machines, and kill what is left of them at the end."""
    together = Machines(list(machines), uuid.uuid4().hex)
    try:
        for number, machine in enumerate(machines):
            machine.start(folder / str(number), together.mark)
        yield together
    finally:
        for process in together.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for machine in machines:
            if hasattr(machine, "process"):
                machine.process.wait(WAIT_S)


def torchrun(launcher: Sequence[str], plan: Path, *options: str) -> list[str]:
    """Return the command that runs a plan."""
    return [sys.executable, "-m", "torch.distributed.run", *launcher, "-m", "orbitsplit", "run", str(plan), *options]


def listening(process: psutil.Process) -> set[str]:
    """Return the addresses that a process accepts connections at (over TCP); empty if it has ended."""
    folder, found = Path(f"/proc/{process.pid}"), set()
    with suppress(OSError):
        # Symbolic links such as "socket:[4711]".
        own = {os.readlink(descriptor).rpartition("[")[2].rstrip("]") for descriptor in (folder / "fd").iterdir()}
        for table in ("tcp", "tcp6"):
            for line in (folder / "net" / table).read_text().splitlines()[1:]:
                _, local, _, state, *_ = columns = line.split()
                if state == _LISTENS and columns[9] in own:
                    found.add(_address(local.partition(":")[0]))
    return found


def sent_bytes(process: psutil.Process) -> dict[str, int]:
    """Return how many bytes each network interface has sent that a process sees."""
    lines = Path(f"/proc/{process.pid}/net/dev").read_text().splitlines()[2:]
    columns = {line.partition(":")[0].strip(): line.partition(":")[2].split() for line in lines}
    return {name: int(values[8]) for name, values in columns.items()}


def _address(digits: str) -> str:
    """Return an address that the kernel shows as words of four bytes, each in the machine's order."""
    words = [bytes.fromhex(digits[k : k + 8]) for k in range(0, len(digits), 8)]
    packed = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
