"""What a pipeline says of its nodes and links while it runs."""

from __future__ import annotations

from dataclasses import replace

import orbitsplit as osp
from orbitsplit.runtime import LinkStatus, NodeStatus
from orbitsplit.runtime._messages.control import Heartbeat
from orbitsplit.runtime._parent.status import status_of

PLAN = osp.Plan.manual(cuts=[1, 2], layers=3)
NODES = [stage.node for stage in PLAN.stages]


def beat(sent: int, resident: int, busy_s: float = 0.0) -> Heartbeat:
    return Heartbeat(1, "at work", sent_bytes=sent, resident_bytes=resident, busy_s=busy_s)


def test_nodes_and_links_are_those_of_the_last_heartbeats() -> None:
    stages = (replace(PLAN.stages[0], memory_bytes=99), *PLAN.stages[1:])
    links = (replace(PLAN.links[0], bytes_per_s=125e3), *PLAN.links[1:])
    status = status_of(replace(PLAN, stages=stages, links=links), [beat(10, 1, 2.5), beat(20, 2), None])
    nodes = NodeStatus(NODES[0], 1, 99, 2.5), NodeStatus(NODES[1], 2, None), NodeStatus(NODES[2], 0, None)
    assert status.nodes == nodes
    assert status.links == (
        LinkStatus(NODES[0], NODES[1], 10, 125e3),
        LinkStatus(NODES[1], NODES[2], 20),
        LinkStatus(NODES[2], NODES[0], 0),  # the tokens go back to the first stage
    )


def test_one_node_has_no_links() -> None:
    status = status_of(osp.Plan.manual(cuts=[], layers=3), [beat(0, 5)])
    assert (len(status.nodes), status.links) == (1, ())


def test_a_heartbeat_arrives_with_its_bytes() -> None:
    assert Heartbeat.from_json(beat(3, 4).to_json()) == beat(3, 4)
