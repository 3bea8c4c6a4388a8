"""The endpoints: from a request's body to its response."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.responses import Response as HttpResponse
from torch import Tensor

from ._api_error import ApiError
from ._api_key import ApiKey
from ._bodies import RequestBodies
from ._chat_request import ChatRequest
from ._embeddings import Embedder, EmbeddingsRequest, batches, embeddings_body
from ._generation import Generation
from ._request_body import AnyRequest, CompletionRequest, parse, unknown_model
from ._response import Response, Service, while_connected
from ._response_body import ChatBody, CompletionBody
from ._responses_body import ResponsesBody
from ._responses_request import IGNORED_IN_RESPONSES, ResponsesRequest
from ._tokens_request import DetokenizeRequest, TokenizeChat, TokenizeText, is_chat

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The endpoints of a server. Batches of embeddings run one after the other."""

    service: Service
    api_key: ApiKey
    bodies: RequestBodies
    embedder: Embedder | None
    created: int
    embedding: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))

    async def health(self, request: Request) -> JSONResponse:
        """Report whether the pipeline worked when it was last used; with the key, details as well."""
        failure = self.service.admission.failure
        report: dict[str, Any] = {"status": "ok" if failure is None else "failed"}
        return self._report(request, report, failure)

    async def ready(self, request: Request) -> JSONResponse:
        """Report whether a request would be taken now; with the key, why not."""
        engine = self.service.engine
        reason = self.service.admission.refusal
        if getattr(engine, "failure", None) is not None:
            reason = "the pipeline has ended"
        elif reason is None and not getattr(engine, "is_ready", True):
            reason = "the pipeline is recovering from a loss, or going over to another plan"
        return self._report(request, {"status": "ready" if reason is None else "not ready"}, reason)

    async def metrics(self, request: Request) -> PlainTextResponse:
        """Report the metrics in the text format of Prometheus."""
        return PlainTextResponse(self.service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def models(self, request: Request) -> JSONResponse:
        """List the one model."""
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> JSONResponse:
        """Describe the one model."""
        if request.path_params["name"] != self.service.model_name:
            raise unknown_model(request.path_params["name"], self.service.model_name)
        return JSONResponse(self._card())

    async def completions(self, request: Request) -> Response:
        """Continue text or tokens."""
        asked, service = await self._parsed(request, CompletionRequest), self.service
        echoes = [""] * len(asked.prompt)
        if asked.echo:
            echoes = await self._in_thread(lambda: [service.prompts.echo(prompt) for prompt in asked.prompt])
        of_choices = [echo for echo in echoes for _ in range(asked.n)]
        body = CompletionBody(
            service.model_name, of_choices, logprobs=asked.logprobs, includes_usage=asked.includes_usage
        )
        return Response(service, asked, body)

    async def chat_completions(self, request: Request) -> Response:
        """Answer a chat."""
        asked = await self._parsed(request, ChatRequest)
        body = ChatBody(self.service.model_name, logprobs=asked.logprobs, includes_usage=asked.includes_usage)
        return Response(self.service, asked, body)

    async def responses(self, request: Request) -> Response:
        """Answer a conversation."""
        content = await self.bodies.read(request)
        asked = parse(content, ResponsesRequest, model_name=self.service.model_name, ignored=IGNORED_IN_RESPONSES)
        return Response(self.service, asked.to_chat(), ResponsesBody(asked))

    async def embeddings(self, request: Request) -> HttpResponse:
        """Return a vector for each text. Counts as one choice, and ends before its next batch with the connection."""
        asked, embedder = await self._parsed(request, EmbeddingsRequest), self.embedder
        if embedder is None:
            raise ApiError(400, "this server's engine runs no encoders", param="model", code="unsupported_model")
        bodies: list[dict[str, Any]] = []
        (place,) = self.service.admission.admit(1, lambda: None)

        async def embed() -> None:
            bodies.append(await self._embedded(asked, embedder, place))

        try:
            await while_connected(request.receive, embed)
        finally:
            place.close()
        return JSONResponse(bodies[0]) if bodies else HttpResponse(status_code=499)  # which nobody receives

    async def _embedded(self, asked: EmbeddingsRequest, embedder: Embedder, place: Generation) -> dict[str, Any]:
        """Return the body of the response. Raises the error of `place` once it has failed."""
        service = self.service
        texts = await self._in_thread(
            lambda: [service.prompts.encode(one, "input", is_answered=False) for one in asked.input]
        )

        def embed(batch: Sequence[list[int]]) -> list[Tensor]:
            if place.error is not None:  # the server is shutting down
                raise place.error
            return list(embedder.embed(batch))

        vectors: list[Tensor] = []
        try:
            for batch in batches(texts):
                vectors += await to_thread.run_sync(embed, batch, limiter=self.embedding)
        except ValueError as error:
            raise ApiError(400, f"the pipeline refuses the request: {error}") from error
        except Exception as error:
            raise service.admission.explain(error) from error
        service.admission.note_success()
        tokens = sum(map(len, texts))
        service.metrics.observe((), prompt_tokens=tokens)
        return await to_thread.run_sync(embeddings_body, asked, vectors, tokens)

    async def tokenize(self, request: Request) -> JSONResponse:
        """Return the tokens of a text or a chat."""
        content, prompts = await self.bodies.read(request), self.service.prompts
        if is_chat(content):
            chat = parse(content, TokenizeChat, model_name=self.service.model_name)
            tokens = await self._in_thread(lambda: prompts.chat_tokens(chat, is_answered=chat.add_generation_prompt))
            names = chat.return_token_strs
        else:
            text = parse(content, TokenizeText, model_name=self.service.model_name)
            tokens = await self._in_thread(lambda: prompts.tokens_of(text.prompt, with_special=text.add_special_tokens))
            names = text.return_token_strs
        body = {"count": len(tokens), "max_model_len": prompts.context_tokens, "tokens": tokens}
        return JSONResponse({**body, "token_strs": prompts.names_of(tokens) if names else None})

    async def detokenize(self, request: Request) -> JSONResponse:
        """Return the text of tokens, control tokens included."""
        asked, prompts = await self._parsed(request, DetokenizeRequest), self.service.prompts
        prompts.check_tokens("tokens", asked.tokens)
        return JSONResponse({"prompt": await self._in_thread(lambda: prompts.decoder.text_with_special(asked.tokens))})

    async def _parsed(self, request: Request, kind: type[AnyRequest]) -> AnyRequest:
        return parse(await self.bodies.read(request), kind, model_name=self.service.model_name)

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        # With the limiter of all that encodes: a tokenizer is not for several threads at once.
        return await to_thread.run_sync(work, limiter=self.service.submission)

    def _report(self, request: Request, report: dict[str, Any], reason: str | None) -> JSONResponse:
        if self.api_key.is_in(request):
            report["choices"] = len(self.service.admission)
            if reason is not None:
                report["reason"] = reason
        return JSONResponse(report, 200 if reason is None else 503)

    def _card(self) -> dict[str, Any]:
        return {
            "id": self.service.model_name,
            "object": "model",
            "created": self.created,
            "owned_by": "orbitsplit",
            "max_model_len": self.service.prompts.context_tokens,  # vLLM's name, which its clients read
        }
