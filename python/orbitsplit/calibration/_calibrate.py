"""`calibrate`: from a model and data to a codebook."""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_utils import PreTrainedModel

from orbitsplit._codebook.accuracy import AccuracyCurve, fit_curve
from orbitsplit._codebook.codebook import CalibratedModel, Codebook
from orbitsplit._codebook.inverses import numbers_of
from orbitsplit._codebook.weight_losses import WeightLosses
from orbitsplit._codec.calibrated import CalibratedCodec
from orbitsplit._io.validation import check_callable, check_count, check_path
from orbitsplit._models.architecture import Layout
from orbitsplit._models.fingerprint import hash_layer
from orbitsplit._models.gguf import Progress
from orbitsplit._models.layouts import find_layout
from orbitsplit._profiling.timing import machine_name

from ._activation_hooks import ActivationHooks
from ._candidates import KINDS, TRAINED, Candidate, Sources, best_first, candidates, worth_keeping
from ._checkpoint import Checkpoint, State
from ._data import Data, Samples, frozen, is_causal, is_classifier, load_model, name_of, task_of
from ._measure import CutDownstream, Measured, Reference
from ._options import CalibrationKeywords, CalibrationOptions, check_seed, weight_levels
from ._statistics import CutStatistics, collect
from ._task import Batch
from ._weight_levels import measure_weights

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Next-token predictions used of each row: the head over a large vocabulary costs more than the layers.
_FIT_POSITIONS, _MEASURED_POSITIONS = 256, 64

# Plans of several cuts to which the curve from loss to accuracy is fitted.
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
    options: CalibrationOptions | None = None,
    tokenizer: Any = None,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
    **keywords: Unpack[CalibrationKeywords],
) -> Codebook:
    """Measure which errors each cut of a model tolerates and fit codecs to it.

    `model` is a causal language model, a classifier of images or an encoder of texts (whose mean-pooled embeddings are
    its output): a directory, a hub id, a GGUF file, or a model of transformers. `data` are texts or text files (Path),
    or token ids [N, S]; for images a pair of tensors [N, C, H, W] and labels [N]. `tokenizer` is the model's by
    default.

    `options` say what is fitted and measured. Fields of `CalibrationOptions` may also be given as keywords, which
    override those of `options`: `calibrate(model, data, cuts=[5, 9])`.

    `weights=("int8", "int4")` also measures what each layer loses with its weights in these formats: a forward from
    that layer on, for each of them and every measured sample. `Codebook.weights` has the losses.

    Memory beyond the model: 16 width^2 bytes per cut with klt or trained, and a megabyte for each measured output of a
    large vocabulary. Training takes minutes per level. `progress(step, fraction)` is called from time to time. With
    `checkpoint`, a path, an interrupted calibration resumes when the same call is made again, and ends with the same
    numbers (except seconds); the file is removed at the end.

    Example:
        >>> book = osp.calibrate("path-or-hub-id", [Path("corpus.txt")], cuts=[5, 9, 14])     # doctest: +SKIP
        >>> book.save("book.safetensors")                                                     # doctest: +SKIP

    Raises:
        TypeError: An argument, an option or an item of the data has a wrong type; the message names it.
        ValueError: Data, cuts, levels or codecs are not valid, the checkpoint belongs to another calibration, or the
            model's layers take more than a hidden state.
    """
    chosen = replace(CalibrationOptions() if options is None else _checked(options), **keywords)
    check_path("checkpoint", checkpoint)
    check_callable("progress", progress)
    report = progress or (lambda _step, _fraction: None)
    report("loading the model", 0.0)
    name = name_of(model)
    loaded = load_model(model, dtype=chosen.dtype, progress=progress)
    _check_layout(loaded)
    hooked = ActivationHooks(loaded)
    cuts = _cuts(chosen.cuts, len(hooked.layers))
    samples = Samples(loaded, data, name=name, tokenizer=tokenizer, prompt_tokens=chosen.prompt_tokens)
    fit_batches, measure_batches = _split(loaded, samples, chosen)
    if loaded.dtype != torch.float32 and set(chosen.codecs) & set(TRAINED):
        raise ValueError(f"{' and '.join(TRAINED)} are trained in float32, the model is in {_dtype_name(loaded)}")
    identity = _identity(name, hooked, measure_batches[0])
    request = _request(identity, samples, cuts, (fit_batches, measure_batches), chosen, _dtype_name(loaded))
    kept = Checkpoint(checkpoint, request)
    with frozen(loaded):
        try:
            work = _Calibration(hooked, identity, fit_batches, measure_batches, request, report)
            work.collect(kept)
            work.fit(kept)
            book = work.book(kept.state, work.weights(weight_levels(chosen.weights)))
        except BaseException:
            kept.save()
            raise
    kept.remove()
    return book


def _check_layout(model: PreTrainedModel) -> None:
    """Raise ValueError for a model of which more than a hidden state [B, S, H] crosses a cut, or not at each layer."""
    layout: Layout | None = None
    with suppress(ValueError):  # of a part of a model that is calibrated, and not run in stages
        layout = find_layout(model.config)
    if layout is not None and not layout.is_plain:
        raise ValueError(
            f"{type(model).__name__} hands on more than one hidden state from each layer to the next, and cuts of it "
            "are not calibrated: plan it without a codebook"
        )


def _checked(options: CalibrationOptions) -> CalibrationOptions:
    if not isinstance(options, CalibrationOptions):
        raise TypeError(f"options is a {type(options).__name__}, must be CalibrationOptions")
    return options


def _request(
    identity: CalibratedModel,
    samples: Samples,
    cuts: Sequence[int],
    batches: tuple[Sequence[Batch], Sequence[Batch]],
    options: CalibrationOptions,
    dtype: str,
) -> dict[str, Any]:
    """Return what a calibration's numbers depend on, as JSON-ready data."""
    return {
        "model": list(identity.layer_hashes),
        "data": samples.digest,
        "cuts": list(cuts),
        "levels": list(options.levels),
        "codecs": list(options.codecs),
        "samples": [_count(part) for part in batches],
        "sample_shape": samples.shape,
        "hull_only": options.hull_only,
        "seed": options.seed,
        "dtype": dtype,
        **({"weights": list(weight_levels(options.weights))} if options.weights else {}),
        "versions": {name: version(name) for name in ("orbitsplit", "torch", "transformers")},
    }


def _dtype_name(model: PreTrainedModel) -> str:
    return str(model.dtype).removeprefix("torch.")


class _Calibration:
    """The work of one call of `calibrate`."""

    def __init__(
        self,
        hooked: ActivationHooks,
        identity: CalibratedModel,
        fit_batches: Sequence[Batch],
        measure_batches: Sequence[Batch],
        request: dict[str, Any],
        report: Progress,
    ) -> None:
        self._hooked = hooked
        self._identity = identity
        self._fit_batches = fit_batches
        self._request = request
        self._report = report
        self._task = task_of(hooked.model)
        self._reference = Reference(hooked, self._task, measure_batches)

    @functools.cached_property
    def _fitted_to(self) -> Reference:
        return Reference(self._hooked, self._task, self._fit_batches)

    def collect(self, kept: Checkpoint) -> None:
        """Collect statistics of all cuts that are not finished, where a codec needs them."""
        request, state, batches = self._request, kept.state, len(self._fit_batches)
        if not set(request["codecs"]) & set(KINDS) or state.batches == batches:
            return
        if not state.statistics:
            is_whole = bool({"klt", "trained"} & set(request["codecs"]))
            state.statistics = {
                cut: CutStatistics.empty(self._identity.width, is_whole=is_whole) for cut in request["cuts"]
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
            request["cuts"],
            seed=request["seed"],
            done=state.statistics,
            first_batch=state.batches,
            before_batch=before_batch,
            after_batch=after_batch,
        )
        kept.save()

    def fit(self, kept: Checkpoint) -> None:
        """Fit and measure the codecs of each cut that is not finished."""
        request, state = self._request, kept.state
        downstream: CutDownstream | None = None
        for done, cut in enumerate(request["cuts"]):
            if cut in state.entries:
                continue
            step = f"cuts, after {cut} of {self._identity.layers} layers"
            self._report(step, 0.25 + 0.55 * done / len(request["cuts"]))
            downstream = CutDownstream(self._reference, cut, downstream)
            sources = Sources(
                statistics=state.statistics.get(cut),
                fitted=functools.partial(self._fitted_downstream, state, cut),
                seed=request["seed"],
            )
            found: list[Candidate] = []
            for one in candidates(request["codecs"], request["levels"], sources, downstream):
                found.append(one)  # each is fitted and measured, those that are trained for minutes
                at = len(found) / (len(request["codecs"]) * len(request["levels"]))
                self._report(
                    f"{step}, {one.entry.level.name}", 0.25 + 0.55 * (done + min(1.0, at)) / len(request["cuts"])
                )
            chosen = best_first(worth_keeping(found) if request["hull_only"] else found)
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
                    numbers = numbers_of(entry.scalars, entry.arrays, state.tensors)
                    codec = CalibratedCodec(codebook=1, cut=earlier, **numbers)
                    downstream = CutDownstream(self._fitted_to, earlier, downstream).through(codec)
        return CutDownstream(self._fitted_to, cut, downstream)

    def weights(self, levels: Mapping[str, str | Path]) -> dict[str, WeightLosses]:
        """Measure what each layer loses at each precision of weights."""
        if not levels:
            return {}
        batches = len(self._reference.batches)

        def on_batch(index: int) -> None:
            self._report(f"weights, batch {index + 1} of {batches}", 0.8 + 0.1 * (index + 1) / batches)

        return measure_weights(self._reference, levels, on_batch=on_batch)

    def book(self, state: State, weights: Mapping[str, WeightLosses]) -> Codebook:
        """Measure plans of several cuts, fit the curve from loss to accuracy, and return the codebook."""
        provenance = {
            **{key: value for key, value in self._request.items() if key not in ("model", "cuts")},
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
        return Codebook(
            self._identity, state.entries, state.tensors, accuracy=curve, provenance=provenance, weights=weights
        )

    def _composites(self, book: Codebook) -> tuple[list[float], list[Measured]]:
        predicted, measured = [], []
        for index, plan in enumerate(random_plans(book, _COMPOSITES, seed=self._request["seed"])):
            self._report(f"plans of several cuts, {index + 1} of {_COMPOSITES}", 0.9 + 0.1 * index / _COMPOSITES)
            codecs: dict[int, CalibratedCodec | str] = {cut: book[cut, level] for cut, level in plan.items()}
            predicted.append(sum(book.levels(cut)[level].loss for cut, level in plan.items()))
            measured.append(self._reference.measure(codecs))
        return predicted, measured


def random_plans(book: Codebook, count: int, *, seed: int, most_cuts: int = 6) -> list[dict[int, int]]:
    """Return `count` random choices of 1 to `most_cuts` cuts of a codebook and a level at each, {cut: level}.

    Raises:
        TypeError: `count`, `seed` or `most_cuts` is no integer.
        ValueError: `count` is below 0, `most_cuts` below 1, or the codebook has no cuts.
    """
    check_count("count", count, 0)
    check_seed(seed)
    check_count("most_cuts", most_cuts, 1)
    if not book.cuts:
        raise ValueError("the codebook has no cuts")
    source = random.Random(seed)
    plans = []
    for _ in range(count):
        cuts = sorted(source.sample(book.cuts, source.randint(1, min(most_cuts, len(book.cuts)))))
        plans.append({cut: source.randrange(len(book.levels(cut))) for cut in cuts})
    return plans


def _cuts(cuts: Sequence[int] | str, layers: int) -> tuple[int, ...]:
    if isinstance(cuts, str):
        return tuple(range(layers + 1) if cuts == "all" else range(1, layers))
    for cut in cuts:
        if not 0 <= cut <= layers:
            raise ValueError(f"cut {cut} is not from 0 to {layers}, the number of layers")
    if not cuts or len(set(cuts)) < len(cuts):
        raise ValueError(f"cuts are {list(cuts)}, they must be one or more different numbers")
    return tuple(sorted(map(int, cuts)))


def _split(model: PreTrainedModel, samples: Samples, options: CalibrationOptions) -> tuple[list[Batch], list[Batch]]:
    """Return batches to fit to and others to measure on, drawn by the seed."""
    if samples.count < 2:
        raise ValueError(f"there are {samples.count} samples, must be at least 2")
    fit, measure = options.fit_samples, options.measure_samples
    sizes = _IMAGES if is_classifier(model) else _ROWS if is_causal(model) else _TEXTS
    # Of few samples, a quarter is measured on.
    wanted = min(sizes.measure, max(1, samples.count // 4)) if measure is None else measure
    rest = min(sizes.fit, samples.count - wanted) if fit is None else fit
    if wanted < 1 or rest < 1 or wanted + rest > samples.count:
        raise ValueError(f"{rest} samples to fit and {wanted} to measure are requested, there are {samples.count}")
    order = torch.randperm(samples.count, generator=torch.Generator().manual_seed(options.seed))
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
