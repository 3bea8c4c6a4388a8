"""What a search takes beside `max_bytes`: the tables of the problem and the first bounds."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT

# Measured 49 MB at limits of 1 and 20 MB; at 100 and 300 MB less than the limit is taken.
ON_TOP = 64e6
PROGRAM = """
import sys
import orbitsplit as osp
from orbitsplit.runtime._memory import peak_bytes, resident_bytes
from tests.support.many_nodes import many_nodes_problem

problem = many_nodes_problem()
osp.solve, osp.evaluate
before = resident_bytes()
solution = osp.solve(problem, max_bytes=int(sys.argv[1]), time_limit_s=120)
print(peak_bytes() - before, solution.reason, sep=";")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read as on Linux")
@pytest.mark.timeout(250)
@pytest.mark.parametrize("limit", [1_000_000, 20_000_000, 100_000_000])
def test_a_search_keeps_its_limit_of_memory(limit: int) -> None:
    # 462 MB at a limit of 20 MB.
    command = [sys.executable, "-c", PROGRAM, str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240, cwd=ROOT)
    taken, _, reason = done.stdout.strip().partition(";")
    assert reason == f"the limit of {limit // 1_000_000} MB was reached"
    assert int(taken) <= limit + ON_TOP
