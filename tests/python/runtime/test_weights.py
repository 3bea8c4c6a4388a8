"""Stages with different weights in one pipeline; the judge chains the same stages in one process."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import orbitsplit as osp
from orbitsplit._models.stage import StageModel
from orbitsplit.runtime._messages.control_store import ControlStore
from orbitsplit.runtime._parent.session import Settings
from orbitsplit.runtime._worker.process import Worker
from orbitsplit.runtime._worker.telemetry import HeartbeatThread
from tests.support.tiny_models import LAYERS, one_thread, save_tiny_model, tiny_prompts

NEW = 12
LONG, STRUCK_AFTER = 100, 10
WEIGHTS = (None, "int8", "int4")


@pytest.fixture(scope="module")
def directories(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, Path]:
    """Return the folders of a tiny model in float32 (None), in 8 and in 4 bits."""
    folder = tmp_path_factory.mktemp("weights")
    made = {name: osp.convert(directory, folder / name, weights=name) for name in ("int8", "int4")}
    return {None: directory, **made}


@pytest.fixture(scope="module")
def tuned(directories: dict[str | None, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model of the same shape, whose weights differ a little."""
    folder = tmp_path_factory.mktemp("tuned") / "tuned"
    shutil.copytree(cast(Path, directories[None]), folder)
    for file in folder.glob("*.safetensors"):
        save_file({name: 1.01 * tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    return folder


def mixed_plan(directories: dict[str | None, Path], weights: tuple[str | None, ...] = WEIGHTS) -> osp.Plan:
    plan = osp.Plan.manual(cuts=[1, 3], layers=LAYERS)
    stages = [replace(stage, weights=name) for stage, name in zip(plan.stages, weights, strict=True)]
    models = {name: str(path) for name, path in directories.items() if name is not None}
    return replace(plan, stages=tuple(stages), weight_models=models)


def chained(
    directories: dict[str | None, Path],
    plan: osp.Plan,
    ids: Tensor,
    mask: Tensor,
    *,
    new_tokens: int = NEW,
    known: Tensor | None = None,
) -> Tensor:
    """Return the prompts and the greedy tokens of the stages one after the other, in this process.

    The first new tokens are those that are `known` [B, K], whatever the stages would say.
    """
    stages = [StageModel.load(directories[stage.weights], stage.start, stage.stop) for stage in plan.stages]
    caches = [stage.new_cache() for stage in stages]
    tokens, new = ids, ids
    with one_thread():
        for step in range(new_tokens):
            x = new
            for stage, cache in zip(stages, caches, strict=True):
                x = stage.forward(x, mask, cache)
            is_known = known is not None and step < known.shape[1]
            new = known[:, step : step + 1] if known is not None and is_known else x.argmax(-1, keepdim=True)
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


@dataclass
class Planned:
    """A plan of three stages in float32, 8 and 4 bits, what makes the plan after a loss, and prompts."""

    plan: osp.Plan
    replan: Callable[..., osp.Plan]
    ids: Tensor
    mask: Tensor


@pytest.fixture(scope="module")
def planned(directories: dict[str | None, Path]) -> Planned:
    profiles = {name: osp.profile(path, prompt_tokens=7) for name, path in directories.items()}
    network = osp.Network(
        "three",
        tuple(osp.Node(f"n{k}", 10**9, flop_per_s=1e12, memory_bytes_per_s=1e6) for k in range(3)),
        tuple(osp.Link(f"n{a}", f"n{b}", 1e7) for a in range(3) for b in range(3) if a != b),
    )
    # The fewer bytes, the sooner; and each precision is free of loss where the next one is, and in front of that.
    loss = {"int8": [1, 1, 0, 0, 0, 0], "int4": [1, 1, 1, 1, 0, 0]}
    options = {name: osp.WeightOption(profile=profiles[name], loss=of) for name, of in loss.items()}
    workload = osp.Workload(prompt_tokens=7, new_tokens=LONG)
    pins = {"n0": [0, 1], "n1": [2, 3], "n2": [4, 5]}
    plan = osp.plan(profiles[None], network, workload, weights=options, pins=pins)
    assert [stage.weights for stage in plan.stages] == list(WEIGHTS)
    return Planned(plan, osp.replanner(profiles[None], network, weights=options, pins=pins), *tiny_prompts((7,)))


def test_stages_may_have_other_weights_after_a_loss(directories: dict[str | None, Path], planned: Planned) -> None:
    ids, mask = planned.ids, planned.mask
    arrived: list[Tensor] = []

    def on_tokens(tokens: Tensor) -> None:
        arrived.append(tokens)
        if len(arrived) == STRUCK_AFTER:
            os.kill(pipe.pids[2], signal.SIGKILL)

    with osp.Pipeline(planned.plan, replan=planned.replan) as pipe:
        running = pipe.submit(ids, mask, max_new_tokens=LONG, eos_token_id=(), on_tokens=on_tokens)
        tokens = running.result(timeout_s=60)
        (recovery,) = pipe.recoveries
        after = pipe.plan
        again = pipe.generate(ids, mask, max_new_tokens=NEW, eos_token_id=())
    assert recovery.after == after
    assert [(stage.node, stage.start, stage.stop, stage.weights) for stage in after.stages] == [
        ("n0", 0, 2, None),
        ("n1", 2, 6, "int8"),
    ]
    assert after.weight_models == {"int8": str(directories["int8"])}
    # A new request gets what the new stages say; the one in flight, from the tokens it had on.
    assert torch.equal(again, chained(directories, after, ids, mask))
    alone = chained(directories, planned.plan, ids, mask, new_tokens=LONG)
    assert not torch.equal(tokens, alone)
    same = int((tokens == alone).int().cumprod(1).sum()) - ids.shape[1]
    assert same >= STRUCK_AFTER
    possible = (
        chained(directories, after, ids, mask, new_tokens=LONG, known=alone[:, ids.shape[1] :][:, :count])
        for count in range(same, STRUCK_AFTER - 1, -1)
    )
    assert any(torch.equal(tokens, one) for one in possible)


def test_a_plan_after_a_loss_has_weights_of_one_model_too(directories: dict[str | None, Path], tuned: Path) -> None:
    settings = Settings(model=cast(Path, directories[None]))
    plan = mixed_plan({**directories, "int4": osp.convert(tuned, tuned.parent / "int4", weights="int4")})
    with pytest.raises(ValueError, match="'int8' and 'int4' were converted from different models"):
        settings.setup(plan, (0, 1, 2), codecs=None, origin_s=None)


def test_stages_of_another_model_than_the_weights_were_made_of_are_refused(
    directories: dict[str | None, Path], tuned: Path
) -> None:
    with pytest.raises(osp.TransportError, match=r"converted from another model than .*tuned, of which layer 0 has"):
        osp.Pipeline(mixed_plan(directories), tuned)


def test_weights_of_another_model_are_refused(directories: dict[str | None, Path], tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "other", num_hidden_layers=LAYERS + 2)
    plan = mixed_plan({**directories, "int8": tmp_path / "other"})
    with pytest.raises(ValueError, match=f"the plan has {LAYERS + 2} layers, .*other has {LAYERS + 4}"):
        osp.Pipeline(plan, directories[None])
    missing = mixed_plan({**directories, "int8": tmp_path / "missing"})
    with pytest.raises(FileNotFoundError, match="missing"):
        osp.Pipeline(missing, directories[None])


def test_weights_converted_from_another_model_are_refused(directories: dict[str | None, Path], tuned: Path) -> None:
    # A fine-tune of the same shape runs, and would say something that neither of the models says.
    plan = mixed_plan({**directories, "int4": osp.convert(tuned, tuned.parent / "int4-too", weights="int4")})
    with pytest.raises(ValueError, match="'int8' and 'int4' were converted from different models"):
        osp.Pipeline(plan, directories[None])


def test_a_plan_with_weights_is_not_replanned_without_them(directories: dict[str | None, Path]) -> None:
    network = osp.Network("two", tuple(osp.Node(f"n{k}", 10**9, flop_per_s=1e9) for k in range(2)), ())
    replan = osp.replanner(osp.profile(directories[None], prompt_tokens=7), network)
    with pytest.raises(ValueError, match="stages have weights of their own, int4, int8: give the replanner weights="):
        replan(mixed_plan(directories), [], [])


def test_a_machine_loads_its_own_copies_of_models(directories: dict[str | None, Path]) -> None:
    there = mixed_plan(dict.fromkeys(directories, Path("/there")))
    setup = Settings(model="/there").setup(mixed_plan(directories), (0, 1, 2), codecs=None, origin_s=None)
    store = ControlStore.host()
    own = {"int8": str(directories["int8"])}
    worker = Worker(
        store.address, 0, HeartbeatThread(store.address, 0), model=directories[None], codebook=None, weight_models=own
    )
    first, second, third = there.stages
    assert worker._model_of(setup, first, there) == str(directories[None])
    assert worker._model_of(setup, second, there) == str(directories["int8"])
    with pytest.raises(FileNotFoundError, match="/there"):  # of int4 it has none
        worker._model_of(setup, third, there)
