"""Calibration: losses equal to those of a whole model with real frames in between, what is kept, asked and refused."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

import orbitsplit as osp
from orbitsplit import calibration
from orbitsplit._backend import backend
from orbitsplit._codebook.codebook import CodebookEntry
from orbitsplit._codebook.halves import stored
from orbitsplit._io.tensor_file import read_tensors, write_tensors
from orbitsplit.calibration import _checkpoint, _fit, _statistics
from orbitsplit.calibration._candidates import Candidate, worth_keeping
from orbitsplit.calibration._fit import geometry
from orbitsplit.calibration._options import CalibrationKeywords
from orbitsplit.calibration._statistics import CutStatistics
from tests.judges.calibration import AnyCodec, error_of_mean, judge, layers_of
from tests.support.tiny_encoders import LABELS, tiny_bert, tiny_images, tiny_vit
from tests.support.tiny_models import (
    HIDDEN,
    LAYERS,
    VOCABULARY,
    one_thread,
    save_tiny_model,
    save_tiny_tokenizer,
    tiny_model,
    tiny_prompts,
)

ROWS, TOKENS, MEASURED = 6, 40, 2
WORDS = ["the", "satellite", "passes", "over", "station", "and", "sends", "data"]
ALL_CODECS = ("channel", "fisher", "klt", "int8:32", "int4", "topk")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def ids_of(rows: int = ROWS, tokens: int = TOKENS, *, seed: int = 0) -> Tensor:
    return tiny_prompts((tokens,) * rows, seed=seed)[0]


def small(model: Any, data: Any = None, **options: Any) -> osp.Codebook:
    """Calibrate the least that has all parts: two cuts, two codecs at two levels, on a few rows."""
    given: dict[str, Any] = {"cuts": [1, 3], "levels": (4.0, 2.0), "codecs": ("fisher", "klt"), "fit_samples": 4}
    return osp.calibrate(model, ids_of() if data is None else data, **{**given, "measure_samples": MEASURED, **options})


def numbers(book: osp.Codebook) -> Any:
    """Return all that a book says but its seconds."""
    levels = {
        cut: [replace(level, encode_s_per_byte=0.0, decode_s_per_byte=0.0) for level in book.levels(cut)]
        for cut in book.cuts
    }
    return book.codebook_id, levels, book.accuracy, dict(book.provenance)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def model(directory: Path) -> PreTrainedModel:
    saved = save_tiny_model(directory)
    save_tiny_tokenizer(directory)
    return saved


@pytest.fixture(scope="module")
def book(model: PreTrainedModel) -> osp.Codebook:
    return osp.calibrate(model, ids_of(), codecs=ALL_CODECS, levels=(4, 2), fit_samples=4, measure_samples=MEASURED)


# What levels lose.


def every_level(book: osp.Codebook) -> list[tuple[int, int]]:
    return [(cut, k) for cut in book.cuts for k in range(len(book.levels(cut)))]


def assert_losses_are_those_of_some_samples(
    book: osp.Codebook, judged: Callable[[dict[int, AnyCodec]], Any], measured: int
) -> None:
    """Which samples were measured on is calibration's choice, but it must be the same ones for all levels."""
    found = {key: judged({key[0]: book[key]}) for key in every_level(book)}
    samples = len(next(iter(found.values())).loss)
    fitting = [
        chosen
        for chosen in combinations(range(samples), measured)
        if all(
            book.level_at(*key).loss == pytest.approx(float(one.loss[list(chosen)].mean()), rel=2e-3, abs=2e-6)
            for key, one in found.items()
        )
    ]
    assert len(fitting) == 1
    for key, one in found.items():
        error = error_of_mean(one.loss[list(fitting[0])])
        assert book.level_at(*key).loss_error == pytest.approx(error, rel=5e-3, abs=2e-6)
    assert max(float(one.loss.mean()) for one in found.values()) > 1e-3  # the comparison is not one of zeros


def test_losses_at_every_cut_are_those_of_the_whole_model(book: osp.Codebook, model: PreTrainedModel) -> None:
    assert book.cuts == tuple(range(LAYERS + 1))
    fixed = {book[key] for key in every_level(book) if isinstance(book[key], str)}
    assert fixed >= {"int8:32"}
    assert_losses_are_those_of_some_samples(
        book, lambda codecs: judge(model, {"input_ids": ids_of()}, codecs, book), MEASURED
    )


@pytest.mark.parametrize("codec", ["int8:16", "int4", "topk"])
def test_losses_of_fixed_codecs_are_those_of_the_whole_model(codec: str, model: PreTrainedModel) -> None:
    book = small(model, codecs=(codec,), cuts="all")
    assert [book[cut, 0] for cut in book.cuts] == [codec] * (LAYERS + 1)
    assert all(len(book.levels(cut)) == 1 for cut in book.cuts)
    assert_losses_are_those_of_some_samples(
        book, lambda codecs: judge(model, {"input_ids": ids_of()}, codecs, book), MEASURED
    )


def test_bits_are_those_of_frames(book: osp.Codebook, model: PreTrainedModel) -> None:
    for key in every_level(book):
        found = [judge(model, {"input_ids": row[None]}, {key[0]: book[key]}, book) for row in ids_of()]
        bits = [one.bits_per_element for one in found]
        assert min(bits) <= book.level_at(*key).bits_per_element <= max(bits)
        assert book.level_at(*key).ratio("float32") == pytest.approx(32 / book.level_at(*key).bits_per_element)
        assert book.level_at(*key).ratio("bfloat16") == pytest.approx(16 / book.level_at(*key).bits_per_element)


def test_losses_of_a_classifier_of_images() -> None:
    vit = tiny_vit()
    pixels, labels = tiny_images(24)
    book = osp.calibrate(vit, (pixels, labels), levels=(3, 1.5), fit_samples=21, measure_samples=3)
    assert (book.model.layers, book.model.width, book.model.architecture) == (LAYERS, HIDDEN, type(vit).__name__)
    assert book.cuts == tuple(range(LAYERS + 1))

    def judged(codecs: dict[int, AnyCodec]) -> Any:
        return judge(vit, {"pixel_values": pixels}, codecs, book, labels=labels)

    assert_losses_are_those_of_some_samples(book, judged, 3)


def test_losses_of_an_encoder_are_cosine_distances() -> None:
    bert = tiny_bert()
    ids = ids_of(12, 15)
    book = osp.calibrate(bert, ids, levels=(3, 1.5), fit_samples=9, measure_samples=3)
    assert_losses_are_those_of_some_samples(
        book, lambda codecs: judge(bert, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, codecs, book), 3
    )


def longer_padding(tokenizer: Any, extra: int) -> Callable[..., Any]:
    """Return a tokenizer that pads by some tokens more than is needed."""

    def tokenize(texts: list[str], **options: Any) -> Any:
        made = tokenizer(texts, **options)
        more = torch.zeros(len(texts), extra, dtype=torch.long)
        return {name: torch.cat([made[name], more], 1) for name in ("input_ids", "attention_mask")}

    return tokenize


def test_padding_of_texts_counts_neither_in_fits_nor_in_losses(tmp_path: Path) -> None:
    bert = tiny_bert()
    save_tiny_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    choose = np.random.default_rng(0)
    texts = [" ".join(choose.choice(WORDS, length)) for length in range(4, 28)]
    options: dict[str, Any] = {"codecs": ("channel",), "levels": (3, 1.5), "measure_samples": 3}
    book = osp.calibrate(bert, texts, tokenizer=tokenizer, **options)
    made = tokenizer(texts, padding=True, return_tensors="pt")
    inputs = {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}
    assert bool((inputs["attention_mask"] == 0).any())
    assert_losses_are_those_of_some_samples(book, lambda codecs: judge(bert, inputs, codecs, book), 3)

    padded = osp.calibrate(bert, texts, tokenizer=longer_padding(tokenizer, 20), **options)
    for cut in book.cuts:
        one, other = book.codec_of(cut, 0), padded.codec_of(cut, 0)
        np.testing.assert_allclose(one.step, other.step, rtol=0.02)
        np.testing.assert_allclose(one.shift, other.shift, atol=1e-4)
        assert padded.levels(cut)[0].loss == pytest.approx(book.levels(cut)[0].loss, rel=0.1)


def test_an_activation_of_few_values_can_be_calibrated(model: PreTrainedModel) -> None:
    # Bits then hardly depend on the step, or jump: what is asked cannot be met, but work need not end.
    ids = ids_of(8) % 3 + 3
    book = small(model, ids, cuts=[0, 1], codecs=("channel", "fisher", "klt"), levels=(4.0, 2.0))
    for cut in book.cuts:
        assert max(level.bits_per_element for level in book.levels(cut)) < 8


def test_composite_losses_are_measured_and_make_the_curve(book: osp.Codebook) -> None:
    assert book.accuracy.points > 0
    assert book.accuracy.drop_per_loss >= 0
    assert book.accuracy.error >= 0


# Which levels are kept.


def test_levels_form_a_convex_hull_with_and_without_a_matrix(book: osp.Codebook) -> None:
    for cut in book.cuts:
        losses = [level.loss for level in book.levels(cut)]
        assert losses == sorted(losses)  # best quality first
        for has_matrix in (False, True):
            points = sorted(
                (level.bits_per_element, level.loss, level.loss_error)
                for k, level in enumerate(book.levels(cut))
                if (getattr(book[cut, k], "matrix", None) is not None) == has_matrix
            )
            assert points
            for (bits_a, loss_a, _), (bits_b, loss_b, _) in pairwise(points):
                assert bits_a < bits_b
                assert loss_a > loss_b
            for a, b, c in combinations(points, 3):
                # b below the line from a to c, as far as is known
                assert b[1] - b[2] < a[1] + (c[1] - a[1]) * (b[0] - a[0]) / (c[0] - a[0]) + 1e-12


def test_nothing_that_belongs_on_the_hull_is_left_out(model: PreTrainedModel) -> None:
    separate = [small(model, codecs=(codec,), cuts=[2]) for codec in ("channel", "fisher", "int4")]
    together = small(model, codecs=("channel", "fisher", "int4"), cuts=[2])
    kept = [(level.bits_per_element, level.loss) for level in together.levels(2)]
    for book in separate:
        for level in book.levels(2):
            bits = level.bits_per_element
            assert bits >= min(kept)[0] - 1e-9  # what takes the fewest bits is always kept
            # No point lies below the hull of those that were kept, extended flat to the right.
            below = [
                a[1] + (b[1] - a[1]) * (bits - a[0]) / (b[0] - a[0])
                for a in kept
                for b in kept
                if a[0] <= bits <= b[0] and a[0] < b[0]
            ]
            assert level.loss >= min(below, default=min(loss for _, loss in kept)) - 1e-9


def level(bits: float, loss: float, error: float, *, matrix: bool = False) -> Candidate:
    measured = osp.CodebookLevel(
        name=f"x {bits:g}",
        bits_per_element=bits,
        loss=loss,
        loss_error=error,
        encode_s_per_byte=0.0,
        decode_s_per_byte=0.0,
    )
    return Candidate(CodebookEntry(level=measured, arrays={"matrix": "m"} if matrix else {}), {})


def bits_kept(*candidates: Candidate) -> list[float]:
    return sorted(found.entry.level.bits_per_element for found in worth_keeping(candidates))


def test_a_level_above_the_hull_by_its_error_or_less_is_kept() -> None:
    # The hull from 2 to 4 bits passes 3 bits at a loss of 0.5.
    ends = level(2, 0.9, 0.3), level(4, 0.1, 0.05)
    assert bits_kept(*ends, level(3, 0.59, 0.1)) == [2, 3, 4]
    assert bits_kept(*ends, level(3, 0.61, 0.1)) == [2, 4]
    assert bits_kept(*ends, level(3, 0.61, 0.1, matrix=True)) == [2, 3, 4]  # a hull of its own


def test_a_level_of_more_bits_and_no_less_loss_is_left_out_whatever_its_error() -> None:
    assert bits_kept(level(2, 0.9, 0.3), level(3, 0.9, 0.5), level(4, 0.1, 0.05)) == [2, 4]
    assert bits_kept(level(2, 0.5, 0.3), level(2, 0.4, 0.3)) == [2]


def test_levels_without_a_matrix_are_kept_beside_better_ones_with_one() -> None:
    book = small(correlated(), ids_of(12, 60), cuts=[0], fit_samples=10)
    assert sorted(level.name for level in book.levels(0)) == ["fisher 2", "fisher 4", "klt 2", "klt 4"]


@pytest.mark.parametrize("codec", ["channel", "fisher", "klt"])
def test_levels_take_the_bits_that_were_asked_for(codec: str) -> None:
    # A batch so large that the header of a frame does not count.
    asked = (6.0, 4.0, 2.5, 1.2)
    book = osp.calibrate(
        tiny_vit(hidden=96, layers=2),
        tiny_images(192),
        cuts=[1],
        codecs=(codec,),
        levels=asked,
        fit_samples=128,
        measure_samples=64,
    )
    assert [level.bits_per_element for level in book.levels(1)] == pytest.approx(asked, rel=0.08)


def correlated(seed: int = 0) -> PreTrainedModel:
    """Return a model whose embeddings lie near a plane of four dimensions, in no direction of a single channel."""
    model = tiny_model(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    plane = torch.randn(VOCABULARY, 4, generator=generator) @ torch.randn(4, HIDDEN, generator=generator)
    noise = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(0.3 * plane + 0.01 * noise)
    return model


@pytest.mark.parametrize("bits", [2.0, 3.0])
def test_a_matrix_pays_where_channels_are_correlated(bits: float) -> None:
    model = correlated()
    found = {
        codec: small(model, ids_of(42, 60), cuts=[0], codecs=(codec,), levels=(bits,), fit_samples=40).levels(0)[0]
        for codec in ("fisher", "klt")
    }
    assert found["klt"].bits_per_element == pytest.approx(found["fisher"].bits_per_element, rel=0.06)
    assert found["klt"].loss < 0.5 * found["fisher"].loss


def test_sensitive_channels_get_smaller_steps() -> None:
    model = tiny_model()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight[:4] *= 8  # the model listens to four channels
            layer.post_attention_layernorm.weight[:4] *= 8
        model.model.norm.weight[:4] *= 8
    book = small(model, codecs=("fisher",), cuts=[2], levels=(3.0,))
    codec = book[2, 0]
    assert isinstance(codec, osp.CalibratedCodec)
    assert float(codec.step[:4].mean()) < 0.5 * float(codec.step[4:].mean())


# Massive rows.

MASSIVE_TOKEN, OUTLIER_RATIO = 5, 3000.0


@pytest.mark.parametrize(("gradients", "part"), [(1, 0.1), (4, 0.035), (100_000, 0.001)])
def test_a_channel_whose_gradients_were_zero_counts_the_less_the_more_there_were(gradients: int, part: float) -> None:
    statistics = CutStatistics.empty(2, is_whole=True)
    statistics.count, statistics.gradients = 1000, gradients
    statistics.fisher += gradients * torch.tensor([[2.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    statistics.products += 1000 * torch.eye(2, dtype=torch.float64)
    step = geometry("fisher", statistics).step
    assert step[1] / step[0] == pytest.approx(((2 + part) / part) ** 0.5)
    # The second moments of y are those of x weighed by the Fisher information and the same part of its mean, 1.
    klt = geometry("klt", statistics)
    assert klt.matrix is not None
    # Steps take over the powers of two of the rows, which float16 rounds.
    first, second = sorted(np.linalg.norm(klt.matrix, axis=1) / klt.step, reverse=True)
    assert first / second == pytest.approx(((2 + part) / part) ** 0.5, rel=2**-11)


def whole_statistics(width: int) -> CutStatistics:
    """Return statistics whose covariance and Fisher information are far from diagonal."""
    statistics = CutStatistics.empty(width, is_whole=True)
    source = torch.randn(width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    statistics.count = statistics.gradients = 1
    statistics.products += source @ source.T
    statistics.fisher += 1e4 * source.T @ source
    return statistics


def test_the_matrix_is_rounded_to_float16_and_its_inverse_follows() -> None:
    klt = geometry("klt", whole_statistics(24))
    assert klt.inverse_follows
    assert klt.matrix is not None
    assert klt.inverse is not None
    np.testing.assert_array_equal(klt.matrix, klt.matrix.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(klt.inverse, backend().inverse_of(klt.matrix))
    np.testing.assert_allclose(klt.inverse.astype(np.float64) @ klt.matrix, np.eye(24), atol=1e-5)
    np.testing.assert_array_equal(np.log2(klt.step) % 1, 0)
    norms = np.linalg.norm(klt.matrix, axis=1)
    assert 0.7 < norms.min() <= norms.max() < 1.5


def test_the_inverse_of_a_wide_matrix_is_rounded_to_float16_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fit, "MOST_WIDTH", 23)
    klt = geometry("klt", whole_statistics(24))
    assert not klt.inverse_follows
    assert klt.matrix is not None
    assert klt.inverse is not None
    for matrix in (klt.matrix, klt.inverse):
        np.testing.assert_array_equal(matrix, matrix.astype(np.float16).astype(np.float32))
    np.testing.assert_allclose(klt.inverse.astype(np.float64) @ klt.matrix, np.eye(24), atol=2**-10)


def test_an_inverse_that_float16_would_spoil_stays_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fit, "MOST_WIDTH", 7)
    monkeypatch.setattr(_fit, "_MOST_ROUNDING", 0.0)
    klt = geometry("klt", whole_statistics(8))
    assert klt.matrix is not None
    assert klt.inverse is not None
    assert (stored("matrix", klt.matrix).dtype, stored("inverse", klt.inverse).dtype) == (np.float16, np.float32)
    np.testing.assert_allclose(klt.inverse.astype(np.float64) @ klt.matrix, np.eye(8), atol=1e-5)


@pytest.mark.parametrize("most_width", [_fit.MOST_WIDTH, HIDDEN - 1])
def test_a_book_has_the_inverse_of_wide_matrices_alone(most_width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fit, "MOST_WIDTH", most_width)
    book = small(tiny_model(), ids_of(), codecs=("klt",))
    entries = [entry for made in book.to_dict()["entries"].values() for entry in made]
    assert entries
    follows = most_width >= HIDDEN
    assert {"inverse" in entry["arrays"] for entry in entries} == {not follows}
    assert {entry["scalars"].get("inverse_follows", False) for entry in entries} == {follows}
    codec = book.codec_of(1, 0)
    assert codec.matrix is not None
    assert codec.inverse is not None
    np.testing.assert_allclose(codec.inverse.astype(np.float64) @ codec.matrix, np.eye(HIDDEN), atol=0.01)


def with_massive_rows() -> tuple[PreTrainedModel, Tensor]:
    model = tiny_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[MASSIVE_TOKEN] *= OUTLIER_RATIO
    ids = ids_of(12, TOKENS)
    ids[ids == MASSIVE_TOKEN] = MASSIVE_TOKEN + 1
    ids[:, 0] = MASSIVE_TOKEN  # as a first token is in models with attention sinks
    return model, ids


@pytest.mark.parametrize("codec", ["channel", "fisher", "klt"])
def test_massive_rows_do_not_spoil_others_and_are_escapes(codec: str) -> None:
    model, ids = with_massive_rows()
    plain, options = tiny_model(), {"codecs": (codec,), "levels": (4.0,), "fit_samples": 10}
    book = small(model, ids, **options)
    usual = small(plain, ids, **options)
    for cut in book.cuts:
        with torch.no_grad():
            hidden = model(ids, output_hidden_states=True).hidden_states[cut]
        frame = osp.compress(hidden.contiguous(), codec=book[cut, 0])
        error = (osp.decompress(frame, book, framework="torch") - hidden).norm(dim=-1)
        # The outliers ones travel as bfloat16 (relative error 2^-9), not clipped; others as if there were none.
        assert float((error[:, 0] / hidden[:, 0].norm(dim=-1)).max()) < 2**-7
        relative = error[:, 1:] / hidden[:, 1:].norm(dim=-1)
        with torch.no_grad():
            hidden = plain(ids, output_hidden_states=True).hidden_states[cut]
        frame = osp.compress(hidden.contiguous(), codec=usual[cut, 0])
        error = (osp.decompress(frame, usual, framework="torch") - hidden).norm(dim=-1)
        assert float(relative.mean()) < 2 * float((error / hidden.norm(dim=-1)).mean())
        assert book.levels(cut)[0].loss < 3 * usual.levels(cut)[0].loss + 1e-4


# The same numbers again.


def test_the_same_seed_gives_the_same_book_and_another_seed_another(model: PreTrainedModel) -> None:
    first = small(model)
    torch.manual_seed(99)  # what the caller does with the generator is nobody's business
    assert numbers(small(model)) == numbers(first)
    assert small(model, seed=1).codebook_id != first.codebook_id


def test_a_directory_and_a_model_give_the_same_numbers(directory: Path, model: PreTrainedModel) -> None:
    of_model, of_directory = small(model), small(directory)
    for cut in of_model.cuts:
        for one, other in zip(of_model.levels(cut), of_directory.levels(cut), strict=True):
            assert (one.name, one.loss, one.bits_per_element) == (other.name, other.loss, other.bits_per_element)
    assert of_directory.model.name == str(directory)
    assert of_directory.model.layer_hashes == of_model.model.layer_hashes


class Interrupted(BaseException):
    """As a KeyboardInterrupt, without being one."""


def interrupting(at: int, steps: list[str]) -> Callable[[str, float], None]:
    def progress(step: str, _fraction: float) -> None:
        steps.append(step)
        if len(steps) == at + 1:
            raise Interrupted

    return progress


@pytest.fixture(scope="module")
def whole(model: PreTrainedModel) -> tuple[osp.Codebook, list[str]]:
    steps: list[str] = []
    return small(model, progress=lambda step, _fraction: steps.append(step)), steps


def cut_of(step: str) -> str:
    """Return the cut of "cuts, after 3 of 4 layers, klt 4"."""
    return step.split(", ")[1]


# Of the steps that calibration reports: the statistics of each batch, each cut, plans of several cuts, the end.
@pytest.mark.parametrize("part", [0.0, 0.05, 0.15, 0.2, 0.25, 0.3, 0.6, 0.99])
def test_interrupted_work_goes_on_and_ends_with_the_same_numbers(
    part: float, whole: tuple[osp.Codebook, list[str]], model: PreTrainedModel, tmp_path: Path
) -> None:
    expected, steps = whole
    path = tmp_path / "checkpoint"
    before: list[str] = []
    at = round(part * (len(steps) - 1))
    with pytest.raises(Interrupted):
        small(model, checkpoint=path, progress=interrupting(at, before))
    assert before == steps[: at + 1]
    after: list[str] = []
    book = small(model, checkpoint=path, progress=lambda step, _fraction: after.append(step))
    assert numbers(book) == numbers(expected)
    assert not path.exists()
    assert list(tmp_path.iterdir()) == []
    # Batches that were counted are not counted again, and cuts that were finished not fitted again.
    assert [step for step in after if step.startswith("statistics") and step in before] == []
    fitted = list(dict.fromkeys(cut_of(step) for step in before if step.startswith("cut")))[:-1]
    assert [step for step in after if step.startswith("cut") and cut_of(step) in fitted] == []


def test_interrupted_amid_a_batch_counts_it_once(
    whole: tuple[osp.Codebook, list[str]], model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The state was once written with a batch that some cuts had counted and others had not.
    real, calls = _statistics.CutStatistics.add, 0

    def interrupted(self: Any, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:  # the second cut of the second batch
            raise Interrupted
        real(self, *arguments)

    path = tmp_path / "checkpoint"
    with monkeypatch.context() as patched:
        patched.setattr(_statistics.CutStatistics, "add", interrupted)
        with pytest.raises(Interrupted):
            small(model, checkpoint=path)
    assert numbers(small(model, checkpoint=path)) == numbers(whole[0])


def test_a_damaged_checkpoint_is_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    with pytest.raises(Interrupted):
        small(model, checkpoint=path, progress=interrupting(6, []))
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="checkpoint is damaged"):
        small(model, checkpoint=path)


def test_interrupted_at_every_step(
    whole: tuple[osp.Codebook, list[str]], model: PreTrainedModel, tmp_path: Path
) -> None:
    expected, steps = whole
    path = tmp_path / "checkpoint"
    first_composite = next(i for i, step in enumerate(steps) if step.startswith("plans"))
    known: set[str] = set()

    def up_to_something_new(step: str, _fraction: float) -> None:
        if step not in known:
            known.add(step)
            raise Interrupted

    for _ in range(first_composite):
        with pytest.raises(Interrupted):
            small(model, checkpoint=path, progress=up_to_something_new)
    assert known == set(steps[:first_composite])
    assert numbers(small(model, checkpoint=path)) == numbers(expected)


def test_a_checkpoint_as_a_killed_process_leaves_it(
    whole: tuple[osp.Codebook, list[str]],
    model: PreTrainedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected, _ = whole
    monkeypatch.setattr(_checkpoint, "_SECONDS_BETWEEN", -1.0)  # it is written as often as it can be
    path = tmp_path / "checkpoint"
    copies: list[str] = []

    def keep(_step: str, _fraction: float) -> None:
        if path.exists():
            copies.append(str(shutil.copy(path, tmp_path / f"copy {len(copies)}")))

    small(model, checkpoint=path, progress=keep)
    different = {Path(copy).read_bytes(): copy for copy in copies}
    assert len(different) >= 5  # after some batches of the statistics, after each cut
    for copy in different.values():
        assert numbers(small(model, checkpoint=copy)) == numbers(expected)


def test_a_checkpoint_of_another_call_is_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"

    def at_a_cut(step: str, _fraction: float) -> None:
        if step.startswith("cut"):
            raise Interrupted

    with pytest.raises(Interrupted):
        small(model, checkpoint=path, progress=at_a_cut)
    content = path.read_bytes()
    others: list[tuple[str, PreTrainedModel, dict[str, Any]]] = [
        ("model", tiny_model(seed=1), {}),
        ("data", model, {"data": ids_of(seed=1)}),
        ("cuts", model, {"cuts": [1, 2]}),
        ("levels", model, {"levels": (4.0,)}),
        ("codecs", model, {"codecs": ("klt", "fisher")}),
        ("samples", model, {"fit_samples": 3}),
        ("seed", model, {"seed": 1}),
    ]
    for name, of, options in others:
        with pytest.raises(ValueError, match=rf"checkpoint is the checkpoint of another calibration: its {name} "):
            small(of, checkpoint=path, **options)
    assert path.read_bytes() == content  # and is not lost
    assert small(model, checkpoint=path).cuts == (1, 3)


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Write a checkpoint again as a valid file, with another document."""
    document, arrays = read_tensors(path, _checkpoint.FORMAT, _checkpoint.VERSION)
    copies = {name: np.array(arrays[name]) for name in arrays}
    change(document)
    write_tensors(path, copies, document)


def test_a_checkpoint_of_version_0_1_is_resumed(
    whole: tuple[osp.Codebook, list[str]], model: PreTrainedModel, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint"
    with pytest.raises(Interrupted):
        small(model, checkpoint=path, progress=interrupting(6, before := []))
    # Its key was "asked".
    rewritten(path, lambda document: document.update(asked=document.pop("request")))
    after: list[str] = []
    assert numbers(small(model, checkpoint=path, progress=lambda step, _fraction: after.append(step))) == numbers(
        whole[0]
    )
    assert not {step for step in before if step.startswith("statistics")} & set(after)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document.update(request=3), "its request is 3"),
        (lambda document: document.pop("batches"), "there is no 'batches'"),
        (lambda document: document.update(batches="2"), "batches is '2', must be an integer"),
        (lambda document: document.update(batches=-2), "batches is -2, must be at least 0"),
        (lambda document: document.update(statistics=3), "statistics is int, must be a list"),
        (lambda document: document.update(statistics=[7]), r"there is no 'statistics\.7\.counts'"),
        (lambda document: document.update(entries=[1]), "entries is list, must be an object with keys"),
        (lambda document: document.update(entries={"1": [3]}), "entry 0 of cut 1 is int, must be an object with keys"),
    ],
)
def test_a_checkpoint_that_makes_no_sense_is_named(
    change: Callable[[dict[str, Any]], None], message: str, model: PreTrainedModel, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint"
    with pytest.raises(Interrupted):
        small(model, checkpoint=path, progress=interrupting(6, []))
    rewritten(path, change)
    with pytest.raises(ValueError, match=rf"checkpoint is not a valid checkpoint: {message}"):
        small(model, checkpoint=path)


def test_a_file_that_is_no_checkpoint_is_refused_and_kept(model: PreTrainedModel, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("what must not be lost")
    with pytest.raises(ValueError, match=r"notes\.txt is not a \.safetensors file"):
        small(model, checkpoint=path)
    assert path.read_text() == "what must not be lost"
    book = small(model, codecs=("int8",))
    book.save(tmp_path / "book.safetensors")
    with pytest.raises(ValueError, match=r"book\.safetensors: expected format 'orbitsplit-calibration'"):
        small(model, checkpoint=tmp_path / "book.safetensors")
    assert osp.Codebook.load(tmp_path / "book.safetensors").codebook_id == book.codebook_id


def test_a_model_is_left_as_it_was() -> None:
    model = tiny_model()
    hooks = {name: len(m._forward_hooks) + len(m._forward_pre_hooks) for name, m in model.named_modules()}
    layers = layers_of(model)
    expected = model(ids_of()).logits
    for _ in range(2):
        small(model)
    with pytest.raises(Interrupted):
        small(model, progress=interrupting(6, []))
    assert torch.equal(model(ids_of()).logits, expected)
    assert layers_of(model) == layers
    assert {n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in model.named_modules()} == hooks
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_progress_rises_to_the_end(model: PreTrainedModel) -> None:
    told: list[float] = []
    small(model, progress=lambda _step, fraction: told.append(fraction))
    assert told == sorted(told)
    assert told[-1] == 1.0


# What is asked for.


def test_inner_cuts_are_all_but_the_first_and_the_last(model: PreTrainedModel) -> None:
    assert small(model, cuts="inner", codecs=("int8",)).cuts == tuple(range(1, LAYERS))
    assert small(model, cuts=[4, 0], codecs=("int8",)).cuts == (0, 4)


def test_the_book_names_its_model_and_data(book: osp.Codebook, model: PreTrainedModel) -> None:
    assert (book.model.layers, book.model.width) == (LAYERS, HIDDEN)
    assert book.model.architecture == "LlamaForCausalLM"
    assert len(set(book.model.layer_hashes)) == LAYERS
    assert book.provenance["seed"] == 0
    assert book.provenance["unit"] == "nats"
    assert book.provenance["versions"]["torch"] == torch.__version__
    assert book.provenance["data"] != small(model, ids_of(seed=1), codecs=("int8",)).provenance["data"]
    assert all(
        level.encode_s_per_byte > 0 and level.decode_s_per_byte > 0
        for cut in book.cuts
        for level in book.levels(cut)
    )  # fmt: skip


def test_fitting_does_not_see_what_is_measured_on(model: PreTrainedModel) -> None:
    # Rows of another kind, for fitting or measuring, must show: only one of them is measured on in each of these.
    common = ids_of(8)
    books = []
    for row in range(8):
        changed = common.clone()
        changed[row] = ids_of(1, seed=7)[0]
        books.append(small(model, changed, cuts=[2], codecs=("fisher",), fit_samples=6, measure_samples=1))
    plain = small(model, common, cuts=[2], codecs=("fisher",), fit_samples=6, measure_samples=1)
    codecs_changed = [book.codebook_id != plain.codebook_id for book in books]
    measured_changed = [
        any(
            one.loss != other.loss
            for one, other in zip(book.levels(2), plain.levels(2), strict=True)
            if book.codebook_id == plain.codebook_id
        )
        for book in books
    ]
    assert sum(codecs_changed) == 6
    assert sum(measured_changed) == 1  # and one row is not used at all


def texts_of(count: int) -> list[str]:
    generator = np.random.default_rng(3)
    return [" ".join(generator.choice(WORDS, 30)) for _ in range(count)]


def test_texts_become_rows_of_prompt_tokens(directory: Path, model: PreTrainedModel, tmp_path: Path) -> None:
    texts = texts_of(5)  # 150 tokens: 7 rows of 20, and 10 tokens that fill none
    tokenizer = AutoTokenizer.from_pretrained(directory)
    stream = [token for text in texts for token in tokenizer(text)["input_ids"]]
    rows = torch.tensor(stream[:140]).reshape(7, 20)
    expected = numbers(small(directory, rows))
    assert numbers(small(directory, texts, prompt_tokens=20)) == expected
    assert numbers(small(directory, iter(texts), prompt_tokens=20)) == expected
    (tmp_path / "corpus.txt").write_text(texts[1])
    mixed: list[str | Path] = [texts[0], tmp_path / "corpus.txt", *texts[2:]]
    assert numbers(small(directory, mixed, prompt_tokens=20)) == expected


def test_rows_begin_as_prompts_do(directory: Path, model: PreTrainedModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    start = tokenizer.bos_token_id
    bare = AutoTokenizer.from_pretrained(directory)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    texts = texts_of(5)
    assert tokenizer(texts[0])["input_ids"][0] == start
    stream = [token for text in texts for token in bare(text)["input_ids"]]
    rows = torch.tensor([[start, *stream[at : at + 19]] for at in range(0, 133, 19)])
    assert numbers(small(directory, texts, tokenizer=tokenizer, prompt_tokens=20)) == numbers(small(directory, rows))


def test_samples_are_chosen_where_none_are_asked_for(model: PreTrainedModel) -> None:
    book = small(model, ids_of(8), fit_samples=None, measure_samples=None)
    assert sum(book.provenance["samples"]) <= 8
    assert min(book.provenance["samples"]) >= 1


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cuts": "outer"}, 'cuts is "outer"; valid are "all", "inner"'),
        ({"cuts": [LAYERS + 1]}, "cut 5 is not from 0 to 4"),
        ({"cuts": [-1]}, "cut -1 is not from 0 to 4"),
        ({"cuts": []}, "one or more different numbers"),
        ({"cuts": [1, 1]}, r"cuts are \[1, 1\]"),
        ({"levels": ()}, "no level"),
        ({"levels": (0.01,)}, r"level 0\.01 is not from"),
        ({"levels": (17.0,)}, r"level 17\.0 is not from"),
        ({"levels": (float("nan"),)}, "level nan is not from"),
        ({"levels": (2.0, 3.0, 2.0)}, "2, 3, 2 name one twice"),
        ({"codecs": ()}, "no codec"),
        ({"codecs": ("fisher", "klt", "fisher")}, "codec fisher is given 2 times"),
        ({"codecs": ("gzip",)}, "codec 'gzip' is neither channel, fisher, klt.* nor a fixed one"),
        ({"fit_samples": 5, "measure_samples": 2}, "5 samples to fit and 2 to measure are requested, there are 6"),
        ({"fit_samples": 0}, "fit_samples is 0, must be at least 1"),
        ({"measure_samples": 0}, "measure_samples is 0, must be at least 1"),
        ({"fit_samples": -1}, "fit_samples is -1, must be at least 1"),
        ({"prompt_tokens": 0}, "prompt_tokens is 0, must be at least 1"),
        ({"dtype": torch.float64}, "dtype is 'float64', must be one of float32, float16, bfloat16"),
        ({"seed": 1 << 50}, "seed is 1125899906842624, must be at most 8796093022208"),
    ],
)
def test_what_makes_no_sense_is_named(model: PreTrainedModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(model, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cuts": [1.5]}, r"a cut is 1\.5, must be an integer"),
        ({"cuts": ["1"]}, "a cut is '1', must be an integer"),
        ({"cuts": 3}, "cuts is 3, must be a sequence"),
        ({"levels": 4.0}, r"levels is 4\.0, must be a sequence"),
        ({"levels": ("4",)}, "a level is '4', must be a number"),
        ({"codecs": "klt"}, "codecs is 'klt', must be a sequence"),
        ({"codecs": (8,)}, "a codec is 8, must be a string"),
        ({"prompt_tokens": "512"}, "prompt_tokens is '512', must be an integer"),
        ({"fit_samples": 4.0}, r"fit_samples is 4\.0, must be an integer"),
        ({"measure_samples": "2"}, "measure_samples is '2', must be an integer"),
        ({"dtype": "float32"}, r"dtype is 'float32', must be a torch\.dtype"),
        ({"hull_only": 1}, "hull_only is 1, must be true or false"),
        ({"seed": None}, "seed is None, must be an integer"),
        ({"checkpoint": 3}, "checkpoint is 3, must be a path"),
        ({"progress": "print"}, "progress is 'print', must be a function"),
        ({"options": {"seed": 1}}, "options is a dict, must be CalibrationOptions"),
        ({"colour": 1}, r"got an unexpected keyword argument 'colour'"),
    ],
)
def test_what_has_a_wrong_type_is_named_before_anything_is_loaded(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        small("there/is/no/such/model", **options)


@pytest.mark.parametrize("given", [3, None, nn.Linear(2, 2)], ids=["int", "None", "module"])
def test_what_is_no_model_is_named(given: Any) -> None:
    with pytest.raises(TypeError, match=r"model is a \w+, must be a path, a hub id or a model of transformers"):
        small(given)


def test_options_are_those_of_keywords_which_override_them(model: PreTrainedModel) -> None:
    options = osp.CalibrationOptions(
        cuts=[1, 3], levels=(4.0, 2.0), codecs=("fisher", "klt"), fit_samples=4, measure_samples=MEASURED, seed=3
    )
    assert numbers(osp.calibrate(model, ids_of(), options=options)) == numbers(small(model, seed=3))
    assert numbers(osp.calibrate(model, ids_of(), options=options, seed=0)) == numbers(small(model))
    assert options.seed == 3


def test_options_cannot_change_and_are_kept_as_they_were() -> None:
    cuts = [1, 3]
    options = osp.CalibrationOptions(cuts=cuts)
    cuts.append(5)
    assert options.cuts == (1, 3)
    assert (options.levels, options.codecs) == (calibration.LEVELS, calibration.CODECS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.seed = 3  # type: ignore[misc]


def test_every_option_is_a_keyword_of_calibrate() -> None:
    names = {field.name for field in dataclasses.fields(osp.CalibrationOptions)}
    assert set(CalibrationKeywords.__annotations__) == names


def test_codecs_and_levels_are_checked_before_anything_is_loaded() -> None:
    for options, message in (({"codecs": ("gzip",)}, "gzip"), ({"levels": ()}, "no level")):
        with pytest.raises(ValueError, match=message):
            small("there/is/no/such/model", **options)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(4, dtype=torch.long), r"token ids have shape \(4,\), expected a non-empty \[N, S\]"),
        (torch.zeros(0, 5, dtype=torch.long), r"token ids have shape \(0, 5\)"),
        (torch.full((1, 8), 5), "there are 1 samples, must be at least 2"),
        (torch.full((6, 1), 5), "token"),  # nothing is predicted
        (torch.full((6, 8), VOCABULARY), "97"),
        ([], "the texts have 0 tokens, must fill at least two rows of 20 tokens"),
        (["the satellite"], "the texts have 2 tokens, must fill at least two rows of 20 tokens"),
    ],
    ids=["1-D", "empty", "one row", "one token", "vocabulary", "none", "short"],
)
def test_data_of_the_wrong_shape_is_named(directory: Path, model: PreTrainedModel, data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        osp.calibrate(directory, data, codecs=("int8",), cuts=[1], prompt_tokens=20)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(4, 5), r"token ids are torch\.float32, expected integers"),
        ("a single text", "data is a single text or path, expected a sequence"),
        (Path("corpus.txt"), "data is a single text or path, expected a sequence"),
        ([1, 2, 3], "data holds int, expected texts"),
        (5, "data is int, expected texts"),
    ],
    ids=["floats", "text", "path", "numbers", "number"],
)
def test_data_of_the_wrong_kind_are_named(directory: Path, model: PreTrainedModel, data: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        osp.calibrate(directory, data, codecs=("int8",), cuts=[1], prompt_tokens=20)


@pytest.mark.parametrize("tokens", [0, -3, 1])
def test_rows_of_no_tokens_are_refused(directory: Path, model: PreTrainedModel, tokens: int) -> None:
    with pytest.raises(ValueError, match=f"prompt_tokens is {tokens}, must be at least"):
        osp.calibrate(directory, texts_of(2), codecs=("int8",), cuts=[1], prompt_tokens=tokens)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((tiny_images(4)[0], torch.zeros(3)), r"images have shape \(4, 1, 8, 8\) and labels \(3,\)"),
        ((tiny_images(4)[0][:, 0], torch.zeros(4)), r"images have shape \(4, 8, 8\)"),
        ((torch.zeros(0, 1, 8, 8), torch.zeros(0)), "non-empty"),
        ((tiny_images(4)[0], torch.full((4,), LABELS)), "label"),
    ],
    ids=["count", "axes", "empty", "classes"],
)
def test_images_of_the_wrong_shape_are_named(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        osp.calibrate(tiny_vit(), data, codecs=("int8",), cuts=[1])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (ids_of(), "needs a pair of tensors"),
        (["a text", "another"], "needs a pair of tensors"),
        ((tiny_images(4)[0], [1, 2, 3, 4]), "needs a pair of tensors"),
        ((tiny_images(4)[0], torch.zeros(4)), r"labels are torch\.float32, expected integers"),
    ],
    ids=["ids", "texts", "list", "floats"],
)
def test_images_of_the_wrong_kind_are_named(data: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        osp.calibrate(tiny_vit(), data, codecs=("int8",), cuts=[1])


def test_texts_for_an_encoder_are_checked(tmp_path: Path) -> None:
    save_tiny_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    options: dict[str, Any] = {"tokenizer": tokenizer, "codecs": ("int8",), "cuts": [1]}
    with pytest.raises(ValueError, match="there are 1 texts, must be at least 2"):
        osp.calibrate(tiny_bert(), ["the satellite", "  "], **options)
    with pytest.raises(TypeError, match="data holds int"):
        osp.calibrate(tiny_bert(), [1], **options)  # type: ignore[list-item]


class Remembering(nn.Module):
    """A layer that adds what an earlier module put aside."""

    def __init__(self, layer: nn.Module, store: dict[str, Tensor]) -> None:
        super().__init__()
        self.layer = layer
        self.store = store

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, hidden: Tensor, *args: Any, **options: Any) -> Any:
        result = self.layer(hidden, *args, **options)
        return result + self.store["seen"]


def with_a_side_channel(source: Callable[[PreTrainedModel], nn.Module]) -> PreTrainedModel:
    """Return a model whose third layer reads what a module at its beginning gave."""
    model = tiny_model()
    store: dict[str, Tensor] = {}
    source(model).register_forward_hook(lambda _module, _args, output: store.update(seen=output))
    model.model.layers[2] = Remembering(model.model.layers[2], store)
    return model


@pytest.mark.parametrize("measured", [1, 2])
def test_layers_that_read_what_an_earlier_one_gave_are_refused(measured: int) -> None:
    model = with_a_side_channel(lambda model: model.model.layers[0])
    # A cut before the layer that gives is one that can be made, and so is one behind the layer that reads.
    assert small(model, cuts=[0, 3], codecs=("int8",), measure_samples=measured).cuts == (0, 3)
    with pytest.raises(ValueError, match="layers behind cut 1 take more than its hidden state"):
        small(model, cuts=[1], codecs=("int8",), measure_samples=measured)


def test_layers_that_read_the_embeddings_are_refused() -> None:
    model = with_a_side_channel(lambda model: model.model.embed_tokens)
    with pytest.raises(ValueError, match="layers behind cut 1 take more than its hidden state"):
        small(model, cuts=[1], codecs=("int8",))


def test_outputs_that_are_not_finite_are_refused() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(ValueError, match="the model's own outputs are not finite"):
        small(model, codecs=("int8",))


def test_architectures_that_transformers_does_not_have_are_named(tmp_path: Path, model: PreTrainedModel) -> None:
    model.config.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "NoSuchModel"))
    with pytest.raises(ValueError, match="names NoSuchModel"):
        small(tmp_path)


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises((FileNotFoundError, ValueError), match="nothing-here"):
        small(tmp_path / "nothing-here")


def test_every_family_of_data_is_a_sequence(model: PreTrainedModel) -> None:
    sequence: Sequence[int] = small(model, cuts=(2, 1), codecs=("int8",)).cuts
    assert sequence == (1, 2)
