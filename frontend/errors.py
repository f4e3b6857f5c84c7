"""The one error a request can end with. Knows google.rpc codes by name, and no transport."""

from __future__ import annotations

import enum

from frontend.bounds import MAX_MESSAGE_BYTES


class Code(enum.Enum):
    """The google.rpc.Code values this service uses; each adapter maps them to its transport."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class RequestError(Exception):
    """Ends one request.

    Args:
        code: what kind of failure it is.
        message: one line for a person: the thing, the numbers, the remedy. Never the prompt.
        reason: the same for a program, an UPPER_SNAKE word (google.rpc.ErrorInfo.reason).
        field: path of the offending field in the request, such as ``sampling.top_p``.
        retry_after: seconds after which another try makes sense.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        reason: str,
        field: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason
        self.field = field
        self.retry_after = retry_after


def internal_error(request_id: str) -> RequestError:
    """INTERNAL for a bug: opaque, with the id under which the log has the rest."""
    return RequestError(
        Code.INTERNAL, f"internal error; quote request {request_id}", reason="INTERNAL"
    )


def invalid_field(field: str, message: str) -> RequestError:
    """INVALID_ARGUMENT for one field; ``message`` goes on from the field's path."""
    return RequestError(
        Code.INVALID_ARGUMENT, f"{field} {message}", reason="INVALID_FIELD", field=field
    )


def duplicate_id(request_id: str) -> RequestError:
    """ALREADY_EXISTS for an id that a live request has."""
    return RequestError(
        Code.ALREADY_EXISTS,
        f"request {request_id} is live; send another id",
        reason="DUPLICATE_REQUEST_ID",
        field="request_id",
    )


def answer_too_large() -> RequestError:
    """INVALID_ARGUMENT for what was to be one message and has become too large for any."""
    return RequestError(
        Code.INVALID_ARGUMENT,
        f"the answer does not fit {MAX_MESSAGE_BYTES} bytes, a message; stream it, or ask for less",
        reason="ANSWER_TOO_LARGE",
    )
