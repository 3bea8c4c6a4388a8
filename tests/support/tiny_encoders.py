"""Tiny random models that are no language models: classifiers of images and encoders of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, BertConfig, BertModel, PreTrainedModel, ViTConfig, ViTForImageClassification

from tests.support.tiny_models import HIDDEN, LAYERS, PAD, VOCABULARY

LABELS = 10

_TEXT: dict[str, Any] = {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "pad_token_id": PAD}
_IMAGE: dict[str, Any] = {"image_size": 8, "patch_size": 2}
_SMALL: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_labels": LABELS,
}
_RATIO = {**_SMALL, "mlp_ratio": 2}
_WINDOW = {"global_attn_every_n_layers": 2, "local_attention": 4}

# Per class, the type of its configuration and what that needs.
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "BertModel": ("bert", {**_SMALL, **_TEXT}),
    "BertForMaskedLM": ("bert", {**_SMALL, **_TEXT}),
    "BertForPreTraining": ("bert", {**_SMALL, **_TEXT}),
    "BertForSequenceClassification": ("bert", {**_SMALL, **_TEXT}),
    "RobertaModel": ("roberta", {**_SMALL, **_TEXT}),
    "RobertaForMaskedLM": ("roberta", {**_SMALL, **_TEXT}),
    "RobertaForSequenceClassification": ("roberta", {**_SMALL, **_TEXT}),
    "XLMRobertaForTokenClassification": ("xlm-roberta", {**_SMALL, **_TEXT}),
    "DistilBertModel": ("distilbert", {**_SMALL, **_TEXT, "hidden_dim": 64}),
    "DistilBertForSequenceClassification": ("distilbert", {**_SMALL, **_TEXT, "hidden_dim": 64}),
    "ModernBertModel": ("modernbert", {**_SMALL, **_TEXT, **_WINDOW}),
    "ModernBertForMaskedLM": ("modernbert", {**_SMALL, **_TEXT, **_WINDOW}),
    "ModernBertForSequenceClassification": ("modernbert", {**_SMALL, **_TEXT, **_WINDOW, "classifier_pooling": "mean"}),
    "ElectraModel": ("electra", {**_SMALL, **_TEXT, "embedding_size": 16}),
    "ElectraForSequenceClassification": ("electra", {**_SMALL, **_TEXT, "embedding_size": 16}),
    "BertForQuestionAnswering": ("bert", {**_SMALL, **_TEXT, "num_labels": 2}),
}
VISION: dict[str, tuple[str, dict[str, Any]]] = {
    "ViTModel": ("vit", {**_SMALL, **_IMAGE}),
    "ViTForImageClassification": ("vit", {**_SMALL, **_IMAGE}),
    "DeiTModel": ("deit", {**_SMALL, **_IMAGE}),
    "DeiTForImageClassification": ("deit", {**_SMALL, **_IMAGE}),
    "Dinov2Model": ("dinov2", {**_RATIO, **_IMAGE}),
    "Dinov2ForImageClassification": ("dinov2", {**_RATIO, **_IMAGE}),
    "Dinov2WithRegistersModel": ("dinov2_with_registers", {**_RATIO, **_IMAGE}),
    "DINOv3ViTModel": ("dinov3_vit", {**_SMALL, **_IMAGE}),
    "CLIPVisionModel": ("clip_vision_model", {**_SMALL, **_IMAGE}),
    "CLIPVisionModelWithProjection": ("clip_vision_model", {**_SMALL, **_IMAGE, "projection_dim": 16}),
    "CLIPForImageClassification": ("clip", {"vision_config": {**_SMALL, **_IMAGE}, "num_labels": LABELS}),
    "SiglipVisionModel": ("siglip_vision_model", {**_SMALL, **_IMAGE}),
    "SiglipForImageClassification": ("siglip", {"vision_config": {**_SMALL, **_IMAGE}, "num_labels": LABELS}),
}


def tiny_encoder(name: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Build a random model of a class of `ENCODERS` or `VISION`; `changes` override fields of its configuration."""
    model_type, fields = {**ENCODERS, **VISION}[name]
    return _random(name, model_type, {**fields, **changes}, seed)


def save_tiny_encoder(directory: Path, name: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Save a random model into `directory` as transformers does, and return it."""
    model = tiny_encoder(name, seed=seed, **changes)
    model.save_pretrained(directory, max_shard_size="20KB")
    return model


def tiny_texts(lengths: tuple[int, ...], *, seed: int = 0) -> dict[str, Tensor]:
    """Return right-padded random texts of the given lengths and their attention mask, both [B, max(lengths)]."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(3, VOCABULARY, (len(lengths), max(lengths)), generator=generator)
    attention_mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": input_ids * attention_mask + PAD * (1 - attention_mask), "attention_mask": attention_mask}


def _random(name: str, model_type: str, fields: dict[str, Any], seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **fields, architectures=[name])
    return _spread(getattr(transformers, name)(config))


def tiny_vit(*, seed: int = 0, hidden: int = HIDDEN, layers: int = LAYERS) -> ViTForImageClassification:
    """Build a random classifier of 8 x 8 images, 17 rows each, whose logits are far enough apart."""
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * hidden,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        image_size=8,
        patch_size=2,
        num_channels=1,
        num_labels=LABELS,
    )
    return _spread(ViTForImageClassification(config))


def tiny_images(count: int, *, seed: int = 0, channels: int = 1) -> tuple[Tensor, Tensor]:
    """Return random images [count, channels, 8, 8] and labels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, 8, 8, generator=generator), torch.randint(LABELS, (count,), generator=generator)


def tiny_bert(*, seed: int = 0) -> BertModel:
    """Build a random encoder of texts."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    return _spread(BertModel(config))


def _spread(model: PreTrainedModel) -> PreTrainedModel:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.25)
    return model.eval()


def trained_vit(*, seed: int = 0) -> tuple[ViTForImageClassification, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Train a classifier of scikit-learn's digits for seconds; return it, images for calibration and held-out ones."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    pixels = (torch.tensor(data.images / 8 - 1, dtype=torch.float32)[:, None])[order]
    labels = torch.tensor(data.target, dtype=torch.long)[order]
    model = tiny_vit(seed=seed, layers=3).train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.05)
    steps, generator = 250, torch.Generator().manual_seed(seed)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(900, (64,), generator=generator)
        nn.functional.cross_entropy(model(pixels[chosen]).logits, labels[chosen]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval(), (pixels[900:1200], labels[900:1200]), (pixels[1200:], labels[1200:])
