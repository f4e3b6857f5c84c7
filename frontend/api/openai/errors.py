"""What a failed request is told over HTTP: statuses, OpenAI's error object, names of parameters.

Owns the one table from `frontend.errors.Code` to HTTP. Knows nothing of sockets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from frontend.errors import Code, RequestError

Headers = list[tuple[bytes, bytes]]

# Status and OpenAI's `type` of each code.
STATUSES: Mapping[Code, tuple[int, str]] = {
    Code.INVALID_ARGUMENT: (400, "invalid_request_error"),
    Code.FAILED_PRECONDITION: (400, "invalid_request_error"),
    Code.UNAUTHENTICATED: (401, "authentication_error"),
    Code.NOT_FOUND: (404, "invalid_request_error"),
    Code.ALREADY_EXISTS: (409, "invalid_request_error"),
    Code.RESOURCE_EXHAUSTED: (429, "rate_limit_error"),
    Code.INTERNAL: (500, "server_error"),
    Code.UNAVAILABLE: (503, "server_error"),
    Code.DEADLINE_EXCEEDED: (504, "timeout_error"),
}

# Reasons for which OpenAI's clients know another word.
_CODES: Mapping[str, str] = {
    "PROMPT_TOO_LONG": "context_length_exceeded",
    "INVALID_FIELD": "invalid_value",
}

# Fields of `switchyard.v1` that OpenAI calls something else; of all others the last part stays.
_PARAMETERS: Mapping[str, str] = {
    "stop_conditions.max_new_tokens": "max_tokens",
    "stop_conditions.min_new_tokens": "min_tokens",
    "sampling.bad_token_ids": "bad_words",
    "output.logprobs": "logprobs",
    "output.prompt_logprobs": "logprobs",
    "prompt.text": "prompt",
    "prompt.tokens.ids": "prompt",
    "text": "prompt",
    "token_ids": "prompt",
    "template_kwargs_json": "chat_template_kwargs",
    "tools_json": "tools",
    "constraint.json_schema": "response_format",
    "constraint.json_object": "response_format",
    "constraint.regex": "guided_regex",
    "constraint.grammar": "guided_grammar",
}


class HttpError(Exception):
    """Ends one HTTP request with a status and OpenAI's error object.

    Args:
        kind: the object's ``type``.
        code: a word for programs.
        param: the parameter at fault.
        headers: sent beside it.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Headers | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or []
        self.body: dict[str, Any] = {
            "error": {"message": message, "type": kind, "param": param, "code": code}
        }


def http_error(error: RequestError, names: Mapping[str, str]) -> HttpError:
    """A `RequestError` as HTTP tells it.

    Args:
        names: what this request called fields of `switchyard.v1`, before the usual names.
    """
    status, kind = STATUSES[error.code]
    param = None if error.field is None else _parameter(error.field, names)
    message = error.message_for(param)
    headers: Headers = []
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % math.ceil(error.retry_after)))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    code = _CODES.get(error.reason, error.reason.lower())
    return HttpError(status, kind, message, code=code, param=param, headers=headers)


def _parameter(field: str, names: Mapping[str, str]) -> str:
    """``stop_conditions.stop[1]`` is stop[1]; what OpenAI also knows by path keeps its path."""
    path, bracket, index = field.partition("[")
    for known in (names, _PARAMETERS):
        if path in known:
            return known[path] + bracket + index
    if path.partition(".")[0] in ("sampling", "stop_conditions", "output"):
        return path.partition(".")[2] + bracket + index
    return field
