"""Plans as settings of other engines, run by those that there are for a CPU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch.distributed.pipelining import SplitPoint, pipeline
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

import orbitsplit as osp
from tests.support.tiny_models import LAYERS, tiny_model

PLAN = osp.Plan.manual(cuts=[1, 3], layers=LAYERS, nodes=["a", "b", "c"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(path)
    return path


def test_accelerate_runs_the_device_map(folder: Path, tmp_path: Path) -> None:
    made = PLAN.export("accelerate", model=folder, devices=["cpu", "disk", "cpu"])
    device_map = made.settings["device_map"]
    model = AutoModelForCausalLM.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path / "offloaded")
    assert {name: str(device) for name, device in model.hf_device_map.items()} == device_map
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, tiny_model()(ids).logits)
    layers = {name: device for name, device in device_map.items() if re.search(r"\.\d+$", name)}
    assert list(layers.values()) == ["cpu", "disk", "disk", *["cpu"] * (LAYERS - 3)]
    assert eval(made.text.partition("=")[2]) == device_map


def test_devices_of_accelerate_are_numbers_by_default(folder: Path) -> None:
    device_map = PLAN.export("accelerate", model=folder).settings["device_map"]
    assert set(device_map.values()) == {0, 1, 2}


def test_torch_splits_at_the_points(folder: Path) -> None:
    made = PLAN.export("torch", model=folder)
    points = {name: SplitPoint[point] for name, point in made.settings["split_spec"].items()}
    model = AutoModelForCausalLM.from_pretrained(folder, use_cache=False).eval()
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        split = pipeline(model, mb_args=(ids,), mb_kwargs={"use_cache": False}, split_spec=points)
        assert split.num_stages == 3
        logits, *_ = tree_leaves(split(ids, use_cache=False))
    assert torch.allclose(logits, expected, atol=1e-6)


def test_vllm_gets_transformer_layers_of_each_rank() -> None:
    # vLLM takes as many numbers as ranks, which add up to the transformer layers (get_pp_indices).
    made = PLAN.export("vllm", model="a/model")
    partition = [int(count) for count in made.settings["VLLM_PP_LAYER_PARTITION"].split(",")]
    assert partition == [1, 2, LAYERS - 3]
    assert len(partition) == made.settings["pipeline_parallel_size"]
    assert made.text == f"VLLM_PP_LAYER_PARTITION=1,2,{LAYERS - 3} vllm serve a/model --pipeline-parallel-size 3"
    assert made.nodes == ("a", "b", "c")


def llama_device(layer: int, layers: int, shares: list[int]) -> int:
    """Return the device of a layer as llama.cpp finds it (llama-model.cpp, load_tensors); the last is the output."""
    total = sum(shares)
    ends = [sum(shares[: k + 1]) / total for k in range(len(shares))]
    return next(k for k, end in enumerate(ends) if end > layer / (layers + 1))


@pytest.mark.parametrize("cuts", [[1, 3], [2, LAYERS], [0, 2], [1, 2]])
def test_llama_cpp_puts_each_layer_on_the_device_of_its_stage(cuts: list[int]) -> None:
    plan = osp.Plan.manual(cuts=cuts, layers=LAYERS)
    made = plan.export("llama.cpp", devices=["RPC0[10.0.0.1:50052]", "CUDA0", "CPU"])
    shares = made.settings["tensor_split"]
    assert made.settings["n_gpu_layers"] == LAYERS + 1
    for k, stage in enumerate(plan.stages):
        for layer in range(max(stage.start, 1), min(stage.stop, LAYERS + 1)):
            assert llama_device(layer - 1, LAYERS, shares) == k
    assert llama_device(LAYERS, LAYERS, shares) == 2  # the output
    placed = {}
    for override in made.settings["overrides"]:
        pattern, _, device = override.partition("=")
        placed |= {layer: device for layer in range(LAYERS) if re.search(pattern, f"blk.{layer}.attn_q.weight")}
    devices = ["RPC0[10.0.0.1:50052]", "CUDA0", "CPU"]
    for k, stage in enumerate(plan.stages):
        for layer in range(max(stage.start, 1), min(stage.stop, LAYERS + 1)):
            assert placed.pop(layer - 1) == devices[k]
    assert placed == {}


def test_nodes_are_rpc_servers_of_llama_cpp_by_default() -> None:
    made = PLAN.export("llama.cpp")
    first, *overrides = made.text.splitlines()
    assert first.startswith("--rpc a:50052,b:50052,c:50052 --n-gpu-layers 5 --split-mode layer --tensor-split 1,2,2")
    assert overrides == [
        r"-ot 'blk\.(0)\.=RPC0[a:50052]'", r"-ot 'blk\.(1|2)\.=RPC0[b:50052]'", r"-ot 'blk\.(3)\.=RPC0[c:50052]'"
    ]  # fmt: skip


def test_what_an_engine_cannot_do_is_said() -> None:
    stages = (osp.PlanStage("a", 0, 2, codec="int8"), osp.PlanStage("b", 2, LAYERS + 2, weights="int4"))
    plan = osp.Plan(stages, (osp.PlanLink(),), LAYERS + 2, weight_models={"int4": "m"}, chunk_tokens=16, draft_tokens=2)
    text = "\n".join(plan.export("llama.cpp").not_exported)
    for part in (
        "behind layer 1 uncompressed, the plan has codec int8",
        "the plan has int4 on b",
        "chunks of 16 tokens",
        "2 guesses",
        "embeddings on the machine",
    ):
        assert part in text


def test_wrong_exports_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="engine is 'tgi'"):
        PLAN.export("tgi")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="devices are 1, the plan has 3 stages"):
        PLAN.export("llama.cpp", devices=["CPU"])
    with pytest.raises(ValueError, match="names no model, whose modules have the names"):
        PLAN.export("torch")
    with pytest.raises(ValueError, match=f"has {LAYERS} layers, the plan is for 9"):
        osp.Plan.manual(cuts=[2], layers=9).export("accelerate", model=folder)
    with pytest.raises(ValueError, match="stage on 'node 0' has no transformer layer, a rank of vLLM has at least one"):
        osp.Plan.manual(cuts=[0], layers=LAYERS).export("vllm")
