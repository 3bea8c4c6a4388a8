"""Processes of our own: the workers of a pipeline and what forks them, the converter of a GGUF file.

`start` starts one and `run` is its entry point. Each imports this very package, and ends when its parent has ended.
"""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import IO

from orbitsplit._io.garbage import no_collections

from . import lazy_imports

# With -c, as with -m, the current directory comes first on the path (as ""), where a file called torch.py would win.
# Python has a switch against that from 3.11 on only.
_PROGRAM = "import sys; sys.path[:] = filter(None, sys.path); from orbitsplit._models.child_process import run; run()"


def start(
    module: str,
    *arguments: str,
    stdout: int | IO[bytes],
    stderr: int | IO[bytes],
    environment: Mapping[str, str] | None = None,
    stdin: int | socket.socket = subprocess.PIPE,
) -> subprocess.Popen[bytes]:
    """Start a process that calls `main(*arguments)` of a module of this package.

    Its standard input is a pipe to which nothing is written; the process ends when the pipe is closed, by the parent or
    by the parent's end. With a socket instead, `main` reads from that, and has to return when it is closed.
    """
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, module, *arguments],
        stdin=stdin.fileno() if isinstance(stdin, socket.socket) else stdin,
        stdout=stdout,
        stderr=stderr,
        env={**_environment(), **(environment or {})},
        # A session of its own: Ctrl-C at the terminal is for the parent, which then ends its children.
        start_new_session=True,
    )


def run() -> None:
    """Call the module named on the command line, in a process that `start` started."""
    if not stat.S_ISSOCK(os.fstat(0).st_mode):
        exit_with_parent()
    lazy_imports.install()
    _, name, *arguments = sys.argv
    with no_collections():
        module = import_module(name)
    module.main(*arguments)


def exit_with_parent() -> None:
    """Start a thread that ends this process when its standard input, a pipe, is closed."""
    threading.Thread(target=_wait_for_parent, name="parent guard", daemon=True).start()


def _wait_for_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def _environment() -> dict[str, str]:
    # This very package, however the parent came to import it. An empty entry would mean the current directory.
    path = [str(Path(__file__).resolve().parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "PYTHONFAULTHANDLER": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
