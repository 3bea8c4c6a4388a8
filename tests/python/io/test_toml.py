"""TOML: parsed, its tables checked, and every error with its place."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest

from orbitsplit._io.toml import check_table_keys, parse_toml, quantity_of, tables_of
from orbitsplit._io.validation import check_number


def test_tables_come_in_the_order_of_the_file() -> None:
    data = parse_toml('name = "n"\n[[nodes]]\nname = "a"\n[[nodes]]\nname = "b"\n', "net.toml")
    assert data["name"] == "n"
    assert tables_of(data, "nodes", "net.toml") == [{"name": "a"}, {"name": "b"}]
    assert tables_of(data, "links", "net.toml") == []


@pytest.mark.parametrize("text", ["a = \n", "a = 1\na = 2\n", "[a\n"])
def test_what_is_not_toml_names_the_file_and_the_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^net\.toml is not TOML: .*line [12]"):
        parse_toml(text, "net.toml")


@pytest.mark.parametrize("value", [3, "links", {"a": 1}, [1], [{"a": 1}, 2]])
def test_what_is_no_array_of_tables_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=re.escape("net.toml: links must be an array of tables, written [[links]]")):
        tables_of({"links": value}, "links", "net.toml")


def test_keys_that_are_missing_or_unknown_are_named() -> None:
    check_table_keys({"name": 1, "memory": 2}, required=("name",), optional=("memory",), where="net.toml: nodes[0]")
    with pytest.raises(ValueError, match=r"^net\.toml: nodes\[0\] lacks 'name'$"):
        check_table_keys({"memory": 2}, required=("name",), optional=("memory",), where="net.toml: nodes[0]")
    message = r"^net\.toml: nodes\[0\] has the unknown key 'ram'; known: name, memory$"
    with pytest.raises(ValueError, match=message):
        check_table_keys({"name": 1, "ram": 2}, required=("name",), optional=("memory",), where="net.toml: nodes[0]")


def test_a_quantity_of_a_file_is_wrong_as_a_value_even_where_its_type_is() -> None:
    assert quantity_of("5 ms", "seconds", "net.toml: links[0].latency") == 0.005
    for value in ([5], True, "5 parsec", -1):
        with pytest.raises(ValueError, match=r"^net\.toml: links\[0\]\.latency is "):
            quantity_of(value, "seconds", "net.toml: links[0].latency")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomli is what there is")
def test_python_without_tomllib_takes_tomli_and_else_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import tomllib

    monkeypatch.setitem(sys.modules, "tomllib", None)
    monkeypatch.setitem(sys.modules, "tomli", tomllib)
    assert parse_toml("a = 1", "net.toml") == {"a": 1}
    monkeypatch.setitem(sys.modules, "tomli", None)
    with pytest.raises(ImportError, match=r'pip install "orbitsplit\[cli\]"'):
        parse_toml("a = 1", "net.toml")


def test_text_that_the_caller_read_may_have_a_byte_order_mark() -> None:
    assert parse_toml("\ufeffa = 1", "x.toml") == {"a": 1}


def test_a_value_of_megabytes_is_quoted_in_part() -> None:
    with pytest.raises(ValueError, match="unknown key 'kkk") as caught:
        check_table_keys({"k" * 5_000_000: 1}, required=(), optional=("a",), where="x.toml")
    assert len(str(caught.value)) < 250
    with pytest.raises(TypeError, match="a is '") as wrong:
        check_number("a", "7" * 5_000_000)
    assert len(str(wrong.value)) < 250
