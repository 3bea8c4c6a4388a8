"""The endpoints: from a request's body to its response."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse

from ._api_error import ApiError
from ._api_key import ApiKey
from ._bodies import RequestBodies
from ._chat_request import ChatRequest
from ._embeddings import Embedder, EmbeddingsRequest, embeddings_body
from ._request_body import AnyRequest, CompletionRequest, parse, unknown_model
from ._response import Response, Service
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
            reason = "the pipeline is recovering from a loss"
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

    async def embeddings(self, request: Request) -> JSONResponse:
        """Return a vector for each text."""
        asked, service, embedder = await self._parsed(request, EmbeddingsRequest), self.service, self.embedder
        if embedder is None:
            raise ApiError(400, "this server's engine runs no encoders", param="model", code="unsupported_model")

        def embed() -> dict[str, Any]:
            texts = [service.prompts.encode(one, "input", is_answered=False) for one in asked.input]
            tokens = sum(map(len, texts))
            try:
                body = embeddings_body(asked, list(embedder.embed(texts)), tokens)
            except ValueError as error:
                raise ApiError(400, f"the pipeline refuses the request: {error}") from error
            except Exception as error:
                raise service.admission.explain(error) from error
            service.metrics.observe((), prompt_tokens=tokens)
            return body

        return JSONResponse(await to_thread.run_sync(embed, limiter=self.embedding))

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
