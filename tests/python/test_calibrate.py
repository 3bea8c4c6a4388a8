"""Levels: losses equal to those of a whole model with the codec patched in, ratios of real frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import LAYERS, VOCABULARY, save_tiny_model, tiny_prompts
from torch import Tensor
from transformers import PreTrainedModel

from orbitsplit import _calibrate, compress, decompress
from orbitsplit._calibrate import measure_levels
from orbitsplit._levels import LevelTable

CODECS = ("raw", "bf16", "int8:32", "int4", "topk")


def judge(model: PreTrainedModel, ids: Tensor, cut: int, codec: str) -> float:
    """Run the whole model with the activation at one cut replaced; compare every next-token distribution."""

    def replace(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (decompress(compress(args[0].contiguous(), codec=codec), framework="torch"), *args[1:])

    module = model.model.layers[cut] if cut < LAYERS else model.model.norm
    with torch.no_grad():
        expected = model(ids).logits.double().log_softmax(-1)
        handle = module.register_forward_pre_hook(replace)
        changed = model(ids).logits.double().log_softmax(-1)
        handle.remove()
    return float((expected.exp() * (expected - changed)).sum(-1).mean())


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def model(directory: Path) -> PreTrainedModel:
    return save_tiny_model(directory)


@pytest.fixture(scope="module")
def table(directory: Path, model: PreTrainedModel) -> LevelTable:
    ids, _ = tiny_prompts((16, 16))
    return measure_levels(directory, ids, codecs=CODECS)


def test_loss_at_every_cut_is_that_of_the_whole_model(table: LevelTable, model: PreTrainedModel) -> None:
    ids, _ = tiny_prompts((16, 16))
    assert len(table.loss) == LAYERS + 1
    for cut, row in enumerate(table.loss):
        expected = [judge(model, ids, cut, codec) for codec in CODECS]
        assert row == pytest.approx(expected, rel=1e-3, abs=2e-6)
    assert max(row[4] for row in table.loss) > 0.01  # the comparison is not one of zeros


def test_raw_loses_nothing(table: LevelTable) -> None:
    assert [row[0] for row in table.loss] == [0.0] * (LAYERS + 1)


def test_ratios_and_seconds_come_from_frames(table: LevelTable) -> None:
    assert [level.name for level in table.levels] == list(CODECS)
    size = len(compress(torch.zeros(2, 16, 32), codec="int8:32"))
    assert table.levels[2].ratio == pytest.approx(2 * 16 * 32 * 4 / size)
    assert table.levels[0].ratio == 1.0
    assert all(level.encode_s_per_byte > 0 and level.decode_s_per_byte > 0 for level in table.levels)


def test_provenance(table: LevelTable, directory: Path) -> None:
    assert table.provenance["model"] == str(directory)
    assert (table.provenance["rows"], table.provenance["tokens_per_row"], table.provenance["positions"]) == (2, 16, 32)


def test_round_trip(table: LevelTable, tmp_path: Path) -> None:
    table.save(tmp_path / "levels.json")
    assert LevelTable.load(tmp_path / "levels.json") == table


def test_texts_are_cut_to_the_prompt_and_short_ones_left_out(
    directory: Path, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tokenizer:
        def __call__(self, text: str, *, truncation: bool, max_length: int) -> Any:
            ids = [ord(character) % VOCABULARY for character in text][:max_length]
            return type("Encoding", (), {"input_ids": ids})

    monkeypatch.setattr(_calibrate, "load_tokenizer", lambda _model: Tokenizer())
    texts = ["a text of more than twelve characters", "short"]
    found = measure_levels(directory, texts, codecs=("int8",), prompt_tokens=12)
    ids = torch.tensor([[ord(character) % VOCABULARY for character in texts[0][:12]]])
    assert found.loss == measure_levels(directory, ids, codecs=("int8",)).loss
    with pytest.raises(ValueError, match="none of the 2 texts has 400 tokens, the longest has 37"):
        measure_levels(directory, texts, prompt_tokens=400)


@pytest.mark.parametrize("ids", [torch.zeros(4, dtype=torch.long), torch.zeros(0, 5, dtype=torch.long)])
def test_ids_of_a_wrong_shape_are_refused(ids: Tensor, directory: Path, model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"token ids have shape \(.*\), expected a non-empty \[B, S\]"):
        measure_levels(directory, ids)


def test_progress_rises_to_the_end(directory: Path, model: PreTrainedModel) -> None:
    told: list[float] = []
    ids, _ = tiny_prompts((4,))
    measure_levels(directory, ids, codecs=("int8",), progress=lambda _step, fraction: told.append(fraction))
    assert told == sorted(told)
    assert told[-1] == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "something"}, "expected format 'orbitsplit-levels' version 1, got 'something'"),
        ({"levels": [{"name": "raw"}]}, r'levels\[0\] has no key "ratio"'),
        ({"levels": 3}, "levels is int"),
        ({"loss": [[0.0, 0.0, 0.0, 0.0, float("nan")]]}, r"loss\[0\]\[4\] is nan"),
        ({"loss": [[0.0, 0.0, 0.0, 0.0, "x"]]}, r"loss\[0\]\[4\] is 'x'"),
        ({"loss": [[0.0]]}, r"loss\[0\] has 1 numbers, must be 5"),
    ],
)
def test_data_that_is_no_table_is_refused(table: LevelTable, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LevelTable.from_dict({**table.to_dict(), **change})


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_file_that_is_no_table_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "levels.json").write_text(text)
    with pytest.raises(ValueError, match=r"levels\.json(: the orbitsplit-levels is list| is not JSON)"):
        LevelTable.load(tmp_path / "levels.json")


@pytest.mark.parametrize(
    ("codecs", "message"),
    [((), "no codec"), (("int8", "int8:64"), "codec int8 is given 2 times"), (("gzip",), "gzip")],
)
def test_codecs_are_checked_before_anything_is_loaded(codecs: tuple[str, ...], message: str) -> None:
    ids, _ = tiny_prompts((4,))
    with pytest.raises(ValueError, match=message):
        measure_levels("there/is/no/such/model", ids, codecs=codecs)


def test_outputs_that_are_not_finite_are_no_loss_of_zero(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # float(nan) > 0 is false: a codec that broke the model was once recorded as lossless.
    def broken(frame: bytes, **options: Any) -> Any:
        return decompress(frame, **options) * float("nan")

    monkeypatch.setattr(_calibrate, "decompress", broken)
    ids, _ = tiny_prompts((4,))
    with pytest.raises(ValueError, match="not finite with codec int8"):
        measure_levels(directory, ids, codecs=("int8",))
