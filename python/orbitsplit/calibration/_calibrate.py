"""`calibrate`: from a model and data to a codebook."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from transformers.modeling_utils import PreTrainedModel

from orbitsplit._codebook.accuracy import AccuracyCurve, fit_curve
from orbitsplit._codebook.codebook import CalibratedModel, Codebook
from orbitsplit._codec.calibrated import CalibratedCodec
from orbitsplit._io.validation import check_integer
from orbitsplit._models.fingerprint import hash_layer
from orbitsplit._models.gguf import Progress
from orbitsplit._profiling.timing import machine_name

from ._activation_hooks import ActivationHooks
from ._candidates import KINDS, TRAINED, Sources, best_first, candidates, check_codecs, worth_keeping
from ._checkpoint import Checkpoint, State
from ._data import Data, Samples, frozen, is_causal, is_classifier, load_model, task_of
from ._measure import CutDownstream, Measured, Reference
from ._statistics import CutStatistics, collect
from ._task import Batch

LEVELS = (5.0, 4.0, 3.2, 2.6, 2.1, 1.7)
CODECS = ("fisher", "klt")

# Next-token predictions that count, of each row: the head over a large vocabulary costs more than the layers.
_FIT_POSITIONS, _MEASURED_POSITIONS = 256, 64

# Plans of several cuts that the curve from loss to accuracy is fitted to, beside every level by itself.
_COMPOSITES = 16


@dataclass(frozen=True, slots=True)
class _Sizes:
    fit: int
    measure: int


# Samples by default. Rows of 512 tokens: with the covariance of 32 of them, Gemma 3 270M takes 0.15 bits more on other
# text than on these.
_ROWS, _IMAGES, _TEXTS = _Sizes(128, 4), _Sizes(1024, 256), _Sizes(1024, 64)


def calibrate(
    model: str | Path | PreTrainedModel,
    data: Data,
    *,
    tokenizer: Any = None,
    cuts: Sequence[int] | Literal["all", "inner"] = "all",
    levels: Sequence[float] = LEVELS,
    codecs: Sequence[str] = CODECS,
    prompt_tokens: int = 512,
    fit_samples: int | None = None,
    measure_samples: int | None = None,
    dtype: torch.dtype = torch.float32,
    hull_only: bool = True,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> Codebook:
    """Measure what each cut of a model tolerates and fit codecs to it.

    `model` is a causal language model, a classifier of images or an encoder of texts (whose mean-pooled embeddings
    count): a directory, a hub id, a GGUF file, or a model of transformers. `data` are texts or text files (Path), or
    token ids [N, S]; for images a pair of tensors [N, C, H, W] and labels [N]. Texts become rows of `prompt_tokens`
    tokens; `fit_samples` rows, texts or images are fitted to and `measure_samples` others measured on, drawn by `seed`.

    `cuts` are numbers of layers before the cut ("all": 0 to the number of layers; "inner": without the first and the
    last). `levels` are bits per element. `codecs` are

        channel   a step for each channel, in proportion to its deviation
        fisher    a step for each channel by what errors there do to the output (diagonal Fisher information)
        klt       the same by the whole Fisher information, in the principal axes of what is sent (a matrix product)
        mask      what lies below a learned threshold of its channel is not sent, the rest in 4 or 8 bits
                  (Gumbel-sigmoid gates trained through the frozen model, as in arXiv 2604.04654; trained for plans
                  that have the mask of the same level at all cuts before it that kept one)
        trained   the numbers of klt trained further, by distillation with a price on bits
        int8 ...  any fixed codec, as it is

    Memory beside the model: 16 width^2 bytes a cut with klt or trained, and a megabyte for each measured output of a
    large vocabulary. Training takes minutes a level. What lies above the lower convex hull of loss over bits at its
    cut by more than its standard error is left out (codecs with and without a matrix apart), unless `hull_only` is
    false. With `checkpoint`, a path, work that is interrupted goes on when the same call is made again, and ends with
    the same numbers (seconds apart); the file is removed at the end.

    Example:
        >>> book = osp.calibrate("path-or-hub-id", [Path("corpus.txt")], cuts=[5, 9, 14])     # doctest: +SKIP
        >>> book.save("book.safetensors")                                                     # doctest: +SKIP

    Raises:
        ValueError: Data, cuts, levels or codecs are not valid, or the model's layers take more than a hidden state.
    """
    for what, given in (("cuts", cuts), ("levels", levels), ("codecs", codecs)):
        if not isinstance(given, Sequence) or (isinstance(given, str) and what != "cuts"):
            raise ValueError(f"{what} is {given!r}, expected a sequence of them")
    check_codecs(codecs)
    _check_levels(levels)
    report = progress or (lambda _step, _fraction: None)
    report("loading the model", 0.0)
    name = model.name_or_path if isinstance(model, PreTrainedModel) else str(model)
    loaded = load_model(model, dtype=dtype, progress=progress)
    hooked = ActivationHooks(loaded)
    chosen = _cuts(cuts, len(hooked.layers))
    samples = Samples(loaded, data, name=name, tokenizer=tokenizer, prompt_tokens=prompt_tokens)
    fit_batches, measure_batches = _split(loaded, samples, fit_samples, measure_samples, seed)
    identity = _identity(name, hooked, measure_batches[0])
    asked = {
        "model": list(identity.layer_hashes),
        "data": samples.digest,
        "cuts": list(chosen),
        "levels": list(levels),
        "codecs": list(codecs),
        "samples": [_count(fit_batches), _count(measure_batches)],
        "sample_shape": samples.shape,
        "hull_only": hull_only,
        "seed": seed,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "versions": {name: version(name) for name in ("orbitsplit", "torch", "transformers")},
    }
    if loaded.dtype != torch.float32 and set(codecs) & set(TRAINED):
        raise ValueError(f"{' and '.join(TRAINED)} are trained in float32, the model is in {asked['dtype']}")
    kept = Checkpoint(checkpoint, asked)
    with frozen(loaded):
        try:
            work = _Calibration(hooked, identity, fit_batches, measure_batches, asked, report)
            work.collect(kept)
            work.fit(kept)
            book = work.book(kept.state)
        except BaseException:
            kept.save()
            raise
    kept.remove()
    return book


class _Calibration:
    """The work of one call of `calibrate`."""

    def __init__(
        self,
        hooked: ActivationHooks,
        identity: CalibratedModel,
        fit_batches: Sequence[Batch],
        measure_batches: Sequence[Batch],
        asked: dict[str, Any],
        report: Progress,
    ) -> None:
        self._hooked = hooked
        self._identity = identity
        self._fit_batches = fit_batches
        self._asked = asked
        self._report = report
        self._task = task_of(hooked.model)
        self._reference = Reference(hooked, self._task, measure_batches)

    @functools.cached_property
    def _fitted_to(self) -> Reference:
        return Reference(self._hooked, self._task, self._fit_batches)

    def collect(self, kept: Checkpoint) -> None:
        """Collect statistics of all cuts that are not finished, where a codec needs them."""
        asked, state, batches = self._asked, kept.state, len(self._fit_batches)
        if not set(asked["codecs"]) & set(KINDS) or state.batches == batches:
            return
        if not state.statistics:
            is_whole = bool({"klt", "trained"} & set(asked["codecs"]))
            state.statistics = {
                cut: CutStatistics.empty(self._identity.width, is_whole=is_whole) for cut in asked["cuts"]
            }

        def before_batch() -> None:
            state.is_between = False

        def after_batch(index: int) -> None:
            state.batches, state.is_between = index + 1, True
            kept.save(is_due=False)
            self._report(f"statistics, batch {index + 1} of {batches}", 0.25 * (index + 1) / batches)

        collect(
            self._hooked,
            self._task,
            self._fit_batches,
            asked["cuts"],
            seed=asked["seed"],
            done=state.statistics,
            first_batch=state.batches,
            before_batch=before_batch,
            after_batch=after_batch,
        )
        kept.save()

    def fit(self, kept: Checkpoint) -> None:
        """Fit and measure the codecs of each cut that is not finished."""
        asked, state = self._asked, kept.state
        downstream: CutDownstream | None = None
        for done, cut in enumerate(asked["cuts"]):
            if cut in state.entries:
                continue
            self._report(
                f"cuts, after {cut} of {self._identity.layers} layers", 0.25 + 0.65 * done / len(asked["cuts"])
            )
            downstream = CutDownstream(self._reference, cut, downstream)
            sources = Sources(
                statistics=state.statistics.get(cut),
                fitted=functools.partial(self._fitted_downstream, state, cut),
                seed=asked["seed"],
            )
            found = list(candidates(asked["codecs"], asked["levels"], sources, downstream))
            chosen = best_first(worth_keeping(found) if asked["hull_only"] else found)
            for candidate in chosen:
                state.tensors |= candidate.tensors
            state.entries[cut] = tuple(candidate.entry for candidate in chosen)  # last: with it the cut is finished
            state.statistics.pop(cut, None)
            kept.save(is_due=False)

    def _fitted_downstream(self, state: State, cut: int, name: str) -> CutDownstream:
        """Return the downstream model that a level is trained on; masks of earlier cuts come first.

        Without them masks do not compose: what one takes away, the next one does not see in training.
        """
        downstream: CutDownstream | None = None
        for earlier in sorted(state.entries):
            for entry in state.entries[earlier]:
                if name.startswith("mask") and entry.level.name == name and earlier < cut:
                    arrays: dict[str, Any] = {part: state.tensors[tensor] for part, tensor in entry.arrays.items()}
                    codec = CalibratedCodec(codebook=1, cut=earlier, **entry.scalars, **arrays)
                    downstream = CutDownstream(self._fitted_to, earlier, downstream).through(codec)
        return CutDownstream(self._fitted_to, cut, downstream)

    def book(self, state: State) -> Codebook:
        """Measure plans of several cuts, fit the curve from loss to accuracy, and return the codebook."""
        provenance = {
            **{key: value for key, value in self._asked.items() if key not in ("model", "cuts")},
            "unit": self._task.unit,
            "machine": machine_name(),
        }
        flat = AccuracyCurve(0.0, 0.0, 0)
        book = Codebook(self._identity, state.entries, state.tensors, accuracy=flat, provenance=provenance)
        predicted, measured = self._composites(book)
        provenance["composites"] = [
            {"predicted": loss, **{name: getattr(found, name) for name in ("loss", "drop", "expected_drop")}}
            for loss, found in zip(predicted, measured, strict=True)
        ]
        provenance["accuracy"] = measured[0].accuracy
        curve = fit_curve(
            [found.loss for found in measured],
            [found.expected_drop for found in measured],
            [found.expected_drop_error for found in measured],
        )
        self._report("calibrated", 1.0)
        return Codebook(self._identity, state.entries, state.tensors, accuracy=curve, provenance=provenance)

    def _composites(self, book: Codebook) -> tuple[list[float], list[Measured]]:
        predicted, measured = [], []
        for index, plan in enumerate(random_plans(book, _COMPOSITES, seed=self._asked["seed"])):
            self._report(f"plans of several cuts, {index + 1} of {_COMPOSITES}", 0.9 + 0.1 * index / _COMPOSITES)
            codecs: dict[int, CalibratedCodec | str] = {cut: book[cut, level] for cut, level in plan.items()}
            predicted.append(sum(book.levels(cut)[level].loss for cut, level in plan.items()))
            measured.append(self._reference.measure(codecs))
        return predicted, measured


def random_plans(book: Codebook, count: int, *, seed: int, most_cuts: int = 6) -> list[dict[int, int]]:
    """Return random choices of 1 to `most_cuts` cuts and a level at each, {cut: level}."""
    source = random.Random(seed)
    plans = []
    for _ in range(count):
        cuts = sorted(source.sample(book.cuts, source.randint(1, min(most_cuts, len(book.cuts)))))
        plans.append({cut: source.randrange(len(book.levels(cut))) for cut in cuts})
    return plans


def _check_levels(levels: Sequence[float]) -> None:
    if not levels:
        raise ValueError("there is no level to calibrate")
    for bits in levels:
        if not 0.05 <= bits <= 16:
            raise ValueError(f"level {bits} is not from 0.05 to 16 bits per element")
    if len(set(levels)) < len(levels):
        raise ValueError(f"levels {', '.join(f'{bits:g}' for bits in levels)} name one twice")


def _cuts(cuts: Sequence[int] | str, layers: int) -> tuple[int, ...]:
    if isinstance(cuts, str):
        if cuts not in ("all", "inner"):
            raise ValueError(f'cuts is "{cuts}"; valid are "all", "inner" and a sequence of whole numbers')
        return tuple(range(layers + 1) if cuts == "all" else range(1, layers))
    for cut in cuts:
        check_integer("a cut", cut)
        if not 0 <= cut <= layers:
            raise ValueError(f"cut {cut} is not from 0 to {layers}, the number of layers")
    if not cuts or len(set(cuts)) < len(cuts):
        raise ValueError(f"cuts are {list(cuts)}, they must be one or more different numbers")
    return tuple(sorted(cuts))


def _split(
    model: PreTrainedModel, samples: Samples, fit: int | None, measure: int | None, seed: int
) -> tuple[list[Batch], list[Batch]]:
    """Return batches to fit to and others to measure on, drawn by seed."""
    if samples.count < 2:
        raise ValueError(f"there are {samples.count} samples, two are the least that is needed")
    sizes = _IMAGES if is_classifier(model) else _ROWS if is_causal(model) else _TEXTS
    # Where there are few, a quarter of them is measured on.
    wanted = min(sizes.measure, max(1, samples.count // 4)) if measure is None else measure
    rest = min(sizes.fit, samples.count - wanted) if fit is None else fit
    if wanted < 1 or rest < 1 or wanted + rest > samples.count:
        raise ValueError(f"{rest} samples to fit and {wanted} to measure are asked for, of {samples.count} there are")
    order = torch.randperm(samples.count, generator=torch.Generator().manual_seed(seed))
    measured = samples.batches(order[:wanted], positions=_MEASURED_POSITIONS)
    return samples.batches(order[wanted : wanted + rest], positions=_FIT_POSITIONS), measured


def _count(batches: Sequence[Batch]) -> int:
    return sum(batch.samples for batch in batches)


def _identity(name: str, hooked: ActivationHooks, batch: Batch) -> CalibratedModel:
    with torch.no_grad():
        width = hooked.hidden(batch.inputs, 0).shape[-1]
    return CalibratedModel(
        name=name or type(hooked.model).__name__,
        architecture=type(hooked.model).__name__,
        layers=len(hooked.layers),
        width=width,
        layer_hashes=tuple(hash_layer(layer) for layer in hooked.layers),
    )
