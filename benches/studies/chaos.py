"""Break running pipelines at random, and see that every one ends with the undisturbed text or a clear error.

    python -m benches.studies.chaos [--runs 50] [--gemma 5] [--seed 0]   50 runs: 45 of a tiny model, 5 of Gemma 3 270M

A run generates with a pipeline of three or four nodes out of five while one or two of these happen at a random moment:
a process is killed (SIGKILL), a process hangs (SIGSTOP), a link delivers nothing any more, bits of frames are flipped.
The pipeline plans again on what is left (`osp.replanner`), which is always possible; one run in six has no other plan,
and may end with an error that names what was lost and has the right tokens so far. Prints a table, and exits with 1 if
a run ended otherwise, took too long, or left a process behind.
"""

from __future__ import annotations

import argparse
import faulthandler
import statistics
import sys

from orbitsplit._models.source import demo_model
from tests.support.chaos import HARD_LIMIT_S, Outcome, is_fine, run_once, subject, tiny_model


def show(outcomes: list[Outcome]) -> None:
    """Print what happened, by model and fault."""
    print("| model: faults | runs | same text | clear error | recoveries | beyond loading: median, worst | longest |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    rows: dict[str, list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda one: (one.model, not one.has_other_plans, len(one.faults))):
        without = "" if outcome.has_other_plans else ", no other plan"
        rows.setdefault(f"{outcome.model}: {' and '.join(sorted(outcome.faults))}{without}", []).append(outcome)
    for name, own in {**rows, "all": outcomes}.items():
        recovered = [seconds for outcome in own for seconds in outcome.recovery_s]
        seconds = f"{statistics.median(recovered):.1f} s, {max(recovered):.1f} s" if recovered else "-"
        texts = [outcome.text for outcome in own]
        print(
            f"| {name} | {len(own)} | {texts.count('same')} | {texts.count('error')} | {len(recovered)} "
            f"| {seconds} | {max(outcome.seconds for outcome in own):.1f} s |"
        )


def main() -> None:
    """Do the runs and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50, help="how many, those on Gemma included")
    parser.add_argument("--gemma", type=int, default=5, help="how many of them on Gemma 3 270M")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    outcomes: list[Outcome] = []
    with tiny_model() as tiny:
        on_tiny = asked.runs - asked.gemma
        subjects = [subject("tiny", tiny, 600)] * on_tiny
        if asked.gemma:
            subjects += [subject("Gemma", demo_model(), 48)] * asked.gemma
        for number, what in enumerate(subjects):
            faulthandler.dump_traceback_later(HARD_LIMIT_S, exit=True)
            outcomes.append(run_once(what, asked.seed + number))
            faulthandler.cancel_dump_traceback_later()
            print(f"{number + 1:3} of {len(subjects)}: {outcomes[-1]}", file=sys.stderr, flush=True)
    show(outcomes)
    wrong = [outcome for outcome in outcomes if not is_fine(outcome)]
    if wrong:
        sys.exit("\n".join(["these runs did not end as they must:", *map(str, wrong)]))


if __name__ == "__main__":
    main()
