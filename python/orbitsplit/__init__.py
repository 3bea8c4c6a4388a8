"""Split a model over several weak machines joined by slow links: plan, compress, run.

`import orbitsplit` needs NumPy alone; what needs torch and transformers is imported when it is first used.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from ._errors import CorruptFrameError, InfeasiblePlanError, OrbitsplitError, TransportError
from ._network import Link, Network, Node
from ._plan import Plan, PlanLink, PlanStage, Prediction, Workload

if TYPE_CHECKING:
    from ._calibrate import LevelTable, measure_levels
    from ._profile import LayerProfile, ModelProfile, profile
    from .runtime import Pipeline

try:
    __version__ = version("orbitsplit")
except PackageNotFoundError:  # run from the source tree
    __version__ = "0.0.0"

# Public names whose modules import torch and transformers.
_NEEDS_MODELS = {
    "LayerProfile": "._profile",
    "LevelTable": "._calibrate",
    "ModelProfile": "._profile",
    "Pipeline": ".runtime",
    "measure_levels": "._calibrate",
    "profile": "._profile",
}

__all__ = [
    "Codec",
    "CorruptFrameError",
    "Evaluation",
    "InfeasiblePlanError",
    "LayerProfile",
    "LevelTable",
    "Link",
    "ModelProfile",
    "Network",
    "Node",
    "OrbitsplitError",
    "Pipeline",
    "Plan",
    "PlanLink",
    "PlanStage",
    "Prediction",
    "Problem",
    "Solution",
    "Stage",
    "Trace",
    "TraceEvent",
    "TransportError",
    "Workload",
    "build_problem",
    "compress",
    "decompress",
    "evaluate",
    "frame_bytes",
    "measure_levels",
    "plan",
    "profile",
    "proportional",
    "simulate",
    "solve",
    "uniform",
]


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_MODELS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(_NEEDS_MODELS[name], __name__)
    except ModuleNotFoundError as error:
        raise ImportError(
            f'orbitsplit.{name} needs {error.name}, which is not installed: pip install "orbitsplit[models]"'
        ) from error
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
