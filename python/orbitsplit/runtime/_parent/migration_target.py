"""The plan that a pipeline is to go over to: whether it can, and which of its nodes load ahead."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from orbitsplit._errors import TransportError
from orbitsplit._io.validation import listed, quoted
from orbitsplit._plans.migration import keeps_stage
from orbitsplit._plans.plan import Plan
from orbitsplit._plans.successor import with_settings_of
from orbitsplit.runtime._messages.codec_file import CodecFiles

from .recovery import Losses
from .session import Settings, models_here
from .stage_models import check_layers, source_hashes


def nodes_loading(
    before: Plan, after: Plan, starts: Sequence[bool], copied: Sequence[int]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the nodes that load ahead and those that load in the pause; of others the stage stays as it is.

    A node loads ahead if another process of it can be started (`starts`, by stage), and if its memory has room for what
    both plans predict of it, and for what is `copied` there of caches, by stage.
    """
    used = (
        {}
        if before.prediction is None
        else dict(zip((stage.node for stage in before.stages), before.prediction.stage_memory_bytes, strict=True))
    )
    ahead: list[str] = []
    in_pause: list[str] = []
    for rank, stage in enumerate(after.stages):
        if keeps_stage(stage, before, after):
            continue
        needed = 0
        if after.prediction is not None:
            needed = after.prediction.stage_memory_bytes[rank] + used.get(stage.node, 0) + copied[rank]
        has_room = stage.memory_bytes is None or needed <= stage.memory_bytes
        (ahead if starts[rank] and has_room else in_pause).append(stage.node)
    return tuple(ahead), tuple(in_pause)


def check_target(plan: Plan, before: Plan, settings: Settings, losses: Losses) -> tuple[Plan, CodecFiles]:
    """Return the plan that a pipeline can go over to, with what users have set of the one that runs, and its codecs.

    Raises ValueError for a plan of another model or codebook, and one that uses what is lost; TransportError of kind
    "host" for nodes that are not there and devices that this machine does not have.
    """
    if plan.model is not None and before.model is not None and plan.model != before.model:
        raise ValueError(f"the plan is of model {plan.model}, the pipeline runs {before.model}")
    plan = with_settings_of(plan, before)
    check_layers(plan, settings.model)
    source_hashes(plan)
    codecs = CodecFiles(plan, settings.codebook)
    nodes = [stage.node for stage in plan.stages]
    if lost := [node for node in nodes if node in losses.nodes]:
        raise ValueError(f"the plan uses {listed(lost)}, lost before and not back")
    if links := {*pairwise(nodes), (nodes[-1], nodes[0])} & set(losses.links):
        source, destination = min(links)
        raise ValueError(
            f"the plan uses the link from {quoted(source)} to {quoted(destination)}, which was lost before"
        )
    deployment = settings.deployment
    known = {stage.node for stage in before.stages}
    if deployment.remote_nodes and (unknown := [node for node in nodes if node not in known]):
        fact = f"the plan uses {listed(unknown)}"
        raise ValueError(f"{fact}: torchrun has started processes of {listed(sorted(known))} only")
    if deployment.hosts is not None:
        if absent := deployment.hosts.absent(nodes):
            raise TransportError(
                f"no host has joined for {listed(absent)} of {listed(nodes)}", kind="host", node=absent[0]
            )
        if others := deployment.without_our_clock(nodes):
            raise ValueError(f"links cannot be emulated to {listed(others)}: their machines have clocks of their own")
    models_here(plan, settings)
    return plan, codecs
