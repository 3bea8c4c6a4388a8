"""Plans whose stages choose the precision of their weights: judged by enumeration, and by sums made by hand."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import orbitsplit as osp
from orbitsplit import LayerProfile, Link, ModelProfile, Network, Node, Stage, WeightOption, Workload
from orbitsplit._cli import views
from orbitsplit._plans.plan_parts import layer_range

WORKLOAD = Workload(micro_batches=2, prompt_tokens=100, new_tokens=10)
TOKENS = 110
LAYERS = ("embeddings", "layer 0", "layer 1", "layer 2", "head")
# Bytes and seconds of each layer; those with quantized weights are no multiples of each other.
BYTES = {
    "float32": (4000, 1200, 1600, 1200, 4000),
    "int8": (1100, 400, 500, 400, 1100),
    "int4": (600, 200, 250, 200, 600),
}
SECONDS = {"float32": (0.0, 1.0, 1.5, 1.0, 0.7), "int8": (0.0, 0.6, 0.8, 0.7, 0.3), "int4": (0.1, 0.65, 0.7, 0.5, 0.35)}
LOSS = {"int8": (0.001, 0.002, 0.001, 0.003, 0.002), "int4": (0.01, 0.03, 0.02, math.inf, 0.02)}
TIED = {"float32": 4000, "int8": 1100, "int4": 600}
WORKSPACE = {"float32": 300, "int8": 350, "int4": 280}


def profile(name: str, **changes: Any) -> ModelProfile:
    layers = tuple(
        LayerProfile(
            name=layer,
            weight_bytes=size,
            kv_bytes_per_token=8 if layer.startswith("layer") else 0,
            kv_tokens_max=None,
            prefill_flop=10**9,
            decode_flop=10**7,
            prefill_s=seconds,
            decode_s=seconds / 50,
            workspace_bytes=WORKSPACE[name] + (50 if layer == "head" else 0),
        )
        for layer, size, seconds in zip(LAYERS, BYTES[name], SECONDS[name], strict=True)
    )
    plain = ModelProfile(
        model=f"models/{name}",
        architecture="ToyForCausalLM",
        dtype="float32",
        prompt_tokens=100,
        batch_size=1,
        hidden_size=16,
        layers=layers,
        cut_bytes_per_token=64,
        workspace_bytes=WORKSPACE[name],
        tied_bytes=TIED[name],
        threads=1,
        machine="test",
        library_bytes=1000,
    )
    return replace(plain, **changes)


def weights() -> dict[str, WeightOption]:
    return {
        "int8": WeightOption(profile=profile("int8"), loss=LOSS["int8"]),
        "int4": WeightOption(profile=profile("int4"), loss=LOSS["int4"], model="elsewhere/int4"),
    }


def network(*room: int) -> Network:
    """Return a network of nodes that have so many bytes for layers, about: a process takes 65,700 to itself."""
    nodes = tuple(Node(f"n{k}", 66_000 + most, slowdown=(1.0, 1.5, 0.8)[k]) for k, most in enumerate(room))
    links = tuple(Link(a.name, b.name, 64_000.0, 0.02) for a in nodes for b in nodes if a is not b)
    return Network("test", nodes, links)


def every_plan(problem: osp.Problem) -> Iterator[tuple[Stage, ...]]:
    """Yield every split of the layers over every sequence of nodes with every weight level of each stage."""
    layers, nodes = len(problem.layers), range(len(problem.nodes))
    for count in range(1, min(layers, len(problem.nodes)) + 1):
        for inner in itertools.combinations(range(1, layers), count - 1):
            edges = (0, *inner, layers)
            for order in itertools.permutations(nodes, count):
                for chosen in itertools.product(range(len(problem.weight_levels)), repeat=count):
                    yield tuple(
                        Stage(node, edges[k], edges[k + 1], 0 if k < count - 1 else None, w)
                        for k, (node, w) in enumerate(zip(order, chosen, strict=True))
                    )


def untied(problem: osp.Problem) -> osp.Problem:
    """Return the problem of plans on one node, which holds the tied weights once."""
    memory = problem.layer_memory_bytes.copy()
    memory[:, -1] -= list(TIED.values())
    return replace(problem, layer_memory_bytes=memory)


def best_by_enumeration(problem: osp.Problem) -> float:
    alone = untied(problem)
    scores = (osp.evaluate(alone if len(stages) == 1 else problem, stages) for stages in every_plan(problem))
    return min(score.objective_s for score in scores if score.is_feasible)


def test_the_problem_has_the_arrays_of_each_profile() -> None:
    problem = osp.build_problem(
        profile("float32"), network(20_000, 9_000), WORKLOAD, weights=weights(), loss_budget=0.01
    )
    assert [level.name for level in problem.weight_levels] == ["float32", "int8", "int4"]
    cache = 2 * TOKENS * 8  # of both sequences
    # The head's workspace exceeds that of the transformer layers by 50 bytes.
    assert problem.layer_memory_bytes.tolist() == [
        [e, a + cache, b + cache, c + cache, head + 50] for e, a, b, c, head in BYTES.values()
    ]
    assert problem.layer_time_s.tolist() == [
        [list(times), pytest.approx([1.5 * s for s in times])] for times in SECONDS.values()
    ]
    assert problem.layer_decode_time_s is not None
    assert problem.layer_decode_time_s[1][0] == pytest.approx([s / 50 for s in SECONDS["int8"]])
    assert problem.weight_loss is not None
    assert problem.weight_loss.tolist() == [[0.0] * 5, list(LOSS["int8"]), list(LOSS["int4"])]
    # The process takes the same beside its workspace, of which int8 has most: once in use, once kept.
    alone = osp.build_problem(profile("int8"), network(20_000, 9_000), WORKLOAD)
    assert [node.headroom_bytes for node in problem.nodes] == [node.headroom_bytes for node in alone.nodes]


def test_without_weights_there_is_no_weight_level() -> None:
    plain = osp.build_problem(profile("float32"), network(20_000), WORKLOAD)
    assert osp.build_problem(profile("float32"), network(20_000), WORKLOAD, weights={}) == plain
    assert plain.weight_levels == ()


@pytest.mark.parametrize(
    ("room", "budget"),
    [
        ((20_000, 20_000, 20_000), 0.0),
        ((9_000, 9_000, 8_000), 0.004),
        ((5_000, 5_000, 7_000), 0.02),
        ((4_000, 5_500), 0.05),
        ((3_000, 2_600, 4_000), math.inf),
        ((100_000,), 0.01),
        ((8_000,), 0.01),
    ],
)
def test_no_other_choice_of_split_nodes_and_weights_is_faster(room: tuple[int, ...], budget: float) -> None:
    problem = osp.build_problem(profile("float32"), network(*room), WORKLOAD, weights=weights(), loss_budget=budget)
    found = osp.plan(profile("float32"), network(*room), WORKLOAD, weights=weights(), loss_budget=budget)
    assert found.prediction is not None
    assert found.prediction.total_s == pytest.approx(best_by_enumeration(problem), rel=1e-9)
    assert found.prediction.status == "optimal"


def stages_of(plan: osp.Plan, problem: osp.Problem) -> list[Stage]:
    nodes = [node.name for node in problem.nodes]
    levels = [level.name for level in problem.weight_levels]
    return [
        Stage(
            nodes.index(s.node),
            s.start,
            s.stop,
            0 if s.stop < plan.layers else None,
            levels.index(s.weights or "float32"),
        )
        for s in plan.stages
    ]


@pytest.fixture(scope="module")
def mixed() -> osp.Plan:
    return osp.plan(
        profile("float32"),
        network(6_000, 6_000, 6_000),
        WORKLOAD,
        weights=weights(),
        loss_budget=0.006,
        explain=True,
    )


def test_the_prediction_is_that_of_the_problem(mixed: osp.Plan) -> None:
    problem = osp.build_problem(
        profile("float32"), network(6_000, 6_000, 6_000), WORKLOAD, weights=weights(), loss_budget=0.006
    )
    assert len({stage.weights for stage in mixed.stages}) > 1
    prediction = mixed.prediction
    assert prediction is not None
    score = osp.evaluate(problem, stages_of(mixed, problem))
    assert score.is_feasible
    assert prediction.loss == pytest.approx(score.loss)
    assert prediction.stage_s == pytest.approx(score.stage_s)
    assert prediction.decode_stage_s == pytest.approx(score.decode_stage_s)
    assert prediction.prefill_s == pytest.approx(score.prefill_s)
    expected = 0.0
    for stage in mixed.stages:
        expected += 0.0 if stage.weights is None else sum(LOSS[stage.weights][stage.start : stage.stop])
    assert prediction.loss == pytest.approx(expected)


def test_the_memory_of_a_stage_is_that_of_its_weights(mixed: osp.Plan) -> None:
    prediction = mixed.prediction
    assert prediction is not None
    for stage, predicted in zip(mixed.stages, prediction.stage_memory_bytes, strict=True):
        name = stage.weights or "float32"
        of = profile(name)
        layers = sum(BYTES[name][stage.start : stage.stop])
        caches = 2 * TOKENS * 8 * len(range(max(stage.start, 1), min(stage.stop, 4)))
        workspace = WORKSPACE[name] + (50 if stage.stop == 5 else 0)
        assert predicted == layers + caches + workspace + of.process_bytes(WORKLOAD, workspace)


def test_a_plan_names_the_models_that_its_stages_load(mixed: osp.Plan, tmp_path: Path) -> None:
    used = {stage.weights for stage in mixed.stages} - {None}
    directories = {"int8": "models/int8", "int4": "elsewhere/int4"}
    assert mixed.model == "models/float32"
    assert mixed.weight_models == {name: directories[name] for name in directories if name in used}
    mixed.save(tmp_path / "plan.json")
    assert osp.Plan.load(tmp_path / "plan.json") == mixed
    hash(mixed)


def test_a_plan_shows_the_weights_of_its_stages(mixed: osp.Plan) -> None:
    text = mixed.explain().splitlines()[0]
    for stage in mixed.stages:
        assert f"{stage.node}[{stage.start}:{stage.stop}]({stage.weights or 'float32'})" in str(mixed)
        assert f"{stage.node} layers {layer_range(stage, mixed.layers)} ({stage.weights or 'float32'})" in text
    plain = osp.plan(profile("float32"), network(20_000), WORKLOAD)
    assert str(plain) == "n0[0:5]"


def test_the_table_of_a_plan_has_a_column_of_weights_where_there_are_any(mixed: osp.Plan) -> None:
    shown = shown_by_command(mixed)
    rows = [line for line in shown.splitlines() if line.startswith("│ n")]
    for row, stage in zip(rows, mixed.stages, strict=True):
        assert [cell.strip() for cell in row.split("│")][1:4] == [
            stage.node,
            layer_range(stage, mixed.layers),
            stage.weights or "float32",
        ]
    assert "weights" not in shown_by_command(osp.plan(profile("float32"), network(20_000), WORKLOAD))


def shown_by_command(plan: osp.Plan) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    views.plan(console, plan)
    return console.export_text()


def test_a_file_without_weights_has_no_key_for_them() -> None:
    plain = osp.plan(profile("float32"), network(20_000), WORKLOAD).to_dict()
    assert "weight_models" not in plain
    assert all("weights" not in stage for stage in plain["stages"])


def test_a_stage_without_a_model_for_its_weights_is_refused() -> None:
    stages = (osp.PlanStage("a", 0, 4, weights="int8"),)
    with pytest.raises(ValueError, match="on 'a' has weights 'int8', of which weight_models names no model"):
        osp.Plan(stages, (), 4)
    osp.Plan(stages, (), 4, weight_models={"int8": "somewhere"})
    with pytest.raises(TypeError, match="weight_models"):
        osp.Plan(stages, (), 4, weight_models={"int8": 3})  # type: ignore[dict-item]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"prompt_tokens": 50}, "made with prompt_tokens=50, that of models/float32 has 100"),
    ({"dtype": "bfloat16"}, "made with dtype=bfloat16, that of models/float32 has float32"),
    ({"threads": 2}, "made with threads=2"),
    ({"hidden_size": 8}, "made with hidden_size=8"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_a_profile_of_another_model_or_measurement_is_named(changes: dict[str, Any], message: str) -> None:
    option = WeightOption(profile=profile("int8", **changes), loss=LOSS["int8"])
    with pytest.raises(ValueError, match=f"the profile of weights 'int8' was {message}"):
        osp.plan(profile("float32"), network(20_000), WORKLOAD, weights={"int8": option})


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match="loss has 4 numbers, must have one for each of the 5 layers"):
        WeightOption(profile=profile("int8"), loss=(0.0,) * 4)
    with pytest.raises(ValueError, match=r"loss\[1\] is -1.0, must be at least 0"):
        WeightOption(profile=profile("int8"), loss=(0.0, -1.0, 0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match=r"loss\[1\] is nan, must be at least 0"):
        WeightOption(profile=profile("int8"), loss=(0.0, math.nan, 0.0, 0.0, 0.0))
    option = weights()["int8"]
    with pytest.raises(ValueError, match="weights have the name 'float32'"):
        osp.plan(profile("float32"), network(20_000), WORKLOAD, weights={"float32": option})
    with pytest.raises(TypeError, match=r"weights\['int8'\] is .*, must be a WeightOption"):
        osp.plan(profile("float32"), network(20_000), WORKLOAD, weights={"int8": profile("int8")})  # type: ignore[dict-item]
    layers = profile("int8").layers
    short = WeightOption(profile=profile("int8", layers=layers[:-2] + layers[-1:]), loss=(0.0,) * 4)
    with pytest.raises(ValueError, match="the profile of weights 'int8' has 4 layers, which are not the 5 of"):
        osp.plan(profile("float32"), network(20_000), WORKLOAD, weights={"int8": short})
