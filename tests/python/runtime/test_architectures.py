"""Architectures other than plain decoders in pipelines of four processes, against the unsplit model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedModel

import orbitsplit as osp
from orbitsplit._models.source import model_class
from orbitsplit.runtime import Pipeline

pytestmark = pytest.mark.timeout(300)

LAYERS, NEW_TOKENS = 4, 8
SIZES: dict[str, Any] = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": LAYERS, "pad_token_id": 0}
HEADS: dict[str, Any] = {**SIZES, "num_attention_heads": 4, "intermediate_size": 64}


def saved(folder: Path, architecture: str, model_type: str, fields: dict[str, Any]) -> PreTrainedModel:
    config = AutoConfig.for_model(model_type, **fields, architectures=[architecture])
    torch.manual_seed(0)
    model = model_class(config)._from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "A_log" not in name:
                parameter.normal_(0.0, 0.25)
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder, dtype=torch.float32).eval()


def four_stages(new_tokens: int) -> osp.Plan:
    plan = osp.Plan.manual(cuts=[1, 2, 4], layers=LAYERS)
    return replace(plan, workload=osp.Workload(micro_batches=1, prompt_tokens=7, new_tokens=new_tokens, batch_size=2))


@pytest.mark.parametrize(
    ("architecture", "model_type", "fields"),
    [
        ("MambaForCausalLM", "mamba", {**SIZES, "state_size": 8}),
        ("JetMoeForCausalLM", "jetmoe", {**HEADS, "num_key_value_heads": 4, "kv_channels": 8, "num_local_experts": 4}),
    ],
)
def test_tokens_are_those_of_the_unsplit_model(
    architecture: str, model_type: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    unsplit = saved(tmp_path, architecture, model_type, fields)
    ids = torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    options: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": NEW_TOKENS, "do_sample": False}
    expected = unsplit.generate(ids, **options, min_new_tokens=NEW_TOKENS, pad_token_id=0)
    with Pipeline(four_stages(NEW_TOKENS), tmp_path) as pipe:
        assert len(pipe.pids) == 4
        found = pipe.generate(ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, eos_token_id=[])
    torch.testing.assert_close(torch.as_tensor(found), expected)
