"""Guesses of the next tokens over slow links: seconds with and without them, and tokens of each lap.

    python -m benches.studies.guessed_tokens [--model DIR] [--assistant DIR|int4] [--nodes 5,12] [--hops 30,0]
                                             [--tokens 96] [--texts 4] [--rounds 2] [--guesses 8]

Gemma 3 270M in five stages on this machine, one thread each, joined by links of 30 ms each way (a ring of ground
stations and satellites) or of none at all, where compute is what takes the time. Texts go on greedily from CPython's
documentation, from its sources, and from a text with the request to copy it; and, drawn at temperature 1, from the
documentation: text that repeats itself least. Guesses are looked up in the text, and with `--assistant` made by that
model; `int4` is a copy of the model in 4 bits, as large in layers as the model itself, which shows how often a good
assistant is right, not what a small one takes. Says where a text with guesses is another one than without. Runs with
and without guesses take turns; prints the median of the rounds, and how many of the tokens the assistant says as well,
given those before.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import os
import pydoc_data.topics
import statistics
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import orbitsplit as osp
from orbitsplit._models.source import demo_model, layer_count, load_tokenizer, read_config
from orbitsplit._models.stage import StageModel

PROMPT_TOKENS = 256
DRAWN: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "seed": 1}
TOPICS = ("assert", "class", "formatstrings", "import")
Kind = tuple[str, dict[str, Any], list[Tensor]]  # its name, how tokens are chosen, prompts [1, S]
COPIED = "Copy the text.\n\nText:\n{text}\n\nCopy:\n"


def main() -> None:
    """Run all texts on the networks, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--assistant")
    parser.add_argument("--hops", default="30,0", help="milliseconds, separated by commas")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--texts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--guesses", type=int, default=8)
    parser.add_argument("--nodes", default="5", help="numbers of stages, separated by commas")
    options = parser.parse_args()
    model = options.model or demo_model()
    with tempfile.TemporaryDirectory() as folder:
        if options.assistant == "int4":
            options.assistant = osp.convert(model, Path(folder, "int4"), weights="int4")
        study(model, options)
    print(f"\nload {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def study(model: Path, options: argparse.Namespace) -> None:
    """Print a row for each network, kind of text and kind of guesses."""
    kinds = list(texts(load_tokenizer(model)))
    layers = layer_count(read_config(model))
    reader = None
    if options.assistant is not None:
        reader = StageModel.load(options.assistant, 0, layer_count(read_config(options.assistant)) + 2)
    print("| nodes | hops | text | guesses | without, ms a token | with, ms a token | sooner | tokens a lap |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for nodes, hops_ms in itertools.product(map(int, options.nodes.split(",")), map(float, options.hops.split(","))):
        plan = osp.Plan.manual([round(layers * k / nodes) for k in range(1, nodes)], layers)
        links = tuple(replace(link, latency_s=hops_ms / 1e3) for link in plan.links)
        plan = replace(plan, links=links, return_latency_s=hops_ms / 1e3)
        with osp.Pipeline(plan, model, assistant_model=options.assistant) as pipe:
            for kind, asked, prompts in kinds:
                for cells in compared(pipe, prompts[: options.texts], asked, options, reader):
                    print(f"| {nodes} | {hops_ms:g} ms | {kind} | {cells} |", flush=True)


def texts(tokenizer: Any) -> Iterator[Kind]:
    """Yield kinds of text, how their tokens are chosen, and prompts [1, S]."""

    def ids(text: str) -> Tensor:
        return ids_of(tokenizer, text, PROMPT_TOKENS)

    topics = [ids(pydoc_data.topics.topics[topic]) for topic in TOPICS]
    yield "documentation", {}, topics
    yield "code", {}, [ids(inspect.getsource(module)) for module in (json, textwrap, statistics)]
    some = [tokenizer.decode(topic[0, 1:97], skip_special_tokens=True) for topic in topics]
    yield "copies", {}, [ids(COPIED.format(text=text)) for text in some]
    yield "drawn documentation", DRAWN, topics


def ids_of(tokenizer: Any, text: str, tokens: int) -> Tensor:
    """Return the first tokens of a text, [1, S]."""
    found: Tensor = tokenizer(text, return_tensors="pt").input_ids[:, :tokens]
    return found


def compared(
    pipe: osp.Pipeline,
    prompts: list[Tensor],
    asked: dict[str, Any],
    options: argparse.Namespace,
    reader: StageModel | None,
) -> Iterator[str]:
    """Yield the cells of a row for each kind of guesses; say where a text with guesses is another one."""
    kinds: dict[str, dict[str, Any]] = {"none": {}, "looked up": {"prompt_lookup_num_tokens": options.guesses}}
    if reader is not None:
        kinds["assistant"] = {"num_assistant_tokens": options.guesses}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    laps = dict.fromkeys(kinds, 0)
    shares = []
    for prompt in prompts:
        each: dict[str, list[float]] = {kind: [] for kind in kinds}
        for turn in range(options.rounds):
            found = {}
            for kind, guesses in kinds.items():
                how = {"do_sample": False, **guesses, **asked}
                found[kind] = pipe.generate(prompt, max_new_tokens=options.tokens, eos_token_id=(), **how)
                assert pipe.last_run is not None
                each[kind].append(pipe.last_run.token_step_s)
                if turn == 0:
                    events = pipe.last_run.trace.of("node 0", "compute")
                    laps[kind] += len({event.step for event in events if event.step > 0})
            for kind, tokens in found.items():
                same = (found["none"] == tokens).all(dim=0).tolist()
                if not all(same):
                    print(f"other text from token {same.index(False)} on, {kind}", file=sys.stderr, flush=True)
        for kind, of_rounds in each.items():
            seconds[kind].append(statistics.median(of_rounds))
        if reader is not None:
            shares.append(share_said(reader, found["none"], options.tokens))
    without_s = statistics.mean(seconds.pop("none"))
    for kind, of_prompts in seconds.items():
        with_s, per_lap = statistics.mean(of_prompts), len(prompts) * (options.tokens - 1) / laps[kind]
        name = kind if kind == "looked up" else f"{kind}, {statistics.mean(shares):.0%} of tokens right"
        yield f"{name} | {1e3 * without_s:.0f} | {1e3 * with_s:.0f} | {without_s / with_s:.2f} | {per_lap:.2f}"


def share_said(reader: StageModel, text: Tensor, new_tokens: int) -> float:
    """Return which share of the last tokens of a text [1, S] a model holds for the likeliest, given those before."""
    tokens = text.shape[1] - 1
    mask = torch.ones(1, tokens, dtype=torch.int64)
    logits = reader.forward(text[:, :-1], mask, reader.new_cache(), logits_to_keep=new_tokens)
    return float((logits[0].argmax(dim=-1) == text[0, -new_tokens:]).float().mean())


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
