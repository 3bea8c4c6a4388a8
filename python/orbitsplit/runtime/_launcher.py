"""Whether torchrun started this process; told without importing torch, which takes seconds."""

from __future__ import annotations

import os


def torchrun_rank() -> int | None:
    """Return this process's rank among those that torchrun started, None if it did not start this one."""
    rank = os.environ.get("RANK") if "TORCHELASTIC_RUN_ID" in os.environ else None
    return None if rank is None else int(rank)
