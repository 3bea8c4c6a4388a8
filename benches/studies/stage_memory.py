"""Does a stage take the memory it is predicted to take, and not much less?

    python -m benches.studies.stage_memory [CASE ...]

Models in three or four stages at full speed, nothing compressed: Gemma 3 270M, also in 8 and 4 bits, and Llamas, a
BERT and a vision transformer of random weights. For each stage the most memory that its process held while it loaded
and while it ran, less that of a worker that has loaded torch, transformers and orbitsplit but no model, beside what
the plan predicts.
Every node has exactly the memory that the planner wants for its stage, so a plan that fits is what is run.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

import orbitsplit as osp
from orbitsplit._models.source import demo_model
from orbitsplit._plans.under_way import first_prompts_under_way

# How far a peak may be above what was predicted, and what was predicted above the peak.
MOST_ABOVE, MOST_BELOW = 1.10, 1.35
# Of processes of tens of megabytes, what depends on which pages were touched.
SLACK_BYTES = 16_000_000
# 14 x 14 patches of an image, and the token of its class.
IMAGE_TOKENS = 197


@dataclass(frozen=True)
class Case:
    """A model, where it is cut, and its workload; the weights of all but Gemma's are float32 in the file too."""

    model: str
    cuts: tuple[int, ...]
    workload: osp.Workload
    dtype: str = "float32"


def _workload(micro_batches: int, batch_size: int, prompt_tokens: int, new_tokens: int) -> osp.Workload:
    return osp.Workload(micro_batches, prompt_tokens, new_tokens, batch_size)


CASES = {
    "gemma-short": Case("gemma", (4, 9, 14), _workload(4, 1, 128, 24)),
    "gemma-one": Case("gemma", (4, 9, 14), _workload(1, 1, 512, 16)),
    "gemma": Case("gemma", (4, 9, 14), _workload(8, 1, 512, 16)),
    "gemma-batch": Case("gemma", (6, 12), _workload(4, 2, 512, 16)),
    "gemma-bfloat16": Case("gemma", (4, 9, 14), _workload(8, 1, 512, 16), "bfloat16"),
    "gemma-int8": Case("gemma-int8", (4, 9, 14), _workload(4, 1, 128, 24)),
    "gemma-int8-batch": Case("gemma-int8", (4, 9, 14), _workload(1, 8, 128, 24)),
    "gemma-int4": Case("gemma-int4", (4, 9, 14), _workload(4, 1, 128, 24)),
    "llama-tiny": Case("llama-tiny", (2, 4), _workload(8, 1, 256, 16)),
    "llama": Case("llama", (2, 4, 6), _workload(8, 1, 512, 16)),
    "llama-batch": Case("llama", (2, 4, 6), _workload(4, 4, 512, 16)),
    "llama-bfloat16": Case("llama", (2, 4, 6), _workload(8, 1, 512, 16), "bfloat16"),
    "bert": Case("bert", (4, 8), _workload(8, 4, 256, 0)),
    "bert-many": Case("bert", (4, 8), _workload(300, 1, 128, 0)),
    "vit": Case("vit", (4, 8), _workload(8, 4, IMAGE_TOKENS, 0)),
}


class Peaks(NamedTuple):
    """The most bytes resident in a process while it loaded its stage, and afterwards."""

    loading: int
    running: int


def main() -> None:
    """Print a row for each stage of each case, and fail where a prediction is wrong."""
    print("| case | layers | weights | predicted | loading | running | peak / predicted |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    wrong = [stage for name in sys.argv[1:] or CASES for stage in check(name)]
    assert not wrong, wrong


def check(name: str) -> list[str]:
    """Print the rows of a case and return the stages of which the prediction is wrong."""
    case, wrong = CASES[name], []
    with _model(case.model) as model:
        workload = case.workload
        profile = osp.profile(
            model, prompt_tokens=workload.prompt_tokens, batch_size=workload.batch_size, dtype=case.dtype
        )
        plan = _plan(profile, case)
        run, peaks = _run(plan, model)
    assert plan.prediction is not None
    for stage, peak, predicted in zip(run.stages, peaks, plan.prediction.stage_memory_bytes, strict=True):
        loading, running = (size - stage.baseline_bytes for size in peak)
        most = max(loading, running)
        # Of embeddings in the file's dtype, which are mapped, only the rows of tokens that occur become resident.
        is_mapped = stage.start == 0 and case.dtype == "float32"
        resident = predicted - (profile.layers[0].weight_bytes if is_mapped else 0)
        is_right = most <= MOST_ABOVE * predicted and resident <= MOST_BELOW * most + SLACK_BYTES
        cells = (stage.weight_bytes, predicted, loading, running)
        layers = f"{stage.start} to {stage.stop - 1}"
        sizes = " | ".join(f"{size / 1e6:.0f}" for size in cells)
        print(f"| {name} | {layers} | {sizes} | {most / predicted:.2f}{'' if is_right else ' WRONG'} |", flush=True)
        if not is_right:
            wrong.append(f"{name}, layers {layers}")
    return wrong


@contextmanager
def _model(name: str) -> Iterator[Path]:
    """Yield the directory of a model; those of random weights are made for the case."""
    if name == "gemma":
        yield demo_model()
        return
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        if name in ("gemma-int8", "gemma-int4"):
            yield osp.convert(demo_model(), Path(folder) / name, weights=name.removeprefix("gemma-"))
            return
        _random_model(name).save_pretrained(folder)
        yield Path(folder)


def _random_model(name: str) -> PreTrainedModel:
    if name == "bert":
        return BertModel(BertConfig())
    if name == "vit":
        return ViTForImageClassification(ViTConfig(num_labels=10))
    sizes = {"llama-tiny": (256, 1024, 6, 8, 2000), "llama": (1024, 4096, 8, 16, 32_000)}
    hidden, intermediate, layers, heads, vocabulary = sizes[name]
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads // 4,
            vocab_size=vocabulary,
        )
    )


def _plan(profile: osp.ModelProfile, case: Case) -> osp.Plan:
    """Plan for nodes of which each has the memory for its stage and no more, at the speed of this machine."""
    layers = len(profile.layers)
    bounds = (0, *(cut + 1 for cut in case.cuts), layers)
    names = [f"node {k}" for k in range(len(bounds) - 1)]

    def network(memory_bytes: list[int]) -> osp.Network:
        nodes = (osp.Node(n, size, flop_per_s=10e9) for n, size in zip(names, memory_bytes, strict=True))
        links = (osp.Link(a, b, 100e6, 0.0) for a, b in itertools.permutations(names, 2))
        return osp.Network(name="a chain", nodes=tuple(nodes), links=tuple(links))

    under_way = first_prompts_under_way(case.workload.micro_batches, len(names), layers)
    roomy = osp.build_problem(profile, network([10**12] * len(names)), case.workload, prompts_under_way=under_way)
    needed = [
        int(roomy.layer_memory_bytes[start:stop].sum() + roomy.nodes[0].headroom_bytes)
        for start, stop in pairwise(bounds)
    ]
    plan = osp.plan(profile, network(needed), case.workload, order="fixed")
    assert [(stage.start, stage.stop) for stage in plan.stages] == list(pairwise(bounds))
    return plan


def _run(plan: osp.Plan, model: Path) -> tuple[osp.Run, list[Peaks]]:
    """Run the workload; return what was measured, and the peaks of each process."""
    with osp.Pipeline(plan, model, heartbeat_timeout_s=60.0) as pipe:
        loading = [_peak_bytes(pid) for pid in pipe.pids]
        for pid in pipe.pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")  # peaks count from here on
        if plan.workload.new_tokens:
            pipe.generate(_texts(plan), max_new_tokens=plan.workload.new_tokens, eos_token_id=(), do_sample=False)
        elif plan.workload.prompt_tokens == IMAGE_TOKENS:
            pipe.forward(pixel_values=torch.zeros(plan.workload.sequences, 3, 224, 224))
        else:
            pipe.forward(input_ids=_texts(plan))
        running = [_peak_bytes(pid) for pid in pipe.pids]
        assert pipe.last_run is not None
        return pipe.last_run, [Peaks(*pair) for pair in zip(loading, running, strict=True)]


def _texts(plan: osp.Plan) -> Tensor:
    """Return random tokens that every vocabulary here has, [B, S]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, 2000, (plan.workload.sequences, plan.workload.prompt_tokens), generator=generator)


def _peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main()
