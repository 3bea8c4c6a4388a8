"""A long run with everything at once: requests of random lengths, cancels, slow readers, lost nodes, flipped bits.

    python -m benches.studies.long_run [--requests 2000] [--at-once 24] [--kills 4] [--seed 0]

A tiny Llama on three of six emulated nodes, whose links flip bits in one message of fifty. Requests are greedy or
sampled, may have guesses, and may begin alike; one in ten is cancelled, one in ten is read slowly; at equal distances a
stage is killed. Every text is compared with that of transformers' generate of the unsplit model (a cancelled one with
its beginning). Where two tokens are so level that rounding decides, another may win: such texts are counted, and each
is checked to differ first at a place where the two tokens' logits lie closer than LEVEL.

Prints what became of the requests; the waits from a request to its first token, and by how many later ones a request
was overtaken; and the resident memory of each process that lived through the second half of the run. Exits with 1 if a
text is wrong, a request is lost, or a process grew by more than GROWTH_BYTES a request.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import orbitsplit as osp

LAYERS, VOCABULARY, LEVEL, GROWTH_BYTES, WAIT_S = 6, 97, 1e-3, 1024, 300.0
NODES = [f"sat-{k}" for k in range(6)]
CONDITIONS = "".join(f'[[links]]\nbetween = ["{a}", "{b}"]\ncorrupt = 0.02\n' for a in NODES for b in NODES if a < b)


@dataclass
class Asked:
    """A request, and what became of it."""

    number: int
    prompt: Tensor
    new_tokens: int
    options: dict[str, Any]
    cancel_after: int | None
    reads_slowly: bool
    began_s: float = 0.0
    first_s: float | None = None
    tokens: list[int] = field(default_factory=list)
    error: BaseException | None = None


def make_requests(count: int, source: random.Random) -> list[Asked]:
    """Return requests of random kinds."""
    shared = [source.randrange(3, VOCABULARY) for _ in range(24)]
    found = []
    for number in range(count):
        own = [source.randrange(3, VOCABULARY) for _ in range(source.randrange(1, 40))]
        prompt = shared + own if source.random() < 0.3 else own
        kind = source.randrange(3)
        options: dict[str, Any] = [
            {"do_sample": False},
            {"do_sample": True, "seed": number, "temperature": 0.7, "top_k": 0},
            {"do_sample": False},
        ][kind]
        if source.random() < 0.2:
            options["prompt_lookup_num_tokens"] = 4
        new_tokens = source.randrange(1, 80)
        cancel = source.randrange(new_tokens) if source.random() < 0.1 else None
        found.append(Asked(number, torch.tensor([prompt]), new_tokens, options, cancel, source.random() < 0.1))
    return found


def save_model(folder: Path) -> LlamaForCausalLM:
    """Save a random Llama whose logits lie far apart, and return it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.25)
    model.save_pretrained(folder)
    return model


class Run:
    """A pipeline under load."""

    def __init__(self, pipe: osp.Pipeline, asked: list[Asked], at_once: int, kills: int, source: random.Random) -> None:
        self._pipe = pipe
        self._asked = asked
        self._turns = threading.Semaphore(at_once)
        self._over = threading.Semaphore(0)
        self._at = {len(asked) * (k + 1) // (kills + 2) for k in range(kills)}
        self._source = source
        self.order: list[int] = []
        self.memory: dict[int, tuple[int, int]] = {}

    def start(self) -> None:
        """Ask everything, and wait for the end of all."""
        for one in self._asked:
            if not self._turns.acquire(timeout=WAIT_S):
                raise SystemExit(f"request {one.number} could not start within {WAIT_S:g} s")
            if one.number in self._at:
                os.kill(self._source.choice(self._pipe.pids), signal.SIGKILL)
            if one.number in (5 * len(self._asked) // 6, len(self._asked) - 1):
                self._note_memory()
            threading.Thread(target=self._ask, args=(one,)).start()
        for one in self._asked:
            if not self._over.acquire(timeout=WAIT_S):
                raise SystemExit(f"request {one.number} or another is lost")

    def _ask(self, one: Asked) -> None:
        one.began_s = time.monotonic()
        try:
            steps = self._pipe.stream(one.prompt, max_new_tokens=one.new_tokens, eos_token_id=(), **one.options)
            for step in steps:
                if one.first_s is None:
                    one.first_s = time.monotonic()
                    self.order.append(one.number)
                one.tokens.append(int(step))
                if one.reads_slowly:
                    time.sleep(0.02)
                if len(one.tokens) == one.cancel_after:
                    steps.close()  # type: ignore[attr-defined]  # a generator
                    break
        except BaseException as error:
            one.error = error
        self._turns.release()
        self._over.release()

    def _note_memory(self) -> None:
        for pid in (os.getpid(), *self._pipe.pids):
            now = psutil.Process(pid).memory_info().rss
            self.memory[pid] = (self.memory.get(pid, (now, 0))[0], now)


def is_right(model: LlamaForCausalLM, one: Asked) -> bool | None:
    """Compare a text with that of the unsplit model; None if rounding decided between two tokens."""
    options = {key: value for key, value in one.options.items() if key not in ("prompt_lookup_num_tokens", "seed")}
    torch.manual_seed(one.options.get("seed", 0))
    expected = model.generate(
        one.prompt,
        attention_mask=torch.ones_like(one.prompt),
        **{"do_sample": False, "max_new_tokens": one.new_tokens, "eos_token_id": None, "pad_token_id": 0, **options},
    )[0, one.prompt.shape[1] :].tolist()
    wanted = expected if one.cancel_after is None else expected[: max(1, one.cancel_after)]
    got = one.tokens if one.cancel_after is None else one.tokens[: max(1, one.cancel_after)]
    if got == wanted:
        return True
    if len(got) != len(wanted) or options.get("do_sample"):
        return False
    place = next(k for k, (a, b) in enumerate(zip(got, wanted, strict=True)) if a != b)
    text = torch.cat([one.prompt, torch.tensor([wanted[:place]], dtype=torch.int64)], dim=1)
    with torch.inference_mode():
        logits = model(text).logits[0, -1]
    return None if abs(float(logits[got[place]] - logits[wanted[place]])) < LEVEL else False


def main() -> None:
    """Run and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--at-once", type=int, default=24)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    source = random.Random(options.seed)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        model = save_model(Path(name))
        asked = make_requests(options.requests, source)
        profile = osp.profile(name, prompt_tokens=64, measure=True)
        network = osp.Network(
            name="all to all",
            nodes=tuple(osp.Node(name=node, memory_bytes=10**9, slowdown=1.0) for node in NODES),
            links=tuple(osp.Link(a, b, 1e9, 0.0005) for a in NODES for b in NODES if a != b),
        )
        workload = osp.Workload(micro_batches=3, prompt_tokens=64, new_tokens=80)
        plan = osp.Plan.manual(cuts=[2, 4], layers=LAYERS, nodes=NODES[:3], chunk_tokens=16)
        plan = replace(plan, model=name, workload=workload)
        with osp.Pipeline(
            plan,
            name,
            conditions=osp.LinkConditions.from_toml(CONDITIONS),
            replan=osp.replanner(profile, network),
            prefix_cache_tokens=1000,
        ) as pipe:
            run = Run(pipe, asked, options.at_once, options.kills, source)
            began_s = time.monotonic()
            run.start()
            seconds = time.monotonic() - began_s
            recoveries = len(pipe.recoveries)
        sys.exit(show(model, asked, run, seconds, recoveries))


def show(model: LlamaForCausalLM, asked: list[Asked], run: Run, seconds: float, recoveries: int) -> int:
    """Print what became of the requests; return 1 if anything is wrong."""
    failed = [one for one in asked if one.error is not None]
    results = [is_right(model, one) for one in asked if one.error is None]
    tokens = sum(len(one.tokens) for one in asked)
    print(
        f"{len(asked)} requests, {tokens} tokens in {seconds:.0f} s ({tokens / seconds:.0f} a second), {recoveries} "
        f"recoveries: {results.count(True)} texts right, {results.count(None)} decided by rounding, "
        f"{results.count(False)} wrong, {len(failed)} errors"
    )
    for one in failed[:3]:
        print(f"request {one.number}: {one.error}")
    waits = sorted(one.first_s - one.began_s for one in asked if one.first_s is not None)
    places = {number: place for place, number in enumerate(run.order)}
    overtaken = max(sum(places[other] < places[one] for other in places if other > one) for one in places)
    print(
        f"wait for the first token: median {statistics.median(waits):.3f} s, 99 % {waits[int(0.99 * len(waits))]:.3f} "
        f"s, worst {waits[-1]:.3f} s; a request was overtaken by at most {overtaken} later ones"
    )
    grown = 0
    for pid, (before, after) in run.memory.items():
        if after != before:
            growth = (after - before) / (len(asked) / 6)
            grown += growth > GROWTH_BYTES
            print(
                f"process {pid}: {before / 1e6:.1f} MB, at the end {after / 1e6:.1f} MB, {growth:+.0f} bytes a request"
            )
    return int(bool(failed) or False in results or grown > 0)


if __name__ == "__main__":
    main()
