"""Split a model over several weak machines joined by slow links: plan, compress, run.

`import orbitsplit` needs NumPy alone; what needs torch and transformers is imported when it is first used.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from ._codec.calibrated import CalibratedCodec
from ._codec.codecs import Codec, compress, decompress, frame_bytes
from ._codec.stateful import Decoder, Encoder
from ._errors import CorruptFrameError, InfeasiblePlanError, OrbitsplitError, TransportError
from ._network.network import Link, Network, Node
from ._planner.baselines import alternatives, fill_in_order, min_max_split, proportional, single_node, uniform
from ._planner.certificate import Alternative, Binding, Certificate, Relaxation
from ._planner.certify import certificate
from ._planner.level_table import LevelTable
from ._planner.pareto import ParetoFront, ParetoPoint, pareto
from ._planner.problem import Evaluation, ExternalLink, Level, Pins, Problem, ProblemNode, Stage, evaluate
from ._planner.restrict import without
from ._planner.solve import Solution, SolveOptions, solve
from ._planner.unsplit import Unsplit, unsplit
from ._planner.weight_transfer import Move
from ._plans.options import RunningPlan
from ._plans.plan import Plan, PlanLink, PlanStage, Prediction
from ._plans.planning import build_problem, plan
from ._plans.replan import Option, Replan, replan
from ._plans.replanner import replanner
from ._plans.simulate import simulate
from ._plans.trace import Trace, TraceEvent
from ._profiling.profile import LayerProfile, ModelProfile
from ._profiling.workload import Workload

if TYPE_CHECKING:
    from ._codebook.accuracy import AccuracyCurve
    from ._codebook.codebook import CalibratedModel, Codebook, CodebookEntry, CodebookLevel
    from ._experiments.paper import PaperBench, bench_paper
    from ._network.link_conditions import LinkConditions, LinkShape, LossBursts
    from ._profiling.measure import profile
    from .calibration import CalibrationOptions, Measured, Trial, Verification, calibrate, verify
    from .runtime import (
        Generation,
        GenerationOptions,
        LinkMetrics,
        Pipeline,
        Recovery,
        Run,
        StageMetrics,
        Timeouts,
    )

# Public names whose modules are imported when they are first used: most because they import torch and transformers, the
# paper's experiments because they import sgp4, codebooks because a twentieth of a second counts on every start.
_LATER = {
    "AccuracyCurve": "._codebook.accuracy",
    "CalibratedModel": "._codebook.codebook",
    "CalibrationOptions": ".calibration",
    "Codebook": "._codebook.codebook",
    "CodebookEntry": "._codebook.codebook",
    "CodebookLevel": "._codebook.codebook",
    "Generation": ".runtime",
    "GenerationOptions": ".runtime",
    "LinkConditions": "._network.link_conditions",
    "LinkMetrics": ".runtime",
    "LinkShape": "._network.link_conditions",
    "LossBursts": "._network.link_conditions",
    "Measured": ".calibration",
    "PaperBench": "._experiments.paper",
    "Pipeline": ".runtime",
    "Recovery": ".runtime",
    "Run": ".runtime",
    "StageMetrics": ".runtime",
    "Timeouts": ".runtime",
    "Trial": ".calibration",
    "Verification": ".calibration",
    "bench_paper": "._experiments.paper",
    "calibrate": ".calibration",
    "profile": "._profiling.measure",
    "verify": ".calibration",
}

__all__ = [
    "AccuracyCurve",
    "Alternative",
    "Binding",
    "CalibratedCodec",
    "CalibratedModel",
    "CalibrationOptions",
    "Certificate",
    "Codebook",
    "CodebookEntry",
    "CodebookLevel",
    "Codec",
    "CorruptFrameError",
    "Decoder",
    "Encoder",
    "Evaluation",
    "ExternalLink",
    "Generation",
    "GenerationOptions",
    "InfeasiblePlanError",
    "LayerProfile",
    "Level",
    "LevelTable",
    "Link",
    "LinkConditions",
    "LinkMetrics",
    "LinkShape",
    "LossBursts",
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
    "Pins",
    "Pipeline",
    "Plan",
    "PlanLink",
    "PlanStage",
    "Prediction",
    "Problem",
    "ProblemNode",
    "Recovery",
    "Relaxation",
    "Replan",
    "Run",
    "RunningPlan",
    "Solution",
    "SolveOptions",
    "Stage",
    "StageMetrics",
    "Timeouts",
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


# Old public names, which warn for one version.
_RENAMED = {"LinkRun": "LinkMetrics", "StageRun": "StageMetrics"}

# Programs that want the log add a handler; without one, nothing is printed.
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # a tenth of the time that `import orbitsplit` may take

        return version("orbitsplit")
    if name == "leo":
        return importlib.import_module(".leo", __name__)  # says itself what it needs
    if name in _RENAMED:
        from ._io.deprecation import warn_renamed

        warn_renamed(f"orbitsplit.{name}", f"orbitsplit.{_RENAMED[name]}")
        return getattr(importlib.import_module(__name__), _RENAMED[name])
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
