"""Time to the first token of prompts that begin alike, first and later, with and without kept keys and values.

    python -m benches.studies.prefix_reuse [--model DIR] [--system-tokens 400] [--requests 4] [--rounds 3]

Gemma 3 270M (or `--model`) in four stages of one thread on this machine. Each round asks `--requests` questions one
after the other, which begin with the same piece of Python's documentation, another one in each round. Prints the median
seconds to the first token of the first question and of the later ones, and their ratio, with prompts that share what
was computed and without; the tokens must be equal.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor
from transformers import AutoTokenizer

import orbitsplit as osp
from orbitsplit._models.source import demo_model, open_model

CUTS, LAYERS, NEW_TOKENS, QUESTION_TOKENS = (5, 10, 15), 18, 4, 12


def questions(tokenizer: object, system_tokens: int, requests: int, number: int) -> list[Tensor]:
    """Return prompts [1, S] that share their first `system_tokens` tokens."""
    ids = tokenizer(" ".join(topics[name] for name in sorted(topics))).input_ids  # type: ignore[operator]
    start = 1 + number * (system_tokens + requests * QUESTION_TOKENS)
    system = ids[start : start + system_tokens]
    rest = start + system_tokens
    return [
        torch.tensor([system + ids[rest + k * QUESTION_TOKENS : rest + (k + 1) * QUESTION_TOKENS]])
        for k in range(requests)
    ]


def ask(pipe: osp.Pipeline, prompt: Tensor) -> tuple[float, list[int]]:
    """Return the seconds to the first token, and all tokens."""
    began_s, first_s, tokens = time.perf_counter(), 0.0, []
    for step in pipe.stream(prompt, max_new_tokens=NEW_TOKENS, eos_token_id=(), do_sample=False):
        first_s = first_s or time.perf_counter() - began_s
        tokens.append(int(step))
    return first_s, tokens


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--system-tokens", type=int, default=400)
    parser.add_argument("--requests", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    source = open_model(demo_model())
    model = options.model or source
    tokenizer = AutoTokenizer.from_pretrained(source)
    plan = osp.Plan.manual(cuts=CUTS, layers=LAYERS, chunk_tokens=128)
    texts = []
    print("| kept tokens | first, s | later, s | ratio |\n| --- | --- | --- | --- |")
    for kept in (0, 4096):
        with osp.Pipeline(plan, model, prefix_cache_tokens=kept) as pipe:
            ask(pipe, questions(tokenizer, 30, 1, 40)[0])
            found = [
                [ask(pipe, prompt) for prompt in questions(tokenizer, options.system_tokens, options.requests, number)]
                for number in range(options.rounds)
            ]
        texts.append([tokens for one in found for _, tokens in one])
        first_s = statistics.median(one[0][0] for one in found)
        later_s = statistics.median(seconds for one in found for seconds, _ in one[1:])
        print(f"| {kept} | {first_s:.3f} | {later_s:.3f} | {first_s / later_s:.1f} |")
    assert texts[0] == texts[1], "another text"


if __name__ == "__main__":
    main()
