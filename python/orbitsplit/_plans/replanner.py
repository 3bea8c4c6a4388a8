"""What a running pipeline asks for a plan after a loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from orbitsplit._network.network import Network
from orbitsplit._profiling.profile import ModelProfile

from .plan import Plan
from .planning import plan


def replanner(
    profile: ModelProfile, network: Network, **options: Any
) -> Callable[[Plan, Sequence[str], Sequence[tuple[str, str]]], Plan]:
    """Return the `replan` of a `Pipeline`: plans on what is left of the network, for the workload of the running plan.

    `options` are those of `plan` (codebook, max_accuracy_drop, order, ...). Every node is taken to have all weights in
    its storage (unless `stores` says otherwise), so what moves is loaded and not sent.

    The function raises InfeasiblePlanError where nothing is possible without what is lost; the message says what would
    be needed.

    Example:
        >>> replan = osp.replanner(profile, network, codebook=book, max_accuracy_drop=0.01)    # doctest: +SKIP
        >>> osp.Pipeline(plan, model, codebook=book, replan=replan)                            # doctest: +SKIP
    """

    def replan(running: Plan, nodes: Sequence[str], links: Sequence[tuple[str, str]]) -> Plan:
        left = network.without(nodes, links)
        asked: dict[str, Any] = {"stores": [node.name for node in left.nodes], "explain": True, **options}
        if options.get("objective", "latency") == "latency":
            asked["running"] = running
        else:
            del asked["stores"]
        return plan(profile, left, running.workload, **asked)

    return replan
