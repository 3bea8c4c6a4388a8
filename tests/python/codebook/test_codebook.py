"""Codebooks as files and as tables: round trips, identities, damage, and what does not belong together."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import orbitsplit as osp
from orbitsplit import AccuracyCurve, CalibratedModel, Codebook, CodebookEntry, CodebookLevel, WeightLosses
from orbitsplit._backend import load_backend
from orbitsplit._codebook.halves import stored
from orbitsplit._codebook.inverses import INVERSE_FOLLOWS
from orbitsplit._io.tensor_file import read_tensors, write_tensors

WIDTH, LAYERS = 16, 4
MODEL = CalibratedModel(
    name="toy", architecture="ToyForCausalLM", layers=LAYERS, width=WIDTH, layer_hashes=("aa", "bb", "cc", "dd")
)
CURVE = AccuracyCurve(0.5, 0.05, 16)
PROVENANCE = {"seed": 0, "levels": [4.0, 2.0], "unit": "nats"}

Floats = npt.NDArray[np.float32]


def level(name: str, bits: float, loss: float, seconds: float = 1e-9) -> CodebookLevel:
    return CodebookLevel(
        name=name,
        bits_per_element=bits,
        loss=loss,
        loss_error=loss / 10,
        encode_s_per_byte=seconds,
        decode_s_per_byte=2 * seconds,
    )


def rotation(seed: int) -> Floats:
    square = np.random.default_rng(seed).standard_normal((WIDTH, WIDTH))
    return np.ascontiguousarray(np.linalg.qr(square)[0], np.float32)


def tensors() -> dict[str, npt.NDArray[Any]]:
    source = np.random.default_rng(0)
    tables = np.zeros((2, 256), np.uint8)
    tables[:, :3] = tables[:, -2:] = 45
    return {
        "shift": source.standard_normal(WIDTH).astype(np.float32),
        "fine": np.full(WIDTH, 0.1, np.float32),
        "coarse": source.uniform(0.4, 0.6, WIDTH).astype(np.float32),
        "matrix": rotation(1),
        "tables": tables,
        "of_channel": (np.arange(WIDTH) % 2).astype(np.uint8),
    }


def entries() -> dict[int, list[CodebookEntry]]:
    common = {"shift": "shift", "tables": "tables", "table_of_channel": "of_channel"}
    scalars = {"rounding": 0.45, "shrink": 0.02}
    fine = CodebookEntry(level=level("fine", 5.0, 0.001), scalars=scalars, arrays={**common, "step": "fine"})
    coarse = CodebookEntry(level=level("coarse", 2.5, 0.02), scalars=scalars, arrays={**common, "step": "coarse"})
    turned = CodebookEntry(
        level=level("turned", 2.0, 0.05, 3e-9),
        scalars=scalars,
        arrays={**common, "step": "coarse", "matrix": "matrix"},
    )
    int8 = CodebookEntry(level=level("int8", 8.5, 0.0005), codec="int8")
    worse = replace(coarse, level=level("coarse", 3.0, 0.04, 2e-9))
    return {3: [int8, fine, worse], 1: [fine, coarse, turned]}


def make(**changes: Any) -> Codebook:
    given: dict[str, Any] = {"model": MODEL, "entries": entries(), "tensors": tensors(), **changes}
    positional = [given.pop(name) for name in ("model", "entries", "tensors")]
    return Codebook(*positional, **{"accuracy": CURVE, "provenance": PROVENANCE, **given})


@pytest.fixture(scope="module")
def book() -> Codebook:
    return make()


@pytest.fixture(scope="module")
def x() -> Floats:
    return np.random.default_rng(5).standard_normal((7, WIDTH)).astype(np.float32)


@pytest.fixture
def path(book: Codebook, tmp_path: Path) -> Path:
    book.save(tmp_path / "book.safetensors")
    return tmp_path / "book.safetensors"


# Reading what is in it.


def test_levels_by_cut_and_number(book: Codebook) -> None:
    assert book.cuts == (1, 3)
    assert [one.name for one in book.levels(1)] == ["fine", "coarse", "turned"]
    assert book.level_at(3, 2).loss == 0.04
    assert book.level_of(3, "fine") == 1
    assert book[3, 0] == "int8"
    codec = book[1, 2]
    assert isinstance(codec, osp.CalibratedCodec)
    assert (codec.codebook, codec.cut, codec.level, codec.rounding, codec.shrink) == (
        book.codebook_id, 1, 2, 0.45, 0.02
    )  # fmt: skip
    assert codec.matrix is not None
    np.testing.assert_array_equal(codec.matrix, tensors()["matrix"])
    np.testing.assert_array_equal(codec.step, tensors()["coarse"])
    assert book.codec_of(1, 2) is book[1, 2]


def test_ratios_are_of_the_bytes_of_a_dtype(book: Codebook) -> None:
    assert [book.level_at(1, 2).ratio(dtype) for dtype in ("float32", "bfloat16", "float16")] == [16, 8, 8]
    assert book.level_at(1, 2).ratio() == 16


@pytest.mark.parametrize("key", [(1, 0), (1, 1), (1, 2), (3, 0), (3, 1), (3, 2)])
def test_frames_of_every_level_are_decoded_with_the_book(book: Codebook, x: Floats, key: tuple[int, int]) -> None:
    frame = osp.compress(x, codec=book[key])
    received = osp.decompress(frame, book)
    codec = book[key]
    step = 0.01 if isinstance(codec, str) else float(codec.step.max())
    assert 0 < float(np.abs(received - x).max()) <= 4 * step
    if isinstance(codec, osp.CalibratedCodec):
        np.testing.assert_array_equal(received, osp.decompress(frame, codec))


def test_a_frame_of_another_book_is_refused_with_both_ids(book: Codebook, x: Floats) -> None:
    other = make(tensors={**tensors(), "fine": np.full(WIDTH, 0.2, np.float32)})
    frame = osp.compress(x, codec=book[1, 0])
    for codebook in (other, other[1, 0]):
        with pytest.raises(osp.CorruptFrameError) as refused:
            osp.decompress(frame, codebook)  # type: ignore[arg-type]
        assert str(book.codebook_id) in str(refused.value)
        assert str(other.codebook_id) in str(refused.value)
    with pytest.raises(osp.CorruptFrameError, match=str(book.codebook_id)):
        osp.decompress(frame)


def test_a_frame_of_a_level_that_the_book_lacks_is_refused(book: Codebook, x: Floats) -> None:
    for cut, number, reason in ((2, 0, "cut 2 was not calibrated"), (1, 3, "levels 0 to 2, not 3")):
        codec = osp.CalibratedCodec(codebook=book.codebook_id, cut=cut, level=number, step=np.ones(WIDTH, np.float32))
        with pytest.raises(osp.CorruptFrameError, match=reason):
            osp.decompress(osp.compress(x, codec=codec), book)


@pytest.mark.parametrize(
    ("look", "message"),
    [
        (lambda book: book.levels(2), "cut 2 was not calibrated, the codebook has cuts 1, 3"),
        (lambda book: book[2, 0], "cut 2 was not calibrated, the codebook has cuts 1, 3"),
        (lambda book: book[1, 3], "cut 1 of the codebook has levels 0 to 2, not 3"),
        (lambda book: book[1, -1], "cut 1 of the codebook has levels 0 to 2, not -1"),
        (lambda book: book.level_at(3, 9), "cut 3 of the codebook has levels 0 to 2, not 9"),
        (lambda book: book.level_of(1, "int8"), "no level 'int8', it has fine, coarse, turned"),
        (lambda book: book.codec_of(3, 0), "level 0 at cut 3 is int8, which is not calibrated"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(
    book: Codebook, look: Callable[[Codebook], object], message: str
) -> None:
    with pytest.raises(LookupError, match=message):
        look(book)


# Identity.


def changed_by_one(name: str) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors with the last bit of the last number of one of them turned."""
    array = tensors()[name].copy()
    array.reshape(-1).view(np.uint8)[-array.itemsize] ^= 1
    return {**tensors(), name: array}


@pytest.mark.parametrize("name", ["shift", "fine", "coarse", "matrix", "of_channel"])
def test_the_last_bit_of_any_number_makes_another_book(book: Codebook, name: str) -> None:
    assert make(tensors=changed_by_one(name)).codebook_id != book.codebook_id


def with_entry(cut: int, number: int, **changes: Any) -> dict[int, list[CodebookEntry]]:
    found = entries()
    found[cut][number] = replace(found[cut][number], **changes)
    return found


def test_anything_that_decoding_depends_on_makes_another_book(book: Codebook) -> None:
    tables = tensors()["tables"].copy()
    tables[1, 0] += 1
    of_fine = dict(entries()[1][0].arrays)
    others = [
        make(tensors={**tensors(), "tables": tables}),
        make(entries=with_entry(1, 0, scalars={"rounding": 0.46, "shrink": 0.02})),
        make(entries=with_entry(1, 0, scalars={"rounding": 0.45, "shrink": 0.03})),
        make(entries=with_entry(1, 0, arrays={**of_fine, "step": "coarse"})),
        make(entries=with_entry(3, 0, codec="int8:32")),
        make(entries={1: entries()[1]}),
        make(entries={1: entries()[1], 3: entries()[3][:2]}),
        make(entries={1: entries()[1], 2: entries()[3]}),
        make(entries={1: [entries()[1][k] for k in (1, 0, 2)], 3: entries()[3]}),
        make(model=replace(MODEL, layer_hashes=("aa", "bb", "cc", "ee"))),
    ]
    ids = [book.codebook_id, *(other.codebook_id for other in others)]
    assert len(set(ids)) == len(ids)
    assert all(0 < one < 1 << 64 for one in ids)


def test_a_shape_is_part_of_the_numbers() -> None:
    # The same bytes as a table of 256 and as two channels' worth would be another codec.
    long = np.arange(2 * WIDTH, dtype=np.float32) + 1
    one = make(tensors={**tensors(), "fine": long[:WIDTH], "coarse": long[WIDTH:]})
    other = make(tensors={**tensors(), "fine": long[WIDTH:], "coarse": long[:WIDTH]})
    assert one.codebook_id != other.codebook_id


def test_what_was_measured_is_not_part_of_the_identity(book: Codebook) -> None:
    same = [
        make(entries=with_entry(1, 0, level=level("fine", 5.1, 0.5, 7.0))),
        make(accuracy=AccuracyCurve(0.1, 0.2, 3)),
        make(provenance={"machine": "another"}),
        make(entries=dict(reversed(entries().items()))),
        make(tensors={**tensors(), "not used": np.zeros(3, np.float32)}),
    ]
    assert {one.codebook_id for one in same} == {book.codebook_id}


# Files.


def test_round_trip(book: Codebook, path: Path, x: Floats) -> None:
    loaded = Codebook.load(path)
    assert loaded.codebook_id == book.codebook_id
    assert loaded.hex_id == f"{book.codebook_id:016x}"
    assert loaded.model == book.model
    assert loaded.accuracy == book.accuracy
    assert loaded.provenance == book.provenance
    assert loaded.table() == book.table()
    for cut in book.cuts:
        assert loaded.levels(cut) == book.levels(cut)
        for number in range(len(book.levels(cut))):
            frame = osp.compress(x, codec=book[cut, number])
            assert osp.compress(x, codec=loaded[cut, number]) == frame
            np.testing.assert_array_equal(osp.decompress(frame, loaded), osp.decompress(frame, book))
            if isinstance(book[cut, number], osp.CalibratedCodec):
                for name in ("step", "shift", "matrix", "tables", "table_of_channel", "scale", "threshold", "inverse"):
                    ours, theirs = (getattr(one[cut, number], name) for one in (loaded, book))
                    assert (ours is None) == (theirs is None)
                    if ours is not None:
                        np.testing.assert_array_equal(ours, theirs)
                        assert ours.dtype == theirs.dtype
    loaded.save(path.with_name("again"))
    assert Codebook.load(path.with_name("again")).to_dict() == book.to_dict()


def test_what_a_book_says_is_json(book: Codebook) -> None:
    assert json.loads(json.dumps(book.to_dict(), allow_nan=False))["id"] == book.hex_id


def test_levels_share_tensors_and_what_no_level_uses_is_left_out(book: Codebook, tmp_path: Path) -> None:
    make(tensors={**tensors(), "not used": np.zeros(10_000, np.float32)}).save(tmp_path / "a")
    with (tmp_path / "a").open("rb") as file:
        header_bytes = struct.unpack("<Q", file.read(8))[0]
    numbers = sum(array.nbytes for array in tensors().values())
    assert (tmp_path / "a").stat().st_size == 8 + header_bytes + numbers


def test_matrices_in_float16_take_half_the_bytes_of_the_file_and_all_of_the_memory(
    book: Codebook, x: Floats, tmp_path: Path
) -> None:
    halves = make(tensors={**tensors(), "matrix": rotation(1).astype(np.float16)})
    halves.save(tmp_path / "halves")
    loaded = Codebook.load(tmp_path / "halves")
    assert (loaded.hex_id, loaded.to_dict()["version"], book.to_dict()["version"]) == (halves.hex_id, 2, 1)
    assert header_of(tmp_path / "halves")[1]["matrix"]["dtype"] == "F16"
    assert loaded.codec_bytes(1, 2) == book.codec_bytes(1, 2) == 3 * 4 * WIDTH * WIDTH
    codec = loaded.codec_of(1, 2)
    assert codec.matrix is not None
    np.testing.assert_array_equal(codec.matrix, rotation(1).astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(
        osp.decompress(osp.compress(x, codec=codec), loaded),
        osp.decompress(osp.compress(x, codec=halves[1, 2]), halves),
    )


@pytest.mark.parametrize("name", ["native", "numba"])
def test_an_inverse_that_follows_takes_no_byte_of_the_file_and_all_of_the_memory(
    name: str, x: Floats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORBITSPLIT_BACKEND", name)
    half = (rotation(1) * np.linspace(0.5, 2, WIDTH, dtype=np.float32)).astype(np.float16)
    inverse = load_backend(name).inverse_of(half.astype(np.float32))
    follows = make(
        entries=with_entry(1, 2, scalars={"rounding": 0.45, "shrink": 0.02, INVERSE_FOLLOWS: True}),
        tensors={**tensors(), "matrix": half},
    )
    arrays = {**follows.to_dict()["entries"]["1"][2]["arrays"], "inverse": "inverse"}
    explicit = make(entries=with_entry(1, 2, arrays=arrays), tensors={**tensors(), "matrix": half, "inverse": inverse})
    follows.save(tmp_path / "follows")
    loaded = Codebook.load(tmp_path / "follows")
    assert (loaded.hex_id, loaded.to_dict()["version"], explicit.to_dict()["version"]) == (follows.hex_id, 3, 2)
    assert "inverse" not in header_of(tmp_path / "follows")[1]
    assert loaded.codec_bytes(1, 2) == explicit.codec_bytes(1, 2) == 3 * 4 * 2 * WIDTH * WIDTH
    np.testing.assert_array_equal(loaded.codec_of(1, 2).inverse, inverse)
    decoded, expected = (osp.decompress(osp.compress(x, codec=book[1, 2]), book) for book in (loaded, explicit))
    np.testing.assert_array_equal(decoded, expected)


def test_only_matrices_that_float16_has_exactly_are_stored_in_it() -> None:
    exact = rotation(2).astype(np.float16).astype(np.float32)
    assert stored("matrix", exact).dtype == stored("inverse", exact).dtype == np.float16
    np.testing.assert_array_equal(stored("matrix", exact).astype(np.float32), exact)
    changed = exact.copy()
    changed[3, 5] = np.nextafter(changed[3, 5], np.float32(2))
    for name, array in (("matrix", changed), ("matrix", exact * 1e6), ("step", exact[0])):
        assert stored(name, array) is array


def test_saving_over_a_book_that_is_open_leaves_its_numbers(path: Path, x: Floats) -> None:
    loaded = Codebook.load(path)
    expected = osp.compress(x, codec=Codebook.load(path)[1, 1])
    make(tensors=changed_by_one("coarse")).save(path)
    assert osp.compress(x, codec=loaded[1, 1]) == expected
    assert sorted(entry.name for entry in path.parent.iterdir()) == [path.name]


def header_of(path: Path) -> tuple[int, dict[str, Any]]:
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return 8 + size, json.loads(data[8 : 8 + size])


def test_a_flipped_bit_anywhere_is_noticed(path: Path) -> None:
    data = path.read_bytes()
    start, _ = header_of(path)
    positions = [0, 5, *range(8, start, 23), *range(start, len(data), 97), len(data) - 1]
    for at in positions:
        damaged = bytearray(data)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"book\.safetensors"):
            Codebook.load(path)


def test_a_flipped_bit_in_the_numbers_is_damage_that_is_named(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"book\.safetensors is damaged: its arrays do not match their checksum"):
        Codebook.load(path)


def test_a_changed_figure_in_the_document_is_damage_that_is_named(path: Path) -> None:
    data = path.read_bytes()
    changed = data.replace(b'\\"loss\\": 0.02', b'\\"loss\\": 0.01')
    assert changed != data
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=r"book\.safetensors .*damaged"):
        Codebook.load(path)


@pytest.mark.parametrize("left", [0, 5, 100, -100, -1])
def test_a_truncated_file_is_named(path: Path, left: int) -> None:
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match=r"book\.safetensors .*damaged"):
        Codebook.load(path)


def test_more_bytes_than_there_should_be_are_damage(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ValueError, match=r"book\.safetensors .*damaged"):
        Codebook.load(path)


def test_files_of_another_kind_are_named(tmp_path: Path, path: Path) -> None:
    from safetensors.numpy import save_file

    text, weights = tmp_path / "plan.json", tmp_path / "weights.safetensors"
    text.write_text('{"format": "orbitsplit-plan"}')
    save_file({"weight": np.zeros(3, np.float32)}, weights)
    for other, message in (
        (text, r"plan\.json is not a \.safetensors file"),
        (weights, r"weights\.safetensors: expected format 'orbitsplit-codebook' version 1 or 2 or 3, got None"),
    ):
        with pytest.raises(ValueError, match=message):
            Codebook.load(other)
    with pytest.raises(FileNotFoundError, match="nothing"):
        Codebook.load(tmp_path / "nothing")


def rewritten(path: Path, **changes: Any) -> None:
    """Write the file again as something that is whole, with other words in its document."""
    from orbitsplit._io.tensor_file import write_tensors

    start, header = header_of(path)
    document = {**json.loads(header["__metadata__"]["orbitsplit"]), **changes}
    arrays = {
        name: np.frombuffer(
            path.read_bytes()[start + of["data_offsets"][0] : start + of["data_offsets"][1]],
            np.float32 if of["dtype"] == "F32" else np.uint8,
        ).reshape(of["shape"])
        for name, of in header.items()
        if name != "__metadata__"
    }
    write_tensors(path, arrays, document)


def first_entry(book: Codebook, **changes: Any) -> dict[str, Any]:
    rows = book.to_dict()["entries"]
    return {"entries": {**rows, "1": [{**rows["1"][0], **changes}, *rows["1"][1:]]}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda _: {"version": 4}, "version 1 or 2 or 3, got 'orbitsplit-codebook' version 4"),
        (lambda _: {"format": "orbitsplit-plan"}, "got 'orbitsplit-plan' version 1"),
        (lambda _: {"id": "0" * 16}, "is damaged: its numbers have the id .* it was written as 0000000000000000"),
        (lambda _: {"entries": 3}, "not a valid codebook: entries is int"),
        (lambda _: {"entries": {"one": []}}, "not a valid codebook.*one"),
        (lambda _: {"model": {"name": "toy"}}, "not a valid codebook"),
        (lambda _: {"accuracy": {"drop_per_loss": -1.0, "error": 0.0, "points": 1}}, "drop_per_loss"),
        (lambda book: first_entry(book, codec="gzip"), "not a valid codebook.*gzip"),
        (lambda book: first_entry(book, arrays={"step": "no such tensor"}), "not a valid codebook.*no such tensor"),
        (lambda book: first_entry(book, arrays=3), "not a valid codebook"),
        (lambda book: first_entry(book, scalars=[1]), "not a valid codebook"),
        (lambda book: first_entry(book, scalars={"inverse_follows": 1}), "inverse_follows of level 0 .* must be true"),
        (lambda book: first_entry(book, scalars={"inverse_follows": True}), "must have a matrix and no inverse"),
        (lambda book: first_entry(book, arrays={"inverse_follows": "step"}), "inverse_follows, which no codec has"),
        (lambda book: first_entry(book, colour=1), "not a valid codebook.*colour"),
        (lambda book: first_entry(book, level={"name": "fine"}), "not a valid codebook.*bits_per_element"),
    ],
)  # fmt: skip
def test_documents_that_make_no_sense_are_named(
    book: Codebook, path: Path, changes: Callable[[Codebook], dict[str, Any]], message: str
) -> None:
    rewritten(path)
    assert Codebook.load(path).to_dict() == book.to_dict()
    rewritten(path, **changes(book))
    with pytest.raises(ValueError, match=rf"book\.safetensors.*{message}"):
        Codebook.load(path)


# For the planner.


def test_the_table_has_the_least_ratio_and_the_loss_of_each_cut(book: Codebook) -> None:
    table = book.table()
    assert table.levels[0] == osp.Level(name="raw", ratio=1.0, encode_s_per_byte=0.0, decode_s_per_byte=0.0)
    ratios = {one.name: one.ratio for one in table.levels}
    # "coarse" takes 2.5 bits at one cut and 3 at the other, and must be sent in what was said whichever it is.
    assert ratios == {"raw": 1.0, "int8": 32 / 8.5, "fine": 32 / 5, "coarse": 32 / 3, "turned": 16.0}
    assert len(table.loss) == LAYERS + 1
    losses = [dict(zip(ratios, row, strict=True)) for row in table.loss]
    assert all(row["raw"] == 0 for row in losses)
    assert (losses[1]["fine"], losses[1]["coarse"], losses[1]["turned"]) == (0.001, 0.02, 0.05)
    assert (losses[3]["int8"], losses[3]["coarse"]) == (0.0005, 0.04)
    for cut in range(LAYERS + 1):
        there = {one.name for one in book.levels(cut)} if cut in book.cuts else set()
        assert all(losses[cut][name] > 1e3 for name in ratios if name != "raw" and name not in there)
    seconds = {one.name: (one.encode_s_per_byte, one.decode_s_per_byte) for one in table.levels}
    assert seconds["coarse"] == pytest.approx((2e-9, 4e-9))  # the slower of both cuts
    assert table.provenance["codebook"] == book.hex_id


def test_the_table_of_16_bits_has_half_the_ratios_and_the_same_seconds_an_element(book: Codebook) -> None:
    wide, narrow = book.table("float32"), book.table("bfloat16")
    assert narrow.loss == wide.loss
    for of_32, of_16 in zip(wide.levels[1:], narrow.levels[1:], strict=True):
        assert of_16.ratio == pytest.approx(max(1.0, of_32.ratio / 2))
        assert of_16.encode_s_per_byte == pytest.approx(2 * of_32.encode_s_per_byte)


def test_no_cut_that_was_not_calibrated_is_compressed_whatever_the_budget(book: Codebook) -> None:
    table = book.table()
    problem = osp.Problem.from_dict(
        {
            "layers": [f"layer {i}" for i in range(LAYERS + 2)],
            "nodes": [{"name": name, "memory_bytes": 5} for name in "ab"],
            "layer_memory_bytes": [1, 1, 1, 1, 1, 3],  # the cut is after two to four layers
            "layer_time_s": [[1.0] * 6, [1.0] * 6],
            "cut_bytes": [1e3] * 5,
            "bandwidth_bytes_per_s": [[0, 1], [1, 0]],
            "latency_s": [[0, 0], [0, 0]],
            "levels": [
                {"name": one.name, "ratio": one.ratio, "encode_s_per_byte": 0, "decode_s_per_byte": 0}
                for one in table.levels
            ],
            "loss": [[*row] if cut != 3 else [0.0, *[1e9] * (len(row) - 1)] for cut, row in enumerate(table.loss)],
            "loss_budget": 1e3,
        }
    )
    solution = osp.solve(problem)
    assert solution.stages
    assert solution.stages[0].level == 0  # cut 2 or 4, neither is in the book


# What belongs to which model.


def test_another_shape_of_model_is_named(book: Codebook) -> None:
    book.model.check_shape("this", LAYERS, WIDTH)
    for layers, width in ((LAYERS + 1, WIDTH), (LAYERS, WIDTH * 2)):
        with pytest.raises(ValueError, match=rf"toy, 4 layers of width 16; this has {layers} layers of width {width}"):
            book.model.check_shape("this", layers, width)


def test_other_weights_are_named_by_layer(book: Codebook) -> None:
    book.model.check_layers("this", {1: "bb", 3: "dd"})
    with pytest.raises(ValueError, match=r"calibrated for toy; layer 2 of this has other weights \(xx instead of cc\)"):
        book.model.check_layers("this", {1: "bb", 2: "xx"})


def test_more_layers_than_were_calibrated_are_refused(book: Codebook) -> None:
    with pytest.raises(ValueError, match="layer"):
        book.model.check_layers("this", dict(enumerate(("aa", "bb", "cc", "dd", "ee"))))


MEASURE = """
import gc, numpy as np, torch
import orbitsplit as osp
from orbitsplit.runtime._memory import resident_bytes

WIDTH, COUNT = 1536, 4
matrix = np.linalg.qr(np.random.default_rng(0).normal(size=(WIDTH, WIDTH)))[0].astype(np.float32)
step, x = np.full(WIDTH, 0.1, np.float32), torch.randn(1, 8, WIDTH)

def use(**arrays):
    codec = osp.CalibratedCodec(codebook=7, step=step, **arrays)
    encoder, decoder = osp.Encoder(codec, x.shape, x.dtype), osp.Decoder(x.shape, x.dtype, codebook=codec)
    decoder.decode(encoder.encode(x))
    return codec, encoder, decoder

kept = [use(hadamard=512)]  # with what the first one imports
gc.collect()
before = resident_bytes()
kept += [use(matrix=matrix) for _ in range(COUNT)]
gc.collect()
print((resident_bytes() - before) / (COUNT * matrix.nbytes))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read as on Linux")
def test_codecs_take_the_memory_that_is_said() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, timeout=120)
    # Three copies of the matrix; the arrays that a codec was given are here those of all.
    assert 1.8 < float(done.stdout) <= 3.3


# Losses of weights.


def with_weights(losses: int = LAYERS + 2) -> Codebook:
    numbers = tuple(0.01 * k for k in range(losses))
    weights = {"int8": WeightLosses(loss=numbers, loss_error=(0.001,) * losses)}
    return make(weights=weights)


def test_losses_of_weights_are_kept_in_the_file(tmp_path: Path) -> None:
    book = with_weights()
    book.save(tmp_path / "book.safetensors")
    loaded = Codebook.load(tmp_path / "book.safetensors")
    assert loaded.weights == book.weights
    assert loaded.weights["int8"].loss[-1] == 0.01 * (LAYERS + 1)


def test_losses_of_weights_are_no_part_of_the_identity(book: Codebook) -> None:
    assert book.weights == {}
    assert "weights" not in book.to_dict()
    assert with_weights().codebook_id == book.codebook_id


def test_losses_of_another_number_of_layers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights int8 have losses of 5 layers, the model has 6 with its ends"):
        with_weights(LAYERS + 1)
    path = tmp_path / "book.safetensors"
    with_weights().save(path)
    document, arrays = read_tensors(path, "orbitsplit-codebook", 1)
    arrays = {name: np.array(arrays[name]) for name in arrays}
    document["weights"]["int8"]["loss"].pop()
    write_tensors(path, arrays, document)
    with pytest.raises(ValueError, match=r"is not a valid codebook: there are 5 losses and 6 errors of them"):
        Codebook.load(path)


@pytest.mark.parametrize("number", [-0.1, float("nan"), float("inf")])
def test_losses_of_weights_are_finite_and_not_negative(number: float) -> None:
    with pytest.raises(ValueError, match="a number of loss is"):
        WeightLosses(loss=(number,), loss_error=(0.0,))
