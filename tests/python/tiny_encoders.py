"""Tiny random models that are no language models: classifiers of images and encoders of texts."""

from __future__ import annotations

import torch
from tiny_models import HIDDEN, LAYERS, VOCABULARY
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedModel, ViTConfig, ViTForImageClassification

LABELS = 10


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


def tiny_images(count: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return random images [count, 1, 8, 8] and labels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 8, 8, generator=generator), torch.randint(LABELS, (count,), generator=generator)


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
