"""Anthropic's error object, and Anthropic's names of parameters. Knows no path."""

from __future__ import annotations

from collections.abc import Mapping

from frontend.api.anthropic.response_models import MessagesError
from frontend.api.http.errors import STATUSES, HttpError, error_headers
from frontend.errors import RequestError

_KINDS: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
# Words by which clients know that a conversation must become shorter.
_TOO_LONG = "prompt is too long: "

# Fields of `switchyard.v1` that have another name at Anthropic; the others keep their last part.
_PARAMETERS: Mapping[str, str] = {
    "stop_conditions.max_new_tokens": "max_tokens",
    "stop_conditions.stop": "stop_sequences",
    "reasoning.max_tokens": "thinking.budget_tokens",
    "reasoning.effort": "output_config.effort",
    "template_kwargs_json": "thinking",
    "tools_json": "tools",
    "Generate": "/v1/completions",
}
# Of an error that was found in a body, whose paths into messages are its own.
_OF_BODY: Mapping[str, str] = {"messages": "messages"}


def error_body(status: int, message: str, request_id: str) -> MessagesError:
    """The error object of a status."""
    kind = _KINDS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {
        "type": "error",
        "error": {"type": kind, "message": message},
        "request_id": request_id,
    }


def http_error(error: RequestError, names: Mapping[str, str] = _OF_BODY) -> HttpError:
    """The HTTP form of a `RequestError`.

    Args:
        names: this request's names of fields of `switchyard.v1`; they precede the usual ones.
    """
    message = error.message_for(lambda field: _parameter(field, names))
    if error.reason == "PROMPT_TOO_LONG":
        message = _TOO_LONG + message
    status = STATUSES[error.code]
    return HttpError(status, message, code=error.reason.lower(), headers=error_headers(error))


def _parameter(field: str, names: Mapping[str, str]) -> str:
    """Anthropic's name. Turns are not its messages, which therefore have one name together."""
    path, bracket, index = field.partition("[")
    for known in (names, _PARAMETERS):
        if path in known:
            return known[path] + bracket + index
    if path == "messages":
        return path
    if path.partition(".")[0] in ("sampling", "stop_conditions"):
        return path.partition(".")[2] + bracket + index
    return field
