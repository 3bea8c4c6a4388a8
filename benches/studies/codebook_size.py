"""What matrices in float16 instead of float32 change: the loss of each level at equal bits, and the size of the file.

    python -m benches.studies.codebook_size

Gemma 3 270M on CPython's documentation, at three cuts: the statistics, the measured rows and everything else are the
same. Encoders and decoders compute in float32 in both.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import orbitsplit as osp
from benches.studies.calibrate_gemma import CUTS, texts
from orbitsplit._models.source import demo_model
from orbitsplit.calibration import _fit

LEVELS = (4.0, 3.2, 2.4)


def calibrated(most_rounding: float) -> osp.Codebook:
    """Return a codebook whose matrices are rounded to float16 if that changes them by less than a limit."""
    _fit._MOST_ROUNDING, before = most_rounding, _fit._MOST_ROUNDING
    try:
        return osp.calibrate(
            demo_model(),
            texts("calibration"),
            cuts=CUTS,
            levels=LEVELS,
            codecs=("klt",),
            prompt_tokens=128,
            fit_samples=24,
            measure_samples=8,
            hull_only=False,
        )
    finally:
        _fit._MOST_ROUNDING = before


def main() -> None:
    single, half = calibrated(0.0), calibrated(_fit._MOST_ROUNDING)
    print("cut level     float32: bits, loss         float16: bits, loss")
    for cut in CUTS:
        for k, (a, b) in enumerate(zip(single.levels(cut), half.levels(cut), strict=True)):
            figures = [f"{one.bits_per_element:.3f} {one.loss:.5f} +- {one.loss_error:.5f}" for one in (a, b)]
            print(f"{cut:3} {a.name:9} {figures[0]}   {figures[1]}")
            assert single.codec_of(cut, k).matrix is not None
    with tempfile.TemporaryDirectory() as folder:
        for name, book in (("float32", single), ("float16", half)):
            path = Path(folder) / name
            book.save(path)
            size = f"{path.stat().st_size / 1e6:.2f} MB for {len(CUTS)} cuts"
            print(f"{name}: {size}, version {book.to_dict()['version']}")


if __name__ == "__main__":
    main()
