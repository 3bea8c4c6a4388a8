"""The server before a real pipeline of two stages: every client gets the whole model's text, and nothing is left."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import psutil
import pytest
import torch
from openai import AsyncOpenAI
from torch import Tensor

import orbitsplit as osp
from orbitsplit.runtime import Generation, PipelineStatus
from orbitsplit.serve._response import Response
from tests.support.fake_engine import MODEL, Served, byte_tokenizer, serving
from tests.support.tiny_models import HIDDEN, LAYERS, computing_in_groups, load_unsplit, tiny_model

CONTEXT = 2048
# More than anything here takes; a client that left is cancelled long before it has these tokens.
WAIT_S, LEFT_TOKENS = 120.0, 1900
# Echoes of more than the buffers between server and client hold.
SLOW_PROMPT, SLOW_CHOICES = "\x01" * 300, 64  # six bytes of JSON each


@dataclass
class Watched:
    """A pipeline that remembers what was submitted."""

    pipe: osp.Pipeline
    seen: list[Generation] = field(default_factory=list)

    def submit(self, input_ids: Tensor, **arguments: Any) -> Generation:
        self.seen.append(self.pipe.submit(input_ids, **arguments))
        return self.seen[-1]

    def status(self) -> PipelineStatus:
        return self.pipe.status()

    def close(self) -> None:
        """Leave the pipeline to the next test."""


@dataclass(frozen=True)
class Chain:
    """A pipeline of two stages, and the whole model."""

    pipe: osp.Pipeline
    whole: Any
    tokenizer: Any

    def answer(self, prompt: str, new_tokens: int) -> str:
        inputs = self.tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode(), computing_in_groups(self.whole, 1):
            tokens = self.whole.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)[0]
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True)).removeprefix(prompt)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    tokenizer.name_or_path = str(folder)
    end = tokenizer.eos_token_id
    whole = tiny_model(vocab_size=end + 1, pad_token_id=end, eos_token_id=end, max_position_embeddings=CONTEXT)
    whole.generation_config.update(pad_token_id=end, eos_token_id=end, bos_token_id=None)
    whole.save_pretrained(folder)
    whole = load_unsplit(folder)
    plan = osp.Plan.manual(cuts=[LAYERS // 2], layers=LAYERS)
    with osp.Pipeline(replace(plan, workload=osp.Workload(micro_batches=4)), folder) as pipe:
        yield Chain(pipe, whole, tokenizer)


@pytest.fixture
def served(chain: Chain) -> Iterator[Served]:
    with serving(
        Watched(chain.pipe), tokenizer=chain.tokenizer, context_tokens=CONTEXT, send_buffer_bytes=4096
    ) as running:
        yield running


@dataclass(frozen=True)
class Question:
    """What is asked, and what the whole model answers."""

    prompt: str
    new_tokens: int
    is_chat: bool
    is_streamed: bool
    expected: str


@pytest.fixture(scope="module")
def questions(chain: Chain) -> list[Question]:
    found = []
    for number in range(32):
        prompt, new_tokens, is_chat = f"request {number}, ", 3 + number % 6, number % 4 > 1
        expected = chain.answer(f"user: {prompt}\nassistant: " if is_chat else prompt, new_tokens)
        found.append(Question(prompt, new_tokens, is_chat, number % 2 == 0, expected))
    return found


async def ask(client: AsyncOpenAI, question: Question) -> str:
    options: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": question.new_tokens,
        "temperature": 0,
        "stream": question.is_streamed,
    }
    if question.is_chat:
        messages = [{"role": "user", "content": question.prompt}]
        answer: Any = await client.chat.completions.create(messages=messages, **options)
        if not question.is_streamed:
            return str(answer.choices[0].message.content)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])
    answer = await client.completions.create(prompt=question.prompt, **options)
    if not question.is_streamed:
        return str(answer.choices[0].text)
    return "".join([chunk.choices[0].text async for chunk in answer])


async def leave(client: AsyncOpenAI) -> None:
    """Ask for much, and go away with the first text."""
    options: dict[str, Any] = {"model": MODEL, "max_tokens": LEFT_TOKENS, "temperature": 0, "stream": True}
    async with await client.completions.create(prompt="leaving", **options) as chunks:
        async for _ in chunks:
            return


def open_client(served: Served) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=WAIT_S)


def post_slowly(served: Served) -> socket.socket:
    """Send a request and read nothing, into little memory of the system."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(WAIT_S)
    connection.connect(("127.0.0.1", served.port))
    body = {"model": MODEL, "prompt": SLOW_PROMPT, "echo": True, "n": SLOW_CHOICES, "max_tokens": 1}
    content = json.dumps({**body, "temperature": 0, "stream": True}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nconnection: close\r\n"
    connection.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
    return connection


def read_texts(connection: socket.socket) -> list[str]:
    """Return the text of each choice of a stream, read to its end."""
    received = b"".join(iter(lambda: connection.recv(65536), b""))
    lines = [line for line in received.decode().splitlines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    texts = [""] * SLOW_CHOICES
    for line in lines[:-1]:
        choice = json.loads(line.removeprefix("data: "))["choices"][0]
        texts[choice["index"]] += choice["text"]
    return texts


def cancelled(served: Served) -> list[Generation]:
    """Wait until all groups have ended, and return those that were cancelled."""
    engine: Any = served.engine
    for one in engine.seen:
        one.wait(WAIT_S)
    return [one for one in engine.seen if one.is_cancelled]


def test_32_clients_at_once_get_the_whole_models_text_beside_a_slow_and_a_leaving_one(
    served: Served, chain: Chain, questions: list[Question]
) -> None:
    async def ask_all() -> list[str]:
        async with open_client(served) as client:
            *texts, _ = await asyncio.gather(*(ask(client, one) for one in questions), leave(client))
            return texts

    with post_slowly(served) as slow:
        assert asyncio.run(ask_all()) == [one.expected for one in questions]
        (left,) = cancelled(served)
        assert 0 < left.new_tokens < LEFT_TOKENS
        served.server.wait_until(lambda: len(served.admission) == SLOW_CHOICES)
        assert read_texts(slow) == [SLOW_PROMPT + chain.answer(SLOW_PROMPT, 1)] * SLOW_CHOICES
    served.server.wait_until(served.is_idle)


def in_use(served: Served, chain: Chain) -> dict[str, int]:
    """Return how much of everything a quiet server and its pipeline hold."""
    served.server.wait_until(lambda: served.is_idle() and not served.server.server_state.connections)
    engine: Any = served.engine
    engine.seen.clear()
    gc.collect()
    stages = [psutil.Process(pid) for pid in chain.pipe.pids]
    return {
        "requests": sum(type(thing) in (Response, Generation) for thing in gc.get_objects()),
        "tasks": served.server.ask(lambda: len(asyncio.all_tasks())),
        "threads": threading.active_count(),
        "threads of stages": sum(stage.num_threads() for stage in stages),
        "files": sum(process.num_fds() for process in (psutil.Process(), *stages)),
    }


def test_a_hundred_requests_leave_nothing_in_server_and_stages(
    served: Served, chain: Chain, questions: list[Question]
) -> None:
    async def ask_many(count: int) -> None:
        at_once = asyncio.Semaphore(32)

        async def one(number: int, client: AsyncOpenAI) -> None:
            async with at_once:
                if number % 8 == 7:
                    await leave(client)
                else:
                    question = questions[number % len(questions)]
                    assert await ask(client, question) == question.expected

        async with open_client(served) as client:
            await asyncio.gather(*(one(number, client) for number in range(count)))

    asyncio.run(ask_many(32))
    before = in_use(served, chain)
    assert before["requests"] == 0
    asyncio.run(ask_many(68))
    left = cancelled(served)
    assert len(left) == 8
    assert all(one.new_tokens < LEFT_TOKENS for one in left)
    del left
    assert in_use(served, chain) == before


def test_requests_are_forgotten_without_the_garbage_collector(served: Served, questions: list[Question]) -> None:
    async def ask_some() -> None:
        async with open_client(served) as client:
            await asyncio.gather(*(ask(client, one) for one in questions[:4]), leave(client))

    engine: Any = served.engine
    # Cycles would stay for thousands of requests: torch has so many objects that all are looked through rarely.
    gc.disable()
    try:
        asyncio.run(ask_some())
        cancelled(served)
        left = [weakref.ref(one) for one in engine.seen]
        engine.seen.clear()
        assert len(left) == 5
        served.server.wait_until(lambda: not any(one() for one in left))
    finally:
        gc.enable()


def test_log_probabilities_are_those_of_the_whole_model(served: Served, chain: Chain) -> None:
    with served.client() as client:
        answer = client.completions.create(
            model=MODEL, prompt="satellite", max_tokens=3, temperature=0, echo=True, logprobs=2
        )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    engine: Any = served.engine
    tokens = engine.seen[-1].tokens()
    with torch.inference_mode():
        expected = chain.whole(tokens).logits[0].float().log_softmax(dim=-1)
    first, *found = logprobs.token_logprobs or ()
    assert first is None
    of_tokens = [float(row[token]) for row, token in zip(expected, tokens[0, 1:], strict=False)]
    assert found == pytest.approx(of_tokens, abs=1e-4)
    best = [max(top.values()) for top in (logprobs.top_logprobs or ())[1:] if top]
    assert best == pytest.approx(expected.max(dim=-1).values[:-1].tolist(), abs=1e-4)


def test_an_answer_follows_a_json_schema(served: Served) -> None:
    cities = {"type": "object", "properties": {"city": {"enum": ["Rome", "Paris"]}}, "required": ["city"]}
    schema = {**cities, "additionalProperties": False}
    form: Any = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema}}
    messages: Any = [{"role": "user", "content": "Where?"}]
    with served.client() as client:
        for seed in range(3):
            answer = client.chat.completions.create(
                model=MODEL, messages=messages, response_format=form, seed=seed, max_tokens=400
            )
            assert json.loads(answer.choices[0].message.content or "")["city"] in ("Rome", "Paris")


def test_metrics_show_nodes_and_links(served: Served, chain: Chain) -> None:
    def found() -> dict[str, float]:
        lines = httpx.get(f"{served.url}/metrics").text.splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}

    nodes = [stage.node for stage in chain.pipe.plan.stages]
    link = f'orbitsplit_link_bytes_total{{destination="{nodes[1]}",source="{nodes[0]}"}}'
    before = found()
    with served.client() as client:
        client.completions.create(model=MODEL, prompt="a" * 500, max_tokens=2, temperature=0)
    # At least the hidden states of the prompt, in float32, as soon as a heartbeat brings it.
    wait_until(lambda: found()[link] - before[link] >= 500 * HIDDEN * 4)
    after = found()
    for node in nodes:
        assert after[f'orbitsplit_node_memory_bytes{{node="{node}"}}'] > 10 << 20
    assert chain.pipe.is_ready


def wait_until(claim: Callable[[], bool]) -> None:
    """Wait until a claim holds."""
    end_s = time.monotonic() + WAIT_S
    while not claim():
        assert time.monotonic() < end_s
        time.sleep(0.05)
