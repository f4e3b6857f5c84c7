"""A request's deltas, read from one stream after the other while servers come and go.

Owns the reading, the waiting and the cancelling, sync and async. What is asked for and what comes
of it is `resumption`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

import grpc
import grpc.aio

from switchyard.errors import ServerError, server_error
from switchyard.resumption import Event, Losses, Patience, Request, Resumption
from switchyard.v1 import inference_pb2 as pb


class _Stream:
    """What both kinds share: the present call, and what the calls before have given.

    Args:
        stub: of the service.
        method: the one of its methods that is called.
        request: the first call's.
        patience: the client's.
        timeout: seconds until the deadline of all calls together; None: there is none.
    """

    def __init__(
        self, stub: Any, method: str, request: Request, patience: Patience, timeout: float | None
    ) -> None:
        self._stub = stub
        self._method = getattr(stub, method)
        self._losses = Losses(patience, timeout)
        self._resumption = Resumption(request, self._losses)
        self._call = self._next_call()

    @property
    def started(self) -> pb.GenerateStarted:
        """The server's first message, once there is a delta."""
        return self._resumption.started

    @property
    def finished(self) -> pb.GenerateFinished:
        """Usage and timings, once the deltas have ended."""
        return self._resumption.finished

    @property
    def resumes(self) -> int:
        """How often another server, or the same again, has gone on with it."""
        return self._resumption.resumes

    def _take(self, message: Event) -> pb.Delta | None:
        try:
            return self._resumption.take(message)
        except ServerError:
            self._call.cancel()
            raise

    def _next_call(self) -> Any:
        return self._method(self._resumption.next_request(), timeout=self._losses.timeout)


class Stream(_Stream):
    """The deltas of one request, once. Leaving its ``with`` block ends the request."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._cancelled = threading.Event()

    def __iter__(self) -> Iterator[pb.Delta]:
        while True:
            try:
                for message in self._call:
                    delta = self._take(message)
                    if delta is not None:
                        yield delta
                return
            except grpc.RpcError as error:
                pause = self._losses.pause_after(server_error(error))
            if not self._cancelled.wait(pause):
                self._begin(sign_of_life(self._stub.GetModelInfo.future, self._losses))
                await_sign(self._call)
            if self._cancelled.is_set():
                raise ServerError(grpc.StatusCode.CANCELLED, "the stream was cancelled")
            self._begin(self._next_call())

    def _begin(self, call: Any) -> None:
        """Let a call be the present one, which `cancel` ends, even if it came before."""
        self._call = call
        if self._cancelled.is_set():
            call.cancel()

    def cancel(self) -> None:
        """End the call; the server aborts the request. Nothing happens when it has ended."""
        self._cancelled.set()
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


class AsyncStream(_Stream):
    """`Stream` for asyncio."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._waiting: asyncio.Task[None] | None = None

    async def __aiter__(self) -> AsyncIterator[pb.Delta]:
        while True:
            try:
                async for message in self._call:
                    delta = self._take(message)
                    if delta is not None:
                        yield delta
                return
            except grpc.RpcError as error:
                pause = self._losses.pause_after(server_error(error))
            self._waiting = asyncio.create_task(until_back(self._stub, pause, self._losses))
            await self._waiting
            self._call = self._next_call()

    def cancel(self) -> None:
        """As `Stream.cancel`; whoever reads gets asyncio.CancelledError."""
        self._call.cancel()
        if self._waiting is not None:
            self._waiting.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()


def sign_of_life(method: Any, losses: Losses) -> Any:
    """A call that ends once the server answers it, or is not waited for any longer.

    Args:
        method: GetModelInfo, as a future or of grpc.aio.
    """
    return method(pb.GetModelInfoRequest(), timeout=losses.seconds, wait_for_ready=True)


def await_sign(future: Any) -> None:
    """Wait for the end of `sign_of_life`, however it ends: the next call will tell."""
    with contextlib.suppress(grpc.FutureCancelledError):
        future.exception()


async def until_back(stub: Any, pause: float, losses: Losses) -> None:
    """Wait so many seconds, and then for a sign of life."""
    await asyncio.sleep(pause)
    with contextlib.suppress(grpc.RpcError):
        await sign_of_life(stub.GetModelInfo, losses)
