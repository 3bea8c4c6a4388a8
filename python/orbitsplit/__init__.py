"""Split a model over several weak machines joined by slow links: plan, compress, run.

Plans and codecs need NumPy alone; what needs torch and transformers is imported when it is first used.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._codebook.accuracy import AccuracyCurve
    from ._codebook.codebook import CalibratedModel, Codebook, CodebookEntry, CodebookLevel
    from ._codebook.weight_losses import WeightLosses
    from ._codec.calibrated import CalibratedCodec
    from ._codec.codecs import Codec, compress, decompress, frame_bytes
    from ._codec.stateful import Decoder, Encoder
    from ._errors import CorruptFrameError, InfeasiblePlanError, OrbitsplitError, TransportError
    from ._experiments.paper import PaperBench, bench_paper
    from ._io.schemas import schema
    from ._models.convert import convert
    from ._network.link_conditions import LinkConditions, LinkShape, LossBursts
    from ._network.network import Link, Network, Node
    from ._planner.baselines import alternatives, fill_in_order, min_max_split, proportional, single_node, uniform
    from ._planner.certificate import Alternative, Binding, Certificate, Relaxation
    from ._planner.certify import certificate
    from ._planner.level_table import LevelTable
    from ._planner.pareto import ParetoFront, ParetoPoint
    from ._planner.problem import Evaluation, Problem, evaluate
    from ._planner.problem_parts import ExternalLink, Level, Pins, ProblemNode, Stage, WeightLevel
    from ._planner.restrict import without
    from ._planner.solve import Solution, SolveOptions, solve
    from ._planner.unsplit import Unsplit, unsplit
    from ._planner.weight_transfer import Move
    from ._plans.export import Export
    from ._plans.fronts import LatencyFront, LatencyPoint, pareto
    from ._plans.options import RunningPlan
    from ._plans.plan import Plan
    from ._plans.plan_parts import PlanLink, PlanStage
    from ._plans.planning import plan
    from ._plans.prediction import Prediction
    from ._plans.problem_building import build_problem
    from ._plans.replan import Option, Replan, replan
    from ._plans.replanner import replanner
    from ._plans.simulate import simulate
    from ._plans.trace import Trace, TraceEvent
    from ._plans.weight_options import WeightOption
    from ._profiling.measure import profile
    from ._profiling.profile import ChunkTimes, LayerProfile, ModelProfile, RowTimes
    from ._profiling.workload import Workload
    from ._report.report import report
    from ._weights.quantized import QuantizedWeights
    from .calibration import CalibrationOptions, Measured, Trial, Verification, calibrate, verify
    from .runtime import (
        Generation,
        GenerationOptions,
        LinkMetrics,
        Migration,
        Pipeline,
        Recovery,
        Run,
        StageMetrics,
        Timeouts,
        TokenLogprobs,
    )

# The module of each public name. It is imported when the name is first used, so that a program pays for what it uses:
# plans need NumPy alone, models torch and transformers, the paper's experiments sgp4.
_MODULES = {
    "AccuracyCurve": "._codebook.accuracy",
    "Alternative": "._planner.certificate",
    "Binding": "._planner.certificate",
    "CalibratedCodec": "._codec.calibrated",
    "CalibratedModel": "._codebook.codebook",
    "CalibrationOptions": ".calibration",
    "Certificate": "._planner.certificate",
    "ChunkTimes": "._profiling.profile",
    "Codebook": "._codebook.codebook",
    "CodebookEntry": "._codebook.codebook",
    "CodebookLevel": "._codebook.codebook",
    "Codec": "._codec.codecs",
    "CorruptFrameError": "._errors",
    "Decoder": "._codec.stateful",
    "Encoder": "._codec.stateful",
    "Evaluation": "._planner.problem",
    "Export": "._plans.export",
    "ExternalLink": "._planner.problem_parts",
    "Generation": ".runtime",
    "GenerationOptions": ".runtime",
    "InfeasiblePlanError": "._errors",
    "LatencyFront": "._plans.fronts",
    "LatencyPoint": "._plans.fronts",
    "LayerProfile": "._profiling.profile",
    "Level": "._planner.problem_parts",
    "LevelTable": "._planner.level_table",
    "Link": "._network.network",
    "LinkConditions": "._network.link_conditions",
    "LinkMetrics": ".runtime",
    "LinkShape": "._network.link_conditions",
    "LossBursts": "._network.link_conditions",
    "Measured": ".calibration",
    "Migration": ".runtime",
    "ModelProfile": "._profiling.profile",
    "Move": "._planner.weight_transfer",
    "Network": "._network.network",
    "Node": "._network.network",
    "Option": "._plans.replan",
    "OrbitsplitError": "._errors",
    "PaperBench": "._experiments.paper",
    "ParetoFront": "._planner.pareto",
    "ParetoPoint": "._planner.pareto",
    "Pins": "._planner.problem_parts",
    "Pipeline": ".runtime",
    "Plan": "._plans.plan",
    "PlanLink": "._plans.plan_parts",
    "PlanStage": "._plans.plan_parts",
    "Prediction": "._plans.prediction",
    "Problem": "._planner.problem",
    "ProblemNode": "._planner.problem_parts",
    "QuantizedWeights": "._weights.quantized",
    "Recovery": ".runtime",
    "Relaxation": "._planner.certificate",
    "Replan": "._plans.replan",
    "RowTimes": "._profiling.profile",
    "Run": ".runtime",
    "RunningPlan": "._plans.options",
    "Solution": "._planner.solve",
    "SolveOptions": "._planner.solve",
    "Stage": "._planner.problem_parts",
    "StageMetrics": ".runtime",
    "Timeouts": ".runtime",
    "TokenLogprobs": ".runtime",
    "Trace": "._plans.trace",
    "TraceEvent": "._plans.trace",
    "TransportError": "._errors",
    "Trial": ".calibration",
    "Unsplit": "._planner.unsplit",
    "Verification": ".calibration",
    "WeightLevel": "._planner.problem_parts",
    "WeightLosses": "._codebook.weight_losses",
    "WeightOption": "._plans.weight_options",
    "Workload": "._profiling.workload",
    "alternatives": "._planner.baselines",
    "bench_paper": "._experiments.paper",
    "build_problem": "._plans.problem_building",
    "calibrate": ".calibration",
    "certificate": "._planner.certify",
    "compress": "._codec.codecs",
    "convert": "._models.convert",
    "decompress": "._codec.codecs",
    "evaluate": "._planner.problem",
    "fill_in_order": "._planner.baselines",
    "frame_bytes": "._codec.codecs",
    "min_max_split": "._planner.baselines",
    "pareto": "._plans.fronts",
    "plan": "._plans.planning",
    "profile": "._profiling.measure",
    "proportional": "._planner.baselines",
    "replan": "._plans.replan",
    "replanner": "._plans.replanner",
    "report": "._report.report",
    "schema": "._io.schemas",
    "simulate": "._plans.simulate",
    "single_node": "._planner.baselines",
    "solve": "._planner.solve",
    "uniform": "._planner.baselines",
    "unsplit": "._planner.unsplit",
    "verify": ".calibration",
    "without": "._planner.restrict",
}

__all__ = [
    "AccuracyCurve",
    "Alternative",
    "Binding",
    "CalibratedCodec",
    "CalibratedModel",
    "CalibrationOptions",
    "Certificate",
    "ChunkTimes",
    "Codebook",
    "CodebookEntry",
    "CodebookLevel",
    "Codec",
    "CorruptFrameError",
    "Decoder",
    "Encoder",
    "Evaluation",
    "Export",
    "ExternalLink",
    "Generation",
    "GenerationOptions",
    "InfeasiblePlanError",
    "LatencyFront",
    "LatencyPoint",
    "LayerProfile",
    "Level",
    "LevelTable",
    "Link",
    "LinkConditions",
    "LinkMetrics",
    "LinkShape",
    "LossBursts",
    "Measured",
    "Migration",
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
    "QuantizedWeights",
    "Recovery",
    "Relaxation",
    "Replan",
    "RowTimes",
    "Run",
    "RunningPlan",
    "Solution",
    "SolveOptions",
    "Stage",
    "StageMetrics",
    "Timeouts",
    "TokenLogprobs",
    "Trace",
    "TraceEvent",
    "TransportError",
    "Trial",
    "Unsplit",
    "Verification",
    "WeightLevel",
    "WeightLosses",
    "WeightOption",
    "Workload",
    "alternatives",
    "bench_paper",
    "build_problem",
    "calibrate",
    "certificate",
    "compress",
    "convert",
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
    "report",
    "schema",
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
    if name in ("flight", "leo"):
        return importlib.import_module(f".{name}", __name__)  # says itself what it needs
    if name in _RENAMED:
        from ._io.deprecation import warn_renamed

        warn_renamed(f"orbitsplit.{name}", f"orbitsplit.{_RENAMED[name]}")
        return getattr(importlib.import_module(__name__), _RENAMED[name])
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_MODULES[name], __name__), name)
    except ModuleNotFoundError as error:
        extra = "report" if name == "report" else "models"
        raise ImportError(
            f'orbitsplit.{name} needs {error.name}, which is not installed: pip install "orbitsplit[{extra}]"'
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "flight", "leo"])  # what completion shows: nothing that this file imports for itself
