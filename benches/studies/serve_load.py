"""Load `orbitsplit serve` on a real pipeline of two stages: nothing is lost, nobody waits for others, nothing is left.

    python -m benches.studies.serve_load [--requests 1000] [--at-once 32] [--warm-up 100] [--groups 8]

A tiny Llama of random weights, in processes of its own, is asked by the `openai` package: completions and chats,
streamed or whole. Texts and counts of tokens are compared with those of transformers' generate on the whole model.

1. As many at once as `--at-once` says, beside a client that reads so little that the server must keep its text, and
   one that goes away amid 8,000 tokens. The others get their text, the slow one its own in the end, and the group of
   the one that left ends.
2. `--requests` in all, as many at a time, of which one in sixteen goes away amid its stream. Resident memory, files
   and threads of the server and of each stage are taken after the first `--warm-up` and after the last, when nobody
   is connected.

Prints tables, and exits with 1 if a text is wrong, something is left running, or a process has grown by more than
GROWTH_BYTES for each request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import torch
from openai import AsyncOpenAI, OpenAI
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import orbitsplit as osp

LAYERS, CONTEXT = 4, 16384
CHAT_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
# Keys and values of a request take some 50 kB in a stage here, the buffer of a message 1 kB, what the server knows of a
# request 5 kB: one that stays for each request is seen.
GROWTH_BYTES = 1024
# The one that leaves asks for so many tokens, and its group must be gone so soon after all others.
LEFT_TOKENS, LEFT_S = 8000, 2.0
LEAVES_EVERY = 16
# What the slow client gets is more than the system and the server's framework take, about 250 kB: an echo of its prompt
# for each choice. A control character is one token and six bytes of JSON.
SLOW_PROMPT, SLOW_CHOICES, SLOW_TOKENS = "\x01" * 1000, 64, 8
WAIT_S = 120.0


class LostError(Exception):
    """Something was lost, wrong or left."""


@dataclass(frozen=True)
class Question:
    """A prompt, as text to complete or as a chat, streamed or not, and what the whole model answers to it."""

    text: str
    new_tokens: int
    is_chat: bool
    is_streamed: bool
    answer: str
    answer_tokens: int


@dataclass(frozen=True)
class Asked:
    """What became of a question: seconds until the first text and until the last; None for one that left."""

    first_s: float
    seconds: float | None
    tokens: int


@dataclass(frozen=True)
class Held:
    """What a process holds."""

    resident_bytes: int
    files: int
    threads: int


def save_model(folder: Path, groups: int) -> Judge:
    """Save a Llama whose tokens are bytes, with its tokenizer, and a plan of two stages."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_of = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(alphabet)}, []))
    bytes_of.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytes_of.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_of, eos_token="</s>", chat_template=CHAT_TEMPLATE)
    end = tokenizer.eos_token_id
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=end + 1,
        hidden_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=CONTEXT,
        eos_token_id=end,
        pad_token_id=end,
    )
    whole = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in whole.parameters():
            if parameter.dim() > 1:  # so large that logits lie far apart
                parameter.normal_(0.0, 0.25)
    whole.generation_config = GenerationConfig(pad_token_id=end, eos_token_id=end)
    whole.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    plan = osp.Plan.manual(cuts=[LAYERS // 2], layers=LAYERS)
    # As many groups are under way at once as the plan has micro-batches.
    replace(plan, model="model", workload=osp.Workload(micro_batches=groups)).save(folder / "plan.json")
    return Judge(LlamaForCausalLM.from_pretrained(folder / "model").eval(), tokenizer)


@dataclass(frozen=True)
class Judge:
    """The whole model in one process."""

    whole: LlamaForCausalLM
    tokenizer: Any

    def answer(self, given: str, new_tokens: int) -> tuple[str, int]:
        """Return what follows a text, and how many tokens that is, the end token included."""
        inputs = self.tokenizer(given, return_tensors="pt")
        # With one thread and weights as the file has them, as in the stages: sums are made in the same order then.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                tokens = self.whole.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)[0]
        finally:
            torch.set_num_threads(threads)
        text = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text.removeprefix(given), len(tokens) - inputs.input_ids.shape[1]

    def questions(self, count: int) -> list[Question]:
        """Return different questions of 8 to 39 new tokens, of each kind as many."""
        found = []
        for number in range(count):
            text, new_tokens, is_chat = f"Question {number}: ", 8 + 7 * number % 32, number // 2 % 2 == 1
            answer = self.answer(f"user: {text}\nassistant: " if is_chat else text, new_tokens)
            found.append(Question(text, new_tokens, is_chat, number % 2 == 0, *answer))
        return found


@dataclass(frozen=True)
class Server:
    """A running `orbitsplit serve`."""

    url: str
    process: psutil.Process

    def choices(self) -> int:
        """Return how many choices are running or queued, in the server or in the pipeline."""
        return int(httpx.get(f"{self.url.removesuffix('/v1')}/health", timeout=WAIT_S).json()["choices"])

    def wait_for_choices(self, is_enough: Callable[[int], bool]) -> float:
        """Wait until so many choices are running or queued, and return how long that took."""
        began_s = time.monotonic()
        while not is_enough(choices := self.choices()):
            if time.monotonic() - began_s > WAIT_S:
                raise LostError(f"{choices} choices are running after {WAIT_S:g} s")
            time.sleep(0.01)
        return time.monotonic() - began_s

    def held(self) -> dict[str, Held]:
        """Return what the server and each stage hold, once that has not changed for a second."""
        self.wait_for_choices(lambda choices: choices == 0)
        processes = [self.process, *sorted(self.process.children(recursive=True), key=lambda child: child.pid)]
        names = ["server", *(f"stage {k}" for k in range(len(processes) - 1))]
        seen: list[list[tuple[int, int]]] = []
        while len(seen) < 5 or any(one != seen[-1] for one in seen[-5:]):
            time.sleep(0.25)
            seen.append([(process.num_fds(), process.num_threads()) for process in processes])
        return {
            name: Held(process.memory_info().rss, *counts)
            for name, process, counts in zip(names, processes, seen[-1], strict=True)
        }


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Run `orbitsplit serve` on the saved plan; at the end it must end in order."""
    command = [sys.executable, "-m", "orbitsplit", "serve", "plan.json", "--port", "0"]
    log = (folder / "log").open("w+")
    with log, subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=log, text=True) as process:
        try:
            url = None
            while url is None and process.poll() is None:
                time.sleep(0.05)
                lines = (folder / "log").read_text().splitlines()
                url = next((line.split()[-1] for line in lines if line.startswith("serving at")), None)
            if url is None:
                raise LostError(f"the server did not start:\n{(folder / 'log').read_text()}")
            yield Server(url, psutil.Process(process.pid))
            children = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            if process.wait(30) != 0 or psutil.wait_procs(children, timeout=10)[1]:
                raise LostError(f"the server ended with {process.returncode}:\n{(folder / 'log').read_text()}")
        finally:
            process.kill()


async def ask(client: AsyncOpenAI, question: Question, *, leaves: bool = False) -> Asked:
    """Ask one question and compare the answer; one that leaves asks for more, and goes with the first text."""
    new_tokens = LEFT_TOKENS if leaves else question.new_tokens
    options: dict[str, Any] = {"model": "model", "max_tokens": new_tokens, "temperature": 0}
    create: Any = client.completions.create
    if question.is_chat:
        create, options["messages"] = client.chat.completions.create, [{"role": "user", "content": question.text}]
    else:
        options["prompt"] = question.text
    began_s = time.monotonic()
    if not question.is_streamed and not leaves:
        answer = await create(**options)
        text, usage, first_s = text_of(answer.choices[0], question), answer.usage, time.monotonic() - began_s
    else:
        text, usage, first_s = "", None, 0.0
        async with await create(**options, stream=True, stream_options={"include_usage": True}) as chunks:
            async for chunk in chunks:
                usage = chunk.usage or usage
                text += text_of(chunk.choices[0], question) if chunk.choices else ""
                first_s = first_s or (time.monotonic() - began_s if text else 0.0)
                if leaves and text:
                    return Asked(first_s, None, 0)
    if text != question.answer or usage.completion_tokens != question.answer_tokens:
        raise LostError(f"{question}\nis answered with {usage.completion_tokens} tokens:\n{text!r}")
    return Asked(first_s, time.monotonic() - began_s, usage.completion_tokens)


def text_of(choice: Any, question: Question) -> str:
    """Return the text of a choice, or of a piece of it."""
    if not question.is_chat:
        return str(choice.text)
    return (choice.delta.content if hasattr(choice, "delta") else choice.message.content) or ""


async def ask_all(url: str, questions: Sequence[Question], at_once: int, *, some_leave: bool) -> list[Asked]:
    """Ask all questions, so many at a time, and return what became of them."""
    turns = asyncio.Semaphore(at_once)
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=WAIT_S) as client:

        async def in_turn(number: int, question: Question) -> Asked:
            async with turns:
                leaves = some_leave and number % LEAVES_EVERY == LEAVES_EVERY - 1
                return await ask(client, question, leaves=leaves)

        return list(await asyncio.gather(*(in_turn(number, one) for number, one in enumerate(questions))))


class SlowClient(threading.Thread):
    """Reads a stream 64 bytes at a time, 20 times a second, until it is told to hurry."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.hurry = threading.Event()
        self.received = b""
        self.received_slowly = 0
        at = urlsplit(url)
        self._connection = socket.socket()
        # Small buffers and packets: the system would take megabytes, and nobody would have to wait.
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        self._connection.settimeout(WAIT_S)
        self._connection.connect((at.hostname, at.port))
        body = {"model": "model", "prompt": SLOW_PROMPT, "max_tokens": SLOW_TOKENS, "temperature": 0}
        content = json.dumps({**body, "stream": True, "n": SLOW_CHOICES, "echo": True}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self._connection.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)

    def run(self) -> None:
        """Read to the end."""
        with self._connection:
            while data := self._connection.recv(65536 if self.hurry.is_set() else 64):
                self.received += data
                if not self.hurry.wait(0.05):
                    self.received_slowly = len(self.received)

    def check(self, answer: str) -> None:
        """Raise LostError unless each choice has the prompt and the answer."""
        lines = [line for line in self.received.decode().splitlines() if line.startswith("data: ")]
        if not lines or lines[-1] != "data: [DONE]":
            raise LostError(f"the slow client's stream ends with {lines[-1:]}")
        texts = [""] * SLOW_CHOICES
        for line in lines[:-1]:
            choice = json.loads(line.removeprefix("data: "))["choices"][0]
            texts[choice["index"]] += choice["text"]
        if set(texts) != {SLOW_PROMPT + answer}:
            raise LostError(f"the slow client got {texts}, expected for each choice {SLOW_PROMPT + answer!r}")


def beside_a_slow_and_a_leaving_client(server: Server, questions: Sequence[Question], slow_answer: str) -> None:
    """Ask all at once beside the two, and print how long everybody took."""
    slow = SlowClient(server.url)
    slow.start()
    answers: list[Asked] = []
    asking = threading.Thread(
        target=lambda: answers.extend(asyncio.run(ask_all(server.url, questions, len(questions), some_leave=False)))
    )
    with OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=WAIT_S) as leaving:
        options: dict[str, Any] = {"model": "model", "max_tokens": LEFT_TOKENS, "temperature": 0, "stream": True}
        stream = leaving.completions.create(prompt="Leaving: ", **options)
        next(stream)
        asking.start()
        server.wait_for_choices(lambda choices: choices > SLOW_CHOICES + 1 + len(questions) // 2)
        stream.close()
    asking.join()
    # What the slow client has not read keeps its place, and nothing else does.
    left_s = server.wait_for_choices(lambda choices: choices == SLOW_CHOICES)
    slow.hurry.set()
    slow.join()
    slow.check(slow_answer)
    server.wait_for_choices(lambda choices: choices == 0)
    if len(answers) != len(questions) or left_s > LEFT_S:
        raise LostError(
            f"{len(answers)} of {len(questions)} got their answer, the one that left ran {left_s:.1f} s after them"
        )
    print(
        f"{len(questions)} at once beside a slow and a leaving client: all texts right, the last after "
        f"{max(one.seconds or 0.0 for one in answers):.2f} s. The slow one had read {slow.received_slowly} bytes by "
        f"then, and got all of its {len(slow.received)}. {LEFT_TOKENS} tokens for the one that left were given up "
        f"{left_s:.2f} s after that or before.\n"
    )


def load(server: Server, questions: Sequence[Question], asked: argparse.Namespace) -> list[str]:
    """Ask all `asked.requests`, print what it took, and return what has grown too much."""
    of_all = [questions[number % len(questions)] for number in range(asked.requests)]
    asyncio.run(ask_all(server.url, of_all[: asked.warm_up], asked.at_once, some_leave=True))
    before = server.held()
    began_s = time.monotonic()
    answers = asyncio.run(ask_all(server.url, of_all[asked.warm_up :], asked.at_once, some_leave=True))
    show_times(answers, time.monotonic() - began_s)
    after = server.held()
    print(f"| process | MB after {asked.warm_up} | MB after {asked.requests} | bytes/request | files | threads |")
    print("| --- | --- | --- | --- | --- | --- |")
    wrong = []
    for name, then in before.items():
        now = after[name]
        growth = (now.resident_bytes - then.resident_bytes) / len(answers)
        print(
            f"| {name} | {then.resident_bytes / 1e6:.1f} | {now.resident_bytes / 1e6:.1f} | {growth:+.0f} "
            f"| {then.files}, {now.files} | {then.threads}, {now.threads} |"
        )
        if growth > GROWTH_BYTES:
            wrong.append(f"{name} grew by {growth:.0f} bytes for each request, the limit is {GROWTH_BYTES}")
        if now.files > then.files or now.threads > then.threads:
            wrong.append(f"{name} had {then.files} files and {then.threads} threads, now {now.files} and {now.threads}")
    return wrong


def show_times(answers: Sequence[Asked], seconds: float) -> None:
    """Print how fast requests were answered."""
    whole = sorted(one.seconds for one in answers if one.seconds is not None)
    first_s = statistics.median(one.first_s for one in answers)
    print("| requests | left | requests/s | tokens/s | latency p50 | latency p95 | first text p50 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    print(
        f"| {len(answers)} | {len(answers) - len(whole)} | {len(answers) / seconds:.1f} "
        f"| {sum(one.tokens for one in answers) / seconds:.0f} | {1e3 * statistics.median(whole):.0f} ms "
        f"| {1e3 * whole[int(0.95 * (len(whole) - 1))]:.0f} ms | {1e3 * first_s:.0f} ms |\n"
    )


def main() -> None:
    """Load a server and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1000, help="how many in all")
    parser.add_argument("--at-once", type=int, default=32, help="how many clients there are")
    parser.add_argument("--warm-up", type=int, default=100, help="how many requests come before the first measurement")
    parser.add_argument("--groups", type=int, default=8, help="how many are in the pipeline at a time, others wait")
    asked = parser.parse_args()
    if not 0 < asked.warm_up < asked.requests:
        parser.error(f"--warm-up is {asked.warm_up}, expected at least 1 and fewer than the {asked.requests} requests")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        judge = save_model(folder, asked.groups)
        questions = judge.questions(max(64, asked.at_once))
        slow_answer, _ = judge.answer(SLOW_PROMPT, SLOW_TOKENS)
        with serving(folder) as server:
            beside_a_slow_and_a_leaving_client(server, questions[: asked.at_once], slow_answer)
            wrong = load(server, questions, asked)
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
