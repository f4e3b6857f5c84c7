"""The link to one rank: its channel, and its Execute stream.

Owns the channel and its failures, each raised as a `GroupLost` that names the rank. Knows messages,
not what they mean for the group.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import grpc

from switchyard.worker.link import PROTOCOL, SECRET_KEY
from switchyard.worker.v1 import worker_pb2

RETRY_SECONDS = 0.1
DESCRIBE = "/switchyard.worker.v1.WorkerService/Describe"
EXECUTE = "/switchyard.worker.v1.WorkerService/Execute"
GET_EXPERT_LOAD = "/switchyard.worker.v1.WorkerService/GetExpertLoad"
EXPERT_LOAD_SECONDS = 5.0
GOODBYE_SECONDS = 1.0
CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
)

# Statuses that no later try would change.
_FOR_GOOD = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED)


class GroupLost(Exception):  # noqa: N818 - named after the event
    """The group cannot be reached or has broken; the message names the rank and the cause."""


class RankChannel:
    """One rank's channel and its Execute stream.

    Args:
        secret: the link's secret, sent with every call; None: there is none.

    Attributes:
        results: its results in order, filled by the group's reader; a `GroupLost` ends them.
    """

    def __init__(self, number: int, address: str, *, secret: str | None = None) -> None:
        self.number = number
        self.address = address
        self._metadata = None if secret is None else ((SECRET_KEY, secret),)
        self.results: asyncio.Queue[worker_pb2.StepResult | GroupLost] = asyncio.Queue()
        self._channel: Any = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stream: Any = None

    def __str__(self) -> str:
        return f"rank {self.number} at {self.address}"

    async def describe(self, deadline: float) -> worker_pb2.DescribeResponse:
        """The rank's description; tries again until the rank is there.

        Raises:
            GroupLost: it was not there before ``deadline``, a time.monotonic().
            ValueError: it has another secret, or is no rank.
        """
        describe = self._channel.unary_unary(
            DESCRIBE,
            request_serializer=worker_pb2.DescribeRequest.SerializeToString,
            response_deserializer=worker_pb2.DescribeResponse.FromString,
        )
        while True:
            left = deadline - time.monotonic()
            try:
                info: worker_pb2.DescribeResponse = await describe(
                    worker_pb2.DescribeRequest(),
                    timeout=max(left, 0.0),
                    metadata=self._metadata,
                    wait_for_ready=True,
                )
                return info
            except grpc.aio.AioRpcError as error:
                if error.code() in _FOR_GOOD:
                    raise ValueError(f"{self} refuses this frontend: {_reason(error)}") from error
                retry = error.code() is grpc.StatusCode.UNAVAILABLE
                if not retry or time.monotonic() + RETRY_SECONDS >= deadline:
                    cause = f"{self} cannot be reached: {_reason(error)}; are the workers running?"
                    raise GroupLost(cause) from error
            await asyncio.sleep(RETRY_SECONDS)

    async def open(self, epoch: int, deadline: float) -> int:
        """Open the stream: Hello, Welcome.

        Returns:
            Steps that the rank has run since its start.

        Raises:
            GroupLost: the rank refuses, or is silent until ``deadline``.
        """
        execute = self._channel.stream_stream(
            EXECUTE, response_deserializer=worker_pb2.ExecuteResponse.FromString
        )
        self._stream = execute(metadata=self._metadata)
        hello = worker_pb2.Hello(epoch=epoch, protocol=PROTOCOL)
        await self.write(worker_pb2.ExecuteRequest(hello=hello).SerializeToString())
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), 0.0)):
                answer = await self._read()
        except TimeoutError as error:
            raise GroupLost(f"{self} did not answer Hello in time") from error
        if answer.WhichOneof("message") != "welcome" or answer.welcome.epoch != epoch:
            raise GroupLost(f"{self} answered Hello of epoch {epoch} with {answer!s:.80}")
        return answer.welcome.num_steps

    async def write(self, message: bytes) -> None:
        """Write one serialized ExecuteRequest."""
        try:
            await self._stream.write(message)
        except grpc.aio.AioRpcError as error:
            raise GroupLost(f"{self}: {_reason(error)}") from error
        except asyncio.InvalidStateError as error:
            raise GroupLost(f"{self}: {await self._end()}") from error

    async def read_result(self) -> worker_pb2.StepResult:
        """The next StepResult."""
        answer = await self._read()
        if answer.WhichOneof("message") != "result":
            raise GroupLost(f"{self} sent {answer!s:.80} where a StepResult was due")
        return answer.result

    async def expert_load(self) -> worker_pb2.GetExpertLoadResponse:
        """The rank's count of tokens for each expert; to be summed over all ranks.

        Raises:
            GroupLost: the rank is not there, or did not answer in time.
        """
        get_expert_load = self._channel.unary_unary(
            GET_EXPERT_LOAD,
            request_serializer=worker_pb2.GetExpertLoadRequest.SerializeToString,
            response_deserializer=worker_pb2.GetExpertLoadResponse.FromString,
        )
        try:
            load: worker_pb2.GetExpertLoadResponse = await get_expert_load(
                worker_pb2.GetExpertLoadRequest(),
                timeout=EXPERT_LOAD_SECONDS,
                metadata=self._metadata,
            )
        except grpc.aio.AioRpcError as error:
            raise GroupLost(f"{self}: {_reason(error)}") from error
        return load

    async def say_goodbye(self, *, end_rank: bool) -> None:
        """End the stream, if it is still open, and wait a moment until the rank has ended it too.

        Args:
            end_rank: the rank is to exit; otherwise it waits for the next frontend.
        """
        if self._stream is None:
            return
        goodbye = worker_pb2.ExecuteRequest(goodbye=worker_pb2.Goodbye(end_rank=end_rank))
        with contextlib.suppress(GroupLost, TimeoutError):
            async with asyncio.timeout(GOODBYE_SECONDS):
                await self.write(goodbye.SerializeToString())
                await self._stream.done_writing()
                await self._stream.code()

    async def close(self) -> None:
        """Break the stream."""
        if self._stream is not None:
            self._stream.cancel()
        await self._channel.close()

    async def _read(self) -> worker_pb2.ExecuteResponse:
        try:
            answer = await self._stream.read()
        except grpc.aio.AioRpcError as error:
            raise GroupLost(f"{self}: {_reason(error)}") from error
        if answer is None:  # as grpcio has it; the stream goes on
            raise GroupLost(f"{self} sent what is no ExecuteResponse")
        if not isinstance(answer, worker_pb2.ExecuteResponse):
            raise GroupLost(f"{self}: {await self._end()}")
        return answer

    async def _end(self) -> str:
        code, details = await self._stream.code(), await self._stream.details()
        return f"the stream ended with {code.name} {details or ''}".rstrip()


def _reason(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name} {error.details() or ''}".rstrip()
