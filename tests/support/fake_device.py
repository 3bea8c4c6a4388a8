"""Stages on a device that is not there: run as a program, it prints for each family what went wrong, as JSON.

torch's fake tensors have a device and no values: an operation on tensors of two devices fails as it does on a GPU, and
results have the device that they would have there. The device is the one that torch keeps for others' backends, since
a build for processors alone has no part of CUDA; registering it changes torch for the whole process.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from transformers.cache_utils import Cache

from orbitsplit._models import model_part
from orbitsplit._models.stage import StageModel

from .tiny_models import LAYERS, save_tiny_model

DEVICE = torch.device("privateuseone", 0)
ROWS, PROMPT = 2, 9
_tensor, _SCALAR = torch.tensor, torch.zeros((), dtype=torch.long)
# One of each kind: rotary, learned and ALiBi positions, sliding windows. The others of `FAMILIES` pass as well, but
# for Falcon (an index by a list, which torch copies to a real device) and experts (chosen by values: there are none).
CHECKED = ("llama", "gemma3_text", "gpt2", "bloom")


def move(stage: StageModel, mode: FakeTensorMode) -> None:
    """Replace all weights and buffers of a stage by fake ones on the device; tied ones stay tied."""
    made: dict[int, Tensor] = {}

    def moved(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            made[id(tensor)] = mode.from_tensor(tensor.detach()).to(DEVICE)
        return made[id(tensor)]

    stage.device = DEVICE
    for module in stage.model.modules():
        if isinstance(module, model_part._Placeholder):
            module._device = DEVICE  # as `to` sets it
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(moved(parameter), requires_grad=False)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = moved(buffer)


def tensor(data: Any, *, device: Any = None, **options: Any) -> Tensor:
    """Make a tensor as `torch.tensor` does, which asks a device without kernels for memory."""
    made = _tensor(data, **options)
    return made if device is None else torch.empty(made.shape, dtype=made.dtype, device=device)


def new_cache(stage: StageModel, mode: FakeTensorMode) -> Cache:
    """Return a cache without a tensor of known value, which torch would copy to a real device."""
    cache = stage.new_cache(PROMPT + 3)
    for layer in cache.layers:
        if hasattr(layer, "_sliding_window_tensor"):
            layer._sliding_window_tensor = mode.from_tensor(_SCALAR)
    return cache


def check_steps(stages: list[StageModel], mode: FakeTensorMode) -> None:
    """Run a prompt in two chunks and two steps: what a stage gets and gives is the processor's, its cache is not."""
    caches = [new_cache(stage, mode) for stage in stages]
    for new, total in ((5, 5), (PROMPT - 5, PROMPT), (1, PROMPT + 1), (1, PROMPT + 2)):
        x: Tensor = torch.zeros(ROWS, new, dtype=torch.long)
        for stage, cache in zip(stages, caches, strict=True):
            x = stage.forward(x, torch.ones(ROWS, total, dtype=torch.long), cache)
            assert x.device.type == "cpu", f"{new} tokens leave on {x.device}"
    own = caches[1].layers[1]
    assert own.keys.device == own.values.device == DEVICE, "the cache is elsewhere"


def check_packs(stages: list[StageModel], mode: FakeTensorMode) -> None:
    """Run the first tokens of two sequences, and further ones, in one forward each."""
    caches = [[new_cache(stage, mode) for _ in range(ROWS)] for stage in stages]
    for starts, sizes in (((0, 0), (4, 2)), ((4, 2), (1, 3)), ((5, 5), (1, 1))):
        x: Tensor = torch.zeros(1, sum(sizes), dtype=torch.long)
        for stage, own in zip(stages, caches, strict=True):
            x = stage.forward_packed(x, own, starts, sizes, logits_at=range(sum(sizes)))
            assert x.device.type == "cpu", f"{sizes} tokens leave on {x.device}"


def check_forward(stages: list[StageModel], _mode: FakeTensorMode) -> None:
    """Run whole sequences without a cache."""
    inputs = {"input_ids": torch.zeros(ROWS, PROMPT, dtype=torch.long)}
    x: Tensor | None = None
    for stage in stages:
        output = stage.forward_once(x, inputs)
        x = output if isinstance(output, Tensor) else output["logits"]
        assert x.device.type == "cpu", f"it leaves on {x.device}"


def check_left_behind(stages: list[StageModel], mode: FakeTensorMode) -> None:
    """Leave one weight on the processor, which has to fail."""
    projection = stages[1].transformer_layers[1].mlp.up_proj
    projection.weight = nn.Parameter(projection.weight.to("cpu"), requires_grad=False)
    try:
        check_steps(stages, mode)
    except RuntimeError as error:
        if "same device" not in str(error):
            raise
    else:
        raise AssertionError("a weight on the processor was not found")


def outcome(family: str, check: Callable[[list[StageModel], FakeTensorMode], None], *, is_padded: bool = False) -> str:
    """Return why a check of a family fails, "" if it does not."""
    with tempfile.TemporaryDirectory() as folder:
        save_tiny_model(Path(folder), family)
        stages = [StageModel.load(folder, a, b) for a, b in pairwise((0, 2, 4, LAYERS + 2))]
    StageModel._is_padded = staticmethod(lambda _mask: is_padded)  # type: ignore[method-assign]  # a mask has no values here
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for stage in stages:
            move(stage, mode)
        torch.tensor = tensor
        try:
            check(stages, mode)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        finally:
            torch.tensor = _tensor
    return ""


def main() -> None:
    """Print the outcomes of all checks."""
    _setup_privateuseone_for_python_backend()
    for name in ("fuse_layers", "fuse_norms"):  # as `StageModel.load` leaves them out for another device
        setattr(model_part, name, lambda _: None)
    found = {f"{family} {kind}": "" for family in CHECKED for kind in ("steps", "padded", "forward")}
    is_padded = StageModel._is_padded
    for family in CHECKED:
        for kind, check in (("steps", check_steps), ("padded", check_steps), ("forward", check_forward)):
            StageModel._is_padded = staticmethod(is_padded)  # type: ignore[method-assign]
            found[f"{family} {kind}"] = outcome(family, check, is_padded=kind == "padded")
    for family in ("llama", "gemma3_text", "gpt2"):
        StageModel._is_padded = staticmethod(is_padded)  # type: ignore[method-assign]
        found[f"{family} packs"] = outcome(family, check_packs)
    found["left behind"] = outcome("llama", check_left_behind)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
