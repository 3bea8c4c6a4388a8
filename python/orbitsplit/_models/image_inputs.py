"""Images beside texts: what a vision-language model takes of them, and examples for a trial."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .source import can_generate, model_class, unsupported

# Of a model's inputs those that every stage has: they are of tokens [B, S], and masks are made of them.
TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")
# Inputs that describe images, which the first stage alone gets, with their values.
_OF_IMAGES = (
    "pixel_values",
    "pixel_attention_mask",
    "pixel_position_ids",
    "image_grid_thw",
    "image_sizes",
    "image_position_ids",
    "spatial_shapes",
    "patch_attention_mask",
)
_IMAGE_SIZE, _TEXT_TOKENS, _FIRST_ID, _LAST_ID = 28, 3, 5, 90


def image_names(architecture: type[PreTrainedModel]) -> tuple[str, ...]:
    """Return the inputs of a model's forward that describe images; none of a model of texts, or of images alone."""
    accepted = inspect.signature(architecture.forward).parameters
    if "pixel_values" not in accepted or "input_ids" not in accepted:
        return ()
    return tuple(name for name in _OF_IMAGES if name in accepted)


def takes_images(config: PreTrainedConfig) -> bool:
    """Return whether a model generates texts about images."""
    return can_generate(config) and bool(image_names(model_class(config)))


def image_token(config: PreTrainedConfig) -> int | None:
    """Return the token in whose places a model puts what its vision model makes of images."""
    found = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
    return next((int(token) for token in found if isinstance(token, int)), None)


def late_images(config: PreTrainedConfig) -> str | None:
    """Return the setting by which a model adds what it sees to later layers too, which other stages run; None without.

    It is told by its name: a small model has fewer layers, of which none may be among those.
    """
    parts = (config, *(value for value in vars(config).values() if isinstance(value, PreTrainedConfig)))
    settings = (name for part in parts for name, value in vars(part).items() if value)
    return next((name for name in settings if "deepstack" in name), None)


def positions_of(model: PreTrainedModel, input_ids: Tensor, mask: Tensor, given: Mapping[str, Tensor]) -> Tensor | None:
    """Return the positions [..., B, S] of a prompt that follow from its images.

    None for a model whose positions count tokens, as all do without images. Only the configuration of `model` is used.
    """
    own: Any = type(model)._prepare_position_ids_for_generation
    if own is GenerationMixin._prepare_position_ids_for_generation:
        return None
    positions: Tensor = model._prepare_position_ids_for_generation(input_ids, {"attention_mask": mask, **given})
    return positions


def divided(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what all stages get of a prompt beside its ids and mask, and what the first stage alone gets: its images.

    Of `model` the code and the configuration are used alone.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    given = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    images = {name: value for name, value in given.items() if name not in TOKEN_TYPES}
    beside = {name: value for name, value in given.items() if name in TOKEN_TYPES}
    positions = positions_of(model, ids, mask, given)
    return beside if positions is None else {**beside, "position_ids": positions}, images


def prepared(model: PreTrainedModel, inputs: Mapping[str, Any], beside: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the inputs of a forward as transformers' generate makes them of a text with images."""
    inputs = {**inputs, **beside}
    is_first = inputs["past_key_values"].get_seq_length() == 0
    found: dict[str, Any] = model.prepare_inputs_for_generation(**inputs, is_first_iteration=is_first)
    return found


@torch.no_grad()
def example_images(model: PreTrainedModel, rows: int = 2) -> dict[str, Tensor]:
    """Return inputs of a small model: rows of a text with an image, each of them another.

    Raises `ValueError` for a model that takes images in none of the known forms.
    """
    token, failure = image_token(model.config), ""
    for images in _forms(model.config, rows) if token is not None else ():
        accepted = inspect.signature(type(model).forward).parameters
        if not set(images) <= set(accepted):
            continue
        try:
            features = model.get_image_features(**images)
            count, rest = divmod(_tokens_of(features), rows)
        except Exception as error:
            failure = failure or str(error).strip().partition("\n")[0][:200] or type(error).__name__
            continue
        if rest == 0 and count > 0:
            assert token is not None
            return {**_text(rows, count, token, set(accepted)), **images}
    reason = failure or "no token stands for them"
    raise ValueError(unsupported(model.config, f"no example of images runs on it ({reason})"))


def _forms(config: PreTrainedConfig, rows: int) -> Iterator[dict[str, Tensor]]:
    """Yield inputs of images as processors make them: whole, in tiles, in patches."""
    vision: Any = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None) or _IMAGE_SIZE
    height, width = (size, size) if isinstance(size, int) else size
    channels = getattr(vision, "num_channels", None) or getattr(vision, "in_channels", None) or 3
    whole = torch.randn(rows, channels, height, width)
    sizes = torch.tensor([[height, width]]).expand(rows, 2)
    patch = getattr(vision, "patch_size", None)
    if isinstance(patch, int):
        side = 2 * (getattr(vision, "spatial_merge_size", None) or 1)
        depth = channels * (getattr(vision, "temporal_patch_size", None) or 1) * patch * patch
        grid = torch.tensor([[1, side, side]]).expand(rows, 3)
        yield {"pixel_values": torch.randn(rows * side * side, depth), "image_grid_thw": grid.contiguous()}
    yield {"pixel_values": whole, "image_sizes": sizes.contiguous()}
    yield {"pixel_values": whole}
    tiles = whole[:, None].repeat(1, 2, 1, 1, 1)
    yield {"pixel_values": tiles, "image_sizes": sizes.contiguous()}
    yield {"pixel_values": tiles, "pixel_attention_mask": torch.ones(rows, 2, height, width, dtype=torch.bool)}
    yield {"pixel_values": tiles}


def _tokens_of(features: Any) -> int:
    """Return how many tokens of a text images take."""
    found = getattr(features, "pooler_output", features)
    parts = found if isinstance(found, (list, tuple)) else [found]
    return sum(part.numel() // part.shape[-1] for part in parts)


def _text(rows: int, count: int, token: int, accepted: set[str]) -> dict[str, Tensor]:
    """Return the inputs of texts with `count` tokens in the place of an image."""
    ids = torch.randint(_FIRST_ID, _LAST_ID, (rows, 2 * _TEXT_TOKENS + count))
    ids[ids == token] = _FIRST_ID
    ids[:, _TEXT_TOKENS : _TEXT_TOKENS + count] = token
    types = {name: (ids == token).long() for name in TOKEN_TYPES if name in accepted}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **types}
