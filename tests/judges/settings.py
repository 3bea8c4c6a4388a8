"""The seconds of a plan by the formulas of the design, for any division into rows, chunks and guesses; and every split.

Shares nothing with the package: a model is seconds of its layers, a network speeds, rates and latencies.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Split = list[tuple[int, range]]


@dataclass(frozen=True)
class Model:
    """A step of n rows takes `decode_s` times (fixed + each n), in every layer; so much room takes a layer."""

    prefill_s: Sequence[float]
    decode_s: Sequence[float]
    fixed: float
    each: float
    prompt_tokens: int
    token_bytes: float
    layer_bytes: float
    # The first and the last chunk take so many times `prefill_s`, by the number of chunks.
    chunks: dict[int, tuple[float, float]]

    def row_s(self, rows: float) -> float:
        return self.fixed + self.each * rows


@dataclass(frozen=True)
class Machines:
    slowdown: Sequence[float]
    memory_bytes: Sequence[float]
    bytes_per_s: dict[tuple[int, int], float]
    latency_s: dict[tuple[int, int], float]


@dataclass(frozen=True)
class Setting:
    groups: int = 1
    rows: int = 1
    chunks: int = 1
    guesses: int = 0


def every_split(nodes: int, layers: int) -> Iterator[Split]:
    """Yield all ordered subsets of the nodes with all divisions of the layers among them."""
    for count in range(1, nodes + 1):
        for order in itertools.permutations(range(nodes), count):
            for cuts in itertools.combinations(range(1, layers), count - 1):
                edges = [0, *cuts, layers]
                yield [(node, range(a, b)) for node, a, b in zip(order, edges, edges[1:], strict=False)]


def tokens_of_a_lap(acceptance: float, guesses: int) -> float:
    """The first token, and each guess that is right together with all before it."""
    return sum(acceptance**right for right in range(guesses + 1))


def seconds(
    split: Split, model: Model, machines: Machines, setting: Setting, new: int, acceptance: float = 0.0
) -> dict[str, float]:
    """Return the value of each objective, infinite where a stage does not fit its node."""
    if any(model.layer_bytes * len(layers) > machines.memory_bytes[node] for node, layers in split):
        return dict.fromkeys(("latency", "time_to_first_token", "time_per_token", "throughput"), float("inf"))
    last, earlier = _prefill_s(model, setting)
    pairs = [(a, b) for (a, _), (b, _) in itertools.pairwise(split)]
    prompt = setting.rows * model.prompt_tokens / setting.chunks
    latency = sum(machines.latency_s[pair] for pair in pairs)
    final, before = (_occupancies(split, times, model, machines, prompt) for times in (last, earlier))
    count = setting.groups * setting.chunks
    makespan = sum(final) + latency + (count - 1) * max(before)
    positions = setting.rows * (1 + setting.guesses)
    times = [one * model.row_s(positions) for one in model.decode_s]
    decode = _occupancies(split, times, model, machines, positions)
    back = 0.0
    if pairs:
        chain = sum(machines.latency_s[b, a] for a, b in pairs)
        back = min(machines.latency_s[split[-1][0], split[0][0]], chain)
    step = max(sum(decode) + latency + back, setting.groups * max(decode))
    by_token = tokens_of_a_lap(acceptance, setting.guesses)
    return {
        "latency": makespan + (new - 1) / by_token * step,
        "time_to_first_token": makespan,
        "time_per_token": step / by_token,
        "throughput": max(decode) / by_token / setting.rows,
    }


def _prefill_s(model: Model, setting: Setting) -> tuple[list[float], list[float]]:
    """Return the seconds of each layer for the last chunk of all, and the mean of those before it."""
    tokens = model.prompt_tokens / setting.chunks
    more = model.row_s(setting.rows * tokens) / model.row_s(tokens)
    of_head = model.row_s(setting.rows) / model.row_s(1)
    whole = [more * one for one in model.prefill_s[:-1]] + [of_head * model.prefill_s[-1]]
    if setting.chunks == 1:
        return whole, whole
    first, last = model.chunks[setting.chunks]
    each = []
    for number in range(setting.chunks):
        share = first + (last - first) * number / (setting.chunks - 1)
        *layers, head = (share * one for one in whole)
        each.append([*layers, head if number == setting.chunks - 1 else 0.0])
    every = each * setting.groups
    return each[-1], [sum(column[:-1]) / (len(every) - 1) for column in zip(*every, strict=True)]


def _occupancies(split: Split, times: Sequence[float], model: Model, machines: Machines, tokens: float) -> list[float]:
    computing = [machines.slowdown[node] * sum(times[k] for k in layers) for node, layers in split]
    hops = itertools.pairwise(node for node, _ in split)
    return computing + [model.token_bytes * tokens / machines.bytes_per_s[pair] for pair in hops]
