"""Write tests/data/codebooks: codebook files that every later version must read, and frames of their levels.

    python -m tests.golden.make_codebook

small is of version 1, half of version 2, with its matrices in float16, and follows of version 3, where inverses follow
from their matrices. A line of the text beside a file has a cut, a level, the rows of an array of float32, and as hex
the array, its frame and what that decodes to, all made with the Python package. Readers in other languages are compared
with them.
"""

from __future__ import annotations

import numpy as np

import orbitsplit as osp
from orbitsplit._codebook.halves import MATRICES
from orbitsplit._codebook.inverses import INVERSE_FOLLOWS
from tests.golden.make_calibrated_frames import codecs
from tests.support.paths import DATA

FOLDER = DATA / "codebooks"
NAMES = ("small", "half", "follows")
WIDTH = 8
ROWS = (3, 70)
SCALARS = ("rounding", "shrink", "hadamard", INVERSE_FOLLOWS)


def entry(number: int, name: str, parameters: dict[str, object], tensors: dict[str, np.ndarray]) -> osp.CodebookEntry:
    """Return a level with these parameters, whose arrays are added to `tensors`."""
    arrays = {key: f"{name}.{key}" for key in parameters if key not in SCALARS}
    tensors |= {tensor: np.asarray(parameters[key]) for key, tensor in arrays.items()}
    return osp.CodebookEntry(
        level=osp.CodebookLevel(
            name=f"{name} é",  # not ASCII, as names may be
            bits_per_element=8.5 - number,
            loss=0.125 * number,
            loss_error=1e-05,
            encode_s_per_byte=1.5e-10,
            decode_s_per_byte=2e-10,
        ),
        scalars={key: parameters[key] for key in SCALARS if key in parameters},
        arrays=arrays,
    )


def halves(parameters: dict[str, object]) -> dict[str, object]:
    """Return parameters with the matrices in float16."""
    return {key: value.astype(np.float16) if key in MATRICES else value for key, value in parameters.items()}


def of_version(name: str, parameters: dict[str, object]) -> dict[str, object]:
    """Return parameters as the book of this name has them."""
    if name == "small":
        return parameters
    stored = halves(parameters)
    if name == "follows" and stored.pop("inverse", None) is not None:
        stored[INVERSE_FOLLOWS] = True
    return stored


def book(name: str) -> osp.Codebook:
    """Return a codebook with a level for each kind of codec: fixed at cut 2, calibrated at 2 and 11."""
    tensors: dict[str, np.ndarray] = {}
    kinds = [(kind, of_version(name, given)) for kind, given in codecs(WIDTH)]
    made = [entry(k, kind, parameters, tensors) for k, (kind, parameters) in enumerate(kinds)]
    fixed = osp.CodebookEntry(level=made[0].level, codec="int8:16")
    return osp.Codebook(
        osp.CalibratedModel(
            name="toy",
            architecture="ToyForCausalLM",
            layers=12,
            width=WIDTH,
            layer_hashes=tuple(f"{k:064x}" for k in range(12)),
        ),
        {2: [fixed, *made[:2]], 11: made[2:]},
        tensors,
        accuracy=osp.AccuracyCurve(0.5, 0.01, 5),
        provenance={"note": 'quotes " and \\ and a smile \U0001f600'},
    )


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in NAMES:
        made = book(name)
        made.save(FOLDER / f"{name}.safetensors")
        lines = []
        for rows in ROWS:
            x = np.random.default_rng(rows).standard_normal((rows, WIDTH)).astype(np.float32) * 2
            x[0] *= 100
            for cut in made.cuts:
                for level in range(len(made.levels(cut))):
                    frame = osp.compress(x, codec=made[cut, level])
                    decoded = osp.decompress(frame, made)
                    lines.append(f"{cut} {level} {rows} {x.tobytes().hex()} {frame.hex()} {decoded.tobytes().hex()}\n")
        (FOLDER / f"{name}.txt").write_text("".join(lines), encoding="ascii")


if __name__ == "__main__":
    main()
