"""Timing of layers: under the conditions of a node that waits between pieces of work."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from orbitsplit._models.stage import StageModel
from orbitsplit._profiling import timing
from tests.support.tiny_models import save_tiny_model


def test_a_pause_follows_each_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without pauses the core stayed warm, and profiles promised 12 to 16 % less time than pipelines then took.
    save_tiny_model(tmp_path, "llama")
    events: list[tuple[str, float]] = []
    forward = StageModel.forward

    def timed_forward(self: StageModel, *arguments: torch.Tensor) -> torch.Tensor:
        start = time.monotonic()
        output = forward(self, *arguments)  # type: ignore[arg-type]
        events.append(("forward", time.monotonic() - start))
        return output

    monkeypatch.setattr(StageModel, "_check_forward", lambda _: None)
    monkeypatch.setattr(StageModel, "forward", timed_forward)
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: events.append(("pause", seconds)))
    timing.measure_times(
        tmp_path, prompt_tokens=4, batch_size=1, dtype=torch.float32, threads=1, progress=lambda *_: None
    )
    assert len(events) > 20
    for (worked, duration), (paused, pause) in zip(events[::2], events[1::2], strict=True):
        assert (worked, paused) == ("forward", "pause")
        assert pause >= 3 * duration
