"""What a server, or the way to it, answers instead. Knows no call and no connection."""

from __future__ import annotations

from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

_DETAILS_KEY = "grpc-status-details-bin"


class ServerError(Exception):
    """What the server, or the way to it, answered instead.

    Attributes:
        code: gRPC status code.
        message: one line for a person.
        reason: the same for a program (google.rpc.ErrorInfo); empty when no server answered.
        field: path of the offending field; empty when there is none.
        retry_after: seconds after which another try makes sense; None when not said.
    """

    def __init__(self, code: grpc.StatusCode, message: str, details: bytes | None = None) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.reason = ""
        self.field = ""
        self.retry_after: float | None = None
        info = error_details_pb2.ErrorInfo()
        request = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        for detail in status_pb2.Status.FromString(details or b"").details:
            if detail.Unpack(info):
                self.reason = info.reason
            elif detail.Unpack(request) and request.field_violations:
                self.field = request.field_violations[0].field
            elif detail.Unpack(retry):
                self.retry_after = retry.retry_delay.ToNanoseconds() / 1e9


def server_error(error: Any) -> ServerError:
    """A `ServerError` of a grpc.RpcError, sync or async."""
    metadata = error.trailing_metadata() or ()
    details = next((value for key, value in metadata if key == _DETAILS_KEY), None)
    return ServerError(error.code(), error.details() or "", details)
