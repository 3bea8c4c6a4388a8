"""The number of positions that a model has a table of, compared with where its own forward fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedModel, RobertaConfig, RobertaModel

from orbitsplit._models.positions import position_limit
from orbitsplit._models.stage import StageModel
from tests.support.tiny_models import LAYERS, save_tiny_model

POSITIONS = 64
SIZES = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 64}


def runs(model: PreTrainedModel, tokens: int) -> bool:
    """The judge: whether transformers runs a prompt of so many tokens."""
    try:
        with torch.no_grad():
            model(input_ids=torch.full((1, tokens), 5), attention_mask=torch.ones(1, tokens, dtype=torch.int64))
    except (IndexError, RuntimeError) as error:  # RuntimeError: of an encoder's buffer, as long as its table
        if any(part in str(error) for part in ("out of range", "out of bounds", "expanded size")):
            return False
        raise
    return True


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_a_language_model_with_a_table_has_its_limit(tmp_path: Path, family: str) -> None:
    whole = save_tiny_model(tmp_path, family, max_position_embeddings=POSITIONS)
    assert position_limit(StageModel.load(tmp_path, 0, 2)) == POSITIONS
    assert runs(whole, POSITIONS)
    assert not runs(whole, POSITIONS + 1)
    assert position_limit(StageModel.load(tmp_path, 2, LAYERS + 2)) is None  # the parent asks the first stage


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "bloom", "gemma3_text"])
def test_a_model_without_a_table_has_none(tmp_path: Path, family: str) -> None:
    whole = save_tiny_model(tmp_path, family, max_position_embeddings=POSITIONS)
    assert position_limit(StageModel.load(tmp_path, 0, 2)) is None
    assert runs(whole, POSITIONS + 1)


def test_rows_of_the_table_that_padding_takes_are_no_positions(tmp_path: Path) -> None:
    config = RobertaConfig(vocab_size=97, max_position_embeddings=POSITIONS + 2, pad_token_id=1, **SIZES)
    whole = RobertaModel(config).eval()
    whole.save_pretrained(tmp_path)
    assert position_limit(StageModel.load(tmp_path, 0, 2)) == POSITIONS
    assert runs(whole, POSITIONS)
    assert not runs(whole, POSITIONS + 1)


def test_an_encoder_has_all_rows_of_its_table(tmp_path: Path) -> None:
    whole = BertModel(BertConfig(vocab_size=97, max_position_embeddings=POSITIONS, **SIZES)).eval()
    whole.save_pretrained(tmp_path)
    assert position_limit(StageModel.load(tmp_path, 0, 2)) == POSITIONS
    assert runs(whole, POSITIONS)
    assert not runs(whole, POSITIONS + 1)
