"""What weights in 8 to 4 bits cost Gemma 3 270M on CPython's documentation that was held out, and whether it adds up.

    python -m benches.studies.weight_precision [--quick] [--rows 8] [--mixes 30] [--seed 0] [TABLE ...]

    recipes   perplexity and loss of whole models: rounded, compensated on other topics, and mixes of formats
    matrices  how far weights are from where rounding puts them, by the kind of matrix
    layers    the loss of each layer alone, of the embeddings and of the head
    mixes     random precisions for every layer: the sum of what each loses alone, beside what was measured
    cuts      the same with codecs at up to three cuts in addition

Weights are quantised and dequantised, products are torch's. The compensated models are converted once and kept in
orbitsplit/weights in the XDG cache (about eight minutes each). One thread.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import orbitsplit as osp
from benches.studies.calibrate_gemma import TOKENS, rank_correlation, texts
from orbitsplit._models.compensator import matrix_of
from orbitsplit._models.gguf import cache_root
from orbitsplit._models.quantized import weights_of
from orbitsplit._models.source import demo_model
from orbitsplit.calibration import Reference, held_out
from orbitsplit.calibration._measure import transmit
from orbitsplit.calibration._weight_levels import LayerWeights, Matrices, measure_weights

COMPENSATED = "int4 compensated"
# In 5 bits: what the GGUF file has in five bits or more, but for the table.
_DOWN_IN_INT5 = tuple(f"*.{layer}.mlp.down_proj" for layer in (0, 1, 4, 7, 10, 13, 15, 16, 17))
_IN_INT5 = ("*.[qkv]_proj", "*.gate_proj", "*.up_proj", *_DOWN_IN_INT5)
# Options of `convert` beside the format and the calibration texts, by name.
RECIPES: dict[str, dict[str, Any]] = {
    COMPENSATED: {"int8_rows": 0},
    "int4 compensated, frequent tokens in int8": {},
    "at most 5 bits": {"modules": dict.fromkeys(_IN_INT5, "int5")},
}
FORMATS = ("int8", "int5", "int4")
LEVELS = ("int8", COMPENSATED)
CODECS = ("int8", "int4")
CUTS = (5, 9, 14)


@dataclass(frozen=True)
class Mix:
    """A choice of weights for some layers, and codecs at some cuts."""

    weights: Mapping[int, Matrices]
    codecs: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cost:
    """Mean loss in nats, and the relative rise of the perplexity with its standard error, in percent."""

    loss: float
    rise: float
    rise_error: float


def converted(recipe: str = COMPENSATED) -> Path:
    """Return the folder of a model with compensated errors, which the first call converts."""
    folder = cache_root().parent / "weights" / ("gemma3-270m-" + recipe.replace(",", "").replace(" ", "-"))
    if not folder.is_dir():
        osp.convert(demo_model(), folder, weights="int4", calibration=texts("calibration"), **RECIPES[recipe])
    return folder


class Bench:
    """The float model on held-out text, and its weights at every level, made when they are first needed."""

    def __init__(self, rows: int, positions: int) -> None:
        self.reference: Reference = held_out(
            demo_model(), texts("held-out"), prompt_tokens=TOKENS, samples=rows, positions=positions
        )
        self.weights = LayerWeights(self.reference.hooked, self.reference.batches[0])
        self.layers = len(self.weights.layers)

    @cache  # noqa: B019 - there is one of them
    def level(self, name: str) -> Matrices:
        """Return the weights of all modules in a format or a recipe."""
        return self.weights.matrices(converted(name) if name in RECIPES else name)

    def whole(self, name: str) -> Mix:
        """Return all layers at one level."""
        return Mix(dict.fromkeys(range(self.layers), self.level(name)))

    def perplexity(self) -> float:
        """Return the float model's perplexity."""
        task, batches = self.reference.task, self.reference.batches
        return float(
            torch.cat([task.nll(self.reference.outputs(k), batch) for k, batch in enumerate(batches)]).mean().exp()
        )

    def costs(self, mixes: Sequence[Mix]) -> list[Cost]:
        """Return what mixes cost."""
        found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in mixes]
        task, hooked = self.reference.task, self.reference.hooked
        for index, batch in enumerate(self.reference.batches):
            own = self.reference.outputs(index)
            for mix, values in zip(mixes, found, strict=True):
                at = {cut: lambda x, codec=codec: transmit(x, codec).received for cut, codec in mix.codecs.items()}
                with torch.no_grad(), self.weights.holding(mix.weights):
                    outputs = task.outputs(hooked.run(batch.inputs, at), batch)
                values.append((task.divergence(own, outputs), task.nll(outputs, batch) - task.nll(own, batch)))
        return [self._cost(values) for values in found]

    def _cost(self, values: Sequence[tuple[Tensor, Tensor]]) -> Cost:
        loss, _ = self.reference.with_error([one for one, _ in values])
        increase, error = self.reference.with_error([one for _, one in values])
        return Cost(loss, 100 * float(np.expm1(increase)), 100 * error)


def bits(weights: Matrices) -> float:
    """Return the bits of a weight, of the whole model; a table that two modules share counts once."""
    different = {matrix.data.ctypes.data: matrix for matrix in weights.values()}.values()
    return 8 * sum(one.bytes for one in different) / sum(one.shape[0] * one.shape[1] for one in different)


def show_recipes(bench: Bench) -> None:
    """Print what whole models cost."""
    names = (*FORMATS, *RECIPES)
    found = bench.costs([bench.whole(name) for name in names])
    samples = sum(len(batch.targets) for batch in bench.reference.batches if batch.targets is not None)
    print(f"{samples} predictions, perplexity in float32 {bench.perplexity():.3f}\n")
    print("| weights | bits a weight | perplexity, % | loss, nats |")
    print("| --- | --- | --- | --- |")
    for name, cost in zip(names, found, strict=True):
        print(
            f"| {name} | {bits(bench.level(name)):.2f} | {cost.rise:+.2f} ± {cost.rise_error:.2f} | {cost.loss:.4f} |"
        )


def show_matrices(bench: Bench) -> None:
    """Print relative errors of rounded weights, the median and the range over the layers."""
    print("| matrix | " + " | ".join(f"{name}, %: median (least to most)" for name in FORMATS) + " |")
    print("| --- |" + " --- |" * len(FORMATS))
    found: dict[str, dict[str, list[float]]] = {}
    for name, module, _ in weights_of(bench.reference.hooked.model):
        values = matrix_of(module)
        for level in FORMATS:
            error = (torch.from_numpy(bench.level(level)[name].dequantize()) - values).norm() / values.norm()
            found.setdefault(name.rpartition(".")[2], {}).setdefault(level, []).append(100 * float(error))
    for kind, errors in found.items():
        texts_of = [f"{np.median(errors[f]):.2f} ({min(errors[f]):.2f} to {max(errors[f]):.2f})" for f in FORMATS]
        print(f"| {kind} | " + " | ".join(texts_of) + " |")


@cache
def alone(bench: Bench) -> dict[str, osp.WeightLosses]:
    """Return what every layer loses alone at every level."""
    folders = {name: converted() if name == COMPENSATED else name for name in LEVELS}
    return measure_weights(bench.reference, folders)


def show_layers(bench: Bench) -> None:
    """Print what every layer loses alone at every level."""
    found = alone(bench)
    print("| layer | " + " | ".join(found) + " |")
    print("| --- |" + " --- |" * len(found))
    for layer in range(bench.layers):
        name = {0: "embeddings", bench.layers - 1: "head"}.get(layer, str(layer))
        print(f"| {name} | " + " | ".join(f"{losses.loss[layer]:.5f}" for losses in found.values()) + " |")
    whole = bench.costs([bench.whole(name) for name in found])
    print("| sum | " + " | ".join(f"{sum(losses.loss):.4f}" for losses in found.values()) + " |")
    print("| measured together | " + " | ".join(f"{cost.loss:.4f}" for cost in whole) + " |")


def drawn(bench: Bench, count: int, seed: int, *, most_cuts: int) -> tuple[list[Mix], list[float]]:
    """Return random mixes, and the sums of what their parts lose alone.

    Each has its own shares of float32 and the levels, so that the sums range from little to much.
    """
    source, losses = random.Random(seed), alone(bench)
    codecs = [(cut, codec) for cut in CUTS for codec in CODECS] if most_cuts else []
    of_codec = dict(
        zip(codecs, [cost.loss for cost in bench.costs([Mix({}, {cut: codec}) for cut, codec in codecs])], strict=True)
    )
    mixes, sums = [], []
    for _ in range(count):
        shares = [source.expovariate(1) for _ in range(len(LEVELS) + 1)]
        levels = source.choices((None, *LEVELS), shares, k=bench.layers)
        chosen = {layer: level for layer, level in enumerate(levels) if level is not None}
        at = (
            {cut: source.choice(CODECS) for cut in source.sample(CUTS, source.randint(1, most_cuts))}
            if most_cuts
            else {}
        )
        mixes.append(Mix({layer: bench.level(level) for layer, level in chosen.items()}, at))
        weights = sum(losses[level].loss[layer] for layer, level in chosen.items())
        sums.append(weights + sum(of_codec[pair] for pair in at.items()))
    return mixes, sums


def show_mixes(bench: Bench, count: int, seed: int, *, most_cuts: int = 0) -> None:
    """Print predicted and measured losses of random mixes, and how they agree."""
    mixes, predicted = drawn(bench, count, seed, most_cuts=most_cuts)
    measured = [cost.loss for cost in bench.costs(mixes)]
    print("| sum of single losses | measured | measured / sum |")
    print("| --- | --- | --- |")
    for one, other in sorted(zip(predicted, measured, strict=True)):
        print(f"| {one:.4f} | {other:.4f} | {other / one:.2f} |")
    pearson = float(np.corrcoef(predicted, measured)[0, 1])
    print(f"\n{count} mixes: rank correlation {rank_correlation(predicted, measured):.3f}, Pearson {pearson:.3f}")


def main() -> None:
    """Print the tables that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="default: all")
    parser.add_argument("--quick", action="store_true", help="few predictions and mixes, to see that it runs")
    parser.add_argument(
        "--rows",
        type=int,
        default=8,
        help="held-out rows of 512 tokens for the recipes, a quarter of them for the others",
    )
    parser.add_argument("--mixes", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows, mixes = (1, 4) if given.quick else (given.rows, given.mixes)
    wanted = given.tables or ["recipes", "matrices", "layers", "mixes", "cuts"]
    if "recipes" in wanted:
        show_recipes(Bench(rows, 16 if given.quick else 256))
    single = Bench(max(1, rows // 4), 16 if given.quick else 128)
    shown: dict[str, Callable[[], None]] = {
        "matrices": lambda: show_matrices(single),
        "layers": lambda: show_layers(single),
        "mixes": lambda: show_mixes(single, mixes, given.seed),
        "cuts": lambda: show_mixes(single, max(4, mixes // 3), given.seed, most_cuts=len(CUTS)),
    }
    for name in wanted:
        if name in shown:
            print(f"\n{name}\n", flush=True)
            shown[name]()


if __name__ == "__main__":
    main()
