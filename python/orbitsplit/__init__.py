"""Split a model over several weak machines joined by slow links: plan, compress, run.

`import orbitsplit` needs NumPy alone; what needs torch and transformers is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._baselines import alternatives, fill_in_order, min_max_split, proportional, single_node, uniform
from ._calibrated import CalibratedCodec
from ._certificate import Alternative, Binding, Certificate, Relaxation
from ._certifying import certificate
from ._compress import Codec, compress, decompress, frame_bytes
from ._encoder import Decoder, Encoder
from ._errors import CorruptFrameError, InfeasiblePlanError, OrbitsplitError, TransportError
from ._levels import LevelTable
from ._moving import Move
from ._network import Link, Network, Node
from ._pareto import ParetoFront, ParetoPoint, pareto
from ._plan import Plan, PlanLink, PlanStage, Prediction, Workload
from ._planning import build_problem, plan
from ._problem import Evaluation, Level, Problem, Solution, Stage, evaluate, solve
from ._profile import LayerProfile, ModelProfile
from ._replan import Option, Replan, replan
from ._replanner import replanner
from ._simulate import simulate
from ._trace import Trace, TraceEvent
from ._unsplit import Unsplit, unsplit
from ._without import without

if TYPE_CHECKING:
    from ._accuracy import AccuracyCurve
    from ._codebook import CalibratedModel, Codebook, CodebookEntry, CodebookLevel
    from ._conditions import LinkConditions
    from ._paper import PaperBench, bench_paper
    from ._profiling import profile
    from .calibration import Measured, Trial, Verification, calibrate, verify
    from .runtime import Generation, LinkRun, Pipeline, Recovery, Run, StageRun

# Public names whose modules are imported when they are first used: most because they import torch and transformers, the
# paper's experiments because they import sgp4, codebooks because a twentieth of a second counts on every start.
_LATER = {
    "AccuracyCurve": "._accuracy",
    "CalibratedModel": "._codebook",
    "Codebook": "._codebook",
    "CodebookEntry": "._codebook",
    "CodebookLevel": "._codebook",
    "Generation": ".runtime",
    "LinkConditions": "._conditions",
    "LinkRun": ".runtime",
    "Measured": ".calibration",
    "PaperBench": "._paper",
    "Pipeline": ".runtime",
    "Recovery": ".runtime",
    "Run": ".runtime",
    "StageRun": ".runtime",
    "Trial": ".calibration",
    "Verification": ".calibration",
    "bench_paper": "._paper",
    "calibrate": ".calibration",
    "profile": "._profiling",
    "verify": ".calibration",
}

__all__ = [
    "AccuracyCurve",
    "Alternative",
    "Binding",
    "CalibratedCodec",
    "CalibratedModel",
    "Certificate",
    "Codebook",
    "CodebookEntry",
    "CodebookLevel",
    "Codec",
    "CorruptFrameError",
    "Decoder",
    "Encoder",
    "Evaluation",
    "Generation",
    "InfeasiblePlanError",
    "LayerProfile",
    "Level",
    "LevelTable",
    "Link",
    "LinkConditions",
    "LinkRun",
    "Measured",
    "ModelProfile",
    "Move",
    "Network",
    "Node",
    "Option",
    "OrbitsplitError",
    "PaperBench",
    "ParetoFront",
    "ParetoPoint",
    "Pipeline",
    "Plan",
    "PlanLink",
    "PlanStage",
    "Prediction",
    "Problem",
    "Recovery",
    "Relaxation",
    "Replan",
    "Run",
    "Solution",
    "Stage",
    "StageRun",
    "Trace",
    "TraceEvent",
    "TransportError",
    "Trial",
    "Unsplit",
    "Verification",
    "Workload",
    "alternatives",
    "bench_paper",
    "build_problem",
    "calibrate",
    "certificate",
    "compress",
    "decompress",
    "evaluate",
    "fill_in_order",
    "frame_bytes",
    "min_max_split",
    "pareto",
    "plan",
    "profile",
    "proportional",
    "replan",
    "replanner",
    "simulate",
    "single_node",
    "solve",
    "uniform",
    "unsplit",
    "verify",
    "without",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # a tenth of the time that `import orbitsplit` may take

        return version("orbitsplit")
    if name == "leo":
        return importlib.import_module(".leo", __name__)  # says itself what it needs
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_LATER[name], __name__), name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f'orbitsplit.{name} needs {error.name}, which is not installed: pip install "orbitsplit[models]"'
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
