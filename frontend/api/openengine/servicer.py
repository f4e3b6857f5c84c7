"""`openengine.v1`: the protocol that engines of several makers speak.

Owns its methods, and which errors are statuses and which are messages. `frontend.service` answers
every one; the files beside this one translate.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from typing import Any

import grpc.aio

from frontend.api.grpc.interceptor import caller_of
from frontend.api.openengine import facts
from frontend.api.openengine.kv_events import kv_event_batch
from frontend.api.openengine.request import generate_request, own_metadata
from frontend.api.openengine.response import Answer, engine_error
from frontend.errors import Code, RequestError, invalid_field
from frontend.service.service import Service, State
from switchyard.openengine.v1 import openengine_pb2 as oe
from switchyard.openengine.v1 import openengine_pb2_grpc
from switchyard.v1 import inference_pb2 as pb

_HEALTH = {
    State.STARTING: oe.HEALTH_STATE_STARTING,
    State.DRAINING: oe.HEALTH_STATE_DRAINING,
}


def openengine(service: Service) -> Callable[[grpc.aio.Server], None]:
    """Adds both services of the protocol to a server."""

    def add(server: grpc.aio.Server) -> None:
        openengine_pb2_grpc.add_InferenceServicer_to_server(  # type: ignore[no-untyped-call]
            InferenceServicer(service), server
        )
        openengine_pb2_grpc.add_ControlServicer_to_server(  # type: ignore[no-untyped-call]
            ControlServicer(service), server
        )

    return add


class InferenceServicer(openengine_pb2_grpc.InferenceServicer):
    """The only method that generates."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def Generate(self, request: oe.GenerateRequest, context: Any) -> None:  # noqa: N802
        """Write the stream of `Service.generate`. An error before its first event is a status, one
        after it the stream's last message."""
        generation = generate_request(
            request,
            own_metadata(context.invocation_metadata() or ()),
            has_tokenizer=self._service.has_tokenizer,
        )
        answer, is_accepted = Answer(), False
        stream = self._service.generate(generation, caller_of(context))
        async with contextlib.aclosing(stream):
            try:
                async for event in stream:
                    is_accepted = True
                    for message in answer.add(event):
                        await context.write(message)
            except RequestError as error:
                if not is_accepted:
                    raise
                await context.write(answer.error(error))


class ControlServicer(openengine_pb2_grpc.ControlServicer):
    """One method per RPC; what the protocol has besides is UNIMPLEMENTED."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._instance_id = uuid.uuid4().hex

    async def GetServerInfo(  # noqa: N802
        self, request: oe.GetServerInfoRequest, context: Any
    ) -> oe.ServerInfo:
        """Facts of the server."""
        service = self._service
        return facts.server_info(service.server_info(), service.model_info(), self._instance_id)

    async def GetModelInfo(  # noqa: N802
        self, request: oe.GetModelInfoRequest, context: Any
    ) -> oe.ModelInfo:
        """Facts of the only model."""
        model = self._service.model_info()
        if request.model != model.model:
            raise RequestError(
                Code.NOT_FOUND,
                f"no such model here; this server has {model.model}",
                reason="MODEL_NOT_FOUND",
                field="model",
            )
        return facts.model_info(model, has_tokenizer=self._service.has_tokenizer)

    async def GetLoad(self, request: oe.GetLoadRequest, context: Any) -> oe.LoadInfo:  # noqa: N802
        """The load of all replicas inside."""
        service = self._service
        return facts.load_info(service.load(), service.server_info(), self._instance_id)

    async def Health(  # noqa: N802
        self, request: oe.HealthRequest, context: Any
    ) -> oe.HealthResponse:
        """Whether requests are taken and worked on."""
        why = self._service.why_not_ready()
        state = oe.HEALTH_STATE_READY
        if why:
            state = _HEALTH.get(self._service.state, oe.HEALTH_STATE_NOT_READY)
        check = oe.HealthCheck(name="scheduler", state=state, message=why)
        return oe.HealthResponse(state=state, checks=[check])

    async def Abort(self, request: oe.AbortRequest, context: Any) -> oe.AbortResponse:  # noqa: N802
        """End a request of the caller's key. One that is not live has ended before."""
        target = request.WhichOneof("target")
        if target != "request_id":
            raise invalid_field(
                target or "request_id",
                "is not supported; name a request_id" if target else "must be set",
            )
        wanted = pb.AbortRequest(request_ids=[request.request_id])
        aborted = self._service.abort(wanted, caller_of(context)).aborted_request_ids
        status = oe.ABORT_STATUS_ABORTED if aborted else oe.ABORT_STATUS_ALREADY_FINISHED
        return oe.AbortResponse(status=status)

    async def GetKvEventSources(  # noqa: N802
        self, request: oe.GetKvEventSourcesRequest, context: Any
    ) -> oe.GetKvEventSourcesResponse:
        """None besides SubscribeKvEvents."""
        return oe.GetKvEventSourcesResponse()

    async def SubscribeKvEvents(  # noqa: N802
        self, request: oe.SubscribeKvEventsRequest, context: Any
    ) -> None:
        """Write the stream of `Service.kv_events`: from a number on, or from now on, after a
        snapshot or without."""
        if any(request.data_parallel_ranks):
            raise invalid_field("data_parallel_ranks", "may hold 0 only: there is one rank")
        after: int | None = request.start_sequence_number
        if not after and not request.include_snapshot:
            after = None
        is_accepted = False
        stream = self._service.kv_events(after, caller_of(context))
        async with contextlib.aclosing(stream):
            try:
                async for batch in stream:
                    is_accepted = True
                    message = oe.SubscribeKvEventsResponse(batch=kv_event_batch(batch))
                    await context.write(message)
            except RequestError as error:
                if not is_accepted:
                    raise
                await context.write(oe.SubscribeKvEventsResponse(error=engine_error(error)))
