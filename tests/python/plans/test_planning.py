"""From profile, network and workload to a plan: the arrays of the problem, checked by hand, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

import orbitsplit as osp
from orbitsplit import LayerProfile, Link, ModelProfile, Network, Node, Workload
from orbitsplit._plans.prediction import throughput
from tests.support.books_by_hand import book_by_hand

PROMPT, NEW = 100, 10


def layer(name: str, weight_bytes: int, seconds: float, *, kv: int = 0, window: int | None = None) -> LayerProfile:
    return LayerProfile(
        name=name,
        weight_bytes=weight_bytes,
        kv_bytes_per_token=kv,
        kv_tokens_max=window,
        prefill_flop=int(seconds * 1e9),
        decode_flop=int(seconds * 1e7),
        prefill_s=seconds,
        decode_s=seconds / 100,
    )


def profile(**changes: Any) -> ModelProfile:
    plain = ModelProfile(
        model="toy",
        architecture="ToyForCausalLM",
        dtype="float32",
        prompt_tokens=PROMPT,
        batch_size=1,
        hidden_size=16,
        layers=(
            layer("embeddings", 1000, 0.0),
            layer("layer 0", 500, 1.0, kv=8),
            layer("layer 1", 500, 1.0, kv=8, window=20),
            layer("head", 1000, 0.5),
        ),
        cut_bytes_per_token=64,
        workspace_bytes=300,
        tied_bytes=1000,
        threads=1,
        machine="test",
    )
    return replace(plain, **changes)


def network(*slowdowns: float, memory: int = 10_000) -> Network:
    nodes = tuple(Node(f"n{k}", memory, slowdown=s) for k, s in enumerate(slowdowns))
    names = [node.name for node in nodes]
    links = tuple(Link(a, b, 6400.0, 0.25) for a in names for b in names if a != b)
    return Network("test", nodes, links)


def test_a_node_may_be_faster_than_the_machine_that_measured() -> None:
    problem = osp.build_problem(profile(), network(1.0, 0.5), Workload(prompt_tokens=PROMPT))
    assert problem.layer_time_s.tolist() == [[0, 1, 1, 0.5], [0, 0.5, 0.5, 0.25]]
    found = osp.plan(profile(), network(1.0, 0.5, memory=10**12), Workload(prompt_tokens=PROMPT))
    assert [(stage.node, stage.slowdown) for stage in found.stages] == [("n1", 0.5)]


def test_problem_holds_what_the_profile_says() -> None:
    workload = Workload(micro_batches=3, prompt_tokens=PROMPT, new_tokens=NEW, batch_size=1)
    problem = osp.build_problem(profile(), network(1.0, 2.0), workload)
    assert problem.layers == ("embeddings", "layer 0", "layer 1", "head")
    # Three sequences of 110 tokens at 8 bytes; the second layer keeps 20 tokens only.
    assert problem.layer_memory_bytes.tolist() == [1000, 500 + 3 * 110 * 8, 500 + 3 * 20 * 8, 1000]
    assert problem.layer_time_s.tolist() == [[0, 1, 1, 0.5], [0, 2, 2, 1]]
    assert problem.layer_decode_time_s is not None
    assert problem.layer_decode_time_s.tolist() == [[0, 0.01, 0.01, 0.005], [0, 0.02, 0.02, 0.01]]
    assert problem.cut_bytes.tolist() == [6400] * 3
    assert problem.cut_decode_bytes is not None
    assert problem.cut_decode_bytes.tolist() == [64] * 3
    assert [node.headroom_bytes for node in problem.nodes] == [300, 300]
    assert (problem.micro_batches, problem.new_tokens, problem.groups) == (3, NEW, None)
    assert [level.ratio for level in problem.levels] == [1.0]


def test_memory_of_a_stage_counts_what_its_process_takes() -> None:
    sizes = (100, 300, 250, 700)
    layers = tuple(replace(one, workspace_bytes=size) for one, size in zip(profile().layers, sizes, strict=True))
    known = profile(layers=layers, workspace_bytes=700, library_bytes=4000)
    workload = Workload(micro_batches=3, prompt_tokens=PROMPT)
    nodes = network(1.0, 1.0, 1.0, memory=85_290)
    nodes = replace(nodes, nodes=(replace(nodes.nodes[0], headroom_bytes=82_200), *nodes.nodes[1:]))
    problem = osp.build_problem(known, nodes, workload)
    # 4000 of libraries, 6 + 2 activations of 6400 bytes that wait and four buffers for them, a second workspace of 300.
    process = 4000 + 8 * 6400 + 4 * 6400 + 300
    assert [node.headroom_bytes for node in problem.nodes] == [82_500, process + 300, process + 300]
    # The head has 400 bytes of workspace more than the layers, the embeddings have less.
    assert problem.layer_memory_bytes.tolist() == [1000, 500 + 3 * 100 * 8, 500 + 3 * 20 * 8, 1400]
    result = osp.plan(known, nodes, workload, order="fixed")
    assert [(stage.start, stage.stop) for stage in result.stages] == [(0, 1), (1, 2), (2, 4)]
    assert result.prediction is not None
    process -= 300
    expected = (1000 + process + 2 * 100, 2900 + process + 2 * 300, 980 + 1000 + process + 2 * 700)
    assert result.prediction.stage_memory_bytes == expected


def test_every_stage_has_the_overhead_of_a_forward_once() -> None:
    measured = profile(overhead_prefill_s=0.4, overhead_decode_s=0.04)
    problem = osp.build_problem(measured, network(1.0, 2.0), Workload(prompt_tokens=PROMPT, new_tokens=2))
    assert problem.layer_time_s[0].tolist() == [0, 1, 1, 0.5]
    assert problem.layer_decode_time_s is not None
    assert problem.layer_decode_time_s[1].tolist() == [0, 0.02, 0.02, 0.01]
    assert problem.stage_overhead_s is not None
    assert problem.stage_decode_overhead_s is not None
    assert problem.stage_overhead_s.tolist() == [0.4, 0.8]
    assert problem.stage_decode_overhead_s.tolist() == [0.04, 0.08]


def test_nodes_without_a_stage_make_no_stage_longer() -> None:
    # The overhead was spread over the layers as if every node of the network had a stage: here ten of each stage.
    measured = profile(overhead_prefill_s=0.4, overhead_decode_s=0.04)
    nodes = [Node(f"n{k}", 10**12, slowdown=1.0 if k < 2 else 2.0) for k in range(20)]
    links = [Link(a.name, b.name, 1e6) for a in nodes for b in nodes if a is not b]
    workload = Workload(micro_batches=4, prompt_tokens=PROMPT, new_tokens=8)
    plan = osp.plan(measured, Network("many", tuple(nodes), tuple(links)), workload, objective="throughput")
    assert {stage.node for stage in plan.stages} == {"n0", "n1"}
    found = plan.prediction
    assert found is not None
    for k, stage in enumerate(plan.stages):
        layers = measured.layers[stage.start : stage.stop]
        assert found.stage_s[k] == pytest.approx(0.4 + sum(layer.prefill_s or 0.0 for layer in layers))
        assert found.decode_stage_s[k] == pytest.approx(0.04 + sum(layer.decode_s or 0.0 for layer in layers))


def test_nodes_of_known_flops_and_profiles_without_overhead_have_no_seconds_of_stages() -> None:
    workload = Workload(prompt_tokens=PROMPT, new_tokens=2)
    plain = osp.build_problem(profile(), network(1.0, 2.0), workload)
    assert plain.stage_overhead_s is None
    assert plain.stage_decode_overhead_s is None
    mixed = Network("mixed", (Node("a", 10_000, flop_per_s=1e9), Node("b", 10_000, slowdown=3.0)))
    problem = osp.build_problem(profile(overhead_prefill_s=0.5, overhead_decode_s=0.25), mixed, workload)
    assert problem.stage_overhead_s is not None
    assert problem.stage_decode_overhead_s is not None
    assert problem.stage_overhead_s.tolist() == [0, 1.5]
    assert problem.stage_decode_overhead_s.tolist() == [0, 0.75]


def test_compute_in_flop_per_second_needs_no_measurement() -> None:
    node = Node("a", 10_000, flop_per_s=1e9, memory_bytes_per_s=2000)
    unmeasured = profile(layers=tuple(replace(one, prefill_s=None, decode_s=None) for one in profile().layers))
    problem = osp.build_problem(unmeasured, Network("one", (node,)), Workload(prompt_tokens=PROMPT, new_tokens=2))
    # Prefill of a layer: 1e9 FLOP at 1e9 FLOP/s; decode: 500 bytes at 2000 bytes per second.
    assert problem.layer_time_s.tolist() == [[0.5, 1, 1, 0.5]]
    assert problem.layer_decode_time_s is not None
    assert problem.layer_decode_time_s.tolist() == [[0.5, 0.25, 0.25, 0.5]]


def test_plan_names_nodes_codecs_and_links() -> None:
    raw = osp.Level(name="raw", ratio=1.0)
    int8 = osp.Level(name="int8", ratio=4.0, encode_s_per_byte=1e-6, decode_s_per_byte=1e-6)
    levels = osp.LevelTable(levels=(raw, int8), loss=((0.0, 0.1),) * 3)
    workload = Workload(micro_batches=8, prompt_tokens=PROMPT)
    result = osp.plan(profile(), network(2.0, 1.0, memory=9000), workload, levels=levels, loss_budget=0.1)
    assert result.prediction is not None
    assert result.prediction.status == "optimal"
    assert len(result.stages) == 2
    assert [stage.codec for stage in result.stages] == ["int8", None]
    assert {stage.node: stage.slowdown for stage in result.stages} == {"n0": 2.0, "n1": 1.0}
    assert result.links == (osp.PlanLink(6400.0, 0.25),)
    assert osp.Plan.from_dict(result.to_dict()) == result


def test_infeasible_is_an_error_that_names_the_limit() -> None:
    with pytest.raises(osp.InfeasiblePlanError, match="needs 1 kB, the largest node has 900 B"):
        osp.plan(profile(), network(1.0, 1.0, memory=1200))


@pytest.mark.parametrize(
    ("changes", "workload", "message"),
    [
        ({}, Workload(prompt_tokens=7), "prompt_tokens=100, the workload has 7"),
        ({}, Workload(prompt_tokens=PROMPT, batch_size=2), "batch_size=1, the workload has 2"),
        ({"layers": tuple(replace(one, prefill_s=None) for one in profile().layers)}, None, "was not measured"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    changes: dict[str, Any], workload: Workload | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        osp.plan(profile(**changes), network(1.0, 1.0), workload)


def test_levels_of_another_model_are_refused() -> None:
    levels = osp.LevelTable(levels=(), loss=((),) * 7)
    with pytest.raises(ValueError, match="the levels describe 7 cuts, the profiled model has 3"):
        osp.plan(profile(), network(1.0, 1.0), levels=levels)


def test_alternatives_cover_all_layers_and_are_no_better_than_the_optimum() -> None:
    problem = osp.build_problem(
        profile(), network(1.0, 2.0, 1.5), Workload(micro_batches=4, prompt_tokens=PROMPT, new_tokens=NEW)
    )
    best = osp.solve(problem).objective_s
    assert best is not None
    assert [(s.node, s.start, s.stop) for s in osp.uniform(problem)] == [(0, 0, 1), (1, 1, 3), (2, 3, 4)]
    others = osp.alternatives(problem)
    names = [
        "best without compression",
        "uniform",
        "proportional to speed",
        "proportional to memory",
        "filled in order",
    ]
    names += ["min-max split", "all on n0", "all on n1", "all on n2"]
    assert [other.name for other in others] == names
    for other in others:
        assert other.breaks or other.total_s >= best


def test_a_node_that_runs_everything_holds_shared_weights_once() -> None:
    # 1000 + 1300 + 660 + 1000 bytes, the first and the last 1000 one tensor, and 300 of workspace: 3260.
    fits, too_small = (network(1.0, memory=memory) for memory in (3260, 3259))
    workload = Workload(prompt_tokens=PROMPT)
    problem = osp.build_problem(profile(), fits, workload)
    assert problem.layer_memory_bytes.tolist() == [1000, 1300, 660, 1000]
    result = osp.plan(profile(), fits, workload)
    assert [(s.start, s.stop) for s in result.stages] == [(0, 4)]
    assert result.prediction is not None
    assert result.prediction.stage_memory_bytes == (3260,)
    with pytest.raises(osp.InfeasiblePlanError):
        osp.plan(profile(), too_small, workload)


def test_proportional_gives_a_node_of_twice_the_speed_twice_the_layers() -> None:
    problem = osp.Problem.from_dict(
        {
            "layers": [f"layer {i}" for i in range(9)],
            "nodes": [{"name": name, "memory_bytes": 10} for name in "ab"],
            "layer_memory_bytes": [1] * 9,
            "layer_time_s": [[2.0] * 9, [1.0] * 9],
            "cut_bytes": [1] * 8,
            "bandwidth_bytes_per_s": [[0, 1], [1, 0]],
            "latency_s": [[0, 0], [0, 0]],
            "levels": [{"name": "raw", "ratio": 1}],
            "loss": [[0]] * 8,
        }
    )
    assert [(s.start, s.stop) for s in osp.proportional(problem)] == [(0, 3), (3, 9)]


def test_the_best_single_level_is_within_the_loss_budget() -> None:
    data = osp.build_problem(profile(), network(1.0, 2.0), Workload(micro_batches=4, prompt_tokens=PROMPT)).to_dict()
    data["levels"] = [{"name": f"r{r}", "ratio": r} for r in (1, 2, 4)]
    data["loss"] = [[0.0, 0.1, 0.3]] * 3
    for budget, expected in ((0.0, 0), (0.15, 1), (1.0, 2)):
        problem = osp.Problem.from_dict({**data, "loss_budget": budget})
        assert osp.uniform(problem)[0].level == expected


def test_a_plan_explains_itself() -> None:
    workload = Workload(micro_batches=4, prompt_tokens=PROMPT, new_tokens=NEW)
    arguments = (profile(), network(1.0, 2.0, memory=9000), workload)
    plain, explained = osp.plan(*arguments), osp.plan(*arguments, explain=True)
    assert replace(explained, certificate=None) == plain
    assert osp.Plan.from_dict(json.loads(json.dumps(explained.to_dict()))) == explained
    why = explained.certificate
    assert why is not None
    assert why.total_s == explained.prediction.total_s  # type: ignore[union-attr]
    names = [other.name for other in why.alternatives]
    assert names[:1] == ["without n0"]
    assert names[-5:] == [
        "uniform", "proportional to speed", "proportional to memory", "filled in order", "min-max split"
    ]  # fmt: skip
    lines = explained.explain().splitlines()
    # It was n0[0:4], where the table of `orbitsplit plan` has 0-3.
    assert lines[0] == "n0 layers 0-3 (0: embeddings, 3: head)"
    assert [line.split(":")[0] for line in lines[1:5]] == ["prefill", "generation", "optimal", "binding constraints"]
    assert plain.explain().splitlines() == lines[:3]
    assert osp.Plan.manual(cuts=[2, 3], layers=6).explain().count("\n") == 0


def test_nodes_without_room_for_any_layer_are_named() -> None:
    """More for the layers alone would not do: what the process lacks comes first."""
    crowd = profile(library_bytes=5_000)
    text = r'nodes without room for any layer: "n0" \(900 B\); beside its layers a stage takes [0-9.]+ kB \(libraries'
    for explain in (False, True):
        with pytest.raises(osp.InfeasiblePlanError, match=text):
            osp.plan(crowd, network(1.0, memory=900), explain=explain)
        with pytest.raises(osp.InfeasiblePlanError) as found:
            osp.plan(profile(), network(1.0, memory=900), explain=explain)
        assert "without room" not in str(found.value)


def test_the_error_of_an_infeasible_plan_names_relaxations() -> None:
    with pytest.raises(osp.InfeasiblePlanError, match=r"the largest node has 900 B; memory: .* on n0 alone"):
        osp.plan(profile(), network(1.0, 1.0, memory=1200), explain=True)


def test_a_plan_for_throughput_on_few_nodes() -> None:
    arguments = (profile(), network(1.0, 2.0, 1.5), Workload(micro_batches=4, prompt_tokens=PROMPT))
    result = osp.plan(*arguments, objective="throughput", max_nodes=2, explain=True)
    assert result.prediction is not None
    assert result.prediction.objective == "throughput"
    assert len(result.stages) <= 2
    slowest = max(result.prediction.stage_s + result.prediction.link_s)
    assert slowest == result.prediction.lower_bound_s
    assert result.certificate is not None
    assert result.certificate.total_s == slowest
    assert "of throughput" in result.explain()
    delivered = f"throughput: {1 / slowest:.3g} sequences per second"
    assert delivered in result.explain()
    assert any(line.startswith(delivered) for line in result.summary())


def test_a_plan_for_throughput_says_how_many_tokens_it_generates() -> None:
    workload = Workload(micro_batches=4, prompt_tokens=PROMPT, new_tokens=5, batch_size=2)
    measured = replace(profile(), batch_size=2)
    result = osp.plan(measured, network(1.0, 2.0), workload, objective="throughput")
    assert result.prediction is not None
    slowest = max(result.prediction.decode_stage_s + result.prediction.decode_link_s)
    assert result.summary() == [f"throughput: {2 / slowest:.3g} new tokens per second while its bottleneck is busy"]
    assert "throughput" not in osp.plan(measured, network(1.0, 2.0), workload).explain()


@pytest.mark.parametrize(("seconds", "text"), [(0.0005, "2,000"), (0.4, "2.5"), (0.0, None)])
def test_rates_are_shown_in_full(seconds: float, text: str | None) -> None:
    prediction = osp.plan(profile(), network(1.0), Workload(prompt_tokens=PROMPT), objective="throughput").prediction
    assert prediction is not None
    prediction = replace(prediction, stage_s=(seconds,), link_s=())
    lines = throughput(prediction, Workload(prompt_tokens=PROMPT))
    assert lines == ([] if text is None else [f"throughput: {text} sequences per second while its bottleneck is busy"])


def test_a_running_plan_is_replanned_after_the_loss_of_a_node() -> None:
    workload = Workload(prompt_tokens=PROMPT)
    whole = network(1.0, 1.0, 1.0, memory=2700)
    before = osp.plan(profile(), whole, workload)
    assert len(before.stages) == 2
    lost = before.stages[1].node
    left = Network("left", tuple(n for n in whole.nodes if n.name != lost), tuple(
        link for link in whole.links if lost not in (link.source, link.destination)
    ))  # fmt: skip
    spare = next(n.name for n in left.nodes if n.name != before.stages[0].node)
    after = osp.plan(profile(), left, workload, running=before, stores=[spare])
    # The first stage stays where it is; the lost one comes to the node that has all weights in store.
    assert [(s.node, s.start, s.stop) for s in after.stages] == [
        (before.stages[0].node, 0, before.stages[0].stop),
        (spare, before.stages[0].stop, 4),
    ]
    assert osp.plan(profile(), whole, workload, running=before) == before
    with pytest.raises(osp.InfeasiblePlanError, match="are on no remaining node, nor in a store"):
        osp.plan(profile(), left, workload, running=before)
    with pytest.raises(ValueError, match="objective is throughput, must be latency"):
        osp.plan(profile(), left, workload, running=before, objective="throughput")


@pytest.mark.parametrize(
    ("direct_s", "new_tokens", "way"),
    [
        (None, NEW, ("n2", "n1", "n0")),
        (9.0, NEW, ("n2", "n1", "n0")),
        (0.125, NEW, ("n2", "n0")),
        (None, 0, ("n2", "n0")),
    ],
)
def test_a_plan_says_over_which_links_tokens_return(direct_s: float | None, new_tokens: int, way: tuple[str]) -> None:
    names = ("n0", "n1", "n2")
    links = [Link(a, b, 6400.0, 0.25) for a, b in (("n0", "n1"), ("n1", "n0"), ("n1", "n2"), ("n2", "n1"))]
    links += [] if direct_s is None else [Link("n2", "n0", 6400.0, direct_s)]
    nodes = tuple(Node(name, memory, slowdown=1.0) for name, memory in zip(names, (2300, 2200, 2200), strict=True))
    workload = Workload(prompt_tokens=PROMPT, new_tokens=new_tokens)
    made = osp.plan(profile(), Network("test", nodes, tuple(links)), workload, order="fixed")
    assert [stage.node for stage in made.stages] == list(names)
    latencies_s = () if new_tokens == 0 else (0.25, 0.25) if len(way) == 3 else (direct_s,)
    assert (made.return_way, made.return_latencies_s) == (way, latencies_s)
    assert made.return_latency_s == sum(latencies_s)
    assert osp.Plan.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_a_plan_of_one_stage_has_no_way_back() -> None:
    made = osp.plan(profile(), network(1.0), Workload(prompt_tokens=PROMPT, new_tokens=NEW))
    assert (made.return_way, made.return_latencies_s) == (("n0",), ())


# Two transformer layers: the cut before the first was not calibrated, and cuts differ in what they lose and save.
LEVELS = {
    1: [("fine", 8, 0.001), ("middle", 4, 0.01), ("coarse", 2, 0.08)],
    2: [("fine", 8, 0.002), ("coarse", 2, 0.03)],
}


def book(**changes: Any) -> osp.Codebook:
    return book_by_hand(LEVELS, **{"layers": 2, "width": 16, **changes})


def calibrated_plan(
    codebook: osp.Codebook | None = None, of: ModelProfile | None = None, *, room: int = 0, **options: Any
) -> osp.Plan:
    """Plan three stages of nodes so small that no two layers but the first fit on one, with `room` more bytes."""
    nodes = tuple(Node(f"n{k}", memory + room, slowdown=1.0) for k, memory in enumerate((3500, 4000, 4000)))
    links = tuple(Link(a.name, b.name, 640.0, 0.25) for a in nodes for b in nodes if a is not b)
    workload = Workload(micro_batches=3, prompt_tokens=PROMPT)
    given = book() if codebook is None else codebook
    return osp.plan(profile() if of is None else of, Network("test", nodes, links), workload, codebook=given, **options)


def test_a_plan_without_room_for_codecs_sends_activations_as_they_are() -> None:
    # A codebook made a network too small that was large enough without it, even where it was of no use.
    with pytest.warns(UserWarning, match=r"sent uncompressed: the codecs of a stage take up to 6\.14 kB"):
        plan = calibrated_plan(book(has_matrix=True), loss_budget=1.0)
    assert [stage.codec for stage in plan.stages] == [None] * len(plan.stages)
    assert (plan.codebook, len(plan.stages)) == (None, 3)
    with pytest.raises(osp.InfeasiblePlanError):
        calibrated_plan(book(has_matrix=True), loss_budget=1.0, room=-2000)


def test_the_matrices_of_codecs_count_as_memory_of_both_stages() -> None:
    # A demo's stage was planned at 236 MB of 250 MB, and used 252 MB.
    without, given = book(), book(has_matrix=True)
    matrix = 3 * 16 * 16 * 4
    assert (without.codec_bytes(1, 0), given.codec_bytes(1, 0)) == (0, matrix)
    assert given.table("float32").codec_bytes == matrix
    lean = calibrated_plan(without, loss_budget=1.0)
    full = calibrated_plan(given, room=2 * matrix, loss_budget=1.0)
    assert len(full.stages) == len(lean.stages) > 1
    assert lean.prediction is not None
    assert full.prediction is not None
    used = [0 if stage.codebook_level is None else matrix for stage in full.stages[:-1]]
    assert any(used)
    more = [before + after for before, after in zip([0, *used], [*used, 0], strict=True)]
    assert [
        after - before
        for before, after in zip(lean.prediction.stage_memory_bytes, full.prediction.stage_memory_bytes, strict=True)
    ] == more
    # A problem knows no codec of a stage, so every node has room for the two largest.
    workload = Workload(prompt_tokens=PROMPT)
    rooms = []
    for one in (without, given):
        problem = osp.build_problem(profile(), network(1.0, 2.0), workload, levels=one.table())
        rooms.append([node.headroom_bytes for node in problem.nodes])
    assert rooms[1] == [room + 2 * matrix for room in rooms[0]]


def losses_of(result: osp.Plan, codebook: osp.Codebook) -> list[float]:
    stages = [stage for stage in result.stages[:-1] if stage.codebook_level is not None]
    levels = [codebook.level_at(stage.cut, stage.codebook_level or 0) for stage in stages]
    assert [stage.codec for stage in stages] == [level.name for level in levels]
    return [level.loss for level in levels]


@pytest.mark.parametrize("drop", [0.0, 0.0004, 0.001, 0.004, 0.01, 0.02, 0.06, 1.0])
def test_a_plan_keeps_the_accuracy_that_the_codebook_expects(drop: float) -> None:
    result = calibrated_plan(max_accuracy_drop=drop)
    assert result.prediction is not None
    losses = losses_of(result, book())
    assert result.prediction.loss == pytest.approx(sum(losses))
    assert 0.5 * sum(losses) <= drop + 1e-12  # half a point of accuracy for each hundredth of a nat
    assert result.codebook == (book().hex_id if result.codebook_levels else None)
    assert result.max_accuracy_drop == drop
    assert osp.Plan.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    assert all(stage.codec is None for stage in result.stages if stage.cut == 0)  # not calibrated
    same = calibrated_plan(loss_budget=drop / 0.5)
    assert replace(same, max_accuracy_drop=drop) == result


def test_more_accuracy_to_spend_makes_no_plan_slower() -> None:
    drops = (0.0, 0.0004, 0.001, 0.004, 0.01, 0.02, 0.06, 1.0)
    plans = [calibrated_plan(max_accuracy_drop=drop) for drop in drops]
    seconds = [found.prediction.total_s for found in plans if found.prediction is not None]
    assert seconds == sorted(seconds, reverse=True)
    assert len(set(seconds)) >= 4
    assert all(stage.codec is None for stage in plans[0].stages)
    # With all of it: the fewest bits wherever something is sent that was calibrated.
    assert {s.codec for s in plans[-1].stages[:-1] if s.cut in LEVELS} == {"coarse"}


def test_a_codebook_alone_spends_nothing() -> None:
    assert all(stage.codec is None for stage in calibrated_plan().stages)
    assert calibrated_plan().max_accuracy_drop is None


def test_ratios_are_of_the_dtype_of_the_profile() -> None:
    half = replace(profile(), dtype="bfloat16", cut_bytes_per_token=32)
    plans = [calibrated_plan(of=of, max_accuracy_drop=1.0) for of in (profile(), half)]
    of_32, of_16 = (list(found.prediction.link_s) for found in plans if found.prediction is not None)
    assert [s.codec for s in plans[0].stages] == [s.codec for s in plans[1].stages]
    for k, stage in enumerate(plans[0].stages[:-1]):
        # As many bits of a level, half of them where nothing is encoded.
        assert of_16[k] == pytest.approx(of_32[k] if stage.codec else of_32[k] / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_budget": 0.1, "max_accuracy_drop": 0.01}, "loss_budget and max_accuracy_drop are given, only one"),
        ({"max_accuracy_drop": 1.5}, r"max_accuracy_drop is 1\.5, must be from 0 to 1"),
        ({"max_accuracy_drop": -0.1}, r"max_accuracy_drop is -0\.1, must be from 0 to 1"),
        ({"levels": book().table(), "loss_budget": 0.1}, "levels and a codebook are given, only one"),
        ({"codebook": book(layers=3)}, "calibrated for toy, 3 layers of width 16; the profile of toy has 2 layers"),
        ({"codebook": book(width=32)}, "2 layers of width 32; the profile of toy has 2 layers of width 16"),
    ],
)
def test_codebooks_and_budgets_that_contradict_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrated_plan(**options)


def test_an_accuracy_needs_a_codebook() -> None:
    for levels in (None, book().table()):
        with pytest.raises(ValueError, match="max_accuracy_drop needs a codebook"):
            osp.plan(profile(), network(1.0, 1.0), levels=levels, max_accuracy_drop=0.01)


def test_a_plan_with_levels_explains_itself_and_goes_on() -> None:
    plain = calibrated_plan(max_accuracy_drop=0.01)
    explained = calibrated_plan(max_accuracy_drop=0.01, explain=True)
    assert replace(explained, certificate=None) == plain
    assert "without compression" in {other.name for other in explained.certificate.alternatives}  # type: ignore[union-attr]
    assert calibrated_plan(max_accuracy_drop=0.01, running=plain) == plain


def test_options_of_the_search_are_an_object_or_keywords() -> None:
    arguments = (profile(), network(1.0, 2.0, 1.5), Workload(prompt_tokens=PROMPT))
    options = osp.SolveOptions(objective="throughput", max_nodes=2, max_labels=1000)
    made = osp.plan(*arguments, options=options, explain=True)
    assert made == osp.plan(*arguments, objective="throughput", max_nodes=2, max_labels=1000, explain=True)
    assert made.prediction is not None
    assert made.prediction.objective == "throughput"
    with pytest.raises(TypeError, match=r"plan\(\) got options= and gap=, which is a field of it: give one of them"):
        osp.plan(*arguments, options=options, gap=0.1)
    with pytest.raises(TypeError, match=r"plan\(\) got an unexpected keyword argument 'speed'"):
        osp.plan(*arguments, speed=1)  # type: ignore[call-arg]
    rough = osp.plan(*arguments, gap=0.5)
    assert rough.prediction is not None
    assert (rough.prediction.status, rough.prediction.gap) == ("feasible", pytest.approx(0.5))


def test_a_running_plan_comes_with_runs_and_stores_or_with_keywords() -> None:
    workload = Workload(prompt_tokens=PROMPT)
    whole = network(1.0, 1.0, 1.0, memory=2700)
    before = osp.plan(profile(), whole, workload)
    left = whole.without([before.stages[1].node])
    stores = [node.name for node in left.nodes]
    running = osp.RunningPlan(before, runs=3, stores=stores)
    assert running.stores == tuple(stores)
    after = osp.plan(profile(), left, workload, running=running)
    assert after == osp.plan(profile(), left, workload, running=before, runs=3, stores=stores)
    with pytest.raises(TypeError, match=r"plan\(\) got running= and runs=, which is a field of it"):
        osp.plan(profile(), left, workload, running=running, runs=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"runs": 0}, "runs is 0, must be finite and above 0"),
        ({"runs": math.inf}, "runs is inf, must be finite and above 0"),
        ({"plan": 3}, "plan of a RunningPlan is 3, must be a Plan"),
        ({"stores": "n1"}, "stores is 'n1', must be a sequence of names"),
        ({"stores": [1]}, r"stores\[0\] is 1, must be a string"),
    ],
)
def test_a_running_plan_that_makes_no_sense_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}$"):
        osp.RunningPlan(**{"plan": osp.Plan.manual(cuts=[], layers=2), **arguments})


def test_a_replanner_refuses_unknown_options_before_there_is_a_loss() -> None:
    with pytest.raises(TypeError, match=r"plan\(\) got an unexpected keyword argument 'colour'"):
        osp.replanner(profile(), network(1.0), colour="red")
    osp.replanner(profile(), network(1.0), max_nodes=1, stores=["n0"], options=None)


def test_a_loss_budget_is_a_number_and_infinity_is_no_limit() -> None:
    """None once meant that nothing may be lost, while in a problem it means that there is no limit."""
    levels = osp.LevelTable(
        levels=(osp.Level(name="raw", ratio=1), osp.Level(name="int4", ratio=8)), loss=((0.0, 2.0),) * 3
    )
    arguments = (profile(), network(1.0, 1.0, memory=2700), Workload(prompt_tokens=PROMPT))
    for budget, codecs in ((0.0, {"raw"}), (1.9, {"raw"}), (math.inf, {"int4"})):
        problem = osp.build_problem(*arguments, levels=levels, loss_budget=budget)
        made = osp.plan(*arguments, levels=levels, loss_budget=budget)
        assert problem.loss_budget == (None if budget == math.inf else budget)
        assert {stage.codec or "raw" for stage in made.stages[:-1]} == codecs
    for function in (osp.plan, osp.build_problem):
        with pytest.raises(
            TypeError, match=r"loss_budget is None, must be a number: 0 for nothing lost, math\.inf for no"
        ):
            function(*arguments, levels=levels, loss_budget=None)  # type: ignore[operator]


def test_no_limit_of_loss_does_not_allow_levels_that_a_cut_does_not_have() -> None:
    free = calibrated_plan(loss_budget=math.inf)
    assert free.prediction is not None
    assert 0 < free.prediction.loss == pytest.approx(sum(losses_of(free, book())))
