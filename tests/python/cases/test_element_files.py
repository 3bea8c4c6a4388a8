"""Files of element sets as users find them: encodings, what is no element set, satellites of one name."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path

import numpy as np
import pytest
from sgp4.api import Satrec

from orbitsplit import leo
from orbitsplit._io.files import write_text
from tests.support.element_sets import (
    CASES,
    CSV,
    FIRST,
    KVN,
    MESSAGE,
    NAME,
    NOON,
    SECOND,
    TLE,
    XML,
    load_message,
    refusal,
)

# Row 4: OMM as KVN.


def test_kvn_says_what_json_says(tmp_path: Path) -> None:
    expected = load_message(tmp_path, {})
    found = leo.load(CASES / "omm.kvn")
    assert found.names == ["TEST 1"]
    assert np.array_equal(found.positions(NOON), expected.positions(NOON))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (KVN, ["TEST 1"]),
        (f"COMMENT a = b\nCCSDS_OMM_VERS = 3.0\nCREATION_DATE = 2026-001T00:00:00\n\nCOMMENT\n{KVN}", ["TEST 1"]),
        (KVN.replace("51.64", "51.64 [deg]").replace("15.49", "15.49 [rev/day]"), ["TEST 1"]),
        (KVN.replace(" = ", "="), ["TEST 1"]),
        (KVN.replace("\n", "\r\n"), ["TEST 1"]),
        (KVN.replace("TEST 1", "TEST [1]"), ["TEST [1]"]),
        (KVN + KVN.replace("TEST 1", "TEST 2"), ["TEST 1", "TEST 2"]),
        (f"CCSDS_OMM_VERS = 2.0\n{KVN}\nCCSDS_OMM_VERS = 2.0\n{KVN.replace('TEST 1', 'B')}", ["TEST 1", "B"]),
        (KVN + "USER_DEFINED_NOTE = a = b\n", ["TEST 1"]),
        ("  " + KVN.replace("\n", "\n  "), ["TEST 1"]),
    ],
)
def test_kvn_as_written_by_others(text: str, names: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.kvn").write_bytes(text.encode())
    found = leo.load(tmp_path / "a.kvn")
    assert found.names == names
    assert np.array_equal(found.positions(NOON)[0], load_message(tmp_path, {}).positions(NOON)[0])


# Row 5: byte order marks.


def test_a_byte_order_mark_hides_no_name() -> None:
    assert leo.load(CASES / "omm_bom.csv").names == ["TEST 1"]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.tle", TLE, "ISS (ZARYA)"),
        ("a.tle", f"{FIRST}\n{SECOND}", "25544"),
        ("a.txt", TLE, "ISS (ZARYA)"),
        ("a.csv", CSV, "TEST 1"),
        ("a.json", json.dumps([MESSAGE]), "TEST 1"),
        ("a.json", json.dumps(MESSAGE), "TEST 1"),
        ("a.kvn", KVN, "TEST 1"),
        ("a.kvn", "CCSDS_OMM_VERS = 2.0\n" + KVN, "TEST 1"),
        ("a.xml", XML, "ISS (ZARYA)"),
        ("A.CSV", CSV, "TEST 1"),
    ],
)
def test_each_kind_of_file_may_have_a_byte_order_mark(name: str, text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(codecs.BOM_UTF8 + text.encode())
    assert leo.load(tmp_path / name).names == [expected]


def test_text_that_the_caller_read_may_have_a_mark() -> None:
    assert leo.from_tle("\ufeff" + TLE).names == ["ISS (ZARYA)"]


# Row 6: encodings, and disks that are full.


@pytest.mark.parametrize("encoding", ["iso-8859-1", "utf-16", "windows-1252", "utf-8"])
def test_xml_is_read_in_the_encoding_it_declares(encoding: str, tmp_path: Path) -> None:
    text = XML.replace("ZARYA", "ZARYÄ").replace("UTF-8", encoding)
    (tmp_path / "a.xml").write_bytes(text.encode(encoding))
    assert leo.load(tmp_path / "a.xml").names == ["ISS (ZARYÄ)"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tle", b"\xc9TOILE\n", "is not UTF-8 text: byte 0xc9 at offset 0"),
        ("a.csv", CSV.replace("TEST", "\xc9").encode("latin-1"), "is not UTF-8 text: byte 0xc9"),
        ("a.json", TLE.encode("utf-16"), "is not UTF-8 text: byte 0xff at offset 0"),
        ("a.kvn", b"OBJECT_NAME = \xe9", "is not UTF-8 text: byte 0xe9 at offset 14"),
        ("a.xml", b'<?xml version="1.0" encoding="klingon"?><omm/>', "is not OMM in xml: unknown encoding"),
        ("a.xml", b"<omm>\xe9</omm>", "is not OMM in xml: not well-formed"),
        ("a.xml", b'<?xml version="1.0" encoding="shift_jis"?><omm/>', "is not OMM in xml: "),
        ("a.json", '["a"]', "is not OMM in json: message 1 is 'a', must be an object with keys"),
        ("a.json", "[1, 2]", "message 1 is 1, must be an object with keys"),
        ("a.json", "null", "it is None, must be a list"),
        ("a.json", "[" * 200_000, "is not OMM in json"),
        ("a.json", '{"EPOCH": 1, "EPOCH": 2}', 'the key "EPOCH" appears twice'),
        ("a.csv", "EPOCH,EPOCH\n1,2\n", 'the key "EPOCH" appears twice'),
        ("a.csv", CSV.rstrip("\n") + ",5\n", "row 1 has 18 values, the header names 17"),
        ("a.csv", "OBJECT_NAME\n" + "x" * 200_000, "is not OMM in csv: line"),
        ("a.kvn", "OBJECT_NAME = A\nnonsense\n", "line 2 is 'nonsense', expected KEY = value"),
        ("a.kvn", "EPOCH = 1\nEPOCH = 2\n", "line 2: the key 'EPOCH' appears twice"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_place_and_reason(
    name: str, content: str | bytes, message: str, tmp_path: Path
) -> None:
    assert message in refusal(tmp_path, name, content)


def test_a_full_device_is_named() -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        write_text("/dev/full", "x")
    assert caught.value.filename == "/dev/full"


# Row 7: what is no element set.


def test_a_rate_limit_is_recognised() -> None:
    with pytest.raises(ValueError, match=r"rate_limit\.tle holds no element sets; it looks like a .* rate limit: 'The"):
        leo.load(CASES / "rate_limit.tle")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tle", json.dumps([MESSAGE] * 10_000), "it looks like JSON"),
        ("a.tle", "<!DOCTYPE html>\n<html>" + "<p>" * 1_000_000, "it looks like HTML"),
        ("a.tle", "<html>\n<body>\n", "it looks like HTML"),
        ("a.tle", KVN, "it looks like OMM in KVN"),
        ("a.tle", CSV, "it looks like OMM in CSV"),
        ("a.tle", XML, "it looks like XML"),
        ("a.tle", "x" * 5_000_000, "holds no element sets; it begins 'xxx"),
        ("a.tle", "Too many requests", "rate limit"),
        ("a.tle", "GP data has not updated since your last successful download of GROUP=active", "rate limit"),
        ("a.json", "<html><title>503</title></html>", "it looks like HTML"),
        ("a.json", TLE, "it looks like two-line element sets"),
        ("a.csv", "<html><title>503</title></html>\n<p>\n", "it looks like HTML"),
        ("a.xml", json.dumps([MESSAGE]), "it looks like JSON"),
        ("a.kvn", json.dumps([MESSAGE] * 10_000), "it looks like JSON"),
        ("a.json", "", "it is empty"),
        ("a.json", json.dumps([{**MESSAGE, "OBJECT_NAME": "x" * 5_000_000}]), "5,000,000 characters"),
        ("a.json", json.dumps([{**MESSAGE, "EPOCH": "x" * 5_000_000}]), "EPOCH is 'xxx"),
        ("a.json", json.dumps([{**MESSAGE, "BSTAR": ["\x00" * 5_000_000]}]), "BSTAR is ["),
        ("a.json", f'{{"{"k" * 1000000}": 1, "{"k" * 1000000}": 2}}', "appears twice"),
        ("a.tle", f"{FIRST}\n{'y' * 5_000_000}", "line 2 should start with '2 '"),
        ("a.tle", f"{'y' * 5_000_000}\n{FIRST}\n{SECOND}", "line 1: the name"),
    ],
)
def test_a_message_says_what_a_text_looks_like_and_quotes_little(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    found = refusal(tmp_path, name, text)
    assert message in found
    assert len(found) < 400  # of which at most 200 are quoted


INDENTED = "".join(f"   {line}\n" for line in TLE.splitlines())


@pytest.mark.parametrize(
    "text",
    [
        INDENTED,
        "".join(f"\t{line}\n" for line in TLE.splitlines()),
        f"# fetched today\n{TLE}",
        f"  # fetched\n\n# today\n{TLE}\n# end",
        f"{NAME}\n# line 1 follows\n{FIRST}\n# and 2\n{SECOND}\n",
        TLE.replace("\n", "\r\n"),
        TLE.replace("\n", "   \n"),
        TLE.replace("\n", "\n\n"),
        f"0 {TLE}",
        TLE.rstrip("\n"),
    ],
)
def test_indented_and_commented_element_sets_are_read(text: str) -> None:
    found, judge = leo.from_tle(text), Satrec.twoline2rv(FIRST, SECOND)
    assert found.names == ["ISS (ZARYA)"]
    _, position, _ = judge.sgp4(judge.jdsatepoch, judge.jdsatepochF)
    assert np.allclose(found.positions(found.epoch)[0, 0], position, atol=0.01)  # km; epoch to the microsecond


# Files whose names say nothing of the format.


@pytest.mark.parametrize("name", ["a.omm", "a.txt", "a.OMM", "a", "gp.php?FORMAT=json", "a.3le"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (TLE, "ISS (ZARYA)"),
        (f"# fetched today\n{FIRST}\n{SECOND}\n", "25544"),
        (CSV, "TEST 1"),
        (json.dumps([MESSAGE]), "TEST 1"),
        (json.dumps(MESSAGE, indent=2), "TEST 1"),
        (KVN, "TEST 1"),
        (
            f"COMMENT a\nCOMMENT b\n\nEPOCH = {MESSAGE['EPOCH']}\n" + KVN.replace("EPOCH", "USER_DEFINED_EPOCH"),
            "TEST 1",
        ),
        (XML, "ISS (ZARYA)"),
        ("<!-- fetched today -->" + XML.partition("?>")[2], "ISS (ZARYA)"),
        (XML.replace("UTF-8", "utf-16").encode("utf-16"), "ISS (ZARYA)"),
        (codecs.BOM_UTF8 + KVN.encode(), "TEST 1"),
    ],
)
def test_the_content_decides_where_the_name_is_no_format(
    name: str, content: str | bytes, expected: str, tmp_path: Path
) -> None:
    """Each was read as two-line element sets, and refused."""
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    assert leo.load(tmp_path / name).names == [expected]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"error": "Too many requests"}',
            "message 1 lacks EPOCH; it looks like a server.s message about a rate limit",
        ),
        ("<html><title>503</title></html>", "holds no element sets; it looks like HTML"),
        ("", "holds no element sets; it is empty"),
        (KVN.replace("EPOCH", "EPOCHE"), "message 1 lacks EPOCH"),
        # A pattern that divides this in every way would take years.
        ("COMMENT " * 200, "holds no element sets; it begins 'COMMENT"),
    ],
)
def test_what_no_reader_takes_is_refused_under_any_name(text: str, message: str, tmp_path: Path) -> None:
    assert re.search(message, refusal(tmp_path, "a.omm", text))


# Row 8: satellites of one name.


def test_satellites_of_one_name_are_told_apart_and_it_is_said() -> None:
    with pytest.warns(UserWarning, match=r"omm_same_names\.json: several satellites are called 'OBJECT A'") as caught:
        fleet = leo.load(CASES / "omm_same_names.json")
    assert caught[0].filename == __file__
    assert fleet.names == ["OBJECT A (25544)", "OBJECT A (25545)"]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ([("A", 1), ("A", 2)], ["A (1)", "A (2)"]),
        ([("A", 1), ("B", 2), ("A", 3)], ["A (1)", "B", "A (3)"]),
        ([("A", 1), ("A", 2), ("B", 3), ("B", 4)], ["A (1)", "A (2)", "B (3)", "B (4)"]),
        ([("A", 799501234), ("A", 799501235)], ["A (799501234)", "A (799501235)"]),
        ([("A", 1), ("A", 2), ("A (1)", 3)], ["A (1) (1)", "A (2)", "A (1)"]),
        ([("A (1)", 3), ("A", 1), ("A", 2)], ["A (1)", "A (1) (1)", "A (2)"]),
        ([("TBA", n) for n in range(1, 6)], [f"TBA ({n})" for n in range(1, 6)]),
        ([("A", 1), ("A", 2), ("A ", 3)], ["A (1)", "A (2)", "A (3)"]),
        ([("Ä", 7), ("Ä", 8)], ["Ä (7)", "Ä (8)"]),
        ([("A", 1), ("a", 2), ("A", 3)], ["A (1)", "a", "A (3)"]),
    ],
)
def test_names_are_made_unique(given: list[tuple[str, int]], names: list[str], tmp_path: Path) -> None:
    messages = [{**MESSAGE, "OBJECT_NAME": name, "NORAD_CAT_ID": number} for name, number in given]
    (tmp_path / "a.json").write_text(json.dumps(messages))
    with pytest.warns(UserWarning, match="their catalogue numbers were added"):
        assert leo.load(tmp_path / "a.json").names == names


def test_two_element_sets_of_one_satellite_are_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, "a.json", json.dumps([MESSAGE, MESSAGE]))
    assert "two satellites are called 'TEST 1' and their catalogue number is 25544 for both" in message
    numberless = {**MESSAGE, "NORAD_CAT_ID": None}
    message = refusal(tmp_path, "a.json", json.dumps([numberless, numberless]))
    assert "their catalogue number is missing" in message
