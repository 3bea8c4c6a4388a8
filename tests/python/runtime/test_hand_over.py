"""What one session hands over to the next, and the memory and the seconds that this takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import orbitsplit as osp
from orbitsplit._plans.migration import Context
from orbitsplit.runtime._messages.groups import Group
from orbitsplit.runtime._parent.generation import GroupState
from orbitsplit.runtime._parent.hand_over import contexts_again, copied_bytes
from orbitsplit.runtime._parent.migration_target import nodes_loading
from orbitsplit.runtime._parent.session import Session, Settings
from tests.support.fake_workers import ready
from tests.support.toy_plan import planned

WORKLOAD = osp.Workload(micro_batches=3, batch_size=2, prompt_tokens=8, new_tokens=4)


def make_plan(*cuts: int, **fields: Any) -> osp.Plan:
    return replace(osp.Plan.manual(cuts=cuts, layers=4), workload=WORKLOAD, **fields)


GROWING, SLIDING = (0, 10, None), (0, 10, 4)
BEFORE = Session(0, make_plan(2), (0, 1), (ready(cache_layers=(GROWING,) * 2), ready(cache_layers=(SLIDING,) * 2)))


def test_of_one_group_there_are_two_copies() -> None:
    # Stages of 1 and 3 transformer layers; the last two have keys and values of four tokens at most.
    assert copied_bytes(BEFORE, make_plan(1)) == [2 * 120, 2 * 120 + 2 * 2 * 40]
    unmovable = replace(BEFORE, ready=(BEFORE.ready[0], ready()))
    assert copied_bytes(unmovable, make_plan(1)) == [0, 0]


@pytest.mark.parametrize(("copied", "ahead", "in_pause"), [(100, ("node 1",), ()), (101, (), ("node 1",))])
def test_a_stage_loads_ahead_where_copies_of_caches_have_room(
    copied: int, ahead: tuple[str, ...], in_pause: tuple[str, ...]
) -> None:
    prediction = planned().prediction
    assert prediction is not None
    plans = []
    for cut, used in ((2, 400), (1, 500)):
        plan = make_plan(cut, prediction=replace(prediction, stage_memory_bytes=(400, used)))
        plans.append(replace(plan, stages=tuple(replace(stage, memory_bytes=1000) for stage in plan.stages)))
    before, after = plans
    # Node 0 would have room, but only one process.
    assert nodes_loading(before, after, [False, True], [0, copied]) == (ahead, ("node 0", *in_pause))


def test_groups_with_images_run_again_and_replay_their_tokens() -> None:
    group = Group(id=1, rows=2, tokens=4, mask=None, max_new_tokens=8, beside=())
    state = GroupState(group, torch.zeros(2, 4, dtype=torch.int64), {"pixel_values": torch.ones(2, 3, 2, 2)})
    state.got += [torch.tensor([1, 2])] * 3
    assert contexts_again([state], Settings(model="", exact_resume=False)) == [Context(2, 7, replayed=3)]
