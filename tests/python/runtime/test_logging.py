"""What the runtime logs: nodes and numbers at their levels, never a secret or a prompt."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import orbitsplit as osp
from tests.support.fake_workers import WAIT_S, FakeStages, fake_pipeline
from tests.support.tiny_models import LAYERS

SECRET, TOKEN = "only for us", 91
PROMPT = torch.full((2, 3), TOKEN)
QUOTING = f"its prompt was [[{TOKEN}, {TOKEN}, {TOKEN}]], its secret {SECRET}"


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="orbitsplit")


def wait_until(claim: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not claim():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    assert {record.name for record in caplog.records} == {"orbitsplit.runtime"}
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def two_nodes(first: str, second: str) -> osp.Plan:
    plan = osp.Plan.manual(cuts=[2], layers=LAYERS)
    return replace(plan, stages=(replace(plan.stages[0], node=first), replace(plan.stages[1], node=second)))


def test_losses_and_the_recovery_are_logged_with_nodes_and_numbers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan, without_b = two_nodes("a", "b"), two_nodes("a", "spare")
    with fake_pipeline(tmp_path, plan=plan, replan=lambda *_loss: without_b, secret=SECRET) as (pipe, workers):
        running = pipe.submit(PROMPT, max_new_tokens=4)

        def lose_a_link() -> None:
            workers.on_quiesce = lambda: None
            raise osp.TransportError(QUOTING, kind="link", link=("x", "y"))

        workers.on_quiesce = lose_a_link
        workers.losses.append(osp.TransportError(QUOTING, kind="killed", node="b"))
        wait_until(lambda: [level for level, _ in lines(caplog)].count("WARNING") == 3)
        assert not running.is_over
        (recovery,) = pipe.recoveries
    logged = lines(caplog)
    assert [message for level, message in logged if level == "WARNING"] == [
        'session 0 is lost: node "b" (killed)',
        'session 1 is lost: link from node "x" to node "y" (link)',
        f"recovered from 2 losses in {recovery.seconds:.1f} s, 0.5 s of them loading: session 2 on a, spare "
        "(joined: spare), 1 requests resume",
    ]
    first, second, closed = [message for level, message in logged if level == "INFO"]
    assert first.startswith("session 0 is ready after ")
    assert first.endswith(" s: 2 stages on a, b")
    assert second.startswith("session 2 is ready after ")
    assert closed == "the pipeline is closed"
    assert ("DEBUG", "group 0: 2 rows of 3 tokens, up to 4 new ones") in logged
    assert_nothing_private(caplog)


def assert_nothing_private(caplog: pytest.LogCaptureFixture) -> None:
    assert str(TOKEN) not in caplog.text
    assert SECRET not in caplog.text


def test_retries_and_what_is_given_up_are_logged_by_group(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with fake_pipeline(tmp_path) as (pipe, _):
        generation = pipe.submit(PROMPT, max_new_tokens=4)
        (group,) = generation.states
        FakeStages(pipe).report(("retry", group, [5, 2]), ("fail", group, ["corruption", QUOTING]))
        with pytest.raises(osp.TransportError, match="a group is given up"):
            generation.wait(WAIT_S)
    logged = lines(caplog)
    assert ("WARNING", f"group {group} restarts with 5 new tokens, corrupted messages in a row: 2") in logged
    assert ("ERROR", f"group {group} is given up (corruption)") in logged
    assert_nothing_private(caplog)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (osp.TransportError(QUOTING, kind="failed", node="node 1"), 'the pipeline has ended: node "node 1" (failed)'),
        (ValueError(QUOTING), "the pipeline has ended: ValueError"),
    ],
)
def test_the_end_of_a_pipeline_is_an_error_without_its_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Any, message: str
) -> None:
    with fake_pipeline(tmp_path) as (_, workers):
        workers.losses.append(error)
        wait_until(lambda: workers.calls)
    assert lines(caplog)[-1] == ("ERROR", message)
    assert_nothing_private(caplog)


def test_nothing_is_printed_unless_somebody_asks() -> None:
    code = "import logging, orbitsplit; logging.getLogger('orbitsplit.runtime').error('not to be seen')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == ("", "")
