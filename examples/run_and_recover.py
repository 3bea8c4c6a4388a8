"""Run a model in three processes, kill one of them in the middle of a text, and get the same text all the same.

A small random Llama is saved, planned over four nodes and run by a `Pipeline`, one process per stage. Once half of the
tokens have come, the process of the middle stage is killed; `replan` finds a plan for the nodes that are left, and
generation resumes from the tokens there are. Needs the extra `models`.

    python examples/run_and_recover.py
"""

from __future__ import annotations

import os
import signal
import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import orbitsplit as osp

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 3, 8, 60
CONFIG = LlamaConfig(
    vocab_size=97,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=6,
    num_attention_heads=4,
    max_position_embeddings=512,
    eos_token_id=None,  # a text ends when it has its tokens
)
NAMES = ("sat-0", "sat-1", "sat-2", "sat-3")


def save_random_model(folder: str) -> LlamaForCausalLM:
    """Save a model with random weights and return it. Large weights keep its tokens from repeating."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    model.save_pretrained(folder)
    return model.eval()


def four_satellites() -> osp.Network:
    """Return four nodes that all reach each other, so slow that three prompts are worth three of them."""
    nodes = tuple(osp.Node(name, 500_000_000, flop_per_s=20e6) for name in NAMES)
    links = tuple(osp.Link(a, b, 10e6 / 8, 2e-3) for a in NAMES for b in NAMES if a != b)
    return osp.Network("all to all", nodes, links)


def main() -> None:
    """Save a model, run it, kill a process, compare the text with that of one process."""
    prompts = torch.randint(3, CONFIG.vocab_size, (PROMPTS, PROMPT_TOKENS), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(prompts)

    with tempfile.TemporaryDirectory() as folder:
        whole = save_random_model(folder)
        expected = whole.generate(prompts, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)

        profile = osp.profile(folder, prompt_tokens=PROMPT_TOKENS)
        workload = osp.Workload(micro_batches=PROMPTS, prompt_tokens=PROMPT_TOKENS, new_tokens=NEW_TOKENS)
        plan = osp.plan(profile, four_satellites(), workload)
        print("planned:", plan)

        replan = osp.replanner(profile, four_satellites())
        with osp.Pipeline(plan, folder, replan=replan) as pipe:
            tokens = []
            for step in pipe.stream(prompts, mask, max_new_tokens=NEW_TOKENS, do_sample=False):
                tokens.append(step)
                if len(tokens) == NEW_TOKENS // 2:
                    print(f"killing process {pipe.pids[1]}, which runs stage 1 on {plan.stages[1].node}")
                    os.kill(pipe.pids[1], signal.SIGKILL)
            for recovery in pipe.recoveries:
                print("recovered:", recovery)

    text = torch.cat([prompts, torch.stack(tokens, dim=1)], dim=1)
    print("the text is the same as that of one process:", torch.equal(text, expected))


if __name__ == "__main__":
    main()
