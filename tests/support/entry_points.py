"""A package of a user's with a logits processor, as pip would have installed it."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import pytest

_CODE = '''
import torch
from transformers import LogitsProcessor


class Only(LogitsProcessor):
    """Allows some tokens alone."""

    def __init__(self, allowed):
        self.allowed = allowed

    def __call__(self, input_ids, scores):
        kept = torch.full_like(scores, float("-inf"))
        kept[:, self.allowed] = scores[:, self.allowed]
        return kept
'''


def declare_processor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install the package for this process and those that it starts; return its module."""
    (folder / "of_a_user.py").write_text(_CODE)
    info = folder / "of_a_user-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: of-a-user\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[orbitsplit.logits_processors]\nonly = of_a_user:Only\n")
    monkeypatch.syspath_prepend(str(folder))
    path = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", str(folder) if path is None else f"{folder}{os.pathsep}{path}")
    return importlib.import_module("of_a_user")
