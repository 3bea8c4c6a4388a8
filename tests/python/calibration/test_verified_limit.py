"""Limits of accuracy that verified plans with weights keep; `benches.studies.verified_weights` has 20 seeds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tiny_models import one_thread
from tests.support.verified_weights import LIMIT, NODES, run_once


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.mark.parametrize("seed", [0, 1])
def test_a_verified_plan_keeps_its_limit_by_the_judge(seed: int, tmp_path: Path) -> None:
    found = run_once(seed, tmp_path, rows=8, cuts=(2, 4))
    stages = found.verification.plan.stages
    assert found.verification.is_within
    assert found.drop <= LIMIT
    # There is no room for floats, and links are slow: it is weights and codecs that are within the limit.
    assert all(stage.weights for stage in stages)
    assert 1 < len(stages) <= NODES
    assert all(stage.codec for stage in stages[:-1])
    assert found.verification.best.measured.loss > 0.01
    # What the judge counts is what was measured, but for predictions that are level.
    assert found.drop == pytest.approx(found.verification.best.measured.drop, abs=0.006)
