"""The memory of a stage: its layers, the workspace of a forward, and the process that runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orbitsplit._io.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orbitsplit._network.network import Node
    from orbitsplit._planner.problem_parts import Stage
    from orbitsplit._profiling.profile import LayerProfile, ModelProfile
    from orbitsplit._profiling.workload import Workload

# The number of nodes that a message names.
_MOST_NAMED = 4
# One decodes what the stage receives, one encodes what it sends.
CODECS_PER_STAGE = 2


def _common_workspace_bytes(profile: ModelProfile) -> int:
    """Return the workspace of the transformer layers, which counts for every stage: a problem has none of its own."""
    return profile.stage_workspace_bytes(1, len(profile.layers) - 1)


def extra_workspace(profile: ModelProfile) -> list[int]:
    """Return by how much the workspace of each layer exceeds that of the transformer layers, in bytes."""
    common = _common_workspace_bytes(profile)
    return [max(0, profile.stage_workspace_bytes(k, k + 1) - common) for k in range(len(profile.layers))]


def stage_bytes(
    profile: ModelProfile,
    workload: Workload,
    stage: Stage,
    *,
    layers_bytes: int,
    codec_bytes: int,
    prompts_under_way: int | None,
) -> int:
    """Return the memory of a stage's process beside the interpreter.

    `layers_bytes` is the problem's for its layers, `codec_bytes` that of the codecs at its ends.
    """
    workspace_bytes = profile.stage_workspace_bytes(stage.start, stage.stop)
    own_bytes = layers_bytes - sum(extra_workspace(profile)[stage.start : stage.stop])
    process_bytes = profile.process_bytes(workload, workspace_bytes, prompts_under_way)
    return own_bytes + workspace_bytes + codec_bytes + process_bytes


def node_record(
    node: Node,
    profiles: Sequence[ModelProfile],
    workload: Workload,
    *,
    codec_bytes: int,
    prompts_under_way: int | None,
) -> dict[str, object]:
    """Return the node as a record of a problem; `codec_bytes` is the most that one codec takes.

    `profiles` are those of all weight levels: a problem has one headroom, which is the most that one of them needs.
    """
    own_bytes = _most_own_bytes(node, profiles, workload, codec_bytes, prompts_under_way)
    return {
        "name": node.name,
        "memory_bytes": node.memory_bytes,
        # A node too small for the process holds no layer; a problem requires headroom <= memory.
        "headroom_bytes": min(node.memory_bytes, own_bytes),
        "half_duplex": node.half_duplex,
    }


def layer_bytes(layer: LayerProfile, workload: Workload) -> int:
    """Return the bytes of a layer's weights, and of the keys and values of all sequences at full length."""
    return layer.weight_bytes + workload.sequences * layer.kv_bytes(workload.prompt_tokens + workload.new_tokens)


def _own_bytes(
    node: Node, profile: ModelProfile, workload: Workload, codec_bytes: int, prompts_under_way: int | None
) -> int:
    """Return the memory of a node that layers cannot have: of its codecs the largest, since a problem has no other."""
    workspace_bytes = _common_workspace_bytes(profile)
    process_bytes = profile.process_bytes(workload, workspace_bytes, prompts_under_way)
    process_bytes += CODECS_PER_STAGE * codec_bytes
    return max(node.headroom_bytes, process_bytes) + workspace_bytes


def _most_own_bytes(
    node: Node,
    profiles: Sequence[ModelProfile],
    workload: Workload,
    codec_bytes: int,
    prompts_under_way: int | None,
) -> int:
    return max(_own_bytes(node, profile, workload, codec_bytes, prompts_under_way) for profile in profiles)


def nodes_without_room(
    nodes: Sequence[Node],
    profiles: Sequence[ModelProfile],
    workload: Workload,
    *,
    codec_bytes: int,
    prompts_under_way: int | None,
) -> list[str]:
    """Return a sentence on the nodes that have no room for any layer, as part of an error; [] if there are none."""
    lacking = [(node, _most_own_bytes(node, profiles, workload, codec_bytes, prompts_under_way)) for node in nodes]
    lacking = [(node, own) for node, own in lacking if own > node.memory_bytes]
    if not lacking:
        return []
    named = ", ".join(f'"{node.name}" ({format_bytes(node.memory_bytes)})' for node, _ in lacking[:_MOST_NAMED])
    more = f" and {len(lacking) - _MOST_NAMED} others" if len(lacking) > _MOST_NAMED else ""
    return [
        f"nodes without room for any layer: {named}{more}; beside its layers a stage takes "
        f"{format_bytes(max(own for _, own in lacking))} (libraries, codecs, workspace, headroom, and the waiting "
        f"activations of {prompts_under_way or workload.micro_batches} micro-batches)"
    ]
