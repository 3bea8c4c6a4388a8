"""Steps without transformers' preparations: the same bits as with them, and only where they are."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import orbitsplit as osp
from orbitsplit._models.decode_steps import DecodeSteps
from orbitsplit._models.layouts import find_layout
from orbitsplit._models.source import read_config
from orbitsplit._models.stage import StageModel
from tests.support.tiny_models import LAYERS, save_tiny_model, tiny_prompts

CUTS = (0, 2, 4, LAYERS + 2)


@pytest.fixture(scope="module", params=["gemma3_text", "qwen3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 3 has two kinds of layers, with windows of six tokens and angles of their own."""
    folder = tmp_path_factory.mktemp(request.param)
    save_tiny_model(folder / "float", request.param, head_dim=16)
    return osp.convert(folder / "float", folder / "int8")


class Counted:
    """Steps, counted."""

    def __init__(self, steps: DecodeSteps) -> None:
        self.steps, self.count = steps, 0

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        self.count += 1
        return self.steps.forward(*args, **kwargs)


def stages_of(path: Path) -> list[StageModel]:
    return [StageModel.load(path, start, stop) for start, stop in pairwise(CUTS)]


def run(stages: list[StageModel], ids: Tensor, mask: Tensor, new: list[int]) -> list[Tensor]:
    """Return the logits of a prompt and of more tokens, so many at a time."""
    caches = [stage.new_cache() for stage in stages]
    results = []
    for count in (ids.shape[1], *new):
        if results:
            ids = results[-1].argmax(-1, keepdim=True).expand(-1, count)
            mask = torch.cat([mask, torch.ones(len(mask), count, dtype=torch.long)], dim=1)
        x = ids
        for stage, cache in zip(stages, caches, strict=True):
            x = stage.forward(x, mask, cache)
        results.append(x)
    return results


@pytest.mark.parametrize(("lengths", "new"), [((3,), [1] * 9), ((70, 70), [1, 1, 3, 1, 1])])
def test_bits_are_those_of_a_prepared_forward(model: Path, lengths: tuple[int, ...], new: list[int]) -> None:
    stages = stages_of(model)
    ids, mask = tiny_prompts(lengths)
    counted = [Counted(stage._steps) for stage in stages if stage._steps is not None]
    assert len(counted) == len(stages)
    for stage, steps in zip(stages, counted, strict=True):
        stage._steps = steps  # type: ignore[assignment]
    found = run(stages, ids, mask, new)
    assert [steps.count for steps in counted] == [new.count(1)] * len(stages)
    for stage in stages:
        stage._steps = None
    expected = run(stages, ids, mask, new)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_padded_sequences_are_prepared_by_transformers(model: Path) -> None:
    stages = stages_of(model)
    for stage in stages:
        stage._steps = Counted(stage._steps)  # type: ignore[assignment,arg-type]
    run(stages, *tiny_prompts((9, 4)), [1, 1])
    assert all(stage._steps.count == 0 for stage in stages)  # type: ignore[union-attr]


def test_models_that_scale_what_they_return_keep_their_forward(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "float", "gemma3_text", head_dim=16, final_logit_softcapping=2.0)
    path = osp.convert(tmp_path / "float", tmp_path / "int8")
    first, _, last = stages_of(path)
    assert first._steps is not None
    assert last._steps is None


def test_stages_whose_layers_are_not_in_the_core_keep_their_forward(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "float", "llama", head_dim=8)
    stage = StageModel.load(osp.convert(tmp_path / "float", tmp_path / "int8"), 1, 3)
    assert stage._steps is None


def test_angles_that_follow_the_length_of_the_text_keep_the_forward(model: Path) -> None:
    stage = StageModel.load(model, 1, 3)
    layout = find_layout(read_config(model))
    assert DecodeSteps.of(stage.model, layout, is_first=False, is_last=False) is not None
    stage.model.model.rotary_emb.rope_type = "dynamic"
    assert DecodeSteps.of(stage.model, layout, is_first=False, is_last=False) is None


# New tokens of three sequences in each pack: prompts whole and in parts, beside steps of one token and of more.
PACKS = ((5, 0, 70), (1, 9, 1), (1, 1, 1), (3, 1, 2), (0, 7, 1), (1, 1, 0), (1, 1, 1))


def packed(stages: list[StageModel], texts: list[Tensor]) -> list[Tensor]:
    """Return the logits of all tokens of texts that run in packs."""
    caches = [[stage.new_cache() for _ in texts] for stage in stages]
    done, rows = [0] * len(texts), [list[Tensor]() for _ in texts]
    for sizes in PACKS:
        running = [k for k, size in enumerate(sizes) if size]
        new = [sizes[k] for k in running]
        x = torch.cat([texts[k][done[k] : done[k] + sizes[k]] for k in running])[None]
        starts, places = [done[k] for k in running], range(x.shape[1])
        for stage, own in zip(stages, caches, strict=True):
            x = stage.forward_packed(x, [own[k] for k in running], starts, new, logits_at=places)
        for k, logits in zip(running, torch.split(x, new), strict=True):
            rows[k].append(logits)
            done[k] += sizes[k]
    return [torch.cat(logits) for logits in rows]


def test_packs_give_what_each_sequence_gets_alone_and_from_transformers(model: Path) -> None:
    stages = stages_of(model)
    assert all(stage._packed_steps is not None for stage in stages)
    texts = [tiny_prompts((sum(sizes),))[0][0] for sizes in zip(*PACKS, strict=True)]
    found = packed(stages, texts)
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    for text, logits in zip(texts, found, strict=True):
        with torch.inference_mode():
            expected = whole(text[None], use_cache=False).logits[0]
        torch.testing.assert_close(logits, expected, rtol=0.0, atol=5e-3)  # as in test_fused_layers.py
    for k, text in enumerate(texts):
        caches, done = [stage.new_cache() for stage in stages], 0
        for size in filter(None, (sizes[k] for sizes in PACKS)):
            x, mask = text[None, done : done + size], torch.ones(1, done + size, dtype=torch.long)
            for stage, cache in zip(stages, caches, strict=True):
                x = stage.forward(x, mask, cache, logits_to_keep=size)
            assert torch.equal(x.view(size, -1), found[k][done : done + size])
            done += size


def test_bits_of_packs_are_those_of_a_prepared_forward(model: Path) -> None:
    stages = stages_of(model)
    texts = [tiny_prompts((sum(sizes),))[0][0] for sizes in zip(*PACKS, strict=True)]
    found = packed(stages, texts)
    for stage in stages:
        stage._packed_steps = None
    assert all(torch.equal(x, y) for x, y in zip(found, packed(stages, texts), strict=True))


def test_packs_of_more_tokens_than_pay_are_prepared_by_transformers(model: Path) -> None:
    stage = StageModel.load(model, 0, LAYERS + 2)
    ids, mask = tiny_prompts((97,))
    caches = [stage.new_cache(), stage.new_cache()]
    found = stage.forward_packed(torch.cat([ids, ids[:, :3]], dim=1), caches, [0, 0], [97, 3], logits_at=[96, 99])
    for logits, tokens in zip(found, (97, 3), strict=True):
        expected = stage.forward(ids[:, :tokens], mask[:, :tokens], stage.new_cache())[0]
        torch.testing.assert_close(logits, expected, rtol=0.0, atol=5e-3)


def test_a_stage_without_layers_computes_steps_too(model: Path) -> None:
    stages = [StageModel.load(model, start, stop) for start, stop in pairwise((0, 1, LAYERS + 1, LAYERS + 2))]
    ids, mask = tiny_prompts((5,))
    found = run(stages, ids, mask, [1, 1])
    assert all(stage._steps is not None for stage in stages)
    whole = [StageModel.load(model, 0, LAYERS + 2)]
    whole[0]._steps = None
    assert all(torch.equal(x, y) for x, y in zip(found, run(whole, ids, mask, [1, 1]), strict=True))
