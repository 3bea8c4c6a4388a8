"""Modules that are imported when they are used: what stands for them, and what stages do without."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from orbitsplit._models import lazy_imports
from tests.support.tiny_models import LAYERS, save_tiny_model

PACKAGE = """
import sys
sys.modules["__main__"].__dict__.setdefault("lazything_imports", []).append(__name__)
__version__ = "1.2"
class Thing:
    def __init__(self, number=3):
        self.number = number
def make(number):
    return Thing(number)
sizes = {"large": 7}
def mark(function):
    raise AssertionError("a stand-in is called instead")
def check(value, expected):
    return ("the module's", value, expected)
"""


@pytest.fixture
def lazy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A finder for which the package `lazything` is lazy."""
    folder = tmp_path / "lazything"
    folder.mkdir()
    for name in ("__init__", "part"):
        (folder / f"{name}.py").write_text(PACKAGE)
    finder = lazy_imports._Finder(["lazything"])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    vars(sys.modules["__main__"])["lazything_imports"] = []
    yield finder
    for name in [name for name in sys.modules if name.startswith("lazything")]:
        del sys.modules[name]
    del vars(sys.modules["__main__"])["lazything_imports"]


def imported() -> list[str]:
    names: list[str] = vars(sys.modules["__main__"])["lazything_imports"]
    return names


def lazything() -> Any:
    return importlib.import_module("lazything")


def test_an_import_waits_for_the_first_call(lazy: Any) -> None:
    make, thing = lazything().make, lazything().Thing
    part = importlib.import_module("lazything.part").make
    assert not isinstance(3, thing)
    assert not issubclass(int, thing)
    assert imported() == []
    made = make(5)
    assert (made.number, thing().number) == (5, 3)
    assert imported() == ["lazything"]
    assert isinstance(made, thing)
    assert not isinstance(3, thing)
    assert issubclass(type(made), thing)
    assert type(made) is lazything().Thing
    assert part(2).number == 2
    assert imported() == ["lazything", "lazything.part"]


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        (lambda package: package.sizes["large"], 7),
        (lambda package: package.make.__name__, "make"),
        (lambda package: package.__version__, "1.2"),
        (lambda package: types.new_class("Special", (package.Thing,))(4).number, 4),
    ],
)
def test_other_uses_import_too(lazy: Any, use: Any, expected: object) -> None:
    package = lazything()
    assert imported() == []
    assert use(package) == expected
    assert imported() == ["lazything"]


def test_annotations_and_questions_of_the_import_system_do_not_import(lazy: Any) -> None:
    package = lazything()

    def function(first: package.Thing | None, second: int | package.Thing) -> None: ...

    assert hasattr(package, "__file__")
    assert not hasattr(package, "__wrapped__")
    assert importlib.util.find_spec("lazything") is package.__spec__
    assert imported() == []


def test_what_is_not_there_is_an_error(lazy: Any) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"lazything\.absent"):
        importlib.import_module("lazything.absent")
    absent = lazything().absent
    with pytest.raises(AttributeError, match="absent"):
        absent()


def test_a_stand_in_answers_as_long_as_the_module_is_lazy(lazy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins = {"mark": lazy_imports._unmarked, "check": lazy_imports._same_sizes}
    monkeypatch.setitem(lazy_imports._STAND_INS, "lazything", stand_ins)
    mark, check = lazything().mark, lazything().check
    assert mark(len) is len
    assert mark(recursive=False)(len) is len
    assert check((1, 2), [1, 2]) is True
    assert check(3, 4) is False
    assert imported() == []
    assert check("x", 1) == ("the module's", "x", 1)  # not for the stand-in
    assert check(3, 4) == ("the module's", 3, 4)
    with pytest.raises(AssertionError):
        mark(len)


def test_a_function_of_the_name_of_its_module_stays(lazy: Any) -> None:
    lazything().sizes.keys()
    lazy.roots.add("lazything.part")
    lazything().part = importlib.import_module("lazything.part").make
    importlib.import_module("lazything.part").Thing()
    assert imported() == ["lazything", "lazything.part"]
    assert lazything().part(2).number == 2


def test_a_process_that_has_imported_torch_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = list(sys.meta_path)
    lazy_imports.install()
    assert sys.meta_path == before
    monkeypatch.setattr(sys, "meta_path", list(before))
    monkeypatch.delitem(sys.modules, "torch")
    lazy_imports.install()
    lazy_imports.install()
    assert sys.meta_path[1:] == before


def test_stand_ins_answer_what_torch_does() -> None:
    symbolic = importlib.import_module("torch.fx.experimental.symbolic_shapes")
    stand_ins = lazy_imports._STAND_INS["torch.fx.experimental.symbolic_shapes"]
    for name in ("expect_true", "guard_or_false", "guard_or_true", "statically_known_true"):
        for value in (False, True):
            assert stand_ins[name](value) is getattr(symbolic, name)(value)
    for name in ("sym_and", "sym_or"):
        for values in ((True,), (False, True), (True, True), (False, False)):
            assert stand_ins[name](*values) is getattr(symbolic, name)(*values)
    for pair in ((3, 3), (3, 4), ((1, 2), (1, 2)), ((1, 2), (1, 3)), ((1,), (1, 2)), ((), ())):
        assert stand_ins["sym_eq"](*pair) == symbolic.sym_eq(*pair)
    assert stand_ins["is_nested_int"](3) is symbolic.is_nested_int(3)
    for name in stand_ins:
        assert stand_ins[name](*[torch.ones(1)] * (2 if name == "sym_eq" else 1)) is NotImplemented


STAGES = """
import json, sys
from orbitsplit._models import lazy_imports
lazy_imports.install()
import torch
from orbitsplit.runtime._worker import fork_server
from orbitsplit._models.source import layer_count, read_config
from orbitsplit._models.stage import StageModel
import torch.distributed as dist
layers = [layer_count(read_config(model)) for model in sys.argv[1:]]
models = [name for name in sys.modules if ".models." in name and ".modeling_" in name and "auto" not in name]
torch.set_num_threads(1)
ids, mask = torch.tensor([[5, 6, 7, 8], [1, 2, 3, 4]]), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
outputs = []
for model in sys.argv[1:]:
    stages = [StageModel.load(model, 0, 3), StageModel.load(model, 3, 6)]
    x = ids
    for stage in stages:
        x = stage.forward(x, mask, stage.new_cache())
    outputs.append(x.tolist())
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
modules = [name for name in lazy_imports.LAZY_MODULES if type(sys.modules.get(name)).__name__ == "module"]
print(json.dumps([modules, models, layers, outputs]))
"""


def test_stages_do_without_the_lazy_modules_and_compute_the_same(tmp_path: Path) -> None:
    families = ("gemma3_text", "mixtral")
    judges = [save_tiny_model(tmp_path / family, family) for family in families]
    command = [sys.executable, "-c", STAGES, *(str(tmp_path / family) for family in families)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    modules, models, layers, outputs = json.loads(done.stdout)
    assert modules == []
    assert models == []  # imported to count layers, which the parent does
    assert layers == [LAYERS, LAYERS]
    ids, mask = torch.tensor([[5, 6, 7, 8], [1, 2, 3, 4]]), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    positions = torch.tensor([[0, 1, 2, 3], [0, 0, 0, 1]])
    for judge, output in zip(judges, outputs, strict=True):
        logits = judge(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -1]
        torch.testing.assert_close(torch.tensor(output), logits, rtol=1e-4, atol=1e-4)


def test_transformers_reads_its_models_once_and_finds_the_same() -> None:
    program = (
        "import sys; from orbitsplit._models import lazy_imports; sys.argv[1:] and lazy_imports.install()\n"
        "import hashlib, transformers, transformers.models, transformers.utils.import_utils as utils\n"
        "found = [sorted(package._class_to_module.items()) for package in (transformers, transformers.models)]\n"
        "print(hashlib.sha256(repr(found).encode()).hexdigest(), utils.create_import_structure_from_path.cache_info())"
    )
    lines = [
        subprocess.run([sys.executable, "-c", program, *lazy], capture_output=True, text=True, check=True).stdout
        for lazy in ((), ("lazy",))
    ]
    (usual, _), (found, cache) = (line.split(maxsplit=1) for line in lines)
    assert found == usual
    assert "hits=0," not in cache
