"""The cost model of cpp/include/orbitsplit/cost.hpp, which has the formulas, operation for operation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orbitsplit._numba.text import number, size

from .problem import ExternalLink, Problem, ProblemNode

NO_LEVEL = -1
# The objectives of `solve`, and where an evaluation has their values.
OBJECTIVES = {
    "latency": "objective_s",
    "throughput": "bottleneck_s",
    "time_to_first_token": "prefill_s",
    "time_per_token": "token_step_s",
}
Row = tuple[int, int, int, int, int]  # node, start, stop, level, weight level


def generates(problem: Problem) -> bool:
    """Return whether token steps follow the prefill: they need decode times and decode bytes."""
    return problem.new_tokens >= 2


def group_count(problem: Problem) -> int:
    """Return the number of sequence groups in flight."""
    return problem.micro_batches if problem.groups is None else problem.groups


def token_steps(problem: Problem) -> float:
    """Return the number of token steps that follow the prefill, on average."""
    return float(problem.new_tokens - 1) / float(problem.tokens_per_step)


def by_weight_level(problem: Problem, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return an array of memory, times or losses with weight levels as its first axis: one without weight levels."""
    return values if problem.weight_levels else values[np.newaxis]


def earlier_time_s(problem: Problem) -> NDArray[np.float64]:
    """Return the times of the micro-batches before the last one, on which the maximum depends."""
    return problem.layer_time_s if problem.layer_earlier_time_s is None else problem.layer_earlier_time_s


def usable_memory_bytes(node: ProblemNode) -> float:
    """Return the memory that layers may use."""
    return float(node.memory_bytes) - float(node.headroom_bytes)


def loss_limit(problem: Problem) -> float:
    """Return the budget with room for the rounding of sums of decimal fractions, infinite without a budget."""
    return math.inf if problem.loss_budget is None else problem.loss_budget * (1 + 1e-9)


def value_s(score: dict[str, Any], objective: str) -> float:
    """Return the objective's value of a plan that `evaluate` scored."""
    value = float(score[OBJECTIVES[objective]])
    return value / float(score["tokens_per_step"]) if objective in ("throughput", "time_per_token") else value


def evaluate(problem: Problem, stages: NDArray[np.int32]) -> dict[str, Any]:
    """Return the fields of an `Evaluation`. Raises ValueError for stages that are not a plan."""
    rows: list[Row] = [tuple(row) for row in stages.tolist()]
    _check_stages(problem, rows)
    return _Scorer(problem, rows).score()


def _node_name(problem: Problem, node: int) -> str:
    return f'node "{problem.nodes[node].name}"'


def _check_stages(problem: Problem, stages: Sequence[Row]) -> None:
    layers = len(problem.layers)
    if not stages:
        raise ValueError("the plan has no stage")
    expected = 0
    for k, (_, start, stop, _, _) in enumerate(stages):
        if start != expected:
            raise ValueError(f"stage {k} starts at layer {start}, must start at {expected}")
        if stop <= start or stop > layers:
            raise ValueError(f"stage {k} stops at layer {stop}, must stop at {start + 1} to {layers}")
        _check_node(problem, stages, k)
        _check_level(problem, stages, k)
        _check_weight_level(problem, stages[k], k)
        expected = stop
    if expected != layers:
        raise ValueError(f"the plan stops at layer {expected}, the problem has {layers}")


def _check_node(problem: Problem, stages: Sequence[Row], k: int) -> None:
    node = stages[k][0]
    if not 0 <= node < len(problem.nodes):
        raise ValueError(f"stage {k} is on node {node}, the nodes are 0 to {len(problem.nodes) - 1}")
    if any(stage[0] == node for stage in stages[:k]):
        raise ValueError(f"stage {k} is on {_node_name(problem, node)}, which has a stage")
    if problem.order == "fixed" and k > 0 and node < stages[k - 1][0]:
        raise ValueError(f"stage {k} is on node {node} after node {stages[k - 1][0]}, the order is fixed")


def _check_level(problem: Problem, stages: Sequence[Row], k: int) -> None:
    level = stages[k][3]
    if k + 1 == len(stages):
        if level != NO_LEVEL:
            raise ValueError(f"stage {k} is the last, no cut follows it, but it has a level")
    elif level == NO_LEVEL:
        raise ValueError(f"stage {k} has no level for the cut after it")
    elif not 0 <= level < len(problem.levels):
        raise ValueError(f"stage {k} has level {level}, the problem has {len(problem.levels)} levels")


def _check_weight_level(problem: Problem, stage: Row, k: int) -> None:
    level, count = stage[4], len(problem.weight_levels)
    if level == NO_LEVEL:
        if count > 0:
            raise ValueError(f"stage {k} has no weight level, the problem has {count}")
    elif not 0 <= level < count:
        raise ValueError(f"stage {k} has weight level {level}, the problem has {count} weight levels")


class _Scorer:
    """Sums a plan in the order in which a micro-batch passes the resources."""

    def __init__(self, problem: Problem, stages: Sequence[Row]) -> None:
        self.problem = problem
        self.stages = stages
        self.violations: list[str] = []
        self.is_linked = True
        self.latency_s = 0.0
        self.ingress_s = 0.0
        self.egress_s = 0.0
        self.earlier_stage_s: list[float] = []

    def score(self) -> dict[str, Any]:
        problem = self.problem
        times = problem.layer_time_s, earlier_time_s(problem), problem.stage_overhead_s
        stage_s, link_s, total, most = self.run(times, problem.cut_bytes, external=True)
        prefill = total + float(problem.micro_batches - 1) * most if self.is_linked else math.inf
        fields = {
            "objective_s": prefill, "prefill_s": prefill, "token_step_s": 0.0, "round_trip_s": 0.0, "return_s": 0.0,
            "tokens_per_step": 1.0,
            "bottleneck_s": most if self.is_linked else math.inf,
            "latency_s": self.latency_s, "ingress_s": self.ingress_s, "egress_s": self.egress_s,
            "stage_s": stage_s, "earlier_stage_s": tuple(self.earlier_stage_s), "link_s": link_s,
            "decode_stage_s": (), "decode_link_s": (),
        }  # fmt: skip
        if generates(problem):
            fields |= self.score_decode(prefill)
        fields["stage_memory_bytes"] = tuple(self.score_memory(k) for k in range(len(self.stages)))
        fields["loss"], fields["weight_loss"] = self.score_loss()
        self.score_pins()
        return {**fields, "is_feasible": not self.violations, "violations": tuple(self.violations)}

    def score_decode(self, prefill: float) -> dict[str, Any]:
        times, sizes = self.problem.layer_decode_time_s, self.problem.cut_decode_bytes
        if times is None or sizes is None:
            sizes = np.zeros(0)
        stage_s, link_s, total, most = self.run(
            (times, times, self.problem.stage_decode_overhead_s), sizes, external=False
        )
        back = self.return_latency()
        round_trip = total + back
        step = max(round_trip, float(group_count(self.problem)) * most) if round_trip < math.inf else math.inf
        is_finite = step < math.inf and self.is_linked
        objective = prefill + token_steps(self.problem) * step if is_finite else math.inf
        return {
            "objective_s": objective, "token_step_s": step, "round_trip_s": round_trip, "return_s": back,
            "tokens_per_step": float(self.problem.tokens_per_step),
            "bottleneck_s": most if self.is_linked else math.inf,
            "decode_stage_s": stage_s, "decode_link_s": link_s,
        }  # fmt: skip

    def run(
        self, times: tuple[Any, Any, Any], cut_bytes: Any, *, external: bool
    ) -> tuple[tuple[float, ...], tuple[float, ...], float, float]:
        """Return the occupancies of stages and links, and the sum and maximum over all resources.

        The second array of times is for the maximum, and the first itself if all micro-batches are alike. The third one
        is of the stages beside their layers, None for none.
        """
        layer_time_s, earlier, stage_overhead_s = times
        total = most = 0.0
        stage_s, link_s = [], []
        if external and self.problem.ingress is not None:
            self.ingress_s, delay = self.external(self.problem.ingress, "the input", self.stages[0][0], "reaches")
            total = total + delay + self.ingress_s
            most = max(most, self.ingress_s)
        for k, (node, _, _, level, _) in enumerate(self.stages):
            stage, sending, delay = self.computing((layer_time_s, stage_overhead_s), cut_bytes, k), 0.0, 0.0
            is_alike = earlier is layer_time_s
            earlier_s = stage if is_alike else self.computing((earlier, stage_overhead_s), cut_bytes, k)
            if level != NO_LEVEL:
                sending, delay = self.sending(cut_bytes, k, external=external)
                link_s.append(sending)
            elif external and self.problem.egress is not None:
                sending, delay = self.external(self.problem.egress, "the result", node, "leaves")
                self.egress_s = sending
            if self.problem.nodes[node].half_duplex:
                stage, earlier_s, sending = stage + sending, earlier_s + sending, 0.0
            stage_s.append(stage)
            if not is_alike:
                self.earlier_stage_s.append(earlier_s)
            total = total + delay + stage + sending
            most = max(most, earlier_s, sending)
        return tuple(stage_s), tuple(link_s), total, most

    def computing(self, times: tuple[Any, Any], cut_bytes: Any, k: int) -> float:
        node, start, stop, level, weight_level = self.stages[k]
        layer_time_s, stage_overhead_s = times
        total = 0.0
        for seconds in by_weight_level(self.problem, layer_time_s)[max(0, weight_level), node, start:stop].tolist():
            total += seconds
        if stage_overhead_s is not None:
            total += float(by_weight_level(self.problem, stage_overhead_s)[max(0, weight_level), node])
        if k > 0:
            before = self.problem.levels[self.stages[k - 1][3]]
            total += float(before.decode_s_per_byte) * float(cut_bytes[start - 1])
        if level != NO_LEVEL:
            total += float(self.problem.levels[level].encode_s_per_byte) * float(cut_bytes[stop - 1])
        return total

    def sending(self, cut_bytes: Any, k: int, *, external: bool) -> tuple[float, float]:
        """Return the occupancy of link k and its propagation."""
        source, _, stop, level, _ = self.stages[k]
        destination = self.stages[k + 1][0]
        bandwidth = float(self.problem.bandwidth_bytes_per_s[source, destination])
        if bandwidth <= 0:
            if external:
                names = f"{_node_name(self.problem, source)} to {_node_name(self.problem, destination)}"
                self.violations.append(f"no link joins {names}")
            self.is_linked = False
            return math.inf, 0.0
        compressed = float(cut_bytes[stop - 1]) / float(self.problem.levels[level].ratio)
        return self.occupancy(
            compressed, bandwidth, float(self.problem.latency_s[source, destination]), external=external
        )

    def external(self, link: ExternalLink, what: str, node: int, verb: str) -> tuple[float, float]:
        """Return the occupancy of an ingress or egress link and its propagation."""
        bandwidth = float(link.bandwidth_bytes_per_s[node])
        if bandwidth <= 0:
            self.violations.append(f"no link over which {what} {verb} {_node_name(self.problem, node)}")
            self.is_linked = False
            return math.inf, 0.0
        return self.occupancy(float(link.bytes), bandwidth, float(link.latency_s[node]), external=True)

    def occupancy(self, compressed: float, bandwidth: float, latency: float, *, external: bool) -> tuple[float, float]:
        sending = compressed / bandwidth
        if self.problem.latency_occupies_link:
            return sending + latency, 0.0
        if external:
            self.latency_s += latency
        return sending, latency

    def return_latency(self) -> float:
        order = [stage[0] for stage in self.stages]
        bandwidth, latency = self.problem.bandwidth_bytes_per_s, self.problem.latency_s
        first, last = order[0], order[-1]
        if len(order) == 1:
            return 0.0
        direct = float(latency[last, first]) if bandwidth[last, first] > 0 else math.inf
        total = 0.0
        for destination, source in itertools.pairwise(order):
            if bandwidth[source, destination] <= 0:
                if direct < math.inf:
                    return direct
                ends = f"{_node_name(self.problem, last)} to {_node_name(self.problem, first)}"
                hop = f"{_node_name(self.problem, source)} to {_node_name(self.problem, destination)}"
                self.violations.append(f"tokens cannot return from {ends}: no link joins them, and none joins {hop}")
                return math.inf
            total += float(latency[source, destination])
        return min(direct, total)

    def score_memory(self, k: int) -> float:
        node, start, stop, _, weight_level = self.stages[k]
        memory = by_weight_level(self.problem, self.problem.layer_memory_bytes)[max(0, weight_level)]
        total = 0.0
        for layer in memory[start:stop].tolist():
            total += layer
        usable = usable_memory_bytes(self.problem.nodes[node])
        if total > usable:
            name = _node_name(self.problem, node)
            self.violations.append(f"stage {k} needs {size(total, usable)}, {name} has {size(usable, total)}")
        return total

    def score_loss(self) -> tuple[float, float]:
        """Return the loss of the plan, and the part of it that is of the weights."""
        total = of_weights = 0.0
        for k, (_, _, stop, level, _) in enumerate(self.stages):
            if self.problem.weight_loss is not None:
                lost = self.score_weight_loss(k, self.problem.weight_loss)
                total, of_weights = total + lost, of_weights + lost
            if level == NO_LEVEL:
                continue
            loss = float(self.problem.loss[stop - 1, level])
            total += loss
            if loss == math.inf:
                cut = f'cut {stop - 1}, after layer "{self.problem.layers[stop - 1]}",'
                self.violations.append(f'{cut} does not have level "{self.problem.levels[level].name}"')
        if self.problem.loss_budget is not None and loss_limit(self.problem) < total < math.inf:
            budget = self.problem.loss_budget
            self.violations.append(f"the loss is {number(total, budget)}, the budget is {number(budget, total)}")
        return total, of_weights

    def score_weight_loss(self, k: int, losses: NDArray[np.float64]) -> float:
        _, start, stop, _, weight_level = self.stages[k]
        total = 0.0
        for i, loss in enumerate(losses[weight_level, start:stop].tolist(), start):
            total += loss
            if loss == math.inf:
                level = f'weight level "{self.problem.weight_levels[weight_level].name}" of stage {k}'
                self.violations.append(f'layer {i} ("{self.problem.layers[i]}") does not have {level}')
        return total

    def score_pins(self) -> None:
        pins, used = self.problem.pins, {stage[0] for stage in self.stages}
        for layer, pinned in pins.layers.items():
            for node, start, stop, _, _ in self.stages:
                if start <= layer < stop and node != pinned:
                    names = f"{_node_name(self.problem, node)}, pinned to {_node_name(self.problem, pinned)}"
                    self.violations.append(f'layer {layer} ("{self.problem.layers[layer]}") is on {names}')
        for node in pins.required:
            if node not in used:
                self.violations.append(f"{_node_name(self.problem, node)} is required and has no stage")
        for node in pins.forbidden:
            if node in used:
                self.violations.append(f"{_node_name(self.problem, node)} is forbidden and has a stage")
