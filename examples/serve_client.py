"""Serve a plan to OpenAI clients, ask for completions, one of them streamed, and end the server in order.

A small random Llama of bytes is saved with a tokenizer, cut in two by hand and served by `orbitsplit serve` on a free
port of this machine; the client is the package `openai`, unchanged. What the model says is noise: its weights are
random. Needs the extras `serve` and `cli`, and `pip install openai`.

    python examples/serve_client.py
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from openai import OpenAI
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import orbitsplit as osp

LAYERS, CONTEXT = 4, 256


def save_random_model(folder: Path) -> None:
    """Save a model with random weights and a tokenizer whose tokens are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(alphabet) + 1,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        eos_token_id=len(alphabet),
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


@contextmanager
def served(plan: Path) -> Iterator[str]:
    """Run `orbitsplit serve` and yield its URL; end it as Ctrl-C does."""
    command = [sys.executable, "-m", "orbitsplit", "serve", str(plan), "--port", "0", "--name", "tiny"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            yield next(line.split()[-1] for line in server.stderr if line.startswith("serving at "))
        finally:
            server.send_signal(signal.SIGINT)
    print("the server ended with exit status", server.returncode)


def main() -> None:
    """Serve, ask, stream, end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_random_model(folder)
        plan = folder / "plan.json"
        replace(osp.Plan.manual(cuts=[LAYERS // 2], layers=LAYERS), model=str(folder)).save(plan)

        with served(plan) as url, OpenAI(base_url=url, api_key="none") as client:
            print("models:", [model.id for model in client.models.list()])
            answer = client.completions.create(model="tiny", prompt="The satellite", max_tokens=12, temperature=0)
            print("completion:", repr(answer.choices[0].text), answer.usage)
            chunks = client.completions.create(
                model="tiny", prompt="The satellite", max_tokens=12, temperature=0, stream=True
            )
            text = "".join(chunk.choices[0].text for chunk in chunks)
            print("streamed, it is the same text:", text == answer.choices[0].text)


if __name__ == "__main__":
    main()
