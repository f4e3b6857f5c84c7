"""Rejects gRPC calls without a valid key, and maps exceptions to statuses with google.rpc details.

Owns the mapping from `RequestError` to gRPC statuses, and the statuses of malformed messages and of
bugs. Knows no method by name, and of services that health needs no key.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import inspect
import logging
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import grpc
import grpc.aio
from google.protobuf import any_pb2, message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from frontend.api.auth import ApiKeys
from frontend.api.grpc.wire_fields import has_more_fields
from frontend.bounds import MAX_MESSAGE_FIELDS, UNCOUNTED_MESSAGE_BYTES
from frontend.errors import Code, RequestError, internal_error
from frontend.records import Caller

logger = logging.getLogger(__name__)

ERROR_DOMAIN = "switchyard"
# Details share 16 KiB of metadata with everything else; past that gRPC replaces the whole status.
MAX_MESSAGE_CHARS = 1000
# Until a long message that is not read is refused, so that many do not come again at once.
REFUSAL_SECONDS = (0.1, 0.4)
# Orchestrators call it, and have no keys.
_OPEN_SERVICE = "/grpc.health.v1.Health/"

authenticated_key: contextvars.ContextVar[str] = contextvars.ContextVar("authenticated_key")
"""Name of the present call's key: interceptor and handler run in one task, which is the call's."""

_Metadata = Iterable[tuple[str, str | bytes]]


@dataclasses.dataclass(frozen=True, slots=True)
class _Unread:
    """Stands for a message that is not read, until a status can be sent."""

    error: RequestError
    is_long: bool


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Wraps every handler; errors become statuses, cancellation passes through.

    Args:
        access: the API keys.
    """

    def __init__(self, access: ApiKeys) -> None:
        self._access = access

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """The method's handler, wrapped; or, without a valid key, one that refuses the call before
        a message is read, unknown methods included."""
        if not handler_call_details.method.startswith(_OPEN_SERVICE):
            try:
                metadata = handler_call_details.invocation_metadata
                authenticated_key.set(self._access.authenticate(_authorization(metadata)))
            except RequestError as error:
                return _refusing_handler(error)
        handler = await continuation(handler_call_details)
        # None is an unknown method, which gRPC answers itself.
        return handler and _wrapped_handler(handler)


def caller_of(context: Any) -> Caller:
    """The caller of a call that was authenticated here.

    Raises:
        LookupError: it was not.
    """
    metadata = context.invocation_metadata() or ()
    traceparent = _value(metadata, "traceparent")
    return Caller(
        key=authenticated_key.get(),
        peer=context.peer() or "",
        traceparent=traceparent if isinstance(traceparent, str) else "",
    )


def _authorization(metadata: _Metadata | None) -> str | bytes | None:
    """The call's one authorization header.

    Raises:
        RequestError: there are several: which one counts is for nobody to guess.
    """
    found = [value for name, value in metadata or () if name == "authorization"]
    if len(found) > 1:
        raise RequestError(
            Code.UNAUTHENTICATED,
            "the call has several authorization headers; send one",
            reason="SEVERAL_API_KEYS",
        )
    return found[0] if found else None


def _value(metadata: _Metadata, key: str) -> str | bytes | None:
    return next((value for name, value in metadata if name == key), None)


def _refusing_handler(error: RequestError) -> grpc.RpcMethodHandler[Any, Any]:
    """Answers with the status alone. On the wire a stream of no messages fits every method."""

    async def refuse(requests: Any, context: Any) -> None:
        await context.abort_with_status(to_status(error))

    return grpc.stream_stream_rpc_method_handler(refuse)


def _wrapped_handler(handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
    parse, serialize = _tolerant(handler.request_deserializer), handler.response_serializer
    if handler.request_streaming:
        function = _wrapped_stream(handler.stream_stream)
        return grpc.stream_stream_rpc_method_handler(function, parse, serialize)
    if handler.response_streaming:
        function = _wrapped(handler.unary_stream)
        return grpc.unary_stream_rpc_method_handler(function, parse, serialize)
    return grpc.unary_unary_rpc_method_handler(_wrapped(handler.unary_unary), parse, serialize)


def _tolerant(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """A parser that returns `_Unread`: a parser's exception would become UNKNOWN."""
    descriptor = parse.__self__.DESCRIPTOR  # type: ignore[attr-defined]  # it is FromString

    def tolerant(data: bytes) -> Any:
        is_long = len(data) > UNCOUNTED_MESSAGE_BYTES
        if is_long and has_more_fields(data, descriptor, MAX_MESSAGE_FIELDS):
            return _Unread(
                RequestError(
                    Code.INVALID_ARGUMENT,
                    f"the message has more than {MAX_MESSAGE_FIELDS} fields; send fewer",
                    reason="TOO_MANY_FIELDS",
                ),
                is_long,
            )
        try:
            return parse(data)
        except message.DecodeError:
            return _Unread(
                RequestError(
                    Code.INVALID_ARGUMENT,
                    "the message is no valid protobuf of its type; check the client's stubs",
                    reason="MALFORMED_MESSAGE",
                ),
                is_long,
            )

    return tolerant


def _wrapped(handle: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Wraps a handler of one request; it returns its answer, or writes it to the context."""
    assert inspect.iscoroutinefunction(handle), "streams are written to the context here"

    async def wrapped(request: Any, context: Any) -> Any:
        async with _statuses(context):
            return await handle(await _parsed(request), context)

    return wrapped


def _wrapped_stream(handle: Callable[..., AsyncIterator[Any]]) -> Callable[..., Any]:
    """Wraps a handler of a stream of requests, which yields its answers."""

    async def parsed(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            yield await _parsed(request)

    async def wrapped(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async with _statuses(context):
            async for response in handle(parsed(requests), context):
                yield response

    return wrapped


async def _parsed(request: Any) -> Any:
    if isinstance(request, _Unread):
        if request.is_long:
            await asyncio.sleep(random.uniform(*REFUSAL_SECONDS))
        raise request.error
    return request


@contextlib.asynccontextmanager
async def _statuses(context: Any) -> AsyncIterator[None]:
    """Turn an exception into a status; CancelledError is no Exception and passes."""
    try:
        yield
    except RequestError as error:
        await context.abort_with_status(to_status(error))
    except grpc.aio.AbortError:
        raise
    except Exception as error:
        if isinstance(error, grpc.aio.InternalError) and context.done():
            return  # the client has left
        request_id = uuid.uuid4().hex
        logger.exception("request %s failed", request_id)
        await context.abort_with_status(to_status(internal_error(request_id)))


def to_status(error: RequestError) -> grpc.Status:
    """A gRPC status with ErrorInfo, and BadRequest and RetryInfo where they apply."""
    text = error.message[:MAX_MESSAGE_CHARS]
    details: list[message.Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN)
    ]
    if error.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=text, reason=error.reason
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(error.retry_after * 1e9))
        details.append(retry)
    status = status_pb2.Status(code=error.code.value, message=text)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return rpc_status.to_status(status)
