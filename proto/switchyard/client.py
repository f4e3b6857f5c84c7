"""A client of `switchyard.v1`: streams end when they are left, and outlive their server.

Owns the methods and the channel's options. Knows the proto and nothing of the server behind it.

    with Client("127.0.0.1:50051") as client, client.generate("Once upon a time") as stream:
        for delta in stream:
            print(delta.text, end="", flush=True)
        print(stream.finished.usage)
"""

from __future__ import annotations

import json
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Self, Unpack

import grpc
import grpc.aio

from switchyard.channel import Tls, open_channel
from switchyard.errors import ServerError, server_error
from switchyard.requests import (
    ChatOptions,
    Message,
    Options,
    Prompt,
    chat_request,
    generate_request,
)
from switchyard.resumption import RESUME_SECONDS, Losses, Patience, Request
from switchyard.streams import AsyncStream, Stream, await_sign, sign_of_life, until_back
from switchyard.v1 import inference_pb2 as pb
from switchyard.v1 import inference_pb2_grpc

__all__ = ["DEFAULT_ADDRESS", "AsyncClient", "AsyncStream", "Client", "ServerError", "Stream"]

DEFAULT_ADDRESS = "127.0.0.1:50051"

# What runs no request is tried again by gRPC; the others are `resumption`'s.
_RETRIED = (
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
    # A server that stands still for less than 30 s keeps its streams. One that is gone without a
    # word is noticed 50 s after its last byte, during a silent prefill too. Servers take a ping
    # every 5 s.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 30_000),
    ("grpc.http2.ping_timeout_ms", 30_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A server that is back is found soon; left alone gRPC looks again after up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


class _Connection:
    """What both clients are made of."""

    def __init__(
        self,
        grpc_module: Any,
        address: str,
        api_key: str | None,
        tls: Tls | None,
        resume_seconds: float,
    ) -> None:
        self._channel = open_channel(
            grpc_module, address, options=CHANNEL_OPTIONS, api_key=api_key, tls=tls
        )
        # The generated stub, for what has no method here; raises the module's RpcError.
        self.stub: Any = inference_pb2_grpc.InferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._patience = Patience(resume_seconds)
        self._streams: weakref.WeakSet[Stream | AsyncStream] = weakref.WeakSet()

    def _cancel_streams(self) -> None:
        """Those that wait for a server have no call that the channel's end would end."""
        for stream in list(self._streams):
            stream.cancel()


class Client(_Connection):
    """A connection to one server, used with ``with``. Every method raises `ServerError`.

    A stream whose server is lost, or the way to it, goes on where it was as soon as there is a
    server again: nothing of it is lost, repeated, or other than it would have been. A whole answer
    is asked for again. What is refused is not tried again, except for some seconds by a server that
    begins or ends.

    Args:
        address: HOST:PORT, or unix:PATH.
        api_key: sent with every call; None for a server that wants none.
        tls: what the server's certificate is checked with; None for one without encryption.
        resume_seconds: how long a server that was lost is waited for, one that has never answered
            5 s at most; 0: a loss ends the call.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        api_key: str | None = None,
        tls: Tls | None = None,
        resume_seconds: float = RESUME_SECONDS,
    ) -> None:
        super().__init__(grpc, address, api_key, tls, resume_seconds)

    def generate(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[Options]
    ) -> Stream:
        """Continue a prompt; ``timeout`` is the deadline in seconds."""
        return self._stream("Generate", generate_request(prompt, **options), timeout)

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
        return self._stream("Chat", request, timeout)

    def _stream(self, method: str, request: Request, timeout: float | None) -> Stream:
        stream = Stream(self.stub, method, request, self._patience, timeout)
        self._streams.add(stream)
        return stream

    def complete(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[Options]
    ) -> pb.CompleteResponse:
        """The whole answer at once."""
        request = pb.CompleteRequest(request=generate_request(prompt, **options))
        losses = Losses(self._patience, timeout)
        while True:
            try:
                answer: pb.CompleteResponse = self.stub.Complete(request, timeout=losses.timeout)
            except grpc.RpcError as error:
                pause = losses.pause_after(server_error(error))
            else:
                losses.answered()
                return answer
            time.sleep(pause)
            await_sign(sign_of_life(self.stub.GetModelInfo.future, losses))

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
            raise server_error(error) from None

    def close(self) -> None:
        """End every call and the connection."""
        self._cancel_streams()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(_Connection):
    """`Client` for asyncio, used with ``async with`` on one event loop.

    What is awaited takes its time limit from asyncio.timeout.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        api_key: str | None = None,
        tls: Tls | None = None,
        resume_seconds: float = RESUME_SECONDS,
    ) -> None:
        super().__init__(grpc.aio, address, api_key, tls, resume_seconds)

    def generate(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[Options]
    ) -> AsyncStream:
        """Continue a prompt; ``timeout`` is the deadline in seconds."""
        return self._stream("Generate", generate_request(prompt, **options), timeout)

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
        return self._stream("Chat", request, timeout)

    def _stream(self, method: str, request: Request, timeout: float | None) -> AsyncStream:
        stream = AsyncStream(self.stub, method, request, self._patience, timeout)
        self._streams.add(stream)
        return stream

    async def complete(self, prompt: Prompt, **options: Unpack[Options]) -> pb.CompleteResponse:
        """The whole answer at once."""
        request = pb.CompleteRequest(request=generate_request(prompt, **options))
        losses = Losses(self._patience, None)
        while True:
            try:
                answer: pb.CompleteResponse = await self.stub.Complete(request)
            except grpc.RpcError as error:
                pause = losses.pause_after(server_error(error))
            else:
                losses.answered()
                return answer
            await until_back(self.stub, pause, losses)

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
            raise server_error(error) from None

    async def close(self) -> None:
        """End every call and the connection."""
        self._cancel_streams()
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
