"""Run a plan: one process per stage, compressed activations between them.

parent
    _pipeline     what a user calls                                   -> _sessions, _generation, _prompts, _run
    _sessions     a plan runs until something is lost, then another   -> _supervise, _control
    _supervise    starts processes, notices what is wrong with them
worker
    _worker       one process: session after session                  -> _serving
    _serving      a stage at work: channels, codecs, loop             -> _schedule, _channels, _computation, _reports
both
    _schedule     who sends what when; knows neither processes nor sockets
    _groups       what every stage must know of a group of sequences
    _wire         what a message is in bytes, and how it is checked
    _transport    messages between processes; the only module that calls torch.distributed
    _link_shaper  slow links, _pace slow nodes, on one machine
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._generation import Generation
    from ._pipeline import Pipeline
    from ._recovery import Recovery
    from ._run import LinkRun, Run, StageRun

_MODULES = {
    "Generation": "_generation",
    "LinkRun": "_run",
    "Pipeline": "_pipeline",
    "Recovery": "_recovery",
    "Run": "_run",
    "StageRun": "_run",
}

__all__ = ["Generation", "LinkRun", "Pipeline", "Recovery", "Run", "StageRun"]


def __getattr__(name: str) -> Any:
    # Lazily, so that a worker does not import the parent's part.
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
