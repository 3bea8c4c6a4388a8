"""Write each golden frame into a file of its own, as libFuzzer reads its first inputs.

python tests/fuzz/make_corpus.py DIRECTORY
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

FRAMES = Path(__file__).parents[1] / "data" / "frames"


def main(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for path in sorted(FRAMES.glob("*.json")):
        for golden in json.loads(path.read_text()):
            (directory / golden["name"].replace(":", "-")).write_bytes(bytes.fromhex(golden["frame"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
