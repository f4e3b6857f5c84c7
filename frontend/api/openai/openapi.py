"""The API's description: /openapi.json, made of the models of requests and responses, and /docs.

Owns what the description says of each path, its responses and its errors. Knows nothing of the
served model, so that it can be shown without a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from frontend.api.http.body import BODY_SECONDS
from frontend.api.http.errors import STATUSES
from frontend.api.openai.load import ExpertLoad, Load, ServerInfo
from frontend.api.openai.parameters.models import ChatBody, CompletionBody
from frontend.api.openai.response_models import (
    ChatChunk,
    ChatCompletion,
    Completion,
    CompletionChunk,
    Detokenized,
    ErrorResponse,
    Health,
    Model,
    ModelList,
    Tokenized,
    Version,
)
from frontend.api.openai.responses.models import ResponsesBody
from frontend.api.openai.responses.objects import Response, ResponseEvent
from frontend.api.openai.token_ids import DetokenizeBody, TokenizeBody
from frontend.bounds import MAX_BODY_BYTES
from switchyard.release import release

Schema = dict[str, Any]

DOCS_HEADERS: Mapping[str, str] = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'",
    "x-content-type-options": "nosniff",
}

_REQUESTS = (ChatBody, CompletionBody, ResponsesBody, TokenizeBody, DetokenizeBody)
_RESPONSES = (
    ChatCompletion, ChatChunk, Completion, CompletionChunk, Model, ModelList, Health, ErrorResponse,
    Response, ResponseEvent, Version, Tokenized, Detokenized, Load, ServerInfo, ExpertLoad,
)  # fmt: skip
_ERRORS: Mapping[int, str] = {
    400: "A parameter, named by `param`, is wrong; or the model cannot do what is requested.",
    401: "The API key is missing or not valid.",
    403: "The API key has no right to go before others (`priority` below 0); or the Host or the "
    "Origin is not one that a server without keys answers to.",
    404: "No such model, or no such path.",
    405: "The path takes another method, which `Allow` names.",
    408: f"The body was not complete within {BODY_SECONDS:g} s.",
    409: "The id names another live request.",
    413: f"The body is larger than {MAX_BODY_BYTES} bytes, or has too many values.",
    415: "The body is not said to be JSON, or has an encoding other than gzip and deflate.",
    429: "The queue is full, or the key has too many live requests; retry after `Retry-After`.",
    500: "A bug; the log has the rest under the request's id.",
    503: "The model is loading, the server is shutting down, or the workers are lost; or bodies "
    "that are being sent hold too much.",
    504: "The request waited in the queue for longer than it may.",
}
_READING_ERRORS = (400, 401, 403, 405, 500, 503)
_POST_ERRORS = tuple(_ERRORS)


def openapi_document(*, has_metrics: bool) -> Schema:
    """The OpenAPI 3.1 document.

    Args:
        has_metrics: whether there is a /metrics.
    """
    assert set(STATUSES.values()) <= set(_ERRORS)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Switchyard",
            "version": release(),
            "summary": "The OpenAI-compatible HTTP API.",
        },
        "paths": _paths(has_metrics),
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Needed where the server has keys (--api-key-file).",
                }
            },
            "headers": {
                "RequestId": {
                    "description": "The request's id in logs and for Abort.",
                    "schema": {"type": "string"},
                },
                "RetryAfter": {
                    "description": "Seconds after which another try makes sense.",
                    "schema": {"type": "integer"},
                },
            },
            "parameters": {
                "RequestId": _header(
                    "x-request-id",
                    "Names the request; 1 to 128 printable ASCII characters without blanks.",
                ),
                "TraceParent": _header("traceparent", "The W3C trace that the request joins."),
            },
        },
    }


def docs_page() -> str:
    """A page that shows /openapi.json; it loads nothing from elsewhere."""
    return (Path(__file__).parent / "docs.html").read_text(encoding="utf-8")


def _paths(has_metrics: bool) -> Schema:
    model_name = {
        "name": "model", "in": "path", "required": True, "schema": {"type": "string"},
    }  # fmt: skip
    paths: Schema = {
        "/v1/chat/completions": {
            "post": _generation(
                "Complete a chat", "ChatBody", whole="ChatCompletion", chunk="ChatChunk"
            )
        },
        "/v1/completions": {
            "post": _generation(
                "Continue prompts", "CompletionBody", whole="Completion", chunk="CompletionChunk"
            )
        },
        "/v1/responses": {
            "post": _generation(
                "Answer items with items",
                "ResponsesBody",
                whole="Response",
                chunk="ResponseEvent",
                last="response.completed, response.incomplete or response.failed",
            )
        },
        "/v1/models": {"get": _reading("List the served model", _json("ModelList"))},
        "/v1/models/{model}": {
            "get": {
                **_reading("Describe the served model", _json("Model"), 404),
                "parameters": [model_name, *_parameters()],
            }
        },
        "/health": {
            "get": _open(
                "Tell whether requests are served",
                {200: _json("Health"), 503: _json("Health", "Not served now; see `reason`.")},
            )
        },
        "/ping": {
            "get": _open(
                "As /health", {200: _json("Health"), 503: _json("Health", "Not served now.")}
            )
        },
        "/version": {"get": _open("Tell the release", {200: _json("Version")})},
        "/load": {"get": _reading("Tell how busy the server is", _json("Load"))},
        "/server_info": {"get": _reading("Describe server and workers", _json("ServerInfo"))},
        "/expert_load": {"get": _reading("Count the tokens of every expert", _json("ExpertLoad"))},
        "/tokenize": {
            "post": _question("Turn a prompt or a chat into token ids", "TokenizeBody", "Tokenized")
        },
        "/detokenize": {
            "post": _question("Turn token ids into text", "DetokenizeBody", "Detokenized")
        },
        "/openapi.json": {
            "get": _open("This document", {200: _content("application/json", {"type": "object"})})
        },
        "/docs": {"get": _open("A page of this document", {200: _content("text/html", _STRING)})},
    }
    if has_metrics:
        paths["/metrics"] = {
            "get": _reading("Metrics for Prometheus", _content("text/plain", _STRING))
        }
    return paths


_STRING: Schema = {"type": "string"}


def _generation(summary: str, body: str, *, whole: str, chunk: str, last: str = "[DONE]") -> Schema:
    ok = _json(whole, f"The whole answer; or, with `stream`, events of {chunk}, then {last}.")
    ok["content"]["text/event-stream"] = {"schema": _ref(chunk)}
    return _posted(summary, body, ok)


def _question(summary: str, body: str, answer: str) -> Schema:
    return _posted(summary, body, _json(answer))


def _posted(summary: str, body: str, ok: Schema) -> Schema:
    return {
        "summary": summary,
        "parameters": _parameters(),
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _ref(body)}},
        },
        "responses": _responses({200: ok}, _POST_ERRORS),
        "security": [{}, {"key": []}],
    }


def _reading(summary: str, ok: Schema, *errors: int) -> Schema:
    return {
        "summary": summary,
        "parameters": _parameters(),
        "responses": _responses({200: ok}, sorted({*_READING_ERRORS, *errors})),
        "security": [{}, {"key": []}],
    }


def _open(summary: str, answers: Mapping[int, Schema]) -> Schema:
    return {"summary": summary, "responses": _responses(answers, (403, 405, 500)), "security": [{}]}


def _responses(answers: Mapping[int, Schema], errors: Any) -> Schema:
    responses = {str(status): answer for status, answer in answers.items()}
    for status in errors:
        responses[str(status)] = _json("ErrorResponse", _ERRORS[status])
    for status, response in responses.items():
        response["headers"] = {"x-request-id": {"$ref": "#/components/headers/RequestId"}}
        if status in ("429", "503"):
            response["headers"]["retry-after"] = {"$ref": "#/components/headers/RetryAfter"}
    return responses


def _json(model: str, description: str = "Success.") -> Schema:
    return _content("application/json", _ref(model), description)


def _content(media_type: str, schema: Schema, description: str = "Success.") -> Schema:
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _ref(model: str) -> Schema:
    return {"$ref": f"#/components/schemas/{model}"}


def _parameters() -> list[Schema]:
    return [{"$ref": f"#/components/parameters/{name}"} for name in ("RequestId", "TraceParent")]


def _header(name: str, description: str) -> Schema:
    return {
        "name": name, "in": "header", "required": False, "description": description,
        "schema": {"type": "string"},
    }  # fmt: skip


def _schemas() -> Schema:
    """A schema for each model, by its name."""
    requests = [(model, "validation", TypeAdapter(model)) for model in _REQUESTS]
    responses = [(model, "serialization", TypeAdapter(model)) for model in _RESPONSES]
    _, document = TypeAdapter.json_schemas(
        [*requests, *responses],  # type: ignore[list-item]
        ref_template="#/components/schemas/{model}",
    )
    return dict(document["$defs"])
