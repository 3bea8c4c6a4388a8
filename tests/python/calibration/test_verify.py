"""Verified plans: figures equal to those of a judge, limits that are kept, and what is said where they cannot be."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, ViTForImageClassification

import orbitsplit as osp
from orbitsplit.calibration import held_out, random_plans
from tests.judges.calibration import AnyCodec, Judged, error_of_mean, judge
from tests.support.tiny_encoders import tiny_bert, tiny_images, tiny_vit, trained_vit
from tests.support.tiny_models import LAYERS, tiny_model, tiny_prompts

COARSEST = "fisher 0.5"


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass
class Digits:
    """A classifier that is right most of the time, its codebook, and images that neither has seen."""

    model: ViTForImageClassification
    book: osp.Codebook
    held_out: tuple[Tensor, Tensor]

    def plan(self, *names: str | None, cuts: tuple[int, ...] = (1, 2), limit: float | None = None) -> osp.Plan:
        levels = [
            None if name is None else self.book.level_of(cut, name) for cut, name in zip(cuts, names, strict=True)
        ]
        plan = osp.Plan.manual(cuts, self.book.model.layers, codebook=self.book, levels=levels)
        return replace(plan, max_accuracy_drop=limit)

    def judge(self, plan: osp.Plan) -> Judged:
        return judge(
            self.model,
            {"pixel_values": self.held_out[0]},
            codecs_of(plan, self.book),
            self.book,
            labels=self.held_out[1],
        )

    def verify(self, plan: osp.Plan, **options: Any) -> osp.Verification:
        return osp.verify(plan, self.model, self.held_out, **{"codebook": self.book, **options})


def codecs_of(plan: osp.Plan, book: osp.Codebook | None) -> dict[int, AnyCodec]:
    found: dict[int, AnyCodec] = {}
    for stage in plan.stages[:-1]:
        if stage.codebook_level is not None:
            assert book is not None
            found[stage.cut] = book[stage.cut, stage.codebook_level]
        elif stage.codec is not None:
            found[stage.cut] = stage.codec
    return found


@pytest.fixture(scope="module")
def digits() -> Digits:
    model, calibration, held_out = trained_vit()
    book = osp.calibrate(model, calibration, levels=(4, 2, 1, 0.5))
    return Digits(model, book, held_out)


@pytest.fixture(scope="module")
def language() -> PreTrainedModel:
    return tiny_model()


def assert_measured(found: osp.Measured, judged: Judged) -> None:
    for name in ("loss", "drop", "expected_drop", "nll_increase"):
        values = getattr(judged, name).flatten()
        assert found.samples == len(values)
        assert getattr(found, name) == pytest.approx(float(values.mean()), rel=2e-3, abs=2e-6), name
        error = error_of_mean(getattr(judged, name))
        assert getattr(found, f"{name}_error") == pytest.approx(error, rel=5e-3, abs=2e-6), name
    assert found.perplexity_rise == pytest.approx(math.exp(found.nll_increase) - 1)
    assert found.bits_per_element == pytest.approx(judged.bits_per_element, rel=0.1)


def judge_rows(model: PreTrainedModel, ids: Tensor, plan: osp.Plan, book: osp.Codebook | None = None) -> Judged:
    """Judge a language model one row of tokens after the other, as calibration does, so that frames are as large."""
    rows = [judge(model, {"input_ids": row[None]}, codecs_of(plan, book), book) for row in ids]
    values = {name: torch.cat([getattr(one, name) for one in rows]) for name in vars(rows[0]) if name[0] != "b"}
    return Judged(**values, bits_per_element=sum(one.bits_per_element for one in rows) / len(rows))


# What is measured.


def test_figures_of_a_classifier_are_those_of_the_whole_model(digits: Digits) -> None:
    plan = digits.plan("klt 1", COARSEST)
    found = digits.verify(plan, max_accuracy_drop=1.0).trials[0]
    assert_measured(found.measured, digits.judge(plan))
    assert found.measured.drop > 0.05  # the comparison is not one of zeros
    with torch.no_grad():
        right = digits.model(digits.held_out[0]).logits.argmax(-1) == digits.held_out[1]
    assert found.measured.accuracy == pytest.approx(float(right.float().mean()))
    low, high = found.drop_interval
    assert (low + high) / 2 == pytest.approx(found.measured.drop)
    assert (high - low) / 2 == pytest.approx(1.96 * found.measured.drop_error, rel=1e-3)
    levels = [digits.book.level_at(cut, level) for cut, level in plan.codebook_levels.items()]
    assert found.predicted_loss == pytest.approx(sum(level.loss for level in levels))


def test_figures_of_a_language_model_are_those_of_the_whole_model(language: PreTrainedModel) -> None:
    ids, _ = tiny_prompts((30,) * 12)
    book = osp.calibrate(language, ids, cuts=[0, 2, LAYERS], levels=(3, 1.5), fit_samples=10, measure_samples=2)
    held_out, _ = tiny_prompts((30,) * 5, seed=7)
    plan = osp.Plan.manual([0, 2, LAYERS], LAYERS, codebook=book, levels=[1, None, 2])
    found = osp.verify(plan, language, held_out, codebook=book, max_accuracy_drop=1.0)
    assert_measured(found.trials[0].measured, judge_rows(language, held_out, plan, book))
    assert found.trials[0].measured.loss > 1e-2


def test_choices_measured_together_are_those_measured_alone(language: PreTrainedModel) -> None:
    choices: list[dict[int, AnyCodec]] = [{}, {1: "int4"}, {0: "int8", 2: "int4"}]
    batches: list[int] = []
    reference = held_out(language, tiny_prompts((30,) * 3)[0], kept_bytes=0)  # no output of the model is kept
    together = reference.measure_each(choices, on_batch=batches.append)
    assert together == [reference.measure(codecs) for codecs in choices]
    assert 0 == together[0].loss < together[2].loss
    assert batches == [0, 1, 2]


def test_figures_of_fixed_codecs_need_no_codebook(language: PreTrainedModel) -> None:
    ids, _ = tiny_prompts((30,) * 5, seed=7)
    plan = osp.Plan.manual([1, 3], LAYERS, codecs=["int4", "int8:16"])
    found = osp.verify(plan, language, ids, max_accuracy_drop=1.0)
    assert_measured(found.trials[0].measured, judge_rows(language, ids, plan))


def test_figures_of_an_encoder_are_cosine_distances() -> None:
    bert = tiny_bert()
    ids, _ = tiny_prompts((12,) * 6)
    plan = osp.Plan.manual([2], LAYERS, codecs=["int4"])
    found = osp.verify(plan, bert, ids, max_accuracy_drop=1.0).trials[0].measured
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert_measured(found, judge(bert, inputs, {2: "int4"}))
    assert found.accuracy == pytest.approx(1.0)


def test_an_uncompressed_plan_loses_nothing(digits: Digits) -> None:
    plan = digits.plan(None, None)
    found = digits.verify(plan, max_accuracy_drop=0.0)
    assert (found.trials[0].measured.loss, found.trials[0].measured.drop) == (0.0, 0.0)
    assert found.trials[0].predicted_loss == 0.0
    assert found.is_within
    assert found.plan == plan


def test_samples_are_drawn_by_seed(digits: Digits) -> None:
    plan = digits.plan("klt 0.5", "klt 0.5")
    trials = [
        digits.verify(plan, max_accuracy_drop=1.0, samples=100, seed=seed).trials[0].measured for seed in (0, 0, 1)
    ]
    assert [one.samples for one in trials] == [100] * 3
    assert trials[0] == trials[1]
    assert trials[0].loss != trials[2].loss


def test_progress_names_the_plan_and_rises(digits: Digits) -> None:
    told: list[tuple[str, float]] = []
    digits.verify(digits.plan(COARSEST, COARSEST, limit=0.02), progress=lambda *step: told.append(step))
    steps = list(dict.fromkeys(step for step, _ in told))
    assert len(steps) > 1
    for step in steps:
        fractions = [fraction for name, fraction in told if name == step]
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0


# Limits.


def test_a_plan_within_the_limit_is_returned_as_it_is(digits: Digits) -> None:
    plan = digits.plan("klt 4", "klt 2", limit=0.01)
    found = digits.verify(plan, replan=_never)
    assert found.plan == plan
    assert len(found.trials) == 1
    assert found.is_within
    assert found.max_accuracy_drop == 0.01
    assert "no plan" not in str(found)


def _never(budget: float) -> osp.Plan:
    raise AssertionError(f"planned again for {budget}")


@pytest.mark.parametrize("limit", [0.002, 0.01, 0.05])
def test_a_plan_above_the_limit_is_tightened_until_it_keeps_it(digits: Digits, limit: float) -> None:
    plan = digits.plan(COARSEST, COARSEST, limit=limit)
    assert float(digits.judge(plan).drop.mean()) > limit
    found = digits.verify(plan)
    assert found.is_within
    assert float(digits.judge(found.plan).drop.mean()) <= limit
    assert found.plan.max_accuracy_drop == limit
    assert found.plan.codebook == digits.book.hex_id
    assert [stage.cut for stage in found.plan.stages] == [stage.cut for stage in plan.stages]
    assert [trial.measured.drop <= limit for trial in found.trials] == [False] * (len(found.trials) - 1) + [True]
    assert found.best is found.trials[-1]
    expected = [trial.predicted_loss for trial in found.trials]
    assert all(after <= 0.8 * before for before, after in pairwise(expected))
    for trial in found.trials:
        assert_measured(trial.measured, digits.judge(trial.plan))
    if limit > 0.004:
        assert any(stage.codec for stage in found.plan.stages)  # and not by giving up on compression


def test_the_limit_of_the_call_goes_before_that_of_the_plan(digits: Digits) -> None:
    plan = digits.plan(COARSEST, COARSEST, limit=1.0)
    assert len(digits.verify(plan).trials) == 1
    found = digits.verify(plan, max_accuracy_drop=0.02)
    assert found.max_accuracy_drop == 0.02
    assert found.plan.max_accuracy_drop == 0.02
    assert found.best.measured.drop <= 0.02


def test_slow_links_are_compressed_first(digits: Digits) -> None:
    differ = []
    for limit in (0.02, 0.05, 0.1, 0.2):
        plan = digits.plan(COARSEST, COARSEST, limit=limit)
        bits = []
        for rates in ((1e3, 1e9), (1e9, 1e3)):
            links = tuple(osp.PlanLink(bytes_per_s=rate) for rate in rates)
            found = digits.verify(replace(plan, links=links)).plan
            assert found.links == links
            chosen = [(stage.cut, stage.codebook_level) for stage in found.stages[:-1]]
            levels = [None if level is None else digits.book.level_at(cut, level) for cut, level in chosen]
            bits.append([32.0 if level is None else level.bits_per_element for level in levels])
        assert bits[0][0] <= bits[1][0]
        assert bits[1][1] <= bits[0][1]
        differ.append(bits[0] != bits[1])
    assert any(differ)


def test_plans_are_made_again_with_falling_budgets(digits: Digits) -> None:
    budgets: list[float] = []

    def replan(budget: float) -> osp.Plan:
        budgets.append(budget)
        return digits.plan(*[fewest_bits(digits.book, cut, budget / 2) for cut in (1, 3)], cuts=(1, 3))

    plan = replace(digits.plan(COARSEST, "fisher 1", limit=0.004), model="digits")
    found = digits.verify(plan, replan=replan)
    assert found.plan.model == "digits"  # of the plan that was verified
    assert len(budgets) >= 1
    assert len(found.trials) == len(budgets) + 1
    for trial, budget in zip(found.trials, budgets, strict=False):
        assert 0 <= budget <= 0.8 * trial.predicted_loss
        proportional = trial.predicted_loss * 0.004 / trial.measured.drop
        assert budget <= proportional
    assert budgets == sorted(budgets, reverse=True)
    assert found.is_within
    assert [stage.cut for stage in found.plan.stages[:-1]] == [1, 3]  # that of replan, with the limit it was made for
    assert found.plan.max_accuracy_drop == 0.004
    assert float(digits.judge(found.plan).drop.mean()) <= 0.004


def fewest_bits(book: osp.Codebook, cut: int, budget: float) -> str | None:
    within = [level for level in book.levels(cut) if level.loss <= budget]
    return min(within, key=lambda level: level.bits_per_element).name if within else None


def test_a_replanner_that_never_gets_better_comes_to_an_end(digits: Digits) -> None:
    plans = [digits.plan(COARSEST, "fisher 1"), digits.plan(COARSEST, COARSEST)]
    budgets: list[float] = []

    def replan(budget: float) -> osp.Plan:
        budgets.append(budget)
        assert len(budgets) < 50
        return plans[len(budgets) % 2]

    found = digits.verify(plans[1], max_accuracy_drop=0.001, replan=replan)
    # At last with nothing compressed, which keeps any limit.
    assert found.is_within
    assert found.best is found.trials[-1]
    assert all(stage.codec is None for stage in found.plan.stages)


def test_where_no_plan_fits_the_best_found_is_given(digits: Digits) -> None:
    def replan(budget: float) -> osp.Plan:
        raise osp.InfeasiblePlanError("the links are too slow")

    plan = digits.plan(COARSEST, COARSEST, limit=0.001)
    found = digits.verify(plan, replan=replan)
    assert not found.is_within
    assert found.plan == plan
    assert len(found.trials) == 1


def test_what_cannot_be_tightened_is_said(digits: Digits) -> None:
    plan = osp.Plan.manual([1], digits.book.model.layers, codecs=["topk"])
    found = digits.verify(plan, codebook=None, max_accuracy_drop=0.0001)
    assert found.best.measured.drop > 0.0001
    assert not found.is_within
    assert found.plan == plan
    assert len(found.trials) == 1
    assert "no measured plan is within the limit" in str(found)


def test_fixed_codecs_can_be_planned_again(digits: Digits) -> None:
    layers = digits.book.model.layers
    budgets: list[float] = []

    def replan(budget: float) -> osp.Plan:
        budgets.append(budget)
        return osp.Plan.manual([1], layers, codecs=["int8"])

    found = digits.verify(
        osp.Plan.manual([1], layers, codecs=["topk"]), codebook=None, max_accuracy_drop=0.0001, replan=replan
    )
    assert len(budgets) == 1
    assert found.is_within
    assert [stage.codec for stage in found.plan.stages] == ["int8", None]


def test_fixed_codecs_in_a_codebook_are_levels_as_others() -> None:
    model, data = tiny_vit(), tiny_images(40)
    book = osp.calibrate(model, data, cuts=[1, 2], codecs=("int8", "int4", "fisher"), levels=(1.0,))
    level = len(book.levels(2)) - 1
    plan = osp.Plan.manual([2], LAYERS, codebook=book, levels=[level])
    found = osp.verify(plan, model, tiny_images(60, seed=1), codebook=book, max_accuracy_drop=0.0)
    assert found.is_within


# What is refused.


def test_another_codebook_is_refused_with_both_ids(digits: Digits) -> None:
    plan = digits.plan("klt 4", None, limit=0.01)
    other = osp.calibrate(digits.model, digits.held_out, cuts=[1, 2], levels=(4, 2, 1, 0.5))
    with pytest.raises(ValueError, match=f"the plan needs codebook {digits.book.hex_id}, none is given"):
        digits.verify(plan, codebook=None)
    with pytest.raises(ValueError, match=f"{digits.book.hex_id}, this is codebook {other.hex_id}"):
        digits.verify(plan, codebook=other)
    # Nor may the plans that `replan` makes be of another.
    made = osp.Plan.manual([1], other.model.layers, codebook=other, levels=[0])
    with pytest.raises(ValueError, match=f"{other.hex_id}, this is codebook {digits.book.hex_id}"):
        digits.verify(digits.plan(COARSEST, COARSEST, limit=0.001), replan=lambda _budget: made)


def test_another_model_is_refused_by_its_layer(digits: Digits) -> None:
    plan = digits.plan("klt 4", None, limit=0.01)
    model = type(digits.model)(digits.model.config)
    model.load_state_dict(digits.model.state_dict())
    assert osp.verify(plan, model, digits.held_out, codebook=digits.book).is_within
    with torch.no_grad():
        model.vit.layers[1].mlp.fc1.weight.add_(0.5)
    with pytest.raises(ValueError, match=r"layer 1 of .* has other weights"):
        osp.verify(plan, model, digits.held_out, codebook=digits.book)


@pytest.mark.parametrize("layers", [2, 4])
def test_a_model_of_other_layers_is_refused(digits: Digits, layers: int) -> None:
    # Its layers are those of the codebook, but there are fewer or more of them.
    config = type(digits.model.config)(**{**digits.model.config.to_dict(), "num_hidden_layers": layers})
    model = type(digits.model)(config)
    model.load_state_dict(digits.model.state_dict(), strict=False)
    with pytest.raises(ValueError, match=f"{layers} layers"):
        osp.verify(digits.plan("klt 4", None, limit=0.01), model, digits.held_out, codebook=digits.book)


@pytest.mark.parametrize("cut", [2, 5])
def test_a_plan_for_other_layers_is_refused(language: PreTrainedModel, cut: int) -> None:
    plan = osp.Plan.manual([cut], LAYERS + 2, codecs=["int8"])
    with pytest.raises(ValueError, match="layers"):
        osp.verify(plan, language, tiny_prompts((8,) * 4)[0], max_accuracy_drop=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_accuracy_drop": None}, "max_accuracy_drop is missing: the plan was made without one"),
        ({"max_accuracy_drop": -0.1}, r"max_accuracy_drop is -0\.1, must be from 0 to 1"),
        ({"max_accuracy_drop": 1.5}, r"max_accuracy_drop is 1\.5"),
        ({"samples": 0}, "samples is 0, must be from 1 to the 597 there are"),
        ({"samples": 598}, "samples is 598"),
    ],
)
def test_arguments_that_make_no_sense_are_named(digits: Digits, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        digits.verify(digits.plan("klt 4", None), **{"max_accuracy_drop": 0.1, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_accuracy_drop": "0.1"}, r"max_accuracy_drop is '0\.1', must be a number"),
        ({"samples": 5.0}, r"samples is 5\.0, must be an integer"),
        ({"seed": "1"}, "seed is '1', must be an integer"),
        ({"replan": 0.5}, r"replan is 0\.5, must be a function"),
        ({"progress": True}, "progress is True, must be a function"),
        ({"codebook": 7}, "codebook is a int, must be a Codebook or the path of one"),
    ],
)
def test_arguments_of_a_wrong_type_are_named(digits: Digits, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        digits.verify(digits.plan("klt 4", None), **{"max_accuracy_drop": 0.1, **options})


def test_what_is_no_plan_or_no_model_is_named(digits: Digits) -> None:
    plan = digits.plan("klt 4", None, limit=0.1)
    with pytest.raises(TypeError, match="plan is a dict, must be a Plan"):
        osp.verify({}, digits.model, digits.held_out, codebook=digits.book)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model is a int, must be a path, a hub id or a model of transformers"):
        osp.verify(plan, 7, digits.held_out, codebook=digits.book)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prompt_tokens": "8"}, TypeError, "prompt_tokens is '8', must be an integer"),
        ({"positions": 0}, ValueError, "positions is 0, must be at least 1"),
        ({"kept_bytes": -1}, ValueError, "kept_bytes is -1, must be at least 0"),
        ({"dtype": "float32"}, TypeError, r"dtype is 'float32', must be a torch\.dtype"),
    ],
)
def test_arguments_of_held_out_are_checked(
    digits: Digits, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        held_out(digits.model, digits.held_out, **options)


def test_cuts_that_a_model_does_not_have_are_named(digits: Digits) -> None:
    reference = held_out(digits.model, digits.held_out, samples=2)
    layers = len(digits.model.vit.layers)
    for cut in (-1, layers + 1):
        with pytest.raises(ValueError, match=f"a cut is {cut}, it must be from 0 to {layers}"):
            reference.measure({cut: "int8"})
    with pytest.raises(TypeError, match="a cut is '1', must be an integer"):
        reference.measure({"1": "int8"})  # type: ignore[dict-item]


def test_random_plans_are_of_cuts_and_levels_of_the_book(digits: Digits) -> None:
    book = digits.book
    plans = random_plans(book, 50, seed=1, most_cuts=2)
    assert plans == random_plans(book, 50, seed=1, most_cuts=2)
    assert plans != random_plans(book, 50, seed=2, most_cuts=2)
    assert {len(plan) for plan in plans} == {1, 2}
    assert all(0 <= level < len(book.levels(cut)) for plan in plans for cut, level in plan.items())
    empty = osp.Codebook(book.model, {}, {}, accuracy=book.accuracy, provenance={})
    for options, error, message in (
        ({"count": "3"}, TypeError, "count is '3', must be an integer"),
        ({"count": -1}, ValueError, "count is -1, must be at least 0"),
        ({"most_cuts": 0}, ValueError, "most_cuts is 0, must be at least 1"),
        ({"seed": 0.5}, TypeError, "seed is 0.5, must be an integer"),
        ({"book": empty}, ValueError, "the codebook has no cuts"),
    ):
        given: dict[str, Any] = {"book": book, "count": 3, "seed": 0, **options}
        with pytest.raises(error, match=message):
            random_plans(**given)


def test_surprise_is_an_old_name() -> None:
    found = dataclasses.replace(measured(0.1), nll_increase=0.5, nll_increase_error=0.25)
    with pytest.warns(DeprecationWarning, match=r"Measured\.surprise is now Measured\.nll_increase"):
        assert found.surprise == 0.5
    with pytest.warns(DeprecationWarning, match=r"Measured\.surprise_error is now Measured\.nll_increase_error"):
        assert found.surprise_error == 0.25


def test_data_of_another_kind_is_refused(digits: Digits) -> None:
    with pytest.raises(TypeError, match="needs a pair of tensors"):
        osp.verify(digits.plan("klt 4", None, limit=0.1), digits.model, ["a text"], codebook=digits.book)


# As data.


def measured(drop: float) -> osp.Measured:
    values: dict[str, Any] = {field.name: 0.0 for field in fields(osp.Measured)}
    return osp.Measured(**{**values, "drop": drop, "samples": 10})


def verification(limit: float, *drops: float) -> osp.Verification:
    plans = [replace(osp.Plan.manual([1], 4), model=str(k)) for k in range(len(drops))]
    trials = [osp.Trial(plan, 0.1, measured(drop)) for plan, drop in zip(plans, drops, strict=True)]
    return osp.Verification(limit, tuple(trials))


def test_the_plan_is_the_first_within_or_the_least() -> None:
    assert verification(0.1, 0.3, 0.1, 0.05).plan.model == "1"
    assert verification(0.1, 0.3, 0.1, 0.05).is_within
    assert verification(0.01, 0.3, 0.1, 0.2).plan.model == "1"
    assert not verification(0.01, 0.3, 0.1, 0.2).is_within


def test_a_verification_is_json(digits: Digits) -> None:
    found = digits.verify(digits.plan(COARSEST, COARSEST, limit=0.01))
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert osp.Plan.from_dict(data["plan"]) == found.plan
    assert data["is_within"] is True
    assert data["max_accuracy_drop"] == 0.01
    assert [one["drop"] for one in data["trials"]] == [trial.measured.drop for trial in found.trials]
    assert [one["predicted_loss"] for one in data["trials"]] == [trial.predicted_loss for trial in found.trials]
    assert all(len(one["drop_interval"]) == 2 and one["samples"] == 597 for one in data["trials"])


def test_a_verification_in_words(digits: Digits) -> None:
    found = digits.verify(digits.plan(COARSEST, COARSEST, limit=0.01))
    lines = str(found).splitlines()
    assert len(lines) == len(found.trials)
    assert ["above" in line for line in lines] == [True] * (len(lines) - 1) + [False]
    assert "within the limit of 1.00" in lines[-1]
    assert "597 samples" in lines[0]


def test_a_model_in_another_dtype_is_refused(digits: Digits) -> None:
    plan = dataclasses.replace(digits.plan("klt 4", None, limit=0.01), dtype="bfloat16")
    with pytest.raises(ValueError, match=r"the plan is for a model in bfloat16, .* is in float32"):
        osp.verify(plan, digits.model, digits.held_out, codebook=digits.book)
