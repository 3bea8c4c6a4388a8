"""The planning problem of a profile, a network and a workload."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from orbitsplit._io.device_names import CPU
from orbitsplit._io.validation import check_count, check_kind, check_number, quoted
from orbitsplit._network.network import Network
from orbitsplit._planner.level_table import LevelTable
from orbitsplit._planner.problem import Problem
from orbitsplit._profiling.profile import ModelProfile
from orbitsplit._profiling.rows import profile_of_rows
from orbitsplit._profiling.workload import Workload

from .chunks import chunks_of
from .drafts import check_draft_rows, check_steps, tokens_per_lap
from .layer_times import chunk_s, decode_overhead_s, decode_s, overhead_s, prefill_s
from .memory import extra_workspace, layer_bytes, node_record
from .pins import LayerPins, pins_of
from .rows import with_rows
from .weight_options import Weights, check_weights

Order = Literal["fixed", "free"]


class DecodeArrays(NamedTuple):
    """What a problem has of token steps: seconds of layers and stages on each node, and bytes at each cut.

    `stage_decode_overhead_s` is None without overheads.
    """

    layer_decode_time_s: list[Any]
    stage_decode_overhead_s: list[Any] | None
    cut_decode_bytes: list[float]


_UNCOMPRESSED = {"name": "raw", "ratio": 1.0, "encode_s_per_byte": 0.0, "decode_s_per_byte": 0.0}


def build_problem(
    profile: ModelProfile,
    network: Network,
    workload: Workload,
    *,
    levels: LevelTable | None = None,
    loss_budget: float = 0.0,
    order: Order = "free",
    pins: LayerPins | None = None,
    weights: Weights | None = None,
    chunk_tokens: int | None = None,
    draft_tokens: int | None = None,
    prompts_under_way: int | None = None,
) -> Problem:
    """Return the planning problem of a model, a network and a workload; arguments as for `plan`.

    - Memory of a layer: its weights, and the keys and values of every sequence of the workload at full length.
    - Headroom of a node: at least the memory that the process of a stage takes for itself
      (`ModelProfile.process_bytes`), plus the transient activations of a forward of the transformer layers. What the
      embeddings or the head need beyond that counts as memory of these layers.
    - Tied weights of embeddings and head count in both layers, because stages on two nodes hold a copy each. A node
      that runs everything holds them once, which a problem cannot express; `plan` solves these few plans apart.
    - With `weights` the profile's own weights are the first weight level, named after its dtype, which loses nothing;
      the others follow in their order. The headroom is then that of the weight level that needs most.
    - With `chunk_tokens` a prompt of S tokens runs in S / `chunk_tokens` chunks, rounded up and equally long, each a
      micro-batch of the problem. The last one has times of its own; those before it take what they take on average.
    - With `draft_tokens` a token step carries so many guesses: it computes as a step of 1 + `draft_tokens` rows, sends
      as many tokens, and gives more than one by the `acceptance` of the workload.
    - With `prompts_under_way` the activations of so many micro-batches wait on a stage, in place of all of them.
    - What a forward of a measured profile takes in addition to its layers, every stage takes once (`stage_overhead_s`).
    - A micro-batch of another number of rows than the profile was made for has the times that the profile has of it.

    Raises:
        ValueError: The workload has a rate, the profile was made for another prompt length than the workload's, or has
            no times of so many rows in a micro-batch, a node's slowdown refers to a profile that was not measured,
            `levels` are for a model of another number of layers, or `weights` for another model or beside nodes of
            another device than the processor, or a profile has no times of chunks, or of the rows that guesses take.
        TypeError: `loss_budget` is not a number, or `weights` is no mapping.
    """
    check_loss_budget(loss_budget)
    if prompts_under_way is not None:
        check_count("prompts_under_way", prompts_under_way, 1)
    check_kind("profile", profile, ModelProfile)
    check_kind("network", network, Network)
    check_kind("workload", workload, Workload)
    if workload.arrivals_per_s is not None:
        raise ValueError(
            f"the workload has arrivals_per_s {workload.arrivals_per_s:g}, and the prompts of a problem are all there "
            f"at once: plan decides for a rate"
        )
    if levels is not None:
        check_kind("levels", levels, LevelTable)
    _check_match(profile, workload, levels)
    check_steps(profile, workload, draft_tokens)
    profile, options = with_rows(profile, check_weights(profile, weights), workload.batch_size)
    profiles = (profile, *(option.profile for option in options.values()))
    chunks = max(chunks_of(of, chunk_tokens) for of in (profile, *(option.profile for option in options.values())))
    if options and (others := [node for node in network.nodes if node.device != CPU]):
        raise ValueError(
            f"weights of other formats run on processors alone, and node {quoted(others[0].name)} has device "
            f"{others[0].device}: plan without weights, or without that node"
        )
    cuts = len(profile.layers) - 1
    loss = [[0.0]] * cuts if levels is None else np.asarray(levels.loss).tolist()
    data: dict[str, Any] = {
        "name": f"{profile.model} on {network.name}",
        "layers": [layer.name for layer in profile.layers],
        "nodes": [
            node_record(
                node,
                profiles,
                workload,
                codec_bytes=0 if levels is None else levels.codec_bytes,
                prompts_under_way=prompts_under_way,
            )
            for node in network.nodes
        ],
        "layer_memory_bytes": _at_levels(lambda of: _layer_memory_bytes(of, workload), profiles),
        "layer_time_s": _at_levels(lambda of: _prefill_times(of, network, chunks), profiles),
        "layer_earlier_time_s": _at_levels(lambda of: _earlier_times(of, network, workload, chunks), profiles)
        if chunks > 1
        else None,
        "stage_overhead_s": _unless_zero(
            _at_levels(lambda of: [overhead_s(of, n, chunks) for n in network.nodes], profiles)
        ),
        "cut_bytes": [profile.cut_prefill_bytes(cut) * workload.batch_size / chunks for cut in range(cuts)],
        "bandwidth_bytes_per_s": network.bandwidth_bytes_per_s().tolist(),
        "latency_s": network.latency_s().tolist(),
        "levels": [_UNCOMPRESSED] if levels is None else _level_records(levels, network),
        "loss": loss,
        "loss_budget": loss_budget,
        "micro_batches": workload.micro_batches * chunks,
        "order": order,
        "pins": pins_of(pins, network, [layer.name for layer in profile.layers]),
    }
    if workload.new_tokens > 0:
        data["new_tokens"] = workload.new_tokens
        positions = _positions(workload, draft_tokens)
        data |= decode_arrays(profiles, network, positions)._asdict()
        data["tokens_per_step"] = tokens_per_lap(workload.acceptance, draft_tokens or 0)
    if chunks > 1:
        data["groups"] = workload.micro_batches
    if options:
        data["weight_levels"] = [{"name": name} for name in (profile.dtype, *options)]
        data["weight_loss"] = [[0.0] * len(profile.layers), *(list(option.loss) for option in options.values())]
    return Problem.from_dict(data)


def _at_levels(of_profile: Callable[[ModelProfile], list[Any]], profiles: Sequence[ModelProfile]) -> list[Any]:
    """Return the array of each profile, or the only one itself: a problem of one precision has no weight levels."""
    return [of_profile(profile) for profile in profiles] if len(profiles) > 1 else of_profile(profiles[0])


def _layer_memory_bytes(profile: ModelProfile, workload: Workload) -> list[int]:
    return [
        layer_bytes(layer, workload) + extra
        for layer, extra in zip(profile.layers, extra_workspace(profile), strict=True)
    ]


def _prefill_times(profile: ModelProfile, network: Network, chunks: int) -> list[list[float]]:
    if chunks == 1:
        return [prefill_s(profile, node) for node in network.nodes]
    return [chunk_s(profile, node, chunks)[0] for node in network.nodes]


def _earlier_times(profile: ModelProfile, network: Network, workload: Workload, chunks: int) -> list[list[float]]:
    """Return the mean seconds of all chunks but the last one of the last prompt."""
    prompts = workload.micro_batches
    rows = []
    for node in network.nodes:
        last, earlier = chunk_s(profile, node, chunks)
        totals = (prompts * (chunks - 1) * e + (prompts - 1) * t for e, t in zip(earlier, last, strict=True))
        rows.append([total / (prompts * chunks - 1) for total in totals])
    return rows


def _positions(workload: Workload, draft_tokens: int | None) -> int:
    """Return how many tokens a token step runs: one of each row, or one and its guesses."""
    if draft_tokens is None:
        return workload.batch_size
    check_count("draft_tokens", draft_tokens, 1)
    check_draft_rows(draft_tokens, workload)
    return 1 + draft_tokens


def decode_arrays(profiles: Sequence[ModelProfile], network: Network, positions: int) -> DecodeArrays:
    """Return what a problem has of token steps of `positions` tokens each."""
    of_positions, nodes = [profile_of_rows(profile, positions) for profile in profiles], network.nodes
    return DecodeArrays(
        _at_levels(lambda of: [decode_s(of, node, len(nodes)) for node in nodes], of_positions),
        _unless_zero(_at_levels(lambda of: [decode_overhead_s(of, node) for node in nodes], of_positions)),
        [profiles[0].cut_step_bytes(cut) * positions for cut in range(len(profiles[0].layers) - 1)],
    )


def _unless_zero(seconds: list[Any]) -> list[Any] | None:
    """Return seconds of stages, None where no stage has any."""
    return seconds if np.any(seconds) else None


def check_loss_budget(loss_budget: float) -> None:
    """Raise TypeError for what is no number."""
    if loss_budget is None:
        raise TypeError("loss_budget is None, must be a number: 0 for nothing lost, math.inf for no limit")
    check_number("loss_budget", loss_budget)


def _check_match(profile: ModelProfile, workload: Workload, levels: LevelTable | None) -> None:
    if profile.prompt_tokens != workload.prompt_tokens:
        raise ValueError(
            f"the profile was made for prompt_tokens={profile.prompt_tokens}, the workload has "
            f"{workload.prompt_tokens}: profile the model again with prompt_tokens={workload.prompt_tokens}"
        )
    if workload.new_tokens > 0 and not profile.generates:
        raise ValueError(f"{profile.model} generates no tokens, the workload has {workload.new_tokens} new tokens")
    cuts = len(profile.layers) - 1
    if levels is not None and len(levels.loss) != cuts:
        raise ValueError(f"the levels describe {len(levels.loss)} cuts, the profiled model has {cuts}")


def _level_records(levels: LevelTable, network: Network) -> list[dict[str, object]]:
    """Return the levels with the encode and decode seconds of a node of mean speed, because a level has one of each."""
    slowdown = float(np.mean([1.0 if node.slowdown is None else node.slowdown for node in network.nodes]))
    return [
        {
            "name": level.name,
            "ratio": level.ratio,
            "encode_s_per_byte": slowdown * level.encode_s_per_byte,
            "decode_s_per_byte": slowdown * level.decode_s_per_byte,
        }
        for level in levels.levels
    ]
