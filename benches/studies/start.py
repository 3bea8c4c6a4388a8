"""How long does `orbitsplit run` take from the command to the first token, and what does an interpreter hold?

    python -m benches.studies.start [--runs 3] [--model DIRECTORY] [--cold]

Gemma 3 270M in int8, in four stages on this machine, one thread each, for one new token. `--model` is a directory of it
that `orbitsplit convert` has written; without one it is converted for the study. With `--cold`, which needs root, files
are read from the disk: the system forgets them before each run.

Wall and processor time of the command with all its processes; and of each worker what is resident before it loads a
stage, as `Run.stages` has it, and while the pipeline waits: resident, its share of what it shares, and its own pages.
Run it on a machine without other work: the wall is what is promised, 12 s on two cores, 20 s cold.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

import orbitsplit as osp
from orbitsplit._models.source import demo_model

CUTS, LAYERS = (5, 10, 15), 18
MOST_WALL_S, MOST_COLD_WALL_S = 12.0, 20.0
MOST_INTERPRETER_BYTES = 250_000_000


class Start(NamedTuple):
    """Seconds from the command to its first output and to its end, and of processors by all its processes."""

    first_token_s: float
    end_s: float
    processor_s: float


def main() -> None:
    """Print the times of each run and the memory of each worker, and exit with 1 if they are more than promised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--cold", action="store_true")
    options = parser.parse_args()
    with _model(options.model) as model, tempfile.TemporaryDirectory() as folder:
        plan = replace(osp.Plan.manual(cuts=CUTS, layers=LAYERS), model=str(model), threads=1)
        plan.save(Path(folder) / "plan.json")
        starts = _time(Path(folder) / "plan.json", options.runs, is_cold=options.cold)
        interpreters = _memory(plan)
    is_late = min(start.first_token_s for start in starts) > (MOST_COLD_WALL_S if options.cold else MOST_WALL_S)
    sys.exit(is_late or max(interpreters) > MOST_INTERPRETER_BYTES)


@contextmanager
def _model(converted: Path | None) -> Iterator[Path]:
    """Yield a directory of Gemma 3 270M in int8."""
    if converted is not None:
        yield converted
        return
    with tempfile.TemporaryDirectory() as folder:
        yield osp.convert(demo_model(), Path(folder) / "gemma-int8", weights="int8")


def _time(plan: Path, runs: int, *, is_cold: bool) -> list[Start]:
    """Print and return the times of some runs of a plan."""
    print("| run | first token | end | processor time |")
    print("| --- | --- | --- | --- |")
    starts = []
    for number in range(runs):
        if is_cold:
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")
        start = _start(plan)
        starts.append(start)
        print(f"| {number + 1} | " + " | ".join(f"{seconds:.1f} s" for seconds in start) + " |", flush=True)
    return starts


def _start(plan: Path) -> Start:
    command = [sys.executable, "-m", "orbitsplit", "run", str(plan), "--prompt", "The satellite", "--new-tokens", "1"]
    # The command waits for the server that forks its workers, and that for them: all of them count.
    before_s, started_s = _children_s(), time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        text = process.stdout.readline()
        first_token_s = time.monotonic() - started_s
        process.stdout.read()
    assert process.returncode == 0, f"exit code {process.returncode} after {text!r}"
    return Start(first_token_s, time.monotonic() - started_s, _children_s() - before_s)


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _memory(plan: osp.Plan) -> list[int]:
    """Print what each worker holds, and return the bytes of each one's interpreter with what it has imported."""
    with osp.Pipeline(plan) as pipe:
        pipe.generate(torch.tensor([[2, 818, 13404]]), max_new_tokens=1, eos_token_id=(), do_sample=False)
        run, pages = pipe.last_run, [_pages(pid) for pid in pipe.pids]
    assert run is not None
    print("\n| stage | interpreter | peak | resident | share | own |")
    print("| --- | --- | --- | --- | --- | --- |")
    for stage, sizes in zip(run.stages, pages, strict=True):
        cells = (stage.baseline_bytes, stage.peak_bytes, *sizes)
        print(f"| {stage.node} | " + " | ".join(f"{size / 1e6:.0f} MB" for size in cells) + " |")
    return [stage.baseline_bytes for stage in run.stages]


def _pages(pid: int) -> tuple[int, int, int]:
    """Return the resident bytes of a process, its share of them, and those that no other process has."""
    sizes = {"Rss": 0, "Pss": 0, "Private_Clean": 0, "Private_Dirty": 0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        key, _, rest = line.partition(":")
        if key in sizes:
            sizes[key] = int(rest.split()[0]) * 1024
    return sizes["Rss"], sizes["Pss"], sizes["Private_Clean"] + sizes["Private_Dirty"]


if __name__ == "__main__":
    main()
