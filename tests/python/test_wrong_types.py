"""Values of a wrong type are refused by name, by every public function and class; none shows what is inside."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

import orbitsplit as osp
from orbitsplit import leo
from tests.support.books_by_hand import book_by_hand

LAYERS = ("embeddings", "layer 0", "layer 1", "head")
LAYER: dict[str, Any] = {
    "name": "layer 0",
    "weight_bytes": 1000,
    "kv_bytes_per_token": 0,
    "kv_tokens_max": None,
    "prefill_flop": 10**9,
    "decode_flop": 10**7,
    "prefill_s": 1.0,
    "decode_s": 0.01,
}
PROFILE: dict[str, Any] = {
    "model": "toy",
    "architecture": "ToyForCausalLM",
    "dtype": "float32",
    "prompt_tokens": 100,
    "batch_size": 1,
    "hidden_size": 16,
    "layers": tuple(osp.LayerProfile(**{**LAYER, "name": name}) for name in LAYERS),
    "cut_bytes_per_token": 64,
    "workspace_bytes": 300,
    "tied_bytes": 0,
    "threads": 1,
}
PROFILED = osp.ModelProfile(**PROFILE)
NODES = tuple(osp.Node(f"n{k}", 3500, slowdown=1.0) for k in range(3))
LINKS = tuple(osp.Link(a.name, b.name, 640.0) for a in NODES for b in NODES if a is not b)
NETWORK = osp.Network("test", NODES, LINKS)
WORKLOAD = osp.Workload(prompt_tokens=100, new_tokens=5)
BOOK = book_by_hand({1: [("fine", 8, 0.001)]}, layers=2, width=16)
PLAN = osp.plan(PROFILED, NETWORK, WORKLOAD)
PROBLEM = osp.build_problem(PROFILED, NETWORK, WORKLOAD)
SHAPE: dict[str, Any] = {"shape": (4, 16), "dtype": "float32"}
X = np.ones((4, 16), np.float32)

# Right arguments of each, of which one after the other is replaced.
RIGHT: dict[str, dict[str, Any]] = {
    "AccuracyCurve": {"drop_per_loss": 0.5, "error": 0.01, "points": 5},
    "CalibratedCodec": {"codebook": 1, "step": np.full(16, 0.25, np.float32), "cut": 0, "level": 0, "tables": None},
    "CalibrationOptions": {"cuts": "all", "levels": (5.0,), "codecs": ("fisher",), "prompt_tokens": 8, "seed": 0},
    "Codebook": {
        "model": BOOK.model,
        "entries": {},
        "tensors": {},
        "accuracy": BOOK.accuracy,
        "provenance": {},
    },
    "Codec": {"name": "int8", "group": 32},
    "Decoder": {**SHAPE, "framework": "numpy", "threads": 1},
    "Encoder": {**SHAPE, "codec": "int8", "threads": 1},
    "ExternalLink": {"bytes": 1.0, "bandwidth_bytes_per_s": [1.0], "latency_s": [0.0]},
    "ChunkTimes": {"tokens": 16, "first_s": (0.1, 0.1), "last_s": (0.1, 0.2), "overhead_s": 0.0},
    "GenerationOptions": {
        "max_new_tokens": 3,
        "seed": 1,
        "top_k": 2,
        "eos_token_id": 3,
        "prompt_lookup_num_tokens": 4,
    },
    "LayerProfile": LAYER,
    "Level": {"name": "raw", "ratio": 1.0},
    "LevelTable": {"levels": (osp.Level(name="raw", ratio=1),), "loss": ((0.0,),) * 3, "codec_bytes": 0},
    "Link": {"source": "a", "destination": "b", "bytes_per_s": 1.0, "latency_s": 0.0},
    "LinkConditions": {"links": (osp.LinkShape("a", "b"),), "seed": 0},
    "LinkShape": {"source": "a", "destination": "b", "rates": (), "down": (), "jitter_s": 0.0, "seed": 0},
    "LossBursts": {"every_s": 1.0, "lasting_s": 1.0},
    "ModelProfile": PROFILE,
    "Network": {"name": "test", "nodes": NODES, "links": LINKS, "pins": ()},
    "Node": {"name": "a", "memory_bytes": 10, "slowdown": 1.0, "headroom_bytes": 0, "device": "cpu"},
    "Pipeline": {"plan": PLAN, "conditions": None, "dtype": "float32", "threads": 1, "timeouts": None},
    "Plan": {"stages": PLAN.stages, "links": PLAN.links, "layers": 4, "workload": WORKLOAD, "dtype": "float32"},
    "PlanLink": {"bytes_per_s": 1.0, "latency_s": 0.0},
    "PlanStage": {"node": "a", "start": 0, "stop": 2, "codec": "int8", "weights": "int8"},
    "Problem": {
        key: getattr(PROBLEM, key) for key in ("layers", "nodes", "levels", "loss", "order", "pins", "ingress")
    },
    "RowTimes": {"rows": 2, "decode_s": (0.1, 0.1), "overhead_s": 0.0},
    "RunningPlan": {"plan": PLAN, "runs": 1.0, "stores": ()},
    "SolveOptions": {"objective": "latency", "gap": 0.0, "time_limit_s": 1.0, "max_labels": 10, "max_nodes": 2},
    "Timeouts": {"start_s": 1.0},
    "Trace": {"nodes": ("a",), "events": (), "slowdowns": ()},
    "WeightLevel": {"name": "int8"},
    "WeightLosses": {"loss": (0.1,), "loss_error": (0.01,)},
    "WeightOption": {"profile": PROFILED, "loss": (0.0, 0.001, 0.001, 0.002), "model": "int8"},
    "Workload": {"micro_batches": 1, "new_tokens": 0, "acceptance": 0.5},
    "alternatives": {"problem": PROBLEM, "tied_bytes": 0},
    "build_problem": {"profile": PROFILED, "network": NETWORK, "workload": WORKLOAD, "levels": None, "order": "free"},
    "certificate": {"problem": PROBLEM, "solution": None, "tied_bytes": 0},
    "compress": {"x": X, "codec": "int8", "threads": 1},
    "convert": {"model": "missing-model", "output": "no-folder/out", "weights": "int8", "modules": None},
    "decompress": {"frame": osp.compress(X), "framework": "numpy", "max_bytes": 1000, "threads": 1},
    "evaluate": {"problem": PROBLEM, "stages": osp.solve(PROBLEM).stages},
    "fill_in_order": {"problem": PROBLEM},
    "frame_bytes": {**SHAPE, "codec": "int8"},
    "min_max_split": {"problem": PROBLEM},
    "pareto": {"problem": PROBLEM, "over": "loss_budget", "resolution": 0.0, "tied_bytes": 0},
    "plan": {
        "profile": PROFILED,
        "network": NETWORK,
        "workload": WORKLOAD,
        "codebook": None,
        "explain": False,
        "weights": {},
        "chunk_tokens": "auto",
        "rows": None,
        "draft_tokens": "auto",
    },
    "profile": {"dtype": "float32", "measure": False, "device": "cpu", "rows": 32, "progress": None},
    "proportional": {"problem": PROBLEM, "to": "speed"},
    "replan": {"running": PLAN, "problem": PROBLEM, "stores": (), "tied_bytes": 0},
    "replanner": {"profile": PROFILED, "network": NETWORK},
    "simulate": {"plan": PLAN},
    "single_node": {"problem": PROBLEM, "objective": "latency"},
    "solve": {"problem": PROBLEM, "incumbent": ()},
    "uniform": {"problem": PROBLEM},
    "unsplit": {"problem": PROBLEM, "node": 0, "objective": "latency", "tied_bytes": 0},
    "without": {"problem": PROBLEM, "nodes": (), "links": ()},
}
WRONG: tuple[Any, ...] = (None, "x", 3.5, object(), True, [None], ("x",), {"x": 1}, b"x", 10**400, np.zeros((2, 2)))
# What Python, NumPy and pybind11 say of values that nobody looked at.
INSIDE = re.compile(
    r"incompatible|not iterable|unsupported operand|object is not|not supported between|has no len|indices must"
    r"|truth value|unhashable|has no attribute"
)


@pytest.mark.parametrize(("name", "argument"), [(name, key) for name, right in RIGHT.items() for key in right])
def test_a_wrong_type_is_refused_by_name_or_accepted(name: str, argument: str) -> None:
    """Regression: AttributeError, KeyError and the signature of the extension module."""
    made = getattr(osp, name)
    right = RIGHT[name]
    if name == "Problem":
        right = {key: getattr(PROBLEM, key) for key in PROBLEM.__dataclass_fields__}
    if name == "profile":
        right = {"model": "/nowhere/at/all", **right}
    messages = []
    for wrong in WRONG:
        try:
            made(**{**right, argument: wrong})
        except (TypeError, ValueError, OSError, osp.OrbitsplitError) as error:
            messages.append(str(error))
    assert [message for message in messages if INSIDE.search(message)] == []


@pytest.mark.parametrize(
    "name",
    [
        "uniform",
        "proportional",
        "fill_in_order",
        "min_max_split",
        "single_node",
        "alternatives",
        "solve",
        "certificate",
    ],
)
def test_what_is_no_problem_is_named(name: str) -> None:
    with pytest.raises(TypeError, match=r"^problem is 'x', must be a Problem$"):
        getattr(osp, name)("x")


def test_what_is_no_record_is_named_with_its_place() -> None:
    with pytest.raises(TypeError, match=r"^nodes\[1\] is 3, must be a Node$"):
        osp.Network("n", (NODES[0], 3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^stages is None, must be a sequence of PlanStage$"):
        osp.Plan(None, (), 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^links\[0\] is 'x', must be a LinkShape$"):
        osp.LinkConditions(("x",))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^network is 'x', must be a Network$"):
        osp.plan(PROFILED, "x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^plan is 'x', must be a Plan$"):
        osp.Pipeline("x")  # type: ignore[arg-type]


NUMBERS: list[tuple[str, dict[str, Any], str]] = [
    ("alternatives", {"problem": PROBLEM, "tied_bytes": -1}, "tied_bytes is -1, must be at least 0"),
    ("alternatives", {"problem": PROBLEM, "tied_bytes": math.nan}, "tied_bytes is nan, must be finite"),
    ("alternatives", {"problem": PROBLEM, "tied_bytes": 10**9}, "must be at most 1000, the bytes of the last layer"),
    ("certificate", {"problem": PROBLEM, "tied_bytes": -1}, "tied_bytes is -1, must be at least 0"),
    ("pareto", {"problem": PROBLEM, "tied_bytes": math.inf}, "tied_bytes is inf, must be finite"),
    ("replan", {"running": PLAN, "problem": PROBLEM, "tied_bytes": -1}, "tied_bytes is -1, must be at least 0"),
    ("unsplit", {"problem": PROBLEM, "node": 0, "tied_bytes": -1}, "tied_bytes is -1, must be at least 0"),
    ("AccuracyCurve", {"drop_per_loss": 0, "error": 0, "points": -1}, "points of the accuracy curve is -1, must be at"),
    ("CalibrationOptions", {"fit_samples": -1}, "fit_samples is -1, must be at least 1"),
    ("CalibrationOptions", {"measure_samples": 0}, "measure_samples is 0, must be at least 1"),
    ("ModelProfile", {**PROFILE, "threads": -1}, "threads is -1, must be at least 1"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), NUMBERS)
def test_a_number_out_of_range_is_named_with_its_limit(name: str, arguments: dict[str, Any], message: str) -> None:
    """Regression: some were accepted, and gave memory below 0."""
    with pytest.raises(ValueError, match=message):
        getattr(osp, name)(**arguments)


@pytest.mark.parametrize("key", ["bits_per_element", "loss", "loss_error", "encode_s_per_byte", "decode_s_per_byte"])
@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf])
def test_a_level_of_a_codebook_has_numbers(key: str, wrong: float) -> None:
    right = {"bits_per_element": 3.0, "loss": 0.1, "loss_error": 0.0, "encode_s_per_byte": 0, "decode_s_per_byte": 0}
    with pytest.raises(ValueError, match=rf"{key} of level 'l' is {wrong}, must be "):
        osp.CodebookLevel(**{"name": "l", **right, key: wrong})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: leo.period_s(x), "the altitude is 'x', must be a number"),
        (lambda x: leo.maximal_range_km(550, margin_km=x), "margin_km is 'x', must be a number"),
        (lambda x: leo.delay_s(x), "distance_km is 'x', must be an array of numbers"),
        (lambda x: leo.range_km([7000, 0, 0], x), "b is 'x', must be an array of numbers"),
        (lambda x: leo.line_of_sight(x, [7000, 0, 0]), "a is 'x', must be an array of numbers"),
        (lambda x: leo.from_tle(3), "text is 3, must be a string"),
        (lambda x: leo.load(3), "path is 3, must be a path"),
        (lambda x: leo.from_tle("", max_age_days=x), "max_age_days is 'x', must be a number"),
        (lambda x: leo.energy_j(x, {}), "plan is 'x', must be a Plan"),
        (lambda x: leo.calibrated_node("a", x, x, memory_bytes=1), "on_device is 'x', must be a ModelProfile"),
        (
            lambda x: leo.single("a", altitude_km=500, inclination_deg=0, stations=3),
            "stations is 3, must be a sequence",
        ),
    ],
)
def test_what_orbits_are_given_is_refused_by_name(call: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call("x")


def test_ranges_and_ages_are_not_negative() -> None:
    assert leo.line_of_sight([7000, 0, 0], [7000, 100, 0])
    for call in (lambda: leo.maximal_range_km(550, margin_km=-1), lambda: leo.line_of_sight(0, 0, margin_km=-1)):
        with pytest.raises(ValueError, match="margin_km is -1, must be at least 0"):
            call()
    with pytest.raises(ValueError, match="max_age_days is nan, must be above 0"):
        leo.from_tle("", max_age_days=math.nan)


def test_sequences_may_be_generators_and_are_kept_as_tuples() -> None:
    event = osp.TraceEvent("n0", "compute", 0, 0, 0.0, 1.0)
    trace = osp.Trace(nodes=iter(["n0"]), events=iter([event]), slowdowns=iter([1.0]))  # type: ignore[arg-type]
    assert (trace.nodes, trace.events, trace.slowdowns) == (("n0",), (event,), (1.0,))
    levels = (osp.Level(name="raw", ratio=1.0),)
    table = osp.LevelTable(iter(levels), iter([iter([0.5])]))  # type: ignore[arg-type]
    assert (table.levels, table.loss) == (levels, ((0.5,),))


def test_what_a_plan_had_by_position_is_still_there() -> None:
    plan = osp.Plan(PLAN.stages, PLAN.links, PLAN.layers, PLAN.workload, 0.0, "my-model")
    assert plan.model == "my-model"
