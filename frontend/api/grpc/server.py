"""The service over gRPC: servicers, health, reflection, one listener.

Owns transport options and the order of starting and stopping. Knows nothing of models or workers:
each method hands its message and its caller to `frontend.service` and writes the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from frontend.api.auth import ApiKeys
from frontend.api.grpc.health import SERVICE_NAME, Health
from frontend.api.grpc.interceptor import CallInterceptor, caller_of
from frontend.api.tls import ServerTls, server_credentials
from frontend.bounds import MAX_MESSAGE_BYTES
from frontend.config import join_address
from frontend.errors import RequestError
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb
from switchyard.v1 import inference_pb2_grpc

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    # Without it a second server takes the same port and half of the connections.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 1024),
    # A dead peer is noticed by the ping's own time-out, 60 s when left alone. A ping that is under
    # way while this process stands still may be counted as late before its answer is read: so both
    # sides are as patient.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 30_000),
    ("grpc.http2.ping_timeout_ms", 30_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Clients may ping through a silent prefill.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)

AddService = Callable[[grpc.aio.Server], None]

_REFLECTION_V1ALPHA = reflection.SERVICE_NAME
_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """One method per RPC. Streams are written to the context, so that a cancelled call closes its
    generator in the same breath."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> None:  # noqa: N802
        """Write the stream of `Service.generate`."""
        stream = self._service.generate(request, caller_of(context))
        async with contextlib.aclosing(stream):
            async for event in stream:
                await context.write(event)

    async def Chat(self, request: pb.ChatRequest, context: Any) -> None:  # noqa: N802
        """Write the stream of `Service.chat`."""
        stream = self._service.chat(request, caller_of(context))
        with _paths_of(request):
            async with contextlib.aclosing(stream):
                async for event in stream:
                    await context.write(pb.ChatResponse(response=event))

    async def Complete(  # noqa: N802
        self, request: pb.CompleteRequest, context: Any
    ) -> pb.CompleteResponse:
        """Answer with `Service.complete`."""
        with _paths_of(request):
            return await self._service.complete(request, caller_of(context))

    async def Tokenize(  # noqa: N802
        self, request: pb.TokenizeRequest, context: Any
    ) -> pb.TokenizeResponse:
        """Answer with `Service.tokenize`."""
        return await self._service.tokenize(request)

    async def Detokenize(  # noqa: N802
        self, request: pb.DetokenizeRequest, context: Any
    ) -> pb.DetokenizeResponse:
        """Answer with `Service.detokenize`."""
        return await self._service.detokenize(request)

    async def GetModelInfo(  # noqa: N802
        self, request: pb.GetModelInfoRequest, context: Any
    ) -> pb.GetModelInfoResponse:
        """Answer with `Service.model_info`."""
        return self._service.model_info()

    async def GetServerInfo(  # noqa: N802
        self, request: pb.GetServerInfoRequest, context: Any
    ) -> pb.GetServerInfoResponse:
        """Answer with `Service.server_info`."""
        return self._service.server_info()

    async def GetLoad(  # noqa: N802
        self, request: pb.GetLoadRequest, context: Any
    ) -> pb.GetLoadResponse:
        """Answer with `Service.load`."""
        return self._service.load()

    async def GetExpertLoad(  # noqa: N802
        self, request: pb.GetExpertLoadRequest, context: Any
    ) -> pb.GetExpertLoadResponse:
        """Answer with `Service.expert_load`."""
        return await self._service.expert_load()

    async def Abort(self, request: pb.AbortRequest, context: Any) -> pb.AbortResponse:  # noqa: N802
        """Answer with `Service.abort`."""
        return self._service.abort(request, caller_of(context))


@contextlib.contextmanager
def _paths_of(message: pb.ChatRequest | pb.CompleteRequest) -> Iterator[None]:
    """Prefixes a field's path with `request.` where the field is the wrapped GenerateRequest's."""
    try:
        yield
    except RequestError as error:
        name = re.split(r"[.\[]", error.field or "", maxsplit=1)[0]
        if name and name not in message.DESCRIPTOR.fields_by_name:
            error.field = f"request.{error.field}"
        raise


class GrpcServer:
    """Listens for `switchyard.v1`, health and reflection.

    Args:
        service: what answers.
        host, port: where; port 0 takes a free one.
        access: the API keys; None: calls need none.
        tls: the server's certificate; None: no encryption.
        others: add further services to the same port.
    """

    def __init__(
        self,
        service: Service,
        host: str,
        port: int,
        *,
        access: ApiKeys | None = None,
        tls: ServerTls | None = None,
        others: Sequence[AddService] = (),
    ) -> None:
        self._host, self._port, self._tls = host, port, tls
        self.health = Health()
        self._server = grpc.aio.server(
            interceptors=(CallInterceptor(access or ApiKeys()),), options=SERVER_OPTIONS
        )
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(  # type: ignore[no-untyped-call]
            InferenceServicer(service), self._server
        )
        for add in others:
            add(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        self._server.add_generic_rpc_handlers(_reflection_handlers())

    async def start(self) -> int:
        """Listen, not ready yet.

        Returns:
            The port.

        Raises:
            OSError: the address is taken, or is not this machine's.
            ValueError: a file of the certificate cannot be used.
        """
        credentials = None if self._tls is None else server_credentials(self._tls)
        address = join_address(self._host, self._port)
        try:
            await self._check_free()
            if credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, credentials)
        except (OSError, RuntimeError) as error:
            cause = getattr(error, "strerror", None) or "the port may be in use"
            raise OSError(
                f"cannot listen on {address}: {cause}; pass another --host or --port"
            ) from error
        await self._server.start()
        return int(port)

    async def _check_free(self) -> None:
        """Bind and release: gRPC's own error says less, and goes to stderr."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, where = found[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(where)

    async def stop(self, grace: float) -> None:
        """End Watch streams, close the listener, give what is left ``grace`` seconds."""
        await self.health.set_ready(False)
        await self.health.end_watches()
        await self._server.stop(grace)


def _reflection_handlers() -> tuple[grpc.GenericRpcHandler[Any, Any], ...]:
    """One servicer under both names of reflection, over a pool that holds public files only."""
    names = (SERVICE_NAME, "grpc.health.v1.Health", _REFLECTION_V1, _REFLECTION_V1ALPHA)
    servicer = reflection.aio.ReflectionServicer(names, pool=_public_descriptors())
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return tuple(
        grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method})
        for name in (_REFLECTION_V1, _REFLECTION_V1ALPHA)
    )


def _public_descriptors() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for file in (pb.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        _add_with_dependencies(pool, file, set())
    # grpcio ships reflection as v1alpha; v1 is the same file under another package.
    v1 = text_format.MessageToString(_file_proto(reflection_pb2.DESCRIPTOR))
    v1 = v1.replace("v1alpha", "v1")
    pool.Add(text_format.Parse(v1, descriptor_pb2.FileDescriptorProto()))
    return pool


def _add_with_dependencies(pool: descriptor_pool.DescriptorPool, file: Any, seen: set[str]) -> None:
    if file.name in seen:
        return
    seen.add(file.name)
    for dependency in file.dependencies:
        _add_with_dependencies(pool, dependency, seen)
    pool.Add(_file_proto(file))


def _file_proto(file: Any) -> descriptor_pb2.FileDescriptorProto:
    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    return proto
