"""An engine without a model, a tokenizer of bytes, and a real server around both."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from openai import OpenAI
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from orbitsplit.serve import create_app
from orbitsplit.serve._server import Server

MODEL = "tiny/echo"
CONTEXT = 8192
WAIT_S = 60.0  # far more than anything here takes
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('the system speaks first') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def byte_tokenizer(*, chat_template: str | None = CHAT_TEMPLATE) -> Any:
    """Return a tokenizer with a token for each byte, and an end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", chat_template=chat_template)


@dataclass(frozen=True)
class Scored:
    """What the engine says of a token: it and the next one in the vocabulary, with made-up log-probabilities."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, token: int, count: int) -> Scored:
        top = ((token, logprob_of(token)), ((token + 1) % 256, -5.0))
        return cls(token, logprob_of(token), top[:count])


def logprob_of(token: int) -> float:
    """Return the log-probability that a fake engine gives a token."""
    return -token / 256


@dataclass
class Sequenced:
    """One submitted sequence: what was asked, and how far it is."""

    engine: FakeEngine
    prompt: list[int]
    arguments: dict[str, Any]
    on_tokens: Callable[[Tensor], None]
    on_end: Callable[[BaseException | None], None]
    on_logprobs: Callable[[list[Scored | None]], None] | None = None
    on_prompt_logprobs: Callable[[list[list[Scored | None]]], None] | None = None
    sent: list[int] = field(default_factory=list)
    is_cancelled: bool = False
    is_ended: bool = False

    def next_token(self) -> int:
        """Return the token that the engine says next, or another one if processors of logits forbid it."""
        said = self.engine.say(self.prompt)
        scores = torch.zeros(1, 257)
        scores[0, said[len(self.sent) % len(said)]] = 1.0
        for processor in self.arguments.get("logits_processor", ()):
            scores = processor(torch.tensor([self.prompt + self.sent]), scores)
        return int(scores.argmax())

    def cancel(self) -> None:
        with self.engine.changed:
            self.is_cancelled = True
            self.engine.changed.notify_all()

    @property
    def is_complete(self) -> bool:
        ends = self.arguments["eos_token_id"]
        return len(self.sent) == self.arguments["max_new_tokens"] or (bool(self.sent) and self.sent[-1] in ends)


class FakeEngine:
    """Says the tokens of `say(prompt)`, over and over, for up to `at_once` sequences in turn, in a thread.

    By default it repeats the prompt. It pauses when `budget` tokens are said, until it is given more; None is without
    limit. All that was submitted is in `seen` until it is cleared. `refusal` is raised by `submit`, `recoveries` are
    those that a server reads of a pipeline.
    """

    def __init__(self, say: Callable[[list[int]], Sequence[int]] = list, *, at_once: int = 4) -> None:
        self.say = say
        self.changed = threading.Condition()
        self.budget: int | None = None
        self.seen: list[Sequenced] = []
        self.dead: BaseException | None = None
        self.refusal: Exception | None = None
        self.recoveries: tuple[str, ...] = ()
        self._takes_more = True
        self._at_once = at_once
        self._waiting: list[Sequenced] = []
        self._is_closed = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def submit(
        self,
        input_ids: Tensor,
        *,
        on_tokens: Any,
        on_end: Any,
        on_logprobs: Any = None,
        on_prompt_logprobs: Any = None,
        **arguments: Any,
    ) -> Sequenced:
        assert input_ids.dtype == torch.int64
        assert input_ids.shape[0] == 1
        if arguments.get("seed") == 13:
            raise ValueError("seed is 13, expected a lucky number")
        if self.refusal is not None:
            raise self.refusal
        with self.changed:
            if self.dead is not None and not self._takes_more:
                raise self.dead
            one = Sequenced(self, input_ids[0].tolist(), arguments, on_tokens, on_end, on_logprobs, on_prompt_logprobs)
            self._waiting.append(one)
            self.seen.append(one)
            self.changed.notify_all()
        return one

    def allow(self, tokens: int | None) -> None:
        """Let so many tokens be said from now on, None for any number."""
        with self.changed:
            self.budget = tokens
            self.changed.notify_all()

    def die(self, error: BaseException, *, refuses: bool = True) -> None:
        """Fail: everything submitted ends with an error; what is submitted later is refused with it, or ends so too."""
        with self.changed:
            self.dead, self._takes_more = error, not refuses
            self.changed.notify_all()

    def wait_until(self, claim: Callable[[], bool]) -> None:
        """Wait until a claim about the engine holds."""
        with self.changed:
            assert self.changed.wait_for(claim, WAIT_S)

    def close(self) -> None:
        with self.changed:
            self._is_closed = True
            self.changed.notify_all()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        while self._round():
            pass

    def _round(self) -> bool:
        """Step what runs; return False at the end. Nothing of a round is held while the thread waits for the next."""
        with self.changed:
            self.changed.wait_for(self._has_work)
            if self._is_closed:
                return False
            running = self._waiting[: self._at_once] if self.dead is None else list(self._waiting)
            running += [one for one in self._waiting[len(running) :] if one.is_cancelled]
        for one in running:
            self._step(one)
        with self.changed:
            self._waiting = [one for one in self._waiting if not one.is_ended]
            self.changed.notify_all()
        return True

    def _has_work(self) -> bool:
        if self._is_closed or (self.dead is not None and self._waiting):
            return True
        return any(one.is_cancelled for one in self._waiting) or (self.budget != 0 and bool(self._waiting))

    def _step(self, one: Sequenced) -> None:
        if self.dead is not None or one.is_cancelled:
            one.is_ended = True
            one.on_end(self.dead)
        elif self.budget != 0:
            if self.budget is not None:
                self.budget -= 1
            one.sent.append(one.next_token())
            if one.on_prompt_logprobs is not None and len(one.sent) == 1:
                count = one.arguments["prompt_logprobs"]
                one.on_prompt_logprobs([[None, *(Scored.of(token, count) for token in one.prompt[1:])]])
            if one.on_logprobs is not None:
                one.on_logprobs([Scored.of(one.sent[-1], one.arguments["logprobs"])])
            one.on_tokens(torch.tensor(one.sent[-1:]))
            if one.is_complete:
                one.is_ended = True
                one.on_end(None)


class WatchedServer(Server):
    """A server that a test can look into."""

    loop: asyncio.AbstractEventLoop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def ask(self, question: Callable[[], Any]) -> Any:
        """Return what a question has for an answer in the server's thread."""

        async def answer() -> Any:
            return question()

        return asyncio.run_coroutine_threadsafe(answer(), self.loop).result(WAIT_S)

    def wait_until(self, claim: Callable[[], bool]) -> None:
        """Wait until a claim about the server holds."""

        async def wait() -> None:
            while not claim():
                await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(asyncio.wait_for(wait(), WAIT_S), self.loop).result(WAIT_S + 1)


@dataclass
class Served:
    """A running server and its parts."""

    engine: FakeEngine
    tokenizer: Any
    server: WatchedServer
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=WAIT_S, **options)

    def say(self, text: str) -> None:
        """Make the engine say a text, and end."""
        tokens = [*self.tokenizer(text)["input_ids"], self.tokenizer.eos_token_id]
        self.engine.say = lambda prompt: tokens

    @property
    def admission(self) -> Any:
        return self.server.config.app.state.admission

    def is_idle(self) -> bool:
        return len(self.admission) == 0


@contextmanager
def serving(
    engine: FakeEngine | None = None,
    *,
    tokenizer: Any = None,
    grace_s: float = 0.0,
    send_buffer_bytes: int | None = None,
    **options: Any,
) -> Iterator[Served]:
    """Serve a fake engine on a free port, in a thread."""
    engine, tokenizer = engine or FakeEngine(), tokenizer or byte_tokenizer()
    app = create_app(engine, tokenizer, **{"model_name": MODEL, "context_tokens": CONTEXT, **options})
    with socket.create_server(("127.0.0.1", 0)) as listening:
        if send_buffer_bytes is not None:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        server = WatchedServer(app, grace_s=grace_s, log_level="warning")
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield Served(engine, tokenizer, server, listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(WAIT_S)
            engine.close()
            assert not thread.is_alive()
