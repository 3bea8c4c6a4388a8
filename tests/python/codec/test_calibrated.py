"""Calibrated codecs: bytes as the judge builds them on every instruction set, errors within a step, nothing clipped."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch

from orbitsplit import CalibratedCodec, CorruptFrameError, Decoder, Encoder, compress, decompress, frame_bytes
from orbitsplit._backend import load_backend
from orbitsplit._codec.calibrated import prepared
from tests.golden.make_calibrated_frames import PATH, parameters_from
from tests.judges import calibrated_frames as judge_calibrated
from tests.judges import codec as judge

NATIVE = load_backend("native")
NUMBA = load_backend("numba")
GOLDEN = json.loads(PATH.read_text())
# A table in which nearly everything is the escape.
RARE = np.zeros((1, 256), np.uint8)
RARE[0, 1] = 1


@pytest.fixture
def each_isa():
    """Call a function on every instruction set of the extension and in Numba; all must give the same."""
    chosen = NATIVE.isa()

    def run(codec, function):
        results = [function(prepared(codec, NUMBA))]
        for isa in NATIVE.isas():
            NATIVE.set_isa(isa)
            results.append(function(prepared(codec, NATIVE)))
        assert all(result == results[0] for result in results)
        return results[0]

    yield run
    NATIVE.set_isa(chosen)


def frequencies(codes):
    """A table of expected bytes from examples: those below 1 / 256 are left to the escape."""
    counts = np.bincount(np.asarray(codes).astype(np.uint8).reshape(-1), minlength=256)
    return np.maximum(counts * 250 // counts.sum(), 0).astype(np.uint8)


def orthogonal(n, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0].astype(np.float32)


def weighted(n, seed=0):
    """A matrix that is not orthogonal, and its inverse: U' F^(1/2) and F^(-1/2) U, of weights F that differ a lot."""
    root = np.geomspace(0.5, 2, n)
    axes = orthogonal(n, seed + 1).astype(np.float64)
    matrix = orthogonal(n, seed).T.astype(np.float64) @ (axes * root) @ axes.T
    return {"matrix": matrix.astype(np.float32), "inverse": np.linalg.inv(matrix).astype(np.float32)}


def parameters_of(n, kind, *, tables=3, seed=0):
    """Parameters of every kind of codec, fitted to normal channels of different sizes."""
    rng = np.random.default_rng(seed)
    size = np.exp(rng.standard_normal(n))
    steps = size / 4 if kind == "plain" else np.full(n, 0.25)
    parameters = {"codebook": 2**63 + 5, "cut": 17, "level": 3, "step": steps.astype(np.float32)}
    if kind != "plain":
        parameters |= {
            "shift": rng.standard_normal(n).astype(np.float32),
            "threshold": np.where(rng.random(n) < 0.5, 0.4, 0).astype(np.float32),
            "rounding": 0.375,
            "shrink": 0.0625,
        }
    if kind in ("hadamard", "dense", "inverse"):
        parameters["scale"] = (1 / size).astype(np.float32)
    if kind == "hadamard":
        parameters["hadamard"] = n & -n
        if n % 2:
            del parameters["scale"]
    if kind == "dense":
        parameters["matrix"] = orthogonal(n)
    if kind == "inverse":
        parameters |= weighted(n)
    if tables:
        codes = np.rint(rng.standard_normal((tables, 20000)) * 4 * np.arange(1, tables + 1)[:, None]).clip(-128, 127)
        parameters["tables"] = np.array([frequencies(row) for row in codes])
        parameters["table_of_channel"] = rng.integers(0, tables, n).astype(np.uint8)
    return parameters, size


def activations(shape, size, seed=1):
    """Normal channels with a massive one, a massive first row, and small and special numbers in between."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(shape) * size).astype(np.float32)
    rows = x.reshape(-1, shape[-1])
    if len(rows) > 1:
        rows[0] *= 300
    rows[:, 0] *= 200
    special = np.array([0.0, -0.0, 1e-45, -1e-40, 3.0e38, -3.4e38, 0.5, -127.5], np.float32)
    places = rng.integers(0, rows.size, 12)
    rows.reshape(-1)[places] = rng.choice(special, 12)
    return x


KINDS = ("plain", "affine", "hadamard", "dense", "inverse")
SHAPES = [(1,), (5,), (1, 64), (2, 3, 65), (63, 33), (64, 32), (65, 70), (130, 24), (300, 16), (1, 640)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tables", [0, 1, 3])
def test_frames_are_those_of_the_judge(kind, tables, each_isa):
    for shape in SHAPES:
        if kind in ("dense", "inverse") and shape[-1] > 100:
            continue
        parameters, size = parameters_of(shape[-1], kind, tables=tables)
        x = np.clip(activations(shape, size), -1e37, 1e37)
        codec = CalibratedCodec(**parameters)
        frame = each_isa(codec, lambda c, x=x: c.encode(x, 0, x.shape, 1))
        assert frame == judge_calibrated.encode(x.view(np.uint32), "float32", parameters), shape
        assert len(frame) <= prepared(codec, NATIVE).frame_bytes(0, shape)
        decoded = each_isa(codec, lambda c, frame=frame: c.decode(frame, 1 << 30, 1)[2].tobytes())
        assert decoded == judge_calibrated.decode(x.view(np.uint32), "float32", parameters)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["affine", "hadamard", "inverse"])
def test_frames_of_short_dtypes_are_those_of_the_judge(kind, dtype, each_isa):
    parameters, size = parameters_of(80, kind)
    x = np.clip(activations((70, 80), size), -65504, 65504)
    bits = x.astype(np.float16).view(np.uint16) if dtype == "float16" else (x.view(np.uint32) >> 16).astype(np.uint16)
    codec = CalibratedCodec(**parameters)
    number = judge.DTYPES.index(dtype)
    frame = each_isa(codec, lambda c: c.encode(bits, number, bits.shape, 1))
    assert frame == judge_calibrated.encode(bits, dtype, parameters)
    decoded = each_isa(codec, lambda c: c.decode(frame, 1 << 30, 1)[2].tobytes())
    assert decoded == judge_calibrated.decode(bits, dtype, parameters)


@pytest.mark.parametrize("entry", GOLDEN, ids=lambda entry: entry["name"])
def test_golden_frames_stay_what_they_are(entry, each_isa):
    codec = CalibratedCodec(**parameters_from(entry["parameters"]))
    dtype, shape = judge.DTYPES.index(entry["dtype"]), entry["shape"]
    assert each_isa(codec, lambda c: c.encode(bytes.fromhex(entry["input"]), dtype, shape)).hex() == entry["frame"]
    frame = bytes.fromhex(entry["frame"])
    assert each_isa(codec, lambda c: c.decode(frame, 1 << 30)[2].tobytes()).hex() == entry["output"]


def test_wide_rows_keep_their_escapes_in_order(each_isa):
    """More rows than a block, a group and a stream, of more channels than the nearest cache holds parameters for."""
    n = 2048 + 130
    parameters, size = parameters_of(n, "affine")
    codec = CalibratedCodec(**parameters)
    x = np.clip(activations((330, n), size), -1e37, 1e37)
    frame = each_isa(codec, lambda c: c.encode(x, 0, x.shape, 1))
    decoded = each_isa(codec, lambda c: c.decode(frame, 1 << 30, 1)[2].tobytes())
    y = np.frombuffer(decoded, np.float32).reshape(x.shape)
    for row in (0, 15, 16, 255, 256, 329):
        assert y[row].tolist() == judge_calibrated.decoded_row(
            judge_calibrated.numbers_of_row(x[row], parameters), parameters
        )


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_clipped(kind):
    """Massive rows and channels come back with bfloat16's error, the others with that of a step."""
    n = 64
    parameters, size = parameters_of(n, kind)
    codec = CalibratedCodec(**{**parameters, "threshold": None})
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((512, n)) * size).astype(np.float32)
    x[0] *= 1000
    x[:, 5] *= 500
    frame = compress(x, codec)
    error = np.abs(decompress(frame, codec) - x)
    scale = parameters.get("scale", np.ones(n, np.float32))
    shift = parameters.get("shift", 0)
    y = np.array([judge_calibrated.numbers_of_row(row, parameters) for row in x])
    of_escape = np.abs(y) * 2.0**-8
    bound = np.maximum(codec.step * 0.75, of_escape)
    if kind in ("hadamard", "dense", "inverse"):  # errors of a row are spread over it
        bound = np.linalg.norm(bound, axis=1, keepdims=True)
    if kind == "inverse":
        bound *= np.linalg.norm(parameters["inverse"], 2)
    assert np.all(error <= bound / scale * 1.001 + np.abs(x - shift) * 1e-5)
    # One row in 512 costs 4 bytes an element at most, a channel of escapes also; the rest some bits.
    if kind in ("plain", "affine"):
        assert len(frame) < x.size * 0.8


def test_decoding_takes_the_same_codec_or_a_book():
    parameters, size = parameters_of(32, "plain")
    codec = CalibratedCodec(**parameters)
    x = activations((4, 32), size)
    frame = compress(x, codec)
    expected = decompress(frame, codec)

    class Book:
        codebook_id = codec.codebook

        def codec_of(self, cut, level):
            return {(17, 3): codec}[cut, level]

    np.testing.assert_array_equal(decompress(frame, Book()), expected)
    np.testing.assert_array_equal(decompress(compress(x, "raw"), Book()), x)
    np.testing.assert_array_equal(decompress(compress(x, "raw"), codec), x)
    with pytest.raises(
        CorruptFrameError, match=f"frame needs codebook {codec.codebook}, cut 17, level 3, none was given"
    ):
        decompress(frame)
    other = CalibratedCodec(**{**parameters, "level": 4})
    with pytest.raises(CorruptFrameError, match=r"level 3, this codec is codebook .*, cut 17, level 4"):
        decompress(frame, other)
    with pytest.raises(CorruptFrameError, match=r"frame needs cut 17, level 4 of codebook \d+, which has none"):
        decompress(compress(x, other), Book())
    Book.codebook_id = 6
    with pytest.raises(CorruptFrameError, match=f"frame needs codebook {codec.codebook}, .*, this is codebook 6"):
        decompress(frame, Book())
    narrow = CalibratedCodec(**parameters_of(31, "plain")[0])
    with pytest.raises(CorruptFrameError, match="frame has rows of 32 elements, its codec has 31 channels"):
        decompress(frame, narrow)


def test_encoder_and_decoder_give_the_same(backend):
    parameters, size = parameters_of(640, "affine")
    codecs = [CalibratedCodec(**{**parameters, "level": level}) for level in (0, 1)]

    class Book:
        codebook_id = codecs[0].codebook

        def codec_of(self, cut, level):
            return codecs[level]

    shape = (1, 640)
    decoder, of_one = Decoder(shape, "float32", codebook=Book()), Decoder(shape, "float32", codebook=codecs[1])
    for level, codec in enumerate(codecs):
        encoder = Encoder(codec, shape, "float32")
        for seed in range(3):
            x = np.clip(activations(shape, size, seed), -1e30, 1e30)
            frame = bytes(encoder.encode(x))
            assert frame == compress(x, codec) == compress(x, codec, out=bytearray(9999))
            np.testing.assert_array_equal(decoder.decode(frame), decompress(frame, codec))
            np.testing.assert_array_equal(
                decompress(frame, codec, out=np.empty(shape, np.float32)), decoder.decode(frame)
            )
            if level == 1:
                np.testing.assert_array_equal(of_one.decode(frame), decoder.decode(frame))
    np.testing.assert_array_equal(decoder.decode(compress(x, "raw")), x)
    with pytest.raises(CorruptFrameError, match="level 0, this codec is"):
        of_one.decode(compress(x, codecs[0]))
    with pytest.raises(CorruptFrameError, match="none was given"):
        Decoder(shape, "float32").decode(frame)
    with pytest.raises(ValueError, match=r"the frame holds float32 \[1, 640\], not float32 \[2, 640\]"):
        Decoder((2, 640), "float32", codebook=codecs[1]).decode(frame)


@pytest.mark.parametrize("module", [NATIVE, NUMBA])
def test_what_cannot_be_encoded_says_why(module):
    codec = prepared(CalibratedCodec(codebook=1, step=np.full(8, 0.5), shift=np.full(8, -1e37)), module)
    x = np.ones((3, 8), np.float32)
    for value, name in ((np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")):
        x[1, 2] = value
        with pytest.raises(ValueError, match=f"element 10 is {name}, a calibrated codec takes finite values only"):
            codec.encode(x, 0, x.shape, 1)
    x[1, 2] = np.finfo(np.float32).max
    with pytest.raises(ValueError, match="an element leaves the range of float32 when it is shifted and transformed"):
        codec.encode(x, 0, x.shape, 1)
    with pytest.raises(ValueError, match="rows have 7 elements, the codec has 8 channels"):
        codec.encode(np.ones((2, 7), np.float32), 0, (2, 7), 1)


def with_entry(row, column, value):
    matrix = np.eye(4)
    matrix[row, column] = value
    return matrix


INVALID = [
    ({"codebook": 0}, "codebook is 0, which stands for none"),
    ({"cut": 65536}, "cut is 65536, it must be from 0 to 65535"),
    ({"step": np.zeros(0)}, "step has 0 channels"),
    ({"step": np.array([1, 0, 1, 1])}, r"step\[1\] is 0, it must be from 2\^-126 to 2\^120"),
    ({"step": np.array([1, 1, np.nan, 1])}, r"step\[2\] is nan"),
    ({"step": np.ones((2, 2))}, "step has 2 axes, it must have 1"),
    ({"shift": np.ones(3)}, "shift has 3 channels, step has 4"),
    ({"shift": np.full(4, 1e38)}, r"shift\[0\] is 1e\+38"),
    ({"threshold": np.array([0, 0, 0, -1])}, r"threshold\[3\] is -1"),
    ({"threshold": np.full(4, np.inf)}, r"threshold\[0\] is inf"),
    ({"rounding": 0.0}, r"rounding is 0, it must be in \(0, 0.5\]"),
    ({"shrink": 0.5}, r"shrink is 0.5, it must be in \[0, 0.5\)"),
    ({"hadamard": 3}, "hadamard is 3, it must be 0 or a power of two that divides the width of 4"),
    ({"hadamard": 8}, "hadamard is 8"),
    ({"scale": np.ones(4)}, "scale is given without a transform"),
    ({"hadamard": 2, "matrix": np.eye(4)}, "hadamard is 2 beside a matrix"),
    ({"matrix": 2 * np.eye(4)}, "row 0 of matrix has the squared norm 4, an orthogonal matrix has 1"),
    ({"inverse": np.eye(4)}, "inverse is given without a matrix"),
    ({"hadamard": 2, "inverse": np.eye(4)}, "inverse is given without a matrix"),
    ({"matrix": np.eye(4), "inverse": np.eye(3)}, r"inverse has shape \[3, 3\], it must be \[4, 4\]"),
    ({"matrix": np.eye(4), "inverse": np.ones(16)}, "inverse has 1 axes, it must have 2"),
    (
        {"matrix": with_entry(1, 2, np.nan), "inverse": np.eye(4)},
        r"matrix\[1, 2\] is nan, it must be from -2\^40 to 2\^40",
    ),
    ({"matrix": with_entry(3, 0, -2e12), "inverse": np.eye(4)}, r"matrix\[3, 0\] is -2e\+12, it must be"),
    ({"matrix": np.eye(4), "inverse": with_entry(0, 3, np.inf)}, r"inverse\[0, 3\] is inf, it must be"),
    (
        {"matrix": 2 * np.eye(4), "inverse": np.eye(4)},
        r"inverse times matrix deviates from the identity by 1 in row 0, the limit is 0\.01",
    ),
    (
        {"matrix": np.eye(4), "inverse": with_entry(2, 1, 0.0625)},
        r"inverse times matrix deviates from the identity by 0\.0625 in row 2, the limit is 0\.01",
    ),
    ({"matrix": np.zeros((4, 4)), "inverse": np.zeros((4, 4))}, "deviates from the identity by 1 in row 0"),
    ({"matrix": np.eye(3)}, r"matrix has shape \[3, 3\], it must be \[4, 4\]"),
    (
        {"tables": np.full((1, 256), 1, np.uint8)},
        r"tables\[0\] has frequencies that add up to 256, they must add up to 1 to 255",
    ),
    ({"tables": np.zeros((1, 256))}, r"tables\[0\] has frequencies that add up to 0"),
    ({"tables": np.zeros((1, 255), np.uint8)}, r"tables has shape \[1, 255\], it must have rows of 256"),
    ({"tables": np.repeat(RARE, 65, axis=0)}, "there are 65 tables, the limit is 64"),
    ({"tables": np.full((1, 256), 0.5)}, "tables must hold whole numbers from 0 to 255"),
    ({"table_of_channel": np.zeros(4)}, "table_of_channel has 4 channels, with 0 tables it must have 0"),
    (
        {"tables": RARE, "table_of_channel": np.array([0, 0, 1, 0])},
        r"table_of_channel\[2\] is 1, there are 1 tables",
    ),
]


@pytest.mark.parametrize(("changes", "message"), INVALID)
def test_parameters_have_limits(changes, message, backend):
    with pytest.raises(ValueError, match=message):
        CalibratedCodec(**{"codebook": 1, "step": np.ones(4), **changes})


WRONG_TYPES = [
    ({"codebook": "7"}, "codebook is '7', must be an integer"),
    ({"codebook": 1.0}, "codebook is 1.0, must be an integer"),
    ({"cut": None}, "cut is None, must be an integer"),
    ({"level": True}, "level is True, must be an integer"),
    ({"hadamard": 2.0}, "hadamard is 2.0, must be an integer"),
    ({"rounding": "0.5"}, "rounding is '0.5', must be a number"),
    ({"shrink": None}, "shrink is None, must be a number"),
    ({"step": ["a", "b", "c", "d"]}, "step holds <U1, it must hold numbers"),
    ({"shift": [None] * 4}, "shift holds object, it must hold numbers"),
    ({"threshold": np.ones(4, np.bool_)}, "threshold holds bool, it must hold numbers"),
    ({"matrix": np.eye(4, dtype=np.complex64)}, "matrix holds complex64, it must hold numbers"),
    ({"tables": [["1"] * 256]}, "tables holds <U1, it must hold numbers"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_TYPES)
def test_parameters_of_a_wrong_type_are_named(changes, message, backend):
    with pytest.raises(TypeError, match=f"^{message}$"):
        CalibratedCodec(**{"codebook": 1, "step": np.ones(4), **changes})


def test_rows_of_different_lengths_are_named():
    with pytest.raises(ValueError, match=r"^matrix has rows of different lengths$"):
        CalibratedCodec(codebook=1, step=np.ones(2), matrix=[[1.0, 0.0], [1.0]])


def test_numbers_may_be_of_any_kind(backend):
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    plain = CalibratedCodec(codebook=1, cut=2, level=3, step=np.ones(4), rounding=0.25, shrink=0.0, hadamard=2)
    other = CalibratedCodec(
        codebook=np.uint64(1),
        cut=np.int16(2),
        level=np.int64(3),
        step=[1, 1, 1, 1],
        rounding=np.float32(0.25),
        shrink=0,
        hadamard=np.uint8(2),
    )
    assert compress(x, other) == compress(x, plain)


def test_the_form_of_a_backend_is_internal():
    codec = CalibratedCodec(codebook=1, step=np.ones(4))
    with pytest.warns(DeprecationWarning, match=r"CalibratedCodec\.prepared goes in version") as caught:
        form = codec.prepared(NUMBA)
    assert form is prepared(codec, NUMBA)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("n", [2, 5, 64, 200])
def test_an_inverse_of_another_matrix_is_refused(n, backend):
    """Transposed, of channels in another order, or with one wrong number: each is seen in some test vector."""
    given = {"codebook": 1, "step": np.ones(n, np.float32)}
    pair = weighted(n)
    CalibratedCodec(**given, **pair)
    inverse = pair["inverse"]
    order = np.arange(n)
    order[[0, n - 1]] = n - 1, 0
    changed = inverse.copy()
    changed[n // 2, n - 1] += 0.25
    for other in (inverse.T, inverse[order], inverse[:, order], changed, pair["matrix"].T):
        with pytest.raises(ValueError, match="inverse times matrix deviates from the identity by"):
            CalibratedCodec(**given, matrix=pair["matrix"], inverse=other)


def test_an_inverse_may_be_rounded():
    """Weights that differ by 10^8, and entries at the limit."""
    n = 64
    axes = orthogonal(n, 3).astype(np.float64)
    root = np.geomspace(1e-4, 1, n)
    CalibratedCodec(codebook=1, step=np.ones(n), matrix=(axes * root) @ axes.T, inverse=(axes / root) @ axes.T)
    sizes = np.diag([2.0**40, 2.0**-40])
    codec = CalibratedCodec(codebook=1, step=np.ones(2), matrix=sizes, inverse=np.linalg.inv(sizes))
    x = np.array([[3 * 2.0**-40, 5 * 2.0**40]], np.float32)
    np.testing.assert_array_equal(decompress(compress(x, codec), codec), x)


def test_the_transpose_as_inverse_changes_nothing():
    parameters, size = parameters_of(64, "dense")
    x = activations((70, 64), size).clip(-1e30, 1e30)
    plain, explicit = (CalibratedCodec(**parameters, inverse=i) for i in (None, parameters["matrix"].T))
    frame = compress(x, plain)
    assert compress(x, explicit) == frame
    np.testing.assert_array_equal(decompress(frame, explicit), decompress(frame, plain))
    assert compress(x, pickle.loads(pickle.dumps(explicit))) == frame


def test_parameters_cannot_change_and_can_be_pickled():
    step = np.ones(4, np.float32)
    codec = CalibratedCodec(codebook=1, step=step)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    frame = compress(x, codec)
    step[:] = 2
    assert codec.step.tolist() == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="read-only"):
        codec.step[0] = 2
    assert compress(x, pickle.loads(pickle.dumps(codec))) == frame
    assert codec.width == 4


def test_codecs_of_the_same_numbers_are_equal():
    parameters = {"codebook": 1, "step": np.ones(4), "tables": RARE, "hadamard": 4}
    codec = CalibratedCodec(**parameters)
    same = pickle.loads(pickle.dumps(codec))
    assert codec == same == CalibratedCodec(**parameters, table_of_channel=np.zeros(4))
    assert len({codec, same}) == 1
    changes = [{"codebook": 2}, {"step": np.full(4, 2.0)}, {"tables": None}, {"hadamard": 2}, {"shrink": 0.1}]
    assert all(codec != CalibratedCodec(**{**parameters, **change}) for change in changes)
    assert codec != "codec"


def test_a_codec_is_shown_without_its_numbers():
    codec = CalibratedCodec(codebook=7, cut=5, level=2, step=np.ones(640), tables=RARE)
    shown = "CalibratedCodec(codebook=7, cut=5, level=2, width=640, transform=none, tables=1)"
    assert repr(codec) == shown
    assert "transform=hadamard 4" in repr(CalibratedCodec(codebook=7, step=np.ones(4), hadamard=4))
    assert "transform=matrix" in repr(CalibratedCodec(codebook=7, step=np.ones(4), matrix=np.eye(4)))


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4), (2, 0, 4)])
def test_empty_arrays(shape, each_isa):
    codec = CalibratedCodec(codebook=1, step=np.ones(4), tables=RARE)
    x = np.zeros(shape, np.float32)
    frame = each_isa(codec, lambda c: c.encode(x, 0, shape, 1))
    assert len(frame) == 40 + 8 * len(shape)
    assert decompress(frame, codec).shape == shape


def test_tensors_come_back_as_tensors():
    parameters, size = parameters_of(64, "plain")
    codec = CalibratedCodec(**parameters)
    x = torch.from_numpy(activations((3, 64), size)).clip(-1e30, 1e30)
    assert compress(x, codec) == compress(x.numpy(), codec)
    y = decompress(compress(x.bfloat16(), codec), codec)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), x, rtol=0.02, atol=float(codec.step.max()))


def test_frame_bytes_is_an_upper_bound():
    worst = np.zeros((1, 256), np.uint8)
    worst[0, 1] = 255
    codec = CalibratedCodec(codebook=1, step=np.ones(64), tables=worst)
    x = np.full((700, 64), 1e9, np.float32)  # every number is escaped by the quantiser and by the table
    bound = frame_bytes(x.shape, "float32", codec)
    assert bound * 0.99 < len(compress(x, codec)) <= bound
    stored = CalibratedCodec(codebook=1, step=np.ones(64))
    assert frame_bytes((10, 64), "float32", stored) == 40 + 16 + 3 * 640
    assert len(compress(np.ones((10, 64), np.float32), stored)) == 40 + 16 + 640


def test_hostile_frames_are_refused(each_isa):
    """Single bytes of the payload changed, under a new checksum: an array or CorruptFrameError, the same everywhere."""
    parameters, size = parameters_of(40, "affine")
    codecs = [
        CalibratedCodec(**parameters),
        CalibratedCodec(**{**parameters, "tables": None, "table_of_channel": None}),
    ]
    rng = np.random.default_rng(8)
    outcomes = {"array": 0, "refused": 0}
    for codec in codecs:
        for rows in (1, 9, 70, 300):
            frame = compress(np.clip(activations((rows, 40), size), -1e30, 1e30), codec)
            for _ in range(60):
                damaged = bytearray(frame)
                at = int(rng.choice([12, 13, *range(56, min(64, len(frame))), *rng.integers(56, len(frame), 8)]))
                damaged[at] ^= int(rng.integers(1, 256))
                if rng.random() < 0.3:
                    damaged = damaged[: -int(rng.integers(1, 20))]
                    damaged[24:32] = (len(damaged) - 56).to_bytes(8, "little")
                damaged[36:40] = bytes(4)
                damaged[36:40] = NATIVE.crc32c(damaged).to_bytes(4, "little")

                def outcome(c, damaged=damaged):
                    try:
                        return c.decode(bytes(damaged), 1 << 20, 1)[2].tobytes()
                    except CorruptFrameError:
                        return None

                outcomes["refused" if each_isa(codec, outcome) is None else "array"] += 1
    assert min(outcomes.values()) > 20


@pytest.mark.parametrize("kind", ["plain", "hadamard", "inverse"])
@pytest.mark.parametrize("tables", [0, 3])
def test_threads_do_not_change_a_frame(kind, tables):
    parameters, size = parameters_of(64, kind, tables=tables)
    codec = prepared(CalibratedCodec(**parameters), NATIVE)
    for rows in (1, 256, 257, 1300):
        x = np.clip(activations((rows, 64), size), -1e30, 1e30)
        frame = codec.encode(x, 0, x.shape, 1)
        decoded = codec.decode(frame, 1 << 30, 1)[2].tobytes()
        for threads in (2, 3, 8):
            assert codec.encode(x, 0, x.shape, threads) == frame
            assert codec.decode(frame, 1 << 30, threads)[2].tobytes() == decoded
    x[900, 3] = np.nan
    with pytest.raises(ValueError, match="element 57603 is nan"):
        codec.encode(x, 0, x.shape, 3)
    for module in (NATIVE, NUMBA):
        with pytest.raises(ValueError, match="threads is 0, "):
            prepared(CalibratedCodec(**parameters), module).encode(x, 0, x.shape, 0)


def test_a_frame_cannot_ask_for_more_than_the_limit():
    codec = CalibratedCodec(codebook=1, step=np.ones(64), tables=RARE)
    frame = compress(np.zeros((9, 64), np.float32), codec)
    with pytest.raises(CorruptFrameError, match="declares an array of 2304 bytes, the limit is 2303"):
        decompress(frame, codec, max_bytes=2303)


def test_a_frame_beyond_all_memory_is_refused(backend: str) -> None:
    """The bound of such a frame once went past 64 bits, and Numba counted its streams one by one."""
    codec = CalibratedCodec(codebook=1, step=np.ones(1024, np.float32))
    assert frame_bytes((1 << 40, 1024), "float16", codec) > 1 << 50
    with pytest.raises(ValueError, match="elements, a calibrated frame holds at most 72057594037927936"):
        frame_bytes(((1 << 52) - 1, 1024), "float16", codec)
