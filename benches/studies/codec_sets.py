"""How fast is every codec on each instruction set of this processor, and how much faster than its peer?

    python -m benches.studies.codec_sets [ROUNDS]

One thread, [4096, 640] float32 of normal values with a few channels a hundred times the rest; lossless_bf16 takes it
as bfloat16. All take turns, the first is a copy; the least processor time of all rounds counts, checksums included.
Peers: lines of torch that do the same, argpartition for top-k, zlib -1 of the same codes where codes are coded, NumPy's
product for a matrix. Fractions of GB/s are of the input.
"""

from __future__ import annotations

import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import orbitsplit as osp
from benches.bench_codec import activation, calibrated
from orbitsplit._backend import load_backend

SHAPE = (4096, 640)
ROUNDS = 30
# One that has taken so long in all is not asked again.
PATIENCE_S = 4.0


@dataclass
class Pair:
    """Encoding and decoding of one codec or peer, with the least seconds of both."""

    name: str
    bytes: int
    encode: Callable[[], Any]
    decode: Callable[[Any], Any]
    isa: str = ""
    peer: str = ""
    least: list[float] = field(default_factory=lambda: [np.inf, np.inf])
    spent_s: float = 0.0

    def take_turn(self) -> None:
        """Run both once; small ones often, so that reading the clock does not count."""
        if self.spent_s > PATIENCE_S:
            return
        repeats = 200 if self.bytes < 100_000 else 1
        laps = [time.process_time()]
        for _ in range(repeats):
            encoded = self.encode()
        laps.append(time.process_time())
        for _ in range(repeats):
            self.decode(encoded)
        laps.append(time.process_time())
        self.least = np.minimum(self.least, np.diff(laps) / repeats).tolist()
        self.spent_s += laps[-1] - laps[0]


def ours(name: str, codec: Any, x: Any, isa: str, peer: str) -> Pair:
    """A codec of this package, with memory of its own."""
    encoder, decoder = (
        osp.Encoder(codec, x.shape, x.dtype),
        osp.Decoder(x.shape, x.dtype, codebook=None if isinstance(codec, str) else codec),
    )
    size = x.nbytes if isinstance(x, np.ndarray) else x.numel() * x.element_size()
    return Pair(name, size, lambda: encoder.encode(x), decoder.decode, isa, peer)


def torch_int8(x: Any) -> Pair:
    groups = torch.from_numpy(x).view(-1, 64)

    def encode() -> Any:
        scale = groups.abs().amax(dim=1, keepdim=True) / 127
        return torch.round(groups / scale).to(torch.int8), scale

    return Pair("torch int8", x.nbytes, encode, lambda encoded: encoded[0] * encoded[1])


def torch_steps(x: Any, codec: Any) -> Pair:
    """What a calibrated codec does where nothing is coded: a step for each channel."""
    rows, step = torch.from_numpy(x), torch.tensor(codec.step)

    def encode() -> Any:
        return torch.round(rows / step).clamp_(-127, 127).to(torch.int8)

    return Pair("torch steps", x.nbytes, encode, lambda codes: codes * step)


def zlib_steps(x: Any, codec: Any) -> Pair:
    """The same codes as bytes by zlib, level 1."""
    inner = torch_steps(x, codec)
    step = torch.tensor(codec.step)

    def decode(data: bytes) -> Any:
        return torch.frombuffer(bytearray(zlib.decompress(data)), dtype=torch.int8).view(SHAPE) * step

    return Pair("zlib steps", x.nbytes, lambda: zlib.compress(inner.encode().numpy().tobytes(), 1), decode)


def transformed(width: int) -> dict[str, Any]:
    """Codecs with a transform in front of the coder, one step for all channels."""
    coded = calibrated(width, is_coded=True)
    tables = {"tables": coded.tables, "table_of_channel": coded.table_of_channel}
    step = np.full(width, np.sqrt(np.mean(np.square(activation((200, width))))) / 2, np.float32)
    matrix = np.linalg.qr(np.random.default_rng(7).standard_normal((width, width)))[0].astype(np.float32)
    return {
        "Hadamard 128": osp.CalibratedCodec(codebook=1, step=step, hadamard=128, **tables),
        "matrix": osp.CalibratedCodec(codebook=1, step=step, matrix=matrix, **tables),
    }


def product(x: Any, codec: Any) -> Pair:
    """NumPy's product with the matrix alone, which may sum in any order."""
    there, back, out = np.ascontiguousarray(codec.matrix.T), np.ascontiguousarray(codec.matrix), np.empty_like(x)
    return Pair("matmul", x.nbytes, lambda: np.matmul(x, there, out=out), lambda y: np.matmul(y, back))


def partitioned(x: Any, keep: float) -> Pair:
    kept = round(keep * x.shape[1])

    def decode(chosen: Any) -> Any:
        out = np.zeros_like(x)
        np.put_along_axis(out, chosen, np.take_along_axis(x, chosen, axis=1), axis=1)
        return out

    def encode() -> Any:
        return np.argpartition(-np.abs(x), kept, axis=1)[:, :kept]

    return Pair(f"argpartition {keep:.0%}", x.nbytes, encode, decode)


def pairs() -> list[Pair]:
    x = activation(SHAPE)
    row = x[:1].copy()
    plain, coded = (calibrated(SHAPE[1], is_coded=is_coded) for is_coded in (False, True))
    out, transforms = np.empty_like(x), transformed(SHAPE[1])
    result = [
        Pair("copy", x.nbytes, lambda: np.copyto(out, x), lambda _: np.copyto(out, x)),
        torch_int8(x),
        torch_steps(x, plain),
        zlib_steps(x, coded),
        partitioned(x, 0.1),
        partitioned(x, 0.25),
        product(x, transforms["matrix"]),
    ]
    short = torch.from_numpy(x).bfloat16()
    for isa in load_backend("native").isas():
        result += [
            ours("int8", "int8", x, isa, "torch int8"),
            ours("topk 10 %", "topk:0.1", x, isa, "argpartition 10%"),
            ours("topk 25 %", "topk:0.25", x, isa, "argpartition 25%"),
            ours("lossless_bf16, of bfloat16", "lossless_bf16", short, isa, "copy"),
            ours("calibrated, plain", plain, x, isa, "torch steps"),
            ours("calibrated, coded", coded, x, isa, "zlib steps"),
            ours("calibrated, coded, one row", coded, row, isa, ""),
            ours("calibrated, coded, Hadamard 128", transforms["Hadamard 128"], x, isa, ""),
            ours("calibrated, coded, matrix", transforms["matrix"], x, isa, "matmul"),
        ]
    return result


def check(everyone: list[Pair], core: Any) -> None:
    """Raise AssertionError unless every set makes the frames and arrays of the first, which is the scalar one."""
    first: dict[str, tuple[Any, Any]] = {}
    for pair in everyone:
        if pair.isa:
            core.set_isa(pair.isa)
            frame = bytes(pair.encode())
            decoded = torch.as_tensor(pair.decode(frame)).float().numpy().copy()
            known_frame, known = first.setdefault(pair.name, (frame, decoded))
            assert frame == known_frame, f"{pair.name} on {pair.isa}: another frame"
            assert np.array_equal(decoded, known), f"{pair.name} on {pair.isa}: another array"


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    torch.set_num_threads(1)
    core = load_backend("native")
    chosen, everyone = core.isa(), pairs()
    check(everyone, core)
    for _ in range(rounds):
        for pair in everyone:
            core.set_isa(pair.isa or chosen)
            pair.take_turn()
    core.set_isa(chosen)
    speeds = {pair.name: [pair.bytes / least for least in pair.least] for pair in everyone if not pair.isa}
    print("| codec | set | encode GB/s | decode GB/s | us | peer | encode x peer | decode x peer |")
    print("| --- " * 8 + "|")
    for pair in everyone:
        cells = [pair.name, pair.isa, *(f"{pair.bytes / least / 1e9:.2f}" for least in pair.least)]
        cells += [f"{1e6 * sum(pair.least):.1f}", pair.peer]
        if pair.peer:
            ratios = zip(pair.least, speeds[pair.peer], strict=True)
            cells += [f"{pair.bytes / least / speed:.1f}" for least, speed in ratios]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
