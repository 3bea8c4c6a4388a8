"""Verified plans whose stages have weights of their own: the judge is one model of the dequantised weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import orbitsplit as osp
from orbitsplit.calibration import _composite as composite
from orbitsplit.calibration import held_out
from tests.judges.calibration import Judged, judge
from tests.judges.converted import with_weights_of
from tests.support.tiny_encoders import tiny_bert, tiny_images, tiny_vit
from tests.support.tiny_models import LAYERS, one_thread, sampled_rows, save_tiny_model, tiny_prompts

TOKENS, ROWS = 40, 3
WEIGHTS = ("int8", None, "int4")
# Stages round activations to 16 bits where they multiply; the judge multiplies floats. A codec behind them rounds a few
# elements to the other side, which is as much as the codec itself loses of these.
CLOSE = {"rel": 2e-3, "abs": 5e-5}
CLOSE_BEHIND_CODECS = {"rel": 0.03}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny model whose head is tied, and what `convert` makes of it."""
    path = tmp_path_factory.mktemp("weights")
    save_tiny_model(path / "float", "qwen3", tie_word_embeddings=True)
    osp.convert(path / "float", path / "int8", weights="int8")
    osp.convert(path / "float", path / "int4", weights="int4", head="int8")
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder / "float", dtype=torch.float32).eval()  # type: ignore[no-any-return]


def ids_of(rows: int = ROWS, *, seed: int = 3) -> Tensor:
    return tiny_prompts((TOKENS,) * rows, seed=seed)[0]


def plan_of(
    folder: Path,
    *names: str | None,
    cuts: tuple[int, ...] = (1, 3),
    codecs: tuple[str | None, ...] | None = None,
    limit: float | None = 1.0,
) -> osp.Plan:
    plan = osp.Plan.manual(cuts, LAYERS, codecs=codecs)
    stages = [replace(stage, weights=name) for stage, name in zip(plan.stages, names, strict=True)]
    models = {name: str(folder / name) for name in names if name is not None}
    return replace(plan, stages=tuple(stages), weight_models=models, max_accuracy_drop=limit)


def judge_rows(model: PreTrainedModel, ids: Tensor, plan: osp.Plan, book: osp.Codebook | None = None) -> Judged:
    codecs: dict[int, Any] = {}
    for stage in plan.stages[:-1]:
        if stage.codebook_level is not None:
            assert book is not None
            codecs[stage.cut] = book[stage.cut, stage.codebook_level]
        elif stage.codec is not None:
            codecs[stage.cut] = stage.codec
    other = with_weights_of(plan, model)
    rows = [judge(model, {"input_ids": row[None]}, codecs, book, composite=other) for row in ids]
    values = {name: torch.cat([getattr(one, name) for one in rows]) for name in vars(rows[0]) if name[0] != "b"}
    return Judged(**values, bits_per_element=sum(one.bits_per_element for one in rows) / len(rows))


def assert_measured(found: osp.Measured, judged: Judged) -> None:
    for name in ("loss", "drop", "expected_drop", "nll_increase"):
        assert getattr(found, name) == pytest.approx(float(getattr(judged, name).mean()), **CLOSE), name


MIXES = [WEIGHTS, ("int4", "int4", None), (None, "int8", "int4"), ("int8", "int8", "int8")]


@pytest.mark.parametrize("names", MIXES)
def test_figures_are_those_of_a_model_of_the_dequantised_weights(
    model: PreTrainedModel, folder: Path, names: tuple[str | None, ...]
) -> None:
    plan = plan_of(folder, *names)
    assert_measured(osp.verify(plan, model, ids_of()).trials[0].measured, judge_rows(model, ids_of(), plan))


@pytest.mark.parametrize("names", MIXES)
def test_weights_and_codecs_are_measured_together(
    model: PreTrainedModel, folder: Path, names: tuple[str | None, ...]
) -> None:
    codecs = ("int8", "int4")
    plan = plan_of(folder, *names, codecs=codecs)
    found = osp.verify(plan, model, ids_of()).trials[0].measured
    judged = judge_rows(model, ids_of(), plan)
    assert found.loss == pytest.approx(float(judged.loss.mean()), **CLOSE_BEHIND_CODECS)
    assert found.bits_per_element == pytest.approx(judged.bits_per_element, rel=0.1)
    # Neither the codecs nor the weights alone make as much of a loss.
    for part in (plan.uncompressed(), osp.Plan.manual([1, 3], LAYERS, codecs=codecs)):
        alone = osp.verify(part, model, ids_of(), max_accuracy_drop=1.0).trials[0].measured
        assert alone.loss < 0.97 * found.loss


@pytest.mark.parametrize("cuts", [(0,), (LAYERS,), ()])
def test_a_stage_may_be_the_embeddings_or_the_head_alone(
    model: PreTrainedModel, folder: Path, cuts: tuple[int, ...]
) -> None:
    plan = plan_of(folder, *("int4", "int8")[: len(cuts) + 1], cuts=cuts)
    found = osp.verify(plan, model, ids_of()).trials[0].measured
    assert_measured(found, judge_rows(model, ids_of(), plan))
    assert found.loss > 1e-5
    assert found.bits_per_element == 32.0


def test_calibrated_levels_and_weights_are_measured_together(model: PreTrainedModel, folder: Path) -> None:
    book = osp.calibrate(
        folder / "float",
        ids_of(8, seed=5),
        cuts=[1, 3],
        levels=(3.0,),
        codecs=("channel",),
        measure_samples=2,
        weights=("int8", "int4"),
    )
    plan = plan_of(folder, *WEIGHTS).with_levels(book, {1: 0, 3: 0})
    trial = osp.verify(plan, model, ids_of(), codebook=book).trials[0]
    judged = judge_rows(model, ids_of(), plan, book)
    assert trial.measured.loss == pytest.approx(float(judged.loss.mean()), **CLOSE_BEHIND_CODECS)
    of_weights = sum(book.weights["int8"].loss[:2]) + sum(book.weights["int4"].loss[4:])
    assert trial.predicted_loss == pytest.approx(sum(book.levels(cut)[0].loss for cut in (1, 3)) + of_weights)


def test_the_model_is_left_as_it_was_and_measures_as_before(model: PreTrainedModel, folder: Path) -> None:
    before = dict(model.named_modules())
    alone = osp.Plan.manual([1, 3], LAYERS, codecs=("int8", "int4"))
    first, between, last = (
        osp.verify(plan, model, ids_of(), max_accuracy_drop=1.0).trials[0].measured
        for plan in (alone, plan_of(folder, *WEIGHTS), alone)
    )
    assert first == last != between
    assert dict(model.named_modules()) == before


def test_outputs_that_are_not_kept_are_those_of_the_model_alone(folder: Path) -> None:
    plan = plan_of(folder, *WEIGHTS)
    found = []
    for kept_bytes in (1 << 20, 0):
        reference = held_out(folder / "float", ids_of(), kept_bytes=kept_bytes)
        made = composite.Composite(reference.hooked)
        made.load(plan)
        found.append(reference.measure({}, within=lambda made=made: made.holding(plan)))  # type: ignore[misc]
    assert found[0] == found[1]
    assert found[0].loss > 0


def test_only_what_stages_run_is_loaded_and_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[tuple[str, int, int, list[str]]] = []
    load = composite.load_part

    def watched(name: Any, start: int, stop: int, **options: Any) -> Any:
        part, layout = load(name, start, stop, **options)
        loaded.append((Path(name).name, start, stop, [key for key, _ in part.named_parameters()]))
        return part, layout

    monkeypatch.setattr(composite, "load_part", watched)
    plan = plan_of(folder, *WEIGHTS, codecs=("int4", "int4"), limit=0.0)
    osp.verify(
        plan, folder / "float", ids_of(), replan=lambda _budget: plan_of(folder, *WEIGHTS, codecs=(None, "int8"))
    )
    assert [part[:3] for part in loaded] == [("int8", 0, 2), ("int4", 4, 6)]
    layers = [{key.split(".")[2] for key in part[3] if ".layers." in key} for part in loaded]
    assert layers == [{"0"}, {"3"}]


# Limits.


def test_a_plan_above_the_limit_keeps_its_weights_and_gets_better_levels(model: PreTrainedModel, folder: Path) -> None:
    book = osp.calibrate(
        model,
        sampled_rows(model, 8, TOKENS, seed=1),
        cuts=[1, 3],
        levels=(8.0, 5.0, 1.0),
        codecs=("channel",),
        measure_samples=2,
        weights=("int8",),
    )
    plan = plan_of(folder, "int8", None, "int8", limit=0.05)
    coarsest = {cut: len(book.levels(cut)) - 1 for cut in (1, 3)}
    found = osp.verify(plan.with_levels(book, coarsest), model, sampled_rows(model, 6, TOKENS, seed=2), codebook=book)
    assert found.trials[0].measured.drop > 0.05
    assert found.is_within
    assert found.best is found.trials[-1]
    assert any(stage.codec for stage in found.plan.stages)
    assert [stage.weights for stage in found.plan.stages] == ["int8", None, "int8"]
    assert found.plan.weight_models == plan.weight_models
    # Of each budget the weights take their part first.
    of_weights = sum(book.weights["int8"].loss[:2]) + sum(book.weights["int8"].loss[4:])
    assert all(trial.predicted_loss >= of_weights for trial in found.trials)
    assert found.trials[1].predicted_loss <= 0.8 * found.trials[0].predicted_loss


def test_weights_that_lose_too_much_are_planned_again(model: PreTrainedModel, folder: Path) -> None:
    budgets: list[float] = []

    def replan(budget: float) -> osp.Plan:
        budgets.append(budget)
        return plan_of(folder, *(("int4", None, None) if len(budgets) == 1 else (None,) * 3), limit=None)

    text = sampled_rows(model, 6, TOKENS, seed=2)
    plan = plan_of(folder, "int4", "int4", "int4", limit=0.003)
    found = osp.verify(plan, model, text, replan=replan)
    assert [trial.measured.drop > 0.003 for trial in found.trials] == [True, True, False]
    assert 0 < budgets[1] < budgets[0] < found.trials[0].measured.loss
    assert found.plan.max_accuracy_drop == 0.003
    assert found.plan.weight_models == {}
    # Without a planner there is nothing to try.
    alone = osp.verify(plan, model, text)
    assert not alone.is_within
    assert len(alone.trials) == 1


# Other models.


def test_images_and_texts_without_a_head_are_measured_too(tmp_path: Path) -> None:
    for name, made, data in (("vit", tiny_vit(), tiny_images(8)), ("bert", tiny_bert(), ids_of())):
        made.eval().save_pretrained(tmp_path / name)
        osp.convert(tmp_path / name, tmp_path / f"{name}-int4", weights="int4")
        plan = plan_of(tmp_path, f"{name}-int4", None, f"{name}-int4")
        stages = osp.verify(plan, tmp_path / name, data).trials[0].measured
        whole = plan_of(tmp_path, *[f"{name}-int4"] * 3)
        assert 0 < stages.loss != osp.verify(whole, tmp_path / name, data).trials[0].measured.loss


def test_weights_of_another_model_are_refused(folder: Path, tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "other", "qwen3", seed=1, tie_word_embeddings=True)
    plan = plan_of(folder, *WEIGHTS)
    with pytest.raises(ValueError, match=r"weights 'int8' in .*int8 were converted from another model than .*other"):
        osp.verify(plan, tmp_path / "other", ids_of())
    save_tiny_model(tmp_path / "gpt2", "gpt2")
    osp.convert(tmp_path / "gpt2", tmp_path / "int8")
    with pytest.raises(ValueError, match=r"'int8' are of another architecture than the model: .* a GPT2LMHeadModel"):
        osp.verify(plan_of(tmp_path, "int8", None, None), folder / "float", ids_of())
    with pytest.raises(FileNotFoundError, match="missing"):
        osp.verify(
            replace(plan, weight_models={**plan.weight_models, "int4": str(tmp_path / "missing")}),
            folder / "float",
            ids_of(),
        )
