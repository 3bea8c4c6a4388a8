"""Profiles for other numbers of rows than they were made for: seconds by hand, what is kept, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

import orbitsplit as osp
from orbitsplit import ModelProfile
from orbitsplit._profiling.profile import ChunkTimes, LayerProfile, RowTimes
from orbitsplit._profiling.rows import has_rows, profile_of_rows
from tests.support.tiny_models import tiny_config

PROMPT = 10
# Seconds of a step of 1, 2, 4 and 8 rows: of each of two layers, and of the head.
OF_LAYER = {1: 1.0, 2: 1.5, 4: 2.0, 8: 4.0}
OF_HEAD = {1: 0.5, 2: 0.5, 4: 0.75, 8: 1.0}


def layer(name: str, decode_s: float, prefill_s: float) -> LayerProfile:
    return LayerProfile(name, 100, 0, None, 1000, 10, prefill_s=prefill_s, decode_s=decode_s, workspace_bytes=50)


def make_profile(**changes: Any) -> ModelProfile:
    plain = ModelProfile(
        model="m",
        architecture="A",
        dtype="float32",
        prompt_tokens=PROMPT,
        batch_size=1,
        hidden_size=4,
        layers=(layer("embeddings", 0.0, 0.0), layer("layer 0", 1.0, 5.0), layer("head", 0.5, 2.0)),
        cut_bytes_per_token=16,
        workspace_bytes=60,
        tied_bytes=0,
        overhead_prefill_s=0.25,
        overhead_decode_s=0.1,
        threads=1,
        chunks=(ChunkTimes(4, (0.0, 2.0, 1.0), (0.0, 3.0, 1.0), 0.25),),
        rows=tuple(RowTimes(n, (0.0, OF_LAYER[n], OF_HEAD[n]), 0.1 * n) for n in (2, 4, 8)),
    )
    return replace(plain, **changes)


@pytest.mark.parametrize(
    ("rows", "of_layer", "of_head", "overhead_s"),
    [(2, 1.5, 0.5, 0.2), (3, 1.75, 0.625, 0.3), (6, 3.0, 0.875, 0.6), (8, 4.0, 1.0, 0.8)],
)
def test_steps_between_two_measured_numbers_of_rows_are_on_the_line(
    rows: int, of_layer: float, of_head: float, overhead_s: float
) -> None:
    found = profile_of_rows(make_profile(), rows)
    assert [one.decode_s for one in found.layers] == pytest.approx([0.0, of_layer, of_head])
    assert found.overhead_decode_s == pytest.approx(overhead_s)
    assert found.batch_size == rows


def test_prefill_takes_as_much_longer_as_a_step_of_its_positions() -> None:
    found = profile_of_rows(make_profile(), 4)
    # The line goes on with half a second for each further position: 10 and 40 of them take 5 and 20 seconds; the head
    # runs once for each row.
    assert [one.prefill_s for one in found.layers] == pytest.approx([0.0, 5.0 * 20 / 5, 2.0 * 0.75 / 0.5])
    # Chunks of 4 tokens: 16 positions take 8 s, 4 take 2.
    (chunk,) = found.chunks
    assert chunk.first_s == pytest.approx((0.0, 2.0 * 8 / 2, 1.5))
    assert chunk.last_s == pytest.approx((0.0, 3.0 * 8 / 2, 1.5))
    assert (chunk.tokens, chunk.overhead_s, found.overhead_prefill_s) == (4, 0.25, 0.25)


def test_a_profile_of_several_rows_is_one_of_fewer_too() -> None:
    of_four = profile_of_rows(make_profile(), 4)
    assert [step.rows for step in of_four.rows] == [1, 2, 8]
    back = profile_of_rows(of_four, 1)
    for one, other in zip(back.layers, make_profile().layers, strict=True):
        assert (one.prefill_s, one.decode_s) == pytest.approx((other.prefill_s, other.decode_s))
    assert back.rows == make_profile().rows


def test_workspace_grows_with_rows_and_never_shrinks() -> None:
    found = profile_of_rows(make_profile(), 4)
    assert found.workspace_bytes == 240
    assert {one.workspace_bytes for one in found.layers} == {200}
    assert profile_of_rows(found, 1).workspace_bytes == 240


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_what_is_counted_is_that_of_a_profile_made_for_the_rows(family: str) -> None:
    config = tiny_config(family)
    derived = profile_of_rows(osp.profile(config, prompt_tokens=40), 3)
    counted = osp.profile(config, prompt_tokens=40, batch_size=3)
    assert derived.workspace_bytes >= counted.workspace_bytes
    for one, other in zip(derived.layers, counted.layers, strict=True):
        assert replace(one, workspace_bytes=None) == replace(other, workspace_bytes=None)
        assert (one.workspace_bytes or 0) >= (other.workspace_bytes or 0)


def test_the_profile_itself_is_that_of_its_own_rows() -> None:
    profile = make_profile(rows=())
    assert profile_of_rows(profile, 1) is profile


@pytest.mark.parametrize(
    ("rows", "known", "message"),
    [
        (
            2,
            (),
            "batch_size=1, the workload has 2: profile the model again with batch_size=2, or with times of several",
        ),
        (9, (2, 4, 8), "batch_size=1, the workload has 9: it has times of up to 8 rows"),
    ],
)
def test_what_was_not_measured_is_refused(rows: int, known: tuple[int, ...], message: str) -> None:
    profile = make_profile(rows=tuple(step for step in make_profile().rows if step.rows in known))
    assert not has_rows(profile, rows)
    with pytest.raises(ValueError, match=message):
        profile_of_rows(profile, rows)


def test_times_of_rows_come_back_from_a_file() -> None:
    profile = make_profile()
    assert ModelProfile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile
    before = make_profile(rows=()).to_dict()
    assert "rows" not in before
    assert ModelProfile.from_dict(before).rows == ()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            (RowTimes(1, (0.0,) * 3),),
            "times of 1 rows, must be in increasing order and of other numbers than the batch",
        ),
        ((RowTimes(4, (0.0,) * 3), RowTimes(2, (0.0,) * 3)), "times of 2 rows, must be in increasing order"),
        ((RowTimes(2, (0.0,) * 4),), "2 rows have times of 4 layers, the profile has 3"),
    ],
)
def test_times_of_rows_that_do_not_fit_the_profile_are_refused(rows: tuple[RowTimes, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_profile(rows=rows)


def test_seconds_of_rows_are_not_negative() -> None:
    with pytest.raises(ValueError, match=r"decode_s\[1\] of 2 rows is -1"):
        RowTimes(2, (0.0, -1.0))
    with pytest.raises(ValueError, match="rows of a decode step is 0, must be at least 1"):
        RowTimes(0, (0.0,))
