"""Write tests/data/frames/calibrated.json: frames that every later version must read, built by the judge.

    python -m tests.golden.make_calibrated_frames

An entry has the parameters of its codec, its dtype and shape, and as hex the input, the frame and what it decodes to.
"""

from __future__ import annotations

import json

import numpy as np

from tests.judges import calibrated_frames as judge_calibrated
from tests.support.paths import DATA

PATH = DATA / "frames" / "calibrated.json"
ARRAYS = {
    "step": "<f4",
    "shift": "<f4",
    "scale": "<f4",
    "threshold": "<f4",
    "matrix": "<f4",
    "inverse": "<f4",
    "tables": "u1",
    "table_of_channel": "u1",
}


def parameters_from(entry):
    """Parameters of a codec from their form in the file."""
    arrays = {name: np.frombuffer(bytes.fromhex(entry[name]), ARRAYS[name]) for name in entry if name in ARRAYS}
    rows = {"matrix": len(arrays["step"]), "inverse": len(arrays["step"]), "tables": 256}
    arrays |= {name: arrays[name].reshape(-1, rows[name]) for name in rows if name in arrays}
    return {**entry, **arrays}


def codecs(n):
    rng = np.random.default_rng(12)
    numbers = {
        "step": np.full(n, 0.25),
        "shift": rng.standard_normal(n),
        "threshold": np.where(rng.random(n) < 0.5, 0.4, 0),
        "scale": np.exp(rng.standard_normal(n)),
        "matrix": np.linalg.qr(rng.standard_normal((n, n)))[0],
    }
    arrays = {name: value.astype(np.float32) for name, value in numbers.items()}
    codes = np.rint(rng.standard_normal((2, 5000)) * [[3], [9]]).clip(-128, 127).astype(np.int8).view(np.uint8)
    counts = np.array([np.bincount(row, minlength=256) for row in codes])
    coded = {
        "tables": (counts * 250 // 5000).astype(np.uint8),
        "table_of_channel": rng.integers(0, 2, n).astype(np.uint8),
    }
    affine = {name: arrays[name] for name in ("step", "shift", "threshold")} | {"rounding": 0.375, "shrink": 0.0625}
    yield "stored", {"step": arrays["step"]}
    yield "coded", {"step": arrays["step"], **coded}
    yield "affine", affine | coded
    yield "hadamard", affine | coded | {"scale": arrays["scale"], "hadamard": 4}
    yield "dense", affine | coded | {"scale": arrays["scale"], "matrix": arrays["matrix"]}
    matrix = np.eye(n) + rng.standard_normal((n, n)) / n
    pair = {"matrix": matrix.astype(np.float32), "inverse": np.linalg.inv(matrix).astype(np.float32)}
    yield "inverse", affine | coded | {"scale": arrays["scale"]} | pair


def main() -> None:
    golden = []
    for shape, dtypes in (((3, 8), judge_calibrated.judge.DTYPES), ((66, 8), ("float32",)), ((258, 4), ("float32",))):
        rng = np.random.default_rng(5)
        x = rng.standard_normal(shape).astype(np.float32) * 2
        x[0] *= 100
        x[:, 1] *= 30
        for name, parameters in codecs(shape[1]):
            for dtype in dtypes:
                parameters = {"codebook": 0x1234567890ABCDEF, "cut": 5, "level": 2, **parameters}
                short = x.astype(np.float16).view(np.uint16) if dtype == "float16" else (x.view(np.uint32) >> 16)
                bits = x.view(np.uint32) if dtype == "float32" else short.astype(np.uint16)
                plain = {k: v.tobytes().hex() if isinstance(v, np.ndarray) else v for k, v in parameters.items()}
                golden.append(
                    {
                        "name": f"{name}-{dtype}-{shape[0]}",
                        "parameters": plain,
                        "dtype": dtype,
                        "shape": list(shape),
                        "input": bits.tobytes().hex(),
                        "frame": judge_calibrated.encode(bits, dtype, parameters).hex(),
                        "output": judge_calibrated.decode(bits, dtype, parameters).hex(),
                    }
                )
    PATH.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in golden) + "\n]\n")


if __name__ == "__main__":
    main()
