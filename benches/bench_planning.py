"""How long does `plan()` take in addition to the search, and how long does its certificate take?

    pytest benches/bench_planning.py                        # with timings
    pytest benches/bench_planning.py --benchmark-disable    # answers only

A model like Gemma 3 270M (18 layers, embeddings and head, five codecs) on the four CubeSats of cubesat_chain.
"""

from __future__ import annotations

import pytest

import orbitsplit as osp

PROMPT, LAYERS = 128, 18
CODECS = {"raw": (1.0, 0.0), "bf16": (2.0, 0.001), "int8": (3.8, 0.02), "int4": (7.1, 0.2), "topk:0.25": (2.9, 0.4)}


def layer(name: str, weight_bytes: int, seconds: float, kv: int) -> osp.LayerProfile:
    return osp.LayerProfile(name, weight_bytes, kv, None, int(1e9 * seconds), int(1e7 * seconds), seconds, seconds / 50)


@pytest.fixture
def arguments() -> dict:
    layers = (
        layer("embeddings", 671_000_000, 0.001, 0),
        *(layer(f"layer {i}", 22_300_000, 0.02, 2048) for i in range(LAYERS)),
        layer("head", 671_000_000, 0.2, 0),
    )
    profile = osp.ModelProfile(
        model="gemma",
        architecture="Gemma3ForCausalLM",
        dtype="float32",
        prompt_tokens=PROMPT,
        batch_size=1,
        hidden_size=640,
        layers=layers,
        cut_bytes_per_token=2560,
        workspace_bytes=20_000_000,
        tied_bytes=671_000_000,
        threads=1,
        machine="bench",
    )
    levels = osp.LevelTable(
        levels=tuple(osp.Level(name=name, ratio=ratio, encode_s_per_byte=1e-9) for name, (ratio, _) in CODECS.items()),
        loss=tuple(tuple(loss / (1 + cut) for _, loss in CODECS.values()) for cut in range(LAYERS + 1)),
    )
    workload = osp.Workload(micro_batches=4, prompt_tokens=PROMPT, new_tokens=24)
    network = osp.Network.sample("cubesat_chain")
    return {"profile": profile, "network": network, "workload": workload, "levels": levels, "loss_budget": 0.1}


def test_plan(benchmark, arguments):
    benchmark.group = "plan and its search"
    plan = benchmark(osp.plan, **arguments)
    assert plan.prediction.status == "optimal"
    assert plan.prediction.total_s == osp.solve(osp.build_problem(**arguments)).objective_s


def test_search_alone(benchmark, arguments):
    benchmark.group = "plan and its search"
    problem = osp.build_problem(**arguments)
    assert benchmark(osp.solve, problem).status == "optimal"


def test_build_problem(benchmark, arguments):
    benchmark.group = "plan and its search"
    assert len(benchmark(osp.build_problem, **arguments).layers) == LAYERS + 2


def test_explained_plan(benchmark, arguments):
    benchmark.group = "plan and its search"
    plan = benchmark.pedantic(osp.plan, kwargs={**arguments, "explain": True}, rounds=5)
    assert plan.certificate.total_s == plan.prediction.total_s
    assert not plan.certificate.unanswered
