"""Guesses of the next tokens over slow links: seconds with and without them, and tokens of each lap.

    python -m benches.studies.prompt_lookup [--model DIR] [--tokens 96] [--rounds 2] [--guesses 8]

Gemma 3 270M in five stages on this machine, one thread each, joined by links of 30 ms each way (a ring of ground
stations and satellites) or of none at all, where compute is what takes the time. Texts go on greedily from CPython's
documentation, from its sources, and from a text with the request to copy it; and, drawn at temperature 1, from the
documentation: text that repeats itself least, as text by people does. Says where a text with guesses is another one
than without. Runs with and without guesses take turns; prints the median of the rounds.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import pydoc_data.topics
import statistics
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import orbitsplit as osp
from orbitsplit._models.source import demo_model, load_tokenizer

CUTS, LAYERS = (3, 7, 11, 15), 18
PROMPT_TOKENS = 256
HOPS_S = {"30 ms": 0.03, "0 ms": 0.0}
DRAWN: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "seed": 1}
TOPICS = ("assert", "class", "formatstrings", "import")
COPIED = "Copy the text.\n\nText:\n{text}\n\nCopy:\n"


def main() -> None:
    """Run all texts on both networks, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--guesses", type=int, default=8)
    options = parser.parse_args()
    model = options.model or demo_model()
    tokenizer = load_tokenizer(model)
    print("| hops | text | without, ms a token | with, ms a token | sooner | tokens a lap |")
    print("| --- | --- | --- | --- | --- | --- |")
    for hops, latency_s in HOPS_S.items():
        plan = osp.Plan.manual(CUTS, LAYERS)
        links = tuple(replace(link, latency_s=latency_s) for link in plan.links)
        plan = replace(plan, links=links, return_latency_s=latency_s)
        with osp.Pipeline(plan, model) as pipe:
            for kind, asked, prompts in texts(tokenizer):
                print(f"| {hops} | {kind} | {compared(pipe, prompts, asked, options)} |", flush=True)
    print(f"\nload {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def texts(tokenizer: Any) -> Iterator[tuple[str, dict[str, Any], list[Tensor]]]:
    """Yield kinds of text, how their tokens are chosen, and prompts [1, S]."""

    def ids(text: str, tokens: int = PROMPT_TOKENS) -> Tensor:
        found: Tensor = tokenizer(text, return_tensors="pt").input_ids[:, :tokens]
        return found

    topics = [ids(pydoc_data.topics.topics[topic]) for topic in TOPICS]
    yield "documentation", {}, topics
    yield "code", {}, [ids(inspect.getsource(module)) for module in (json, textwrap, statistics)]
    some = [tokenizer.decode(topic[0, 1:97], skip_special_tokens=True) for topic in topics]
    yield "copies", {}, [ids(COPIED.format(text=text)) for text in some]
    yield "drawn documentation", DRAWN, topics


def compared(pipe: osp.Pipeline, prompts: list[Tensor], asked: dict[str, Any], options: argparse.Namespace) -> str:
    """Return the cells of a row; say where the text with guesses is another one."""
    seconds: dict[int | None, list[float]] = {None: [], options.guesses: []}
    laps = 0
    for prompt in prompts:
        pairs: dict[int | None, list[float]] = {guesses: [] for guesses in seconds}
        for _ in range(options.rounds):
            found = []
            for guesses, each in pairs.items():
                tokens = pipe.generate(
                    prompt,
                    max_new_tokens=options.tokens,
                    eos_token_id=(),
                    prompt_lookup_num_tokens=guesses,
                    **asked,
                )
                assert pipe.last_run is not None
                each.append(pipe.last_run.token_step_s)
                found.append(tokens)
            same = (found[0] == found[1]).all(dim=0).tolist()
            if not all(same):
                print(f"other text from token {same.index(False)} on", file=sys.stderr, flush=True)
        for guesses, each in pairs.items():
            seconds[guesses].append(statistics.median(each))
        events = pipe.last_run.trace.of("node 0", "compute")
        laps += len({event.step for event in events if event.step > 0})
    without_s, with_s = (statistics.mean(each) for each in seconds.values())
    per_lap = len(prompts) * (options.tokens - 1) / laps
    return f"{1e3 * without_s:.0f} | {1e3 * with_s:.0f} | {without_s / with_s:.2f} | {per_lap:.2f}"


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
