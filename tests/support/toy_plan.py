"""A model of four layers that take a second each for a prompt, planned on two nodes of half that speed."""

from __future__ import annotations

import orbitsplit as osp
from orbitsplit import LayerProfile, Link, ModelProfile, Network, Node, Workload

LAYERS = ("embeddings", *(f"layer {k}" for k in range(4)), "head")
PROFILE = ModelProfile(
    model="toy",
    architecture="ToyForCausalLM",
    dtype="float32",
    prompt_tokens=10,
    batch_size=1,
    hidden_size=16,
    layers=tuple(LayerProfile(name, 1000, 0, None, 10**9, 10**7, 1.0, 0.01) for name in LAYERS),
    cut_bytes_per_token=64,
    workspace_bytes=300,
    tied_bytes=0,
    threads=1,
    machine="test",
)
NETWORK = Network(
    "two",
    (Node("a", 10**6, slowdown=2.0), Node("b", 10**6, slowdown=2.0)),
    (Link("a", "b", 1e6, 0.001), Link("b", "a", 1e6, 0.001)),
)
WORKLOAD = Workload(micro_batches=2, prompt_tokens=10, new_tokens=100)


def planned() -> osp.Plan:
    """Return the plan, which has a stage on each node."""
    return osp.plan(PROFILE, NETWORK, WORKLOAD)
