"""Nothing that comes from elsewhere is run: no pickle between processes, no code that lies beside a model."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import orbitsplit as osp
from orbitsplit._models.source import load_tokenizer, read_config

PACKAGE = Path(osp.__file__).parent
# Modules that run code when they read data. multiprocessing pickles whatever goes through its queues.
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "multiprocessing"}
CALLS = {"torch.save", "torch.load", "torch.jit.load", "torch.package", "eval", "exec"}


def offences(source: str) -> Iterator[str]:
    """Yield what a module uses that pickles, or runs what it reads."""
    tree = ast.parse(source)
    # The names that modules and functions go by here: "td" for "torch.distributed" after `import ... as td`.
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {alias.asname: alias.name for alias in node.names if alias.asname}
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            if (node.module or "").partition(".")[0] in MODULES:
                yield str(node.module)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            name = ast.unparse(node)
            first, dot, rest = name.partition(".")
            name = known.get(first, first) + dot + rest
            if name in CALLS or (name.startswith("torch.distributed") and "_object" in name):
                yield name


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", ["pickle"]),
        ("from cloudpickle import dumps", ["cloudpickle"]),
        ("import multiprocessing.connection", ["multiprocessing.connection"]),
        ("import torch\ntorch.load(file)", ["torch.load"]),
        ("import torch as t\nt.save(x, file)", ["torch.save"]),
        ("from torch import load as read\nread(file)", ["torch.load"]),
        ("import torch\ntorch.distributed.send_object_list(x)", ["torch.distributed.send_object_list"]),
        ("import torch.distributed as dist\ndist.gather_object(x)", ["torch.distributed.gather_object"]),
        (
            "from torch.distributed import broadcast_object_list\nbroadcast_object_list(x)",
            ["torch.distributed.broadcast_object_list"],
        ),
        ("eval(text)", ["eval"]),
        ("import torch\nmodel.eval()\ntorch.loads = 1\nfrom safetensors.torch import load\nload(x)", []),
    ],
)
def test_what_pickles_is_found(source: str, found: list[str]) -> None:
    assert list(offences(source)) == found


def test_no_module_pickles_or_runs_what_it_reads() -> None:
    sources = sorted(PACKAGE.rglob("*.py"))
    modules = {"_messages/control_store.py", "_messages/transport.py", "_worker/process.py", "_torchrun.py"}
    assert modules <= {path.relative_to(PACKAGE / "runtime").as_posix() for path in (PACKAGE / "runtime").rglob("*.py")}
    assert {str(path): found for path in sources if (found := list(offences(path.read_text())))} == {}


def test_no_module_lets_a_model_run_its_own_code() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "weights_only"):
                safe = node.arg == "weights_only"
                assert isinstance(node.value, ast.Constant), f"{path}:{node.value.lineno}"
                assert node.value.value is safe, f"{path}:{node.value.lineno}"


@pytest.mark.parametrize("load", [read_config, load_tokenizer])
def test_code_beside_a_model_is_not_even_asked_about(
    load: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # transformers asks on the terminal by default, and "y" ran the code.
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    own = {"AutoConfig": "code.Own", "AutoTokenizer": ["code.Own", None]}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": own}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": own}))
    monkeypatch.setattr("builtins.input", lambda _question: "y")
    with pytest.raises(ValueError, match="custom code"):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()
