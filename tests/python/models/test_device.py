"""Stages on another device: every tensor of a forward is there, what enters and leaves is the processor's.

No machine of the tests has a GPU; see `tests/support/fake_device.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

import orbitsplit as osp
from orbitsplit._models import stage as stage_module
from orbitsplit._models.device import device_peak_bytes, device_title, open_device, to_host
from orbitsplit._models.layouts import find_layout
from orbitsplit._models.source import read_config
from orbitsplit._models.stage import StageModel
from tests.support.fake_device import CHECKED
from tests.support.tiny_models import LAYERS, save_tiny_model


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    """Why each check fails, "" if it does not."""
    program = [sys.executable, "-m", "tests.support.fake_device"]
    output = subprocess.run(program, capture_output=True, text=True, timeout=300, check=True).stdout
    found: dict[str, str] = json.loads(output)
    return found


@pytest.mark.parametrize("kind", ["steps", "padded", "forward"])
@pytest.mark.parametrize("family", CHECKED)
def test_all_of_a_forward_is_on_the_device(family: str, kind: str, outcomes: dict[str, str]) -> None:
    assert outcomes[f"{family} {kind}"] == ""


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_all_of_a_forward_of_several_sequences_is_on_the_device(family: str, outcomes: dict[str, str]) -> None:
    assert outcomes[f"{family} packs"] == ""


def test_the_judge_finds_a_weight_that_stayed_on_the_processor(outcomes: dict[str, str]) -> None:
    assert outcomes["left behind"] == ""


def test_what_is_on_the_processor_is_not_copied() -> None:
    x = torch.ones(3)
    assert to_host(x) is x
    assert device_peak_bytes("cpu") == 0
    assert device_title("cpu") is None


@pytest.mark.parametrize("name", ["cuda:99", "mps"])
def test_a_device_that_is_not_here_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"there is no device {name} here"):
        open_device(name)
    save_tiny_model(tmp_path, "llama")
    with pytest.raises(ValueError, match=f"there is no device {name} here"):
        StageModel.load(tmp_path, 0, 3, device=name)


def test_a_pipeline_of_a_device_that_is_not_here_does_not_start(tmp_path: Path) -> None:
    save_tiny_model(tmp_path, "llama")
    plan = osp.Plan.manual([2], LAYERS)
    stages = (plan.stages[0], osp.PlanStage("gpu", 3, LAYERS + 2, device="cuda:99"))
    plan = osp.Plan(stages=stages, links=plan.links, layers=plan.layers)
    with pytest.raises(osp.TransportError, match='node "gpu" has device cuda:99: there is no device cuda:99 here'):
        osp.Pipeline(plan, tmp_path)


def test_quantised_weights_stay_on_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny_model(tmp_path / "float", "llama")
    osp.convert(tmp_path / "float", tmp_path / "int8", weights="int8")
    monkeypatch.setattr(stage_module, "open_device", lambda _name: torch.device("cuda"))
    with pytest.raises(ValueError, match="quantised weights run on the processor alone, not on cuda"):
        StageModel.load(tmp_path / "int8", 0, 3, device="cuda")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "cuda:01", "cuda:256", "CUDA", ""])
def test_other_names_of_devices_are_refused(device: str) -> None:
    with pytest.raises(ValueError, match="device of node 'n' is"):
        osp.Node("n", memory_bytes=1, slowdown=1.0, device=device)
    with pytest.raises(ValueError, match="device of node"):
        osp.PlanStage("n", 0, 1, device=device)
    with pytest.raises(ValueError, match="device is"):
        osp.profile("missing", device=device)


def test_the_device_of_a_node_is_that_of_its_stage(tmp_path: Path) -> None:
    text = """
[[nodes]]
name = "sat-0"
memory = "1 GB"
slowdown = 1.0
device = "cuda:1"
"""
    (tmp_path / "network.toml").write_text(text)
    network = osp.Network.load(tmp_path / "network.toml")
    assert network.nodes[0].device == "cuda:1"
    assert osp.Network.from_toml(network.to_toml()) == network
    stage = osp.PlanStage("sat-0", 0, 3, device="cuda:1")
    plan = osp.Plan(stages=(stage,), links=(), layers=3)
    assert plan.to_dict()["stages"][0]["device"] == "cuda:1"
    assert osp.Plan.from_dict(plan.to_dict()) == plan
    assert "device" not in osp.Plan.manual([], 1).to_dict()["stages"][0]


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (LAYERS + 1, LAYERS + 2)])
def test_ends_of_a_model_have_no_steps_of_the_core_elsewhere(start: int, stop: int, tmp_path: Path) -> None:
    """Regression: a stage without layers of its own compared tensors of two devices when it was loaded."""
    save_tiny_model(tmp_path, "llama")
    stage = StageModel.load(tmp_path, start, stop)
    stage.device, stage._steps = torch.device("cuda"), None
    stage._prepare_steps(find_layout(read_config(tmp_path)))
    assert stage._steps is None


def test_weights_of_other_formats_are_not_planned_for_other_devices() -> None:
    profile = osp.profile(transformers.LlamaConfig(num_hidden_layers=2, vocab_size=64, hidden_size=32))
    nodes = (osp.Node("gpu", memory_bytes=10**9, flop_per_s=1e12, device="cuda"),)
    option = osp.WeightOption(profile=profile, loss=(0.0,) * 4, model="int8")
    with pytest.raises(ValueError, match="run on processors alone, and node 'gpu' has device cuda"):
        osp.plan(profile, osp.Network(name="one", nodes=nodes), weights={"int8": option}, loss_budget=1.0)
