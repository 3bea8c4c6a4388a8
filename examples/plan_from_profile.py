"""Plan a language model of 8 billion parameters over five weak nodes from its configuration alone, without weights.

Shows how layers are counted (`profile`), how nodes and links are described (`Network`), what `plan` decides and proves,
how the plan compares with uniform and proportional splits, and that a plan is a JSON file. Needs the extra `models`.

    python examples/plan_from_profile.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from transformers import LlamaConfig

import orbitsplit as osp

# The shape of Llama 3 8B. A model directory or a hub id would do as well, and `measure=True` would time its layers.
MODEL = LlamaConfig(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=128256,
    max_position_embeddings=8192,
)

# Memory in GB, compute in TFLOP/s, memory bandwidth in GB/s.
BOARDS = [(8, 1.3, 200), (8, 0.6, 100), (6, 2.6, 200), (8, 0.6, 100), (6, 1.3, 200)]


def ring_of_boards() -> osp.Network:
    """Return the boards with links of 1 Gbit/s and 2 ms between neighbours, in both directions."""
    nodes = tuple(
        osp.Node(f"board-{n}", int(memory * 1e9), flop_per_s=compute * 1e12, memory_bytes_per_s=bandwidth * 1e9)
        for n, (memory, compute, bandwidth) in enumerate(BOARDS)
    )
    names = [node.name for node in nodes]
    neighbours = [(names[n], names[(n + step) % len(names)]) for n in range(len(names)) for step in (-1, 1)]
    return osp.Network("ring of boards", nodes, tuple(osp.Link(a, b, 1e9 / 8, 2e-3) for a, b in neighbours))


def main() -> None:
    """Profile, plan, compare, save."""
    profile = osp.profile(MODEL, prompt_tokens=256, dtype="bfloat16")
    weight_bytes = sum(layer.weight_bytes for layer in profile.layers)
    print(f"{profile.architecture}: {len(profile.layers)} layers, {weight_bytes / 1e9:.1f} GB of weights")

    workload = osp.Workload(micro_batches=4, prompt_tokens=256, new_tokens=64)
    plan = osp.plan(profile, ring_of_boards(), workload, explain=True, time_limit_s=5)
    print(plan)
    print(plan.explain())

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        plan.save(path)
        print(f"saved as {path.stat().st_size} bytes of JSON; loaded again, it is equal: {osp.Plan.load(path) == plan}")


if __name__ == "__main__":
    main()
