"""What going over from one running plan to another costs: the cost model of `Pipeline.migrate`.

Requests in flight get their keys and values on the new stages in one of two ways, whichever is sooner (the formulas
are in docs/cost_model.md):

moved     from the old owner of each layer to the new one, over the links that the two plans know
prefill   made again of the prompts and the tokens so far, on all stages one after the other
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .plan import Plan
from .plan_parts import PlanLink, PlanStage

_LOSSLESS = "lossless_bf16"
# Of keys and values in bfloat16: bytes before and after, and seconds to encode and decode a byte on one core
# (benches/studies/migrations.py --codec).
LOSSLESS_RATIO = 1.4
LOSSLESS_S_PER_BYTE = 1e-9


@dataclass(frozen=True, slots=True)
class Context:
    """What is in the caches of a group in flight: `tokens` of each of its rows.

    The last `replayed` of them would run through the layers one at a time if the caches were made again.
    """

    rows: int
    tokens: int
    replayed: int = 0


@dataclass(frozen=True, slots=True)
class StageTimes:
    """The seconds of each stage of a plan: of a token of a prompt, and of a token step of a group."""

    prompt_token_s: tuple[float, ...]
    step_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class CacheMove:
    """The caches of the transformer layers [start, stop) go from one node to another by way of `route`.

    `route` are the nodes passed, both ends included; `links` what is known of each of its links.
    """

    start: int
    stop: int
    route: tuple[str, ...]
    links: tuple[PlanLink, ...]

    @property
    def latency_s(self) -> float:
        """The delay of a message on the whole way."""
        return sum(link.latency_s for link in self.links)


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds until each group in flight has its next token, by either way, and the bytes to be moved.

    `moved_s` is None if the caches cannot be moved.
    """

    moved_s: float | None
    prefill_s: float
    moved_bytes: int

    @property
    def moves(self) -> bool:
        """Whether moving the caches is sooner."""
        return self.moved_s is not None and self.moved_s <= self.prefill_s

    @property
    def seconds(self) -> float:
        """The seconds by the way that is sooner."""
        return self.moved_s if self.moved_s is not None and self.moves else self.prefill_s


def keeps_stage(stage: PlanStage, before: Plan, after: Plan) -> bool:
    """Return whether a node runs the same stage in both plans, with the same weights on the same device."""
    kept = (stage.node, stage.start, stage.stop, stage.weights, stage.device)
    same = [(one.node, one.start, one.stop, one.weights, one.device) for one in before.stages]
    return kept in same and before.dtype == after.dtype


def cache_moves(before: Plan, after: Plan) -> tuple[CacheMove, ...]:
    """Return which layers' caches change their node, and the way that is the quickest for a large message.

    The ways lead over the links of both plans, in either direction at the same rate. Where none leads from the old
    owner to the new one, the two are joined by a link of no known limit.
    """
    graph = _links_of(before, after)
    moves = []
    for old, new, start, stop in overlaps(before, after):
        if old.node != new.node:
            route = _route(graph, old.node, new.node)
            links = tuple(graph.get(ends, PlanLink()) for ends in pairwise(route))
            moves.append(CacheMove(start, stop, route, links))
    return tuple(moves)


def overlaps(before: Plan, after: Plan) -> Iterator[tuple[PlanStage, PlanStage, int, int]]:
    """Yield stages of both plans that have transformer layers in common, and these, [start, stop) counted from 0."""
    for old, new in itertools.product(before.stages, after.stages):
        start, stop = max(1, old.start, new.start), min(before.layers - 1, old.stop, new.stop)
        if start < stop:
            yield old, new, start - 1, stop - 1


def moving_s(moves: Sequence[CacheMove], bytes_per_layer: Sequence[float], *, code_s_per_byte: float = 0.0) -> float:
    """Return the seconds in which all moves are done: the busiest link's, and what the longest way adds.

    Each layer's caches, of which `bytes_per_layer` are sent, are a message of their own. A node of the route passes a
    message on when all of it has arrived. Encoding and decoding take `code_s_per_byte` on the ends of the busiest move.
    """
    busy_s: dict[tuple[str, str], float] = defaultdict(float)
    further_s, coded_s = 0.0, 0.0
    for move in moves:
        sizes = bytes_per_layer[move.start : move.stop]
        for ends, link in zip(pairwise(move.route), move.links, strict=True):
            busy_s[ends] += sum(sizes) * _s_per_byte(link)
        passed_on = sum(max(sizes, default=0.0) * _s_per_byte(link) for link in move.links[1:])
        further_s = max(further_s, move.latency_s + passed_on)
        coded_s = max(coded_s, sum(sizes) * code_s_per_byte)
    return max(busy_s.values(), default=0.0) + further_s + coded_s


def prefill_s(plan: Plan, contexts: Sequence[Context], times: StageTimes, activation_bytes: float) -> float:
    """Return the seconds until the last of some groups has its caches again by prefill, and its next token.

    `activation_bytes` are those of a token between two stages, as sent. The occupancy of a stage by a group is that of
    its prompts and of each token that is replayed, that of a link the bytes of all of them; the makespan of groups one
    behind the other is the sum over all stages and links, and the busiest of these for each further group.
    """
    if not contexts:
        return 0.0
    prompts = sum(one.rows * (one.tokens - one.replayed) for one in contexts) / len(contexts)
    replayed = sum(one.replayed for one in contexts) / len(contexts)
    tokens = sum(one.rows * one.tokens for one in contexts) / len(contexts)
    stages = [
        prompts * prompt_s + (replayed + 1) * step_s
        for prompt_s, step_s in zip(times.prompt_token_s, times.step_s, strict=True)
    ]
    links = [tokens * activation_bytes * _s_per_byte(link) for link in plan.links]
    latencies_s = sum(link.latency_s for link in plan.links) + plan.return_latency_s
    return sum(stages) + sum(links) + latencies_s + (len(contexts) - 1) * max([*stages, *links])


def forecast(
    before: Plan,
    after: Plan,
    contexts: Sequence[Context],
    bytes_per_layer: Sequence[float] | None,
    times: StageTimes,
    activation_bytes: float,
    again: Sequence[Context] = (),
) -> Forecast:
    """Return how groups in flight get their caches on the stages of another plan, and how long each way takes.

    `bytes_per_layer` are those of the caches of all groups, by transformer layer; None if they cannot be moved.
    `activation_bytes` are those of a token between two stages, as sent. Both ways end with each group's next token;
    groups of which the caches are made `again` in any case are in both.
    """
    again_s = prefill_s(after, [*contexts, *again], times, activation_bytes)
    if bytes_per_layer is None or not contexts:
        return Forecast(None, again_s, 0)
    moves = cache_moves(before, after)
    codecs = [cache_codec(after.dtype, move.links) for move in moves]
    sent = [1.0] * len(bytes_per_layer)
    coded = False
    for move, codec in zip(moves, codecs, strict=True):
        for layer in range(move.start, move.stop):
            sent[layer] = 1.0 / LOSSLESS_RATIO if codec == _LOSSLESS else 1.0
            coded = coded or codec == _LOSSLESS
    sizes = [size * share for size, share in zip(bytes_per_layer, sent, strict=True)]
    steps = [*(Context(one.rows, 0) for one in contexts), *again]
    moved_s = moving_s(moves, sizes, code_s_per_byte=LOSSLESS_S_PER_BYTE * LOSSLESS_RATIO if coded else 0.0)
    moved_bytes = sum(sum(sizes[move.start : move.stop]) for move in moves)
    return Forecast(moved_s + prefill_s(after, steps, times, activation_bytes), again_s, round(moved_bytes))


def cache_codec(dtype: str, links: Sequence[PlanLink]) -> str:
    """Return the codec of caches on a way: lossless compression of bfloat16 where a link is slow enough for it to pay.

    It pays if the bytes saved take longer on the slowest link than all of them take to be encoded and decoded.
    """
    saved = (1.0 - 1.0 / LOSSLESS_RATIO) * max(map(_s_per_byte, links), default=0.0)
    return _LOSSLESS if dtype == "bfloat16" and saved > LOSSLESS_S_PER_BYTE else "raw"


def stage_times(plan: Plan, *, step_s: float | None, prompt_token_s: float | None) -> StageTimes:
    """Return the seconds of each stage of a plan, of its prediction or else of what was measured.

    `step_s` and `prompt_token_s` were measured over a whole chain: a token step, and a token of a prompt. Without a
    prediction they are spread evenly over the layers; a token of a prompt that is not known either takes as long as a
    step.
    """
    found = plan.prediction
    if found is not None and found.decode_stage_s:
        workload = plan.workload
        tokens = max(1, workload.batch_size * workload.prompt_tokens)
        earlier = found.earlier_stage_s or found.stage_s
        chunk = plan.chunk_tokens or workload.prompt_tokens
        per_token = tuple(
            seconds / max(1, tokens * min(chunk, workload.prompt_tokens) / workload.prompt_tokens)
            for seconds in earlier
        )
        return StageTimes(per_token, found.decode_stage_s)
    step_s = step_s or 0.0
    prompt_s = step_s if prompt_token_s is None else prompt_token_s
    shares = [(stage.stop - stage.start) / plan.layers for stage in plan.stages]
    return StageTimes(tuple(prompt_s * share for share in shares), tuple(step_s * share for share in shares))


def _s_per_byte(link: PlanLink) -> float:
    return 0.0 if link.bytes_per_s is None else 1.0 / link.bytes_per_s


def _links_of(*plans: Plan) -> Mapping[tuple[str, str], PlanLink]:
    """Return the links that plans know by their ends; one that is known in one direction alone stands for both."""
    known = {
        (a.node, b.node): link for plan in plans for (a, b), link in zip(pairwise(plan.stages), plan.links, strict=True)
    }
    return {(b, a): link for (a, b), link in known.items()} | known


def _route(graph: Mapping[tuple[str, str], PlanLink], source: str, destination: str) -> tuple[str, ...]:
    """Return the nodes of the way with the fewest seconds per byte, then the least delay, then the fewest nodes."""
    queue: list[tuple[float, float, int, tuple[str, ...]]] = [(0.0, 0.0, 1, (source,))]
    done: set[str] = set()
    while queue:
        per_byte, latency_s, nodes, way = heapq.heappop(queue)
        if way[-1] == destination:
            return way
        if way[-1] in done:
            continue
        done.add(way[-1])
        for (start, stop), link in graph.items():
            if start == way[-1] and stop not in done:
                entry = (max(per_byte, _s_per_byte(link)), latency_s + link.latency_s, nodes + 1, (*way, stop))
                heapq.heappush(queue, entry)
    return (source, destination)
