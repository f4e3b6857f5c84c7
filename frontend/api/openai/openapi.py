"""What /openapi.json says of the API's paths, and /docs, the page that shows it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from frontend.api.http.openapi import (
    STRING,
    Described,
    Operations,
    Schema,
    content_of,
    json_of,
    parameters,
)
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
_API = Operations("ErrorResponse")


def described(*, has_metrics: bool) -> Described:
    """The API.

    Args:
        has_metrics: whether there is a /metrics.
    """
    return Described(paths=_paths(has_metrics), requests=_REQUESTS, responses=_RESPONSES)


def docs_page() -> str:
    """A page that shows /openapi.json; it loads nothing from elsewhere."""
    return (Path(__file__).parent / "docs.html").read_text(encoding="utf-8")


def _paths(has_metrics: bool) -> Schema:
    model_name = {
        "name": "model", "in": "path", "required": True, "schema": {"type": "string"},
    }  # fmt: skip
    paths: Schema = {
        "/v1/chat/completions": {
            "post": _API.generation(
                "Complete a chat", "ChatBody", whole="ChatCompletion", chunk="ChatChunk"
            )
        },
        "/v1/completions": {
            "post": _API.generation(
                "Continue prompts", "CompletionBody", whole="Completion", chunk="CompletionChunk"
            )
        },
        "/v1/responses": {
            "post": _API.generation(
                "Answer items with items",
                "ResponsesBody",
                whole="Response",
                chunk="ResponseEvent",
                last="response.completed, response.incomplete or response.failed",
            )
        },
        "/v1/models": {"get": _API.reading("List the served model", json_of("ModelList"))},
        "/v1/models/{model}": {
            "get": {
                **_API.reading("Describe the served model", json_of("Model"), 404),
                "parameters": [model_name, *parameters()],
            }
        },
        "/health": {
            "get": _API.open(
                "Tell whether requests are served",
                {200: json_of("Health"), 503: json_of("Health", "Not served now; see `reason`.")},
            )
        },
        "/ping": {
            "get": _API.open(
                "As /health", {200: json_of("Health"), 503: json_of("Health", "Not served now.")}
            )
        },
        "/version": {"get": _API.open("Tell the release", {200: json_of("Version")})},
        "/load": {"get": _API.reading("Tell how busy the server is", json_of("Load"))},
        "/server_info": {"get": _API.reading("Describe server and workers", json_of("ServerInfo"))},
        "/expert_load": {
            "get": _API.reading("Count the tokens of every expert", json_of("ExpertLoad"))
        },
        "/tokenize": {
            "post": _API.question(
                "Turn a prompt or a chat into token ids", "TokenizeBody", "Tokenized"
            )
        },
        "/detokenize": {
            "post": _API.question("Turn token ids into text", "DetokenizeBody", "Detokenized")
        },
        "/openapi.json": {
            "get": _API.open(
                "This document", {200: content_of("application/json", {"type": "object"})}
            )
        },
        "/docs": {
            "get": _API.open("A page of this document", {200: content_of("text/html", STRING)})
        },
    }
    if has_metrics:
        paths["/metrics"] = {
            "get": _API.reading("Metrics for Prometheus", content_of("text/plain", STRING))
        }
    return paths
