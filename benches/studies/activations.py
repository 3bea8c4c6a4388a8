"""Save activations of the real model: what a cut of Gemma 3 270M sends on text, for benches to encode.

    python -m benches.studies.activations [DIRECTORY]      default: orbitsplit/activations in the XDG cache

One file for each cut and dtype: [4096, 640], eight passages of 512 tokens of CPython's own documentation. The bfloat16
ones come from the model run in bfloat16 and are saved as 16-bit integers, because NumPy has no bfloat16.
"""

from __future__ import annotations

import pydoc_data.topics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orbitsplit._models.gguf import cache_root
from orbitsplit._models.source import demo_model, load_tokenizer

CUTS = (5, 9, 14)
DTYPES = ("float32", "bfloat16")
PASSAGES, TOKENS = 8, 512


def activations(cut: int, dtype: str, directory: Path | None = None) -> npt.NDArray[Any]:
    """Return the activation after `cut` layers, float32 or the bits of bfloat16, saving all on the first call.

    Raises ImportError when the extra `demo` is not installed.
    """
    path = _path(cut, dtype, directory or default_directory())
    if not path.is_file():
        save(path.parent)
    return np.load(path)


def default_directory() -> Path:
    return cache_root().parent / "activations"


def save(directory: Path) -> None:
    """Run the model once in each dtype and write its hidden states at every cut."""
    import torch
    from transformers import AutoModelForCausalLM

    directory.mkdir(parents=True, exist_ok=True)
    model_directory = demo_model()
    ids = load_tokenizer(model_directory)(_text(), return_tensors="pt")["input_ids"][0, : PASSAGES * TOKENS]
    for dtype in DTYPES:
        # Without the head: its logits of a quarter of a million tokens would take gigabytes.
        model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=getattr(torch, dtype)).model
        with torch.no_grad():
            states = [model(row[None], output_hidden_states=True).hidden_states for row in ids.view(PASSAGES, TOKENS)]
        for cut in CUTS:
            rows = torch.cat([state[cut][0] for state in states]).contiguous()
            bits = rows.view(torch.int16).numpy().view(np.uint16) if dtype == "bfloat16" else rows.numpy()
            np.save(_path(cut, dtype, directory), bits)


def _path(cut: int, dtype: str, directory: Path) -> Path:
    return directory / f"gemma3-270m-cut{cut}-{dtype}.npy"


def _text() -> str:
    topics = pydoc_data.topics.topics
    return "\n\n".join(topics[name] for name in sorted(topics))[: PASSAGES * TOKENS * 8]


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else default_directory()
    save(target)
    print(f"saved {len(CUTS) * len(DTYPES)} activations in {target}")
