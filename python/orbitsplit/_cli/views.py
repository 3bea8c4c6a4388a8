"""Results in a terminal: tables of the command line and the demo."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import orbitsplit as osp
from orbitsplit._io.units import format_bytes, format_seconds
from orbitsplit._plans.plan_parts import layer_range

if TYPE_CHECKING:
    from orbitsplit.runtime import FleetStatus

# Characters of a line where there is no terminal: wider than any table. Rich takes 80, and cuts names to fit.
_NO_TERMINAL = 1000


def open_console(*, stderr: bool = False) -> Console:
    """Return a console on a standard stream: as wide as the terminal or COLUMNS, without both as what it shows."""
    stream = sys.stderr if stderr else sys.stdout
    is_limited = stream.isatty() or "COLUMNS" in os.environ
    return Console(stderr=stderr, width=None if is_limited else _NO_TERMINAL)


def heading(console: Console, title: str) -> None:
    """Show the title of a part: with a rule in a terminal; elsewhere a rule would be as wide as the widest table."""
    if console.is_terminal:
        console.rule(title)
    else:
        console.print(f"\n=== {escape(title)}", highlight=False, soft_wrap=True)


def profile(console: Console, profile: osp.ModelProfile) -> None:
    """Show the cost of embeddings, layers and head."""
    layers = profile.layers
    blocks = layers[1:-1]
    is_measured = layers[0].prefill_s is not None
    title = f"{escape(profile.architecture)}, {profile.dtype}, {profile.prompt_tokens} prompt tokens"
    table = Table("", "memory", "prefill", "per token", title=title, title_justify="left")
    for name, group in (("embeddings", layers[:1]), (f"{len(blocks)} layers", blocks), ("head", layers[-1:])):
        table.add_row(name, format_bytes(sum(layer.weight_bytes for layer in group)), *_costs(group, is_measured))
    console.print(table)


def _costs(layers: Sequence[osp.LayerProfile], is_measured: bool) -> tuple[str, str]:
    """Return the costs of prefill and decode of some layers, in seconds if they were measured, else in FLOP."""
    if is_measured:
        seconds = (sum(layer.prefill_s or 0.0 for layer in layers), sum(layer.decode_s or 0.0 for layer in layers))
        return format_seconds(seconds[0]), format_seconds(seconds[1])
    flop = (sum(layer.prefill_flop for layer in layers), sum(layer.decode_flop for layer in layers))
    return f"{flop[0] / 1e9:.3g} GFLOP", f"{flop[1] / 1e9:.3g} GFLOP"


def codebook(console: Console, book: osp.Codebook) -> None:
    """Show bits and loss of each level: the minimum, median and maximum over the cuts that have it."""
    unit = book.provenance.get("unit", "nats")
    view = Table("level", "bits per element", "cuts", f"loss, {escape(str(unit))}: min", "median", "max")
    for level in book.table().levels[1:]:
        found = [one for cut in book.cuts for one in book.levels(cut) if one.name == level.name]
        losses = sorted(one.loss for one in found)
        picked = (losses[0], losses[len(losses) // 2], losses[-1])
        bits = max(one.bits_per_element for one in found)
        view.add_row(escape(level.name), f"{bits:.2f}", str(len(found)), *(f"{loss:.4f}" for loss in picked))
    console.print(view)
    if book.weights:
        console.print(_weights(book, str(unit)))
    curve = book.accuracy
    console.print(
        f"codebook {book.hex_id} of {escape(book.model.name)}: expected drop in accuracy at a loss of 0.1: "
        f"{10 * curve.drop_per_loss:.2f} +- {10 * curve.error:.2f} percentage points",
        highlight=False,
    )


def _weights(book: osp.Codebook, unit: str) -> Table:
    """Return what the layers lose with quantised weights: the ends, and the sum and the most of those between."""
    view = Table("weights", f"loss, {escape(unit)}: embeddings", "layers together", "worst layer", "head")
    for name, losses in book.weights.items():
        first, *layers, last = losses.loss
        view.add_row(escape(name), *(f"{loss:.4f}" for loss in (first, sum(layers), max(layers), last)))
    return view


def plan(console: Console, plan: osp.Plan, book: osp.Codebook | None = None) -> None:
    """Show the stages of a plan, their predicted times and memory, and what its codebook expects of accuracy."""
    prediction = plan.prediction
    if prediction is None:
        console.print(str(plan), highlight=False)
        return
    generates = plan.workload.new_tokens > 1
    stage_s = prediction.decode_stage_s if generates else prediction.steady_stage_s
    link_s = prediction.decode_link_s if generates else prediction.link_s
    each = "token step" if generates else "micro-batch" if plan.chunk_tokens is None else "chunk"
    has_weights = bool(plan.weight_models)
    columns = ("node", "layers", *(["weights"] * has_weights), "memory", "limit", f"busy per {each}", "codec")
    table = Table(*columns, "link busy")
    for k, stage in enumerate(plan.stages):
        is_last = k == len(plan.stages) - 1
        table.add_row(
            escape(stage.node),
            layer_range(stage, plan.layers),
            *([escape(stage.weights or plan.dtype)] * has_weights),
            format_bytes(prediction.stage_memory_bytes[k]),
            "" if stage.memory_bytes is None else format_bytes(stage.memory_bytes),
            format_seconds(stage_s[k]),
            "" if is_last else stage.codec or "raw",
            "" if is_last else format_seconds(link_s[k]),
        )
    console.print(table)
    objective = "" if prediction.objective == "latency" else f" in {prediction.objective}"
    chunks = "" if plan.chunk_tokens is None else f" in chunks of {plan.chunk_tokens} tokens"
    total, first = ("in total", "prefill") if prediction.in_flight is None else ("a request", "first token after")
    console.print(
        f"{prediction.status}: {format_seconds(prediction.total_s)} {total}, {first} "
        f"{format_seconds(prediction.prefill_s)}{chunks}; proven gap {100 * prediction.gap:.2g} %{objective}; "
        f"predicted loss {prediction.loss:.4f} nats/token"
        + ("" if book is None else _drop(plan, prediction.loss, book)),
        highlight=False,
        soft_wrap=True,
    )
    tokens = None if book is None else book.prompt_tokens
    if tokens is not None and tokens != plan.workload.prompt_tokens:
        console.print(
            f"[yellow]note:[/] the codebook was fitted to texts of {tokens} tokens, the plan is for prompts of "
            f"{plan.workload.prompt_tokens}: `orbitsplit verify` measures what it loses there",
            highlight=False,
            soft_wrap=True,
        )


def _drop(plan: osp.Plan, loss: float, book: osp.Codebook) -> str:
    """Return the drop in accuracy that a codebook expects of a loss, in the unit of the limit, and the limit."""
    expected, low, high = (100 * drop for drop in book.accuracy.drop(loss))
    most = "" if plan.max_accuracy_drop is None else f", the limit is {100 * plan.max_accuracy_drop:.2f}"
    return f", an expected drop in accuracy of {expected:.2f} points (95 %: {low:.2f} to {high:.2f}{most})"


def alternatives(console: Console, plan: osp.Plan, alternatives: Sequence[osp.Alternative]) -> None:
    """Compare the plan with the baselines."""
    assert plan.prediction is not None
    table = Table("plan", "predicted total", "relative", "violates")
    table.add_row("planned", format_seconds(plan.prediction.total_s), "1.00x", "-")
    for other in alternatives:
        total = "-" if other.total_s is None else format_seconds(other.total_s)
        times = "-" if other.total_s is None else f"{other.total_s / plan.prediction.total_s:.2f}x"
        prefix = "infeasible: " if other.breaks and other.total_s is not None else ""
        table.add_row(escape(other.name), total, times, escape(prefix + other.breaks) or "-")
    console.print(table)


def totals(console: Console, trace: osp.Trace) -> None:
    """Show the time that each node spent on each kind of work."""
    spent = trace.totals()
    kinds = [kind for kind in next(iter(spent.values())) if any(node[kind] > 0 for node in spent.values())]
    table = Table("node", *kinds)
    for node, seconds in spent.items():
        table.add_row(escape(node), *(format_seconds(seconds[kind]) for kind in kinds))
    console.print(table)
    console.print(f"{format_seconds(trace.stop_s)} in total", highlight=False)


def begin_text(console: Console, prompt: str) -> None:
    """Show a prompt whose continuation is printed as it appears."""
    console.print(f"...{escape(repr(prompt[-60:]))} -> ", end="", highlight=False, soft_wrap=True)


def texts(console: Console, texts: Sequence[tuple[str, str]]) -> None:
    """Show prompts and their continuations."""
    for prompt, text in texts:
        console.print(f"...{escape(repr(prompt[-60:]))} -> [bold]{escape(repr(text))}[/]", highlight=False)


def run(console: Console, run: osp.Run) -> None:
    """Show the bytes on each link and the memory of each process of a run."""
    links = Table("link", "frames", "their bytes", "with headers", "uncompressed", "ratio", "busy")
    for link in run.links:
        links.add_row(
            escape(f"{link.source} -> {link.destination}"),
            str(link.frames),
            format_bytes(link.frame_bytes),
            format_bytes(link.message_bytes),
            format_bytes(link.original_bytes),
            f"{link.ratio:.2f}",
            format_seconds(link.busy_s),
        )
    if run.links:
        console.print(links)
    emulates = any(stage.slowdown > 1.0 for stage in run.stages)
    memory = Table("node", *(["slowdown"] * emulates), "peak memory", "interpreter and libraries", "stage", "limit")
    for stage in run.stages:
        memory.add_row(
            escape(stage.node),
            *([f"{stage.slowdown:g}x"] * emulates),
            format_bytes(stage.peak_bytes),
            format_bytes(stage.baseline_bytes),
            f"[red]{format_bytes(stage.used_bytes)} !" if stage.exceeds_memory else format_bytes(stage.used_bytes),
            "" if stage.memory_bytes is None else format_bytes(stage.memory_bytes),
        )
    console.print(memory)
    excess = run.memory_excess()
    if excess is not None:
        console.print(f"[red]memory exceeded:[/] {escape(excess)}", highlight=False)
    console.print(f"{run.tokens_per_s:.2f} tokens per second", highlight=False)


def prediction(console: Console, plan: osp.Plan, run: osp.Run) -> None:
    """Compare predicted and measured delays."""
    if plan.prediction is None:
        return
    compared = run.against(plan)
    planned = (plan.workload.sequences, plan.workload.prompt_tokens, plan.workload.new_tokens)
    if planned != (run.sequences, run.prompt_tokens, run.new_tokens):
        how = "not compared with the prediction" if compared is None else "predicted by the stage times of the plan"
        console.print(
            f"{format_seconds(run.total_s)} for {run.sequences} x {run.prompt_tokens} + {run.new_tokens} tokens; {how}"
            f", which is for {planned[0]} x {planned[1]} + {planned[2]}",
            highlight=False,
            soft_wrap=True,
        )
    if compared is None:
        return
    table = Table("delay", "predicted", "measured", "measured / predicted")
    for name, (model, clock) in compared.items():
        ratio = f"{clock / model:.3f}" if model > 0 else "-"
        table.add_row(name.removesuffix("_s"), format_seconds(model), format_seconds(clock), ratio)
    console.print(table)


def fleet(console: Console, found: FleetStatus) -> None:
    """Show the hosts of a coordinator and their links."""
    hosts = Table("node", "address", "cores", "memory", "slowdown", "layers", "in memory", "")
    for host in found.hosts:
        hosts.add_row(
            escape(host.node),
            host.address,
            str(host.cores),
            format_bytes(host.memory_bytes) if host.memory_bytes else "",
            "" if host.slowdown is None else f"{host.slowdown:.3g}",
            "" if host.start is None or host.stop is None else f"{host.start}-{host.stop - 1}",
            format_bytes(host.resident_bytes) if host.resident_bytes else "",
            escape(host.note),
        )
    console.print(hosts)
    if not found.links:
        return
    links = Table("link", "planned", "measured", "latency planned", "measured")
    for link in found.links:
        rates = (link.planned_bytes_per_s, link.measured_bytes_per_s)
        delays = (link.planned_latency_s, link.measured_latency_s)
        links.add_row(
            f"{escape(link.source)} -> {escape(link.destination)}",
            *("" if rate is None else f"{format_bytes(rate)}/s" for rate in rates),
            *("" if delay is None else format_seconds(delay) for delay in delays),
        )
    console.print(links)
