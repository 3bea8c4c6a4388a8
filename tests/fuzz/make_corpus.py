"""Write the first inputs of each fuzzer, a file each: golden frames, codebooks, and numbers that problems are made of.

python tests/fuzz/make_corpus.py DIRECTORY
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

DATA = Path(__file__).parents[1] / "data"
PROBLEMS = 64


def main(directory: Path) -> None:
    for name in ("frames", "codebooks", "problems"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    for path in sorted((DATA / "frames").glob("*.json")):
        for golden in json.loads(path.read_text()):
            frame = bytes.fromhex(golden["frame"])
            (directory / "frames" / golden["name"].replace(":", "-")).write_bytes(frame)
    for path in sorted((DATA / "codebooks").glob("*.safetensors")):
        (directory / "codebooks" / path.name).write_bytes(path.read_bytes())
    for line in (DATA / "codebooks" / "small.txt").read_text(encoding="ascii").splitlines():
        cut, level, rows, _, frame, _ = line.split()
        (directory / "frames" / f"codebook-{cut}-{level}-{rows}").write_bytes(bytes.fromhex(frame))
    for seed in range(PROBLEMS):
        (directory / "problems" / f"random-{seed}").write_bytes(random.Random(seed).randbytes(400))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
