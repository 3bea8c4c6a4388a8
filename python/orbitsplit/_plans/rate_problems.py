"""The problems of requests that arrive at a rate: k in flight are a batch of k, and what a plan asks of a chain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from orbitsplit._io.validation import Array
from orbitsplit._planner.problem import Evaluation, Problem, evaluate
from orbitsplit._planner.problem_parts import Stage
from orbitsplit._planner.tied_weights import TiedBytes, with_tied_weights

from .arrivals import Demand, Step
from .problem_building import DecodeArrays
from .settings import Setting
from .under_way import enough_prompts_under_way, prompt_round_trip_s


@dataclass
class RateProblems:
    """The problems of a setting, whose micro-batches are the messages that may be in flight with token steps.

    Attributes:
        setting: The setting.
        build: Returns the problem of a setting all of whose sequences are micro-batches of one row.
        decode: Returns the arrays of a step of so many rows; a step with guesses has one row.
        tied_bytes: The tied bytes of the model.
    """

    setting: Setting
    build: Callable[[Setting], Problem]
    decode: Callable[[int], DecodeArrays]
    tied_bytes: TiedBytes
    _bases: dict[int | None, Problem] = field(default_factory=dict)
    _kept: dict[tuple[int, int, int, int | None], Problem] = field(default_factory=dict)

    @property
    def most_in_flight(self) -> int:
        """How many requests may be in flight."""
        return self.setting.micro_batches * self.setting.batch_size

    def base(self, prompts_under_way: int | None) -> Problem:
        """Return the problem whose memory holds the most requests in flight, and so many prompts under way."""
        if prompts_under_way not in self._bases:
            one_row = replace(
                self.setting,
                micro_batches=self.most_in_flight,
                batch_size=1,
                prompts_under_way=prompts_under_way,
            )
            self._bases[prompts_under_way] = self.build(one_row)
        return self._bases[prompts_under_way]

    @property
    def chunks(self) -> int:
        """How many chunks a prompt has."""
        return self.base(self.setting.prompts_under_way).micro_batches // self.most_in_flight

    def batch(self, in_flight: int, prompts_under_way: int | None = None) -> Problem:
        """Return the problem of so many requests that are all there at once.

        A message has as many rows as divide them, rounded down: no plan takes less with some in flight.
        """
        groups = min(in_flight, self.setting.micro_batches)
        under_way = self.setting.prompts_under_way if prompts_under_way is None else prompts_under_way
        return self._problem(in_flight, groups, in_flight // groups, under_way)

    def _problem(self, prompts: int, groups: int, rows: int, prompts_under_way: int | None) -> Problem:
        key = (prompts, groups, rows, prompts_under_way)
        if key not in self._kept:
            base = self.base(prompts_under_way)
            changes: dict[str, Any] = {"micro_batches": prompts * self.chunks, "groups": groups}
            if base.layer_earlier_time_s is not None:
                changes["layer_earlier_time_s"] = self._earlier_times(base, base.layer_earlier_time_s, prompts)
            if base.new_tokens > 1 and rows > 1:
                changes |= self.decode(rows)._asdict()
            self._kept[key] = replace(base, **changes)
        return self._kept[key]

    def _earlier_times(self, base: Problem, of_most_s: Array, prompts: int) -> Array:
        """Return the mean seconds of all chunks but the last of so many prompts, from those of the most of them."""
        chunks, most = self.chunks, self.most_in_flight
        before = (most * chunks - 1) * of_most_s - (most - 1) * base.layer_time_s
        # The head does not run in earlier chunks: its difference is 0 up to rounding.
        each = np.maximum(before, 0.0) / (most * (chunks - 1))
        return (prompts * (chunks - 1) * each + (prompts - 1) * base.layer_time_s) / (prompts * chunks - 1)

    def confirming(self, stages: Sequence[Stage], in_flight: float, prompts_under_way: int | None) -> Problem:
        """Return the problem of one prompt, and steps of the rows that messages have with so many in flight."""
        rows = max(1, min(self.setting.batch_size, round(in_flight / self.setting.micro_batches)))
        problem = self._problem(1, 1, rows, prompts_under_way)
        return with_tied_weights(problem, self.tied_bytes) if len(stages) == 1 else problem

    def demand(self, stages: Sequence[Stage]) -> tuple[Demand, int | None] | None:
        """Return what a request asks of a plan, and how many prompts are under way; None if the plan breaks a limit.

        As many prompts as keep the slowest resource busy, or those of the setting where more have no memory.
        """
        first = self.setting.prompts_under_way
        one = self._scored(stages, 1, first)
        if not one.is_feasible:
            return None
        enough = enough_prompts_under_way(one, self.most_in_flight, self.chunks)
        prompts = first
        if first is not None and (enough is None or enough > first) and self._scored(stages, 1, enough).is_feasible:
            prompts = enough
        return self._demand(stages, one, prompts), prompts

    def _scored(self, stages: Sequence[Stage], rows: int, prompts_under_way: int | None) -> Evaluation:
        problem = self._problem(1, 1, rows, prompts_under_way)
        return evaluate(with_tied_weights(problem, self.tied_bytes) if len(stages) == 1 else problem, stages)

    def _demand(self, stages: Sequence[Stage], one: Evaluation, prompts: int | None) -> Demand:
        base, chunks = self.base(self.setting.prompts_under_way), self.chunks
        earlier = one.earlier_stage_s or one.stage_s
        prompt = [last + (chunks - 1) * before for last, before in zip(one.stage_s, earlier, strict=True)]
        prompt_s = (*prompt, *(chunks * seconds for seconds in self._links(stages, one.link_s)))
        spacing_s = max(prompt_s)
        if prompts is not None:
            spacing_s = max(spacing_s, prompt_round_trip_s(one, chunks) / prompts)
        steps: dict[int, Step] = {}

        def step(rows: int) -> Step:
            if rows not in steps:
                score = self._scored(stages, rows, self.setting.prompts_under_way)
                links = self._links(stages, score.decode_link_s)
                steps[rows] = Step(score.round_trip_s, (*score.decode_stage_s, *links))
            return steps[rows]

        generates = base.new_tokens > 1
        return Demand(
            prompt_s=prompt_s,
            chunks=chunks,
            alone_s=one.prefill_s,
            spacing_s=spacing_s,
            return_s=one.latency_s + one.return_s,
            steps=(base.new_tokens - 1) / base.tokens_per_step if generates else 0.0,
            step=step if generates else None,
            messages=self.setting.micro_batches,
            rows=self.setting.batch_size,
        )

    def _links(self, stages: Sequence[Stage], link_s: Sequence[float]) -> list[float]:
        """Return the occupancies of links, 0 for those that are part of a half-duplex stage's."""
        nodes = self.base(self.setting.prompts_under_way).nodes
        return [
            0.0 if nodes[stage.node].half_duplex else seconds
            for stage, seconds in zip(stages[:-1], link_s, strict=True)
        ]
