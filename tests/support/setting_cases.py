"""Small random models and networks, as the package knows them and as the judge of settings does."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import orbitsplit as osp
from tests.judges.settings import Machines, Model

PROMPT, LAYERS, NODES, WIDTH = 64, 5, 3, 100
LENGTHS = (16, 32)
ROWS = (2, 4, 8)
_GROWTH = 1.2


@dataclass(frozen=True)
class Case:
    profile: osp.ModelProfile
    network: osp.Network
    model: Model
    machines: Machines


def make_case(seed: int, *, fixed: float | None = None) -> Case:
    """Return a case of the seed; `fixed` is how many rows' seconds a step takes whatever its rows."""
    source = random.Random(seed)
    fixed = source.choice([0.2, 1.0, 5.0, 20.0]) if fixed is None else fixed
    whole = tuple(source.uniform(0.5, 1.5) for _ in range(LAYERS))
    model = Model(
        prefill_s=whole,
        decode_s=tuple(one / 60 for one in whole),
        fixed=fixed,
        each=1.0,
        prompt_tokens=PROMPT,
        token_bytes=WIDTH,
        layer_bytes=10,
        chunks={
            PROMPT // length: (share, share * _GROWTH)
            for length in LENGTHS
            for share in [(fixed + length) / (fixed + PROMPT)]
        },
    )
    names = [f"n{k}" for k in range(NODES)]
    slowdown = [source.uniform(0.5, 2.0) for _ in names]
    memory = [source.choice([20, 30, 50]) for _ in names]
    pairs = list(itertools.permutations(range(NODES), 2))
    machines = Machines(
        slowdown=slowdown,
        memory_bytes=memory,
        bytes_per_s={pair: source.uniform(3e3, 3e4) for pair in pairs},
        latency_s={pair: source.uniform(0, 0.3) for pair in pairs},
    )
    network = osp.Network(
        name="test",
        nodes=tuple(
            osp.Node(name, memory_bytes=size, slowdown=factor)
            for name, size, factor in zip(names, memory, slowdown, strict=True)
        ),
        links=tuple(
            osp.Link(names[a], names[b], bytes_per_s=machines.bytes_per_s[a, b], latency_s=machines.latency_s[a, b])
            for a, b in pairs
        ),
    )
    return Case(_profile_of(model), network, model, machines)


def _profile_of(model: Model) -> osp.ModelProfile:
    names = ["embeddings", *(f"layer {k}" for k in range(LAYERS - 2)), "head"]
    steps = [osp.RowTimes(rows, tuple(one * model.row_s(rows) for one in model.decode_s)) for rows in ROWS]
    chunks = []
    for length in LENGTHS:
        first, last = ([share * one for one in model.prefill_s] for share in model.chunks[PROMPT // length])
        chunks.append(osp.ChunkTimes(length, tuple(first), tuple(last)))
    return osp.ModelProfile(
        model="m",
        architecture="A",
        dtype="float32",
        prompt_tokens=PROMPT,
        batch_size=1,
        hidden_size=WIDTH // 4,
        layers=tuple(
            osp.LayerProfile(name, 10, 0, None, 1000, 10, prefill_s=whole, decode_s=token * model.row_s(1))
            for name, whole, token in zip(names, model.prefill_s, model.decode_s, strict=True)
        ),
        cut_bytes_per_token=WIDTH,
        workspace_bytes=0,
        tied_bytes=0,
        threads=1,
        chunks=tuple(chunks),
        rows=tuple(steps),
    )
