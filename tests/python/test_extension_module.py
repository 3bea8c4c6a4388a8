"""The extension module as a shared library: what it exports, and that it is not the interpreter's lock it relies on."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from orbitsplit import _core


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("nm") is None, reason="needs nm of Linux")
def test_the_module_exports_its_entry_alone() -> None:
    """Another copy of the core in the same process, or of the standard library, would else take its symbols."""
    found = subprocess.run(["nm", "-D", "--defined-only", _core.__file__], capture_output=True, text=True, check=True)
    assert [line.split()[-1] for line in found.stdout.splitlines()] == ["PyInit__core"]


@pytest.mark.skipif(not hasattr(sys, "_is_gil_enabled"), reason="Python before 3.13 always has the lock")
def test_the_module_does_not_turn_the_lock_on() -> None:
    code = "import sys; before = sys._is_gil_enabled(); import orbitsplit._core; print(before == sys._is_gil_enabled())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"
