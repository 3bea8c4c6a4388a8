"""GGUF files converted to directories that transformers loads stage by stage.

transformers reads a whole GGUF file for any stage: about a minute and 3 GB for 0.3 billion parameters, most of the time
for metadata parsed in Python. So a file is converted once, into a cache directory named by its content.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from orbitsplit._io.files import atomic_folder, unfinished_prefix

from . import child_process

Progress = Callable[[str, float], None]

# Small enough that a stage reads few bytes beyond its own; a tensor is never divided.
_SHARD_SIZE = "64MB"
_MODEL = ("weights", "tokenizer")
_DESCRIPTION = ("description", "tokenizer")
# The file that `describe_gguf` writes beside the configuration.
METADATA = "metadata.gguf.json"


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """Return the directory of converted models, by default in the XDG cache."""
    if cache_dir is not None:
        return Path(cache_dir)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "orbitsplit" / "models"


def converted_path(sha256: str, cache_dir: str | Path | None = None) -> Path:
    """Return the directory of the converted file with this hexadecimal SHA-256; it may not exist."""
    return cache_root(cache_dir) / sha256[:16]


def convert_gguf(source: Path, *, cache_dir: str | Path | None = None, progress: Progress | None = None) -> Path:
    """Return the converted directory of a GGUF file, converting it if no earlier call did.

    Concurrent callers wait for one conversion. An interrupted one leaves nothing that a later call could take for
    a model: the directory gets its name only when it is complete and on the disk.

    Raises:
        ValueError: transformers cannot read the file; the message has the reason.
        OSError: The cache cannot be written.
    """
    return _once(source, "", _MODEL, cache_dir, progress)


def describe_gguf(source: Path, *, cache_dir: str | Path | None = None, progress: Progress | None = None) -> Path:
    """Return a directory with what a GGUF file has beside weights: the model's configuration and its tokenizer.

    It is made once, as that of `convert_gguf`, and has the metadata of the file as transformers reads them in
    `METADATA`. Raises as `convert_gguf`.
    """
    return _once(source, "described-", _DESCRIPTION, cache_dir, progress)


def _once(
    source: Path, prefix: str, parts: tuple[str, ...], cache_dir: str | Path | None, progress: Progress | None
) -> Path:
    report = progress or (lambda _step, _fraction: None)
    report("reading the GGUF file", 0.0)
    target = converted_path(_sha256(source), cache_dir)
    target = target.with_name(prefix + target.name)
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_suffix(".lock")):
            if not target.is_dir():
                _build(source, target, report, parts)
    report("converted", 1.0)
    return target


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # The kernel releases the lock of a process that dies: no stale lock blocks a later call.
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(source: Path, target: Path, report: Progress, parts: tuple[str, ...] = _MODEL) -> None:
    for leftover in target.parent.glob(
        f"{unfinished_prefix(target)}*"
    ):  # of callers that were killed: the lock is ours
        shutil.rmtree(leftover, ignore_errors=True)
    # A process each: every part is single-threaded parsing in Python, and the gigabytes that the weights need
    # temporarily must not stay with the caller.
    with atomic_folder(target) as unfinished, ExitStack() as stack:
        for child in [stack.enter_context(_converter(part, source, unfinished)) for part in parts]:
            _follow(child, source, report)


@contextmanager
def _converter(part: str, source: Path, target: Path) -> Iterator[subprocess.Popen[bytes]]:
    arguments = (part, str(source), str(target))
    # Standard error has the progress bars of libraries; errors arrive as messages on standard output.
    child = child_process.start(__name__, *arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()


def _follow(child: subprocess.Popen[bytes], source: Path, report: Progress) -> None:
    assert child.stdout is not None
    failure = ""
    for line in child.stdout:
        kind, fraction, text = line.decode(errors="replace").rstrip("\n").split(" ", 2)
        if kind == "progress":
            report(text, float(fraction))
        else:
            failure = text
    code = child.wait()
    if code != 0:
        reason = failure or f"the converting process ended with exit code {code}"
        raise ValueError(f"cannot convert {source}: {reason}")


def _report(kind: str, fraction: float, text: str, out: IO[str]) -> None:
    print(kind, f"{fraction:.2f}", " ".join(text.split()), file=out, flush=True)


def _convert_weights(source: Path, target: Path, out: IO[str]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    _report("progress", 0.02, "parsing metadata and dequantising weights", out)
    # float32 holds the dequantised values exactly, and stages compute in it: they map the file unchanged, while a
    # half-precision file would cost each stage a converted copy in addition to the mapped pages.
    read = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    _report("progress", 0.85, "writing safetensors shards", out)
    config = read.config
    vars(config).pop("quantization_config", None)  # the weights are no longer GGUF blocks
    # save_pretrained refuses a model that came from GGUF, so its tensors move into a fresh one.
    with torch.device("meta"):
        fresh = type(read)(config)
    fresh.load_state_dict(read.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.generation_config = read.generation_config
    fresh.save_pretrained(target, max_shard_size=_SHARD_SIZE)


def _describe(source: Path, target: Path, out: IO[str]) -> None:
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    _report("progress", 0.02, "parsing metadata", out)
    parsed = load_gguf_checkpoint(str(source))["config"]
    config = CONFIG_MAPPING[parsed["model_type"]].from_dict(dict(parsed))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(target)
    model.generation_config.save_pretrained(target)
    (target / METADATA).write_text(json.dumps(parsed, default=lambda value: value.tolist()), encoding="utf-8")


def _convert_tokenizer(source: Path, target: Path, out: IO[str]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.save_pretrained(target)
    _report("progress", 0.95, "tokenizer written", out)


_PARTS = {"weights": _convert_weights, "description": _describe, "tokenizer": _convert_tokenizer}


def main(part: str, source: str, target: str) -> None:
    """Convert one part of a model, in a process of its own, and print progress and errors as messages."""
    # What libraries print must not mix with the messages.
    out, sys.stdout = sys.stdout, sys.stderr
    try:
        _PARTS[part](Path(source), Path(target), out)
    except Exception as error:
        _report("error", 0.0, f"{type(error).__name__}: {error}", out)
        sys.exit(1)
