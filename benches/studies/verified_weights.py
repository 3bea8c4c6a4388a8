"""How often a limit of accuracy is kept by verified plans whose stages choose weights and codecs.

    python -m benches.studies.verified_weights [--seeds 20] [--rows 32] [--limit 0.02]

Of each seed there are a random model of six layers, its conversions to 8 and 4 bits, text that it draws itself (for
calibration, for `verify`, and a third part), a codebook, and a network with no room for it in floats. Drops are counted
by a judge: transformers' model with the dequantised weights of the plan's stages. One thread.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from tests.support.verified_weights import LIMIT, ROWS, Outcome, run_once


def line(seed: int, outcome: Outcome) -> str:
    """Return the row of the table for one seed."""
    trials = outcome.verification.trials
    first, last = trials[0], outcome.verification.best
    cells = (
        seed,
        outcome.stages,
        f"{first.measured.drop:.4f}",
        len(trials),
        f"{last.predicted_loss:.3f}",
        f"{last.measured.loss:.3f}",
        f"{outcome.drop:.4f}",
        f"{outcome.drop_elsewhere:.4f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Print a row for each seed, and how many keep the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of text of each kind")
    parser.add_argument("--limit", type=float, default=LIMIT, help="largest drop in accuracy")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| seed | stages | first drop | plans | expected loss | loss | drop | drop on other text |")
    print("| --- |" + " --- |" * 7)
    outcomes = []
    for seed in range(given.seeds):
        with tempfile.TemporaryDirectory() as folder:
            outcomes.append(run_once(seed, Path(folder), rows=given.rows, limit=given.limit))
        print(line(seed, outcomes[-1]), flush=True)
    kept = sum(outcome.drop <= given.limit for outcome in outcomes)
    first = sum(outcome.verification.trials[0].measured.drop <= given.limit for outcome in outcomes)
    elsewhere = sum(outcome.drop_elsewhere <= given.limit for outcome in outcomes)
    said = sum(outcome.verification.is_within for outcome in outcomes)
    accuracy = sum(outcome.verification.best.measured.accuracy for outcome in outcomes) / len(outcomes)
    print(f"\n{kept} of {len(outcomes)} verified plans keep {given.limit:g} by the judge, {said} by `verify`")
    print(f"first plans: {first}; on other text: {elsewhere}; mean accuracy of the models {accuracy:.2f}")


if __name__ == "__main__":
    main()
