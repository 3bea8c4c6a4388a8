"""Guesses looked up in texts that people wrote, over slow links: seconds with and without them, and tokens of each lap.

    python -m benches.studies.text_by_people [--nodes 5,12] [--hops 30] [--texts 8] [--tokens 128] [--guesses 8]
                                             [--rounds 1]

The longest topics of CPython's documentation and pieces of its sources, in tokens of Gemma 3. Each is said by a model
that is made to say it: a GPT-2 of 12 layers that add nothing, with a position embedding that gives the next token. So
the text is exactly what people wrote, and the nodes take next to no time, as fast ones do beside their links, of `hops`
milliseconds each way in a ring. Prints a row for each text, and the ratio of all seconds.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import os
import pydoc_data.topics
import statistics
import tempfile
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import orbitsplit as osp
from orbitsplit._models.source import demo_model, load_tokenizer

LAYERS, WIDTH, PROMPT_TOKENS = 12, 256, 256


def main() -> None:
    """Run all texts on each ring, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="5,12", help="numbers of stages, separated by commas")
    parser.add_argument("--hops", type=float, default=30.0, help="milliseconds")
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--guesses", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1, help="runs without and with guesses, in turn")
    options = parser.parse_args()
    chosen = texts(load_tokenizer(demo_model()), options.texts, PROMPT_TOKENS + options.tokens)
    print("| nodes | text | without, ms a token | with, ms a token | sooner | tokens a lap |")
    print("| --- | --- | --- | --- | --- | --- |")
    for nodes in map(int, options.nodes.split(",")):
        found = []
        for name, tokens in chosen.items():
            without_s, with_s, laps = run(nodes, tokens, options)
            found.append((without_s, with_s, laps))
            print(f"| {nodes} | {name} | {cells(without_s, with_s, laps, options.tokens)} |", flush=True)
        without_s, with_s, laps = (statistics.mean(column) for column in zip(*found, strict=True))
        print(f"| {nodes} | all | {cells(without_s, with_s, laps, options.tokens)} |", flush=True)
    print(f"\nload {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def cells(without_s: float, with_s: float, laps: float, tokens: int) -> str:
    """Return the figures of a text as cells of a table."""
    steps = tokens - 1
    return f"{1e3 * without_s:.0f} | {1e3 * with_s:.0f} | {without_s / with_s:.2f} | {steps / laps:.2f}"


def texts(tokenizer: Any, count: int, tokens: int) -> dict[str, Tensor]:
    """Return the first tokens [S] of texts, documentation and sources in turn."""
    topics = sorted(pydoc_data.topics.topics.items(), key=lambda item: -len(item[1]))
    sources = [(module.__name__, inspect.getsource(module)) for module in (json, textwrap, statistics, inspect)]
    mixed = [pair for pairs in itertools.zip_longest(topics, sources) for pair in pairs if pair is not None]
    return {name: tokenizer(text, return_tensors="pt").input_ids[0, :tokens] for name, text in mixed[:count]}


def run(nodes: int, tokens: Tensor, options: argparse.Namespace) -> tuple[float, float, float]:
    """Return the median seconds a token without and with guesses, and the laps of the last run with some."""
    plan = osp.Plan.manual([round(LAYERS * k / nodes) for k in range(1, nodes)], LAYERS)
    links = tuple(replace(link, latency_s=options.hops / 1e3) for link in plan.links)
    plan = replace(plan, links=links, return_latency_s=options.hops / 1e3)
    known, rows = torch.unique(tokens, return_inverse=True)
    with tempfile.TemporaryDirectory() as folder:
        saying(rows, len(known)).save_pretrained(folder)
        with osp.Pipeline(plan, Path(folder)) as pipe:
            seconds: tuple[list[float], list[float]] = [], []
            laps = 0
            for has_guesses in options.rounds * (False, True):
                guesses = {"prompt_lookup_num_tokens": options.guesses} if has_guesses else {}
                said = pipe.generate(
                    rows[None, :PROMPT_TOKENS],
                    max_new_tokens=options.tokens,
                    eos_token_id=(),
                    do_sample=False,
                    **guesses,
                )
                assert torch.equal(said[0], rows), "the model says another text"
                assert pipe.last_run is not None
                seconds[has_guesses].append(pipe.last_run.token_step_s)
                events = pipe.last_run.trace.of("node 0", "compute")
                laps = len({event.step for event in events if event.step > 0})
    without_s, with_s = map(statistics.median, seconds)
    return without_s, with_s, laps


def saying(rows: Tensor, vocabulary: int) -> GPT2LMHeadModel:
    """Return a model that goes on from the beginning of a text as it does: the position tells the next token."""
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=len(rows), n_embd=WIDTH, n_layer=LAYERS, n_head=4, eos_token_id=None
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        table = torch.nn.functional.normalize(torch.randn(vocabulary, WIDTH), dim=1)
        model.transformer.wte.weight.copy_(table)
        model.transformer.wpe.weight[:-1] = 4.0 * table[rows[1:]]  # outweighs the token itself
        for layer in model.transformer.h:
            layer.attn.c_proj.weight.zero_()
            layer.mlp.c_proj.weight.zero_()
    return model


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
