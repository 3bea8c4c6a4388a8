"""Break hosts, links and coordinators at random: every run must end with the undisturbed text or a clear error.

    python -m benches.studies.chaos_hosts [--runs 60] [--seed 0]      Linux, root, iproute2

Five hosts are network namespaces of this machine, joined by links of 20 Mbit/s (tbf) and 1 ms; on two of them are
coordinators, the second of which takes over from the first. In each run a plan of four stages generates with a tiny
model, while one or two of these happen at a random moment: a process is killed (SIGKILL), a whole host, or the
coordinator; a process hangs (SIGSTOP); a link delivers nothing any more, hosts are cut off from the others, bits of
frames are flipped; a host joins. A run may end with an error only where no coordinator is with a majority of the hosts.
Prints a table, and exits with 1 if a run ended otherwise, took too long, or left a process behind.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from orbitsplit.runtime._emulation.namespaces import why_unavailable
from tests.support.chaos import subject, tiny_model
from tests.support.chaos_hosts import Outcome, Run, machines


def show(outcomes: list[Outcome]) -> None:
    """Print what happened, by fault."""
    print("| faults | runs | same text | clear error | takeovers | beyond loading: median, worst | longest |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    rows: dict[str, list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda one: (len(one.faults), sorted(one.faults))):
        rows.setdefault(" and ".join(sorted(outcome.faults)), []).append(outcome)
    for name, own in {**rows, "all": outcomes}.items():
        recovered = [seconds for outcome in own for seconds in outcome.recovery_s]
        seconds = f"{statistics.median(recovered):.1f} s, {max(recovered):.1f} s" if recovered else "-"
        texts = [outcome.text for outcome in own]
        print(
            f"| {name} | {len(own)} | {texts.count('same')} | {texts.count('error')} "
            f"| {sum(outcome.takeovers for outcome in own)} | {seconds} "
            f"| {max(outcome.seconds for outcome in own):.1f} s |"
        )


def main() -> None:
    """Do the runs and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--new-tokens", type=int, default=400)
    parser.add_argument("--logs", type=Path, help="folder for the logs of hosts and coordinators")
    asked = parser.parse_args()
    if (reason := why_unavailable()) is not None:
        sys.exit(f"this study needs network namespaces: {reason}")
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as name, tiny_model() as tiny:
        folder = asked.logs or Path(name)
        with machines(folder, subject("tiny", tiny, asked.new_tokens)) as made:
            for number in range(asked.runs):
                outcomes.append(Run(made, number, asked.seed + number).outcome())
                mark = "" if outcomes[-1].is_fine else " WRONG"
                print(f"{number + 1:3} of {asked.runs}{mark}: {outcomes[-1]}", file=sys.stderr, flush=True)
    show(outcomes)
    wrong = [outcome for outcome in outcomes if not outcome.is_fine]
    if wrong:
        sys.exit("\n".join(["these runs did not end as they must:", *map(str, wrong)]))


if __name__ == "__main__":
    main()
