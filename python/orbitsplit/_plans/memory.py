"""What a stage takes of a node's memory: its layers, the workspace of a forward, and the process around them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orbitsplit._io.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orbitsplit._network.network import Node
    from orbitsplit._planner.problem import Stage
    from orbitsplit._profiling.profile import LayerProfile, ModelProfile
    from orbitsplit._profiling.workload import Workload

# So many nodes are named in a message.
_MOST_NAMED = 4


def _common_workspace_bytes(profile: ModelProfile) -> int:
    """Return the workspace of every stage: of the transformer layers, because the problem knows none of a stage."""
    return profile.stage_workspace_bytes(1, len(profile.layers) - 1)


def more_workspace(profile: ModelProfile) -> list[int]:
    """Return by how much the workspace of each layer exceeds that of every stage."""
    common = _common_workspace_bytes(profile)
    return [max(0, profile.stage_workspace_bytes(k, k + 1) - common) for k in range(len(profile.layers))]


def stage_bytes(profile: ModelProfile, workload: Workload, stage: Stage, layers_bytes: int) -> int:
    """Return what the process of a stage takes beyond the interpreter, given what the problem says of its layers."""
    workspace_bytes = profile.stage_workspace_bytes(stage.start, stage.stop)
    own_bytes = layers_bytes - sum(more_workspace(profile)[stage.start : stage.stop])
    return own_bytes + workspace_bytes + profile.process_bytes(workload, workspace_bytes)


def node_record(node: Node, profile: ModelProfile, workload: Workload) -> dict[str, object]:
    """Return the node as a problem's format has it."""
    return {
        "name": node.name,
        "memory_bytes": node.memory_bytes,
        # A node too small for a process can hold nothing; the problem's format wants headroom <= memory.
        "headroom_bytes": min(node.memory_bytes, _own_bytes(node, profile, workload)),
        "half_duplex": node.half_duplex,
    }


def layer_bytes(layer: LayerProfile, workload: Workload) -> int:
    """Return a layer's weights and the keys and values of all sequences at full length."""
    return layer.weight_bytes + workload.sequences * layer.kv_bytes(workload.prompt_tokens + workload.new_tokens)


def _own_bytes(node: Node, profile: ModelProfile, workload: Workload) -> int:
    """Return what a node must keep beside layers."""
    workspace_bytes = _common_workspace_bytes(profile)
    return max(node.headroom_bytes, profile.process_bytes(workload, workspace_bytes)) + workspace_bytes


def crowded(nodes: Sequence[Node], profile: ModelProfile, workload: Workload) -> list[str]:
    """Say which nodes have no room for any layer, as part of an error: what else it asks for comes on top of that."""
    lacking = [(node, _own_bytes(node, profile, workload)) for node in nodes]
    lacking = [(node, own) for node, own in lacking if own > node.memory_bytes]
    if not lacking:
        return []
    named = ", ".join(f'"{node.name}" ({format_bytes(node.memory_bytes)})' for node, _ in lacking[:_MOST_NAMED])
    more = f" and {len(lacking) - _MOST_NAMED} others" if len(lacking) > _MOST_NAMED else ""
    return [
        f"of the nodes {named}{more} have no room at all: beside layers a stage takes "
        f"{format_bytes(max(own for _, own in lacking))} (libraries, workspace, headroom, and what waits of "
        f"{workload.micro_batches} micro-batches), and what else is asked for comes on top"
    ]
