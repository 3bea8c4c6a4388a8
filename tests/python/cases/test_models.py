"""Files of models that failed once; tests/data/cases/README.md says what is right."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import orbitsplit as osp
from tests.support.tiny_models import tiny_config

CASES = Path(__file__).parents[2] / "data" / "cases"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json", "generation_config.json"])
def test_a_pointer_of_git_lfs_is_no_part_of_a_model(name: str, tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    shutil.copy(CASES / "git_lfs_pointer.txt", tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name} is a pointer of Git LFS, not the file itself: `git lfs pull`"):
        osp.profile(tmp_path)


def test_a_pointer_of_git_lfs_is_no_gguf_file(tmp_path: Path) -> None:
    shutil.copy(CASES / "git_lfs_pointer.txt", tmp_path / "model.gguf")
    with pytest.raises(ValueError, match=r"model.gguf is a pointer of Git LFS, not the file itself"):
        osp.profile(tmp_path / "model.gguf")
