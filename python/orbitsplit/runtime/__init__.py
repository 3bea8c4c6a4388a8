"""Run a plan: one process per stage, compressed activations between them.

_pipeline   starts and supervises the processes, hands them work   -> _supervise, _prompts, _run
_worker     one process: loads its stage, follows the schedule     -> _schedule, _transport, orbitsplit._stage
_schedule   who sends what when; knows neither processes nor sockets
_transport  messages between processes; the only module that calls torch.distributed
_emulation  slow links and slow nodes on one machine
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._pipeline import Pipeline
    from ._run import LinkRun, Run, StageRun

__all__ = ["LinkRun", "Pipeline", "Run", "StageRun"]


def __getattr__(name: str) -> Any:
    # Lazily, so that a worker does not import the parent's part.
    if name == "Pipeline":
        from ._pipeline import Pipeline

        return Pipeline
    if name in __all__:
        from . import _run

        return getattr(_run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
