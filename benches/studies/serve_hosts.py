"""Serve OpenAI clients over hosts that come and go, coordinators included, and compare every answer.

    python -m benches.studies.serve_hosts [--requests 500] [--seed 0]      Linux, root, iproute2

Four hosts are network namespaces, joined by links of 20 Mbit/s; on two of them `orbitsplit serve --failover` runs, and
clients know both under one name. Every few seconds a host loses its power, or a coordinator or a process of a stage is
killed, and what is lost comes back a few seconds later. Clients are those of the package openai with their own retries,
in a namespace of their own. Prints what became of the requests, and exits with 1 unless each one was answered rightly.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import GenerationConfig

import orbitsplit as osp
from orbitsplit.runtime._emulation.namespaces import Namespaces, why_unavailable
from orbitsplit.runtime._messages.tls_channel import create_credentials
from tests.support.fake_engine import byte_tokenizer
from tests.support.fleet import CREDENTIALS, Fleet, fleet
from tests.support.fleet_clients import NAME
from tests.support.namespaced_hosts import processes_of, take_power
from tests.support.tiny_models import LAYERS, load_unsplit, tiny_model

NAMES = ("n0", "n1", "n2", "n3")
SERVERS = ("n0", "n1")
CLIENT = "client"
PORT, HTTP_PORT = 29400, 8000
TEXTS = ("The satellite", "passes", "over the station", "and", "its radio", "is silent", "for an hour", "or two")
QUIET_S, AWAY_S = (4.0, 10.0), (3.0, 8.0)
START_S = 300.0


def listening(process: psutil.Popen) -> set[int]:
    """Return the TCP ports (IPv4) on which anything listens in the namespace of a process, none once it has ended."""
    with suppress(OSError):
        rows = [line.split() for line in Path(f"/proc/{process.pid}/net/tcp").read_text().splitlines()[1:]]
        return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}
    return set()


@dataclass
class Servers:
    """The hosts, and the commands `serve` on two of them."""

    folder: Path
    spaces: Namespaces
    fleet: Fleet
    processes: dict[str, psutil.Popen] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)

    def start(self, node: str) -> None:
        """Start what a host runs and has not running: its agent, its coordinator."""
        if not self.fleet.is_running(node):
            self.fleet.start(node)
        if node in SERVERS and (node not in self.processes or self.processes[node].poll() is not None):
            files = {"profile": "profile.json", "network": "network.toml", "credentials": CREDENTIALS}
            options = [word for name, file in files.items() for word in (f"--{name}", str(self.folder / file))]
            where = self.spaces.address(node)
            command = [sys.executable, "-m", "orbitsplit", "-v", "serve", str(self.folder / "plan.json"), "--failover"]
            command += ["--coordinator", f"{where}:{PORT}", "--host", where, "--port", str(HTTP_PORT), *options]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            with (self.folder / f"serve-{node}.log").open("ab") as log:
                made = psutil.Popen(self.spaces.command(node, command), stdout=log, stderr=log, env=environment)
            self.processes[node] = made

    def strike(self, source: random.Random) -> str:
        """Take something away, and return the host that it was on."""
        node = source.choice(NAMES)
        fault = source.choice(("power", "power", "coordinator", "stage"))
        if fault == "coordinator":
            node = self.serving() or node
            self.processes[node].kill()
        elif fault == "stage" and (found := self.fleet.workers(node)):
            with suppress(psutil.NoSuchProcess):
                found[0].send_signal(signal.SIGKILL)
        else:
            take_power(self.spaces, node)
        self.events.append(f"{fault} {node}")
        return node

    def serving(self) -> str | None:
        """Return the host whose coordinator accepts clients, None if there is none now."""
        for node, process in self.processes.items():
            if process.poll() is None and HTTP_PORT in listening(process):
                return node
        return None

    def end(self) -> None:
        """End the coordinators."""
        for process in self.processes.values():
            with suppress(psutil.NoSuchProcess):
                process.kill()
            process.wait()


def save_example(folder: Path, new_tokens: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Write a tiny model, its profile and a plan of four stages; return the requests, and the right answers."""
    tokenizer = byte_tokenizer()
    end = tokenizer.eos_token_id
    whole = tiny_model(vocab_size=end + 1, pad_token_id=end, eos_token_id=None, max_position_embeddings=1024)
    whole.generation_config = GenerationConfig(pad_token_id=end, do_sample=False)
    whole.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    unsplit = load_unsplit(folder / "model")
    answers = []
    torch.set_num_threads(1)
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.inference_mode():
            limits = {"max_new_tokens": new_tokens, "eos_token_id": end}  # which the server ends an answer with, too
            tokens = unsplit.generate(ids, attention_mask=torch.ones_like(ids), **limits)
        answers.append(tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True))
    osp.profile(folder / "model", prompt_tokens=16, measure=True).save(folder / "profile.json")
    plan = osp.Plan.manual(cuts=range(1, LAYERS), layers=LAYERS)
    stages = tuple(replace(stage, node=name) for stage, name in zip(plan.stages, NAMES, strict=True))
    workload = osp.Workload(prompt_tokens=16, new_tokens=new_tokens)
    replace(plan, stages=stages, workload=workload, model=str(folder / "model")).save(folder / "plan.json")
    create_credentials(folder / CREDENTIALS)
    return [{"prompt": text, "max_tokens": new_tokens} for text in TEXTS], answers


@contextmanager
def servers(folder: Path) -> Iterator[Servers]:
    """Start the hosts and the coordinators, and wait until one accepts clients."""
    nodes = tuple(osp.Node(name, 10**9, slowdown=1.0) for name in NAMES)
    links = tuple(osp.Link(a, b, 2.5e6, 1e-3) for a in NAMES for b in NAMES if a != b)
    osp.Network("four", nodes, links).save(folder / "network.toml")
    with Namespaces(osp.Network("all", (*nodes, osp.Node(CLIENT, 1, slowdown=1.0)), links)) as spaces:
        where = ",".join(f"{spaces.address(node)}:{PORT}" for node in SERVERS)
        with fleet(folder, where, command=spaces.command) as there:
            made = Servers(folder, spaces, there)
            try:
                for node in NAMES:
                    made.start(node)
                deadline_s = time.monotonic() + START_S
                while made.serving() is None:
                    if time.monotonic() > deadline_s:
                        raise TimeoutError(f"no coordinator serves after {START_S:g} s")
                    time.sleep(0.2)
                yield made
            finally:
                made.end()


def disturb(made: Servers, source: random.Random, has_ended: threading.Event) -> None:
    """Let hosts come and go until all requests have ended."""
    while not has_ended.wait(source.uniform(*QUIET_S)):
        node = made.strike(source)
        has_ended.wait(source.uniform(*AWAY_S))
        made.start(node)


def main() -> None:
    """Send the requests and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--retries", type=int, default=openai_retries(), help="those of the client; its default")
    parser.add_argument("--new-tokens", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logs", type=Path, help="folder for the logs of hosts and coordinators")
    asked = parser.parse_args()
    if (reason := why_unavailable()) is not None:
        sys.exit(f"this study needs network namespaces: {reason}")
    with tempfile.TemporaryDirectory() as name:
        folder = asked.logs or Path(name)
        requests, expected = save_example(folder, asked.new_tokens)
        with servers(folder) as made:
            got = answers(made, requests, asked)
            left = [one for node in NAMES for one in processes_of(made.spaces, node)]
            print(f"{len(made.events)} events: {', '.join(made.events)}; {len(left)} processes before the end")
    right = [one for one in got if one.get("text") == expected[one["prompt"]]]
    failed = [one for one in got if "error" in one]
    seconds = [one["seconds"] for one in got]
    print(f"{len(right)} of {asked.requests} requests answered rightly, {len(failed)} with an error after the retries")
    print(f"seconds of a request: median {statistics.median(seconds):.1f}, longest {max(seconds):.1f}")
    for one in failed:
        print(one)
    if len(right) != asked.requests:
        sys.exit("not every request was answered rightly")


def openai_retries() -> int:
    """Return how often the client tries again by default."""
    import openai

    return openai.DEFAULT_MAX_RETRIES


def answers(made: Servers, requests: list[dict[str, Any]], asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what became of each request."""
    url = f"http://{NAME}:{HTTP_PORT}/v1"
    counts = [str(number) for number in (asked.requests, asked.clients, asked.retries)]
    command = made.spaces.command(CLIENT, [sys.executable, "-m", "tests.support.fleet_clients", url, *counts])
    environment = {**os.environ, "FLEET_ADDRESSES": ",".join(made.spaces.address(node) for node in SERVERS)}
    has_ended = threading.Event()
    disturbing = threading.Thread(target=disturb, args=(made, random.Random(asked.seed), has_ended))
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as clients:
        assert clients.stdin is not None
        assert clients.stdout is not None
        clients.stdin.write(json.dumps(requests))
        clients.stdin.close()
        disturbing.start()
        got = []
        for line in clients.stdout:
            got.append(json.loads(line))
            if len(got) % 25 == 0 or "error" in got[-1]:
                print(
                    f"{len(got)} of {asked.requests}, last event: {made.events[-1:]}, {got[-1]}"[:400], file=sys.stderr
                )
        has_ended.set()
        disturbing.join()
    return got


if __name__ == "__main__":
    main()
