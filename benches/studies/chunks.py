"""One prompt in chunks over four equal stages: the first token beside that of the whole prompt, and the prediction.

    python -m benches.studies.chunks [--gemma | --model DIR] [--prompt-tokens 512] [--rounds 3] [--slowdown 4]

A random Llama of 16 layers as wide as Gemma 3 270M, or that model itself (18 layers, of which four stages have 5, 5, 5
and 3), in four processes on this machine, one thread each, on nodes that are emulated to be slower than it, so that
four of them need less than one core. Every node must run layers, so that the planner makes stages of about equal time;
links send bfloat16. Prints for the prompt as a whole and for each length of chunks that the profile was measured with:
predicted and measured seconds to the first token (the median of the rounds) and the ratio to the whole; the tokens must
be equal. The last line is what the planner takes by itself.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import orbitsplit as osp
from orbitsplit._models.source import demo_model

NODES = ["sat-0", "sat-1", "sat-2", "sat-3"]
NEW_TOKENS = 4
VOCABULARY = 512
LAYERS = 16
LATENCY_S = 0.001
LEVEL = osp.Level(name="bf16", ratio=2.0)


@dataclass(frozen=True)
class Found:
    """A length of chunks: predicted and measured seconds to the first token, and the tokens."""

    plan: osp.Plan
    measured_s: float
    tokens: Tensor

    @property
    def predicted_s(self) -> float:
        """Seconds to the first token by the cost model."""
        assert self.plan.prediction is not None
        return self.plan.prediction.prefill_s


def main() -> None:
    """Run the study with the model that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--gemma", action="store_true")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", type=Path, help="a profile of the model that was measured before")
    parser.add_argument("--mbit", type=float, default=100.0)
    parser.add_argument("--slowdown", type=float, default=4.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        study(options, options.model or (demo_model() if options.gemma else equal_layers(Path(folder))))


def study(options: argparse.Namespace, model: Path) -> None:
    """Profile, plan each length, run each, print the table."""
    profile = (
        osp.ModelProfile.load(options.profile)
        if options.profile
        else osp.profile(model, prompt_tokens=options.prompt_tokens, measure=True)
    )
    network = _network(options.mbit * 1e6 / 8, options.slowdown)
    prompt = torch.randint(3, VOCABULARY, (1, options.prompt_tokens), generator=torch.Generator().manual_seed(0))
    lengths = [None, *(chunk.tokens for chunk in reversed(profile.chunks))]
    found = [run(profile, network, model, prompt, length, options.rounds) for length in lengths]
    whole = found[0]
    print("| chunks of | stages | predicted, s | measured, s | error | sooner than the whole |")
    print("| --- | --- | --- | --- | --- | --- |")
    for one in found:
        assert torch.equal(one.tokens, whole.tokens), f"chunks of {one.plan.chunk_tokens} give other tokens"
        layers = ", ".join(f"{stage.start}-{stage.stop - 1}" for stage in one.plan.stages)
        error = one.measured_s / one.predicted_s - 1
        print(
            f"| {one.plan.chunk_tokens or 'whole'} | {layers} | {one.predicted_s:.2f} | {one.measured_s:.2f} | "
            f"{error:+.1%} | {whole.measured_s / one.measured_s:.2f} |"
        )
    chosen = _plan(profile, network, "auto")
    print(f"\nchosen: chunks of {chosen.chunk_tokens} tokens; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def run(
    profile: osp.ModelProfile, network: osp.Network, model: Path, prompt: Tensor, length: int | None, rounds: int
) -> Found:
    """Run the best plan with a length of chunks."""
    plan = _plan(profile, network, length)
    seconds = []
    with osp.Pipeline(plan, model) as pipe:
        for _ in range(rounds + 1):  # the first one warms up
            tokens = pipe.generate(prompt, max_new_tokens=NEW_TOKENS, eos_token_id=(), do_sample=False)
            assert pipe.last_run is not None
            seconds.append(pipe.last_run.prefill_s)
    print(f"{length}: {seconds}", file=sys.stderr, flush=True)
    return Found(plan, statistics.median(seconds[1:]), tokens)


def _plan(profile: osp.ModelProfile, network: osp.Network, length: object) -> osp.Plan:
    levels = osp.LevelTable(levels=(LEVEL,), loss=((0.0,),) * (len(profile.layers) - 1))
    workload = osp.Workload(prompt_tokens=profile.prompt_tokens)
    pins: dict[str, list[str | int]] = {node: [] for node in NODES}
    return osp.plan(profile, network, workload, levels=levels, pins=pins, order="fixed", chunk_tokens=length)  # type: ignore[arg-type]


def _network(bytes_per_s: float, slowdown: float) -> osp.Network:
    return osp.Network(
        name="a chain of four",
        nodes=tuple(osp.Node(name=node, memory_bytes=4_000_000_000, slowdown=slowdown) for node in NODES),
        links=tuple(osp.Link(a, b, bytes_per_s, LATENCY_S) for a, b in itertools.permutations(NODES, 2)),
    )


def equal_layers(folder: Path) -> Path:
    """Save a model whose embeddings and head take next to nothing, so that four stages of its layers are equal."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=VOCABULARY,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
