"""One model with the weights that the stages of a plan load, dequantised: what `verify` measures, by hand."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

import orbitsplit as osp

from .weights import dequantised

# Bytes of 32 weights, and of what a row has besides.
_GROUP_BYTES, _ROW_BYTES = {"int8": 34, "int4": 18}, {"int8": 0, "int4": 8}


def values_in(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a converted model as the bytes of its file say, by the names of its modules."""
    formats = json.loads((folder / "config.json").read_text())["quantization_config"]["formats"]
    tensors = {name: array for file in folder.glob("*.safetensors") for name, array in load_file(file).items()}
    found = {}
    for weight_format, modules in formats.items():
        for module in modules:
            data = tensors.get(f"{module}.weight")
            if data is not None:  # a tied head has no tensor of its own
                columns = 32 * (data.shape[1] - _ROW_BYTES[weight_format]) // _GROUP_BYTES[weight_format]
                found[module] = torch.from_numpy(dequantised(data, weight_format, (len(data), columns))).float()
    return found


def with_weights_of(plan: osp.Plan, model: PreTrainedModel) -> Any:
    """Return a copy of a model with a tied head in which every stage with weights has their values."""
    changed: Any = copy.deepcopy(model)
    changed.lm_head.weight = nn.Parameter(changed.lm_head.weight.detach().clone())  # no longer the table
    for stage in plan.stages:
        if stage.weights is None:
            continue
        values = values_in(Path(plan.weight_models[stage.weights]))
        for name, value in values.items():
            of_layer = [int(part) + 1 for part in name.split(".") if part.isdecimal()]
            if (of_layer or [0])[0] in range(stage.start, stage.stop):
                changed.get_submodule(name).weight = nn.Parameter(value)
        if stage.stop == plan.layers:  # the table is the head's too
            changed.lm_head.weight = nn.Parameter(values["model.embed_tokens"])
    return changed
