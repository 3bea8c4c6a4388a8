"""The codebook of a plan as a file that the processes of a pipeline can read."""

from __future__ import annotations

import tempfile
from pathlib import Path

from orbitsplit._codebook import Codebook
from orbitsplit._plan import Plan


class BookFile:
    """Where the codebook of a plan lies: its own file, or a temporary one for a book in memory.

    Raises ValueError if the plan needs a codebook and has none, or another.
    """

    def __init__(self, plan: Plan, codebook: Codebook | str | Path | None) -> None:
        self.path: str | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if plan.codebook is None:
            return  # what is given and not needed does no harm
        if codebook is None:
            raise ValueError(f"the plan needs codebook {plan.codebook}: pass it to Pipeline")
        book = codebook if isinstance(codebook, Codebook) else Codebook.load(codebook)
        if book.hex_id != plan.codebook:
            raise ValueError(f"the plan needs codebook {plan.codebook}, this is codebook {book.hex_id}")
        if isinstance(codebook, Codebook):
            self._folder = tempfile.TemporaryDirectory(prefix="orbitsplit-")
            self.path = str(Path(self._folder.name) / "book.safetensors")
            book.save(self.path)
        else:
            self.path = str(Path(codebook).resolve())

    def remove(self) -> None:
        """Remove the temporary file, if there is one."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
