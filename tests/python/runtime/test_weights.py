"""Stages with different weights in one pipeline; the judge chains the same stages in one process."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import orbitsplit as osp
from orbitsplit._models.stage import StageModel
from tests.support.tiny_models import LAYERS, one_thread, save_tiny_model, tiny_prompts

pytestmark = pytest.mark.timeout(120)

NEW = 12
WEIGHTS = (None, "int8", "int4")


@pytest.fixture(scope="module")
def directories(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, Path]:
    """Return the folders of a tiny model in float32 (None), in 8 and in 4 bits."""
    folder = tmp_path_factory.mktemp("weights")
    made = {name: osp.convert(directory, folder / name, weights=name) for name in ("int8", "int4")}
    return {None: directory, **made}


def mixed_plan(directories: dict[str | None, Path], weights: tuple[str | None, ...] = WEIGHTS) -> osp.Plan:
    plan = osp.Plan.manual(cuts=[1, 3], layers=LAYERS)
    stages = [replace(stage, weights=name) for stage, name in zip(plan.stages, weights, strict=True)]
    models = {name: str(path) for name, path in directories.items() if name is not None}
    return replace(plan, stages=tuple(stages), weight_models=models)


def chained(directories: dict[str | None, Path], plan: osp.Plan, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the prompts and the greedy tokens of the stages one after the other, in this process."""
    stages = [StageModel.load(directories[stage.weights], stage.start, stage.stop) for stage in plan.stages]
    caches = [stage.new_cache() for stage in stages]
    tokens, new = ids, ids
    with one_thread():
        for _ in range(NEW):
            x = new
            for stage, cache in zip(stages, caches, strict=True):
                x = stage.forward(x, mask, cache)
            new = x.argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, new], dim=1)
            mask = torch.cat([mask, torch.ones(len(ids), 1, dtype=mask.dtype)], dim=1)
    return tokens


def test_each_stage_loads_the_weights_of_the_plan(directories: dict[str | None, Path]) -> None:
    plan = mixed_plan(directories)
    ids, mask = tiny_prompts((7, 7))
    expected = chained(directories, plan, ids, mask)
    # Other weights say something else, or this test could not tell which were loaded.
    for others in ((None, None, None), (None, "int8", "int8"), (None, "int4", "int4")):
        assert not torch.equal(chained(directories, mixed_plan(directories, others), ids, mask), expected)
    with osp.Pipeline(plan, directories[None]) as pipe:
        tokens = pipe.generate(ids, mask, max_new_tokens=NEW, eos_token_id=())
        assert pipe.plan == plan
    assert torch.equal(tokens, expected)


def test_a_plan_from_weights_runs_as_it_was_saved(directories: dict[str | None, Path], tmp_path: Path) -> None:
    names = ("int8", "int4")
    profiles = {name: osp.profile(path, prompt_tokens=7, batch_size=2) for name, path in directories.items()}
    network = osp.Network(
        "three",
        tuple(osp.Node(f"n{k}", 10**9, flop_per_s=1e9) for k in range(3)),
        tuple(osp.Link(f"n{a}", f"n{b}", 1e7) for a in range(3) for b in range(3) if a != b),
    )
    # Only one precision is free of loss at each layer, so that every layer has to have that one.
    loss = {"int8": [1, 1, 0, 0, 1, 1], "int4": [1, 1, 1, 1, 0, 0]}
    options = {name: osp.WeightOption(profile=profiles[name], loss=loss[name]) for name in names}
    workload = osp.Workload(prompt_tokens=7, new_tokens=NEW, batch_size=2)
    pins = {"n0": [0, 1], "n1": [2, 3], "n2": [4, 5]}
    plan = osp.plan(profiles[None], network, workload, weights=options, pins=pins)
    plan.save(tmp_path / "plan.json")
    plan = osp.Plan.load(tmp_path / "plan.json")
    ids, mask = tiny_prompts((7, 7))
    with osp.Pipeline(plan) as pipe:
        tokens = pipe.generate(ids, mask, max_new_tokens=NEW, eos_token_id=())
    assert torch.equal(tokens, chained(directories, plan, ids, mask))


def test_weights_of_another_model_are_refused(directories: dict[str | None, Path], tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "other", num_hidden_layers=LAYERS + 2)
    plan = mixed_plan({**directories, "int8": tmp_path / "other"})
    with pytest.raises(ValueError, match=f"the plan has {LAYERS + 2} layers, .*other has {LAYERS + 4}"):
        osp.Pipeline(plan, directories[None])
    missing = mixed_plan({**directories, "int8": tmp_path / "missing"})
    with pytest.raises(FileNotFoundError, match="missing"):
        osp.Pipeline(missing, directories[None])


def test_weights_converted_from_another_model_are_refused(directories: dict[str | None, Path], tmp_path: Path) -> None:
    # A fine-tune of the same shape runs, and would say something that neither of the models says.
    shutil.copytree(cast(Path, directories[None]), tmp_path / "tuned")
    for file in (tmp_path / "tuned").glob("*.safetensors"):
        save_file({name: 1.01 * tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    tuned = osp.convert(tmp_path / "tuned", tmp_path / "int4", weights="int4")
    plan = mixed_plan({**directories, "int4": tuned})
    with pytest.raises(ValueError, match="'int8' and 'int4' were converted from different models"):
        osp.Pipeline(plan, directories[None])


def test_a_plan_with_weights_is_not_replanned_without_them(directories: dict[str | None, Path]) -> None:
    network = osp.Network("two", tuple(osp.Node(f"n{k}", 10**9, flop_per_s=1e9) for k in range(2)), ())
    replan = osp.replanner(osp.profile(directories[None], prompt_tokens=7), network)
    with pytest.raises(ValueError, match="stages have weights of their own, int4, int8: give the replanner weights="):
        replan(mixed_plan(directories), [], [])
