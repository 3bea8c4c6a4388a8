"""Does a stage take the memory it is predicted to take?

    python benches/stage_memory.py

Gemma 3 270M in four stages at full speed, nothing compressed. For each stage the most memory that its process held
while it loaded and while it ran, less that of the interpreter and its libraries, beside what a plan reserves on the
node (weights, keys and values of all prompts, the workspace of a forward), and beside that with what the process
takes for itself: libraries that load when they are first used, activations on their way, what the allocator keeps.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple

import torch

import orbitsplit as osp
from orbitsplit._model import demo_model

NODES = 4
# Tokens of a prompt, new tokens, micro-batches, prompts in each, dtype.
WORKLOADS = (
    (128, 24, 4, 1, "float32"),
    (512, 16, 1, 1, "float32"),
    (512, 16, 8, 1, "float32"),
    (512, 16, 4, 2, "float32"),
    (512, 16, 8, 1, "bfloat16"),
)
# Modules of transformers and kernels of torch that are loaded with the stage: 26 MB in float32, 33 in bfloat16.
LIBRARY_BYTES = 32_000_000
# A sender keeps the activation of every group until the next of it, a receiver has four buffers, of at most 4 MiB
# each, and an activation is there twice more: as it is computed, and in its frame.
RECEIVED, RECEIVED_BYTES, PASSING = 4, 4 << 20, 2
# How far a peak may be above what was predicted.
TOLERANCE = 0.10


class Peaks(NamedTuple):
    """The most bytes resident in a process while it loaded its stage, and afterwards."""

    loading: int
    running: int


def main() -> None:
    """Print a row for each stage of each workload."""
    model = demo_model()
    worst = -1.0
    print("| workload | layers | weights | reserved | with the process's own | loading | running | error |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for prompt_tokens, new_tokens, micro_batches, batch_size, dtype in WORKLOADS:
        profile = osp.profile(model, prompt_tokens=prompt_tokens, batch_size=batch_size, dtype=dtype)
        plan = _plan(profile, osp.Workload(micro_batches, prompt_tokens, new_tokens, batch_size))
        run, peaks = _run(plan, model)
        assert plan.prediction is not None
        for stage, peak, node_bytes in zip(run.stages, peaks, plan.prediction.stage_memory_bytes, strict=True):
            reserved = node_bytes + profile.workspace_bytes
            predicted = reserved + own_bytes(profile, plan.workload)
            loading, running = (size - stage.baseline_bytes for size in peak)
            worst = max(worst, running / predicted - 1)
            cells = (stage.weight_bytes, reserved, predicted, loading, running)
            print(
                f"| {micro_batches} x {batch_size} x {prompt_tokens} + {new_tokens}, {dtype} "
                f"| {stage.start} to {stage.stop - 1} | {' | '.join(f'{size / 1e6:.0f}' for size in cells)} "
                f"| {100 * (running / predicted - 1):+.1f} % |",
                flush=True,
            )
    print(f"\nMB, baseline {run.stages[0].baseline_bytes / 1e6:.0f}; at most {100 * worst:+.1f} % above the prediction")
    assert worst <= TOLERANCE


def own_bytes(profile: osp.ModelProfile, workload: osp.Workload) -> int:
    """Return what a process takes beside what its stage needs; the allocator keeps about a workspace."""
    activation = profile.cut_bytes_per_token * workload.prompt_tokens * workload.batch_size
    buffers = (workload.micro_batches + PASSING) * activation + RECEIVED * min(activation, RECEIVED_BYTES)
    return LIBRARY_BYTES + buffers + profile.workspace_bytes


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


def _run(plan: osp.Plan, model: Path) -> tuple[osp.Run, list[Peaks]]:
    """Run the workload; return what was measured, and the peaks of each process."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(3, 200_000, (plan.workload.sequences, plan.workload.prompt_tokens), generator=generator)
    with osp.Pipeline(plan, model) as pipe:
        loading = [_peak_bytes(pid) for pid in pipe.pids]
        for pid in pipe.pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")  # peaks count from here on
        pipe.generate(rows, max_new_tokens=plan.workload.new_tokens, eos_token_id=())
        running = [_peak_bytes(pid) for pid in pipe.pids]
        assert pipe.last_run is not None
        return pipe.last_run, [Peaks(*pair) for pair in zip(loading, running, strict=True)]


def _peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main()
