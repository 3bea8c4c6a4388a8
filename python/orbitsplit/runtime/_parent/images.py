"""Images beside the prompts of a batch: what the first stage gets of them, and what every stage does."""

from __future__ import annotations

import threading
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from orbitsplit._io.validation import listed
from orbitsplit._models.generation_settings import GenerationSettings
from orbitsplit._models.image_inputs import TOKEN_TYPES, divided, image_token
from orbitsplit._models.source import read_config
from orbitsplit._models.valueless import build_on_meta
from orbitsplit._models.verdicts import check_images
from orbitsplit.runtime._messages.control import Ready
from orbitsplit.runtime._messages.groups import packed_beside

from .generation_options import GenerationOptions

Beside = tuple[tuple[str, tuple[int, ...], str], ...]


class ImagePrompts:
    """What a pipeline's model takes of images. The first use tries a small model of it, which takes seconds."""

    def __init__(self, model: str | Path) -> None:
        self._path = model
        self._lock = threading.Lock()
        self._model: PreTrainedModel | None = None

    def model(self) -> PreTrainedModel:
        """Return the model without weights. Raises ValueError for one that takes no images in stages."""
        with self._lock:
            if self._model is None:
                config: PreTrainedConfig = read_config(self._path)
                check_images(config)
                self._model = build_on_meta(config)
            return self._model


@dataclass(frozen=True, slots=True)
class ImagePrompt:
    """The images of one call, with what describes them, by the names of the model's inputs."""

    given: dict[str, Tensor]
    images: ImagePrompts

    def divided(self, input_ids: Tensor, mask: Tensor) -> tuple[Beside, dict[str, Tensor]]:
        """Return what every stage gets beside prompts [B, S] and their mask, and what the first stage alone gets."""
        model = self.images.model()
        token = image_token(model.config)
        if token is not None and "pixel_values" in self.given and not bool((input_ids == token).any()):
            raise ValueError(f"pixel_values are given, and input_ids have no token {token}, which stands for an image")
        for name in TOKEN_TYPES:
            if name in self.given and self.given[name].shape != input_ids.shape:
                raise ValueError(f"{name} are {list(self.given[name].shape)}, input_ids are {list(input_ids.shape)}")
        inputs = {"input_ids": input_ids, "attention_mask": mask.long(), **self.given}
        beside, images = divided(model, inputs)
        return packed_beside(beside), images


def image_prompt(keywords: MutableMapping[str, Any], model: Ready, images: ImagePrompts) -> ImagePrompt | None:
    """Take what belongs to images out of the keywords of a call; return None for a text alone.

    Token types belong to a text with images; where a processor returns them for a text alone, they are 0 and say
    nothing. Raises TypeError for what is no tensor, ValueError for descriptions without images.
    """
    names = [name for name in (*model.image_inputs, *TOKEN_TYPES) if keywords.get(name) is not None]
    if not model.image_inputs or not names:
        return None
    given = {name: torch.as_tensor(keywords.pop(name)) for name in names}
    if "pixel_values" in given:
        return ImagePrompt({name: value.cpu() for name, value in given.items()}, images)
    if set(names) <= set(TOKEN_TYPES) and not any(bool(value.any()) for value in given.values()):
        return None
    raise ValueError(f"{listed(names)} are given without pixel_values, which they describe")


def check_options(options: GenerationOptions, settings: GenerationSettings) -> None:
    """Raise ValueError for options that a prompt with images cannot have."""
    if (settings.config.num_return_sequences or 1) > 1:
        raise ValueError("num_return_sequences is not for prompts with images: give each as often as it is to run")
    for name in ("prompt_lookup_num_tokens", "num_assistant_tokens"):
        if getattr(options, name):
            raise ValueError(f"{name} is not for prompts with images: their positions are not those of tokens")
