"""What do others make of real activations, and how fast? Our codecs beside general and floating-point compressors.

    python -m benches.bench_codec_peers                         the tables of docs/benchmarks.md; a minute or two
    pytest benches/bench_codec_peers.py --benchmark-disable     every peer once on a few rows, the answers alone

The input is what cuts 5, 9 and 14 of Gemma 3 270M send (activations.py): two passages to fit codecs on, and six that
are measured, [3072, 640]. One thread. Peers take turns, each turn beginning with a copy of the same input, so that a
speed can be given as a part of a copy's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import pytest

import orbitsplit as osp
from benches.studies.activations import CUTS, TOKENS, activations

ROUNDS = 9
# A peer that has taken so long in all is not asked again.
PATIENCE_S = 4.0
GROUP = 64
FITTED_ROWS = 2 * TOKENS
# Of the root mean square of a channel: about 4 bits for an element.
RELATIVE_STEP = 0.25


@dataclass(frozen=True)
class Peer:
    """One way to encode an array and back: `decode` gives the array, bit for bit where no error is claimed.

    `largest_error` is what an element may be off, as a part of the largest magnitude of its row.
    """

    name: str
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]
    size: Callable[[Any], int] = len
    largest_error: float = 0.0


@dataclass(frozen=True)
class Figures:
    """What one peer did with one array: bytes, the least seconds of all rounds, errors.

    `error` is that of all elements, `channel_error` the mean of those of the channels, as parts of the norms: the first
    is ruled by a few massive channels. `largest_error` is a part of the largest magnitude of a row.
    """

    size: int
    copy_s: float
    encode_s: float
    decode_s: float
    error: float
    channel_error: float
    largest_error: float


def ours(text: str, fitted: Any, largest_error: float = 0.0) -> Peer:
    """A codec of this package with memory of its own, as the pipeline has it for every link."""
    coders: dict[Any, tuple[Any, Any]] = {}
    dtype = "bfloat16" if fitted.dtype == np.uint16 else "float32"

    def of_shape(shape: Any) -> tuple[Any, Any]:
        if shape not in coders:
            coders[shape] = osp.Encoder(text, shape, dtype), osp.Decoder(shape, dtype)
        return coders[shape]

    def encode(x: Any) -> Any:
        return of_shape(x.shape)[0].encode(as_tensor(x) if dtype == "bfloat16" else x), x.shape

    def decode(encoded: Any) -> Any:
        decoded = of_shape(encoded[1])[1].decode(encoded[0])
        return decoded.view(import_module("torch").int16).numpy().view(np.uint16) if dtype == "bfloat16" else decoded

    return Peer(f"orbitsplit {text}", encode, decode, lambda encoded: len(encoded[0]), largest_error=largest_error)


def as_tensor(bits: Any) -> Any:
    torch = import_module("torch")
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)


def calibrated(fitted: Any) -> Peer:
    """A step for each channel and 16 tables of codes, all found on the rows to fit on."""
    steps = channel_steps(fitted)
    codes = np.rint(fitted / steps).clip(-127, 127).astype(np.int8)
    # Channels with alike codes share a table.
    order = np.argsort(np.abs(codes.astype(np.float32)).mean(axis=0))
    tables, table_of_channel = np.zeros((16, 256), np.uint8), np.zeros(steps.size, np.uint8)
    for number, channels in enumerate(np.array_split(order, 16)):
        counts = np.bincount(codes[:, channels].view(np.uint8).reshape(-1), minlength=256)
        # At least 1 of 256 is left for the bytes that are rarer than that.
        tables[number] = counts * 255 // counts.sum()
        table_of_channel[channels] = number
    codec = osp.CalibratedCodec(codebook=1, step=steps, tables=tables, table_of_channel=table_of_channel)
    memory: dict[Any, tuple[Any, Any]] = {}

    def encode(x: Any) -> Any:
        if x.shape not in memory:
            memory[x.shape] = np.empty(osp.frame_bytes(x.shape, x.dtype, codec), np.uint8), np.empty_like(x)
        return osp.compress(x, codec, out=memory[x.shape][0]), x.shape

    return Peer(
        "orbitsplit calibrated, 4 bits",
        encode,
        lambda encoded: osp.decompress(encoded[0], codec, out=memory[encoded[1]][1]),
        lambda encoded: len(encoded[0]),
        largest_error=0.5,
    )


def zstd(like: Any, level: int) -> Peer:
    module = import_module("zstandard")
    encoder, decoder = module.ZstdCompressor(level=level), module.ZstdDecompressor()
    return Peer(f"zstd -{level}", encoder.compress, lambda data: np.frombuffer(decoder.decompress(data), like.dtype))


def lz4(like: Any) -> Peer:
    module = import_module("lz4.frame")
    return Peer("lz4", module.compress, lambda data: np.frombuffer(module.decompress(data), like.dtype))


def blosc2(like: Any, codec: str) -> Peer:
    module = import_module("blosc2")
    options = {"codec": module.Codec[codec.upper()], "filters": [module.Filter.BITSHUFFLE], "clevel": 5, "nthreads": 1}
    return Peer(
        f"blosc2 {codec} + bitshuffle",
        lambda x: module.compress2(x, typesize=x.itemsize, **options),
        lambda data: np.frombuffer(module.decompress2(data, nthreads=1), like.dtype),
    )


def pcodec(_: Any) -> Peer:
    module = import_module("pcodec")
    config, pcodec = module.ChunkConfig(), module.standalone
    return Peer("pcodec", lambda x: pcodec.simple_compress(x.reshape(-1), config), pcodec.simple_decompress)


def zipnn(like: Any) -> Peer:
    name = "bfloat16" if like.dtype == np.uint16 else "float32"
    coder = import_module("zipnn").ZipNN(bytearray_dtype=name, threads=1)
    # It overwrites what it is given.
    return Peer(
        "ZipNN", lambda x: coder.compress(bytearray(x)), lambda d: np.frombuffer(coder.decompress(d), like.dtype)
    )


def torch_bf16(_: Any) -> Peer:
    torch = import_module("torch")
    return Peer(
        "torch bf16",
        lambda x: torch.from_numpy(x).bfloat16(),
        lambda short: short.float().numpy(),
        lambda short: 2 * short.numel(),
        largest_error=2.0**-8,
    )


def torch_int8(_: Any) -> Peer:
    """One scale for each row, as inference servers quantise activations per token."""
    torch = import_module("torch")

    def encode(x: Any) -> Any:
        x = torch.from_numpy(x)
        scale = x.abs().amax(dim=1, keepdim=True) / 127
        return torch.round(x / scale).to(torch.int8), scale

    return Peer(
        "torch int8 per token",
        encode,
        lambda encoded: (encoded[0] * encoded[1]).numpy(),
        lambda encoded: encoded[0].numel() + 4 * encoded[1].numel(),
        largest_error=0.51 / 127,
    )


def numpy_int8(_: Any) -> Peer:
    def encode(x: Any) -> Any:
        groups = x.reshape(-1, GROUP)
        scale = np.abs(groups).max(axis=1, keepdims=True) / np.float32(127)
        return np.rint(groups / scale).astype(np.int8), scale

    return Peer(
        f"numpy int8, groups of {GROUP}",
        encode,
        lambda encoded: encoded[0] * encoded[1],
        lambda encoded: encoded[0].nbytes + encoded[1].nbytes,
        largest_error=0.51 / 127,
    )


def channel_steps(fitted: Any) -> Any:
    return (RELATIVE_STEP * np.sqrt(np.square(fitted, dtype=np.float64).mean(axis=0))).astype(np.float32)


def constriction(fitted: Any) -> Peer:
    """A step for each channel, one table for the codes of all and one state of its entropy coder."""
    coders = import_module("constriction").stream
    steps = channel_steps(fitted)
    # Its models refuse symbols outside of their range: -1023 to 1023, all of them possible.
    codes = np.clip(np.rint(fitted / steps), -1023, 1023).astype(np.int64) + 1023
    counts = np.bincount(codes.reshape(-1), minlength=2047).astype(np.float32)
    model = coders.model.Categorical(counts, perfect=False)

    def encode(x: Any) -> Any:
        symbols = np.rint(x / steps).astype(np.int32) + 1023
        coder = coders.stack.AnsCoder()
        coder.encode_reverse(symbols.reshape(-1), model)
        return coder.get_compressed(), len(x)

    def decode(encoded: Any) -> Any:
        words, rows = encoded
        symbols = coders.stack.AnsCoder(words).decode(model, rows * steps.size)
        return (symbols.reshape(rows, -1) - 1023).astype(np.float32) * steps

    return Peer("constriction, step per channel", encode, decode, lambda encoded: encoded[0].nbytes, largest_error=0.5)


# What makes each peer, from the rows that a codec may be fitted on.
EXACT: dict[str, Callable[[Any], Peer]] = {
    "raw": lambda like: ours("raw", like),
    "lossless_bf16": lambda like: ours("lossless_bf16", like, 0.0 if like.dtype == np.uint16 else 2.0**-8),
    "zstd -1": lambda like: zstd(like, 1),
    "zstd -3": lambda like: zstd(like, 3),
    "lz4": lz4,
    "blosc2 lz4": lambda like: blosc2(like, "lz4"),
    "blosc2 zstd": lambda like: blosc2(like, "zstd"),
    "pcodec": pcodec,
    "ZipNN": zipnn,
}
LOSSY: dict[str, Callable[[Any], Peer]] = {
    "bf16": lambda like: ours("bf16", like, 2.0**-8),
    "int8": lambda like: ours("int8", like, 0.52 / 127),
    "int8:640": lambda like: ours("int8:640", like, 0.52 / 127),
    "int4": lambda like: ours("int4", like, 0.52 / 7),
    "topk:0.25": lambda like: ours("topk:0.25", like, 1.0),
    "calibrated": calibrated,
    "torch bf16": torch_bf16,
    "torch int8": torch_int8,
    "numpy int8": numpy_int8,
    "constriction": constriction,
}


def check(peer: Peer, x: Any, decoded: Any) -> None:
    """Raise AssertionError unless the array came back as the peer claims."""
    decoded = decoded.reshape(x.shape)
    if peer.largest_error == 0:
        assert np.array_equal(x.view(np.uint8), decoded.view(np.uint8)), f"{peer.name} is not exact"
    else:
        limit = peer.largest_error * np.abs(x).max(axis=1, keepdims=True)
        assert np.all(np.abs(decoded - x) <= limit), f"{peer.name} is off by more than it claims"


def make(name: str, dtype: str) -> tuple[Peer, Any]:
    """Return a peer and a few rows for it, or skip the test."""
    try:
        rows = activations(9, dtype)
        return (EXACT | LOSSY)[name](rows[:FITTED_ROWS]), rows[FITTED_ROWS : FITTED_ROWS + 64]
    except ImportError as error:
        pytest.skip(str(error))


@pytest.mark.real_model
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of ZipNN
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", EXACT)
def test_exact_peer(benchmark, name, dtype):
    peer, x = make(name, dtype)
    benchmark.group = f"exact, {dtype}"
    check(peer, x, peer.decode(benchmark(peer.encode, x)))


@pytest.mark.real_model
@pytest.mark.parametrize("name", LOSSY)
def test_lossy_peer(benchmark, name):
    peer, x = make(name, "float32")
    benchmark.group = "lossy"
    check(peer, x, peer.decode(benchmark(peer.encode, x)))


def measure(peers: list[Peer], x: Any) -> dict[str, Figures]:
    """Return the figures of all peers on one array, taken in turns."""
    copy, figures = np.empty_like(x), {}
    seconds = {peer.name: np.empty((0, 3)) for peer in peers}
    for _ in range(ROUNDS):
        for peer in peers:
            if seconds[peer.name].sum() > PATIENCE_S:
                continue
            times = [time.perf_counter()]
            np.copyto(copy, x)
            times.append(time.perf_counter())
            encoded = peer.encode(x)
            times.append(time.perf_counter())
            decoded = peer.decode(encoded)
            times.append(time.perf_counter())
            seconds[peer.name] = np.vstack((seconds[peer.name], np.diff(times)))
            if peer.name not in figures:
                check(peer, x, decoded)
                figures[peer.name] = peer.size(encoded), errors(x, decoded.reshape(x.shape))
            # Neither is kept until the next turn: whoever then allocates would pay for it.
            del encoded, decoded
    copy_s = min(laps[:, 0].min() for laps in seconds.values())
    return {
        name: Figures(size, copy_s, *seconds[name][:, 1:].min(axis=0).tolist(), *lost)
        for name, (size, lost) in figures.items()
    }


def errors(x: Any, decoded: Any) -> tuple[float, float, float]:
    if x.dtype != np.float32 or np.array_equal(x, decoded):
        return 0.0, 0.0, 0.0
    x = x.astype(np.float64)
    off = np.abs(decoded - x)
    norms = np.linalg.norm(off, axis=0) / np.linalg.norm(x, axis=0)
    largest = off.max(axis=1) / np.abs(x).max(axis=1)
    return float(np.linalg.norm(off) / np.linalg.norm(x)), float(norms.mean()), float(largest.max())


def available(makers: dict[str, Callable[[Any], Peer]], fitted: Any) -> list[Peer]:
    peers = []
    for name, make in makers.items():
        try:
            peers.append(make(fitted))
        except ModuleNotFoundError as error:
            print(f"{name} is left out: {error.name} is not installed")
    return peers


def table(title: str, makers: dict[str, Callable[[Any], Peer]], dtype: str) -> str:
    """Return rows of Markdown: sizes added up over the cuts, speeds from all seconds, errors averaged."""
    arrays = [activations(cut, dtype) for cut in CUTS]
    results = [measure(available(makers, x[:FITTED_ROWS]), x[FITTED_ROWS:]) for x in arrays]
    arrays = [x[FITTED_ROWS:] for x in arrays]
    elements, given = sum(x.size for x in arrays), sum(x.nbytes for x in arrays)
    copied = sum(next(iter(result.values())).copy_s for result in results)
    lines = [
        f"{title}; copying ran at {given / copied / 1e9:.1f} GB/s",
        "",
        "| codec | x bf16 | x float32 | encode GB/s | x copy | decode GB/s | x copy | error | of channels | largest |",
        "| --- " * 10 + "|",
    ]
    for name in results[0]:
        figures = [result[name] for result in results]
        size = sum(figure.size for figure in figures)
        encode_s, decode_s = (sum(getattr(f, lap) for f in figures) for lap in ("encode_s", "decode_s"))
        speeds = [f"{given / s / 1e9:.2f} | {copied / s:.2f}" for s in (encode_s, decode_s)]
        lost = [np.mean([getattr(f, loss) for f in figures]) for loss in ("error", "channel_error", "largest_error")]
        cells = [name, f"{2 * elements / size:.2f}", f"{4 * elements / size:.2f}", *speeds]
        cells += [f"{value:.1e}" if value else "0" for value in lost]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    import_module("torch").set_num_threads(1)
    print(table("Exact, of bfloat16", EXACT, "bfloat16"), "\n")
    print(table("Exact, of float32", EXACT, "float32"), "\n")
    print(table("With loss, of float32", LOSSY, "float32"))


if __name__ == "__main__":
    main()
