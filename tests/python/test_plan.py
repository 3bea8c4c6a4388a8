"""Plans as data: by hand, to JSON and back, and refused when they make no sense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orbitsplit import Plan, PlanLink, PlanStage, Workload


def test_manual_cuts_lie_after_that_many_transformer_layers() -> None:
    plan = Plan.manual(cuts=[2, 3], layers=6, codecs=["int8", None])
    assert [(s.node, s.start, s.stop, s.codec) for s in plan.stages] == [
        ("node 0", 0, 3, "int8"),
        ("node 1", 3, 4, None),
        ("node 2", 4, 8, None),
    ]
    assert plan.layers == 8
    assert str(plan) == "node 0[0:3] -int8-> node 1[3:4] -raw-> node 2[4:8]"


def test_manual_allows_embeddings_alone_and_head_alone() -> None:
    assert [(s.start, s.stop) for s in Plan.manual(cuts=[0, 6], layers=6).stages] == [(0, 1), (1, 7), (7, 8)]
    assert [(s.start, s.stop) for s in Plan.manual(cuts=[], layers=6).stages] == [(0, 8)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cuts": [3, 2], "layers": 6}, "cut 2 must be above 3"),
        ({"cuts": [2, 2], "layers": 6}, "cut 2 must be above 2"),
        ({"cuts": [7], "layers": 6}, "at most 6"),
        ({"cuts": [-1], "layers": 6}, "at least 0"),
        ({"cuts": [1.5], "layers": 6}, "must be an integer"),
        ({"cuts": [], "layers": 0}, "layers is 0"),
        ({"cuts": [1], "layers": 6, "codecs": []}, "1 cuts need 1 codecs, got 0"),
    ],
)
def test_manual_names_the_mistake(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan.manual(**arguments)


def test_json_round_trip(tmp_path: Path) -> None:
    plan = Plan(
        stages=(PlanStage("a", 0, 2, "int8", 4.0, 10**9, True), PlanStage("b", 2, 5)),
        links=(PlanLink(1.25e6, 0.005),),
        layers=5,
        workload=Workload(micro_batches=3, prompt_tokens=7, new_tokens=2, batch_size=2),
        return_latency_s=0.25,
        model="some/model",
    )
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def _edited(**changes: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(Plan.manual(cuts=[1], layers=2).to_dict())), **changes}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_edited(format="png"), "expected format 'orbitsplit-plan'"),
        (_edited(version=99), "version 99"),
        (_edited(colour=1), 'unknown key "colour"'),
        (_edited(stages=[]), "at least one stage"),
        (_edited(stages=3), "stages is int"),
        (_edited(return_latency_s=float("nan")), "return_latency_s is nan"),
        (_edited(dtype="int3"), "dtype is 'int3'"),
        (_edited(threads=0), "threads is 0"),
        (_edited(stages=[{"node": "a", "start": 0, "stop": 4, "codec": "int8"}], links=[]), "nothing is sent"),
        (_edited(stages=[3, 4]), r"stages\[0\] is int"),
        (_edited(stages=[{"node": "a"}]), r"stages\[0\].*start"),
        (_edited(links=[]), "2 stages need 1 links, got 0"),
        (_edited(layers=9), "the stages end at layer 4, the model has 9"),
        (_edited(workload={"micro_batches": 0}), "micro_batches is 0"),
    ],
)
def test_wrong_json_is_named(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan.from_dict(data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codec": "gzip"}, "gzip"),
        ({"codec": 8}, "codec of the stage on 'a' is 8"),
        ({"slowdown": 0.5}, "slowdown of node 'a' is 0.5"),
        ({"slowdown": float("inf")}, "slowdown of node 'a' is inf"),
        ({"memory_bytes": 1.5}, "memory_bytes of node 'a' is 1.5"),
        ({"half_duplex": 1}, "half_duplex of node 'a' is 1"),
        ({"stop": 0}, "stop of the stage on 'a' is 0"),
    ],
)
def test_a_stage_that_makes_no_sense_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PlanStage(**{"node": "a", "start": 0, "stop": 1, **changes})


@pytest.mark.parametrize("values", [(0.0, 0.0), (-1.0, 0.0), (float("nan"), 0.0), (1.0, -1.0), (1.0, float("inf"))])
def test_a_link_that_makes_no_sense_is_named(values: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="of a link is"):
        PlanLink(*values)


def test_a_node_runs_at_most_one_stage() -> None:
    with pytest.raises(ValueError, match="node 'a' has 2 stages"):
        Plan(stages=(PlanStage("a", 0, 1), PlanStage("a", 1, 2)), links=(PlanLink(),), layers=2)


def test_a_file_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        Plan.load(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="is list, must be an object"):
        Plan.load(path)


def test_missing_keys_are_named() -> None:
    data = _edited()
    del data["stages"]
    with pytest.raises(ValueError, match='no key "stages"'):
        Plan.from_dict(data)
