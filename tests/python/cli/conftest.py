"""Input files of every command, small and valid, under the names that the examples of --help use."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import GenerationConfig

import orbitsplit as osp
from tests.support.books_by_hand import book_by_hand
from tests.support.fake_engine import byte_tokenizer
from tests.support.small_inputs import LINKS, NETWORK, PROBLEM
from tests.support.tiny_models import HIDDEN, LAYERS, tiny_model


@pytest.fixture(scope="session")
def input_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of input files. Tests that write do so in a copy, `inputs`."""
    folder = tmp_path_factory.mktemp("inputs")
    tokenizer = byte_tokenizer()
    end = tokenizer.eos_token_id
    model = tiny_model(vocab_size=end + 1, pad_token_id=end, eos_token_id=end)
    model.generation_config = GenerationConfig(pad_token_id=end, eos_token_id=end)
    model.save_pretrained(folder / "my-model")
    tokenizer.save_pretrained(folder / "my-model")
    (folder / "problem.json").write_text(json.dumps(PROBLEM))
    (folder / "network.toml").write_text(NETWORK)
    (folder / "leo.toml").write_text(NETWORK)
    (folder / "links.toml").write_text(LINKS)
    for name in ("corpus.txt", "held-out.txt"):
        (folder / name).write_text(f"{name}: the satellite passes over the station and sends data. " * 60)
    osp.profile(folder / "my-model", prompt_tokens=16).save(folder / "profile.json")
    levels = {cut: [("half", 8.0, 0.001 * (cut + 1))] for cut in range(LAYERS + 1)}
    book_by_hand(levels, layers=LAYERS, width=HIDDEN).save(folder / "book.safetensors")
    profile, network = osp.ModelProfile.load(folder / "profile.json"), osp.Network.load(folder / "network.toml")
    plan = osp.plan(profile, network, osp.Workload(micro_batches=8, prompt_tokens=16, new_tokens=8))
    assert len(plan.stages) == 2
    replace(plan, model="my-model").save(folder / "plan.json")
    return folder


@pytest.fixture
def inputs(input_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the folder, which is the working directory of the test."""
    folder = tmp_path / "inputs"
    shutil.copytree(input_files, folder)
    monkeypatch.chdir(folder)
    return folder
