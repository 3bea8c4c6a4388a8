"""Which classes of transformers run in stages, which are refused and why, and is any of them wrong?

    python -m benches.studies.model_sweep [--kind KIND ...] [--only TEXT] [--jobs N] [-o FILE.json [--resume]]
                                          [--table PAGE.md]

Each class that transformers lists for a kind of model is built with a small random configuration and run unsplit and
in three stages in one process (`orbitsplit._models.twin`): prompts with and without padding, and decode steps beyond
the lengths at which a forward changes. `profile` is asked first, as a user would.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import AutoConfig
from transformers.models.auto import modeling_auto

from orbitsplit._models.image_inputs import takes_images
from orbitsplit._models.verdicts import try_architecture
from orbitsplit._profiling.static_cost import count_costs

KINDS = {
    "causal language models": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "sequence classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "encoders": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "vision": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "vision-language": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "encoder-decoder": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "speech to text": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
}
OUTCOMES = ("exact", "refused", "wrong", "crash", "not built")
BEGIN, END = "<!-- model_sweep -->", "<!-- /model_sweep -->"
MOST_NAMES = 6
LIMIT_S = 300  # of processor time

# What a class needs beside the sizes that `shrunk` changes, or that its own defaults leave out.
_ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
_GEMMA4 = {
    "num_hidden_layers": 6,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "global_head_dim": 32,
    "hidden_size_per_layer_input": 0,
    "vocab_size": 120,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 48,
    "long_factor": [4.0] * 48,
    "original_max_position_embeddings": 4096,
}
CHANGES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"n_embd": 128, "n_head": 4, "rotary_dim": 16},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8}},
    "deepseek_v2": _ROUTED,
    "dots1": {**_ROUTED, "n_shared_experts": 1},
    "gemma4": {"text_config": _GEMMA4},
    "gemma4_text": _GEMMA4,
    "gemma4_unified": {"text_config": _GEMMA4},
    "gemma4_unified_text": _GEMMA4,
    "esm": {"vocab_size": 100, "pad_token_id": 0, "mask_token_id": 3},
    "glm4_moe": {"head_dim": 32},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 16},
    "hunyuan_v1_dense": {"head_dim": 32},
    "hunyuan_v1_moe": {"head_dim": 32},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"head_dim": 32},
    "nemotron": {"num_key_value_heads": 8, "head_dim": 32},
    "phi3": {"rope_parameters": _LONGROPE, "max_position_embeddings": 131072},
    "phi4_multimodal": {"rope_parameters": {**_LONGROPE, "partial_rotary_factor": 0.75}},
    "longformer": {"attention_window": 8},
    "rwkv": {"hidden_size": 64, "attention_hidden_size": 64, "vocab_size": 120},
}


class Row(NamedTuple):
    """A class of a kind, what became of it, and why; of one that takes images beside texts, the same with images."""

    kind: str
    model_type: str
    architecture: str
    outcome: str
    reason: str
    seconds: float
    images: str = ""
    images_reason: str = ""


def classes(kinds: Sequence[str], only: str | None) -> Iterator[tuple[str, str, str]]:
    """Yield kind, type and class of each model of transformers."""
    for kind in kinds:
        for model_type, names in getattr(modeling_auto, KINDS[kind]).items():
            name = names if isinstance(names, str) else names[0]
            if only is None or only in model_type or only in name:
                yield kind, model_type, name


def default_config(model_type: str, architecture: str) -> Any:
    """Return the configuration of a class; raises whatever its code does if there is none."""
    config = AutoConfig.for_model(model_type, **CHANGES.get(model_type, {}))
    named = getattr(transformers, architecture)
    if not isinstance(config, named.config_class):  # the type names a part of what the class takes, or the whole
        config = named.config_class()
    if model_type in ("bert", "roberta") or "CausalLM" in architecture or "LMHead" in architecture:
        config.is_decoder = True
    config.architectures = [architecture]
    text = config.get_text_config(decoder=True)
    if vars(text).get("pad_token_id") is None:  # classifiers of more than one row need it
        vars(text)["pad_token_id"] = 0
    return config


def sweep_one(kind: str, model_type: str, architecture: str) -> Row:
    """Try one class."""
    start_s = time.perf_counter()

    def row(outcome: str, reason: str) -> Row:
        return Row(kind, model_type, architecture, outcome, reason, round(time.perf_counter() - start_s, 2))

    try:
        config = default_config(model_type, architecture)
    except Exception as error:
        return row("not built", f"{type(error).__name__}: {str(error).strip()[:200]}")
    # Not by profile, which refuses what the trial finds wrong.
    verdict, small = try_architecture(config)
    if verdict.kind != "exact":
        return row("not built" if verdict.kind == "unknown" else verdict.kind, verdict.reason)
    try:
        assert small is not None, "it was tried"
        # As `profile` does, which would try the class once more before.
        count_costs(small, prompt_tokens=5, batch_size=1, dtype=torch.float32)
    except Exception as error:
        is_refusal = isinstance(error, ValueError) and "cannot be split into stages" in str(error)
        outcome = "refused" if is_refusal else "crash"
        return row(outcome, f"profile: {type(error).__name__}: {str(error).strip()[:200]}")
    if not takes_images(config):
        return row("exact", "")
    seen, _ = try_architecture(config, with_images=True)
    return row("exact", "")._replace(images=seen.kind, images_reason=seen.reason)


def _child(task: tuple[str, str, str], connection: Any) -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))
    connection.send(sweep_one(*task))
    connection.close()


def sweep(tasks: Sequence[tuple[str, str, str]], jobs: int) -> Iterator[Row]:
    """Try classes, each in a process of its own that has imported transformers already."""
    context = multiprocessing.get_context("fork")
    waiting, running = list(reversed(tasks)), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            task = waiting.pop()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(task, sender))
            process.start()
            sender.close()
            running[receiver] = (task, process)
        for ready in multiprocessing.connection.wait(list(running)):
            task, process = running.pop(ready)
            try:
                yield ready.recv()
            except EOFError:
                process.join()
                yield Row(*task, "crash", f"its process ended with {process.exitcode}", 0.0)
            process.join()


def table(rows: Sequence[Row]) -> str:
    """Return the totals by kind, and how often each reason is given, as Markdown."""
    lines = ["| kind | classes | " + " | ".join(OUTCOMES) + " |", "| --- |" + " --- |" * (len(OUTCOMES) + 1)]
    for kind in dict.fromkeys(row.kind for row in rows):
        own = Counter(row.outcome for row in rows if row.kind == kind)
        lines.append(f"| {kind} | {own.total()} | " + " | ".join(str(own[outcome]) for outcome in OUTCOMES) + " |")
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.outcome == "refused":
            reason = row.reason.partition("cannot be split into stages: ")[2]
            reasons.setdefault(re.sub(r"\d+", "N", reason)[:120], []).append(row.architecture)
    lines += ["", "| refused because | classes |", "| --- | --- |"]
    for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1])):
        shown = ", ".join(sorted(set(names))[:MOST_NAMES])
        more = len(set(names)) - MOST_NAMES
        lines.append(f"| {reason.replace('|', ' ')} | {shown}{f' and {more} more' if more > 0 else ''} |")
    seen = [row for row in rows if row.images]
    exact = sorted({row.architecture for row in seen if row.images == "exact"})
    if seen:
        lines += [
            "",
            f"With images beside the texts {len(exact)} of {len({row.architecture for row in seen})} are exact:",
        ]
        lines += [", ".join(exact) + ". Images are refused for the others."]
    return "\n".join(lines)


def write_table(page: Path, text: str) -> None:
    """Replace what is between the marks of the table in a page."""
    before, found, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise SystemExit(f"{page} has no {BEGIN} ... {END}")
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def saved_rows(file: Path) -> list[Row]:
    """Return the rows that an earlier sweep wrote, none if there was none."""
    return [Row(**row) for row in json.loads(file.read_text(encoding="utf-8"))] if file.exists() else []


def main() -> None:
    """Sweep the classes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, action="append", help="classes of this kind alone; repeatable")
    parser.add_argument("--only", help="classes or types whose names have this text")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("-o", "--output", type=Path, help="all rows, as JSON")
    parser.add_argument("--resume", action="store_true", help="keep the rows that FILE.json has, and try the rest")
    parser.add_argument("--table", type=Path, help="a Markdown page, between whose marks the table is written")
    options = parser.parse_args()
    tasks = list(classes(options.kind or list(KINDS), options.only))
    rows = saved_rows(options.output) if options.resume and options.output else []
    done = {row[:3] for row in rows}
    for row in sweep([task for task in tasks if task not in done], options.jobs):
        rows.append(row)
        print(f"{row.architecture:45} {row.outcome:10} {row.seconds:6.2f} {row.reason}", flush=True)
        if options.output:
            options.output.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n", encoding="utf-8")
    print(table(rows))
    if options.table:
        write_table(options.table, table(rows))


if __name__ == "__main__":
    main()
