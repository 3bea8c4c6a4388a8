"""What it takes to go on with the same text after a loss, and how often another way would change it.

    python -m benches.studies.text_after_loss [--model tiny gemma] [--texts 12] [--new-tokens 64 256] [--seed 0]

A text is generated without a loss, and again from several places as after one: the tokens so far are known, the caches
are made anew. "replayed" is what a pipeline does: the prompt in one forward and then each known token on its own, as
they were made, so that every key and every logit is what it was. "at once" is one forward of prompt and known tokens.
Prints the seconds until the next token in both ways, and how many of the continued texts differ from the undisturbed
one. Exits with 1 if a replayed one does. One process, one thread, no links: what the stages of a chain compute in turn.
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from orbitsplit._models.source import demo_model, load_tokenizer
from orbitsplit._models.stage import StageModel
from orbitsplit._plans.trace import Recorder
from orbitsplit.runtime._emulation.pace import Pace
from orbitsplit.runtime._messages.groups import Group
from orbitsplit.runtime._worker.computation import Computation
from tests.support import chaos

PLACES = 4  # of each text


@dataclass(frozen=True)
class Continued:
    """One text continued from `known` tokens on: seconds until the first token, and whether it is as undisturbed."""

    known: int
    replayed_s: float
    at_once_s: float
    is_same_replayed: bool
    is_same_at_once: bool


def generated(stage: StageModel, group: Group, x: Tensor, new_tokens: int) -> tuple[Tensor, float]:
    """Return tokens [1, new_tokens] and the seconds until the first of them."""
    computation = Computation("it", stage, Pace(Recorder()), lambda *_: None, lambda _: None)
    computation.begin(group)
    started_s, made = time.process_time(), []
    for step in range(new_tokens):
        made.append(computation.forward(group.id, step, x))
        if step == 0:
            first_s = time.process_time() - started_s
        x = made[-1][:, None]
    return torch.stack(made, dim=1), first_s


def continued(stage: StageModel, prompt: Tensor, new_tokens: int) -> Iterator[Continued]:
    """Generate a text, and continue it from several places in both ways."""
    group = Group(0, 1, prompt.shape[1], None, new_tokens)
    tokens, _ = generated(stage, group, prompt, new_tokens)
    for place in range(1, PLACES + 1):
        known = new_tokens * place // PLACES - (place == PLACES)
        again = group.continued(tokens[:, :known])
        x = torch.cat([prompt, tokens[:, :known]], dim=1)
        replayed, replayed_s = generated(stage, again, x, new_tokens - known)
        at_once, at_once_s = generated(stage, replace(again, replayed=0), x, new_tokens - known)
        expected = tokens[:, known:]
        yield Continued(known, replayed_s, at_once_s, torch.equal(replayed, expected), torch.equal(at_once, expected))


@contextmanager
def opened(name: str, texts: int, seed: int) -> Iterator[tuple[Path, list[Tensor]]]:
    """Open a model and make prompts for it: random tokens, or the beginnings of passages of Python's documentation."""
    if name == "tiny":
        generator = torch.Generator().manual_seed(seed)
        with chaos.tiny_model() as path:
            yield path, [torch.randint(3, 97, (1, chaos.PROMPT_TOKENS), generator=generator) for _ in range(texts)]
        return
    path = demo_model()
    tokenizer = load_tokenizer(path)
    passages = sorted(pydoc_data.topics.topics.values(), key=len, reverse=True)[seed : seed + texts]
    yield path, [tokenizer(text, return_tensors="pt").input_ids[:, :32] for text in passages]


def show(name: str, new_tokens: int, found: list[Continued]) -> None:
    """Print a row for each number of known tokens, and one for all."""
    for known in sorted({one.known for one in found}):
        own = [one for one in found if one.known == known]
        replayed_s, at_once_s = (statistics.median(getattr(one, key) for one in own) for key in _SECONDS)
        print(f"| {name} | {new_tokens} | {known} | {replayed_s:.3f} | {at_once_s:.3f} | {_others(own)} |")


_SECONDS = ("replayed_s", "at_once_s")


def _others(found: list[Continued]) -> str:
    replayed = sum(not one.is_same_replayed for one in found)
    at_once = sum(not one.is_same_at_once for one in found)
    return f"{replayed} of {len(found)} | {at_once} of {len(found)}"


def main() -> None:
    """Continue texts and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=("tiny", "gemma"), default=("tiny", "gemma"))
    parser.add_argument("--texts", type=int, default=12)
    parser.add_argument("--new-tokens", type=int, nargs="+", default=[64])
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | new tokens | known | s replayed | s at once | other texts replayed | at once |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    is_same = True
    for name in asked.model:
        with opened(name, asked.texts, asked.seed) as (path, prompts):
            stage = StageModel.load(path, 0, StageModel.load(path, 0, 1).layers)
            for new_tokens in asked.new_tokens:
                found = [one for prompt in prompts for one in continued(stage, prompt, new_tokens)]
                show(name, new_tokens, found)
                is_same &= all(one.is_same_replayed for one in found)
    if not is_same:
        sys.exit("a replayed text differs")


if __name__ == "__main__":
    main()
