"""Whether torchrun started this process, and how many; told without importing torch, which takes seconds."""

from __future__ import annotations

import os


def torchrun_rank() -> int | None:
    """Return this process's rank among those that torchrun started, None if it did not start this one."""
    rank = os.environ.get("RANK") if "TORCHELASTIC_RUN_ID" in os.environ else None
    return None if rank is None else int(rank)


def check_ranks(stages: int) -> None:
    """Raise ValueError unless torchrun started one process for each of so many stages."""
    ranks = int(os.environ["WORLD_SIZE"])
    if ranks != stages:
        raise ValueError(f"torchrun started {ranks} processes, the plan has {stages} stages")
