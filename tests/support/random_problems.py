"""Small random problems with every feature mixed in, as dicts of a problem file."""

from __future__ import annotations

from random import Random
from typing import Any


def random_problem(r: Random, *, most_layers: int = 6, most_nodes: int = 4, order: str | None = None) -> dict:
    """Draw a problem; half the numbers are whole, so that ties and exact limits are common."""
    layers, nodes, levels = r.randint(1, most_layers), r.randint(1, most_nodes), r.randint(1, 3)
    whole = r.random() < 0.5
    is_sparse = r.random() < 0.4

    def number(low: int, high: int) -> float:
        return float(r.randint(low, high)) if whole else r.uniform(low, high)

    def often(value: float, chance: float = 0.85) -> float:
        return value if r.random() < chance else 0.0

    def grid(rows: int, columns: int, low: int, high: int) -> list[list[float]]:
        return [[often(number(low, high)) for _ in range(columns)] for _ in range(rows)]

    def bandwidth(a: int, b: int) -> float:
        return 0.0 if a == b or (is_sparse and r.random() < 0.4) else number(1, 4)

    problem = {
        "layers": [f"layer {i}" for i in range(layers)],
        "nodes": [
            {
                "name": f"node {n}",
                "memory_bytes": float(r.randint(2, 20)),
                "headroom_bytes": float(r.choice([0, 0, 1, 2])),
                "half_duplex": r.random() < 0.3,
            }
            for n in range(nodes)
        ],
        "layer_memory_bytes": [float(r.randint(0, 6)) for _ in range(layers)],
        "layer_time_s": grid(nodes, layers, 0, 4),
        "cut_bytes": [often(number(0, 4)) for _ in range(layers - 1)],
        "bandwidth_bytes_per_s": [[bandwidth(a, b) for b in range(nodes)] for a in range(nodes)],
        "latency_s": grid(nodes, nodes, 0, 2),
        "levels": [
            {
                "name": f"level {k}",
                "ratio": number(1, 6),
                "encode_s_per_byte": often(number(0, 1), 0.4),
                "decode_s_per_byte": often(number(0, 1), 0.4),
            }
            for k in range(levels)
        ],
        "loss": [[often(r.uniform(0, 1)) for _ in range(levels)] for _ in range(layers - 1)],
        "micro_batches": r.choice([1, 1, 2, 3, 8]),
        "order": order or r.choice(["fixed", "free"]),
        "latency_occupies_link": r.random() < 0.3,
    }
    if r.random() < 0.8:
        problem["loss_budget"] = r.choice([0.0, r.uniform(0, 1), r.uniform(0, 3)])
    if r.random() < 0.5:
        problem["new_tokens"] = r.choice([1, 2, 3, 10])
        problem["layer_decode_time_s"] = grid(nodes, layers, 0, 2)
        problem["cut_decode_bytes"] = [often(number(0, 2)) for _ in range(layers - 1)]
        if r.random() < 0.6:
            problem["groups"] = r.randint(1, 5)
    for key in ("ingress", "egress"):
        if r.random() < 0.3:
            problem[key] = {
                "bytes": number(0, 3),
                "bandwidth_bytes_per_s": [often(number(1, 4), 0.75) for _ in range(nodes)],
                "latency_s": [number(0, 2) for _ in range(nodes)],
            }
    if r.random() < 0.35:
        problem["pins"] = random_pins(r, layers, nodes)
    if r.random() < 0.3:  # micro-batches that are not alike
        problem["layer_earlier_time_s"] = grid(nodes, layers, 0, 4)
    return problem | random_stage_overheads(problem)


def random_stage_overheads(problem: dict) -> dict:
    """Return the overheads of stages, or nothing; drawn apart, so that no other number depends on it."""
    r = Random(str(problem["layer_time_s"]))
    return {
        key: [r.choice([0.0, 1.0, r.uniform(0, 3)]) for _ in problem["nodes"]]
        for key in overhead_keys(problem)
        if r.random() < 0.3
    }


def overhead_keys(problem: dict) -> tuple[str, ...]:
    """Return the keys of overheads that a problem may have."""
    return ("stage_overhead_s", *(["stage_decode_overhead_s"] if "layer_decode_time_s" in problem else []))


def problem_with_overheads(seed: int, **options: Any) -> dict:
    """Draw a problem whose stages have overheads of about the seconds of their layers."""
    r = Random(seed)
    data = random_problem(r, **options)
    for key in overhead_keys(data):
        data[key] = [r.choice([0.0, 2.0, r.uniform(0, 8)]) for _ in data["nodes"]]
    return data


def problem_with_earlier_times(seed: int, **options: Any) -> dict:
    """Draw a problem with micro-batches that are not alike."""
    r = Random(seed)
    data = random_problem(r, **options)
    times = [[r.choice([0.0, r.uniform(0, 4)]) for _ in data["layers"]] for _ in data["nodes"]]
    return {**data, "layer_earlier_time_s": times, "micro_batches": r.choice([1, 2, 5])}


def random_losses(r: Random, problem: dict) -> dict:
    """Return the problem with losses of any magnitude, and None for levels that a cut does not have."""
    scales = [10.0 ** r.choice([-30, -3, 0, 6, 50, 97]) for _ in range(r.randint(1, 2))]
    absent = r.choice([0.0, 0.2, 0.6])
    rows = [
        [None if r.random() < absent else loss * r.choice(scales) for loss in row]
        if r.random() < 0.9
        else [None] * len(row)
        for row in problem["loss"]
    ]
    changed = {**problem, "loss": rows}
    if "loss_budget" in problem:
        changed["loss_budget"] = problem["loss_budget"] * r.choice(scales)
    return changed


def random_weight_levels(r: Random, problem: dict, count: int = 3) -> dict:
    """Return the problem with weight levels: lighter or not, faster or not, with losses, and absent ones."""
    layers, absent = len(problem["layers"]), r.choice([0.0, 0.0, 0.2])
    scales = [[r.choice([0.25, 0.5, 1.0, 1.0, 1.5]) for _ in range(3)] for _ in range(count)]
    scales[0] = [1.0] * 3

    def scaled(values: list, scale: float) -> list:
        if values and isinstance(values[0], list):
            return [scaled(row, scale) for row in values]
        return [value * scale for value in values]

    def losses(least: float) -> list:
        return [None if r.random() < absent else r.choice([0.0, least, r.uniform(0, 0.5)]) for _ in range(layers)]

    changed = {
        **problem,
        "weight_levels": [{"name": f"weights {w}"} for w in range(count)],
        "weight_loss": [losses(0.1 * w) if w else [0.0] * layers for w in range(count)],
    }
    keys = ["layer_memory_bytes", "layer_time_s", "layer_decode_time_s", "layer_earlier_time_s"]
    keys += ["stage_overhead_s", "stage_decode_overhead_s"]
    for part, key in enumerate(key for key in keys if key in problem):
        changed[key] = [scaled(problem[key], scales[w][part % 3]) for w in range(count)]
    if r.random() < 0.2:  # the first level is not a reference without loss
        changed["weight_loss"][0] = losses(0.2)
    return changed


def random_pins(r: Random, layers: int, nodes: int) -> dict:
    """Draw pins that do not contradict each other."""
    pins: dict = {}
    needed = set()
    if r.random() < 0.4:
        needed.add(r.randrange(nodes))
        pins["layers"] = {str(r.randrange(layers)): min(needed)}
    if r.random() < 0.4:
        pins["required"] = [r.randrange(nodes)]
        needed.update(pins["required"])
    spare = sorted(set(range(nodes)) - needed)
    if spare and r.random() < 0.4:
        pins["forbidden"] = [r.choice(spare)]
    return pins


def random_stages(r: Random, problem: dict) -> list[tuple[int, int, int, int | None]]:
    """Draw stages that are a plan of the problem without weight levels, whether or not it keeps the limits."""
    layers, nodes, levels = len(problem["layers"]), len(problem["nodes"]), len(problem["levels"])
    count = r.randint(1, min(layers, nodes))
    edges = [0, *sorted(r.sample(range(1, layers), count - 1)), layers]
    chain = r.sample(range(nodes), count)
    if problem["order"] == "fixed":
        chain.sort()
    last = count - 1
    return [(chain[k], edges[k], edges[k + 1], r.randrange(levels) if k < last else None) for k in range(count)]
