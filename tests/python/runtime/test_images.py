"""Images beside prompts, in pipelines of four processes, against the unsplit model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import orbitsplit as osp
from orbitsplit._models.image_inputs import divided, example_images
from orbitsplit._models.prompt_parts import of_tokens
from orbitsplit.runtime import Pipeline
from orbitsplit.runtime._messages.groups import Group, packed_beside
from orbitsplit.runtime._parent.generation import GroupState
from orbitsplit.runtime._parent.images import ImagePrompts, image_prompt
from tests.support.fake_workers import ready
from tests.support.tiny_models import LAYERS
from tests.support.tiny_vision_language import VISION_LANGUAGE, prompts_with_images, save_vision_language

pytestmark = pytest.mark.timeout(300)

NEW_TOKENS = 6


@pytest.fixture(scope="module", params=list(VISION_LANGUAGE))
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A model, its pipeline of four processes, and prompts with images."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    unsplit = save_vision_language(folder, request.param)
    inputs = prompts_with_images(example_images(unsplit))
    plan = osp.Plan.manual(cuts=[1, 2, 4], layers=LAYERS)
    workload = osp.Workload(micro_batches=2, prompt_tokens=inputs["input_ids"].shape[1], new_tokens=NEW_TOKENS)
    with Pipeline(replace(plan, workload=workload), folder) as pipe:
        yield unsplit, pipe, inputs


def test_tokens_are_those_of_the_unsplit_model(subject: Any) -> None:
    unsplit, pipe, inputs = subject
    assert len(pipe.pids) == 4
    options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    expected = unsplit.generate(**inputs, **options)
    torch.testing.assert_close(pipe.generate(**inputs, **options), expected)
    other = {**inputs, "pixel_values": -inputs["pixel_values"]}
    expected_of_other = unsplit.generate(**other, **options)
    assert not torch.equal(expected_of_other, expected)  # the images count
    torch.testing.assert_close(pipe.generate(**other, **options), expected_of_other)
    # Texts alone, as a processor gives them, run between them, and in as many micro-batches as are planned.
    texts = {name: inputs[name][:, :3] for name in ("input_ids", "attention_mask")}
    alone = pipe.generate(**texts, token_type_ids=torch.zeros(2, 3, dtype=torch.int64), **options)
    torch.testing.assert_close(alone, unsplit.generate(**texts, **options))
    with pytest.raises(ValueError, match="num_return_sequences is not for prompts with images"):
        pipe.generate(**inputs, max_new_tokens=2, do_sample=True, num_return_sequences=2)
    with pytest.raises(ValueError, match="input_ids have no token 96, which stands for an image"):
        pipe.generate(**{**inputs, **texts}, **options)


def _beside() -> dict[str, Tensor]:
    return {
        "position_ids": torch.arange(12).reshape(3, 1, 4) + 10,
        "mm_token_type_ids": torch.tensor([[0, 1, 1, 0]]),
    }


def test_positions_behind_a_prompt_that_ends_in_its_image_are_those_of_generate(tmp_path: Path) -> None:
    # Not those of a forward without positions, which has all axes begin behind the largest position of the prompt.
    model: Any = save_vision_language(tmp_path, "qwen2_5_vl")
    inputs = example_images(model)
    ends_at = 1 + int((inputs["mm_token_type_ids"][0] == 1).nonzero()[-1])
    inputs |= {name: inputs[name][:, :ends_at] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
    seen: list[Tensor] = []
    model.model.language_model.register_forward_pre_hook(
        lambda _model, _positional, named: seen.append(named["position_ids"]), with_kwargs=True
    )
    model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    beside, _ = divided(model, inputs)
    last = beside["position_ids"][..., -1]
    assert bool((last != last.max()).any())  # the axes differ at the end of an image
    assert torch.equal(seen[0], beside["position_ids"])
    for step, positions in enumerate(seen[1:]):
        place = ends_at + step
        assert torch.equal(positions, of_tokens(beside, place, place + 1)["position_ids"])


def test_positions_behind_a_prompt_count_on_after_a_loss_too() -> None:
    group = Group(id=0, rows=1, tokens=4, mask=None, max_new_tokens=8, beside=packed_beside(_beside()))
    images = {"pixel_values": torch.ones(1, 3, 2, 2)}
    state = GroupState(group, torch.tensor([[5, 6, 7, 8]]), images)
    for token in (20, 21):
        state.got.append(torch.tensor([token]))
    restarted, x = state.remaining()
    assert x["input_ids"].tolist() == [[5, 6, 7, 8, 20, 21]]
    assert x["pixel_values"] is images["pixel_values"]
    whole = restarted.beside_tokens(0, 4)
    assert whole is not None
    assert {name: value.tolist() for name, value in whole.items()} == {n: v.tolist() for n, v in _beside().items()}
    behind = restarted.beside_tokens(5, 7)
    assert behind is not None
    assert list(behind) == ["position_ids"]
    assert behind["position_ids"].tolist() == [[[15, 16]], [[19, 20]], [[23, 24]]]
    assert replace(group, beside=None).beside_tokens(0, 4) is None


def test_what_describes_images_needs_them() -> None:
    model = ready(image_inputs=("pixel_values", "image_grid_thw"))
    images = ImagePrompts("unused")
    ones = torch.ones(1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"image_grid_thw.* given without pixel_values"):
        image_prompt({"image_grid_thw": ones}, model, images)
    with pytest.raises(ValueError, match=r"mm_token_type_ids.* given without pixel_values"):
        image_prompt({"mm_token_type_ids": ones}, model, images)
    keywords: dict[str, Any] = {"mm_token_type_ids": torch.zeros_like(ones), "max_new_tokens": 3}
    assert image_prompt(keywords, model, images) is None
    assert keywords == {"max_new_tokens": 3}
    keywords = {"pixel_values": ones}
    assert image_prompt(keywords, ready(), images) is None
    assert keywords == {"pixel_values": ones}  # refused as any model of texts does
