"""Write tests/data/frames/frames.json: inputs, frames and what they decode to, all by the judge.

Run once per version of the format, and only to add: frames of the past stay as they are, because readers of today must
read them.

    python -m tests.golden.make_golden_frames
"""

from __future__ import annotations

import json

import numpy as np

from orbitsplit._codec.codecs import Codec
from tests.judges import codec as judge
from tests.support.paths import DATA

PATH = DATA / "frames" / "frames.json"


def inputs():
    """Yield (name, float32 values): ordinary ones and the corners of float32."""
    rng = np.random.default_rng(2604)
    yield "normal", rng.standard_normal((3, 70))
    yield "scalar", np.array(-1.5)
    yield "empty", np.zeros((2, 0, 5))
    yield "outliers", np.where(rng.random((2, 200)) < 0.02, 300.0, 1.0) * rng.standard_normal((2, 200))
    yield "ties", rng.integers(-2, 3, (2, 65))
    yield "zeros", np.array([[0.0, -0.0] * 16])
    yield "small", rng.integers(-9, 10, (1, 33)) * 2.0**-149
    yield "large", np.array([[3.4028235e38, -3.4028235e38, 65504.0, 65520.0, 1.0, 2.0**-126, -7.0, 0.1]])


def main() -> None:
    golden = []
    for name, values in inputs():
        for dtype in judge.DTYPES:
            with np.errstate(over="ignore"):
                single = np.asarray(values, np.float32)
                halves = np.clip(single, -65504, 65504).astype(np.float16).view(np.uint16)
            short = halves if dtype == "float16" else (single.view(np.uint32) >> 16).astype(np.uint16)
            bits = single.view(np.uint32) if dtype == "float32" else short
            for text in ("raw", "bf16", "int8", "int4:32", "topk", "topk:0.02", "lossless_bf16"):
                codec = Codec.parse(text)
                frame = judge.encode(bits, dtype, codec.name, group=codec.group or 64, keep=codec.keep or 0.25)
                golden.append(
                    {
                        "name": f"{name}-{dtype}-{text}",
                        "codec": text,
                        "dtype": dtype,
                        "shape": list(bits.shape),
                        "input": bits.tobytes().hex(),
                        "frame": frame.hex(),
                        "output": judge.decode(frame).hex(),
                    }
                )
    PATH.parent.mkdir(parents=True, exist_ok=True)
    PATH.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in golden) + "\n]\n")


if __name__ == "__main__":
    main()
