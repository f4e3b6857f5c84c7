"""The OpenAI-compatible API: which path does what, and which error a response is.

`frontend.service` does all work.
"""

from __future__ import annotations

import functools
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Scope

from frontend.api.http.app import HttpApi
from frontend.api.http.body import Uploads
from frontend.api.http.errors import HttpError
from frontend.api.http.generation import GenerationResponse, Job
from frontend.api.http.long_json import LongJSONResponse
from frontend.api.http.openapi import Described, Schema, openapi_document
from frontend.api.openai.chat import read_chat
from frontend.api.openai.completions import read_completion
from frontend.api.openai.errors import ApiError, api_error, shaped
from frontend.api.openai.generation import Job as OpenAIJob
from frontend.api.openai.load import as_json
from frontend.api.openai.logprobs import TokenTexts
from frontend.api.openai.openapi import DOCS_HEADERS, described, docs_page
from frontend.api.openai.response_models import Health, Model, ModelList, Version
from frontend.api.openai.responses.job import ResponseJob
from frontend.api.openai.responses.request import read_response
from frontend.api.openai.token_ids import detokenized, tokenized
from frontend.errors import RequestError
from frontend.records import Caller
from frontend.service.service import Service
from switchyard.release import release

_R = TypeVar("_R")

Metrics = Callable[[], tuple[bytes, str]]

# What other servers have; a client that asks for it here is told what there is instead.
_NOT_OFFERED = (
    "/v1/embeddings", "/v1/rerank", "/v1/score", "/v1/audio/",
    "/v1/images/", "/v1/videos", "/v1/realtime", "/v1/moderations", "/v1/files", "/v1/uploads",
    "/v1/batches", "/v1/fine_tuning/", "/v1/assistants", "/v1/threads", "/v1/vector_stores",
    "/v1/conversations", "/v1/evals", "/api/chat", "/api/generate", "/api/tags", "/generate",
)  # fmt: skip


def openai_api(
    service: Service,
    *,
    model: str,
    uploads: Uploads,
    metrics: Metrics | None = None,
    others: Sequence[Described] = (),
) -> HttpApi:
    """The API; every request is meant for it.

    Args:
        service: does the work.
        model: served name.
        uploads: reads the bodies.
        metrics: text for Prometheus and its content type; None: there is no /metrics.
        others: APIs that /openapi.json describes too.
    """
    document = openapi_document([described(has_metrics=metrics is not None), *others])
    return HttpApi(
        routes=_Endpoints(service, model, uploads, metrics, document).routes(),
        is_asked=lambda scope: True,
        not_found=_not_found,
        error_response=_error_response,
    )


class _Endpoints:
    """The functions behind the paths."""

    def __init__(
        self,
        service: Service,
        model: str,
        uploads: Uploads,
        metrics: Metrics | None,
        document: Schema,
    ) -> None:
        self._service = service
        self._model = model
        self._uploads = uploads
        self._metrics = metrics
        self._texts = TokenTexts(service)
        self._started = int(time.time())
        self._openapi = JSONResponse(document)
        self._docs = HTMLResponse(docs_page(), headers=DOCS_HEADERS)

    def routes(self) -> list[Route]:
        """Every path and its method; HEAD goes with GET."""
        get: list[tuple[str, Any]] = [
            ("/health", self._health),
            ("/ping", self._health),
            ("/version", self._version),
            ("/openapi.json", self._openapi_json),
            ("/docs", self._docs_page),
            ("/load", self._load),
            ("/server_info", self._server_info),
            ("/expert_load", self._expert_load),
            ("/v1/models", self._models),
            ("/v1/models/{name:path}", self._one_model),
        ]
        if self._metrics is not None:
            get.append(("/metrics", self._scrape))
        post: list[tuple[str, Any]] = [
            ("/v1/chat/completions", self._chat),
            ("/v1/completions", self._completions),
            ("/v1/responses", self._responses),
            ("/tokenize", self._tokenize),
            ("/detokenize", self._detokenize),
        ]
        return [Route(path, endpoint, methods=["GET"]) for path, endpoint in get] + [
            Route(path, endpoint, methods=["POST"]) for path, endpoint in post
        ]

    async def _health(self, request: Request) -> Response:
        why = self._service.why_not_ready()
        health: Health = {"status": "unavailable", "reason": why} if why else {"status": "ok"}
        return JSONResponse(health, 503 if why else 200)

    async def _version(self, request: Request) -> Response:
        version: Version = {"version": release()}
        return JSONResponse(version)

    async def _openapi_json(self, request: Request) -> Response:
        return self._openapi

    async def _docs_page(self, request: Request) -> Response:
        return self._docs

    async def _scrape(self, request: Request) -> Response:
        assert self._metrics is not None, "there is no route to it"
        data, content_type = self._metrics()
        return Response(data, headers={"content-type": content_type})

    async def _load(self, request: Request) -> Response:
        return JSONResponse(as_json(self._service.load()))

    async def _server_info(self, request: Request) -> Response:
        return JSONResponse(as_json(self._service.server_info()))

    async def _expert_load(self, request: Request) -> Response:
        return JSONResponse(as_json(await self._service.expert_load()))

    async def _models(self, request: Request) -> Response:
        models: ModelList = {"object": "list", "data": [self._model_object()]}
        return JSONResponse(models)

    async def _one_model(self, request: Request) -> Response:
        if request.path_params["name"] != self._model:
            raise ApiError(
                404,
                "invalid_request_error",
                "no such model here; GET /v1/models lists what there is",
                code="model_not_found",
                param="model",
            )
        return JSONResponse(self._model_object())

    def _model_object(self) -> Model:
        return {
            "id": self._model,
            "object": "model",
            "created": self._started,
            "owned_by": "switchyard",
            "max_model_len": self._service.model_info().max_context_tokens,
        }

    async def _chat(self, request: Request) -> GenerationResponse:
        read = functools.partial(read_chat, tool_format=self._service.tool_format)
        return await self._generation(request, read, BoundJob)

    async def _completions(self, request: Request) -> GenerationResponse:
        return await self._generation(request, read_completion, BoundJob)

    async def _responses(self, request: Request) -> GenerationResponse:
        read = functools.partial(read_response, tool_format=self._service.tool_format)
        return await self._generation(request, read, ResponseJob)

    async def _generation(
        self,
        request: Request,
        read: Callable[[Mapping[str, Any], str, str], _R],
        bound: Callable[[_R, Service, TokenTexts, Caller], Job],
    ) -> GenerationResponse:
        def asked(values: Mapping[str, Any]) -> _R:
            return read(values, request.state.request_id, self._model)

        job = await self._uploads.read(request, asked)
        return GenerationResponse(bound(job, self._service, self._texts, request.state.caller))

    async def _tokenize(self, request: Request) -> LongJSONResponse:
        values = await self._uploads.read(request, _as_it_is)
        answer = await tokenized(values, self._service, self._texts, self._model)
        return LongJSONResponse(answer)

    async def _detokenize(self, request: Request) -> Response:
        values = await self._uploads.read(request, _as_it_is)
        try:
            return JSONResponse(await detokenized(values, self._service, self._model))
        except RequestError as error:
            raise api_error(error, {"token_ids": "tokens"}) from error


def _as_it_is(values: dict[str, Any]) -> dict[str, Any]:
    return values


def _error_response(scope: Scope, error: HTTPException | RequestError) -> Response:
    if isinstance(error, HttpError):
        error = shaped(error)
    elif isinstance(error, RequestError):
        error = api_error(error)
    assert isinstance(error, ApiError)
    return error.response()


def _not_found(path: str) -> str:
    if path.startswith("/v1/responses/"):
        return "no response is stored here; keep the answer of POST /v1/responses"
    if any(path == each or path.startswith(each.rstrip("/") + "/") for each in _NOT_OFFERED):
        return "not offered here; use /v1/chat/completions, and see /docs for what there is"
    return (
        "no such path here; see /v1/models, /v1/chat/completions, /v1/completions, /v1/responses, "
        "/health, /docs"
    )


class BoundJob:
    """A job with what it works on: a `frontend.api.http.generation.Job`."""

    names_events = False
    last_event = b"data: [DONE]\n\n"

    def __init__(self, job: OpenAIJob, service: Service, texts: TokenTexts, caller: Caller) -> None:
        self.stream = job.stream
        self._job = job
        self._parts = service, texts, caller

    def chunks(self) -> AsyncGenerator[Sequence[Mapping[str, object]], None]:
        """Chunks as they come."""
        return self._job.chunks(*self._parts)

    async def answer(self) -> Mapping[str, object]:
        """The whole answer."""
        return await self._job.answer(*self._parts)

    def refusal(self, error: RequestError) -> ApiError:
        """OpenAI's error, with the request's own names."""
        return api_error(error, self._job.names)

    def error_events(self, error: RequestError) -> Sequence[Mapping[str, object]]:
        """OpenAI's error object."""
        return [self.refusal(error).body]
