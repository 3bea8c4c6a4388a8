"""The planner's judge: every plan of a small problem, scored by the formulas of the design.

Works on the plain dict of a problem file and shares nothing with the package.
"""

from __future__ import annotations

import itertools
import math


def cost(p: dict, stages: list[tuple], objective: str = "latency", max_nodes: float = math.inf) -> float:
    """Objective of a plan, or infinity where it breaks a limit.

    Its stages are (node, start, stop, level or None), and with weight levels also the weight level.
    """
    if len(stages) > max_nodes or not keeps_limits(p, stages):
        return math.inf
    prefill, delays = occupancies(p, stages, p["layer_time_s"], p["cut_bytes"], external=True)
    if math.inf in prefill:  # a link that does not exist
        return math.inf
    # The last micro-batch passes every resource, after those before it have passed the one that holds them longest.
    busiest = max(occupancies(p, stages, earlier_times(p), p["cut_bytes"], external=True)[0])
    makespan = total = sum(prefill) + sum(delays) + (p.get("micro_batches", 1) - 1) * busiest
    step, bottleneck = math.nan, busiest
    tokens = p.get("new_tokens", 0)
    if tokens >= 2:
        decode, delays = occupancies(p, stages, p["layer_decode_time_s"], p["cut_decode_bytes"], external=False)
        round_trip = sum(decode) + sum(delays) + return_s(p, [stage[0] for stage in stages])
        groups = p.get("groups", p.get("micro_batches", 1))
        step, bottleneck = max(round_trip, groups * max(decode)), max(decode)
        step, bottleneck = step / p.get("tokens_per_step", 1), bottleneck / p.get("tokens_per_step", 1)
        if math.isinf(step):  # tokens cannot return
            return math.inf
        total += (tokens - 1) * step
    values = {"latency": total, "throughput": bottleneck, "time_to_first_token": makespan, "time_per_token": step}
    return values[objective]


def occupancies(p, stages, layer_time, cut_bytes, *, external):
    """Occupancies of the resources, and the propagation delays, which add once.

    `external` is a micro-batch, which has an input and a result; a token step has none.
    """
    overhead = p.get("stage_overhead_s" if external else "stage_decode_overhead_s")
    busy, delays = [], []

    def link(size, bandwidth, latency):
        if bandwidth == 0:
            return math.inf
        if p.get("latency_occupies_link", False):
            return size / bandwidth + latency
        delays.append(latency)
        return size / bandwidth

    ingress, egress = p.get("ingress"), p.get("egress")
    if external and ingress is not None:
        first = stages[0][0]
        busy.append(link(ingress["bytes"], ingress["bandwidth_bytes_per_s"][first], ingress["latency_s"][first]))
    for k, (node, start, stop, level, *weights) in enumerate(stages):
        stage = sum(at_weight_level(layer_time, weights)[node][start:stop])
        if overhead is not None:
            stage += at_weight_level(overhead, weights)[node]
        if k > 0:
            stage += p["levels"][stages[k - 1][3]].get("decode_s_per_byte", 0) * cut_bytes[start - 1]
        sending = None
        if level is not None:
            size, destination = cut_bytes[stop - 1], stages[k + 1][0]
            stage += p["levels"][level].get("encode_s_per_byte", 0) * size
            compressed = size / p["levels"][level]["ratio"]
            sending = link(compressed, p["bandwidth_bytes_per_s"][node][destination], p["latency_s"][node][destination])
        elif external and egress is not None:
            sending = link(egress["bytes"], egress["bandwidth_bytes_per_s"][node], egress["latency_s"][node])
        if sending is not None and p["nodes"][node].get("half_duplex", False):
            busy.append(stage + sending)
        else:
            busy.append(stage)
            if sending is not None:
                busy.append(sending)
    return busy, delays


def earlier_times(p):
    """Seconds of the layers in the micro-batches before the last one."""
    given = p.get("layer_earlier_time_s")
    return p["layer_time_s"] if given is None else given


def return_s(p, order):
    """Seconds a token takes from the last node to the first: over their link or back along the chain."""
    bandwidth, latency = p["bandwidth_bytes_per_s"], p["latency_s"]
    if len(order) == 1:
        return 0.0
    ways = [[(order[-1], order[0])], list(itertools.pairwise(reversed(order)))]
    linked = [hops for hops in ways if all(bandwidth[a][b] > 0 for a, b in hops)]
    return min((sum(latency[a][b] for a, b in hops) for hops in linked), default=math.inf)


def at_weight_level(array, weights):
    """The block of a stage's weight level, if there are weight levels."""
    return array if weights in ([], [None]) else array[weights[0]]


def loss(p, stages):
    """The sum over the cuts and the weights, infinite where a cut or a layer does not have the level."""
    losses = [p["loss"][stop - 1][level] for _, _, stop, level, *_ in stages if level is not None]
    for _, start, stop, _, *weights in stages if "weight_levels" in p else ():
        losses += p["weight_loss"][weights[0]][start:stop]
    return math.inf if None in losses else sum(losses)


def keeps_limits(p, stages):
    for node, start, stop, _, *weights in stages:
        room = p["nodes"][node]["memory_bytes"] - p["nodes"][node].get("headroom_bytes", 0)
        if sum(at_weight_level(p["layer_memory_bytes"], weights)[start:stop]) > room:
            return False
    total = loss(p, stages)
    if math.isinf(total) or total > p.get("loss_budget", math.inf) * (1 + 1e-9):
        return False
    pins = p.get("pins", {})
    used = {stage[0] for stage in stages}
    for layer, pinned in pins.get("layers", {}).items():
        if any(start <= int(layer) < stop and node != pinned for node, start, stop, *_ in stages):
            return False
    return used.issuperset(pins.get("required", [])) and used.isdisjoint(pins.get("forbidden", []))


def plans(p):
    """Every choice of cuts, nodes, levels and weight levels."""
    layers, nodes, levels = len(p["layers"]), len(p["nodes"]), len(p["levels"])
    arrange = itertools.permutations if p.get("order", "fixed") == "free" else itertools.combinations
    for count in range(1, min(layers, nodes) + 1):
        for cuts in itertools.combinations(range(1, layers), count - 1):
            edges = [0, *cuts, layers]
            for order in arrange(range(nodes), count):
                for chosen in itertools.product(range(levels), repeat=count - 1):
                    yield from with_weight_levels(
                        p,
                        [
                            (order[k], edges[k], edges[k + 1], chosen[k] if k + 1 < count else None)
                            for k in range(count)
                        ],
                    )


def with_weight_levels(p, stages):
    """The plan, or with weight levels every choice of them."""
    if "weight_levels" not in p:
        yield stages
        return
    for chosen in itertools.product(range(len(p["weight_levels"])), repeat=len(stages)):
        yield [(*stage, weights) for stage, weights in zip(stages, chosen, strict=True)]


def linked_plans(p, most):
    """The plans of up to `most` nodes, without those that lack a link between two stages."""
    nodes, levels = range(len(p["nodes"])), range(len(p["levels"]))
    chains = [(n,) for n in nodes]
    while chains and len(chains[0]) <= min(most, len(p["layers"])):
        count = len(chains[0])
        for order in chains:
            for cuts in itertools.combinations(range(1, len(p["layers"])), count - 1):
                edges = [0, *cuts, len(p["layers"])]
                for chosen in itertools.product(levels, repeat=count - 1):
                    yield [(order[k], edges[k], edges[k + 1], [*chosen, None][k]) for k in range(count)]
        links = p["bandwidth_bytes_per_s"]
        chains = [(*chain, n) for chain in chains for n in nodes if links[chain[-1]][n] > 0 and n not in chain]


def best(p, objective="latency", max_nodes=math.inf):
    """The smallest objective of all plans, infinity where none keeps the limits."""
    return min((cost(p, stages, objective, max_nodes) for stages in plans(p)), default=math.inf)


def least_loss(p):
    """The smallest loss of the plans that keep every other limit, infinity where none does."""
    free = {key: value for key, value in p.items() if key != "loss_budget"}
    return min((loss(p, s) for s in plans(p) if math.isfinite(cost(free, s))), default=math.inf)
