"""Run a plan: one process per stage, compressed activations between them.

_torchrun    one process per stage, started by torchrun
_node        the agent of a host, which starts and ends its processes for a coordinator
_parent      the caller's process: `Pipeline`, its sessions, the supervisor of the worker processes
_worker      a stage's process: sessions, channels, codecs, the layers themselves
_schedule    which stage sends what, and when; knows neither processes nor sockets
_messages    messages as bytes, their checks, and the only module that calls torch.distributed
_emulation   slow links and slow nodes on one machine
_memory      the memory of a process
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from orbitsplit._io.deprecation import warn_renamed
from orbitsplit._io.validation import quoted

if TYPE_CHECKING:
    from ._parent.generation import Generation
    from ._parent.generation_options import GenerationOptions
    from ._parent.hosts import HostInfo, Hosts
    from ._parent.logprobs import TokenLogprobs
    from ._parent.migration import Migration
    from ._parent.options import Timeouts
    from ._parent.pipeline import Pipeline
    from ._parent.recovery import Recovery
    from ._parent.run_report import LinkMetrics, Run, StageMetrics
    from ._parent.status import LinkStatus, NodeStatus, PipelineStatus

_MODULES = {
    "Generation": "_parent.generation",
    "GenerationOptions": "_parent.generation_options",
    "HostInfo": "_parent.hosts",
    "Hosts": "_parent.hosts",
    "LinkMetrics": "_parent.run_report",
    "LinkStatus": "_parent.status",
    "NodeStatus": "_parent.status",
    "Migration": "_parent.migration",
    "Pipeline": "_parent.pipeline",
    "PipelineStatus": "_parent.status",
    "Recovery": "_parent.recovery",
    "Run": "_parent.run_report",
    "StageMetrics": "_parent.run_report",
    "Timeouts": "_parent.options",
    "TokenLogprobs": "_parent.logprobs",
}

__all__ = [
    "Generation",
    "GenerationOptions",
    "HostInfo",
    "Hosts",
    "LinkMetrics",
    "LinkStatus",
    "Migration",
    "NodeStatus",
    "Pipeline",
    "PipelineStatus",
    "Recovery",
    "Run",
    "StageMetrics",
    "Timeouts",
    "TokenLogprobs",
]

# Old public names, which warn for one version.
_RENAMED = {"LinkRun": "LinkMetrics", "StageRun": "StageMetrics"}


def __getattr__(name: str) -> Any:
    # Lazily, so that a worker does not import the parent's part.
    if name in _RENAMED:
        warn_renamed(f"orbitsplit.runtime.{name}", _RENAMED[name])
        name = _RENAMED[name]
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {quoted(__name__)} has no attribute {quoted(name)}")


def __dir__() -> list[str]:
    return __all__
