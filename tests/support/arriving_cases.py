"""The chain of a plan for arriving requests, of the seconds that the judge of settings has."""

from __future__ import annotations

from itertools import pairwise

import orbitsplit as osp
from tests.judges.settings import tokens_of_a_lap
from tests.support.arriving_requests import Chain
from tests.support.setting_cases import Case


def chain_of(case: Case, plan: osp.Plan) -> Chain:
    """Return the plan's stages and links with the seconds of the case; levels are uncompressed."""
    model, machines, workload = case.model, case.machines, plan.workload
    index = {node.name: k for k, node in enumerate(case.network.nodes)}
    nodes = [index[stage.node] for stage in plan.stages]
    pairs = list(pairwise(nodes))
    count = 1 if plan.chunk_tokens is None else -(-model.prompt_tokens // plan.chunk_tokens)
    first, last = model.chunks.get(count, (1.0, 1.0))
    chunks = []
    for number in range(count):
        share = last if count == 1 else first + (last - first) * number / (count - 1)
        times = [share * one for one in model.prefill_s[:-1]]
        times.append(share * model.prefill_s[-1] if number == count - 1 else 0.0)
        stages = [machines.slowdown[nodes[k]] * sum(times[s.start : s.stop]) for k, s in enumerate(plan.stages)]
        links = [model.token_bytes * model.prompt_tokens / count / machines.bytes_per_s[pair] for pair in pairs]
        chunks.append(_in_order(stages, links))
    guesses = plan.draft_tokens or 0

    def step_s(k: int, rows: int) -> float:
        tokens = rows * (1 + guesses)
        if k % 2:
            return model.token_bytes * tokens / machines.bytes_per_s[pairs[k // 2]]
        stage = plan.stages[k // 2]
        return machines.slowdown[nodes[k // 2]] * sum(model.decode_s[stage.start : stage.stop]) * model.row_s(tokens)

    back_s = 0.0
    if pairs:
        along = sum(machines.latency_s[b, a] for a, b in pairs)
        back_s = min(machines.latency_s[nodes[-1], nodes[0]], along)
    return Chain(
        chunks=chunks,
        step_s=step_s,
        latency_s=_in_order([0.0] * len(nodes), [machines.latency_s[pair] for pair in pairs]),
        return_s=back_s,
        laps=round((workload.new_tokens - 1) / tokens_of_a_lap(workload.acceptance, guesses)),
        most_messages=workload.micro_batches,
        most_in_flight=workload.sequences,
        most_prompts=plan.prompts_under_way,
    )


def _in_order(stages: list[float], links: list[float]) -> list[float]:
    """Return the values of stages with those of the links between them."""
    return [value for pair in zip(stages, [*links, 0.0], strict=True) for value in pair][: 2 * len(stages) - 1]
