"""Anthropic's Messages API: which path does what, and which error a response is.

Requests for models are meant for it where they name a version of it. `frontend.service` does all
work.
"""

from __future__ import annotations

import datetime
import functools

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route
from starlette.types import Scope

from frontend.api.anthropic.errors import error_body, http_error
from frontend.api.anthropic.job import MessagesJob
from frontend.api.anthropic.parameters import Asked, read_messages, read_prompt
from frontend.api.anthropic.response_models import ModelInfo, ModelPage, TokenCount
from frontend.api.http.app import HttpApi
from frontend.api.http.body import Uploads
from frontend.api.http.errors import HttpError
from frontend.api.http.generation import GenerationResponse
from frontend.errors import RequestError
from frontend.service.service import Service

_VERSION = b"anthropic-version"
_MODELS = "/v1/models"


def anthropic_api(service: Service, *, model: str, uploads: Uploads) -> HttpApi:
    """The API.

    Args:
        service: does the work.
        model: served name.
        uploads: reads the bodies.
    """
    return HttpApi(
        routes=_Endpoints(service, model, uploads).routes(),
        is_asked=_is_asked,
        not_found=_not_found,
        error_response=_error_response,
    )


class _ModelsRoute(Route):
    """A path that another API has too; this one's clients say so by a header."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches(scope) if _is_asked(scope) else (Match.NONE, {})


class _Endpoints:
    """The functions behind the paths."""

    def __init__(self, service: Service, model: str, uploads: Uploads) -> None:
        self._service = service
        self._model = model
        self._uploads = uploads
        self._started = datetime.datetime.now(datetime.UTC)

    def routes(self) -> list[Route]:
        """Every path and its method; HEAD goes with GET."""
        return [
            Route("/v1/messages", self._messages, methods=["POST"]),
            Route("/v1/messages/count_tokens", self._count, methods=["POST"]),
            _ModelsRoute(_MODELS, self._models, methods=["GET"]),
            _ModelsRoute(_MODELS + "/{name:path}", self._one_model, methods=["GET"]),
        ]

    async def _messages(self, request: Request) -> GenerationResponse:
        def read(values: dict[str, object]) -> Asked:
            return read_messages(values, request.state.request_id, self._service.tool_format)

        job = MessagesJob(
            asked=await self._uploads.read(request, read),
            request_id=request.state.request_id,
            model=self._model,
            service=self._service,
            caller=request.state.caller,
        )
        return GenerationResponse(job)

    async def _count(self, request: Request) -> Response:
        read = functools.partial(read_prompt, tool_format=self._service.tool_format)
        chat = await self._uploads.read(request, read)
        self._check_model(chat.request.model)
        try:
            ids = await self._service.tokenize_chat(chat)
        except RequestError as error:
            raise http_error(error, {}) from error
        count: TokenCount = {"input_tokens": len(ids)}
        return JSONResponse(count)

    async def _models(self, request: Request) -> Response:
        page: ModelPage = {
            "data": [self._model_info()],
            "first_id": self._model,
            "last_id": self._model,
            "has_more": False,
        }
        return JSONResponse(page)

    async def _one_model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return JSONResponse(self._model_info())

    def _check_model(self, asked: str) -> None:
        if asked and asked != self._model:
            message = f"no such model here; this server has {self._model}"
            raise HttpError(404, message, code="model_not_found")

    def _model_info(self) -> ModelInfo:
        context = self._service.model_info().max_context_tokens
        return {
            "id": self._model,
            "type": "model",
            "display_name": self._model,
            "created_at": self._started.isoformat(timespec="seconds").replace("+00:00", "Z"),
            "lifecycle": "active",
            "max_input_tokens": context - 1,
            "max_tokens": context - 1,
        }


def _is_asked(scope: Scope) -> bool:
    path = scope["path"]
    if _is_below(path, _MODELS):
        return any(name == _VERSION for name, _ in scope["headers"])
    return _is_below(path, "/v1/messages")


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(root + "/")


def _not_found(path: str) -> str:
    return "not offered here; use /v1/messages, and see /docs for what there is"


def _error_response(scope: Scope, error: HTTPException | RequestError) -> Response:
    if isinstance(error, RequestError):
        error = http_error(error)
    body = error_body(error.status_code, error.detail, scope["state"]["request_id"])
    return JSONResponse(body, error.status_code, error.headers)
