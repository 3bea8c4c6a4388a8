"""The plan that takes the place of another after a loss, whoever made it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

import orbitsplit as osp
from orbitsplit.runtime import Hosts
from orbitsplit.runtime._parent.recovery import Losses
from orbitsplit.runtime._parent.session import Deployment

BEFORE = replace(
    osp.Plan.manual([1, 2], layers=3, nodes=["a", "b", "c"]),
    model="toy",
    dtype="bfloat16",
    threads=2,
    max_accuracy_drop=0.01,
)
LOST = osp.TransportError("node b failed", kind="failed", node="b")


def losses() -> Losses:
    found = Losses()
    found.add(LOST)
    return found


def test_the_next_plan_has_what_the_user_set_of_the_last() -> None:
    """Regression: the limit of accuracy was gone after the first loss."""
    made = osp.Plan.manual([1], layers=3, nodes=["a", "c"])
    found = losses().plan_without(lambda before, nodes, links: made, BEFORE, LOST)
    assert found == replace(made, model="toy", dtype="bfloat16", threads=2, max_accuracy_drop=0.01)
    own = replace(made, max_accuracy_drop=0.02)
    assert losses().plan_without(lambda before, nodes, links: own, BEFORE, LOST).max_accuracy_drop == 0.02


def test_a_plan_that_uses_what_was_lost_is_refused() -> None:
    with pytest.raises(osp.TransportError, match="the plan that replaces it uses what was lost: b"):
        losses().plan_without(lambda before, nodes, links: before, BEFORE, LOST)


def test_a_node_that_comes_back_is_forgiven_in_the_next_recovery() -> None:
    """Regression: a host whose start always fails came back, was forgiven and failed, without end."""
    found, other = losses(), osp.TransportError("node c failed", kind="killed", node="c")
    found.forget({"b"}, [LOST])
    assert found.nodes == ["b"]
    found.add(other)
    found.forget(set(), [LOST, other])
    assert found.nodes == ["b", "c"]
    found.forget({"c"}, [other])  # another recovery
    assert found.nodes == ["c"]
    found.add(LOST)
    found.forget(set(), [LOST])
    assert found.nodes == ["b"]


def test_nodes_that_are_absent_are_not_in_the_next_plan() -> None:
    made = {(): ["a", "c"], ("c",): ["a", "d"]}

    def replan(before: osp.Plan, nodes: Sequence[str], links: Sequence[tuple[str, str]]) -> osp.Plan:
        return osp.Plan.manual([1], layers=3, nodes=made[tuple(nodes[1:])])

    def absent(nodes: Iterable[str]) -> list[str]:
        return [node for node in nodes if node == "c"]

    assert [stage.node for stage in losses().plan_without(replan, BEFORE, LOST, absent).stages] == ["a", "d"]
    made[("c",)] = ["a", "c"]
    with pytest.raises(osp.TransportError, match="uses a node that is not there: c"):
        losses().plan_without(replan, BEFORE, LOST, absent)


@pytest.mark.parametrize(("emulates", "expected"), [(True, ["b"]), (False, [])])
def test_hosts_with_a_clock_of_their_own_are_absent_while_links_are_emulated(
    emulates: bool, expected: list[str]
) -> None:
    """Regression: clocks were compared at the start only, and not of hosts that a later plan used."""
    hosts = cast("Hosts", SimpleNamespace(without_our_clock=lambda nodes: [node for node in nodes if node == "b"]))
    assert Deployment(emulates=emulates, hosts=hosts).without_our_clock(["a", "b"]) == expected
