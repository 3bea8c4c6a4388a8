"""Codebooks that are kept: found again for the same model, text and settings alone."""

from __future__ import annotations

from pathlib import Path

import pytest

import orbitsplit as osp
from orbitsplit._cli.codebook_cache import kept_codebook
from tests.support.books_by_hand import book_by_hand

SETTINGS = {"levels": (3.2, 2.4), "prompt_tokens": 128}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def calibrated(step: float = 0.25) -> osp.Codebook:
    return book_by_hand({1: [("half", 8.0, 0.1)]}, layers=3, width=8, step=step)


def never() -> osp.Codebook:
    raise AssertionError("it was calibrated again")


def test_a_codebook_is_calibrated_once(model: Path, tmp_path: Path) -> None:
    book, was_kept = kept_codebook(model, ["a text"], SETTINGS, calibrated, tmp_path / "kept")
    again, was_kept_then = kept_codebook(model, ["a text"], SETTINGS, never, tmp_path / "kept")
    assert (was_kept, was_kept_then) == (False, True)
    assert again.hex_id == book.hex_id


def test_another_model_text_or_setting_is_calibrated(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    kept_codebook(model, ["a text"], SETTINGS, calibrated, folder)
    other = calibrated(0.5)
    for given in (
        (model, ["another text"], SETTINGS),
        (model, ["a text"], {**SETTINGS, "prompt_tokens": 64}),
        ("hub/model", ["a text"], SETTINGS),
    ):
        book, was_kept = kept_codebook(*given, lambda: other, folder)
        assert not was_kept
        assert book is other
    (model / "model.safetensors").write_bytes(b"other weights")
    assert not kept_codebook(model, ["a text"], SETTINGS, lambda: other, folder)[1]


def test_a_damaged_codebook_is_calibrated_anew(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "kept"
    kept_codebook(model, ["a text"], SETTINGS, calibrated, folder)
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-8])
    book, was_kept = kept_codebook(model, ["a text"], SETTINGS, calibrated, folder)
    assert not was_kept
    assert osp.Codebook.load(file).hex_id == book.hex_id
