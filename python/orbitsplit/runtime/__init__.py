"""Run a plan: one process per stage, compressed activations between them.

_torchrun    one process per host, started by torchrun
_parent      the caller's process: `Pipeline`, sessions that replace each other after a loss, the supervisor
_worker      a stage's process: session after session, channels, codecs, the layers themselves
_schedule    who sends what when; knows neither processes nor sockets
_messages    what a message is in bytes, how it is checked, and the only module that calls torch.distributed
_emulation   slow links and slow nodes on one machine
_memory      what a process may use and has used
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._parent.generation import Generation
    from ._parent.pipeline import Pipeline
    from ._parent.recovery import Recovery
    from ._parent.run_report import LinkRun, Run, StageRun

_MODULES = {
    "Generation": "_parent.generation",
    "LinkRun": "_parent.run_report",
    "Pipeline": "_parent.pipeline",
    "Recovery": "_parent.recovery",
    "Run": "_parent.run_report",
    "StageRun": "_parent.run_report",
}

__all__ = ["Generation", "LinkRun", "Pipeline", "Recovery", "Run", "StageRun"]


def __getattr__(name: str) -> Any:
    # Lazily, so that a worker does not import the parent's part.
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
