"""The JSON Schemas accept what the library writes, refuse what it refuses, and know every key."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

import orbitsplit as osp
from orbitsplit import leo
from orbitsplit._codebook.codebook import CalibratedModel
from orbitsplit._io.schemas import schema_names
from orbitsplit._io.toml import parse_toml
from orbitsplit._planner.problem_parts import ExternalLink
from orbitsplit._plans.trace import KINDS
from orbitsplit.flight import FlightHandover, FlightLog, FlightPass, FlightToken, FlightTransmission
from tests.support.books_by_hand import book_by_hand
from tests.support.paths import DATA
from tests.support.small_inputs import NETWORK, PROBLEM

LAYERS = tuple(osp.LayerProfile(name, 1000, 10, None, 10**6, 10**4) for name in ("embeddings", "layer 0", "head"))
PROFILE = osp.ModelProfile("m", "M", "float32", 16, 1, 8, LAYERS, 32, 100, 0, rows=(osp.RowTimes(2, (1.0, 1.0, 1.0)),))
FLIGHT = FlightLog(
    "2026-01-01T00:00:00+00:00",
    60.0,
    passes=(FlightPass("sat-0", "munich", 1.0, 9.0),),
    handovers=(FlightHandover(1.0, 2.0, ("sat-0", "sat-1"), ("munich",), -1, 0),),
    transmissions=(FlightTransmission("sat-0", "munich", "result", 0, 1.0, 2.5, 100),),
    tokens=(FlightToken(0, 1.5),),
)
SCENARIOS = Path(leo.__file__).parent / "scenarios"
NETWORKS = Path(leo.__file__).parents[1] / "networks"


def planned(arrivals_per_s: float | None = None) -> osp.Plan:
    network = osp.Network.from_toml(NETWORK)
    workload = osp.Workload(micro_batches=4, prompt_tokens=16, new_tokens=4, arrivals_per_s=arrivals_per_s)
    return osp.plan(PROFILE, network, workload, explain=True, chunk_tokens=None)


def as_written(document: dict[str, Any]) -> Any:
    """Return a document as it is in a file."""
    return json.loads(json.dumps(document))


def problem_with_everything() -> dict[str, Any]:
    weights = {"weight_levels": [{"name": "int8"}], "weight_loss": [[0.0, None, 0.1]]}
    blocks = {key: [PROBLEM[key]] for key in ("layer_memory_bytes", "layer_time_s")}
    blocks |= {"stage_overhead_s": [[0.5, 0.0]], "stage_decode_overhead_s": [[0.1, 0.2]]}
    ends = {"bytes": 1.0, "bandwidth_bytes_per_s": [1.0, 0.0], "latency_s": [0.0, 0.0]}
    pins = {"layers": {"0": "n0"}, "required": [0], "forbidden": []}
    return osp.Problem.from_dict(
        {**PROBLEM, **weights, **blocks, "ingress": ends, "egress": ends, "pins": pins, "order": "free"}
    ).to_dict()


DOCUMENTS: dict[str, tuple[str, Callable[[], Any]]] = {
    "plan": ("plan", lambda: planned().to_dict()),
    "plan at a rate": ("plan", lambda: planned(arrivals_per_s=0.001).to_dict()),
    "plan by hand": ("plan", lambda: osp.Plan.manual([1], 3, codecs=["int8"]).to_dict()),
    "problem": ("problem", lambda: osp.Problem.from_dict(PROBLEM).to_dict()),
    "problem with everything": ("problem", problem_with_everything),
    "profile": ("profile", PROFILE.to_dict),
    "trace": ("trace", lambda: osp.simulate(planned()).to_dict()),
    "trace of a flight": ("trace", lambda: dataclasses.replace(osp.simulate(planned()), flight=FLIGHT).to_dict()),
    "codebook": ("codebook", lambda: book_by_hand({1: [("half", 8.0, 0.1)]}, layers=3, width=8).to_dict()),
    "network": ("network", lambda: parse_toml(osp.Network.from_toml(NETWORK).to_toml(), "network")),
    "network by hand": ("network", lambda: parse_toml(NETWORK, "network")),
    **{
        f"network {path.stem}": ("network", lambda path=path: parse_toml(path.read_text(), path.stem))
        for path in sorted(NETWORKS.glob("*.toml"))
    },
    **{
        f"scenario {path.stem}": ("scenario", lambda path=path: parse_toml(path.read_text(), path.stem))
        for path in sorted(SCENARIOS.glob("*.toml"))
    },
    **{
        f"problem {path.stem}": ("problem", lambda path=path: json.loads(path.read_text()))
        for path in sorted((DATA / "problems").glob("*.json"))
    },
}


def errors_of(name: str, document: Any) -> list[str]:
    return [error.message for error in Draft7Validator(osp.schema(name)).iter_errors(document)]


@pytest.mark.parametrize("name", schema_names())
def test_every_schema_is_one(name: str) -> None:
    schema = osp.schema(name)
    Draft7Validator.check_schema(schema)
    assert schema["$id"].endswith(f"/{name}.schema.json")
    assert any(kind == name for kind, _ in DOCUMENTS.values())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="dates of scenarios: tomllib")
@pytest.mark.parametrize("case", DOCUMENTS)
def test_what_the_library_writes_and_ships_is_valid(case: str) -> None:
    name, make = DOCUMENTS[case]
    document = make()
    assert errors_of(name, document if name in ("network", "scenario") else as_written(document)) == []


def changed(name: str, path: list[str | int], value: Any) -> Any:
    document = copy.deepcopy(as_written(DOCUMENTS[name][1]()))
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return document


BROKEN: list[tuple[str, list[str | int], Any]] = [
    ("plan", ["version"], 2),
    ("plan", ["stages"], []),
    ("plan", ["stages", 0, "start"], -1),
    ("plan", ["stages", 0, "end"], 3),
    ("plan", ["stages", 0, "memory_bytes"], "8 GB"),
    ("plan", ["workload", "acceptance"], 1.5),
    ("plan", ["workload", "arrivals_per_s"], 0),
    ("plan", ["prediction", "stages"], 1.0),
    ("trace of a flight", ["flight", "speed"], 0),
    ("trace of a flight", ["flight", "start"], 0),
    ("trace of a flight", ["flight", "passes", 0, 2], "early"),
    ("trace of a flight", ["flight", "passes", 0], ["sat-0", "munich", 1.0]),
    ("trace of a flight", ["flight", "transmissions", 0, 2], "text"),
    ("trace of a flight", ["flight", "handovers", 0, 2], "sat-0"),
    ("trace of a flight", ["flight", "tokens", 0, 0], 0.5),
    ("problem", ["nodes", 0, "memory_bytes"], -1),
    ("problem", ["order"], "any"),
    ("problem", ["levels", 1, "ratio"], 0.5),
    ("problem", ["loss", 0, 0], "none"),
    ("problem", ["micro_batches"], 0),
    ("profile", ["layers"], []),
    ("profile", ["layers", 0, "prefill_flop"], -1),
    ("profile", ["rows", 0, "rows"], 0),
    ("trace", ["events", 0, 1], "sleep"),
    ("trace", ["events", 0], [0, "compute"]),
    ("codebook", ["id"], "xyz"),
    ("codebook", ["entries"], {"one": []}),
    ("codebook", ["model", "layers"], 0),
    ("network", ["nodes", 0, "memory"], "8 GBit"),
    ("network", ["nodes", 0, "compute"], "fast"),
    ("network", ["nodes", 0, "slowdown"], 2),  # beside compute: two speeds
    ("network", ["nodes", 0, "cores"], 2),
    ("network", ["links", 0, "bandwidth"], "100 Mbps"),
    ("network", ["links", 0, "between"], ["a", "b"]),  # beside source and destination
    ("network", ["links", 0, "latency"], "-1 ms"),
    ("network", ["pins"], [{"node": "a"}]),
    ("scenario paper", ["constellation", "total"], 12),  # without its origin
    ("scenario paper", ["constellation", "kind"], "ring"),
    ("scenario paper", ["constellation", "spacing_km"], {"value": 1, "origin": "paper"}),
    ("scenario paper", ["links", "isl", "value"], "fast"),
    ("scenario paper", ["links", "isl", "origin"], "rumour"),
    ("scenario paper", ["satellites", "devices"], []),
    ("scenario paper", ["stations", 0, "latitude_deg", "value"], 91),
]
LOADERS: dict[str, Callable[[Path], Any]] = {
    "plan": osp.Plan.load,
    "problem": osp.Problem.load,
    "profile": osp.ModelProfile.load,
    "trace": osp.Trace.load,
    "trace of a flight": osp.Trace.load,
}


@pytest.mark.parametrize(
    ("name", "path", "value"), BROKEN, ids=[f"{name}-{path[-1]}-{value}" for name, path, value in BROKEN]
)
def test_a_broken_document_is_refused_by_schema_and_loader(
    name: str, path: list[str | int], value: Any, tmp_path: Path
) -> None:
    document = changed(name, path, value)
    assert errors_of(DOCUMENTS[name][0], document) != []
    if name in LOADERS:
        (tmp_path / "broken.json").write_text(json.dumps(document))
        with pytest.raises(ValueError, match="broken"):
            LOADERS[name](tmp_path / "broken.json")


RECORDS = [
    ("plan", None, osp.Plan, {"format", "version"}),
    ("plan", "PlanStage", osp.PlanStage, {"level"}),
    ("plan", "PlanLink", osp.PlanLink, set()),
    ("plan", "Prediction", osp.Prediction, set()),
    ("plan", "Certificate", osp.Certificate, set()),
    ("plan", "Binding", osp.Binding, set()),
    ("plan", "Alternative", osp.Alternative, set()),
    ("plan", "Relaxation", osp.Relaxation, set()),
    ("plan", "Workload", osp.Workload, set()),
    ("problem", None, osp.Problem, set()),
    ("problem", "ProblemNode", osp.ProblemNode, set()),
    ("problem", "Level", osp.Level, set()),
    ("problem", "WeightLevel", osp.WeightLevel, set()),
    ("problem", "ExternalLink", ExternalLink, set()),
    ("problem", "Pins", osp.Pins, set()),
    ("profile", None, osp.ModelProfile, {"format", "version"}),
    ("profile", "LayerProfile", osp.LayerProfile, set()),
    ("profile", "ChunkTimes", osp.ChunkTimes, set()),
    ("profile", "RowTimes", osp.RowTimes, set()),
    ("trace", None, osp.Trace, {"format", "version"}),
    ("trace", "FlightLog", FlightLog, set()),
    ("codebook", "CalibratedModel", CalibratedModel, set()),
    ("codebook", "CodebookLevel", osp.CodebookLevel, set()),
    ("codebook", "CodebookEntry", osp.CodebookEntry, set()),
    ("codebook", "AccuracyCurve", osp.AccuracyCurve, set()),
    ("codebook", "WeightLosses", osp.WeightLosses, set()),
]


@pytest.mark.parametrize(
    ("name", "definition", "record", "own"), RECORDS, ids=[f"{name}-{part}" for name, part, *_ in RECORDS]
)
def test_a_schema_has_the_keys_of_its_record(name: str, definition: str | None, record: Any, own: set[str]) -> None:
    schema = osp.schema(name)
    part = schema if definition is None else schema["definitions"][definition]
    fields = dataclasses.fields(record)
    assert part["properties"].keys() == {field.name for field in fields} | own
    assert part["additionalProperties"] is False
    needed = {
        field.name
        for field in fields
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    assert set(part.get("required", ())) == needed | (own & {"format", "version"})


def test_a_trace_has_the_kinds_of_events_of_the_library() -> None:
    assert osp.schema("trace")["properties"]["events"]["items"]["items"][1]["enum"] == list(KINDS)


def test_keys_that_editors_complete_are_explained() -> None:
    for definition in ("Node", "Link", "Pin"):
        for key, value in osp.schema("network")["definitions"][definition]["properties"].items():
            assert value["description"], key


def test_an_unknown_schema_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(ValueError, match="no schema 'networks'; there are: codebook, network, plan, problem, profile"):
        osp.schema("networks")
