"""The demo, small: the whole job on the real model, four processes, and every figure it prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import orbitsplit as osp
from orbitsplit.__main__ import main
from orbitsplit._cli import demo
from orbitsplit.calibration import _calibrate

CUTS = (1, 5, 9, 13, 17)


@pytest.mark.real_model
@pytest.mark.timeout(600)
def test_demo_plans_runs_and_keeps_every_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # One level at some of the cuts, fitted to few rows and measured on one: a user's demo has two levels at all cuts
    # and more rows, and takes minutes on a slow machine.
    calibrate = osp.calibrate
    monkeypatch.setattr(osp, "calibrate", lambda *given, **named: calibrate(*given, **named | {"cuts": CUTS}))
    monkeypatch.setattr(demo, "_FIT_ROWS", 4)
    monkeypatch.setattr(demo, "_MEASURED_ROWS", 1)
    monkeypatch.setattr(demo, "_LEVELS", (3.2,))
    monkeypatch.setattr("orbitsplit._cli.demo_cache.kept_folder", lambda: tmp_path / "kept")
    monkeypatch.setattr(_calibrate, "_COMPOSITES", 4)
    command = ["orbitsplit", "demo", "--prompt-tokens", "32", "--new-tokens", "4"]
    monkeypatch.setattr(sys, "argv", [*command, "-o", str(tmp_path / "out"), "--json"])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert not exit_info.value.code
    printed = json.loads(capsys.readouterr().out)
    plan = osp.Plan.from_dict(printed["plan"])
    assert len(plan.stages) == 4
    assert plan.prediction is not None
    assert plan.prediction.status == "optimal"
    for alternative in printed["alternatives"]:
        assert alternative["breaks"] or alternative["total_s"] >= plan.prediction.total_s * (1 - 1e-9)
    assert sum(name["name"].startswith("all on") and "needs" in name["breaks"] for name in printed["alternatives"]) == 4
    for stage in printed["run"]["stages"]:
        # The stated overhead of a process is what was resident before its stage: interpreter and libraries.
        assert stage["peak_bytes"] <= stage["memory_bytes"] + stage["baseline_bytes"]
    chunks = 1 if plan.chunk_tokens is None else -(-32 // plan.chunk_tokens)
    for link in printed["run"]["links"]:
        assert link["frames"] == plan.workload.micro_batches * (chunks + 4 - 1)  # the last chunk yields the first token
    assert len(printed["texts"]) == 4
    # The machine may be busy, so this only catches a prediction of something else; the demo prints the ratio.
    assert 0.5 < printed["run"]["total_s"] / plan.prediction.total_s < 3
    assert osp.Plan.load(tmp_path / "out" / "plan.json") == plan
    assert osp.Trace.load(tmp_path / "out" / "trace.json").nodes == tuple(stage.node for stage in plan.stages)
    assert (tmp_path / "out" / "timeline.png").read_bytes().startswith(b"\x89PNG")
    assert "How good it is" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    book, profile = sorted((tmp_path / "kept").iterdir(), key=lambda file: file.suffix, reverse=True)
    assert osp.Codebook.load(book).cuts == CUTS
    assert osp.ModelProfile.load(profile).is_measured
