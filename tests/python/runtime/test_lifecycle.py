"""A pipeline that nobody closes: its processes and threads end with the last reference to it, or the interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
import torch

import orbitsplit as osp
from orbitsplit.runtime import Pipeline
from tests.support.tiny_models import LAYERS

PLAN = osp.Plan.manual(cuts=[2], layers=LAYERS)
PROMPT = torch.full((1, 3), 5)
WAIT_S = 30.0


def test_a_dropped_pipeline_ends_its_processes_and_threads_with_a_warning(directory: Path) -> None:
    # Its supervisor held it: two workers stayed for as long as the interpreter.
    pipe = Pipeline(PLAN, directory)
    processes = [psutil.Process(pid) for pid in pipe.pids]
    threads = [thread for thread in threading.enumerate() if thread.name in ("supervisor", "listener")]
    assert (len(processes), len(threads)) == (2, 2)
    running = pipe.submit(PROMPT, max_new_tokens=100_000, eos_token_id=())
    with pytest.warns(ResourceWarning, match="a pipeline of 2 processes was dropped without close"):
        del pipe
    assert psutil.wait_procs(processes, timeout=WAIT_S)[1] == []
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()
    with pytest.raises(osp.TransportError, match=r"it was dropped without close\(\)"):
        running.result(WAIT_S)


# Leaves without closing, in the middle of its work; prints the workers' ids.
_LEAVING = """
import sys
from orbitsplit._models import lazy_imports
lazy_imports.install()  # as the command line: half the time
import torch
import orbitsplit as osp
from pathlib import Path
pipe = osp.Pipeline(osp.Plan.manual(cuts=[2], layers=4), Path(sys.argv[1]))
running = pipe.submit(torch.full((1, 3), 5), max_new_tokens=100_000, eos_token_id=())
print(*pipe.pids, flush=True)
"""


def test_an_interpreter_that_ends_without_closing_ends_the_processes(directory: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(osp.__file__).parents[1])}
    command = [sys.executable, "-W", "default::ResourceWarning", "-c", _LEAVING, str(directory)]
    left = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=90)
    assert left.returncode == 0, left.stderr
    pids = [int(pid) for pid in left.stdout.split()]
    assert len(pids) == 2
    # They were waited for: neither alive nor left to somebody else.
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert "ResourceWarning: a pipeline of 2 processes was dropped without close()" in left.stderr
    assert left.stderr.count("Warning") == 1
