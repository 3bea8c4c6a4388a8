"""The programs that README and quickstart show have the types that a user's own checker expects."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_the_examples_pass_mypy_strict(page: str, tmp_path: Path) -> None:
    # `pipe.last_run.tokens_per_s` did not: `last_run` may be None.
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert any("osp.Pipeline(" in block for block in blocks)
    (tmp_path / "example.py").write_text("\n".join(blocks), encoding="utf-8")
    # In a folder of its own, without the settings of this repository.
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path.parent / "cache"), "example.py"]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
