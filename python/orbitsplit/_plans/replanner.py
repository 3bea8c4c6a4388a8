"""The function that a running pipeline calls for a plan after a loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from orbitsplit._io.keyword_options import refuse_keywords
from orbitsplit._io.validation import check_kind, listed
from orbitsplit._network.network import Network
from orbitsplit._planner.solve import SolveOptions
from orbitsplit._profiling.profile import ModelProfile
from orbitsplit._profiling.rows import has_rows

from .options import PlanKeywords
from .pins import check_pins, without_nodes
from .plan import Plan
from .planning import plan
from .successor import with_settings_of
from .weight_options import WeightOption, weights_chosen


def replanner(
    profile: ModelProfile, network: Network, **options: Any
) -> Callable[[Plan, Sequence[str], Sequence[tuple[str, str]]], Plan]:
    """Return the `replan` of a `Pipeline`: it plans on the rest of the network what the running plan was planned for.

    The workload, model, dtype, threads and the models of weights are those of the running plan, and so are the
    objective, `max_accuracy_drop`, `chunk_tokens` and `draft_tokens` where no option says otherwise. With `weights`, a
    running plan without `max_accuracy_drop` has its predicted loss as the limit.

    The function takes the running plan, the names of lost nodes, and lost links as (source, destination). It raises
    InfeasiblePlanError if no plan is possible without them; the message says which relaxations would make one possible.

    Args:
        profile: Of the model that runs.
        network: The whole network, without losses.
        options: Those of `plan` (codebook, max_accuracy_drop, weights, order, ...). Every node is assumed to have all
            weights in its storage, so that weights are loaded and not sent, unless `stores` names others. Pins of lost
            nodes no longer hold. A running plan whose stages have weights of their own needs `weights`, from which
            those of the new stages are chosen too.

    Raises:
        TypeError: `plan` has no such option, or the pins are no mapping.
        ValueError: The pins name a node that the network does not have.

    Example:
        >>> replan = osp.replanner(profile, network, codebook=book, max_accuracy_drop=0.01)    # doctest: +SKIP
        >>> osp.Pipeline(plan, model, codebook=book, replan=replan)                            # doctest: +SKIP
    """

    check_kind("profile", profile, ModelProfile)
    check_kind("network", network, Network)
    known = {*inspect.signature(plan).parameters, *PlanKeywords.__annotations__}
    refuse_keywords("plan", {name: value for name, value in options.items() if name not in known})

    if options.get("pins") is not None:
        check_pins(options["pins"], [node.name for node in network.nodes])

    def replan(running: Plan, nodes: Sequence[str], links: Sequence[tuple[str, str]]) -> Plan:
        if "weights" not in options and (chosen := weights_chosen(running)):
            raise ValueError(
                f"stages have weights of their own, {listed(chosen)}: give the replanner weights= as for plan"
            )
        left = network.without(nodes, links)
        own = {"stores": [node.name for node in left.nodes], "explain": True, **options}
        if own.get("pins") is not None:
            own["pins"] = without_nodes(own["pins"], nodes)
        if options.get("options") is None and running.prediction is not None:
            own.setdefault("objective", running.prediction.objective)
        if running.chunk_tokens is None or profile.chunks:
            own.setdefault("chunk_tokens", running.chunk_tokens)
        own.setdefault("draft_tokens", _planned_drafts(running, profile, options))
        if not {"max_accuracy_drop", "loss_budget"} & options.keys():
            own.update(_limit_of(running, options))
        search = options.get("options") or SolveOptions(objective=own.get("objective", "latency"))
        if search.objective == "latency" and running.workload.arrivals_per_s is None:
            own["running"] = running
        found = with_settings_of(plan(profile, left, running.workload, **own), running)
        return found if "draft_tokens" in options else replace(found, draft_tokens=running.draft_tokens)

    return replan


def _planned_drafts(running: Plan, profile: ModelProfile, options: Mapping[str, Any]) -> int | None:
    """Return the guesses of the running plan, None if nothing says what they cost and gain."""
    guesses, weights = running.draft_tokens, options.get("weights") or {}
    profiles = (profile, *(option.profile for option in weights.values()))
    if guesses is None or not running.workload.acceptance:
        return None
    return guesses if all(has_rows(one, 1 + guesses) for one in profiles) else None


def _limit_of(running: Plan, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the limit of accuracy that a plan runs with, as an option of `plan`.

    A plan with weights that was not made for an accuracy, or whose accuracy no codebook converts, has the loss that was
    predicted for it; one without a prediction that of its weights.
    """
    prediction = running.prediction
    if options.get("codebook") is not None and not (options.get("weights") and running.max_accuracy_drop is None):
        return {"max_accuracy_drop": running.max_accuracy_drop}
    weights = options.get("weights")
    if weights:
        return {"loss_budget": _loss_of_weights(running, weights) if prediction is None else prediction.loss}
    return {}


def _loss_of_weights(running: Plan, weights: Mapping[str, WeightOption]) -> float:
    """Return what the weights of a running plan lose, as far as they are among those of `plan`."""
    loss = 0.0
    for stage in running.stages:
        if stage.weights is not None and stage.weights in weights:
            loss += sum(weights[stage.weights].loss[stage.start : stage.stop])
    return loss
