"""A thin client of `switchyard.v1`: streams that cancel when left early, retries that are safe.

Owns the channel's options and the turn from gRPC errors to `ServerError`. Knows the proto and
nothing of the server behind it.

    with Client("127.0.0.1:50051") as client, client.generate("Once upon a time") as stream:
        for delta in stream:
            print(delta.text, end="", flush=True)
        print(stream.finished.usage)
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2

from switchyard.channel import Tls, open_channel
from switchyard.requests import (
    ChatOptions,
    Message,
    Options,
    Prompt,
    chat_request,
    generate_request,
)
from switchyard.v1 import inference_pb2 as pb
from switchyard.v1 import inference_pb2_grpc

DEFAULT_ADDRESS = "127.0.0.1:50051"
_DETAILS_KEY = "grpc-status-details-bin"

# A refused request is safe to send again, and gRPC retries no call that has had its first message.
# Complete, which has none before its end, is not retried: no retry runs a request twice.
_RETRIED = (
    "Generate",
    "Chat",
    "Tokenize",
    "Detokenize",
    "GetModelInfo",
    "GetServerInfo",
    "GetLoad",
    "GetExpertLoad",
    "Abort",
)
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [
                {"service": "switchyard.v1.InferenceService", "method": method}
                for method in _RETRIED
            ],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}
CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.max_send_message_length", 8 << 20),
    # A server that is gone is noticed during a silent prefill too.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)


class ServerError(Exception):
    """What the server, or the way to it, answered instead.

    Attributes:
        code: gRPC status code.
        message: one line for a person.
        reason: the same for a program (google.rpc.ErrorInfo); empty when no server answered.
        field: path of the offending field; empty when there is none.
        retry_after: seconds after which another try makes sense; None when not said.
    """

    def __init__(self, code: grpc.StatusCode, message: str, details: bytes | None) -> None:
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


def _server_error(error: Any) -> ServerError:
    """A `ServerError` of a grpc.RpcError, sync or async."""
    metadata = error.trailing_metadata() or ()
    details = next((value for key, value in metadata if key == _DETAILS_KEY), None)
    return ServerError(error.code(), error.details() or "", details)


class _Events:
    """What both streams keep of the messages that are no deltas."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.started = pb.GenerateStarted()
        self.finished = pb.GenerateFinished()

    def _delta(self, message: pb.GenerateResponse | pb.ChatResponse) -> pb.Delta | None:
        event = message.response if isinstance(message, pb.ChatResponse) else message
        if event.HasField("delta"):
            return event.delta
        if event.HasField("started"):
            self.started = event.started
        else:
            self.finished = event.finished
        return None

    def cancel(self) -> None:
        """End the call; the server aborts the request. Nothing happens when it has ended."""
        self._call.cancel()


class Stream(_Events):
    """The deltas of one request, once. Leaving its ``with`` block ends the request.

    Attributes:
        started: the server's first message, once there is a delta.
        finished: usage and timings, once the deltas have ended.
    """

    def __iter__(self) -> Iterator[pb.Delta]:
        try:
            for message in self._call:
                delta = self._delta(message)
                if delta is not None:
                    yield delta
        except grpc.RpcError as error:
            raise _server_error(error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()


class AsyncStream(_Events):
    """`Stream` for asyncio."""

    async def __aiter__(self) -> AsyncIterator[pb.Delta]:
        try:
            async for message in self._call:
                delta = self._delta(message)
                if delta is not None:
                    yield delta
        except grpc.RpcError as error:
            raise _server_error(error) from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()


class Client:
    """A connection to one server, used with ``with``. Every method raises `ServerError`.

    Args:
        address: HOST:PORT, or unix:PATH.
        api_key: sent with every call; None for a server that wants none.
        tls: what the server's certificate is checked with; None for one without encryption.
    """

    def __init__(
        self, address: str = DEFAULT_ADDRESS, *, api_key: str | None = None, tls: Tls | None = None
    ) -> None:
        self._channel = open_channel(
            grpc, address, options=CHANNEL_OPTIONS, api_key=api_key, tls=tls
        )
        # The generated stub, for what has no method here; raises grpc.RpcError.
        self.stub: Any = inference_pb2_grpc.InferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def generate(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[Options]
    ) -> Stream:
        """Continue a prompt; ``timeout`` is the deadline in seconds."""
        return Stream(self.stub.Generate(generate_request(prompt, **options), timeout=timeout))

    def chat(
        self,
        messages: Sequence[Message],
        *,
        template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        timeout: float | None = None,
        **options: Unpack[ChatOptions],
    ) -> Stream:
        """Ask for the assistant's turn; ``timeout`` is the deadline in seconds."""
        request = chat_request(messages, template_kwargs, tools, **options)
        return Stream(self.stub.Chat(request, timeout=timeout))

    def complete(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[Options]
    ) -> pb.CompleteResponse:
        """The whole answer at once."""
        request = pb.CompleteRequest(request=generate_request(prompt, **options))
        answer: pb.CompleteResponse = self._unary(self.stub.Complete, request, timeout)
        return answer

    def model_info(self, *, timeout: float | None = None) -> pb.GetModelInfoResponse:
        """Facts of the served model."""
        answer: pb.GetModelInfoResponse = self._unary(
            self.stub.GetModelInfo, pb.GetModelInfoRequest(), timeout
        )
        return answer

    def abort(self, *request_ids: str, timeout: float | None = None) -> list[str]:
        """End requests by id; those that were running or queued."""
        request = pb.AbortRequest(request_ids=request_ids)
        return list(self._unary(self.stub.Abort, request, timeout).aborted_request_ids)

    def _unary(self, method: Any, request: Any, timeout: float | None) -> Any:
        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as error:
            raise _server_error(error) from None

    def close(self) -> None:
        """End every call and the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncClient:
    """`Client` for asyncio, used with ``async with`` on one event loop.

    What is awaited takes its time limit from asyncio.timeout.
    """

    def __init__(
        self, address: str = DEFAULT_ADDRESS, *, api_key: str | None = None, tls: Tls | None = None
    ) -> None:
        self._channel = open_channel(
            grpc.aio, address, options=CHANNEL_OPTIONS, api_key=api_key, tls=tls
        )
        # The generated stub, for what has no method here; raises grpc.aio.AioRpcError.
        self.stub: Any = inference_pb2_grpc.InferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def generate(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[Options]
    ) -> AsyncStream:
        """Continue a prompt; ``timeout`` is the deadline in seconds."""
        return AsyncStream(self.stub.Generate(generate_request(prompt, **options), timeout=timeout))

    def chat(
        self,
        messages: Sequence[Message],
        *,
        template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        timeout: float | None = None,
        **options: Unpack[ChatOptions],
    ) -> AsyncStream:
        """Ask for the assistant's turn; ``timeout`` is the deadline in seconds."""
        request = chat_request(messages, template_kwargs, tools, **options)
        return AsyncStream(self.stub.Chat(request, timeout=timeout))

    async def complete(self, prompt: Prompt, **options: Unpack[Options]) -> pb.CompleteResponse:
        """The whole answer at once."""
        request = pb.CompleteRequest(request=generate_request(prompt, **options))
        answer: pb.CompleteResponse = await self._unary(self.stub.Complete, request)
        return answer

    async def model_info(self) -> pb.GetModelInfoResponse:
        """Facts of the served model."""
        answer: pb.GetModelInfoResponse = await self._unary(
            self.stub.GetModelInfo, pb.GetModelInfoRequest()
        )
        return answer

    async def abort(self, *request_ids: str) -> list[str]:
        """End requests by id; those that were running or queued."""
        request = pb.AbortRequest(request_ids=request_ids)
        return list((await self._unary(self.stub.Abort, request)).aborted_request_ids)

    async def _unary(self, method: Any, request: Any) -> Any:
        try:
            return await method(request)
        except grpc.RpcError as error:
            raise _server_error(error) from None

    async def close(self) -> None:
        """End every call and the connection."""
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
