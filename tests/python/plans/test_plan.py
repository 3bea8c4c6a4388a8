"""Plans as data: by hand, to JSON and back, and refused when they make no sense."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orbitsplit import Codebook, Plan, PlanLink, PlanStage, Prediction, Workload
from tests.support.books_by_hand import book_by_hand


def test_nodes_may_have_more_memory_than_32_bits_count() -> None:
    # 2 GiB were the most.
    (first, second) = Plan.manual(cuts=[1], layers=2).stages
    plan = replace(Plan.manual(cuts=[1], layers=2), stages=(replace(first, memory_bytes=2**40), second))
    assert Plan.from_dict(plan.to_dict()).stages[0].memory_bytes == 2**40
    with pytest.raises(ValueError, match=f"memory_bytes of node 'node 0' is {2**70}, must be at most {2**63 - 1}"):
        replace(first, memory_bytes=2**70)


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
        ({"cuts": [], "layers": 0}, "layers is 0"),
        ({"cuts": [1], "layers": 6, "codecs": []}, "1 cuts need 1 codecs, got 0"),
    ],
)
def test_manual_names_the_mistake(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan.manual(**arguments)


def test_manual_refuses_half_a_layer() -> None:
    with pytest.raises(TypeError, match="must be an integer"):
        Plan.manual(cuts=[1.5], layers=6)  # type: ignore[list-item]


def test_json_round_trip(tmp_path: Path) -> None:
    plan = Plan(
        stages=(PlanStage("a", 0, 2, "int8", 4.0, 10**9, True), PlanStage("b", 2, 5)),
        links=(PlanLink(1.25e6, 0.005),),
        layers=5,
        workload=Workload(micro_batches=3, prompt_tokens=7, new_tokens=2, batch_size=2),
        return_latency_s=0.25,
        return_latencies_s=(0.25,),
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
        (_edited(return_latency_s=float("nan")), "return_latency_s is nan"),
        (_edited(return_latencies_s=[-1]), r"return_latencies_s\[0\] is -1"),
        (_edited(return_latencies_s=[0.5]), "return_latencies_s add up to 0.5, return_latency_s is 0.0"),
        (_edited(return_latencies_s=[0, 0]), "return_latencies_s are of 2 links, a token returns over 1 or 1"),
        (_edited(dtype="int3"), "dtype is 'int3'"),
        (_edited(threads=0), "threads is 0"),
        (_edited(stages=[{"node": "a", "start": 0, "stop": 4, "codec": "int8"}], links=[]), "nothing is sent"),
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
    ("data", "message"), [(_edited(stages=3), "stages is int"), (_edited(stages=[3, 4]), r"stages\[0\] is int")]
)
def test_json_of_a_wrong_type_is_named(data: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=message):
        Plan.from_dict(data)
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=rf"plan\.json: {message}"):  # what a file holds is a value
        Plan.load(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codec": "gzip"}, "gzip"),
        ({"slowdown": 0.0}, "slowdown of node 'a' is 0, must be above 0"),
        ({"slowdown": float("inf")}, "slowdown of node 'a' is inf"),
        ({"stop": 0}, "stop of the stage on 'a' is 0"),
    ],
)
def test_a_stage_that_makes_no_sense_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PlanStage(**{"node": "a", "start": 0, "stop": 1, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codec": 8}, "codec of the stage on 'a' is 8"),
        ({"memory_bytes": 1.5}, "memory_bytes of node 'a' is 1.5"),
        ({"half_duplex": 1}, "half_duplex of node 'a' is 1, must be true or false"),
    ],
)
def test_a_stage_of_a_wrong_type_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
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


def book() -> Codebook:
    return book_by_hand({2: [("fine", 5, 0.01), ("coarse", 2, 0.1)], 4: [("coarse", 2.5, 0.2)]}, layers=6, width=8)


def test_manual_levels_are_those_of_a_codebook(tmp_path: Path) -> None:
    plan = Plan.manual(cuts=[2, 3, 4], layers=6, codebook=book(), levels=[1, None, 0])
    assert [(s.cut, s.codec, s.codebook_level) for s in plan.stages[:-1]] == [
        (2, "coarse", 1),
        (3, None, None),
        (4, "coarse", 0),
    ]
    assert (plan.codebook, plan.codebook_levels) == (book().hex_id, {2: 1, 4: 0})
    assert plan.with_levels(book(), plan.codebook_levels) == plan
    assert str(plan).startswith("node 0[0:3] -coarse-> node 1[3:4] -raw-> node 2[4:5] -coarse-> ")
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    limited = replace(plan, max_accuracy_drop=0.01)
    limited.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == limited


def test_the_old_name_of_the_codebook_level_still_works_and_warns() -> None:
    stage = PlanStage("a", 0, 3, "fine", codebook_level=1)
    with pytest.warns(DeprecationWarning, match="PlanStage.level is now PlanStage.codebook_level"):
        assert stage.level == 1
    with pytest.warns(DeprecationWarning, match=r"PlanStage\(level=\) is now PlanStage\(codebook_level=\)"):
        assert PlanStage("a", 0, 3, "fine", level=1) == stage  # type: ignore[call-arg]
    document = Plan.manual(cuts=[2, 4], layers=6, codebook=book(), levels=[1, None]).to_dict()
    assert [stage["codebook_level"] for stage in document["stages"]] == [1, None, None]
    stages = [
        {"level" if key == "codebook_level" else key: stage[key] for key in stage} for stage in document["stages"]
    ]
    assert Plan.from_dict({**document, "stages": stages}) == Plan.from_dict(document)  # a document of version 0.1


def test_levels_of_a_plan_can_be_changed() -> None:
    before = Plan.manual(cuts=[2, 4], layers=6, codecs=["int8", "int4"])
    numbers: dict[str, Any] = dict.fromkeys(("stage_s", "link_s", "decode_stage_s", "decode_link_s"), (1.0,))
    numbers |= dict.fromkeys(("total_s", "prefill_s", "token_step_s", "loss", "lower_bound_s", "gap"), 1.0)
    before = replace(before, prediction=Prediction(**numbers, stage_memory_bytes=(1,), status="optimal"), model="toy")
    after = before.with_levels(book(), {2: 0, 4: None})
    assert [(s.codec, s.codebook_level) for s in after.stages] == [("fine", 0), (None, None), (None, None)]
    assert after.codebook == book().hex_id
    assert after.prediction is None  # of the plan with other codecs
    assert (after.links, after.workload, after.model) == (before.links, before.workload, "toy")
    assert [(s.node, s.start, s.stop) for s in after.stages] == [(s.node, s.start, s.stop) for s in before.stages]
    assert [stage.codec for stage in before.stages] == ["int8", "int4", None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": [0, 0]}, "levels are those of a codebook: give one"),
        ({"levels": [0, 0], "codebook": book(), "codecs": ["int8", None]}, "and no codecs"),
        ({"levels": [0], "codebook": book()}, "2 cuts need 2 levels, got 1"),
        ({"levels": [0, 0], "codebook": book(), "layers": 7}, "6 layers.* 7"),
    ],
)
def test_levels_that_contradict_something_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan.manual(**{"cuts": [2, 4], "layers": 6, **arguments})


@pytest.mark.parametrize(
    ("cuts", "levels", "message"),
    [
        ([3], {3: 0}, "cut 3 was not calibrated, the codebook has cuts 2, 4"),
        ([2], {2: 2}, "cut 2 of the codebook has levels 0 to 1, not 2"),
        ([2], {2: -1}, "levels 0 to 1, not -1"),
        ([2, 3], {4: 0}, "the plan has no cut 4, it has 2, 3"),
    ],
)
def test_levels_that_are_not_there_are_named(cuts: list[int], levels: dict[int, int], message: str) -> None:
    with pytest.raises(LookupError, match=message):
        Plan.manual(cuts=cuts, layers=6).with_levels(book(), levels)


def test_a_level_needs_the_name_of_its_codebook() -> None:
    plan = Plan.manual(cuts=[2], layers=6, codebook=book(), levels=[0])
    with pytest.raises(ValueError, match="a stage has a level of a codebook, and the plan names no codebook"):
        replace(plan, codebook=None)
    with pytest.raises(ValueError, match="codebook_level of the stage on 'a' is -1"):
        PlanStage("a", 0, 1, "fine", codebook_level=-1)
    with pytest.raises(ValueError, match="fine"):
        PlanStage("a", 0, 1, "fine")
    with pytest.raises(ValueError, match=r"max_accuracy_drop is -0\.1"):
        replace(plan, max_accuracy_drop=-0.1)
