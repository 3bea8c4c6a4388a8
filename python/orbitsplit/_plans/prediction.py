"""What the cost model predicts for a plan, as a record of the plan's file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from orbitsplit._io.units import format_seconds
from orbitsplit._io.validation import mapping_of, record_of
from orbitsplit._profiling.workload import Workload

# Fewer requests that wait are not mentioned.
_SHOWN = 0.01


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the cost model predicts for a plan.

    Attributes:
        total_s: Seconds from the first prompt to the last token.
        prefill_s: Seconds of the prefill of all micro-batches.
        token_step_s: Seconds from one step of a group to its next, in steady state; 0 without generation.
        loss: The sum of the losses at the cuts and of the weights, in nats per token.
        stage_s: Occupancy of each stage per micro-batch in prefill, with chunks that of the last chunk.
        link_s: The same of each link.
        decode_stage_s: Occupancy of each stage per token step of one group; empty without generation.
        decode_link_s: Occupancy of each link per token step of one group; empty without generation.
        stage_memory_bytes: Memory of each stage's process, in bytes, without that of the interpreter.
        status: As in a `Solution`.
        lower_bound_s: No plan takes fewer seconds of the objective.
        gap: (objective - lower bound) / objective.
        objective: As in `SolveOptions`.
        chunk_options: Lengths of chunks of a prompt, and the seconds of the objective of the best plan with each; the
            longest is the prompt as a whole. Empty if only one was tried.
        earlier_stage_s: Mean occupancy of each stage by the chunks before the last one; empty for whole prompts.
        row_options: Micro-batches, rows of each, and the seconds of the objective of the best plan with these, for
            throughput by row. Empty if only one division was tried.
        draft_options: Numbers of guesses that go along with each token, and the seconds of the objective of the best
            plan with each, 0 being none. Empty if only one was tried.
        tokens_per_step: Tokens that a step gives on average: more than 1 with guesses.
        in_flight: Requests in flight on average, of a workload with a rate. `total_s` and `prefill_s` are then the mean
            seconds of a request and until its first token, `token_step_s` those from one step to the next beside the
            prompts of others, and occupancies those of one prompt, and of a step of the rows that share it. None for a
            workload whose prompts are all there at once.
        waiting: Requests that wait on average because as many as may be are in flight; 0 without a rate.
        stage_utilisation: The part of the time for which each stage is busy; empty without a rate.
        link_utilisation: The same of each link, 0 for one that is part of a half-duplex stage's.
    """

    total_s: float
    prefill_s: float
    token_step_s: float
    loss: float
    stage_s: tuple[float, ...]
    link_s: tuple[float, ...]
    decode_stage_s: tuple[float, ...]
    decode_link_s: tuple[float, ...]
    stage_memory_bytes: tuple[int, ...]
    status: str
    lower_bound_s: float
    gap: float
    objective: str = "latency"
    chunk_options: tuple[tuple[int, float], ...] = ()
    earlier_stage_s: tuple[float, ...] = ()
    row_options: tuple[tuple[int, int, float], ...] = ()
    draft_options: tuple[tuple[int, float], ...] = ()
    tokens_per_step: float = 1.0
    in_flight: float | None = None
    waiting: float = 0.0
    stage_utilisation: tuple[float, ...] = ()
    link_utilisation: tuple[float, ...] = ()

    @property
    def steady_stage_s(self) -> tuple[float, ...]:
        """Occupancy of each stage in the middle of a prefill: by a micro-batch, or a chunk before the last one."""
        return self.earlier_stage_s or self.stage_s

    @property
    def decode_s(self) -> float:
        """Seconds from the end of prefill to the last token."""
        return self.total_s - self.prefill_s


def bottlenecks(prediction: Prediction, nodes: Sequence[str], chunk_tokens: int | None = None) -> list[str]:
    """Return a line for the prefill and one for generation: seconds and the bottleneck.

    `chunk_tokens` is the length of the plan's chunks.
    """
    names = [*nodes, *(f"the link {a} -> {b}" for a, b in pairwise(nodes))]
    if prediction.in_flight is not None:
        return [_arrivals(prediction, names)]
    seconds, resource = max(zip(prediction.steady_stage_s + prediction.link_s, names, strict=True))
    lines = [
        f"prefill: {format_seconds(prediction.prefill_s)}, bottleneck is {resource} with "
        f"{format_seconds(seconds)} per {'micro-batch' if chunk_tokens is None else f'chunk of {chunk_tokens} tokens'}"
    ]
    if prediction.decode_stage_s:
        seconds, resource = max(zip(prediction.decode_stage_s + prediction.decode_link_s, names, strict=True))
        tokens = f" of {prediction.tokens_per_step:.3g} tokens" if prediction.tokens_per_step > 1 else ""
        lines.append(
            f"generation: {format_seconds(prediction.decode_s)}, {format_seconds(prediction.token_step_s)} per token "
            f"step{tokens}, bottleneck is {resource} with {format_seconds(seconds)}"
        )
    return lines


def throughput(prediction: Prediction, workload: Workload) -> list[str]:
    """Return a line on what a plan for throughput delivers while enough is in flight to keep its bottleneck busy."""
    if prediction.objective != "throughput":
        return []
    if prediction.decode_stage_s:
        what, count = "new tokens", workload.batch_size * prediction.tokens_per_step
        seconds = max(prediction.decode_stage_s + prediction.decode_link_s)
    elif not prediction.earlier_stage_s:
        what, count = "sequences", float(workload.batch_size)
        seconds = max(prediction.stage_s + prediction.link_s)
    else:  # what chunks of a prompt take differs
        return []
    if seconds == 0:
        return []
    rate = count / seconds
    shown = f"{rate:.3g}" if rate < 100 else f"{rate:,.0f}"
    return [f"throughput: {shown} {what} per second while its bottleneck is busy"]


def _arrivals(prediction: Prediction, names: Sequence[str]) -> str:
    """Return the line on requests that arrive at a rate."""
    part, busiest = max(zip(prediction.stage_utilisation + prediction.link_utilisation, names, strict=True))
    waiting = f", {prediction.waiting:.2g} wait" if prediction.waiting >= _SHOWN else ""
    return (
        f"requests take {format_seconds(prediction.total_s)} on average, {format_seconds(prediction.prefill_s)} to the "
        f"first token; {prediction.in_flight:.3g} are in flight{waiting}, busiest is {busiest} for {100 * part:.0f} % "
        f"of the time"
    )


def compared(
    prediction: Prediction, workload: Workload, chunk_tokens: int | None, draft_tokens: int | None
) -> list[str]:
    """Return a line for each part of the plan's setting of which several were tried, with the best plans of each."""
    lines = []
    if prediction.row_options:
        lines.append(_rows_compared(prediction.row_options, workload))
    if prediction.chunk_options:
        lines.append(_chunks_compared(prediction.chunk_options, chunk_tokens))
    if prediction.draft_options:
        lines.append(_drafts_compared(prediction.draft_options, draft_tokens))
    return lines


def _rows_compared(options: Sequence[tuple[int, int, float]], workload: Workload) -> str:
    each = [f"{count} x {rows} {format_seconds(seconds)}" for count, rows, seconds in options]
    chosen = f"{workload.micro_batches} micro-batches of {workload.batch_size} rows"
    return f"sequences run in {chosen}; best plans by micro-batches x rows: {', '.join(each)}"


def _chunks_compared(options: Sequence[tuple[int, float]], chunk_tokens: int | None) -> str:
    *shorter, (_, whole_s) = options
    chosen = "as a whole" if chunk_tokens is None else f"in chunks of {chunk_tokens} tokens"
    each = [f"{tokens} tokens {format_seconds(seconds)}" for tokens, seconds in shorter]
    return f"prompts run {chosen}; best plans by length of chunks: {', '.join(each)}, whole {format_seconds(whole_s)}"


def _drafts_compared(options: Sequence[tuple[int, float]], draft_tokens: int | None) -> str:
    each = [f"{guesses} {format_seconds(seconds)}" for guesses, seconds in options]
    chosen = "alone" if draft_tokens is None else f"with {draft_tokens} guesses of the next ones"
    return f"tokens go {chosen}; best plans by number of guesses: {', '.join(each)}"


def read_prediction(data: Any) -> Prediction:
    """Return the prediction of a document. Raises ValueError naming a key that is missing, unknown or wrong."""
    prediction: Prediction = record_of("prediction", _with_tuples(mapping_of("prediction", data)), Prediction)
    return prediction


def remove_defaults(prediction: dict[str, Any]) -> None:
    """Remove the keys of a document that earlier versions do not have, where they say nothing."""
    for key in ("chunk_options", "earlier_stage_s", "row_options", "draft_options", "waiting", "stage_utilisation"):
        if not prediction[key]:
            del prediction[key]
    if prediction["tokens_per_step"] == 1:
        del prediction["tokens_per_step"]
    if not prediction["link_utilisation"]:
        del prediction["link_utilisation"]
    if prediction["in_flight"] is None:
        del prediction["in_flight"]


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with lists as tuples, which JSON does not have, so that a round trip gives an equal record."""
    return {key: _as_tuple(value) for key, value in values.items()}


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value
