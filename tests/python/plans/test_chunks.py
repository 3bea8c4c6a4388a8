"""Plans with prompts in chunks: the best length by enumeration, and predictions by a simulation of each chunk."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

import orbitsplit as osp
from orbitsplit._plans.chunks import chunks_of
from orbitsplit._profiling.profile import ChunkTimes, LayerProfile, ModelProfile

PROMPT, NEW, WIDTH, LAYERS = 64, 5, 100, 5
LENGTHS = (16, 32)
GROWTH = 1.2


def make_profile(seed: int = 0, *, fixed: float = 0.1, tokens: int = PROMPT) -> ModelProfile:
    """A measured profile: forwards take a `fixed` part whatever their length, and up to 20 % more behind others."""
    source = random.Random(seed)
    whole = [source.uniform(0.5, 1.5) for _ in range(LAYERS)]
    chunks = []
    for length in LENGTHS:
        share = fixed + (1 - fixed) * length / PROMPT
        first = tuple(seconds * share for seconds in whole)
        chunks.append(ChunkTimes(length, first, tuple(seconds * GROWTH for seconds in first), 0.01))
    names = ["embeddings", *(f"layer {k}" for k in range(LAYERS - 2)), "head"]
    return ModelProfile(
        model="m",
        architecture="A",
        dtype="float32",
        prompt_tokens=tokens,
        batch_size=1,
        hidden_size=WIDTH // 4,
        layers=tuple(
            LayerProfile(name, 10, 0, None, 1000, 10, prefill_s=seconds, decode_s=seconds / 20)
            for name, seconds in zip(names, whole, strict=True)
        ),
        cut_bytes_per_token=WIDTH,
        workspace_bytes=0,
        tied_bytes=0,
        overhead_prefill_s=0.02,
        threads=1,
        chunks=tuple(chunks),
    )


def make_network(seed: int, nodes: int = 3) -> osp.Network:
    source = random.Random(seed)
    return osp.Network(
        name="test",
        nodes=tuple(
            osp.Node(f"n{k}", memory_bytes=source.choice([20, 30, 50]), slowdown=source.uniform(0.5, 2.0))
            for k in range(nodes)
        ),
        links=tuple(
            osp.Link(f"n{a}", f"n{b}", bytes_per_s=source.uniform(3e3, 3e4), latency_s=source.uniform(0, 0.3))
            for a, b in itertools.permutations(range(nodes), 2)
        ),
    )


def every_split(nodes: int) -> Iterator[list[tuple[int, range]]]:
    """Yield all ordered subsets of the nodes with all divisions of the layers among them."""
    for count in range(1, nodes + 1):
        for order in itertools.permutations(range(nodes), count):
            for cuts in itertools.combinations(range(1, LAYERS), count - 1):
                edges = [0, *cuts, LAYERS]
                yield [(node, range(a, b)) for node, a, b in zip(order, edges, edges[1:], strict=False)]


def chunk_times(chunk: ChunkTimes, number: int, chunks: int) -> list[float]:
    """Seconds of each layer for one of a prompt's chunks: the last one runs the head as well."""
    grown = [a + (b - a) * number / (chunks - 1) for a, b in zip(chunk.first_s, chunk.last_s, strict=True)]
    return grown if number == chunks - 1 else [*grown[:-1], 0.0]


def total_s(
    stages: list[tuple[int, range]], profile: ModelProfile, network: osp.Network, groups: int, chunks: int
) -> float:
    """Seconds by the formulas, written down once more; infinite where a stage does not fit its node."""
    if any(10 * len(layers) > network.nodes[node].memory_bytes for node, layers in stages):
        return float("inf")
    links = {(int(link.source[1:]), int(link.destination[1:])): link for link in network.links}
    pairs = [links[a, b] for (a, _), (b, _) in itertools.pairwise(stages)]
    if chunks == 1:
        last, overhead = [layer.prefill_s or 0.0 for layer in profile.layers], profile.overhead_prefill_s
        earlier = last
    else:
        chunk = next(one for one in profile.chunks if one.tokens == PROMPT // chunks)
        overhead, last = chunk.overhead_s, list(chunk.last_s)
        each = [chunk_times(chunk, number, chunks) for number in range(chunks)] * groups
        earlier = [sum(column[:-1]) / (groups * chunks - 1) for column in zip(*each, strict=True)]

    def occupancies(seconds: list[float], of_stage: float, tokens: float) -> list[float]:
        computing = [network.nodes[n].slowdown * (of_stage + sum(seconds[k] for k in layers)) for n, layers in stages]  # type: ignore[operator]
        return computing + [WIDTH * tokens / link.bytes_per_s for link in pairs]

    latency = sum(link.latency_s for link in pairs)
    prefill, before = (occupancies(seconds, overhead, PROMPT / chunks) for seconds in (last, earlier))
    decode = occupancies([layer.decode_s or 0.0 for layer in profile.layers], 0.0, 1)
    back = 0.0
    if pairs:
        chain = [links[b, a].latency_s for (a, _), (b, _) in itertools.pairwise(stages)]
        back = min(links[stages[-1][0], stages[0][0]].latency_s, sum(chain))
    makespan = sum(prefill) + latency + (groups * chunks - 1) * max(before)
    return makespan + (NEW - 1) * max(sum(decode) + latency + back, groups * max(decode))


@pytest.mark.parametrize("groups", [1, 3])
def test_the_length_is_the_best_of_all_by_enumeration(groups: int) -> None:
    chosen = set()
    for seed in range(40):
        fixed = random.Random(seed).choice([0.02, 0.1, 0.3, 0.6])
        profile, network = make_profile(seed, fixed=fixed), make_network(seed)
        workload = osp.Workload(micro_batches=groups, prompt_tokens=PROMPT, new_tokens=NEW)
        best = {
            PROMPT // chunks: min(total_s(stages, profile, network, groups, chunks) for stages in every_split(3))
            for chunks in (1, 2, 4)
        }
        plan = osp.plan(profile, network, workload)
        assert plan.prediction is not None
        assert plan.prediction.status == "optimal"
        assert plan.prediction.total_s == pytest.approx(min(best.values()), rel=1e-9)
        assert dict(plan.prediction.chunk_options) == pytest.approx(best)
        assert best[plan.chunk_tokens or PROMPT] == min(best.values())
        chosen.add(plan.chunk_tokens)
        for length in (None, *LENGTHS):
            fixed_length = osp.plan(profile, network, workload, chunk_tokens=length).prediction
            assert fixed_length is not None
            assert fixed_length.total_s == pytest.approx(best[length or PROMPT], rel=1e-9)
    assert chosen >= {None, 16} if groups == 1 else None in chosen


@pytest.mark.parametrize("chunk_tokens", [16, 32])
def test_a_simulation_of_equal_chunks_takes_the_predicted_prefill(chunk_tokens: int) -> None:
    plan = osp.plan(
        make_profile(3),
        make_network(5),
        osp.Workload(micro_batches=2, prompt_tokens=PROMPT, new_tokens=NEW),
        chunk_tokens=chunk_tokens,
    )
    assert plan.prediction is not None
    assert len(plan.stages) > 1
    last = plan.stages[-1].node
    events = [event for event in osp.simulate(plan).events if event.node == last and event.kind == "compute"]
    assert max(event.stop_s for event in events if event.step == 0) == pytest.approx(plan.prediction.prefill_s)
    chunks = PROMPT // chunk_tokens
    assert {event.step for event in events} == {*range(1 - chunks, NEW)}


def makespan_of_each_chunk(plan: osp.Plan, profile: ModelProfile, network: osp.Network, chunk_tokens: int) -> float:
    """Seconds of a prompt in a simulation of its own, in which every chunk takes what it takes."""
    assert plan.prediction is not None
    chunk = next(one for one in profile.chunks if one.tokens == chunk_tokens)
    slowdown = {node.name: node.slowdown or 1.0 for node in network.nodes}
    free = [0.0] * len(plan.stages)
    free_links = [0.0] * len(plan.links)
    end, chunks = 0.0, PROMPT // chunk_tokens
    for number in range(chunks):
        at = 0.0
        times = chunk_times(chunk, number, chunks)
        for k, stage in enumerate(plan.stages):
            taken = slowdown[stage.node] * (chunk.overhead_s + sum(times[stage.start : stage.stop]))
            free[k] = at = max(at, free[k]) + taken
            if k < len(plan.links):
                free_links[k] = at = max(at, free_links[k]) + plan.prediction.link_s[k]
                at += plan.links[k].latency_s
        end = max(end, at)
    return end


@pytest.mark.parametrize("chunk_tokens", [16, 32])
def test_the_prediction_is_that_of_each_chunk_or_up_to_a_tenth_more(chunk_tokens: int) -> None:
    # Later chunks attend to more tokens, and are the ones that the last stages wait for.
    for seed in range(20):
        profile, network = make_profile(seed), make_network(seed)
        plan = osp.plan(profile, network, _workload(), chunk_tokens=chunk_tokens)
        assert plan.prediction is not None
        simulated_s = makespan_of_each_chunk(plan, profile, network, chunk_tokens)
        assert simulated_s * (1 - 1e-9) <= plan.prediction.prefill_s <= 1.1 * simulated_s


def _workload() -> osp.Workload:
    return osp.Workload(prompt_tokens=PROMPT)


def test_chunks_of_a_prompt_are_equally_long() -> None:
    profile = replace(make_profile(), prompt_tokens=100)
    workload = replace(_workload(), prompt_tokens=100)
    assert chunks_of(profile, 32) == 4
    plan = osp.plan(profile, make_network(5), workload)
    assert plan.prediction is not None
    assert [tokens for tokens, _ in plan.prediction.chunk_options] == [15, 25, 100]


def test_what_was_measured_between_two_lengths_is_in_proportion() -> None:
    profile, network = make_profile(), make_network(5)
    problems = [osp.build_problem(profile, network, _workload(), chunk_tokens=length) for length in (16, 22, 32, None)]
    assert [problem.micro_batches for problem in problems] == [4, 3, 2, 1]
    times = [float(problem.layer_time_s[0][2]) for problem in problems]
    between = (64 / 3 - 16) / 16
    assert times[1] == pytest.approx(times[0] + between * (times[2] - times[0]))
    assert problems[3].layer_earlier_time_s is None
    assert problems[1].layer_earlier_time_s is not None
    # The layers of three chunks, the first two of which take 1 and 1.1 times the first at either length; no head.
    assert float(problems[1].layer_earlier_time_s[0][2]) == pytest.approx(times[1] * 1.05 / GROWTH, rel=1e-2)
    assert [float(problem.cut_bytes[0]) for problem in problems] == pytest.approx([1600, 6400 / 3, 3200, 6400])


def test_a_node_of_known_flops_loses_by_chunks_what_the_measured_machine_does() -> None:
    profile = make_profile(fixed=0.25)
    network = osp.Network(name="one", nodes=(osp.Node("gpu", memory_bytes=50, flop_per_s=100.0),))
    whole, quarter = (osp.build_problem(profile, network, _workload(), chunk_tokens=length) for length in (None, 16))
    each = [chunk_times(profile.chunks[0], number, 4) for number in range(4)]
    loss = sum(map(sum, each)) / sum(layer.prefill_s or 0.0 for layer in profile.layers)
    assert loss > 1.5
    expected = whole.layer_time_s[0] * loss / 4
    assert quarter.layer_time_s[0].tolist() == pytest.approx(expected.tolist())
    assert quarter.layer_earlier_time_s is not None
    assert quarter.layer_earlier_time_s[0].tolist() == pytest.approx([*expected[:-1].tolist(), 0.0])


@pytest.mark.parametrize("objective", ["throughput", "time_per_token"])
def test_objectives_that_chunks_cannot_improve_have_whole_prompts(objective: str) -> None:
    workload = replace(_workload(), new_tokens=NEW)
    plan = osp.plan(make_profile(fixed=0.02), make_network(5), workload, objective=objective)
    assert plan.chunk_tokens is None
    assert plan.prediction is not None
    assert plan.prediction.chunk_options == ()


def test_profiles_without_times_of_chunks_have_whole_prompts() -> None:
    profile = replace(make_profile(fixed=0.02), chunks=())
    assert osp.plan(profile, make_network(5), _workload()).chunk_tokens is None
    with pytest.raises(ValueError, match="chunk_tokens is 16, and the profile of m has no times of chunks"):
        osp.plan(profile, make_network(5), _workload(), chunk_tokens=16)


@pytest.mark.parametrize(
    ("chunk_tokens", "error", "message"),
    [
        ("small", ValueError, "chunk_tokens is 'small', must be a number of tokens, "),
        (0, ValueError, "chunk_tokens is 0, must be at least 1"),
        (2.5, TypeError, "chunk_tokens"),
        (True, TypeError, "chunk_tokens"),
    ],
)
def test_other_lengths_are_refused_by_name(chunk_tokens: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        osp.plan(make_profile(), make_network(5), _workload(), chunk_tokens=chunk_tokens)  # type: ignore[arg-type]


def test_a_length_of_at_least_the_prompt_is_the_whole() -> None:
    plan = osp.plan(make_profile(), make_network(5), _workload(), chunk_tokens=PROMPT)
    assert plan.chunk_tokens is None


def test_plan_and_profile_come_back_from_their_files() -> None:
    profile = make_profile(fixed=0.02)
    plan = osp.plan(profile, make_network(5), _workload())
    assert plan.chunk_tokens == 16
    assert osp.Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert ModelProfile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile


def test_files_of_before_have_no_chunks() -> None:
    profile, plan = make_profile().to_dict(), osp.Plan.manual([1], 3).to_dict()
    assert "chunks" not in replace(make_profile(), chunks=()).to_dict()
    del profile["chunks"]
    assert ModelProfile.from_dict(profile).chunks == ()
    assert "chunk_tokens" not in plan
    assert osp.Plan.from_dict(plan).chunk_tokens is None


def test_the_explanation_compares_the_lengths() -> None:
    plan = osp.plan(make_profile(fixed=0.02), make_network(5), _workload())
    assert plan.prediction is not None
    seconds = [f"{value:.3g}" for _, value in plan.prediction.chunk_options]
    assert "prompts run in chunks of 16 tokens; best plans by length of chunks: 16 tokens " in plan.explain()
    assert all(number in plan.explain() for number in seconds)
    assert "per chunk of 16 tokens" in plan.explain()


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ((ChunkTimes(64, (0.0,) * 5, (0.0,) * 5),), "chunks of 64 tokens, must be in increasing order and below"),
        ((ChunkTimes(16, (0.0,) * 4, (0.0,) * 4),), "have times of 4 layers, the profile has 5"),
        ((ChunkTimes(16, (0.0,) * 5, (0.0,) * 5),) * 2, "must be in increasing order"),
    ],
)
def test_times_of_chunks_that_do_not_fit_the_profile_are_refused(chunks: tuple[ChunkTimes, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(make_profile(), chunks=chunks)


def test_a_time_that_is_negative_is_refused() -> None:
    with pytest.raises(ValueError, match=r"last_s\[1\] of chunks of 8 tokens is -1"):
        ChunkTimes(8, (0.0, 0.0), (0.0, -1.0))


def test_weights_without_times_of_chunks_are_not_planned_in_chunks() -> None:
    # They counted as if every chunk took as long as the whole prompt.
    profile = make_profile()
    option = osp.WeightOption(profile=replace(profile, chunks=()), loss=(0.0,) * LAYERS, model="int8")
    with pytest.raises(ValueError, match="has no times of chunks"):
        osp.plan(profile, make_network(5), _workload(), weights={"int8": option}, chunk_tokens=16)
    assert osp.plan(profile, make_network(5), _workload(), weights={"int8": option}).chunk_tokens is None


@pytest.mark.parametrize("chunk_tokens", ["auto", 1e9, 0])
def test_a_problem_has_chunks_of_a_number_of_tokens(chunk_tokens: object) -> None:
    with pytest.raises((TypeError, ValueError), match="chunk_tokens"):
        osp.build_problem(make_profile(), make_network(5), _workload(), chunk_tokens=chunk_tokens)  # type: ignore[arg-type]


def test_a_plan_after_a_loss_has_the_chunks_of_the_one_before() -> None:
    profile, network = make_profile(fixed=0.02), make_network(5)
    for length in (None, 32):
        running = osp.plan(profile, network, _workload(), chunk_tokens=length)
        lost = [running.stages[-1].node]
        assert osp.replanner(profile, network)(running, lost, []).chunk_tokens == length
        assert osp.replanner(replace(profile, chunks=()), network)(running, lost, []).chunk_tokens is None
