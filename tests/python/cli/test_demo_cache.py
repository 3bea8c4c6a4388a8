"""Profiles and codebooks that are kept: found again for the same model, text and settings alone."""

from __future__ import annotations

from pathlib import Path

import pytest

import orbitsplit as osp
from orbitsplit._cli import demo_cache, progress
from orbitsplit._cli.demo_cache import kept_codebook, kept_profile
from tests.support.books_by_hand import book_by_hand
from tests.support.report_inputs import reported_profile

SETTINGS = {"levels": (3.2, 2.4), "prompt_tokens": 128}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "kept"
    monkeypatch.setattr(demo_cache, "kept_folder", lambda: folder)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def calibrated(_checkpoint: Path | None = None, *, step: float = 0.25) -> osp.Codebook:
    return book_by_hand({1: [("half", 8.0, 0.1)]}, layers=3, width=8, step=step)


def never(_checkpoint: Path | None) -> osp.Codebook:
    raise AssertionError("it was calibrated again")


def test_a_codebook_is_calibrated_once(model: Path) -> None:
    book, was_kept = kept_codebook(model, ["a text"], SETTINGS, calibrated)
    again, was_kept_then = kept_codebook(model, ["a text"], SETTINGS, never)
    assert (was_kept, was_kept_then) == (False, True)
    assert again.hex_id == book.hex_id


def test_another_model_text_or_setting_is_calibrated(model: Path) -> None:
    kept_codebook(model, ["a text"], SETTINGS, calibrated)
    other = calibrated(step=0.5)
    for given in (
        (model, ["another text"], SETTINGS),
        (model, ["a text"], {**SETTINGS, "prompt_tokens": 64}),
        ("hub/model", ["a text"], SETTINGS),
    ):
        book, was_kept = kept_codebook(*given, lambda _: other)
        assert not was_kept
        assert book is other
    (model / "model.safetensors").write_bytes(b"other weights")
    assert not kept_codebook(model, ["a text"], SETTINGS, lambda _: other)[1]


def test_an_interrupted_calibration_leaves_what_the_next_one_resumes(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Path | None] = []
    monkeypatch.setattr(progress, "_kept", [])

    def interrupted(checkpoint: Path | None) -> osp.Codebook:
        given.append(checkpoint)
        assert checkpoint is not None
        checkpoint.write_bytes(b"half of it")
        raise KeyboardInterrupt

    for _ in range(2):
        progress._kept.clear()
        with pytest.raises(KeyboardInterrupt):
            kept_codebook(model, ["a text"], SETTINGS, interrupted)
    assert given[0] == given[1]
    assert progress.interrupted() == f"interrupted: {given[0]} has what was calibrated, and the next demo resumes"


def test_a_damaged_codebook_is_calibrated_anew(model: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept_codebook(model, ["a text"], SETTINGS, calibrated)
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-8])
    book, was_kept = kept_codebook(model, ["a text"], SETTINGS, calibrated)
    assert not was_kept
    assert osp.Codebook.load(file).hex_id == book.hex_id


def test_a_fresh_codebook_replaces_the_kept_one(model: Path) -> None:
    kept_codebook(model, ["a text"], SETTINGS, calibrated)
    other = calibrated(step=0.5)
    book, was_kept = kept_codebook(model, ["a text"], SETTINGS, lambda _: other, is_fresh=True)
    assert (was_kept, book.hex_id) == (False, other.hex_id)
    assert kept_codebook(model, ["a text"], SETTINGS, never)[0].hex_id == other.hex_id


def test_a_profile_is_measured_once_on_each_machine(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = reported_profile()

    def again() -> osp.ModelProfile:
        raise AssertionError("it was measured again")

    assert kept_profile(model, SETTINGS, lambda: measured) == (measured, False)
    assert kept_profile(model, SETTINGS, again) == (measured, True)
    monkeypatch.setattr("orbitsplit._profiling.timing.machine_name", lambda: "another, 4 cores")
    assert kept_profile(model, SETTINGS, lambda: measured) == (measured, False)
