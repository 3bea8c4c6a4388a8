"""Checkpoints that are damaged or incomplete: refused from their headers, in one line that names file and cause."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import orbitsplit as osp
from orbitsplit._models.source import open_model, read_config
from tests.support.tiny_models import tiny_model

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 99\n"
SHARD = "model-00002-of-00012.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    tiny_model("llama").save_pretrained(folder, max_shard_size="20KB")
    assert (folder / SHARD).is_file()
    return folder


def write(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def quantized(method: str) -> Callable[[Path], object]:
    def change(text: bytes) -> bytes:
        options = {"quant_method": method, "bits": 4, "group_size": 128}
        return json.dumps({**json.loads(text), "quantization_config": options}).encode()

    return write("config.json", change)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (write(SHARD, lambda _: POINTER.encode()), f"{SHARD} is a pointer of Git LFS, not the file itself"),
        (write("config.json", lambda _: POINTER.encode()), "config.json is a pointer of Git LFS"),
        (write(INDEX, lambda _: POINTER.encode()), f"{INDEX} is a pointer of Git LFS"),
        (
            write(SHARD, lambda data: data[:-7]),
            f"{SHARD} is truncated: it has [0-9]+ bytes, its header declares [0-9]+",
        ),
        (write(SHARD, lambda data: data[:50]), f"{SHARD} is truncated: it has 50 bytes, its header alone 344"),
        (write(SHARD, lambda _: b""), f"{SHARD} is no safetensors file, or damaged: its 0 bytes do not begin"),
        (write(SHARD, lambda _: b"<html>" + 1000 * b"x"), f"{SHARD} is no safetensors file, or damaged"),
        (
            write(SHARD, lambda data: data[:8] + b"[" + data[9:]),
            f"{SHARD} is no safetensors file, or damaged: its header",
        ),
        (write(SHARD, lambda data: data + b"x"), f"{SHARD} is damaged: it has [0-9]+ bytes"),
        (lambda folder: (folder / SHARD).unlink(), f"{SHARD} is missing: {INDEX} names 12 files, 1 of them not there"),
        (
            lambda folder: shutil.copy(folder / SHARD.replace("2-", "1-", 1), folder / SHARD),
            f"{SHARD} lacks 3 of the 3 tensors that {INDEX} says it has, the first is model.layers.0",
        ),
        (write(INDEX, lambda _: b"{"), f"{INDEX} is no index of weights"),
        (write(INDEX, lambda _: b"[]"), f"{INDEX} is no index of weights: it has no weight_map"),
        (write(INDEX, lambda _: b'{"weight_map": {"a": 1}}'), f"{INDEX} is no index of weights: the file of a is 1"),
        (quantized("gptq"), "weights quantized by gptq cannot be loaded: .* requires optimum"),
        (quantized("awq"), "weights quantized by awq cannot be loaded: .* requires gptqmodel"),
        (quantized("abacus"), "weights quantized by abacus cannot be loaded: Unknown quantization type"),
    ],
)
def test_a_damaged_checkpoint_is_refused_at_profile(
    damage: Callable[[Path], object], message: str, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        osp.profile(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [SHARD, "model-00012-of-00012.safetensors"])
def test_a_pipeline_of_a_damaged_checkpoint_starts_no_process(
    name: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: a worker refused it after its start, with a traceback."""
    plan = osp.Plan.manual(cuts=[2], layers=len(osp.profile(whole).layers))
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    monkeypatch.setattr("orbitsplit.runtime._parent.pipeline.Sessions", None)
    with pytest.raises(ValueError, match=f"{name} is truncated"):
        osp.Pipeline(plan, folder)


def test_a_directory_with_weights_in_one_file_or_none_is_taken(whole: Path, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "single")
    assert open_model(tmp_path / "single") == tmp_path / "single"
    # transformers reads the one file, whatever an index of old says.
    shutil.copy(whole / INDEX, tmp_path / "single" / INDEX)
    (tmp_path / "single" / "other.safetensors").write_bytes(b"not read")
    assert open_model(tmp_path / "single") == tmp_path / "single"
    read_config(whole).save_pretrained(tmp_path / "none")
    assert osp.profile(tmp_path / "none").layers == osp.profile(whole).layers


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (POINTER.encode(), "is a pointer of Git LFS"),
        (b"", "is no GGUF file"),
        (b"PK\3\4" * 9, "is no GGUF file: it does not begin with GGUF"),
        (b"GGUF", "is truncated: its 4 bytes end within the header"),
        (b"GGUF" + struct.pack("<IQQ", 9, 1, 1), "or damaged: it has version 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 1), "is truncated: its 24 bytes end within the header"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1), "or damaged: it declares 1152921504606846976 tensors"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 77), "a value of metadata has type 77"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 8, 1 << 50), "is truncated"),
    ],
)
def test_a_damaged_gguf_file_is_refused_before_it_is_read(data: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))} .*{message}"):
        osp.profile(file)
