"""Commands on plans whose stages have weights of their own: verify, and what run and serve read."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import orbitsplit as osp
from orbitsplit.__main__ import main
from orbitsplit._cli.inputs import RunFiles, replan_within, weight_options
from orbitsplit._models.architecture import find_layers
from orbitsplit._models.fingerprint import hash_layers
from tests.support.books_by_hand import book_by_hand
from tests.support.tiny_models import HIDDEN, LAYERS, load_unsplit

WEIGHTS = ("--weights", "int8=int8.json")


@pytest.fixture(scope="module")
def made(input_files: Path) -> Path:
    """Return the folder of input files, with a model in 8 bits, its profile, what it loses, and a plan with it."""
    if not (input_files / "weights.json").exists():
        osp.convert(input_files / "my-model", input_files / "my-model-int8")
        profile = osp.profile(input_files / "my-model-int8", prompt_tokens=16)
        replace(profile, model="./my-model-int8").save(input_files / "int8.json")
        hashes = hash_layers(dict(enumerate(find_layers(load_unsplit(input_files / "my-model"))[1])))
        levels = {2: [("half", 8.0, 0.004)]}
        book = book_by_hand(levels, layers=LAYERS, width=HIDDEN, layer_hashes=list(hashes.values()))
        book.weights["int8"] = osp.WeightLosses(loss=(0.001,) * (LAYERS + 2), loss_error=(0.0,) * (LAYERS + 2))
        book.save(input_files / "weights.safetensors")
        plan = osp.Plan.manual([2], LAYERS, nodes=["a", "b"])
        stages = (replace(plan.stages[0], weights="int8"), plan.stages[1])
        workload = osp.Workload(prompt_tokens=16, new_tokens=4)
        models = {"int8": "./my-model-int8"}
        plan = replace(plan, stages=stages, weight_models=models, model="my-model", workload=workload)
        plan.save(input_files / "weights.json")
    return input_files


@pytest.fixture
def folder(made: Path, inputs: Path) -> Path:
    return inputs


def orbitsplit(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["orbitsplit", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


VERIFY = ("verify", "weights.json", "--text", "held-out.txt", "--json")
PLANNER = ("--profile", "profile.json", "--network", "network.toml", "--codebook", "weights.safetensors")


def test_verify_measures_weights_and_plans_again_with_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert orbitsplit(monkeypatch, *VERIFY, "--max-accuracy-drop", "1") == 0
    (trial,) = json.loads(capsys.readouterr().out)["trials"]
    assert trial["loss"] > 0
    assert trial["bits_per_element"] == 32.0
    # The same model elsewhere.
    (folder / "my-model-int8").rename(folder / "elsewhere")
    assert orbitsplit(monkeypatch, *VERIFY, "--max-accuracy-drop", "1") == 2
    assert "my-model-int8" in capsys.readouterr().err
    elsewhere = ("--weight-model", "int8=./elsewhere")
    asked = ("--max-accuracy-drop", "1", *elsewhere, *PLANNER, *WEIGHTS, "-o", "out.json")
    assert orbitsplit(monkeypatch, *VERIFY, *asked) == 0
    assert json.loads(capsys.readouterr().out)["trials"][0]["loss"] == trial["loss"]
    assert osp.Plan.load("out.json").weight_models == {"int8": "./elsewhere"}


def test_plans_with_other_weights_are_made_within_the_budget(folder: Path) -> None:
    book = osp.Codebook.load("weights.safetensors")
    plan = osp.Plan.load("weights.json")
    replan = replan_within(plan, book, Path("profile.json"), Path("network.toml"), ["int8=int8.json"], [])
    assert replan is not None
    # Decoding reads weights at no limited rate here, so that floats are as fast, and lose nothing.
    assert {stage.weights for stage in replan(0.0).stages} == {None}
    slow = 'compute = "1 TFLOP/s"\nmemory_bandwidth = "1 kB/s"'
    network = (folder / "network.toml").read_text().replace('compute = "10 MFLOP/s"', slow)
    (folder / "network.toml").write_text(network)
    replan = replan_within(plan, book, Path("profile.json"), Path("network.toml"), ["int8=int8.json"], [])
    assert replan is not None
    found = replan(0.006)
    assert {stage.weights for stage in found.stages} == {"int8"}
    assert found.prediction is not None
    assert found.prediction.loss == pytest.approx(0.001 * (LAYERS + 2))
    assert found.workload == plan.workload


def test_what_a_new_plan_needs_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert orbitsplit(monkeypatch, *VERIFY, *PLANNER, "--max-accuracy-drop", "1") == 2
    assert (
        "stages of the plan have weights of their own, int8: give --weights NAME=PROFILE too" in capsys.readouterr().err
    )
    assert orbitsplit(monkeypatch, *VERIFY, *WEIGHTS, "--max-accuracy-drop", "1") == 2
    assert "to compute a new plan, give --profile, --network and --codebook" in capsys.readouterr().err


def run_files(**changes: Any) -> RunFiles:
    plain: dict[str, Any] = dict.fromkeys(("model", "codebook", "links", "profile", "network"))
    return RunFiles(**{"plan": Path("weights.json"), **plain, **changes})


AFTER_A_LOSS = {
    "profile": Path("profile.json"),
    "network": Path("network.toml"),
    "codebook": Path("weights.safetensors"),
}


def test_a_run_resumes_with_the_weights_that_are_given(folder: Path) -> None:
    inputs = run_files(**AFTER_A_LOSS, weights=["int8=int8.json"]).load()
    assert inputs.replan is not None
    found = inputs.replan(inputs.plan, ["b"], [])
    assert [stage.node for stage in found.stages] == ["a"]
    with pytest.raises(ValueError, match="weights of their own, int8: to resume after a loss, give their profiles"):
        run_files(**AFTER_A_LOSS).load()
    with pytest.raises(ValueError, match="--weights is for plans after a loss: give --profile and --network"):
        run_files(weights=["int8=int8.json"]).load()
    # A plan without weights needs none, and may get some.
    inputs = run_files(**AFTER_A_LOSS, plan=Path("plan.json"), weights=["int8=int8.json"]).load()
    assert inputs.replan is not None
    inputs.replan(inputs.plan, ["b"], [])


def test_a_machine_says_where_it_has_the_models_of_weights(folder: Path) -> None:
    assert run_files().load().plan.weight_models == {"int8": "./my-model-int8"}
    (folder / "my-model-int8").rename(folder / "elsewhere")
    with pytest.raises(FileNotFoundError, match="my-model-int8"):
        run_files().load()
    assert run_files(weight_models=["int8=./elsewhere"]).load().plan.weight_models == {"int8": "./elsewhere"}
    for given, message in (
        (["int4=./elsewhere"], "--weight-model int4 is of no weights of the plan, which has int8"),
        (["elsewhere"], "--weight-model is 'elsewhere', expected NAME=MODEL"),
        (["int8=./elsewhere", "int8=./elsewhere"], "--weight-model int8 is given twice"),
    ):
        with pytest.raises(ValueError, match=message):
            run_files(weight_models=given).load()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run_files(weight_models=["int8=./nowhere"]).load()


def test_plans_after_a_loss_have_the_models_of_this_machine(folder: Path) -> None:
    # Of weights that the running plan does not have, too.
    book = osp.Codebook.load("weights.safetensors")
    assert weight_options(["int8=int8.json"], book, {"int8": "./elsewhere"})["int8"].model == "./elsewhere"
    (folder / "my-model-int8").rename(folder / "elsewhere")
    given = {**AFTER_A_LOSS, "weights": ["int8=int8.json"], "weight_models": ["int8=./elsewhere"]}
    inputs = run_files(**given, plan=Path("plan.json")).load()
    assert inputs.plan.weight_models == {}


def test_another_rank_loads_what_its_machine_has(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def run_worker(rank: int, **options: Any) -> None:
        asked.update(options, rank=rank)
        sys.exit(0)

    monkeypatch.setattr("orbitsplit.runtime._torchrun.run_worker", run_worker)
    monkeypatch.setattr("orbitsplit._cli.running.torchrun_rank", lambda: 1)
    given = ("--model", "./my-model", "--weight-model", "int8=./my-model-int8")
    assert orbitsplit(monkeypatch, "run", "weights.json", "--prompt", "x", *given) == 0
    models = {"int8": "./my-model-int8"}
    assert asked == {"rank": 1, "model": "./my-model", "codebook": None, "weight_models": models}
    assert orbitsplit(monkeypatch, "run", "weights.json", "--prompt", "x", "--weight-model", "int8=./nowhere") == 2
