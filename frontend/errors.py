"""The one error a request can end with. Knows google.rpc codes by name, and no transport."""

from __future__ import annotations

import enum


class Code(enum.Enum):
    """The google.rpc.Code values this service uses; each adapter maps them to its transport."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
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


def invalid_field(field: str, message: str) -> RequestError:
    """INVALID_ARGUMENT for one field; ``message`` goes on from the field's path."""
    return RequestError(
        Code.INVALID_ARGUMENT, f"{field} {message}", reason="INVALID_FIELD", field=field
    )
