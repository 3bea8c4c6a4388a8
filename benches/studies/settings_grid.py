"""Chunks, rows and guesses that a plan chooses, beside the best of a grid of which every setting is run.

    python -m benches.studies.settings_grid [--networks slow,far,fast] [--rounds 1] [--tokens 32]

Four prompts of 256 tokens through a random Llama of 16 equal layers in four processes on this machine, one thread each,
on nodes that are emulated to be slower than it. The grid: prompts as a whole or in chunks of each length that the
profile was measured with; one sequence in each micro-batch with 0 to 7 guesses looked up in the text, two or four
without. The probability that a guess is right is that of the text, which a run without links makes first. For each
network prints every setting with predicted and measured seconds of the whole work, then the plan's own choice beside
the best, both run once more. What a profile measures on a shared machine differs from minute to minute: so it is
measured anew for the settings of each chunk length, and its spread is printed. Errors are those of the profile beside
each run, and of the median of what all these profiles predict.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import orbitsplit as osp
from orbitsplit.runtime._drafts import PromptLookup, right_guesses

from .chunks import LAYERS, LEVEL, NODES, VOCABULARY, equal_layers

SEQUENCES, PROMPT_TOKENS = 4, 256
GUESSES = (1, 3, 7)
ROWS = (2, 4)


@dataclass(frozen=True)
class Network:
    """Four nodes in a chain, all links alike."""

    mbit_per_s: float
    latency_s: float
    slowdown: float

    def built(self) -> osp.Network:
        """Return the network to plan with."""
        return osp.Network(
            name="a chain of four",
            nodes=tuple(osp.Node(name=node, memory_bytes=4_000_000_000, slowdown=self.slowdown) for node in NODES),
            links=tuple(
                osp.Link(a, b, self.mbit_per_s * 1e6 / 8, self.latency_s) for a, b in itertools.permutations(NODES, 2)
            ),
        )


NETWORKS = {
    "slow": Network(mbit_per_s=10, latency_s=0.005, slowdown=4),
    "far": Network(mbit_per_s=50, latency_s=0.03, slowdown=2.5),
    "fast": Network(mbit_per_s=1000, latency_s=0.0005, slowdown=4),
}


@dataclass(frozen=True)
class Setting:
    """A point of the grid."""

    chunk_tokens: int | None
    rows: int
    guesses: int | None

    def __str__(self) -> str:
        return f"{self.chunk_tokens or 'whole'} | {self.rows} | {self.guesses or 0}"


@dataclass(frozen=True)
class Found:
    """A setting with the seconds of the whole work."""

    setting: Setting
    plan: osp.Plan
    measured_s: float
    tokens: Tensor

    @property
    def predicted_s(self) -> float:
        """The prediction of the plan."""
        return _predicted_s(self.plan)

    @property
    def cuts(self) -> tuple[int, ...]:
        """The ends of the stages."""
        return tuple(stage.stop for stage in self.plan.stages)

    @property
    def error(self) -> float:
        """How much longer it took than predicted, as a share."""
        return self.measured_s / self.predicted_s - 1


def main() -> None:
    """Run the grid on each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = equal_layers(Path(folder))
        prompts = torch.randint(3, VOCABULARY, (SEQUENCES, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))
        acceptance = measured_acceptance(model, prompts, options.tokens)
        print(f"acceptance of guesses: {acceptance:.2f}; times: predicted / measured seconds of the whole work")
        workload = osp.Workload(
            micro_batches=SEQUENCES,
            prompt_tokens=PROMPT_TOKENS,
            new_tokens=options.tokens,
            acceptance=round(acceptance, 3),
        )
        for name in options.networks.split(","):
            study(name, model, workload, prompts, options.rounds)
    print(f"\nload {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def study(name: str, model: Path, workload: osp.Workload, prompts: Tensor, rounds: int) -> None:
    """Print the table of a network and what the plan chooses."""
    network = NETWORKS[name].built()
    print(f"\n{name}: {NETWORKS[name]}\n")
    print("| chunks of | rows | guesses | predicted, s | measured, s | error |")
    print("| --- | --- | --- | --- | --- | --- |")
    profiles = [osp.profile(model, prompt_tokens=PROMPT_TOKENS, measure=True)]
    found: list[Found] = []
    for chunk_tokens in (None, *(chunk.tokens for chunk in reversed(profiles[0].chunks))):
        if chunk_tokens is not None:
            profiles.append(osp.profile(model, prompt_tokens=PROMPT_TOKENS, measure=True))
        for setting in settings(chunk_tokens):
            one = run(setting, model, planned(profiles[-1], network, workload, setting), prompts, rounds)
            found.append(one)
            same_cuts = next(other for other in found if other.cuts == one.cuts)  # cuts round activations
            assert torch.equal(one.tokens, same_cuts.tokens), f"{setting} gives other tokens than {same_cuts.setting}"
            print(f"| {setting} | {one.predicted_s:.2f} | {one.measured_s:.2f} | {one.error:+.1%} |", flush=True)
    steps_ms = [1e3 * sum(layer.decode_s or 0.0 for layer in profile.layers) for profile in profiles]
    print(f"\nall layers of a token, by profile: {', '.join(f'{step:.1f}' for step in steps_ms)} ms")
    compare(found, planned(profiles[0], network, workload, None), model, prompts, rounds)
    typical_s = [
        statistics.median(_predicted_s(planned(profile, network, workload, one.setting)) for profile in profiles)
        for one in found
    ]
    print("errors, each by the profile beside it: " + described([one.error for one in found]))
    by_all = [one.measured_s / seconds - 1 for one, seconds in zip(found, typical_s, strict=True)]
    print("errors by the median of all profiles: " + described(by_all))
    print(", ".join(f"{one.setting}: {error:+.1%}" for one, error in zip(found, by_all, strict=True)), flush=True)


def described(errors: Sequence[float]) -> str:
    """Return how large errors are."""
    sizes = sorted(map(abs, errors))
    within = sum(size <= 0.1 for size in sizes)
    return f"median {statistics.median(sizes):.1%}, {within} of {len(sizes)} within 10 %, largest {sizes[-1]:.1%}"


def compare(found: Sequence[Found], chosen: osp.Plan, model: Path, prompts: Tensor, rounds: int) -> None:
    """Run the setting that a plan chose and the best of a grid, one after the other."""
    setting = Setting(chosen.chunk_tokens, chosen.workload.batch_size, chosen.draft_tokens)
    best = min(found, key=lambda one: one.measured_s)
    own_s = run(setting, model, chosen, prompts, rounds).measured_s
    best_s = run(best.setting, model, best.plan, prompts, rounds).measured_s
    print(f"chosen: {setting}: {own_s:.2f} s; best: {best.setting}: {best_s:.2f} s; {own_s / best_s - 1:+.1%}")


def _predicted_s(plan: osp.Plan) -> float:
    assert plan.prediction is not None
    return plan.prediction.total_s


def settings(chunk_tokens: int | None) -> Iterator[Setting]:
    """Yield the settings of the grid with a chunk length."""
    yield Setting(chunk_tokens, 1, None)
    for guesses in GUESSES:
        yield Setting(chunk_tokens, 1, guesses)
    for rows in ROWS:
        yield Setting(chunk_tokens, rows, None)


def planned(
    profile: osp.ModelProfile, network: osp.Network, workload: osp.Workload, setting: Setting | None
) -> osp.Plan:
    """Return the best plan with a setting, or with the best of all."""
    levels = osp.LevelTable(levels=(LEVEL,), loss=((0.0,),) * (len(profile.layers) - 1))
    pins: dict[str, Sequence[str | int]] = {node: [] for node in NODES}
    chosen: dict[str, Any] = {"chunk_tokens": "auto", "rows": "auto", "draft_tokens": "auto"}
    if setting is not None:
        chosen = {"chunk_tokens": setting.chunk_tokens, "rows": setting.rows, "draft_tokens": setting.guesses}
    return osp.plan(profile, network, workload, levels=levels, pins=pins, order="fixed", **chosen)


def run(setting: Setting, model: Path, plan: osp.Plan, prompts: Tensor, rounds: int) -> Found:
    """Run a plan; the time is the median of the rounds."""
    assert plan.prediction is not None
    predicted, seconds = plan.prediction, []
    with osp.Pipeline(plan, model) as pipe:
        pipe.generate(prompts, max_new_tokens=2, eos_token_id=(), do_sample=False)  # warms up
        for _ in range(rounds):
            tokens = pipe.generate(prompts, max_new_tokens=plan.workload.new_tokens, eos_token_id=(), do_sample=False)
            assert pipe.last_run is not None
            seconds.append(pipe.last_run.total_s)
            parts = (predicted.prefill_s, predicted.decode_s, pipe.last_run.prefill_s, pipe.last_run.decode_s)
            print(setting, "predicted {:.2f} + {:.2f} s, measured {:.2f} + {:.2f} s".format(*parts), file=sys.stderr)
    return Found(setting, plan, statistics.median(seconds), tokens)


def measured_acceptance(model: Path, prompts: Tensor, tokens: int) -> float:
    """Return the probability that gives as many laps with all numbers of guesses as the text has.

    Runs are no measure of it: they send fewer guesses where these do not pay, which depends on how long laps take.
    """
    with osp.Pipeline(osp.Plan.manual((), LAYERS), model) as pipe:
        texts = pipe.generate(prompts, max_new_tokens=tokens, eos_token_id=(), do_sample=False).tolist()
    laps = sum(laps_of(text, guesses) for text in texts for guesses in GUESSES)
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        expected = sum(SEQUENCES * (tokens - 1) / sum(middle**k for k in range(guesses + 1)) for guesses in GUESSES)
        low, high = (middle, high) if expected > laps else (low, middle)
    return low


def laps_of(text: Sequence[int], guesses: int) -> int:
    """Return in how many laps the new tokens of a text but the first come, with guesses looked up in it."""
    here, laps = PROMPT_TOKENS + 1, 0
    drafts = PromptLookup(text[:here])
    while here < len(text):
        stop = here + 1 + right_guesses(drafts.guess(min(guesses, len(text) - here - 1)), text[here:])
        for token in text[here:stop]:
            drafts.append(token)
        here, laps = stop, laps + 1
    return laps


if __name__ == "__main__":
    main()
