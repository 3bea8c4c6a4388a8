"""What a user does first with an installed wheel: a plan, frames by every codec, and calls from several threads."""

from __future__ import annotations

import importlib.metadata
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import orbitsplit as osp
from orbitsplit import _core

CODECS = ("raw", "bf16", "lossless_bf16", "int8", "int8:128", "int4", "topk:0.1")


def main() -> None:
    """Print which module was used, and fail if a result is not what it is to be."""
    assert _core.__version__ == importlib.metadata.version("orbitsplit")
    assert "site-packages" in Path(_core.__file__).parts, f"{_core.__file__} is not that of the wheel"
    solution = osp.solve(_problem())
    assert (solution.status, round(solution.objective_s, 9)) == ("optimal", 5.5), solution

    x = np.sin(np.arange(64 * 640, dtype=np.float32)).reshape(64, 640)
    expected = {codec: bytes(osp.compress(x, codec=codec)) for codec in CODECS}
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda codec: (codec, bytes(osp.compress(x, codec=codec))), CODECS * 40))
    assert all(frame == expected[codec] for codec, frame in found)
    errors = {codec: float(np.abs(osp.decompress(frame) - x).max()) for codec, frame in expected.items()}
    assert errors["raw"] == 0
    assert max(errors["bf16"], errors["lossless_bf16"], errors["int8"], errors["int8:128"]) < 0.005
    lock = getattr(sys, "_is_gil_enabled", lambda: True)()
    print(f"Python {sys.version.split()[0]}, interpreter lock {lock}, kernels {_core.isa()}: plan and frames are right")


def _problem() -> osp.Problem:
    return osp.Problem.from_dict(
        {
            "layers": ["a", "b", "c"],
            "nodes": [{"name": "n0", "memory_bytes": 2e9}, {"name": "n1", "memory_bytes": 2e9}],
            "layer_memory_bytes": [1e9] * 3,
            "layer_time_s": [[1] * 3, [2] * 3],
            "cut_bytes": [4e6] * 2,
            "bandwidth_bytes_per_s": [[0, 1e6], [1e6, 0]],
            "latency_s": [[0, 0.5], [0.5, 0]],
            "levels": [{"name": "raw", "ratio": 1}, {"name": "int8", "ratio": 4}],
            "loss": [[0, 0.1]] * 2,
            "loss_budget": 0.1,
        }
    )


if __name__ == "__main__":
    main()
