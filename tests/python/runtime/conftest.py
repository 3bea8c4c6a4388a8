"""A tiny decoder on disk, and the same weights in one process as the judge."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedModel

from tests.support.tiny_models import load_unsplit, save_tiny_model


@pytest.fixture(scope="package")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny decoder; tests that write take a folder of their own."""
    path = tmp_path_factory.mktemp("tiny")
    save_tiny_model(path, "llama")
    return path


@pytest.fixture(scope="module")
def unsplit(directory: Path) -> PreTrainedModel:
    """The judge: the same weights in one process, under transformers' own generate."""
    return load_unsplit(directory)
