"""Compress what crosses the cuts of a model within a limit of accuracy, and measure on other text that it is kept.

A small Llama learns to predict the bytes of Python's own documentation for some seconds, so that there is an accuracy
to lose. `calibrate` fits codecs to its cuts, `plan` chooses one for each link within the limit, and `verify` measures
the plan on text that none of them has seen. Needs the extra `models`.

    python examples/calibrate_and_verify.py
"""

from __future__ import annotations

import pydoc_data.topics

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import orbitsplit as osp

PROMPT_TOKENS, STEPS, BATCH = 64, 200, 16
MAX_ACCURACY_DROP = 0.01  # one point
CONFIG = LlamaConfig(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    max_position_embeddings=PROMPT_TOKENS,
)


def rows_of_text() -> Tensor:
    """Return the topics of `help()` as rows of ASCII codes [N, PROMPT_TOKENS], shuffled."""
    text = "\n".join(pydoc_data.topics.topics.values())
    codes = torch.tensor(list(text.encode("ascii", "ignore")))
    rows = codes[: len(codes) // PROMPT_TOKENS * PROMPT_TOKENS].view(-1, PROMPT_TOKENS)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


def trained_model(rows: Tensor) -> LlamaForCausalLM:
    """Train a model to predict the next byte."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for batch in rows.split(BATCH):
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"trained to {loss.item():.2f} nats per byte")
    return model.eval()


def weak_chain() -> osp.Network:
    """Return three slow nodes in a chain of links of 200 kbit/s."""
    names = ("sat-0", "sat-1", "sat-2")
    nodes = tuple(osp.Node(name, 500_000_000, flop_per_s=50e6) for name in names)
    pairs = [(a, b) for a in names for b in names if abs(names.index(a) - names.index(b)) == 1]
    return osp.Network("weak chain", nodes, tuple(osp.Link(a, b, 200e3 / 8, 5e-3) for a, b in pairs))


def main() -> None:
    """Train, calibrate, plan, verify."""
    torch.set_num_threads(1)  # matrices this small are not worth a second thread
    rows = rows_of_text()
    learned, calibration, held_out = rows.split([STEPS * BATCH, len(rows) - STEPS * BATCH - 512, 512])
    model = trained_model(learned)

    book = osp.calibrate(
        model, calibration, levels=(4, 3, 2), codecs=["fisher"], prompt_tokens=PROMPT_TOKENS, measure_samples=32
    )
    for cut in (1, 2, 3):
        print(f"cut {cut}:", ", ".join(f"{level.ratio():.1f} times smaller" for level in book.levels(cut)))

    profile = osp.profile(CONFIG, prompt_tokens=PROMPT_TOKENS)
    workload = osp.Workload(micro_batches=8, prompt_tokens=PROMPT_TOKENS)
    print("without codecs:", osp.plan(profile, weak_chain(), workload).explain())
    plan = osp.plan(profile, weak_chain(), workload, codebook=book, max_accuracy_drop=MAX_ACCURACY_DROP)
    print("with the codebook:", plan.explain())

    checked = osp.verify(plan, model, held_out, codebook=book, samples=256)
    print(checked)
    print("within the limit" if checked.is_within else "above the limit")


if __name__ == "__main__":
    main()
