"""Calibrate Gemma 3 270M on CPython's documentation and measure what its codecs cost on text that was held out.

    python -m benches.studies.calibrate_gemma peers        cuts 5, 9 and 14 at once, beside what people use instead
    python -m benches.studies.calibrate_gemma plans        50 random plans: predicted and measured loss, and limits kept
    python -m benches.studies.calibrate_gemma elsewhere    text of another domain and in another language
    python -m benches.studies.calibrate_gemma time         all 17 inner cuts at 6 levels: minutes and memory

The first three use one codebook of the 17 inner cuts, made once and kept in orbitsplit/books in the XDG cache.
"""

from __future__ import annotations

import argparse
import inspect
import pydoc_data.topics
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import sphinx
import torch
from babel.messages.mofile import read_mo

import orbitsplit as osp
from benches.studies.lossy_peers import language_model_peers
from orbitsplit._models.gguf import cache_root
from orbitsplit._models.source import demo_model
from orbitsplit.calibration import AnyCodec, Measured, Reference, held_out, random_plans

CUTS = (5, 9, 14)
TOKENS = 512
# Bits per element; more of them at the rates that matter here than `calibrate` has by default.
LEVELS = (4.0, 3.1, 2.7, 2.4, 2.1, 1.8)

# Of the 79 topics, the third and fifth of every five are held out: 64 of 220 rows. Every fifth alone has 13 rows, which
# tell a drop in accuracy no better than to 0.2 points.
PARTS = {"calibration": (0, 1, 3), "held-out": (2, 4), "held-out, to verify": (2,), "held-out, to check": (4,)}


def texts(part: str) -> list[str]:
    """Return the topics of CPython's documentation of one part."""
    topics = pydoc_data.topics.topics
    return [topics[name] for k, name in enumerate(sorted(topics)) if k % 5 in PARTS[part]]


def codebook() -> osp.Codebook:
    """Return the codebook of all inner cuts, calibrating on the first call."""
    path = _kept()
    if not path.is_file():
        calibrated(path.with_suffix(".partial")).save(path)
    return osp.Codebook.load(path)


def _kept() -> Path:
    path = cache_root().parent / "books" / "gemma3-270m.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def calibrated(checkpoint: Path | None = None) -> osp.Codebook:
    """Calibrate all inner cuts at six levels, codecs without and with a transform."""
    return osp.calibrate(
        demo_model(),
        texts("calibration"),
        cuts="inner",
        levels=LEVELS,
        prompt_tokens=TOKENS,
        checkpoint=checkpoint,
        progress=_Told(),
    )


class _Told:
    """Writes progress to standard error, at most every ten seconds."""

    def __init__(self) -> None:
        self._start_s = self._last_s = time.monotonic()

    def __call__(self, step: str, fraction: float) -> None:
        now_s = time.monotonic()
        if now_s - self._last_s > 10:
            print(f"{now_s - self._start_s:6.0f} s  {100 * fraction:3.0f} %  {step}", file=sys.stderr, flush=True)
            self._last_s = now_s


def row(name: str, found: Measured) -> str:
    """Return a row of the table of codecs."""
    return (
        f"| {name} | {16 / found.bits_per_element:.2f} | {100 * found.perplexity_rise:+.2f} "
        f"± {100 * found.nll_increase_error:.2f} | {-100 * found.drop:+.2f} ± {100 * found.drop_error:.2f} "
        f"| {-100 * found.expected_drop:+.2f} | {found.loss:.4f} |"
    )


def peers(rows: int = 24, positions: int = 256) -> None:
    """Print codecs at three cuts at once, on held-out text."""
    book = codebook()
    reference = held_out(demo_model(), texts("held-out"), prompt_tokens=TOKENS, samples=rows, positions=positions)
    sample = _calibration_rows()
    choices: dict[str, dict[int, AnyCodec]] = {}
    for kind, asked in (("klt", LEVELS[:5]), ("fisher", LEVELS[1:4:2])):
        for bits in asked:
            choices[f"orbitsplit {kind} {bits:g}"] = {cut: book[cut, level_near(book, cut, kind, bits)] for cut in CUTS}
    for name in language_model_peers(sample[CUTS[0]]):
        choices[name] = {cut: language_model_peers(sample[cut])[name] for cut in CUTS}
    told = _Told()
    found = reference.measure_each(
        list(choices.values()), on_batch=lambda index: told(f"row {index + 1} of {rows}", (index + 1) / rows)
    )
    print(f"{rows} rows of {TOKENS} tokens, cuts {CUTS} at once, {found[0].samples} predictions, ")
    print(f"top-1 accuracy without codecs {100 * found[0].accuracy:.1f} %\n")
    print("| codec | x bfloat16 | perplexity, % | top-1, points | expected top-1 | KL, nats |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, measured in zip(choices, found, strict=True):
        print(row(name, measured), flush=True)
    _decode(book, reference)


def level_near(book: osp.Codebook, cut: int, kind: str, bits: float) -> int:
    """Return the level of a kind at a cut that was asked for so many bits, or the nearest that is on its hull."""
    asked = {
        number: float(level.name.split()[1])
        for number, level in enumerate(book.levels(cut))
        if level.name.startswith(kind)
    }
    return min(asked, key=lambda number: abs(asked[number] - bits))


def _calibration_rows() -> dict[int, torch.Tensor]:
    """Return rows of calibration text at each cut, which the static peer may look at."""
    fitted = held_out(demo_model(), texts("calibration"), prompt_tokens=TOKENS, samples=4, positions=1)
    states = [fitted.hooked.hidden_at(batch.inputs, CUTS) for batch in fitted.batches]
    return {cut: torch.cat([state[cut][0] for state in states]) for cut in CUTS}


def _decode(book: osp.Codebook, reference: Reference) -> None:
    """Print what frames of one row take: the tokens of generation, encoded one by one, are those of prefill."""
    print("\n| level | x bfloat16, frames of one token | the same numbers as in prefill |")
    print("| --- | --- | --- |")
    with torch.no_grad():
        hidden = reference.hooked.hidden(reference.batches[0].inputs, CUTS[1])[0]
    for level, one in enumerate(book.levels(CUTS[1])):
        codec = book[CUTS[1], level]
        frames = [osp.compress(token[None], codec=codec) for token in hidden]
        arrived = torch.cat([osp.decompress(frame, book, framework="torch") for frame in frames])
        whole = osp.decompress(osp.compress(hidden, codec=codec), book, framework="torch")
        ratio = 2 * hidden.numel() / sum(map(len, frames))
        print(f"| {one.name} | {ratio:.2f} | {bool(torch.equal(arrived, whole))} |")


def plans(count: int = 50, rows: int = 4) -> None:
    """Print how well predicted and measured loss agree on random plans, and whether verified plans keep their limit."""
    book = codebook()
    reference = held_out(demo_model(), texts("held-out"), prompt_tokens=TOKENS, samples=rows, positions=64)
    drawn = random_plans(book, count, seed=1)
    predicted = [sum(book.levels(cut)[level].loss for cut, level in plan.items()) for plan in drawn]
    found = reference.measure_each([{cut: book[cut, level] for cut, level in plan.items()} for plan in drawn])
    measured = [one.loss for one in found]
    print(f"{count} random plans of 1 to 6 cuts, {found[0].samples} predictions of {rows} held-out rows:")
    print(f"rank correlation {rank_correlation(predicted, measured):.3f}, measured / predicted: ", end="")
    print("10 %, median, 90 %:", np.quantile(np.divide(measured, predicted), (0.1, 0.5, 0.9)).round(2), flush=True)
    others = held_out(demo_model(), texts("held-out, to check"), prompt_tokens=TOKENS, samples=13)
    for seed in range(5):
        chosen = random_plans(book, 1, seed=100 + seed)[0]
        plan = osp.Plan.manual(list(chosen), book.model.layers, codebook=book, levels=list(chosen.values()))
        passages = texts("held-out, to verify")
        checked = osp.verify(plan, demo_model(), passages, codebook=book, max_accuracy_drop=0.01, samples=16, seed=seed)
        codecs: dict[int, AnyCodec] = {cut: book[cut, level] for cut, level in checked.plan.codebook_levels.items()}
        elsewhere = others.measure(codecs)
        print(f"seed {seed}, cuts {list(chosen)}: kept {checked.is_within}\n{checked}")
        print(f"on other topics: {100 * elsewhere.drop:+.2f} ± {100 * elsewhere.drop_error:.2f} points", flush=True)


def rank_correlation(a: list[float], b: list[float]) -> float:
    """Return Spearman's rank correlation."""
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def elsewhere(limit: float = 0.01) -> None:
    """Print what a plan for one text costs on others, and what `verify` makes of that."""
    book = codebook()
    levels = {cut: level_near(book, cut, "klt", 1.8) for cut in CUTS}
    plan = osp.Plan.manual(list(CUTS), book.model.layers, codebook=book, levels=list(levels.values()))
    for name, passages in other_texts().items():
        checked = osp.verify(plan, demo_model(), passages, codebook=book, max_accuracy_drop=limit, samples=8)
        print(f"{name}:\n{checked}\n", flush=True)


def other_texts() -> dict[str, list[str]]:
    """Return text of other kinds, which the standard library and a package of the bench extra ship."""
    folder = Path(str(sphinx.__file__)).parent / "locale" / "fr" / "LC_MESSAGES"
    with (folder / "sphinx.mo").open("rb") as file:
        messages = [message.string for message in read_mo(file) if isinstance(message.string, str)]
    return {
        "CPython's documentation, held out": texts("held-out"),
        "program code (the standard library's modules argparse and statistics)": [
            inspect.getsource(argparse),
            inspect.getsource(statistics),
        ],
        "French (messages of Sphinx)": ["\n".join(messages)],
    }


def measure_time() -> None:
    """Print minutes and memory of a calibration from nothing; the codebook is kept for the other commands."""
    start_s, start_cpu_s = time.monotonic(), time.process_time()
    book = calibrated()
    book.save(_kept())
    minutes, cpu_minutes = (time.monotonic() - start_s) / 60, (time.process_time() - start_cpu_s) / 60
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{book}: {minutes:.1f} minutes ({cpu_minutes:.1f} of processors), {peak / 1e9:.2f} GB at most")


if __name__ == "__main__":
    commands = {"peers": peers, "plans": plans, "elsewhere": elsewhere, "time": measure_time}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    commands[sys.argv[1]]()
