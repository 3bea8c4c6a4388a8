"""A plan that chooses weights and codecs under a limit of accuracy, verified; everything is drawn from a seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import orbitsplit as osp
from tests.judges.calibration import judge
from tests.judges.converted import with_weights_of
from tests.support.tiny_models import load_unsplit, sampled_rows, tiny_model

FORMATS = ("int8", "int4")
LAYERS, TOKENS, NODES = 6, 64, 3
# Of the model in floats, on each node: all of them together have no room for it.
ROOM = 0.25
LIMIT = 0.02
# Of logits: those of a tiny model are nearly level.
SHARPNESS = 3.0
ROWS = 32


@dataclass(frozen=True)
class Outcome:
    """A verified plan: its first and its last trial, and its drop by the judge on the same and on other text."""

    verification: osp.Verification
    drop: float
    drop_elsewhere: float

    @property
    def stages(self) -> str:
        """The weights of each stage and the codecs between them."""
        parts: Iterable[str] = (
            f"{stage.weights or 'float32'}" + (f" -{stage.codec or 'raw'}-> " if stage.stop < LAYERS + 2 else "")
            for stage in self.verification.plan.stages
        )
        return "".join(parts)


def run_once(
    seed: int, folder: Path, *, rows: int = ROWS, limit: float = LIMIT, cuts: str | Sequence[int] = "all"
) -> Outcome:
    """Make a random model, convert and calibrate it, plan and verify. The text is what the model draws itself."""
    model = _sharp_model(seed, folder / "float32")
    for name in FORMATS:
        osp.convert(folder / "float32", folder / name, weights=name)
    fitting, held_out, elsewhere = (sampled_rows(model, rows, TOKENS, seed=3 * seed + k) for k in range(3))
    book = osp.calibrate(
        model,
        fitting,
        cuts=cuts,
        levels=(8.0, 5.0, 3.0),
        codecs=("channel",),
        fit_samples=rows // 2,
        measure_samples=rows // 2,
        weights=FORMATS,
        seed=seed,
    )
    profiles = {name: _profile(folder / name) for name in ("float32", *FORMATS)}
    network = _network(profiles["float32"])
    weights = {name: osp.WeightOption(profile=profiles[name], loss=book.weights[name].loss) for name in FORMATS}

    def plan(**budget: float) -> osp.Plan:
        workload = osp.Workload(prompt_tokens=TOKENS, new_tokens=TOKENS)
        return osp.plan(profiles["float32"], network, workload, weights=weights, codebook=book, **budget)  # type: ignore[arg-type]

    found = osp.verify(
        plan(max_accuracy_drop=limit),
        model,
        held_out,
        codebook=book,
        samples=rows,
        replan=lambda budget: plan(loss_budget=budget),
    )
    drops = [drop_of(model, text, found.plan, book) for text in (held_out, elsewhere)]
    return Outcome(found, *drops)


def _sharp_model(seed: int, folder: Path) -> PreTrainedModel:
    """Save a random model that is right about half of the tokens that it draws, and return it as it is loaded."""
    model: Any = tiny_model("qwen3", seed=seed, tie_word_embeddings=True, num_hidden_layers=LAYERS)
    with torch.no_grad():
        model.model.norm.weight.mul_(SHARPNESS)
    model.save_pretrained(folder)
    return load_unsplit(folder)


def drop_of(model: PreTrainedModel, text: Tensor, plan: osp.Plan, book: osp.Codebook) -> float:
    """Return the drop of accuracy of a plan on some text by the judge, one row after the other."""
    codecs = {cut: book[cut, level] for cut, level in plan.codebook_levels.items()}
    other = with_weights_of(plan, model)
    judged = [judge(model, {"input_ids": row[None]}, codecs, book, composite=other).drop for row in text]
    return float(torch.cat(judged).mean())


def _profile(folder: Path) -> osp.ModelProfile:
    # Without what a process takes for its libraries, which is a thousand times such a model.
    return replace(osp.profile(folder, prompt_tokens=TOKENS), library_bytes=None)


def _network(profile: osp.ModelProfile) -> osp.Network:
    """Return nodes that read weights slowly, on links so slow that compression pays."""
    memory = round(ROOM * profile.weight_bytes) + 2 * profile.workspace_bytes
    nodes = tuple(osp.Node(f"n{k}", memory, flop_per_s=1e12, memory_bytes_per_s=1e6) for k in range(NODES))
    links = tuple(osp.Link(a.name, b.name, 4e4, 0.001) for a in nodes for b in nodes if a is not b)
    return osp.Network("slow", nodes, links)
