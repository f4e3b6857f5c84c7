"""OpenAI's error object, and OpenAI's names of parameters. Knows no path."""

from __future__ import annotations

import re
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from frontend.api.http.errors import STATUSES, HttpError, error_headers
from frontend.api.openai.response_models import ErrorResponse
from frontend.errors import Code, RequestError

# OpenAI's `type` of each code.
KINDS: Mapping[Code, str] = {
    Code.INVALID_ARGUMENT: "invalid_request_error",
    Code.FAILED_PRECONDITION: "invalid_request_error",
    Code.OUT_OF_RANGE: "invalid_request_error",
    Code.UNAUTHENTICATED: "authentication_error",
    Code.PERMISSION_DENIED: "permission_error",
    Code.NOT_FOUND: "invalid_request_error",
    Code.ALREADY_EXISTS: "invalid_request_error",
    Code.RESOURCE_EXHAUSTED: "rate_limit_error",
    Code.INTERNAL: "server_error",
    Code.DATA_LOSS: "server_error",
    Code.UNIMPLEMENTED: "invalid_request_error",
    Code.UNAVAILABLE: "server_error",
    Code.DEADLINE_EXCEEDED: "timeout_error",
}

# Reasons that OpenAI's clients know by another word.
_CODES: Mapping[str, str] = {
    "PROMPT_TOO_LONG": "context_length_exceeded",
    "INVALID_FIELD": "invalid_value",
}

# Fields of `switchyard.v1` that have another name at OpenAI; the others keep their last part.
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
    "Generate": "/v1/completions",
}

# The last parts of paths into a turn's tool calls.
_OF_CALL = re.compile(r"(messages\[\d+\]\.tool_calls\[\d+\])\.(name|arguments_json)")


class ApiError(HTTPException):
    """Ends one HTTP request with a status and OpenAI's error object.

    Args:
        kind: the object's ``type``.
        code: a word for programs.
        param: the parameter at fault.
        headers: sent with the response.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.body: ErrorResponse = {
            "error": {"message": message, "type": kind, "param": param, "code": code}
        }

    def response(self) -> JSONResponse:
        """The whole response."""
        return JSONResponse(self.body, self.status_code, self.headers)


def api_error(error: RequestError, names: Mapping[str, str] | None = None) -> ApiError:
    """The HTTP form of a `RequestError`.

    Args:
        names: this request's names of fields of `switchyard.v1`; they precede the usual ones.
    """
    status, kind = STATUSES[error.code], KINDS[error.code]
    param = None if error.field is None else _parameter(error.field, names or {})
    message = error.message_for(lambda field: _parameter(field, names or {}))
    code = _CODES.get(error.reason, error.reason.lower())
    return ApiError(status, kind, message, code=code, param=param, headers=error_headers(error))


def shaped(error: HttpError) -> ApiError:
    """An error of HTTP's own as OpenAI's object."""
    kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
    return ApiError(error.status_code, kind, error.detail, code=error.code, headers=error.headers)


def _parameter(field: str, names: Mapping[str, str]) -> str:
    """OpenAI's name: ``stop_conditions.stop[1]`` is stop[1]; paths that OpenAI has too stay."""
    if field in names:
        return names[field]
    call = _OF_CALL.fullmatch(field)
    if call is not None:
        return f"{call[1]}.function.{call[2].removesuffix('_json')}"
    path, bracket, index = field.partition("[")
    if path == "sampling.logit_bias" and index:  # a JSON object, not a list
        return f"logit_bias.{index.removesuffix(']')}"
    for known in (names, _PARAMETERS):
        if path in known:
            return known[path] + bracket + index
    if path.partition(".")[0] in ("sampling", "stop_conditions", "output"):
        return path.partition(".")[2] + bracket + index
    return field
