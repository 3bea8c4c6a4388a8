"""The one table of dtypes agrees with NumPy, with safetensors and with frames."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import orbitsplit as osp
from orbitsplit._io.dtypes import DTYPES, ITEM_BYTES, SAFETENSORS_DTYPES, check_dtype, describe_array


def test_sizes_are_those_of_the_dtypes() -> None:
    torch = pytest.importorskip("torch")
    assert {name: getattr(torch, name).itemsize for name in DTYPES} == ITEM_BYTES
    for name in ("float32", "float16"):
        assert np.dtype(name).itemsize == ITEM_BYTES[name]


def test_numbers_are_those_of_frames() -> None:
    torch = pytest.importorskip("torch")
    for number, name in enumerate(DTYPES):
        frame = osp.compress(torch.zeros(3, dtype=getattr(torch, name)), codec="raw")
        assert frame[6] == number  # docs/internals/frame_format.md: the dtype is byte 6
        assert osp.decompress(frame, framework="torch").dtype == getattr(torch, name)


def test_names_of_safetensors_are_those_it_writes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    save_file({name: torch.zeros(1, dtype=getattr(torch, name)) for name in DTYPES}, tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert {entry["dtype"]: name for name, entry in header.items()} == SAFETENSORS_DTYPES


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_passes(name: str) -> None:
    check_dtype("dtype", name)


@pytest.mark.parametrize("name", ["float64", "int8", "torch.float32", "", None])
def test_another_dtype_is_named_with_those_there_are(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^dtype of the plan is {name!r}, must be one of float32, float16, bfloat16$"
    ):
        check_dtype("dtype of the plan", name)


def test_arrays_in_messages() -> None:
    assert describe_array(0, (4, 6)) == "float32 [4, 6]"
    assert describe_array(2, ()) == "bfloat16 []"
