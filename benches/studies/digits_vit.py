"""A small vision transformer and its data, for tests and benches: scikit-learn's handwritten digits.

    python -m benches.studies.digits_vit [DIRECTORY]       default: orbitsplit/digits-vit in the XDG cache

Eight layers of 128 channels on 17 rows an image (a class token and 16 patches of 2x2 pixels of 8x8), trained in less
than three minutes on one core. The 1797 images are split once: `train` for the weights, `calibration` for codecs,
`test` for what is reported.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from orbitsplit._models.device import single_thread
from orbitsplit._models.gguf import cache_root

Split: TypeAlias = Literal["train", "calibration", "test"]

LAYERS, WIDTH = 8, 128
_SIZES = {"train": 897, "calibration": 200, "test": 700}  # of 1797; the first are all those that weights may see
_STEPS, _BATCH, _WARMUP = 1200, 64, 60
_LEARNING_RATE, _DECAY = 2e-3, 0.05


def digits_vit(directory: Path | None = None, *, seed: int = 0) -> ViTForImageClassification:
    """Return the trained model, ready for inference, training and saving it on the first call."""
    target = directory or default_directory()
    if not target.is_dir():
        model = _train(seed)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as beside:  # a directory of this name is always complete
            model.save_pretrained(Path(beside, "model"))
            Path(beside, "model").rename(target)
    return ViTForImageClassification.from_pretrained(target).eval()


def digits(split: Split, *, copies: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return images and digits of one split: pixel values [N, 1, 8, 8] from -1 to 1, labels [N].

    With `copies` above 1 the images follow again, each time a little shifted, turned and scaled by random amounts: more
    images of the same digits, that the model knows as well.
    """
    pixels, labels = _split(split)
    generator = torch.Generator().manual_seed(seed)
    moved = [pixels] + [_moved(pixels, generator) for _ in range(copies - 1)]
    return torch.cat(moved), labels.repeat(copies)


@torch.no_grad()
def accuracy(model: ViTForImageClassification, pixels: Tensor, labels: Tensor) -> float:
    """Return the share of images [N, 1, 8, 8] whose label [N] the model finds."""
    found = [model(batch).logits.argmax(-1) for batch in pixels.split(256)]
    return (torch.cat(found) == labels).float().mean().item()


def default_directory() -> Path:
    return cache_root().parent / "digits-vit"


def _split(split: Split) -> tuple[Tensor, Tensor]:
    order = np.random.default_rng(0).permutation(sum(_SIZES.values()))
    before = list(_SIZES).index(split)
    first = sum(list(_SIZES.values())[:before])
    chosen = order[first : first + _SIZES[split]]
    data = load_digits()
    pixels = torch.tensor(data.images[chosen] / 8 - 1, dtype=torch.float32)[:, None]
    return pixels, torch.tensor(data.target[chosen], dtype=torch.long)


def _moved(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Turn images by up to 12 degrees, scale them by up to 12 percent and shift them by up to 0.8 pixels."""
    turn, grow, across, down = (torch.rand(4, len(pixels), generator=generator) * 2 - 1).unbind()
    angle, scale = turn * math.radians(12), 1 + 0.12 * grow
    shift = torch.stack([across, down], 1) * 0.2  # of the half width, 4 pixels
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    grid = nn.functional.affine_grid(
        torch.cat([rotation * scale[:, None, None], shift[:, :, None]], 2), list(pixels.shape), align_corners=False
    )
    # The background is -1 and grid_sample pads with 0.
    return nn.functional.grid_sample(pixels + 1, grid, align_corners=False) - 1


def _train(seed: int) -> ViTForImageClassification:
    # The order of sums, so the weights, would depend on the number of threads.
    with single_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ViTForImageClassification(_config())
        # At the usual 0.02 a model this narrow starts blind to where a patch is, and learns four times slower.
        nn.init.normal_(model.vit.embeddings.position_embeddings, std=0.3)
        nn.init.normal_(model.vit.embeddings.patch_embeddings.projection.weight, std=0.5)
        optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=_DECAY)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _share_of_rate)
        for pixels, labels in _batches(seed):
            logits = model(pixels).logits
            nn.functional.cross_entropy(logits, labels, label_smoothing=0.05).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return model


def _config() -> ViTConfig:
    return ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=2 * WIDTH,
        initializer_range=0.05,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        image_size=8,
        patch_size=2,
        num_channels=1,
        num_labels=10,
    )


def _share_of_rate(step: int) -> float:
    """Rise over the first steps, then fall along a cosine."""
    return min((step + 1) / _WARMUP, 0.5 * (1 + math.cos(math.pi * step / _STEPS)))


def _batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    pixels, labels = _split("train")
    generator = torch.Generator().manual_seed(seed)
    for _ in range(_STEPS):
        chosen = torch.randperm(len(pixels), generator=generator)[:_BATCH]
        yield _moved(pixels[chosen], generator), labels[chosen]


if __name__ == "__main__":
    target_directory = Path(sys.argv[1]) if len(sys.argv) > 1 else default_directory()
    begin = time.perf_counter()
    vit = digits_vit(target_directory)
    print(f"model in {target_directory} after {time.perf_counter() - begin:.0f} s")
    for name in get_args(Split):
        once, moved = digits(name), digits(name, copies=4)
        print(
            f"{name:12}{len(once[1]):5} images: accuracy {100 * accuracy(vit, *once):.2f} %, "
            f"with three moved copies of each {100 * accuracy(vit, *moved):.2f} %"
        )
