"""Timing of layers: under the conditions of a node that waits between pieces of work."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from orbitsplit._models.stage import StageModel
from orbitsplit._profiling import timing
from orbitsplit._profiling.measure import profile
from tests.support.tiny_encoders import tiny_encoder
from tests.support.tiny_models import save_tiny_model


def test_a_pause_follows_each_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without pauses the core stayed warm, and profiles promised 12 to 16 % less time than pipelines then took.
    save_tiny_model(tmp_path, "llama")
    events: list[tuple[str, float]] = []
    forward = StageModel.forward

    def timed_forward(self: StageModel, *arguments: torch.Tensor) -> torch.Tensor:
        start = time.monotonic()
        output = forward(self, *arguments)  # type: ignore[arg-type]
        events.append(("forward", time.monotonic() - start))
        return output

    monkeypatch.setattr(StageModel, "_check_forward", lambda _: None)
    monkeypatch.setattr(StageModel, "runs_chunks", lambda _: False)
    monkeypatch.setattr(StageModel, "forward", timed_forward)
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: events.append(("pause", seconds)))
    timing.measure_times(
        tmp_path, prompt_tokens=4, batch_size=1, dtype=torch.float32, threads=1, progress=lambda *_: None
    )
    assert len(events) > 20
    for (worked, duration), (paused, pause) in zip(events[::2], events[1::2], strict=True):
        assert (worked, paused) == ("forward", "pause")
        assert 0.15 >= pause >= min(30 * duration, 0.15)


def test_a_stage_has_the_overhead_of_layers_that_begin_a_forward() -> None:
    # The sum of layers inside a model promised 3 to 20 % less than stages of four layers took.
    whole_s, overheads = (0.5, 4.0, 3.0, 3.0, 3.0, 1.0), (1.0, 1.5, 1.1)
    stage = [(5.0, 3.5), (3.5, 4.0), (3.5, 3.0)]
    layers_s, overhead_s = timing._apart(whole_s, slice(2, 4), stage, overheads)
    assert layers_s == (0.5, 3.0, 2.5, 3.0, 3.0, 1.0)
    assert overhead_s == pytest.approx(1.2 + 1.0 + 0.5)


@pytest.mark.parametrize(
    ("seconds", "mean"),
    [((1.0, 1.2, 1.1, 1.3), 1.15), ((1.0, 1.2, 1.1, 9.0), 1.1), ((0.0, 0.0, 0.0), 0.0), ((2.0,), 2.0)],
)
def test_seconds_are_means_of_all_but_outliers(seconds: tuple[float, ...], mean: float) -> None:
    assert timing._means([(one,) for one in seconds]) == pytest.approx((mean,))


def test_layers_that_are_no_slower_at_the_start_of_a_forward_stay_as_measured() -> None:
    whole_s = (0.5, 3.0, 3.0, 3.0, 3.0, 1.0)
    assert timing._apart(whole_s, slice(2, 4), [(3.1, 2.8)], [1.0]) == (whole_s, 1.0)


@pytest.mark.parametrize(("layers", "own"), [(3, (1, 2)), (4, (1, 3)), (6, (1, 5)), (18, (7, 11)), (19, (7, 11))])
def test_the_overhead_is_measured_in_the_middle_of_a_model(layers: int, own: tuple[int, int]) -> None:
    found = timing._middle_layers(layers)
    assert (found.start, found.stop) == own


@pytest.mark.parametrize(
    ("prompt_tokens", "lengths"),
    [
        (1, ()),
        (31, ()),
        (32, (16,)),
        (100, (16, 32)),
        (128, (16, 32, 64)),
        (512, (32, 64, 128, 256)),
        (4096, (256, 512, 1024, 2048)),
    ],
)
def test_chunks_are_measured_in_powers_of_two_of_at_most_half_a_prompt(
    prompt_tokens: int, lengths: tuple[int, ...]
) -> None:
    assert timing.chunk_lengths(prompt_tokens) == lengths


def test_chunks_take_what_a_forward_of_them_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that counts tokens, and the tokens before them: what a layer takes is what it is given.
    save_tiny_model(tmp_path, "llama")
    seen: list[tuple[int, int]] = []
    forward = StageModel.forward

    def noted_forward(
        self: StageModel, x: torch.Tensor, mask: torch.Tensor, *args: object, **options: object
    ) -> torch.Tensor:
        seen.append((x.shape[1], mask.shape[1] - x.shape[1]))
        return forward(self, x, mask, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(StageModel, "forward", noted_forward)
    monkeypatch.setattr(timing.time, "sleep", lambda _: None)
    found = profile(tmp_path, prompt_tokens=70, measure=True)
    assert [chunk.tokens for chunk in found.chunks] == [16, 32]
    for chunk in found.chunks:
        assert len(chunk.first_s) == len(chunk.last_s) == len(found.layers)
        assert all(seconds > 0 for seconds in (*chunk.first_s, *chunk.last_s))
    # Two repetitions in the whole model and in a stage of one layer: first tokens, those between, last tokens.
    for first in (16, 32):
        assert seen.count((first, 0)) == seen.count((70 - 2 * first, first)) == seen.count((first, 70 - first)) == 4


def test_a_model_with_states_has_no_times_of_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny_model(tmp_path, "llama")
    monkeypatch.setattr(timing.time, "sleep", lambda _: None)
    monkeypatch.setattr(StageModel, "runs_chunks", lambda _: False)
    assert profile(tmp_path, prompt_tokens=70, measure=True).chunks == ()


@pytest.mark.parametrize(
    ("most_rows", "batch_size", "counts"),
    [(1, 1, ()), (2, 1, (2,)), (32, 1, (2, 4, 8, 16, 32)), (31, 4, (1, 2, 8, 16)), (8, 3, (1, 2, 4, 8))],
)
def test_rows_are_measured_in_powers_of_two(most_rows: int, batch_size: int, counts: tuple[int, ...]) -> None:
    assert timing.row_counts(most_rows, batch_size) == counts


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_steps_of_rows_alternate_with_those_of_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    save_tiny_model(tmp_path, family)
    seen: list[tuple[int, int, int]] = []
    forward = StageModel.forward

    def noted_forward(
        self: StageModel, x: torch.Tensor, mask: torch.Tensor, *args: object, **options: object
    ) -> torch.Tensor:
        seen.append((x.shape[0], x.shape[1], mask.shape[1]))
        return forward(self, x, mask, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(StageModel, "_check_forward", lambda _: None)
    monkeypatch.setattr(StageModel, "_prepare_steps", lambda *_: None)
    monkeypatch.setattr(StageModel, "runs_chunks", lambda _: False)
    monkeypatch.setattr(StageModel, "forward", noted_forward)
    monkeypatch.setattr(timing.time, "sleep", lambda _: None)
    found = profile(tmp_path, prompt_tokens=64, measure=True, rows=5)
    assert [step.rows for step in found.rows] == [2, 4]
    assert all(len(step.decode_s) == len(found.layers) and min(step.decode_s) > 0 for step in found.rows)
    # A prefill and five steps; behind three of the four that each model runs, two steps of 2 and two of 4 rows.
    own = [(1, 64, 64), *((1, 1, tokens) for tokens in range(65, 70))]
    of_rows = [(2, 1, 70), (2, 1, 71), (4, 1, 70), (4, 1, 71)]
    assert seen == 2 * [*own, *own, *of_rows, *own, *of_rows, *own, *of_rows]


def test_a_model_that_does_not_generate_has_no_steps_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_encoder("BertModel").save_pretrained(tmp_path)
    monkeypatch.setattr(timing.time, "sleep", lambda _: None)
    assert profile(tmp_path, prompt_tokens=8, measure=True).rows == ()
