"""Data as batches: texts for language models and encoders, images for classifiers."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
from transformers.modeling_utils import PreTrainedModel

from orbitsplit._models.gguf import Progress
from orbitsplit._models.source import load_options, load_tokenizer, model_class, open_model, read_config, refuse_encoder
from orbitsplit._models.token_rows import check_ids, read_texts, token_rows

from ._statistics import GOLDEN
from ._task import Batch, Distributions, Embeddings, Task

# Texts or paths of text files; token ids [N, S]; images [N, C, H, W] with their labels [N].
Data: TypeAlias = "Iterable[str | Path] | Tensor | tuple[Tensor, Tensor]"

_IMAGES_A_BATCH, _TEXTS_A_BATCH = 64, 16


def name_of(model: Any) -> str:
    """Return the name of a model: its path or hub id. Raises `TypeError` for what is no model."""
    if isinstance(model, PreTrainedModel):
        return str(model.name_or_path)
    if not isinstance(model, (str, Path)):
        raise TypeError(f"model is a {type(model).__name__}, must be a path, a hub id or a model of transformers")
    return str(model)


def load_model(
    model: str | Path | PreTrainedModel, *, dtype: torch.dtype, progress: Progress | None = None
) -> PreTrainedModel:
    """Return a whole model: the architecture that its configuration names.

    Raises `ValueError` for a model that transformers does not have and for an encoder-decoder model,
    `FileNotFoundError` for a path that does not exist.
    """
    purpose = "codecs are fitted and measured on models with one of them alone: levels can be given by hand"
    if isinstance(model, PreTrainedModel):
        refuse_encoder(model.config, purpose)
    if not isinstance(model, PreTrainedModel):
        source = open_model(model, progress=progress)
        config = read_config(source)
        refuse_encoder(config, purpose)
        options = load_options(source, config)
        model = model_class(config).from_pretrained(source, config=config, dtype=dtype, **options)
    # Of a model with another head, such as one for masked tokens, the encoder is used.
    has_task = is_causal(model) or is_classifier(model)
    encoder: PreTrainedModel = model if has_task else model.base_model
    return encoder


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Compute no gradients of the weights of a model until the block ends."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def task_of(model: PreTrainedModel) -> Task:
    """Return the task of a model, which compares its outputs."""
    return Distributions() if is_causal(model) or is_classifier(model) else Embeddings()


def is_causal(model: PreTrainedModel) -> bool:
    """Say whether a model predicts next tokens."""
    return _is_one_of(model, MODEL_FOR_CAUSAL_LM_MAPPING)


def is_classifier(model: PreTrainedModel) -> bool:
    """Say whether a model classifies images."""
    return _is_one_of(model, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING)


def _is_one_of(model: PreTrainedModel, mapping: Any) -> bool:
    return type(model.config) in mapping and isinstance(model, mapping[type(model.config)])


class Samples:
    """Data in the form the model takes it, and a digest of it: rows of tokens, images or padded texts.

    Raises:
        TypeError: The data are not of the kind the model takes.
        ValueError: The data are empty, of another shape or range than the model takes, or no text is long enough.
    """

    def __init__(
        self, model: PreTrainedModel, data: Data, *, name: str, tokenizer: Any = None, prompt_tokens: int = 512
    ) -> None:
        self._model = model
        if is_classifier(model):
            self._tensors = _images(data, model.config.num_labels)
        elif isinstance(data, Tensor):
            check_ids(data, model.config, least=2 if is_causal(model) else 1)  # a next token to predict
            self._tensors = (data, torch.ones_like(data))
        else:
            texts = read_texts("data", data)
            tokenizer = load_tokenizer(name) if tokenizer is None else tokenizer
            if is_causal(model):
                ids = token_rows(tokenizer, texts, prompt_tokens)
                self._tensors = ids, torch.ones_like(ids)
            else:
                self._tensors = _padded(tokenizer, texts, prompt_tokens)
        self.count = len(self._tensors[0])

    @property
    def shape(self) -> list[int]:
        """The shape of a sample: tokens of a row, or channels, height and width of an image."""
        return list(self._tensors[0].shape[1:])

    @property
    def digest(self) -> str:
        """A SHA-256 of all samples."""
        digest = hashlib.sha256()
        for tensor in self._tensors:
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def batches(self, chosen: Tensor, *, positions: int | None = None) -> list[Batch]:
        """Return the samples of these indices as batches.

        Of a causal model's row of S tokens, `positions` next-token predictions are used (None: all S - 1), evenly
        spaced, from an offset that differs from row to row.
        """
        first, second = self._tensors
        if is_classifier(self._model):
            return [
                Batch({"pixel_values": first[part]}, targets=second[part]) for part in _parts(chosen, _IMAGES_A_BATCH)
            ]
        if not is_causal(self._model):
            return [self._padded_batch(part) for part in _parts(chosen, _TEXTS_A_BATCH)]
        return [self._row(first[index], number, positions) for number, index in enumerate(chosen)]

    def _padded_batch(self, part: Tensor) -> Batch:
        ids, mask = (tensor[part] for tensor in self._tensors)
        used = mask.any(0).nonzero()  # padded to the longest text of the batch, not of the data
        columns = slice(int(used[0]), int(used[-1]) + 1)
        ids, mask = ids[:, columns], mask[:, columns]
        return Batch({"input_ids": ids, "attention_mask": mask}, mask=mask)

    def _row(self, ids: Tensor, number: int, positions: int | None) -> Batch:
        predicted = len(ids) - 1
        count = predicted if positions is None else max(1, min(positions, predicted))
        stride = predicted / count
        at = ((torch.arange(count) + number * GOLDEN % 1) * stride).long().clamp_max(predicted - 1)
        inputs: dict[str, Any] = {"input_ids": ids[None], "use_cache": False}
        if "logits_to_keep" in inspect.signature(type(self._model).forward).parameters:
            inputs["logits_to_keep"] = at
        return Batch(inputs, targets=ids[at + 1], positions=at)


def _parts(chosen: Tensor, size: int) -> list[Tensor]:
    return [chosen[at : at + size] for at in range(0, len(chosen), size)]


def _images(data: Data, classes: int) -> tuple[Tensor, Tensor]:
    images, labels = data if isinstance(data, tuple) and len(data) == 2 else (None, None)
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
        raise TypeError("a classifier of images needs a pair of tensors: images [N, C, H, W] and labels [N]")
    if images.dim() != 4 or labels.shape != images.shape[:1] or not len(images):
        raise ValueError(
            f"images have shape {tuple(images.shape)} and labels {tuple(labels.shape)}, "
            f"expected a non-empty [N, C, H, W] and [N]"
        )
    if labels.is_floating_point():
        raise TypeError(f"labels are {labels.dtype}, expected integers")
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"labels are from {int(labels.min())} to {int(labels.max())}, the model has {classes} classes")
    return images, labels


def _padded(tokenizer: Any, texts: Iterable[str], tokens: int) -> tuple[Tensor, Tensor]:
    found: Sequence[str] = [text for text in texts if text.strip()]
    if len(found) < 2:
        raise ValueError(f"there are {len(found)} texts, must be at least 2 (a file is one text)")
    made = tokenizer(found, padding=True, truncation=True, max_length=tokens, return_tensors="pt")
    return made["input_ids"], made["attention_mask"]
