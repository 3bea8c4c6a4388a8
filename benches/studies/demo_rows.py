"""Gemma 3 on cubesat_chain with rows that share a forward, beside its four prompts as four groups.

    python -m benches.studies.demo_rows [--rounds 3]

Gemma 3 270M over the four emulated CubeSats of the sample network `cubesat_chain`, four prompts of 128 tokens and 24
new ones. Both are plans of their own, made from one profile: prompts as a whole and one sequence in each group, and
what a plan chooses with `rows="auto"` and `chunk_tokens="auto"`. All cuts have int8, which needs no calibration. Prints
predicted and measured seconds, and new tokens per second, of the round with the median time.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

import orbitsplit as osp
from orbitsplit._cli.demo import Settings
from orbitsplit._models.source import demo_model

# One byte a value, and a float32 scale for each 64 of them.
LEVEL = osp.Level(name="int8", ratio=4 / (1 + 4 / 64))
CHOICES: dict[str, dict[str, Any]] = {
    "four groups of one": {"rows": 1, "chunk_tokens": None, "draft_tokens": None},
    "as planned": {"rows": "auto", "chunk_tokens": "auto", "draft_tokens": None},
}
SETTINGS = Settings(network=osp.Network.sample("cubesat_chain"))


def main() -> None:
    """Profile once, run both plans in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model = demo_model()
    plans = made(osp.profile(model, prompt_tokens=SETTINGS.prompt_tokens, measure=True))
    runs: dict[str, list[osp.Run]] = {name: [] for name in plans}
    for _ in range(options.rounds):
        for name, plan in plans.items():
            runs[name].append(run(plan, model))
        print({name: f"{of[-1].total_s:.2f} s" for name, of in runs.items()}, file=sys.stderr, flush=True)
    medians = {name: sorted(of, key=lambda one: one.total_s)[len(of) // 2] for name, of in runs.items()}
    first = next(iter(medians.values()))
    print("| | groups x rows, chunks | predicted, s | measured, s | new tokens/s | times |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, plan in plans.items():
        median = medians[name]
        assert plan.prediction is not None
        setting = f"{plan.workload.micro_batches} x {plan.workload.batch_size}, {plan.chunk_tokens or 'whole'}"
        print(
            f"| {name} | {setting} | {plan.prediction.total_s:.2f} | {median.total_s:.2f} | {median.tokens_per_s:.2f} "
            f"| {median.tokens_per_s / first.tokens_per_s:.2f} |"
        )


def made(profile: osp.ModelProfile) -> dict[str, osp.Plan]:
    """Return the plan of each choice for the workload on this network."""
    workload = osp.Workload(
        micro_batches=SETTINGS.micro_batches, prompt_tokens=SETTINGS.prompt_tokens, new_tokens=SETTINGS.new_tokens
    )
    levels = osp.LevelTable(levels=(LEVEL,), loss=((0.0,),) * (len(profile.layers) - 1))
    return {
        name: osp.plan(profile, SETTINGS.network, workload, levels=levels, **choice) for name, choice in CHOICES.items()
    }


def run(plan: osp.Plan, model: Any) -> osp.Run:
    """Generate with a plan in processes of its own."""
    torch.manual_seed(0)
    prompts = torch.randint(1000, 20_000, (plan.workload.sequences, SETTINGS.prompt_tokens))
    with osp.Pipeline(plan, model) as pipe:
        pipe.generate(prompts, max_new_tokens=SETTINGS.new_tokens, eos_token_id=(), do_sample=False)
        assert pipe.last_run is not None
        return pipe.last_run


if __name__ == "__main__":
    main()
