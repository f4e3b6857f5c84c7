"""The OpenAI-compatible API as a Starlette application: routes, keys, request ids, errors.

Owns which path does what, and which error a response is. `frontend.service` does all work.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from frontend.api.openai.body import read_object
from frontend.api.openai.chat import read_chat
from frontend.api.openai.completions import read_completion
from frontend.api.openai.errors import ApiError, api_error
from frontend.api.openai.generation import GenerationResponse, Job
from frontend.api.openai.logprobs import TokenTexts
from frontend.api.openai.openapi import DOCS_HEADERS, docs_page, openapi_document
from frontend.api.openai.response_models import Health, Model, ModelList
from frontend.errors import RequestError, internal_error, invalid_field
from frontend.records import Caller
from frontend.service.service import Service

logger = logging.getLogger(__name__)

Authenticate = Callable[[str | None], str]
Metrics = Callable[[], tuple[bytes, str]]

# What orchestrators and browsers read without a key; nothing of it is about the model or a request.
OPEN_PATHS = frozenset({"/health", "/openapi.json", "/docs"})

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


def without_keys(authorization: str | None) -> str:
    """Accepts every caller, under no name."""
    return ""


def openai_app(
    service: Service,
    *,
    model: str,
    authenticate: Authenticate = without_keys,
    metrics: Metrics | None = None,
) -> Starlette:
    """The application.

    Args:
        service: does the work.
        model: served name.
        authenticate: from the Authorization header to the name of its key; raises
            UNAUTHENTICATED. `OPEN_PATHS` need no key.
        metrics: text for Prometheus and its content type; None: there is no /metrics.
    """
    endpoints = _Endpoints(service, model, metrics)
    app = Starlette(
        routes=endpoints.routes(),
        middleware=[
            Middleware(_RequestIds),
            Middleware(_Authentication, authenticate=authenticate),
        ],
        exception_handlers={
            HTTPException: _on_http_error,
            RequestError: _on_request_error,
            ClientDisconnect: _on_disconnect,
        },
    )
    app.router.redirect_slashes = False
    return app


class _Endpoints:
    """The functions behind the paths."""

    def __init__(self, service: Service, model: str, metrics: Metrics | None) -> None:
        self._service = service
        self._model = model
        self._metrics = metrics
        self._texts = TokenTexts(service)
        self._started = int(time.time())
        self._openapi = JSONResponse(openapi_document(has_metrics=metrics is not None))
        self._docs = HTMLResponse(docs_page(), headers=DOCS_HEADERS)

    def routes(self) -> list[Route]:
        """Every path and its method; HEAD goes with GET."""
        get: list[tuple[str, Any]] = [
            ("/health", self._health),
            ("/openapi.json", self._openapi_json),
            ("/docs", self._docs_page),
            ("/v1/models", self._models),
            ("/v1/models/{name:path}", self._one_model),
        ]
        if self._metrics is not None:
            get.append(("/metrics", self._scrape))
        post: list[tuple[str, Any]] = [
            ("/v1/chat/completions", self._chat),
            ("/v1/completions", self._completions),
        ]
        return [Route(path, endpoint, methods=["GET"]) for path, endpoint in get] + [
            Route(path, endpoint, methods=["POST"]) for path, endpoint in post
        ]

    async def _health(self, request: Request) -> Response:
        why = self._service.why_not_ready()
        health: Health = {"status": "unavailable", "reason": why} if why else {"status": "ok"}
        return JSONResponse(health, 503 if why else 200)

    async def _openapi_json(self, request: Request) -> Response:
        return self._openapi

    async def _docs_page(self, request: Request) -> Response:
        return self._docs

    async def _scrape(self, request: Request) -> Response:
        assert self._metrics is not None, "there is no route to it"
        data, content_type = self._metrics()
        return Response(data, headers={"content-type": content_type})

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
        return await self._generation(request, read_chat)

    async def _completions(self, request: Request) -> GenerationResponse:
        return await self._generation(request, read_completion)

    async def _generation(
        self, request: Request, read: Callable[[Mapping[str, Any], str, str], Job]
    ) -> GenerationResponse:
        values = await read_object(request)
        try:
            job = read(values, request.state.request_id, self._model)
        except RecursionError as error:  # JSON that can just be parsed may be too deep to write
            raise invalid_field("body", "is nested too deep; send flatter JSON") from error
        return GenerationResponse(job, self._service, self._texts, request.state.caller)


class _RequestIds:
    """Names each request, sends the name back, and answers a bug with it.

    The name is the client's x-request-id where it is a valid one. The outermost middleware:
    Starlette's own answer to a bug knows no request id, and raises the bug again.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI calls it."""
        assert scope["type"] == "http"
        given = _header(scope, b"x-request-id") or ""
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        is_begun = False

        async def send_with_id(message: Message) -> None:
            nonlocal is_begun
            if message["type"] == "http.response.start":
                is_begun = True
                message["headers"] = [
                    *message["headers"], (b"x-request-id", request_id.encode())
                ]  # fmt: skip
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            logger.exception("request %s failed", request_id)
            if not is_begun:
                response = api_error(internal_error(request_id)).response()
                await response(scope, receive, send_with_id)


class _Authentication:
    """Refuses a request without a valid key before its path is looked at or its body is read."""

    def __init__(self, app: ASGIApp, authenticate: Authenticate) -> None:
        self._app = app
        self._authenticate = authenticate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI calls it."""
        if scope["path"] not in OPEN_PATHS:
            try:
                key = self._authenticate(_header(scope, b"authorization"))
            except RequestError as error:
                await api_error(error).response()(scope, receive, send)
                return
            client = scope.get("client")
            scope["state"]["caller"] = Caller(
                key=key,
                peer=f"{client[0]}:{client[1]}" if client else "",
                traceparent=_header(scope, b"traceparent") or "",
            )
        await self._app(scope, receive, send)


def _header(scope: Scope, name: bytes) -> str | None:
    """The last header of that name; None when it was not sent."""
    found = [value for key, value in scope["headers"] if key == name]
    return found[-1].decode("latin-1") if found else None


async def _on_http_error(request: Request, error: Exception) -> Response:
    """The response to an `ApiError`, or to a path or method that Starlette did not find."""
    assert isinstance(error, HTTPException)
    if not isinstance(error, ApiError):
        error = _wrong_method(request, error) if error.status_code == 405 else _not_found()
    return error.response()


async def _on_request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return api_error(error).response()


async def _on_disconnect(request: Request, error: Exception) -> Response:
    """The response to a client that has left before its body's end: it is not sent on."""
    return Response(status_code=499)


def _wrong_method(request: Request, error: HTTPException) -> ApiError:
    allowed = sorted((error.headers or {}).get("Allow", "").split(", "))
    return ApiError(
        405,
        "invalid_request_error",
        f"{request.scope['path']} takes {allowed[0]}",
        code="method_not_allowed",
        headers={"allow": ", ".join(allowed)},
    )


def _not_found() -> ApiError:
    return ApiError(
        404,
        "invalid_request_error",
        "no such path here; see /v1/models, /v1/chat/completions, /v1/completions, /health, /docs",
        code="not_found",
    )
