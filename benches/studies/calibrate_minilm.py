"""Calibrate the sentence encoder all-MiniLM-L6-v2 (from PyPI) and measure what its codecs cost on other text.

python -m benches.studies.calibrate_minilm
"""

from __future__ import annotations

import pydoc_data.topics
import time

from all_minilm_l6_v2 import get_model_path

import orbitsplit as osp
from orbitsplit.calibration import held_out


def passages(part: str) -> list[str]:
    """Return paragraphs of CPython's documentation; those of every fifth topic are held out."""
    topics = pydoc_data.topics.topics
    chosen = [topics[name] for k, name in enumerate(sorted(topics)) if (k % 5 == 4) == (part == "held-out")]
    return [paragraph for topic in chosen for paragraph in topic.split("\n\n") if len(paragraph) > 200]


def main() -> None:
    """Print minutes, and for each level at all inner cuts at once the ratio against float32 and the cosine distance."""
    model = get_model_path()
    start_s = time.monotonic()
    book = osp.calibrate(model, passages("calibration"), cuts="inner", prompt_tokens=128)
    print(f"{book}: {(time.monotonic() - start_s) / 60:.1f} minutes")
    reference = held_out(model, passages("held-out"), prompt_tokens=128)
    print("| level, at all inner cuts at once | x float32 | mean cosine distance |")
    print("| --- | --- | --- |")
    for level in book.table().levels[1:]:
        if all(level.name in [one.name for one in book.levels(cut)] for cut in book.cuts):
            found = reference.measure({cut: book[cut, book.level_of(cut, level.name)] for cut in book.cuts})
            print(f"| {level.name} | {32 / found.bits_per_element:.2f} | {found.loss:.5f} |", flush=True)


if __name__ == "__main__":
    main()
