"""`verify`: the measured cost of a plan on the user's data, and tighter plans while it is above the limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_utils import PreTrainedModel

from orbitsplit._codebook.accuracy import Z95
from orbitsplit._codebook.codebook import Codebook
from orbitsplit._codec.calibrated import CalibratedCodec
from orbitsplit._errors import InfeasiblePlanError
from orbitsplit._io.dtypes import ITEM_BYTES
from orbitsplit._io.validation import (
    LARGEST_BYTES,
    check_callable,
    check_count,
    check_is_integer,
    check_number,
)
from orbitsplit._models.fingerprint import hash_layers
from orbitsplit._models.gguf import Progress
from orbitsplit._plans.plan import Plan
from orbitsplit._plans.successor import with_settings_of

from ._activation_hooks import ActivationHooks
from ._composite import Composite
from ._data import Data, Samples, is_causal, load_model, name_of, task_of
from ._measure import KEPT_BYTES, Measured, Reference
from ._options import check_seed, check_torch_dtype

_ROWS, _POSITIONS = 16, 128
_MOST_TRIALS = 8


@dataclass(frozen=True, slots=True)
class Trial:
    """A plan that was measured, with its predicted and measured cost.

    `predicted_loss` is in nats per token or sample (encoders: cosine distance), as `measured.loss`: the sum of the
    losses of the plan's levels, and of its stages' weights, in the codebook; where that has no losses of these weights,
    the loss of the plan's own prediction. What neither knows, such as the loss of fixed codecs, counts as 0.
    """

    plan: Plan
    predicted_loss: float
    measured: Measured

    @property
    def drop_interval(self) -> tuple[float, float]:
        """The 95 % interval of the drop in accuracy, for other data of the same kind."""
        margin = Z95 * self.measured.drop_error
        return self.measured.drop - margin, self.measured.drop + margin


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of `verify`: the trials in order; the last one decides whether the plan `is_within` the limit.

    `plan` is the first measured plan within the limit, or the one with the smallest drop if there is none.
    """

    max_accuracy_drop: float
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The trial of `plan`."""
        within = [trial for trial in self.trials if trial.measured.drop <= self.max_accuracy_drop]
        return within[0] if within else min(self.trials, key=lambda trial: trial.measured.drop)

    @property
    def plan(self) -> Plan:
        """The plan to use."""
        return self.best.plan

    @property
    def is_within(self) -> bool:
        """Whether the measured drop of `plan` is within the limit."""
        return self.best.measured.drop <= self.max_accuracy_drop

    def to_dict(self) -> dict[str, Any]:
        """Return the figures of all trials, and the plan, as JSON-ready data."""
        trials = [
            {"predicted_loss": trial.predicted_loss, **asdict(trial.measured), "drop_interval": trial.drop_interval}
            for trial in self.trials
        ]
        return {
            "max_accuracy_drop": self.max_accuracy_drop,
            "is_within": self.is_within,
            "trials": trials,
            "plan": self.plan.to_dict(),
        }

    def __str__(self) -> str:
        lines = []
        for number, trial in enumerate(self.trials):
            low, high = trial.drop_interval
            found = trial.measured
            verdict = "within" if found.drop <= self.max_accuracy_drop else "above"
            lines.append(
                f"plan {number + 1}: drop {100 * found.drop:.2f} points (95 %: {100 * low:.2f} to {100 * high:.2f}, of "
                f"{100 * found.accuracy:.1f} on {found.samples} samples), {verdict} the limit of "
                f"{100 * self.max_accuracy_drop:.2f}; loss {found.loss:.4f}, expected {trial.predicted_loss:.4f}; "
                f"{found.bits_per_element:.2f} bits per element"
            )
        if not self.is_within:
            lines.append("no measured plan is within the limit; the best one is returned")
        return "\n".join(lines)


def verify(
    plan: Plan,
    model: str | Path | PreTrainedModel,
    data: Data,
    *,
    codebook: Codebook | str | Path | None = None,
    max_accuracy_drop: float | None = None,
    replan: Callable[[float], Plan] | None = None,
    tokenizer: Any = None,
    samples: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Verification:
    """Measure the cost of a plan on held-out data, and tighten the plan until it is within the limit.

    The cost is that of the codecs at the plan's cuts and of the `weights` of its stages together, against the `model`,
    which is the plan's own: stages with weights run what they load of the plan's `weight_models`, and nothing else of
    these is loaded.

    `codebook` is the plan's, or its file. `data` is as for `calibrate`, and none of it was used there; `samples` of it
    are drawn by `seed` (default: all images or texts, 16 rows of a causal model's text). The limit is
    `max_accuracy_drop` (a fraction), by default that of the plan; a plan is within it if the measured mean drop is, and
    `drop_interval` is the uncertainty of that mean. While the drop is larger, the loss budget is cut in proportion, by
    at least a fifth, and the plan is remade by `replan(loss_budget)`, or, without it, from better levels at the same
    cuts (such a plan has no prediction, and its stages keep their weights); the eighth and last plan compresses
    nothing at its cuts. Without a codebook and `replan` there is one trial.

    Example:
        >>> checked = osp.verify(plan, "path-or-hub-id", texts, codebook=book)               # doctest: +SKIP
        >>> checked.is_within, checked.plan                                                  # doctest: +SKIP

    Raises:
        TypeError: An argument or an item of the data has a wrong type; the message names it.
        ValueError: The plan has no limit and none is given, it needs another codebook, the model is not the codebook's
            or not what the weights of stages were converted from, or data are not valid.
    """
    check_callable("replan", replan)
    check_callable("progress", progress)
    limit = _limit_of(plan, max_accuracy_drop)
    codebook = Codebook.load(codebook) if isinstance(codebook, (str, Path)) else codebook
    _check_codebook(plan, codebook)
    if progress is not None:
        progress("loading the model", 0.0)
    reference = held_out(
        model,
        data,
        tokenizer=tokenizer,
        prompt_tokens=plan.workload.prompt_tokens,
        samples=samples,
        seed=seed,
        dtype=getattr(torch, plan.dtype),
    )
    _check_model(plan, reference, codebook)
    if progress is not None:
        progress("loading the model", 1.0)
    trials: list[Trial] = []
    composite = Composite(reference.hooked)
    candidate: Plan | None = plan
    while candidate is not None:
        _check_codebook(candidate, codebook)
        report = _Progress(f"measuring plan {len(trials) + 1}", len(reference.batches), progress)
        report(-1)
        composite.load(candidate)
        within = partial(composite.holding, candidate)
        measured = reference.measure(_codecs(candidate, codebook), within=within, on_batch=report)
        trials.append(Trial(candidate, _predicted(candidate, codebook), measured))
        if measured.drop <= limit:
            break
        candidate = _tighter(trials, limit, codebook, replan)
    return Verification(limit, tuple(trials))


def _limit_of(plan: Plan, max_accuracy_drop: float | None) -> float:
    if not isinstance(plan, Plan):
        raise TypeError(f"plan is a {type(plan).__name__}, must be a Plan")
    limit = plan.max_accuracy_drop if max_accuracy_drop is None else max_accuracy_drop
    if limit is None:
        raise ValueError("max_accuracy_drop is missing: the plan was made without one")
    check_number("max_accuracy_drop", limit)
    if not 0 <= limit <= 1:
        raise ValueError(f"max_accuracy_drop is {limit}, must be from 0 to 1 (0.01 is one point)")
    return limit


@dataclass(frozen=True, slots=True)
class _Progress:
    step: str
    batches: int
    report: Progress | None

    def __call__(self, batch: int) -> None:
        if self.report is not None:
            self.report(self.step, (batch + 1) / self.batches)


def _tighter(
    trials: list[Trial], limit: float, codebook: Codebook | None, replan: Callable[[float], Plan] | None
) -> Plan | None:
    """Return a plan with less loss than the last one, None if there is none left."""
    last = trials[-1]
    if len(trials) >= _MOST_TRIALS or (codebook is None and replan is None):
        return None
    is_compressed = any(stage.codec for stage in last.plan.stages)
    # Without `replan` stages keep their weights: what others take of memory, only a planner knows.
    if not is_compressed and (replan is None or not any(stage.weights for stage in last.plan.stages)):
        return None
    if is_compressed and len(trials) == _MOST_TRIALS - 1:
        return replace(last.plan.uncompressed(), max_accuracy_drop=limit)
    fraction = min(0.8, 0.9 * limit / last.measured.drop)
    budget = fraction * min(trial.predicted_loss or trial.measured.loss for trial in trials)
    if replan is None:
        assert codebook is not None
        budget_of_cuts = max(0.0, budget - _weight_loss(last, codebook))
        found = better_levels(last.plan, codebook, budget_of_cuts)
    else:
        try:
            found = replan(budget)
        except InfeasiblePlanError:
            found = None  # no plan fits without that much compression
    return None if found is None else replace(with_settings_of(found, last.plan), max_accuracy_drop=limit)


def better_levels(plan: Plan, codebook: Codebook, loss_budget: float) -> Plan:
    """Return the plan with the levels of the fewest bits whose losses add up to at most a budget.

    Greedy from uncompressed, the step that saves most time on its link per loss first: on convex hulls this is optimal
    except for the last step.
    """
    cuts = [stage.cut for stage in plan.stages[:-1]]
    # Links without a rate gain nothing from fewer bits, unless no link has one.
    rates = [link.bytes_per_s for link in plan.links]
    seconds = [(0.0 if any(rates) else 1.0) if rate is None else 1 / rate for rate in rates]
    chosen: dict[int, int | None] = dict.fromkeys(cuts)
    raw_bits = 8.0 * ITEM_BYTES[plan.dtype]

    def point(cut: int, level: int | None) -> tuple[float, float]:
        found = None if level is None else codebook.level_at(cut, level)
        return (raw_bits, 0.0) if found is None else (found.bits_per_element, found.loss)

    spent = 0.0
    while True:
        steps = []
        for cut, second in zip(cuts, seconds, strict=True):
            bits, loss = point(cut, chosen[cut])
            levels = len(codebook.levels(cut)) if cut in codebook.cuts else 0
            for level in range(levels):
                fewer, more = point(cut, level)
                if fewer < bits and spent - loss + more <= loss_budget:
                    steps.append((second * (bits - fewer) / max(more - loss, 1e-12), cut, level, more - loss))
        if not steps:
            return plan.with_levels(codebook, chosen)
        _, cut, level, added = max(steps)
        chosen[cut] = level
        spent += added


def held_out(
    model: str | Path | PreTrainedModel,
    data: Data,
    *,
    tokenizer: Any = None,
    prompt_tokens: int = 512,
    samples: int | None = None,
    positions: int | None = _POSITIONS,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    kept_bytes: int = KEPT_BYTES,
) -> Reference:
    """Return a model on some data, ready to measure codecs at any cuts: `held_out(...).measure({cut: codec})`.

    `samples` are drawn by `seed` (default: all images or texts, 16 rows of `prompt_tokens` of a causal model's text),
    and of each row `positions` next-token predictions are used (None: all). Outputs of the model without codecs are
    kept up to `kept_bytes`.

    Raises:
        TypeError: An argument or an item of the data has a wrong type; the message names it.
        ValueError: The data are not valid, or there are fewer samples.
    """
    name = name_of(model)
    check_count("prompt_tokens", prompt_tokens, 1)
    if samples is not None:
        check_is_integer("samples", samples)
    if positions is not None:
        check_count("positions", positions, 1)
    check_seed(seed)
    check_torch_dtype("dtype", dtype)
    check_count("kept_bytes", kept_bytes, 0, most=LARGEST_BYTES)
    loaded = load_model(model, dtype=dtype)
    given = Samples(loaded, data, name=name, tokenizer=tokenizer, prompt_tokens=prompt_tokens)
    wanted = (min(_ROWS, given.count) if is_causal(loaded) else given.count) if samples is None else samples
    if not 1 <= wanted <= given.count:
        raise ValueError(f"samples is {wanted}, must be from 1 to the {given.count} there are")
    order = torch.randperm(given.count, generator=torch.Generator().manual_seed(seed))
    batches = given.batches(order[:wanted], positions=positions)
    return Reference(ActivationHooks(loaded), task_of(loaded), batches, kept_bytes=kept_bytes)


def _check_model(plan: Plan, reference: Reference, codebook: Codebook | None) -> None:
    name, layers = reference.hooked.model.name_or_path or "the model", reference.hooked.layers
    if (found := str(reference.hooked.model.dtype).removeprefix("torch.")) != plan.dtype:
        raise ValueError(f"the plan is for a model in {plan.dtype}, {name} is in {found}")
    if plan.layers != len(layers) + 2:
        raise ValueError(f"the plan is for {plan.layers - 2} layers, {name} has {len(layers)} layers")
    if codebook is not None:
        codebook.model.check_shape(name, len(layers), reference.width)
        codebook.model.check_layers(name, hash_layers(dict(enumerate(layers))))


def _check_codebook(plan: Plan, codebook: Codebook | None) -> None:
    if codebook is not None and not isinstance(codebook, Codebook):
        raise TypeError(f"codebook is a {type(codebook).__name__}, must be a Codebook or the path of one")
    if plan.codebook is not None and (codebook is None or codebook.hex_id != plan.codebook):
        given = "none is given" if codebook is None else f"this is codebook {codebook.hex_id}"
        raise ValueError(f"the plan needs codebook {plan.codebook}, {given}")


def _codecs(plan: Plan, codebook: Codebook | None) -> dict[int, CalibratedCodec | str]:
    codecs: dict[int, CalibratedCodec | str] = {}
    for stage in plan.stages[:-1]:
        if stage.codebook_level is not None:
            assert codebook is not None
            codecs[stage.cut] = codebook[stage.cut, stage.codebook_level]
        elif stage.codec is not None:
            codecs[stage.cut] = stage.codec
    return codecs


def _predicted(plan: Plan, codebook: Codebook | None) -> float:
    if codebook is None:
        return 0.0 if plan.prediction is None else plan.prediction.loss
    of_weights = _known_weight_loss(plan, codebook)
    if of_weights is None and plan.prediction is not None:
        return plan.prediction.loss
    return _loss_of_levels(plan, codebook) + (of_weights or 0.0)


def _loss_of_levels(plan: Plan, codebook: Codebook) -> float:
    return sum(codebook.level_at(cut, level).loss for cut, level in plan.codebook_levels.items())


def _known_weight_loss(plan: Plan, codebook: Codebook) -> float | None:
    """Return what the weights of the stages lose by the codebook, None if it lacks some of them."""
    chosen = [stage for stage in plan.stages if stage.weights is not None]
    if any(stage.weights not in codebook.weights for stage in chosen):
        return None
    return sum(sum(codebook.weights[str(stage.weights)].loss[stage.start : stage.stop]) for stage in chosen)


def _weight_loss(trial: Trial, codebook: Codebook) -> float:
    """Return what is left of a trial's predicted loss without that of its levels: that of its weights."""
    return max(0.0, trial.predicted_loss - _loss_of_levels(trial.plan, codebook))
