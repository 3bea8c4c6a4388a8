"""How much a pipeline has in flight by its plan: micro-batches, or the requests that arrive at a rate."""

from __future__ import annotations

from dataclasses import replace

import pytest

import orbitsplit as osp

pytest.importorskip("torch")

from orbitsplit.runtime._messages.limits import Limits
from orbitsplit.runtime._parent.session import Settings


def limits_of(workload: osp.Workload) -> Limits:
    plan = replace(osp.Plan.manual(cuts=[1, 2], layers=4), workload=workload)
    return Settings(model="m").limits(plan, ())


def test_a_rate_has_the_requests_and_messages_that_it_was_planned_with() -> None:
    limits = limits_of(osp.Workload(micro_batches=4, batch_size=3, arrivals_per_s=0.5))
    assert (limits.most_sequences, limits.most_packs) == (12, 4)
    assert limits.pack_tokens >= 3
    assert limits_of(osp.Workload(micro_batches=1, batch_size=40, arrivals_per_s=0.5)) == replace(
        limits, most_groups=3, most_sequences=40, most_packs=1, pack_tokens=40
    )


def test_a_batch_has_a_message_for_each_micro_batch_or_stage() -> None:
    assert limits_of(osp.Workload(micro_batches=4)).most_packs == 4
    assert limits_of(osp.Workload(micro_batches=1)).most_packs == 3
    assert limits_of(osp.Workload(micro_batches=4)).most_sequences == 64
