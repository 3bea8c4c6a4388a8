"""Does a stage take the memory it is predicted to take?

    python benches/stage_memory.py

Gemma 3 270M in four stages at full speed. For each stage the most memory that its process held, less that of the
interpreter and its libraries, beside what a plan reserves on the node: weights, keys and values of all prompts, and the
workspace of a forward. Beside it how much of that was there before the first prompt.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import torch

import orbitsplit as osp
from orbitsplit._model import demo_model

NODES = 4
# Tokens of a prompt, new tokens, micro-batches, prompts in each, dtype.
WORKLOADS = (
    (128, 24, 4, 1, "float32"),
    (512, 16, 8, 1, "float32"),
    (512, 16, 4, 2, "float32"),
    (512, 16, 8, 1, "bfloat16"),
)
# How far a peak may be above what was predicted.
TOLERANCE = 0.10


def main() -> None:
    """Print a row for each stage of each workload."""
    model = demo_model()
    worst = -1.0
    print("| workload | stage | weights | predicted | measured | error | before the first prompt | baseline |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for prompt_tokens, new_tokens, micro_batches, batch_size, dtype in WORKLOADS:
        profile = osp.profile(model, prompt_tokens=prompt_tokens, batch_size=batch_size, dtype=dtype)
        workload = osp.Workload(micro_batches, prompt_tokens, new_tokens, batch_size)
        plan = _plan(profile, workload)
        run, loaded = _run(plan, model)
        assert plan.prediction is not None
        for k, (stage, node_bytes) in enumerate(zip(run.stages, plan.prediction.stage_memory_bytes, strict=True)):
            predicted = node_bytes + profile.workspace_bytes
            error = stage.used_bytes / predicted - 1
            worst = max(worst, error)
            cells = [stage.weight_bytes, predicted, stage.used_bytes]
            print(
                f"| {micro_batches} x {batch_size} x {prompt_tokens} + {new_tokens}, {dtype} "
                f"| layers {stage.start} to {stage.stop - 1} | {' | '.join(f'{size / 1e6:.1f}' for size in cells)} "
                f"| {100 * error:+.1f} % | {(loaded[k] - stage.baseline_bytes) / 1e6:.1f} "
                f"| {stage.baseline_bytes / 1e6:.0f} |",
                flush=True,
            )
    print(f"\nMB; at most {100 * worst:+.1f} % above what was predicted")
    assert worst <= TOLERANCE


def _plan(profile: osp.ModelProfile, workload: osp.Workload) -> osp.Plan:
    """Plan for nodes that hold the embeddings or the head and a few layers, at the speed of this machine."""
    layers = profile.layers
    kv_bytes = workload.sequences * layers[1].kv_bytes(workload.prompt_tokens + workload.new_tokens)
    a_third = (len(layers) - 2) // 3 * (layers[1].weight_bytes + kv_bytes)
    memory_bytes = [layers[0].weight_bytes + a_third, a_third, a_third, layers[-1].weight_bytes + a_third]
    names = [f"node {k}" for k in range(NODES)]
    network = osp.Network(
        name="a chain of four",
        nodes=tuple(
            osp.Node(name=name, memory_bytes=size + profile.workspace_bytes, flop_per_s=10e9)
            for name, size in zip(names, memory_bytes, strict=True)
        ),
        links=tuple(osp.Link(a, b, 100e6, 0.0) for a, b in itertools.permutations(names, 2)),
    )
    return osp.plan(profile, network, workload, order="fixed")


def _run(plan: osp.Plan, model: Path) -> tuple[osp.Run, list[int]]:
    """Run the workload; return what was measured, and the bytes of each process before the first prompt."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(3, 200_000, (plan.workload.sequences, plan.workload.prompt_tokens), generator=generator)
    with osp.Pipeline(plan, model) as pipe:
        loaded = [_resident_bytes(pid) for pid in pipe.pids]
        pipe.generate(rows, max_new_tokens=plan.workload.new_tokens, eos_token_id=())
        assert pipe.last_run is not None
        return pipe.last_run, loaded


def _resident_bytes(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
