"""Throughput of `orbitsplit serve` with many clients, beside transformers' continuous batching of the unsplit model.

    python -m benches.studies.serving [--clients 1 8 16 32] [--new-tokens 48] [--int8 DIR] [--rounds 2]

Gemma 3 270M in four stages of one thread on this machine, in float32 and, with `--int8 DIR` (what `orbitsplit convert`
wrote), in int8, asked by so many clients of the `openai` package at once, each once. The peer is `generate_batch` of
transformers with the same prompts in float32, in this process, with as many threads as the machine has processors; it
has no server between. All answer greedily with the same number of tokens, to pieces of Python's documentation. Prints
tokens/s of each, the best of the rounds; only their ratios mean something.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from openai import AsyncOpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import orbitsplit as osp
from orbitsplit._models.source import demo_model, open_model

CUTS, LAYERS = (5, 10, 15), 18
PROMPT_CHARACTERS = 120
WAIT_S = 600.0


def prompts(count: int) -> list[str]:
    """Return pieces of documentation."""
    pages = [text for _, text in sorted(topics.items()) if len(text) > 2 * PROMPT_CHARACTERS]
    return [" ".join(pages[number % len(pages)][:PROMPT_CHARACTERS].split()) for number in range(count)]


@contextmanager
def serving(model: str | Path, packs: int, options: Sequence[str]) -> Iterator[str]:
    """Run `orbitsplit serve` on a plan of four stages; yield the URL."""
    plan = osp.Plan.manual(cuts=CUTS, layers=LAYERS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        replace(plan, model=str(model), workload=osp.Workload(micro_batches=packs)).save(path)
        command = [sys.executable, "-m", "orbitsplit", "serve", path, "--port", "0", *options]
        with (Path(folder) / "log").open("w+") as log:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, text=True)
            try:
                yield _url(Path(folder) / "log", process)
            finally:
                process.terminate()
                process.wait(30)


def _url(log: Path, process: subprocess.Popen[str]) -> str:
    while process.poll() is None:
        for line in log.read_text().splitlines():
            if line.startswith("serving at"):
                return line.split()[-1]
        time.sleep(0.05)
    raise RuntimeError(log.read_text())


def ask(url: str, texts: Sequence[str], new_tokens: int) -> tuple[float, list[str]]:
    """Ask all at once; return tokens/s and the answers."""

    async def all_at_once() -> list[Any]:
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=WAIT_S) as client:
            options: dict[str, Any] = {"model": "model", "max_tokens": new_tokens, "temperature": 0}
            model = (await client.models.list()).data[0].id
            return await asyncio.gather(
                *(client.completions.create(prompt=text, **{**options, "model": model}) for text in texts)
            )

    began_s = time.perf_counter()
    answers = asyncio.run(all_at_once())
    seconds = time.perf_counter() - began_s
    return sum(one.usage.completion_tokens for one in answers) / seconds, [one.choices[0].text for one in answers]


class Peer:
    """transformers' continuous batching in this process."""

    def __init__(self, model: str | Path, new_tokens: int) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)

    def ask(self, texts: Sequence[str]) -> tuple[float, list[str]]:
        """Generate for all at once; return tokens/s and the texts."""
        torch.set_num_threads(os.cpu_count() or 1)
        inputs = [self.tokenizer(text).input_ids for text in texts]
        began_s = time.perf_counter()
        found = self.model.generate_batch(inputs=inputs, generation_config=self.config, progress_bar=False)
        seconds = time.perf_counter() - began_s
        tokens = [one.generated_tokens for one in found.values()]
        return sum(map(len, tokens)) / seconds, [self.tokenizer.decode(one) for one in tokens]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 16, 32])
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--int8", type=Path, help="the folder of the converted model")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--packs", type=int, default=4, help="the micro-batches of the plan: messages in flight")
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    model = open_model(demo_model())
    table: dict[tuple[str, int], float] = {}

    def note(name: str, clients: int, rate: float) -> None:
        table[name, clients] = max(rate, table.get((name, clients), 0.0))

    servers = [("float32", model)] + ([("int8", options.int8)] if options.int8 else [])
    texts: dict[str, list[str]] = {}
    for name, path in servers:
        with serving(path, options.packs, []) as url:
            ask(url, prompts(2), 4)
            for _ in range(options.rounds):
                for clients in options.clients:
                    rate, texts[name] = ask(url, prompts(clients), options.new_tokens)
                    note(name, clients, rate)
    names = [name for name, _ in servers]
    if options.peer:
        peer = Peer(model, options.new_tokens)
        peer.ask(prompts(2))
        for _ in range(options.rounds):
            for clients in options.clients:
                note("transformers", clients, peer.ask(prompts(clients))[0])
        names.append("transformers")
    print(f"| clients | {' | '.join(names)} |\n| --- |{' --- |' * len(names)}")
    for clients in options.clients:
        print(f"| {clients} | {' | '.join(f'{table[name, clients]:.1f}' for name in names)} |")


if __name__ == "__main__":
    main()
