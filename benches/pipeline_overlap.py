"""Do nodes compute while links transmit, and do runs take as long as predicted?

    python benches/pipeline_overlap.py

A random Llama of 8 layers in four stages on one machine, on nodes that are emulated to be 6 times slower than it, so
that four of them need less than one core, and links that take about as long for a micro-batch as a node does. A node
that waits between its forwards finds its caches cold, which the profile's forwards in a row do not know and the
emulation makes 6 times as long: so the profile's seconds are first set right by two runs over fast links,
of either latency below. Prints

1. eight micro-batches of prefill beside the ideal makespan (DESIGN: sum t + sum latency + (M - 1) max t, with these
   seconds), beside nodes that cannot compute while they transmit, and beside one micro-batch after the other;
2. predicted and measured seconds of 12 settings: rates, latencies, micro-batches, prefill and with new tokens.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import orbitsplit as osp

STAGES, LAYERS, HIDDEN, PROMPT_TOKENS, VOCABULARY = 4, 8, 384, 96, 512
SLOWDOWN = 6.0
MICRO_BATCHES = 8
# Links as fast as the nodes, of half and of twice their rate; micro-batches with new tokens (1: prefill alone).
RATES, LATENCIES_S, WORKLOADS = (0.5, 2.0), (0.0, 0.03), ((2, 1), (8, 1), (4, 16))
REPEATS = 3


def main() -> None:
    """Print both tables; fail where a run is no better than the limits in this file say."""
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(_save_model(Path(folder)))
        prefill, decode = bench.corrections
        print(
            f"a stage takes {1e3 * bench.stage_s:.1f} ms of a node for one micro-batch; in a run forwards take ", end=""
        )
        print(f"{prefill:.2f} (prefill) and {decode:.2f} times (decode) what they take in a row\n", flush=True)
        overlap(bench)
        predictions(bench)
    print(f"\nload {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def _save_model(folder: Path) -> Path:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


@dataclass
class _Bench:
    """A model, and what it costs on this machine."""

    model: Path

    def __post_init__(self) -> None:
        self.profile = osp.profile(self.model, prompt_tokens=PROMPT_TOKENS, measure=True)
        self._link_bytes_per_s = 1e9
        self.corrections = self._correct()
        self._link_bytes_per_s = self.profile.cut_bytes_per_token * PROMPT_TOKENS / self.stage_s

    @property
    def stage_s(self) -> float:
        """Seconds of a node for one micro-batch of prefill."""
        seconds = [layer.prefill_s or 0.0 for layer in self.profile.layers]
        return SLOWDOWN * (sum(seconds) / STAGES + self.profile.overhead_prefill_s)

    def _correct(self) -> tuple[float, float]:
        """Make the profile's seconds those of the nodes' forwards in a run; return the factors, prefill and decode."""
        factors = []
        for latency_s in LATENCIES_S:
            plan = self.plan(rate=1.0, latency_s=latency_s, micro_batches=4, new_tokens=8)
            run = self.runs(plan)[-1]
            for is_decode, predicted in ((False, plan.prediction.stage_s), (True, plan.prediction.decode_stage_s)):
                seconds = sum(
                    statistics.median(
                        e.duration_s for e in run.trace.of(stage.node, "compute") if (e.step > 0) == is_decode
                    )
                    for stage in plan.stages
                )
                factors.append(seconds / sum(predicted))
        prefill, decode = statistics.mean(factors[::2]), statistics.mean(factors[1::2])
        layers = tuple(
            replace(layer, prefill_s=prefill * layer.prefill_s, decode_s=decode * layer.decode_s)
            for layer in self.profile.layers
        )
        overheads = {
            "overhead_prefill_s": prefill * self.profile.overhead_prefill_s,
            "overhead_decode_s": decode * self.profile.overhead_decode_s,
        }
        self.profile = replace(self.profile, layers=layers, **overheads)
        return prefill, decode

    def plan(self, *, rate: float, latency_s: float, micro_batches: int, new_tokens: int) -> osp.Plan:
        """Plan for links of `rate` times that at which they take as long as a stage; each node holds two layers."""
        workload = osp.Workload(micro_batches=micro_batches, prompt_tokens=PROMPT_TOKENS, new_tokens=new_tokens)
        names = [f"node {k}" for k in range(STAGES)]
        kv_bytes = workload.sequences * self.profile.layers[1].kv_bytes(PROMPT_TOKENS + new_tokens)
        # Embeddings or head and two layers fit, a third does not.
        two_layers = 2 * (self.profile.layers[1].weight_bytes + kv_bytes) + self.profile.layers[0].weight_bytes
        workspace_bytes = self.profile.workspace_bytes
        own_bytes = workspace_bytes + self.profile.process_bytes(workload, workspace_bytes)
        memory_bytes = two_layers + self.profile.layers[1].weight_bytes // 4 + own_bytes
        network = osp.Network(
            name="a chain of four",
            nodes=tuple(osp.Node(name=name, memory_bytes=memory_bytes, slowdown=SLOWDOWN) for name in names),
            links=tuple(
                osp.Link(a, b, rate * self._link_bytes_per_s, latency_s) for a, b in itertools.permutations(names, 2)
            ),
        )
        plan = osp.plan(self.profile, network, workload, order="fixed")
        assert len(plan.stages) == STAGES
        return plan

    def runs(self, plan: osp.Plan, *, most_groups: int | None = None) -> list[osp.Run]:
        """Run a plan's workload a few times, after once to warm up."""
        generator = torch.Generator().manual_seed(0)
        rows = torch.randint(VOCABULARY, (plan.workload.sequences, PROMPT_TOKENS), generator=generator)
        found = []
        with osp.Pipeline(plan, self.model, most_groups=most_groups) as pipe:
            for _ in range(REPEATS + 1):
                pipe.generate(rows, max_new_tokens=plan.workload.new_tokens, eos_token_id=())
                assert pipe.last_run is not None
                found.append(pipe.last_run)
        return found[1:]


def overlap(bench: _Bench) -> None:
    """Print and check what overlapping computation and transmission is worth."""
    plan = bench.plan(rate=1.0, latency_s=0.005, micro_batches=MICRO_BATCHES, new_tokens=1)
    ideal_s = plan.prediction.prefill_s
    blocking = replace(plan, stages=tuple(replace(stage, half_duplex=True) for stage in plan.stages))
    found = {
        "overlapped": bench.runs(plan),
        "nodes that cannot compute while they transmit": bench.runs(blocking),
        "one micro-batch after the other": bench.runs(plan, most_groups=1),
    }
    print(f"{MICRO_BATCHES} micro-batches of prefill, ideal {1e3 * ideal_s:.0f} ms, median of {REPEATS} runs:\n")
    print("| how | ms | of the ideal | links busy while their sender computes another micro-batch |")
    print("| --- | --- | --- | --- |")
    medians = {name: statistics.median(run.prefill_s for run in runs) for name, runs in found.items()}
    for name, runs in found.items():
        shares = ", ".join(f"{100 * overlapped(runs[0].trace, node.node):.0f} %" for node in plan.stages[:-1])
        print(f"| {name} | {1e3 * medians[name]:.0f} | {medians[name] / ideal_s:.2f} | {shares} |")
    fast, _, slow = medians.values()
    print(f"\noverlapped {slow / fast:.2f} times faster than one after the other", flush=True)
    for stage in plan.stages[:-1]:
        assert overlapped(found["overlapped"][0].trace, stage.node) > 0.5
        assert overlapped(found["one micro-batch after the other"][0].trace, stage.node) == 0.0
    assert fast <= 1.25 * ideal_s
    assert slow >= 1.6 * fast


def overlapped(trace: osp.Trace, node: str) -> float:
    """Return in which part of the time that the link behind a node is busy the node computes for another group."""
    both_s = 0.0
    sends, computes = trace.of(node, "send"), trace.of(node, "compute")
    for send, compute in itertools.product(sends, computes):
        if send.group != compute.group:
            both_s += max(0.0, min(send.stop_s, compute.stop_s) - max(send.start_s, compute.start_s))
    return both_s / sum(send.duration_s for send in sends)


def predictions(bench: _Bench) -> None:
    """Print and check predicted and measured seconds over a grid of settings."""
    print("\n| rate, of a stage's | latency, ms | micro-batches | new tokens | predicted, ms | measured, ms | error |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    errors = []
    for rate, latency_s, (micro_batches, new_tokens) in itertools.product(RATES, LATENCIES_S, WORKLOADS):
        plan = bench.plan(rate=rate, latency_s=latency_s, micro_batches=micro_batches, new_tokens=new_tokens)
        # A first token is on its way back when prefill is over; the prediction of prefill alone ends there.
        figure = "prefill_s" if new_tokens == 1 else "total_s"
        predicted_s = getattr(plan.prediction, figure)
        measured_s = statistics.median(getattr(run, figure) for run in bench.runs(plan))
        errors.append(measured_s / predicted_s - 1)
        print(
            f"| {rate:g} | {1e3 * latency_s:g} | {micro_batches} | {new_tokens} | {1e3 * predicted_s:.0f} "
            f"| {1e3 * measured_s:.0f} | {100 * errors[-1]:+.1f} % |",
            flush=True,
        )
    print(f"\nlargest error {100 * max(errors, key=abs):+.1f} %", flush=True)
    assert max(map(abs, errors)) <= 0.10


if __name__ == "__main__":
    main()
