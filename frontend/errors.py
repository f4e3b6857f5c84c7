"""The one error that a request can end with.

Owns its codes, named as google.rpc names them, and its text. Knows no transport.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping

from frontend.bounds import MAX_MESSAGE_BYTES


class Code(enum.Enum):
    """The google.rpc.Code values that this service uses; each API maps them to its transport."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class RequestError(Exception):
    """Ends one request.

    Args:
        code: the kind of failure.
        complaint: one line for a person: what is wrong, the numbers, the remedy. Never the prompt.
        reason: one word for a program, in UPPER_SNAKE case (google.rpc.ErrorInfo.reason).
        field: path of the offending field, such as ``sampling.top_p``. It is relative to the
            GenerateRequest, or to the message of an RPC that has fields of its own.
        retry_after: seconds after which another try makes sense; of a full queue
            `scheduler/admission_queue.py` predicts them.
        opens_with_field: the text begins with the field's path, and the complaint follows.
        mentions: words of the complaint that name other fields or methods, and the paths of these.
    """

    def __init__(
        self,
        code: Code,
        complaint: str,
        *,
        reason: str,
        field: str | None = None,
        retry_after: float | None = None,
        opens_with_field: bool = False,
        mentions: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(complaint)
        self.code = code
        self.complaint = complaint
        self.reason = reason
        self.field = field
        self.retry_after = retry_after
        self.opens_with_field = opens_with_field
        self.mentions = mentions or {}

    @property
    def message(self) -> str:
        """The line for a person."""
        return self._message(self.field, self.complaint)

    def message_for(self, name_of: Callable[[str], str]) -> str:
        """The line for a person whose API has names of its own for the paths of fields."""
        complaint = self.complaint
        for word, path in self.mentions.items():
            complaint = complaint.replace(word, name_of(path))
        return self._message(None if self.field is None else name_of(self.field), complaint)

    def _message(self, field: str | None, complaint: str) -> str:
        return f"{field} {complaint}" if self.opens_with_field and field else complaint

    def __str__(self) -> str:
        return self.message


def internal_error(request_id: str) -> RequestError:
    """INTERNAL for a bug: it says nothing but the id under which the log has the rest."""
    return RequestError(
        Code.INTERNAL, f"internal error; quote request {request_id}", reason="INTERNAL"
    )


def invalid_field(
    field: str, complaint: str, *, reason: str = "", mentions: Mapping[str, str] | None = None
) -> RequestError:
    """INVALID_ARGUMENT for one field; the text is the field's path and then ``complaint``."""
    return RequestError(
        Code.INVALID_ARGUMENT,
        complaint,
        reason=reason or "INVALID_FIELD",
        field=field,
        opens_with_field=True,
        mentions=mentions,
    )


def too_many(field: str, count: int, limit: int, things: str) -> RequestError:
    """INVALID_ARGUMENT for a repeated field, or a text, that is longer than its limit."""
    return invalid_field(field, f"has {count} {things}, at most {limit} are taken")


def duplicate_id(request_id: str) -> RequestError:
    """ALREADY_EXISTS for the id of a live request."""
    return RequestError(
        Code.ALREADY_EXISTS,
        f"request {request_id} is live; send another id",
        reason="DUPLICATE_REQUEST_ID",
        field="request_id",
    )


def answer_too_large(max_bytes: int = MAX_MESSAGE_BYTES) -> RequestError:
    """INVALID_ARGUMENT for an answer that has become too large for its one message."""
    return RequestError(
        Code.INVALID_ARGUMENT,
        f"the answer does not fit {max_bytes} bytes, a message; stream it, or ask for less",
        reason="ANSWER_TOO_LARGE",
    )
