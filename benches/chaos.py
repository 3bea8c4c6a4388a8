"""Break running pipelines at random, and see that every one ends with the undisturbed text or a clear error.

    python benches/chaos.py [RUNS] [RUNS_ON_GEMMA] [SEED]     by default 45 on a tiny model, 5 on Gemma 3 270M, seed 0

A run generates with a pipeline of three or four nodes out of five while one or two of these happen at a random moment:
a process is killed (SIGKILL), a process hangs (SIGSTOP), a link delivers nothing any more, bits of frames are flipped.
The pipeline plans again on what is left (`osp.replanner`). Prints a table, and exits with 1 if a run ended with another
text, took too long, or left a process behind.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import psutil
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import orbitsplit as osp
from orbitsplit._model import demo_model

FAULTS = ("kill", "stop", "cut", "flip")
NODES, PROMPT_TOKENS = 5, 8
# A run that is not over by then hangs.
LIMIT_S = 90.0
HEARTBEAT_S, STALL_S = 4.0, 3.0


@dataclass(frozen=True)
class Subject:
    """A model that pipelines run: where it is, its profile, how much is generated, and what comes out undisturbed."""

    model: Path
    profile: osp.ModelProfile
    prompts: torch.Tensor
    new_tokens: int
    expected: torch.Tensor


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `text` is "same", "error" or "other"; recoveries with their seconds beyond loading."""

    faults: tuple[str, ...]
    text: str
    seconds: float
    recovery_s: tuple[float, ...]
    message: str
    left_behind: int


def subject(model: Path, new_tokens: int, *, seed: int = 0) -> Subject:
    """Return a model ready to be run, with the tokens that one process generates."""
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(3, whole.config.get_text_config().vocab_size, (3, PROMPT_TOKENS), generator=generator)
    expected = whole.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    profile = osp.profile(model, prompt_tokens=PROMPT_TOKENS, measure=True)
    return Subject(model, profile, prompts, new_tokens, expected)


@contextmanager
def tiny_model() -> Iterator[Path]:
    """Make a Llama of six layers with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        yield Path(folder)


def run_once(what: Subject, seed: int) -> Outcome:
    """Run one pipeline and break it; the seed says how, where and when."""
    source = random.Random(seed)
    faults = tuple(source.choice(FAULTS) for _ in range(source.choice((1, 1, 1, 2))))
    plan, network = _plan_of(what, source)
    ends = [stage.node for stage in plan.stages]
    links = [f'[[links]]\nfrom = "{a}"\nto = "{b}"\n' for a, b in pairwise(ends)]
    pipe = osp.Pipeline(
        plan,
        what.model,
        conditions=_conditions(faults, links, source),
        replan=osp.replanner(what.profile, network),
        heartbeat_timeout_s=HEARTBEAT_S,
        stall_timeout_s=STALL_S,
    )
    began_s = time.monotonic()
    with pipe:
        children = set(psutil.Process().children(recursive=True))
        timers = [_at_random(source, pipe, fault) for fault in faults if fault in ("kill", "stop")]
        text, message = "same", ""
        try:
            tokens = pipe.generate(
                what.prompts, max_new_tokens=what.new_tokens, eos_token_id=(), pad_token_id=0, timeout_s=LIMIT_S
            )
            text = "same" if torch.equal(tokens, what.expected) else "other"
        except osp.TransportError as error:
            is_clear = error.kind != "timeout" and (error.node is not None or error.link is not None)
            has_tokens = error.tokens is not None and torch.equal(
                error.tokens[0], what.expected[0, : error.tokens.shape[1]]
            )
            text, message = "error" if is_clear and has_tokens else "other", str(error).splitlines()[0]
        seconds = time.monotonic() - began_s
        for timer in timers:
            timer.cancel()
        children |= set(psutil.Process().children(recursive=True))
    _, alive = psutil.wait_procs(children, timeout=10)
    recovery_s = tuple(recovery.seconds - recovery.loading_s for recovery in pipe.recoveries)
    return Outcome(faults, text, seconds, recovery_s, message, len(alive))


def _plan_of(what: Subject, source: random.Random) -> tuple[osp.Plan, osp.Network]:
    """Return a plan of three or four nodes by hand, and the network of all nodes, each of which can hold everything."""
    names = [f"node {k}" for k in range(NODES)]
    bytes_needed = 2 * what.profile.weight_bytes + 10**9
    network = osp.Network(
        name="chaos",
        nodes=tuple(osp.Node(name=name, memory_bytes=bytes_needed, slowdown=1.0) for name in names),
        links=tuple(osp.Link(a, b, 1e9, 0.001) for a in names for b in names if a != b),
    )
    layers = len(what.profile.layers) - 2
    cuts = sorted(source.sample(range(1, layers), source.choice((2, 3))))
    plan = osp.Plan.manual(cuts=cuts, layers=layers)
    chosen = source.sample(names, len(plan.stages))
    stages = tuple(replace(stage, node=node) for stage, node in zip(plan.stages, chosen, strict=True))
    workload = osp.Workload(micro_batches=3, prompt_tokens=PROMPT_TOKENS, new_tokens=what.new_tokens)
    return replace(plan, stages=stages, workload=workload), network


def _conditions(faults: tuple[str, ...], links: list[str], source: random.Random) -> osp.LinkConditions | None:
    """Return links one of which is cut for good after a while, or flips bits."""
    text = ""
    for fault, link in zip(faults, source.sample(links, len(faults)), strict=True):
        if fault == "cut":
            # From when the parent began: by then processes have started, and often work.
            text += f'{link}down = [["{source.uniform(3.0, 14.0):.2f} s", "forever"]]\n'
        elif fault == "flip":
            text += f"{link}corrupt = {source.choice((0.002, 0.02, 0.1))}\n"
    return osp.LinkConditions.from_toml(f"seed = {source.randrange(1 << 30)}\n{text}") if text else None


def _at_random(source: random.Random, pipe: osp.Pipeline, fault: str) -> threading.Timer:
    rank, number = source.random(), signal.SIGKILL if fault == "kill" else signal.SIGSTOP

    def strike() -> None:
        pids = pipe.pids
        with suppress(ProcessLookupError, IndexError):  # it is being replaced, or everything has ended
            os.kill(pids[int(rank * len(pids))], number)

    timer = threading.Timer(source.uniform(0.0, 3.0), strike)
    timer.start()
    return timer


def is_fine(outcome: Outcome) -> bool:
    """Say whether a run ended as it must, and went on within 15 seconds beyond loading."""
    return outcome.text != "other" and outcome.left_behind == 0 and max(outcome.recovery_s, default=0.0) < 15.0


def show(outcomes: list[Outcome]) -> None:
    """Print what happened, by fault."""
    print("| faults | runs | same text | clear error | recoveries | beyond loading: median, worst | longest run |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for faults in sorted({outcome.faults for outcome in outcomes}, key=lambda faults: (len(faults), faults)):
        own = [outcome for outcome in outcomes if outcome.faults == faults]
        recovered = [seconds for outcome in own for seconds in outcome.recovery_s]
        seconds = f"{statistics.median(recovered):.1f} s, {max(recovered):.1f} s" if recovered else "-"
        texts = [outcome.text for outcome in own]
        print(
            f"| {', '.join(faults)} | {len(own)} | {texts.count('same')} | {texts.count('error')} | {len(recovered)} "
            f"| {seconds} | {max(outcome.seconds for outcome in own):.1f} s |"
        )


def main(runs: int = 45, runs_on_gemma: int = 5, seed: int = 0) -> None:
    """Do the runs and print what happened."""
    outcomes: list[Outcome] = []
    with tiny_model() as tiny:
        subjects = [subject(tiny, 600)] if runs else []
        if runs_on_gemma:
            subjects.append(subject(demo_model(), 48))
        plans = [(subjects[0], k) for k in range(runs)] + [(subjects[-1], runs + k) for k in range(runs_on_gemma)]
        for number, (what, k) in enumerate(plans):
            outcomes.append(run_once(what, seed + k))
            print(f"{number + 1:3} of {len(plans)}: {outcomes[-1]}", file=sys.stderr, flush=True)
    show(outcomes)
    wrong = [outcome for outcome in outcomes if not is_fine(outcome)]
    if wrong:
        sys.exit("\n".join(["these runs did not end as they must:", *map(str, wrong)]))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
