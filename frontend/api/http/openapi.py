"""The port's description, /openapi.json: made of the models of requests and responses of each API.

Owns what it says of operations whatever their API, and of errors. Knows no path, and nothing of the
served model, so that it can be shown without a key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from frontend.api.http.body import BODY_SECONDS
from frontend.api.http.errors import STATUSES
from frontend.bounds import MAX_BODY_BYTES
from switchyard.release import release

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
_ERRORS: Mapping[int, str] = {
    400: "A parameter, which is named, is wrong; or the model cannot do what is requested.",
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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What one API says of itself.

    Attributes:
        requests, responses: models that its paths refer to by name.
    """

    paths: Schema
    requests: Sequence[Any]
    responses: Sequence[Any]


def openapi_document(apis: Sequence[Described]) -> Schema:
    """The OpenAPI 3.1 document."""
    assert set(STATUSES.values()) <= set(_ERRORS)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Switchyard",
            "version": release(),
            "summary": "The APIs of OpenAI and Anthropic over HTTP.",
        },
        "paths": {path: each for api in apis for path, each in api.paths.items()},
        "components": {
            "schemas": _schemas(apis),
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Needed where the server has keys (--api-key-file).",
                },
                "x-api-key": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "x-api-key",
                    "description": "The same in another header.",
                },
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


class Operations:
    """Describes operations of one API.

    Args:
        error: the model of its errors.
    """

    def __init__(self, error: str) -> None:
        self._error = error

    def generation(
        self, summary: str, body: str, *, whole: str, chunk: str, last: str = "[DONE]"
    ) -> Schema:
        """A POST that is answered whole or by a stream."""
        ok = json_of(whole, f"The whole answer; or, with `stream`, events of {chunk}, then {last}.")
        ok["content"]["text/event-stream"] = {"schema": _ref(chunk)}
        return self._posted(summary, body, ok)

    def question(self, summary: str, body: str, answer: str) -> Schema:
        """A POST with one answer."""
        return self._posted(summary, body, json_of(answer))

    def reading(self, summary: str, ok: Schema, *errors: int) -> Schema:
        """A GET that needs a key."""
        return {
            "summary": summary,
            "parameters": parameters(),
            "responses": self._responses({200: ok}, sorted({*_READING_ERRORS, *errors})),
            "security": _SECURITY,
        }

    def open(self, summary: str, answers: Mapping[int, Schema]) -> Schema:
        """A GET that needs none."""
        responses = self._responses(answers, (403, 405, 500))
        return {"summary": summary, "responses": responses, "security": [{}]}

    def _posted(self, summary: str, body: str, ok: Schema) -> Schema:
        return {
            "summary": summary,
            "parameters": parameters(),
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": _ref(body)}},
            },
            "responses": self._responses({200: ok}, _POST_ERRORS),
            "security": _SECURITY,
        }

    def _responses(self, answers: Mapping[int, Schema], errors: Sequence[int]) -> Schema:
        responses = {str(status): answer for status, answer in answers.items()}
        for status in errors:
            responses[str(status)] = json_of(self._error, _ERRORS[status])
        for key, response in responses.items():
            response["headers"] = {"x-request-id": {"$ref": "#/components/headers/RequestId"}}
            if key in ("429", "503"):
                response["headers"]["retry-after"] = {"$ref": "#/components/headers/RetryAfter"}
        return responses


_SECURITY: list[Schema] = [{}, {"key": []}, {"x-api-key": []}]


def json_of(model: str, description: str = "Success.") -> Schema:
    """A response that is a model's JSON."""
    return content_of("application/json", _ref(model), description)


def content_of(media_type: str, schema: Schema, description: str = "Success.") -> Schema:
    """A response of a media type."""
    return {"description": description, "content": {media_type: {"schema": schema}}}


def parameters() -> list[Schema]:
    """Headers that every request may have."""
    return [{"$ref": f"#/components/parameters/{name}"} for name in ("RequestId", "TraceParent")]


def _ref(model: str) -> Schema:
    return {"$ref": f"#/components/schemas/{model}"}


def _header(name: str, description: str) -> Schema:
    return {
        "name": name, "in": "header", "required": False, "description": description,
        "schema": {"type": "string"},
    }  # fmt: skip


def _schemas(apis: Sequence[Described]) -> Schema:
    """A schema for each model, by its name."""
    requests = [(each, "validation", TypeAdapter(each)) for api in apis for each in api.requests]
    responses = [
        (each, "serialization", TypeAdapter(each)) for api in apis for each in api.responses
    ]
    _, document = TypeAdapter.json_schemas(
        [*requests, *responses],  # type: ignore[list-item]
        ref_template="#/components/schemas/{model}",
    )
    return dict(document["$defs"])
