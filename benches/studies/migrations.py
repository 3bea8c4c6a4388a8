"""Pipelines that go over to other plans while they generate: the pause against its prediction and a cold reload.

    python -m benches.studies.migrations [--migrations 20] [--seed 0] [--json FILE]
    python -m benches.studies.migrations --codec

Llama, Gemma 3 (with sliding windows) and Qwen3 (bfloat16) of random weights run on three or four of five nodes over
emulated links. While each generates, the pipeline goes over to one random plan after the other: other cuts, nodes and
order. A cold reload is a program that starts on the new plan and runs the prompt and the tokens so far; a warm one
starts another pipeline in this program, whose processes are forked from a server that has imported everything. Prints a
line for each migration and exits with 1 if a text differs from the undisturbed one, a pause is longer than 1.5 times
its prediction, or a cold reload takes less than three times as long as the pause.

`--codec` measures what lossless compression makes of keys and values: its ratio, and the seconds per byte to encode and
decode, the constants of `orbitsplit._plans.migration`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen3Config

import orbitsplit as osp

NODES = [f"sat-{n}" for n in range(5)]
LAYERS, ROWS, PROMPT_TOKENS = 8, 2, 64
LINK = osp.PlanLink(bytes_per_s=2e7, latency_s=0.005)
MOST_PAUSE, LEAST_RELOAD = 1.5, 3.0
MODELS = ("llama", "gemma3", "qwen3")
_OPTIONS: dict[str, Any] = {"eos_token_id": (), "pad_token_id": 0}
_SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 512,
    "max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class Row:
    """One migration: seconds of the pause, of the prediction and of both reloads, and bytes moved."""

    model: str
    before: str
    after: str
    how: str
    tokens: int
    pause_s: float
    predicted_pause_s: float
    warm_reload_s: float
    cold_reload_s: float
    bytes_moved: int
    predicted_bytes: int
    loading_s: float

    @property
    def is_within_bars(self) -> bool:
        """Whether the pause is as short as it has to be."""
        is_as_predicted = self.pause_s <= MOST_PAUSE * self.predicted_pause_s
        return is_as_predicted and self.cold_reload_s >= LEAST_RELOAD * self.pause_s


@contextmanager
def random_model(name: str) -> Iterator[tuple[Path, str]]:
    """Make a model of random weights; yield its directory and its dtype."""
    torch.manual_seed(0)
    kinds = {"llama": LlamaConfig, "gemma3": Gemma3TextConfig, "qwen3": Qwen3Config}
    further = {"sliding_window": 96} if name == "gemma3" else {}
    dtype = "bfloat16" if name == "qwen3" else "float32"
    model = AutoModelForCausalLM.from_config(kinds[name](**_SIZES, **further), dtype=getattr(torch, dtype))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.15)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        yield Path(folder), dtype


def random_plan(source: random.Random, dtype: str) -> osp.Plan:
    """Return a plan of three or four stages on random nodes."""
    stages = source.choice((3, 4))
    cuts = sorted(source.sample(range(1, LAYERS), stages - 1))
    plan = osp.Plan.manual(cuts=cuts, layers=LAYERS, nodes=source.sample(NODES, stages))
    workload = osp.Workload(prompt_tokens=PROMPT_TOKENS, new_tokens=64, batch_size=ROWS)
    links = (LINK,) * len(plan.links)
    return replace(plan, dtype=dtype, links=links, return_latency_s=LINK.latency_s, workload=workload)


class Run:
    """A generation in the background, of which the number of steps can be waited for."""

    def __init__(self, pipe: osp.Pipeline, prompts: torch.Tensor, new_tokens: int) -> None:
        self._changed, self.steps = threading.Condition(), 0
        self.running = pipe.submit(prompts, max_new_tokens=new_tokens, on_tokens=self._count, **_OPTIONS)

    def _count(self, _tokens: torch.Tensor) -> None:
        with self._changed:
            self.steps += 1
            self._changed.notify_all()

    def wait(self, steps: int) -> None:
        """Wait for so many further steps."""
        with self._changed:
            goal = self.steps + steps
            self._changed.wait_for(lambda: self.steps >= goal or self.running.is_over)


def reload_s(plan: osp.Plan, model: Path, tokens: torch.Tensor) -> float:
    """Return the seconds until a new pipeline has run the tokens so far, and has given the next one."""
    started_s = time.monotonic()
    with osp.Pipeline(plan, model) as pipe:
        pipe.generate(tokens, torch.ones_like(tokens), max_new_tokens=1, **_OPTIONS)
        return time.monotonic() - started_s


def cold_reload_s(plan: osp.Plan, model: Path, tokens: torch.Tensor) -> float:
    """Return the seconds until a new program has done the same."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan.save(folder / "plan.json")
        (folder / "tokens.json").write_text(json.dumps(tokens.tolist()))
        started_s = time.monotonic()
        command = [sys.executable, "-m", "benches.studies.migrations", "--reload", str(folder), str(model)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
            assert program.stdout is not None
            assert program.stdout.readline() == "there\n"
            return time.monotonic() - started_s


def reload(folder: Path, model: Path) -> None:
    """Be the program of `cold_reload_s`."""
    tokens = torch.tensor(json.loads((folder / "tokens.json").read_text()))
    reload_s(osp.Plan.load(folder / "plan.json"), model, tokens)
    print("there", flush=True)


def study(name: str, count: int, seed: int) -> Iterator[tuple[Row | None, bool]]:
    """Yield the migrations of one model; at last whether the text is the undisturbed one."""
    source = random.Random(f"{seed} {name}")
    with random_model(name) as (model, dtype):
        prompts = torch.randint(3, 512, (ROWS, PROMPT_TOKENS), generator=torch.Generator().manual_seed(seed))
        first, new_tokens = random_plan(source, dtype), 250 * (count + 1)
        found, texts = [], []
        with osp.Pipeline(first, model) as pipe:
            run = Run(pipe, prompts, new_tokens)
            for _ in range(count):
                run.wait(20)
                found.append(pipe.migrate(random_plan(source, dtype)))
                texts.append(run.running.tokens())
            run.running.cancel()
            tokens = run.running.result()
        with osp.Pipeline(first, model) as pipe:
            expected = pipe.generate(prompts, max_new_tokens=tokens.shape[1] - PROMPT_TOKENS, **_OPTIONS)
        for one, text in zip(found, texts, strict=True):
            yield (
                Row(
                    name,
                    str(one.before),
                    str(one.after),
                    one.how,
                    text.shape[1],
                    one.pause_s,
                    one.predicted_pause_s,
                    reload_s(one.after, model, text),
                    cold_reload_s(one.after, model, text),
                    one.bytes_moved,
                    one.predicted_bytes,
                    one.loading_s,
                ),
                True,
            )
        yield None, torch.equal(tokens, expected)


def measure_codec() -> None:
    """Print ratio and seconds per byte of lossless compression of the keys and values of the Qwen3 model."""
    with random_model("qwen3") as (folder, _):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        with torch.inference_mode():
            cache = model(torch.randint(3, 512, (ROWS, 2048)), use_cache=True).past_key_values
        states = [state.contiguous() for layer in cache.layers for state in (layer.keys, layer.values)]
        size = sum(state.nbytes for state in states)
        osp.decompress(osp.compress(states[0], codec="lossless_bf16"), framework="torch")
        times = []
        for _ in range(5):
            started_s = time.process_time()
            frames = [osp.compress(state, codec="lossless_bf16") for state in states]
            decoded = [osp.decompress(frame, framework="torch", max_bytes=1 << 30) for frame in frames]
            times.append(time.process_time() - started_s)
        assert all(map(torch.equal, decoded, states))
        ratio = size / sum(map(len, frames))
        print(f"{size:,} bytes: ratio {ratio:.2f}, {statistics.median(times) / size * 1e9:.2f} ns per byte")


def print_row(row: Row) -> None:
    """Print a line of the table."""
    print(
        f"{row.model:7} {row.tokens:5} tokens  {row.how:7}  pause {row.pause_s:6.3f} s  predicted "
        f"{row.predicted_pause_s:6.3f} s  ({row.pause_s / row.predicted_pause_s:4.2f})  reload warm "
        f"{row.warm_reload_s:5.2f} s ({row.warm_reload_s / row.pause_s:4.1f}), cold {row.cold_reload_s:5.2f} s "
        f"({row.cold_reload_s / row.pause_s:4.1f})  {row.bytes_moved:10,} bytes, predicted {row.predicted_bytes:10,}  "
        f"loading {row.loading_s:5.2f} s{'' if row.is_within_bars else '  OUTSIDE'}",
        flush=True,
    )


def main() -> int:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--migrations", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--codec", action="store_true")
    parser.add_argument("--reload", type=Path, nargs=2, metavar=("FOLDER", "MODEL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reload is not None:
        reload(*options.reload)
        return 0
    if options.codec:
        measure_codec()
        return 0
    rows: list[Row] = []
    is_same = True
    for place, name in enumerate(MODELS):
        count = (options.migrations + len(MODELS) - 1 - place) // len(MODELS)
        for row, is_text_same in study(name, count, options.seed):
            is_same = is_same and is_text_same
            if row is not None:
                rows.append(row)
                print_row(row)
        print(f"{name}: {'the same text' if is_text_same else 'ANOTHER TEXT'}", flush=True)
    ratios = [row.pause_s / row.predicted_pause_s for row in rows]
    reloads = [row.warm_reload_s for row in rows], [row.cold_reload_s for row in rows]
    warm, cold = ([seconds / row.pause_s for row, seconds in zip(rows, own, strict=True)] for own in reloads)
    print(
        f"{len(rows)} migrations: pause {statistics.median(row.pause_s for row in rows):.3f} s (median), at most "
        f"{max(ratios):.2f} of the prediction; reload at least {min(warm):.1f} (warm) and {min(cold):.1f} (cold) times "
        f"the pause"
    )
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return 0 if is_same and all(row.is_within_bars for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
