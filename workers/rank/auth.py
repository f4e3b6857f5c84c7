"""Admits to a rank those callers alone that know the link's secret."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any

import grpc

from switchyard.worker.link import SECRET_KEY


class LinkAuth(grpc.ServerInterceptor):  # type: ignore[misc]
    """Refuses every call, known or not, that lacks the secret."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()
        # Whatever the method's kind: a stream can be refused before its first message.
        self._refusal = grpc.stream_stream_rpc_method_handler(_refuse)

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """Returns the method's handler for a caller that knows the secret, else a refusal."""
        given = [v for k, v in handler_call_details.invocation_metadata if k == SECRET_KEY]
        if len(given) == 1 and hmac.compare_digest(given[0].encode(), self._secret):
            return continuation(handler_call_details)
        return self._refusal


def _refuse(requests: Any, context: grpc.ServicerContext) -> Any:
    context.abort(
        grpc.StatusCode.UNAUTHENTICATED,
        f"the link's secret is missing or wrong in {SECRET_KEY}; give both sides the same "
        "--link-secret-file",
    )
