"""Decode steps of several sequences in one forward of a stage: how long they take beside a step of one sequence.

    python -m benches.studies.packed_steps MODEL [--layers START STOP] [--past 128] [--rounds 10]

MODEL is a folder with quantised weights, as `orbitsplit convert` writes it. For 1 to 16 sequences of different lengths,
each with a cache of its own, prints the milliseconds of a packed step, of its products with weights alone, of the same
rows as a batch with one cache, and of the sequences one after the other. It is processor time of one thread: the least
of the rounds, in which all take turns. What a packed step gives must be what each sequence gets alone, bit for bit.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from orbitsplit._models.quantized import QuantizedLinear
from orbitsplit._models.stage import StageModel
from orbitsplit._models.weight_products import product

ROWS = (1, 2, 4, 8, 16)


class Steps:
    """Steps of n sequences behind `past` tokens and fewer, in the ways that are compared."""

    def __init__(self, stage: StageModel, rows: int, past: int) -> None:
        self._stage, self._rows = stage, rows
        self._x = example(stage, rows)
        self._lengths = [past - 3 * row for row in range(rows)]
        self._packed, self._alone = ([filled(stage, 1, length) for length in self._lengths] for _ in range(2))
        self._batch, self._past = filled(stage, rows, past), past
        self._linears = [module for module in stage.model.modules() if isinstance(module, QuantizedLinear)]
        self._inputs = {size: torch.randn(rows, size) for size in {linear.in_features for linear in self._linears}}
        self._starts = dict.fromkeys(("packed", "alone", "batch"), 0)

    def packed(self) -> Tensor:
        """Return the packed step's result, [n, V] or [1, n, H]."""
        step = self._next("packed")
        starts = [length + step for length in self._lengths]
        return self._stage.forward_packed(self._x, self._packed, starts, [1] * self._rows, logits_at=range(self._rows))

    def alone(self) -> Tensor:
        """Return the same of forwards of one sequence each."""
        step = self._next("alone")
        outputs = [
            self._stage.forward(self._x[:, row : row + 1], ones(1, self._lengths[row] + step + 1), cache)
            for row, cache in enumerate(self._alone)
        ]
        return torch.cat(outputs, dim=0 if self._stage.is_last else 1)

    def batch(self) -> Tensor:
        """Return the result of a batch whose sequences have one length."""
        x = self._x.transpose(0, 1).contiguous()
        return self._stage.forward(x, ones(self._rows, self._past + self._next("batch") + 1), self._batch)

    def products(self) -> None:
        """Multiply with all weights of the stage."""
        for linear in self._linears:
            product(linear.matrix(), self._inputs[linear.in_features])

    def _next(self, way: str) -> int:
        self._starts[way] += 1
        return self._starts[way] - 1


def ones(rows: int, tokens: int) -> Tensor:
    """Return the mask of sequences without padding."""
    return torch.ones(rows, tokens, dtype=torch.long)


def example(stage: StageModel, tokens: int, rows: int = 1) -> Tensor:
    """Return what a stage receives: token ids, or hidden states."""
    if stage.is_first:
        return torch.randint(1, 1000, (rows, tokens))
    return torch.randn(rows, tokens, stage.hidden_size)


def filled(stage: StageModel, rows: int, tokens: int) -> Cache:
    """Return the cache of sequences of so many tokens, the same ones each time."""
    torch.manual_seed(tokens)
    cache = stage.new_cache()
    stage.forward(example(stage, tokens, rows), ones(rows, tokens), cache)
    return cache


def least_ms(ways: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Return the least processor time of each of the ways, which take turns."""
    least = [float("inf")] * len(ways)
    for _ in range(rounds):
        for k, way in enumerate(ways):
            start = time.thread_time()
            way()
            least[k] = min(least[k], 1e3 * (time.thread_time() - start))
    return least


def main() -> None:
    """Print a row for each number of sequences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--layers", type=int, nargs=2, metavar=("START", "STOP"), help="of a stage; by default all")
    parser.add_argument("--past", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    stage = StageModel.load(options.model, *(options.layers or whole(options.model)))
    assert stage.runs_packs()
    one = Steps(stage, 1, options.past)
    print("rows  packed ms  products ms  batch ms  alone ms  one ms  packed / one")
    for rows in ROWS:
        steps = Steps(stage, rows, options.past)
        assert torch.equal(steps.packed(), steps.alone())
        ways = steps.packed, steps.products, steps.batch, steps.alone, one.alone
        packed, products, batch, alone, of_one = least_ms(ways, options.rounds)
        times = f"{packed:9.2f}  {products:11.2f}  {batch:8.2f}  {alone:8.2f}  {of_one:6.2f}"
        print(f"{rows:4}  {times}  {packed / of_one:12.2f}", flush=True)


def whole(model: Path) -> tuple[int, int]:
    """Return the layers of a stage that has all of a model."""
    return 0, StageModel.load(model, 1, 2).layers


if __name__ == "__main__":
    main()
