"""Texts with guesses over links and nodes that fail, beside the same texts without guesses and faults.

    python -m benches.studies.guesses_under_faults [--runs 200] [--seed 0]

Each run has a small random model of one of six families in three of five nodes, a greedy text or one drawn with a seed,
and guesses looked up in the text. Links send activations as they are or in int8, and one thing happens, or none: bits
of frames flip, a link delivers nothing any more, or a process is killed. Where links lose nothing the judge is
`generate` of transformers; where they do, it is the pipeline without guesses and faults, and the only fault is flipped
bits, since other cuts lose something else. Prints a table, and exits with 1 if a text is another one.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import sys
import tempfile
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

import orbitsplit as osp
from tests.support.tiny_models import LAYERS, load_unsplit, one_thread, save_tiny_model, tiny_prompts

FAMILIES = ("llama", "gemma3_text", "gpt2", "qwen3", "bloom", "mixtral")
FAULTS = ("none", "flip", "cut", "kill")
NODES = tuple(f"node {k}" for k in range(5))
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 0.3, "top_k": 0, "top_p": 1.0}
PROMPT_TOKENS, NEW_TOKENS, GUESSES, LATENCY_S, LONGEST_S = 18, 120, 6, 0.005, 0.8


@dataclass(frozen=True)
class Subject:
    """A model, the same in one process, and its profile."""

    folder: Path
    whole: PreTrainedModel
    profile: osp.ModelProfile


@dataclass(frozen=True)
class Case:
    """What one run does, by its seed."""

    seed: int
    family: str
    is_drawn: bool
    codec: str | None
    fault: str

    @classmethod
    def of(cls, seed: int) -> Case:
        """Return the case of a seed: all combinations in turn."""
        lossy = seed // 48 % 4 == 3
        return cls(
            seed=seed,
            family=FAMILIES[seed % len(FAMILIES)],
            is_drawn=seed // len(FAMILIES) % 2 == 1,
            codec="int8" if lossy else None,
            fault=("none", "flip")[seed // 12 % 2] if lossy else FAULTS[seed // 12 % len(FAULTS)],
        )

    @property
    def sampling(self) -> dict[str, Any]:
        """How tokens are chosen."""
        return {**SAMPLED, "seed": self.seed} if self.is_drawn else {"do_sample": False}


def main() -> None:
    """Do the runs and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    same: Counter[str] = Counter()
    runs: Counter[str] = Counter()
    recoveries: Counter[str] = Counter()
    laps, other = [], []
    with tempfile.TemporaryDirectory() as folder, one_thread():
        subjects = {family: subject(Path(folder, family), family) for family in FAMILIES}
        for seed in range(options.seed, options.seed + options.runs):
            case = Case.of(seed)
            is_same, recovered, laps_of_run = run_once(subjects[case.family], case)
            name = f"{case.codec or 'lossless'}, {'drawn' if case.is_drawn else 'greedy'}, {case.fault}"
            runs[name] += 1
            same[name] += is_same
            recoveries[name] += recovered
            laps.append(laps_of_run)
            if not is_same:
                other.append(case)
            print(
                f"{seed}: {case}, {'same' if is_same else 'OTHER'}, {recovered} recoveries", file=sys.stderr, flush=True
            )
    print("| links, tokens, fault | runs | same text | recoveries |")
    print("| --- | --- | --- | --- |")
    for name in sorted(runs):
        print(f"| {name} | {runs[name]} | {same[name]} | {recoveries[name]} |")
    print(f"| all | {runs.total()} | {same.total()} | {recoveries.total()} |")
    undisturbed = [count for count in laps if count]
    print(f"\n{(NEW_TOKENS - 1) * len(undisturbed) / sum(undisturbed):.2f} tokens a lap in runs without a recovery")
    if other:
        sys.exit("\n".join(["these texts are other ones:", *map(str, other)]))


def subject(folder: Path, family: str) -> Subject:
    """Save and profile a small model."""
    folder.mkdir()
    save_tiny_model(folder, family)
    profile = osp.profile(folder, prompt_tokens=PROMPT_TOKENS, measure=True)
    return Subject(folder, load_unsplit(folder), profile)


def run_once(what: Subject, case: Case) -> tuple[bool, int, int]:
    """Return whether the text is the same, how many recoveries there were, and the laps of a run without one."""
    source = random.Random(case.seed)
    ids = tiny_prompts((PROMPT_TOKENS // 2,), seed=case.seed)[0]
    prompt = torch.cat([ids, ids], dim=1)
    plan, network = planned(what, case, source)
    asked = {"max_new_tokens": NEW_TOKENS, "eos_token_id": (), "pad_token_id": 0, **case.sampling}
    expected = transformers_text(what.whole, prompt, case) if case.codec is None else None
    if expected is None:
        with osp.Pipeline(plan, what.folder) as undisturbed:
            expected = undisturbed.generate(prompt, **asked)
    with osp.Pipeline(
        plan,
        what.folder,
        conditions=conditions(case, plan, source),
        replan=osp.replanner(what.profile, network),
        heartbeat_timeout_s=4.0,
        stall_timeout_s=3.0,
    ) as pipe:
        timer = killer(pipe, source) if case.fault == "kill" else None
        tokens = pipe.generate(prompt, prompt_lookup_num_tokens=GUESSES, timeout_s=90.0, **asked)
        if timer is not None:
            timer.cancel()
        recovered = len(pipe.recoveries)
        assert pipe.last_run is not None
        events = pipe.last_run.trace.events
        laps = len({event.step for event in events if event.kind == "compute" and event.step > 0})
    return bool(torch.equal(tokens, expected)), recovered, 0 if recovered else laps


def planned(what: Subject, case: Case, source: random.Random) -> tuple[osp.Plan, osp.Network]:
    """Return a plan of three of the nodes by hand, and the network of all, each of which can hold everything."""
    cuts = sorted(source.sample(range(1, LAYERS), 2))
    plan = osp.Plan.manual(cuts, LAYERS, codecs=[case.codec] * 2)
    chosen = source.sample(NODES, 3)
    stages = tuple(replace(stage, node=node) for stage, node in zip(plan.stages, chosen, strict=True))
    links = tuple(replace(link, latency_s=LATENCY_S) for link in plan.links)
    network = osp.Network(
        name="five nodes",
        nodes=tuple(osp.Node(name=name, memory_bytes=2 * 10**9, slowdown=1.0) for name in NODES),
        links=tuple(osp.Link(a, b, 1e8, LATENCY_S) for a, b in itertools.permutations(NODES, 2)),
    )
    workload = osp.Workload(prompt_tokens=PROMPT_TOKENS, new_tokens=NEW_TOKENS)
    return replace(plan, stages=stages, links=links, workload=workload), network


def conditions(case: Case, plan: osp.Plan, source: random.Random) -> osp.LinkConditions | None:
    """Return links one of which is cut for good after a while, or flips bits."""
    text = {"cut": f'down = [["{source.uniform(0.0, LONGEST_S):.2f} s", "forever"]]', "flip": "corrupt = 0.1"}
    if case.fault not in text:
        return None
    a, b = source.choice(list(itertools.pairwise(stage.node for stage in plan.stages)))
    return osp.LinkConditions.from_toml(
        f'seed = {case.seed}\n[[links]]\nfrom = "{a}"\nto = "{b}"\n{text[case.fault]}\n'
    )


def killer(pipe: osp.Pipeline, source: random.Random) -> threading.Timer:
    """Kill one of the processes in a while."""
    rank = source.random()
    pids = pipe.pids

    def strike() -> None:
        with suppress(ProcessLookupError):
            os.kill(pids[int(rank * len(pids))], signal.SIGKILL)

    timer = threading.Timer(source.uniform(0.0, LONGEST_S), strike)
    timer.start()
    return timer


def transformers_text(model: PreTrainedModel, prompt: Tensor, case: Case) -> Tensor:
    """Return what one process generates without guesses."""
    options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "eos_token_id": None, "pad_token_id": 0}
    torch.manual_seed(case.seed)
    options.update(SAMPLED if case.is_drawn else {"do_sample": False})
    tokens: Tensor = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    return tokens


if __name__ == "__main__":
    main()
