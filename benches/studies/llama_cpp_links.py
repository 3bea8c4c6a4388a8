"""Gemma 3 270M over four machines that slow links join, beside llama.cpp's RPC over the same links.

    python -m benches.studies.llama_cpp_links [--folder DIR] [--rounds 2] [--mbit 10] [--delay-ms 4]

The machines are network namespaces on this one, any two of them joined by the same relay (see `relay.py`). Each has a
server of llama.cpp, with the client on the first; or a stage of orbitsplit, started by torchrun, which sends int8
activations, and prompts in chunks of 32 tokens. Weights are in 8 bits, processes have one thread. Prints the best of
the rounds: prefill of 128 tokens, and milliseconds a token: of llama.cpp without tokens before it, of orbitsplit behind
the prompt. The prefill of orbitsplit is that of a process that has just started. llama.cpp sends weights to its servers
over the links, at 10 Mbit/s for minutes; that does not count. Needs root, and what `llama_cpp.py` needs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import orbitsplit as osp
from benches.studies.llama_cpp import CUTS, NEW_TOKENS, PROMPT_TOKENS, built, converted, run, written
from benches.studies.relay import relayed
from orbitsplit._models.source import demo_model, load_tokenizer
from orbitsplit.runtime._emulation.namespaces import Namespaces

NODES = ["sat-0", "sat-1", "sat-2", "sat-3"]
RPC_PORT, RENDEZVOUS_PORT = 50052, 29500
CHUNK_TOKENS = 32
WAYS = {"RPC, head at the servers": (), "RPC, head at the client": ("-ot", "token_embd.weight=CPU")}


def main() -> None:
    """Build, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "orbitsplit" / "llama.cpp")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--mbit", type=float, default=10.0)
    parser.add_argument("--delay-ms", type=float, default=4.0)
    options = parser.parse_args()
    programs = built(options.folder)
    gguf = written(programs, options.folder, "Q8_0")
    int8 = converted(options.folder, demo_model())
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(options.rounds):
        with relayed(NODES, bytes_per_s=options.mbit * 1e6 / 8, delay_s=options.delay_ms / 1e3) as spaces:
            for name, extra in WAYS.items():
                found.setdefault(f"llama.cpp Q8_0, {name}", []).append(rpc(spaces, programs, gguf, *extra))
            found.setdefault("orbitsplit int8, four stages", []).append(stages(spaces, int8))
        print({name: times[-1] for name, times in found.items()}, file=sys.stderr, flush=True)
    print(f"| {options.mbit:g} Mbit/s, {options.delay_ms:g} ms | prefill {PROMPT_TOKENS} | decode, ms a token |")
    print("| --- | --- | --- |")
    for name, times in found.items():
        prefill_s, token_s = (min(column) for column in zip(*times, strict=True))
        print(f"| {name} | {1e3 * prefill_s:.0f} ms | {1e3 * token_s:.1f} |")


def rpc(spaces: Namespaces, programs: Path, gguf: Path, *extra: str) -> tuple[float, float]:
    """Return the seconds of the prefill and of a token with a server of llama.cpp on each node."""
    with ExitStack() as stack:
        for node in NODES:
            command = [programs / "ggml-rpc-server", "-t", "1", "-H", "0.0.0.0", "-p", RPC_PORT, "-c"]
            server = subprocess.Popen(
                [str(part) for part in spaces.command(node, [str(part) for part in command])],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(server.wait)
            stack.callback(server.kill)
        time.sleep(1.0)
        addresses = ",".join(f"{spaces.address(node)}:{RPC_PORT}" for node in NODES)
        bench: list[Any] = [programs / "llama-bench", "-m", gguf, "-t", "1", "-r", "3", "-o", "json", "-ngl", "99"]
        client = spaces.command(NODES[0], [str(part) for part in (*bench, "--rpc", addresses, *extra)])
        tokens = ["-p", str(PROMPT_TOKENS), "-n", str(NEW_TOKENS)]
        prefill, decode = (test["avg_ts"] for test in json.loads(run([*client, *tokens])[0]))
    return PROMPT_TOKENS / prefill, 1 / decode


def stages(spaces: Namespaces, model: Path) -> tuple[float, float]:
    """Return the same of a stage of orbitsplit on each node."""
    plan = osp.Plan.manual(CUTS, layers=18, codecs=["int8"] * len(CUTS), nodes=NODES, chunk_tokens=CHUNK_TOKENS)
    tokenizer = load_tokenizer(model)
    ids = tokenizer("The satellite passes over the station and sends what it has seen. " * 20).input_ids
    prompt = tokenizer.decode(ids[:PROMPT_TOKENS], skip_special_tokens=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        replace(plan, model=str(model)).save(file)
        processes = []
        for rank, node in enumerate(NODES):
            launch = ["--nnodes=4", f"--node-rank={rank}", "--nproc-per-node=1"]
            where = [f"--master-addr={spaces.address(NODES[0])}", f"--master-port={RENDEZVOUS_PORT}"]
            asked = ["--prompt", prompt, "--new-tokens", str(NEW_TOKENS), "--json"]
            command = [sys.executable, "-m", "torch.distributed.run", *launch, *where, "-m", "orbitsplit", "run", file]
            processes.append(
                subprocess.Popen(
                    [str(part) for part in spaces.command(node, [str(part) for part in (*command, *asked)])],
                    stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            )
        output, _ = processes[0].communicate()
        for process in processes:
            assert process.wait() == 0, process.args
    measured = json.loads(output)["run"]
    assert measured["prompt_tokens"] == PROMPT_TOKENS, measured["prompt_tokens"]
    return measured["prefill_s"], measured["token_step_s"]


if __name__ == "__main__":
    main()
